//! Choosing BPE merges: again and again, the most frequent pair of neighbours becomes a token.
//!
//! All distinct pre-tokens lie in one array as linked lists of symbols. For each pair we keep its count and the
//! positions where it was seen; a merge visits only those positions, skips those that have changed since, and adjusts
//! the counts of the neighbours. A heap gives the most frequent pair; counts in it may be out of date, which is checked
//! when a pair comes out (a count only falls, except when the pair is entered anew). The work is proportional to
//! the number of merged places, whatever the lengths of pre-tokens.
//!
//! Among equal counts the smallest pair of ids wins, and two pairs that spell the same token share its id, as in
//! Hugging Face's `BpeTrainer`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::count::PieceCounts;
use crate::Error;
use crate::bpe::{Pair, pack};
use crate::hash::Seeded;

/// No symbol: the end of a pre-token, or a symbol merged into its left neighbour.
const NONE: u32 = u32::MAX;

/// Where to stop.
pub(super) struct Limits {
    /// Most tokens, single bytes included.
    pub n_tokens: usize,
    /// Fewest times that a pair must occur.
    pub min_frequency: u64,
    /// Id of the first token.
    pub first_id: u32,
    /// Byte strings that must not become tokens.
    pub forbidden: HashSet<Vec<u8>>,
}

/// Appends merged tokens to `tokens`, which holds the single bytes, and returns the merges in order of rank.
pub(super) fn train(
    counts: &PieceCounts,
    byte_ids: &[u32; 256],
    limits: &Limits,
    tokens: &mut Vec<Vec<u8>>,
) -> Result<Vec<Pair>, Error> {
    let mut ids: HashMap<Vec<u8>, u32> =
        (limits.first_id..).zip(tokens.iter()).map(|(id, t)| (t.clone(), id)).collect();
    let mut words = Words::new(counts, byte_ids)?;
    let mut queue: BinaryHeap<(u64, Reverse<Pair>)> = words.take_changed().collect();
    let mut merges = Vec::new();
    while tokens.len() < limits.n_tokens {
        let Some((count, Reverse(pair))) = queue.pop() else {
            break;
        };
        let count_now = words.count(pair);
        if count_now != count {
            if count_now > 0 {
                queue.push((count_now, Reverse(pair)));
            }
            continue;
        }
        if count < limits.min_frequency.max(1) {
            break;
        }
        let token = [pair.0, pair.1].map(|id| tokens[(id - limits.first_id) as usize].as_slice()).concat();
        if limits.forbidden.contains(&token) {
            continue;
        }
        let id = *ids.entry(token).or_insert_with_key(|token| {
            tokens.push(token.clone());
            limits.first_id + tokens.len() as u32 - 1
        });
        merges.push(pair);
        words.merge(pair, id);
        queue.extend(words.take_changed());
    }
    Ok(without_repeats(merges))
}

/// Drops all but the last place of a pair that was merged more than once. That takes a token with two spellings, and
/// the last place is the one that counts when Hugging Face reads the list back.
fn without_repeats(merges: Vec<Pair>) -> Vec<Pair> {
    let mut seen = HashSet::with_capacity(merges.len());
    let mut kept: Vec<Pair> = merges.into_iter().rev().filter(|&pair| seen.insert(pair)).collect();
    kept.reverse();
    kept
}

/// All distinct pre-tokens as linked lists of symbols.
struct Words {
    /// Token at each position; [`NONE`] where it was merged into its left neighbour.
    symbols: Vec<u32>,
    /// Position of the next symbol of the same pre-token, or [`NONE`].
    next: Vec<u32>,
    /// Position of the symbol before, or [`NONE`].
    prev: Vec<u32>,
    /// Number of the pre-token at each position.
    word: Vec<u32>,
    /// How often each pre-token occurs.
    word_counts: Vec<u64>,
    pairs: HashMap<u64, PairState, Seeded>,
    /// Pairs that were seen at new positions since the last look.
    changed: Vec<Pair>,
}

/// What is known of a pair.
#[derive(Default)]
struct PairState {
    count: u64,
    /// Positions of its left symbol. Some may hold another pair by now.
    positions: Vec<u32>,
    /// Whether it stands in `Words::changed`.
    is_changed: bool,
}

impl Words {
    fn new(counts: &PieceCounts, byte_ids: &[u32; 256]) -> Result<Self, Error> {
        let n_symbols = counts.key_bytes();
        if n_symbols >= NONE as usize {
            return Err(Error::CorpusTooLarge { n_symbols, limit: NONE as usize - 1 });
        }
        let mut words = Self {
            symbols: Vec::with_capacity(n_symbols),
            next: Vec::with_capacity(n_symbols),
            prev: Vec::with_capacity(n_symbols),
            word: Vec::with_capacity(n_symbols),
            word_counts: Vec::with_capacity(counts.len()),
            pairs: HashMap::default(),
            changed: Vec::new(),
        };
        for (piece, count) in counts.iter() {
            words.push_word(piece, count, byte_ids);
        }
        Ok(words)
    }

    fn push_word(&mut self, piece: &[u8], count: u64, byte_ids: &[u32; 256]) {
        let start = self.symbols.len() as u32;
        let end = start + piece.len() as u32;
        for (position, &byte) in (start..).zip(piece) {
            self.symbols.push(byte_ids[usize::from(byte)]);
            self.prev.push(if position == start { NONE } else { position - 1 });
            self.next.push(if position + 1 == end { NONE } else { position + 1 });
            self.word.push(self.word_counts.len() as u32);
        }
        self.word_counts.push(count);
        for (position, bytes) in (start..).zip(piece.windows(2)) {
            self.add((byte_ids[usize::from(bytes[0])], byte_ids[usize::from(bytes[1])]), position, count);
        }
    }

    fn count(&self, pair: Pair) -> u64 {
        self.pairs.get(&pack(pair)).map_or(0, |state| state.count)
    }

    /// Counts `pair` at `position`.
    fn add(&mut self, pair: Pair, position: u32, count: u64) {
        let state = self.pairs.entry(pack(pair)).or_default();
        state.count += count;
        state.positions.push(position);
        if !state.is_changed {
            state.is_changed = true;
            self.changed.push(pair);
        }
    }

    /// Takes one place of `pair` off its count.
    fn subtract(&mut self, pair: Pair, count: u64) {
        if let Some(state) = self.pairs.get_mut(&pack(pair)) {
            state.count = state.count.saturating_sub(count);
        }
    }

    /// Pairs seen at new positions since the last call, with their counts.
    fn take_changed(&mut self) -> impl Iterator<Item = (u64, Reverse<Pair>)> {
        let pairs = &mut self.pairs;
        self.changed.drain(..).filter_map(|pair| {
            let state = pairs.get_mut(&pack(pair))?;
            state.is_changed = false;
            (state.count > 0).then_some((state.count, Reverse(pair)))
        })
    }

    /// Replaces `pair` by `id` wherever it stands, from left to right within each pre-token.
    fn merge(&mut self, pair: Pair, id: u32) {
        let Some(state) = self.pairs.remove(&pack(pair)) else {
            return;
        };
        let mut positions = state.positions;
        if !positions.is_sorted() {
            positions.sort_unstable();
        }
        for position in positions {
            self.merge_at(position, pair, id);
        }
    }

    fn merge_at(&mut self, position: u32, (left, right): Pair, id: u32) {
        let at = position as usize;
        let second = self.next[at];
        if self.symbols[at] != left || second == NONE || self.symbols[second as usize] != right {
            return;
        }
        let count = self.word_counts[self.word[at] as usize];
        let (before, after) = (self.prev[at], self.next[second as usize]);
        self.symbols[at] = id;
        self.symbols[second as usize] = NONE;
        self.next[at] = after;
        if before != NONE {
            let neighbour = self.symbols[before as usize];
            self.subtract((neighbour, left), count);
            self.add((neighbour, id), before, count);
        }
        if after != NONE {
            self.prev[after as usize] = position;
            let neighbour = self.symbols[after as usize];
            self.subtract((right, neighbour), count);
            self.add((id, neighbour), position, count);
        }
    }
}
