//! All distinct words of a corpus in one flat array of symbols, most frequent first.
//!
//! A token lies where its base symbols lay: its id stands in the first slot, the same id marked as an end in the last
//! one, and nothing of use between. With the length of every token known, the neighbours on both sides are found with
//! one look each, so a merge takes constant time whatever the length of the word, and needs no links.
//!
//! Words of one count lie together, so a count is stored once for the group, and a walk through ascending positions
//! finds it by moving on. Most merges happen in frequent words, which share the first pages of the array.

use std::collections::HashMap;

use super::count::Source;
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

/// The words of a corpus.
pub(super) struct Words {
    /// Slots, as the head of this file describes them.
    pub symbols: Vec<u32>,
    /// In order of position.
    groups: Vec<Group>,
}

impl Words {
    /// Lays out all words of `source` that have a pair of symbols; `spell` appends the symbols of a piece.
    ///
    /// # Errors
    /// If the words cannot be read, cannot be numbered, or do not fit into `memory_limit` together with the positions
    /// of their pairs, and if `observer` breaks.
    pub(super) fn new(
        source: &dyn Source,
        spell: &dyn Fn(&[u8], &mut Vec<u32>),
        memory_limit: Option<u64>,
        observer: &mut dyn Observer,
    ) -> Result<Self, Error> {
        let mut sizes = Sizes::default();
        for_each_word(source, spell, observer, &mut |symbols, count| sizes.add(symbols.len(), count))?;
        let n_slots = sizes.n_slots() + 1;
        if n_slots >= MAX_SLOTS {
            return Err(Error::CorpusTooLarge { n_symbols: n_slots, limit: MAX_SLOTS - 1 });
        }
        let needed = n_slots * SLOT_BYTES;
        if let Some(limit) = memory_limit.filter(|&limit| limit < needed) {
            return Err(Error::MemoryLimit { needed, limit });
        }
        let (groups, mut starts) = sizes.into_groups();
        let mut symbols = vec![END; n_slots as usize];
        for_each_word(source, spell, observer, &mut |word, count| {
            let start = starts.of(count);
            symbols[*start..*start + word.len()].copy_from_slice(word);
            *start += word.len() + 1;
        })?;
        Ok(Self { symbols, groups })
    }

    /// Calls `each` with every pair of neighbouring tokens, its position and how often its word occurs. `lens` are the
    /// slots that a token takes, by id.
    pub(super) fn for_each_pair(&self, lens: &[u32], mut each: impl FnMut(Pair, u32, u64)) {
        let mut counts = Counts { groups: &self.groups, count: 0 };
        let (mut at, mut left) = (1, END);
        while let Some(&symbol) = self.symbols.get(at) {
            if left != END && symbol != END {
                let position = at as u32 - lens[left as usize];
                each((left, symbol), position, counts.at(position));
            }
            at += lens.get(symbol as usize).map_or(1, |&len| len as usize);
            left = symbol;
        }
    }

    /// Divides the places at ascending `positions` among `n_parts` threads, so that no word is in two parts.
    pub(super) fn parts<'a>(&'a mut self, mut positions: &'a [u32], n_parts: usize) -> Vec<Part<'a>> {
        let (mut symbols, mut start, groups) = (&mut self.symbols[..], 0, &self.groups[..]);
        let mut parts = Vec::with_capacity(n_parts);
        for n_left in (1..n_parts).rev() {
            let middle = positions.get(positions.len() / (n_left + 1)).map_or(start, |&position| position);
            let before = &symbols[..(middle - start) as usize];
            // The end before the word in the middle belongs to the part before.
            let n_slots = before.iter().rposition(|&symbol| symbol == END).map_or(0, |end| end + 1);
            let n_positions = positions.partition_point(|&position| position < start + n_slots as u32);
            let (head, tail) = symbols.split_at_mut(n_slots);
            let (first, rest) = positions.split_at(n_positions);
            parts.push(Part::new(head, start, first, groups));
            (symbols, positions) = (tail, rest);
            start += n_slots as u32;
        }
        parts.push(Part::new(symbols, start, positions, groups));
        parts
    }
}

/// Words that one thread may change.
#[derive(Default)]
pub(super) struct Part<'a> {
    /// From the start of a word, or the end before the first one, to the end of a word.
    pub symbols: &'a mut [u32],
    /// Position of the first of them.
    pub start: u32,
    /// Ascending places among them.
    pub positions: &'a [u32],
    /// The counts of these places.
    pub counts: Counts<'a>,
}

impl<'a> Part<'a> {
    fn new(symbols: &'a mut [u32], start: u32, positions: &'a [u32], groups: &'a [Group]) -> Self {
        let first = positions.first().copied().unwrap_or(0);
        let next = groups.partition_point(|group| group.start <= first);
        let count = next.checked_sub(1).map_or(0, |idx| groups[idx].count);
        Self { symbols, start, positions, counts: Counts { groups: &groups[next..], count } }
    }
}

/// Finds the counts of ascending positions.
#[derive(Default)]
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

/// Calls `each` with the symbols of all words that have a pair.
fn for_each_word(
    source: &dyn Source,
    spell: &dyn Fn(&[u8], &mut Vec<u32>),
    observer: &mut dyn Observer,
    each: &mut dyn FnMut(&[u32], u64),
) -> Result<(), Error> {
    let (mut symbols, mut n_seen, mut reported) = (Vec::new(), 0, Ok(()));
    source.for_each(&mut |piece, count| {
        n_seen += 1;
        if n_seen % REPORT_EVERY == 0 && reported.is_ok() {
            reported = report(observer, Stage::Arrange, n_seen, None);
        }
        if reported.is_err() {
            return;
        }
        symbols.clear();
        spell(piece, &mut symbols);
        if symbols.len() > 1 {
            each(&symbols, count);
        }
    })?;
    reported
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
    fn into_groups(self) -> (Vec<Group>, Starts) {
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
        (groups, starts)
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
