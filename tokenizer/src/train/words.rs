//! The distinct words of a corpus in a flat array of symbols for each thread, most frequent first.
//!
//! A token lies where its base symbols lay: its id stands in the first slot, the same id marked as an end in the last
//! one, and nothing of use between. With the length of every token known, the neighbours on both sides are found with
//! one look each, so a merge takes constant time whatever the length of the word, and needs no links.
//!
//! Words of one count lie together, so a count is stored once for the group, and a walk through ascending positions
//! finds it by moving on. Most merges happen in frequent words, which share the first pages of the array.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::count::{Hand, Source};
use super::progress::{Observer, Stage, report};
use crate::Error;
use crate::bpe::Pair;

/// Stands before, between and behind words, and for a symbol that no token may contain.
pub(super) const END: u32 = u32::MAX;

/// Marks the last slot of a token of several slots.
pub(super) const LAST: u32 = 1 << 31;

/// Fills a slot inside a token; as a marked id it is never taken for the start of one.
pub(super) const INSIDE: u32 = END - 1;

/// The most positions that are numbered.
const MAX_SLOTS: u64 = u32::MAX as u64;

/// Counts below this have their slots added up in an array; the others, few, in a map.
const DENSE: usize = 1 << 16;

/// Memory that merging takes for each slot: 4 bytes for itself, 8 for positions of pairs, those that merges add
/// included, and 8 for the counts and the queue of pairs (measured on 100 MB of text and code: 19).
const SLOT_BYTES: u64 = 20;

/// Words between two reports.
const REPORT_EVERY: u64 = 1 << 16;

/// Words of one count.
#[derive(Clone, Copy, Debug)]
struct Group {
    start: u32,
    count: u64,
}

/// Most hands that words are dealt to. Each has some tables of its own, and adding up what they find takes time.
const MOST_HANDS: usize = 4;

/// Words of a corpus: one of the hands that they are dealt to.
pub(super) struct Words {
    /// Slots, as the head of this file describes them.
    pub symbols: Vec<u32>,
    pub groups: Groups,
}

impl Words {
    /// Deals all words of `source` that have a pair of symbols to the threads of the current rayon pool; `spell` appends
    /// the symbols of a piece.
    ///
    /// # Errors
    /// If the words cannot be read, cannot be numbered, or do not fit into `memory_limit` together with the positions
    /// of their pairs, and if `observer` breaks.
    pub(super) fn deal(
        source: &dyn Source,
        spell: &Spell<'_>,
        memory_limit: Option<u64>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Self>, Error> {
        let n_hands = rayon::current_num_threads().min(MOST_HANDS);
        let reader =
            Reader { source, spell, n_hands, n_seen: AtomicU64::new(0), is_over: AtomicBool::new(false) };
        let mut sizes: Vec<Sizes> = (0..n_hands).map(|_| Sizes::default()).collect();
        reader.read(&mut sizes, observer, |sizes, symbols, count| sizes.add(symbols.len(), count))?;
        let n_slots = 1 + sizes.iter().map(Sizes::n_slots).sum::<u64>();
        if n_slots >= MAX_SLOTS {
            return Err(Error::CorpusTooLarge { n_symbols: n_slots, limit: MAX_SLOTS - 1 });
        }
        let needed = n_slots * SLOT_BYTES;
        if let Some(limit) = memory_limit.filter(|&limit| limit < needed) {
            return Err(Error::MemoryLimit { needed, limit });
        }
        let mut hands: Vec<(Self, Starts)> = sizes.into_iter().map(Self::empty).collect();
        reader.read(&mut hands, observer, |(words, starts), word, count| {
            let start = starts.of(count);
            words.symbols[*start..*start + word.len()].copy_from_slice(word);
            *start += word.len() + 1;
        })?;
        Ok(hands.into_iter().map(|(words, _)| words).collect())
    }

    /// Room for words of these sizes, and where they go.
    fn empty(sizes: Sizes) -> (Self, Starts) {
        let symbols = vec![END; sizes.n_slots() as usize + 1];
        let (groups, starts) = sizes.into_groups();
        (Self { symbols, groups }, starts)
    }

    /// Calls `each` with every pair of neighbouring symbols, its position and how often its word occurs, before any merge.
    pub(super) fn for_each_pair(&self, mut each: impl FnMut(Pair, u32, u64)) {
        let mut counts = self.groups.counts();
        for (position, pair) in (0..).zip(self.symbols.windows(2)) {
            if pair[0] != END && pair[1] != END {
                each((pair[0], pair[1]), position, counts.at(position));
            }
        }
    }
}

/// The groups of words in order of position.
pub(super) struct Groups(Vec<Group>);

impl Groups {
    /// Finds the counts of ascending positions.
    pub(super) fn counts(&self) -> Counts<'_> {
        Counts { groups: &self.0, count: 0 }
    }
}

/// Finds the counts of ascending positions.
pub(super) struct Counts<'a> {
    /// Those after the group of the last position.
    groups: &'a [Group],
    count: u64,
}

impl Counts<'_> {
    /// How often the word at `position` occurs.
    #[inline]
    pub(super) fn at(&mut self, position: u32) -> u64 {
        if self.groups.first().is_some_and(|group| group.start <= position) {
            // The next group is the likeliest; a jump far ahead halves the rest each time.
            let passed = match self.groups.get(1) {
                Some(second) if second.start <= position => {
                    self.groups.partition_point(|group| group.start <= position)
                }
                _ => 1,
            };
            self.count = self.groups[passed - 1].count;
            self.groups = &self.groups[passed..];
        }
        self.count
    }
}

/// Appends the symbols of a piece.
pub(super) type Spell<'a> = dyn Fn(&[u8], &mut Vec<u32>) + Sync + 'a;

/// Reads the words of a source, each hand in a thread of its own.
struct Reader<'a> {
    source: &'a dyn Source,
    spell: &'a Spell<'a>,
    n_hands: usize,
    /// Pieces that all threads have read.
    n_seen: AtomicU64,
    /// Whether one of them has failed.
    is_over: AtomicBool,
}

impl Reader<'_> {
    /// Calls `each` with the symbols and the count of every word that has a pair, and with what its hand fills.
    fn read<T: Send>(
        &self,
        hands: &mut [T],
        observer: &mut dyn Observer,
        each: impl Fn(&mut T, &[u32], u64) + Sync,
    ) -> Result<(), Error> {
        let Some((first, others)) = hands.split_first_mut() else {
            return Ok(());
        };
        self.n_seen.store(0, Relaxed);
        let mut results: Vec<Result<(), Error>> = others.iter().map(|_| Ok(())).collect();
        let result = rayon::in_place_scope(|scope| {
            for ((idx, hand), result) in (1..).zip(others).zip(&mut results) {
                let each = &each;
                scope.spawn(move |_| {
                    *result = self.read_hand(idx, &mut (), &mut |word, n| each(hand, word, n))
                });
            }
            // The observer cannot leave its thread.
            self.read_hand(0, observer, &mut |word, count| each(first, word, count))
        });
        results.into_iter().fold(result, Result::and)
    }

    fn read_hand(
        &self,
        idx: usize,
        observer: &mut dyn Observer,
        each: &mut dyn FnMut(&[u32], u64),
    ) -> Result<(), Error> {
        let (mut symbols, mut n_seen, mut reported) = (Vec::new(), 0, Ok(()));
        let read = self.source.for_each_of(Hand { idx, n: self.n_hands }, &mut |piece, count| {
            n_seen += 1;
            if n_seen % REPORT_EVERY == 0 {
                let n_seen = self.n_seen.fetch_add(REPORT_EVERY, Relaxed) + REPORT_EVERY;
                reported = std::mem::replace(&mut reported, Ok(()))
                    .and_then(|()| report(observer, Stage::Arrange, n_seen, None));
                self.is_over.fetch_or(reported.is_err(), Relaxed);
            }
            if self.is_over.load(Relaxed) {
                return;
            }
            symbols.clear();
            (self.spell)(piece, &mut symbols);
            if symbols.len() > 1 {
                each(&symbols, count);
            }
        });
        self.is_over.fetch_or(read.is_err(), Relaxed);
        read.and(reported)
    }
}

/// Slots that the words of each count take.
struct Sizes {
    dense: Vec<u64>,
    sparse: HashMap<u64, u64>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { dense: vec![0; DENSE], sparse: HashMap::new() }
    }
}

impl Sizes {
    fn add(&mut self, n_symbols: usize, count: u64) {
        let size = match self.dense.get_mut(count as usize) {
            Some(size) => size,
            None => self.sparse.entry(count).or_default(),
        };
        *size += n_symbols as u64 + 1;
    }

    fn n_slots(&self) -> u64 {
        self.dense.iter().chain(self.sparse.values()).sum()
    }

    /// The groups in descending order of count, and where the words of each go.
    fn into_groups(self) -> (Groups, Starts) {
        let dense = (0..).zip(self.dense).filter(|&(_, size)| size > 0);
        let mut sizes: Vec<(u64, u64)> = self.sparse.into_iter().chain(dense).collect();
        sizes.sort_unstable_by_key(|&(count, _)| std::cmp::Reverse(count));
        let mut starts = Starts { dense: vec![0; DENSE], sparse: HashMap::new() };
        // The first slot is an end, so that every word has one before it.
        let (mut groups, mut start) = (Vec::with_capacity(sizes.len()), 1);
        for (count, size) in sizes {
            groups.push(Group { start: start as u32, count });
            *starts.of(count) = start as usize;
            start += size;
        }
        (Groups(groups), starts)
    }
}

/// Where the next word of each count goes.
struct Starts {
    dense: Vec<usize>,
    sparse: HashMap<u64, usize>,
}

impl Starts {
    fn of(&mut self, count: u64) -> &mut usize {
        match self.dense.get_mut(count as usize) {
            Some(start) => start,
            None => self.sparse.entry(count).or_default(),
        }
    }
}
