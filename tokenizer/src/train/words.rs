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

/// Memory that merging takes for each slot, for each slot and hand, and for each token to make: symbols, positions of
/// pairs, their counts and their queue, spellings. Measured on 100 MB of text and code, 8,000 to 200,000 tokens and one
/// to four hands: 58 to 85 MB with one, 84 to 115 with two, where these give 67 to 105 and 81 to 120.
const SLOT_BYTES: u64 = 14;
const HAND_BYTES: u64 = 4;
const TOKEN_BYTES: u64 = 200;

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
    /// Deals all words of `source` that have a pair of symbols to as many hands as the current rayon pool has threads, or
    /// to as many as `memory_limit` allows; `spell` appends the symbols of a piece.
    ///
    /// # Errors
    /// If the words cannot be read, cannot be numbered, or do not fit into `memory_limit` together with what making
    /// `n_tokens` of them takes, and if `observer` breaks.
    pub(super) fn deal(
        source: &dyn Source,
        spell: &Spell<'_>,
        n_tokens: usize,
        memory_limit: Option<u64>,
        observer: &mut dyn Observer,
    ) -> Result<Vec<Self>, Error> {
        let n_hands = rayon::current_num_threads().min(MOST_HANDS);
        let mut reader =
            Reader { source, spell, n_hands, n_seen: AtomicU64::new(0), is_over: AtomicBool::new(false) };
        let mut sizes = reader.sizes(observer)?;
        let n_slots = 1 + sizes.iter().map(Sizes::n_slots).sum::<u64>();
        if n_slots >= MAX_SLOTS {
            return Err(Error::CorpusTooLarge { n_symbols: n_slots, limit: MAX_SLOTS - 1 });
        }
        if let Some(limit) = memory_limit {
            let needed = |n_hands: usize| {
                n_slots * (SLOT_BYTES + HAND_BYTES * n_hands as u64)
                    + TOKEN_BYTES * n_slots.min(n_tokens as u64)
            };
            match (1..=n_hands).rev().find(|&n_hands| needed(n_hands) <= limit) {
                Some(fewer) if fewer < n_hands => {
                    reader.n_hands = fewer;
                    sizes = reader.sizes(observer)?;
                }
                Some(_) => {}
                None => return Err(Error::MemoryLimit { needed: needed(1), limit }),
            }
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
    /// How much each hand gets.
    fn sizes(&self, observer: &mut dyn Observer) -> Result<Vec<Sizes>, Error> {
        let mut sizes: Vec<Sizes> = (0..self.n_hands).map(|_| Sizes::default()).collect();
        self.read(&mut sizes, observer, |sizes, symbols, count| sizes.add(symbols.len(), count))?;
        Ok(sizes)
    }

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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::train::progress::Progress;

    /// Enough pieces of three bytes for a report of the first hand; another may fail.
    struct Pieces {
        failing: Option<usize>,
    }

    const N_PIECES: u64 = 2 * REPORT_EVERY;

    impl Source for Pieces {
        fn for_each_of(&self, hand: Hand, each: &mut dyn FnMut(&[u8], u64)) -> Result<(), Error> {
            if self.failing == Some(hand.idx) {
                return Err(Error::CorpusTooLarge { n_symbols: 1, limit: 0 });
            }
            (0..N_PIECES).filter(|i| *i as usize % hand.n == hand.idx).for_each(|_| each(b"abc", 1));
            Ok(())
        }
    }

    /// The number of hands, in a pool of two threads.
    fn deal(failing: Option<usize>, breaks: bool, memory_limit: Option<u64>) -> Result<usize, Error> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        pool.install(|| {
            let mut observer =
                |_: Progress| if breaks { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
            let spell = |piece: &[u8], symbols: &mut Vec<u32>| {
                symbols.extend(piece.iter().map(|&byte| u32::from(byte)));
            };
            let hands = Words::deal(&Pieces { failing }, &spell, 10, memory_limit, &mut observer)?;
            Ok(hands.len())
        })
    }

    #[test]
    fn what_ends_one_hand_ends_dealing() {
        assert_eq!(deal(None, false, None).unwrap(), 2);
        for hand in 0..2 {
            assert!(matches!(deal(Some(hand), false, None), Err(Error::CorpusTooLarge { .. })));
        }
        assert!(matches!(deal(None, true, None), Err(Error::Cancelled)));
    }

    #[test]
    fn a_tight_limit_takes_fewer_hands() {
        // Three symbols and what stands between words.
        let needed =
            |n_hands: u64| (4 * N_PIECES + 1) * (SLOT_BYTES + HAND_BYTES * n_hands) + 10 * TOKEN_BYTES;
        assert_eq!(deal(None, false, Some(needed(2))).unwrap(), 2);
        assert_eq!(deal(None, false, Some(needed(2) - 1)).unwrap(), 1);
        assert_eq!(deal(None, false, Some(needed(1))).unwrap(), 1);
        match deal(None, false, Some(needed(1) - 1)) {
            Err(Error::MemoryLimit { needed: n_bytes, .. }) => assert_eq!(n_bytes, needed(1)),
            _ => panic!("it does not fit"),
        }
    }
}
