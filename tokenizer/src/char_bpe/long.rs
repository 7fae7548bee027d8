//! Merging long pieces: pairs in buckets by rank, instead of a heap.
//!
//! A heap would do, but its `log n` is paid in cache misses. Here the pairs of one rank are a list; the lowest rank with
//! pairs is found in a bit set, its list is sorted by position (mostly it is sorted already) and gone through. A merge
//! makes new pairs; nearly always they have higher ranks and go to their lists. Those of the same or a lower rank, which
//! odd vocabularies have, go to a small heap that is asked first. So pairs are handled by rank and then by position,
//! exactly as the heap would.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::{CharBpe, NO_MERGE, Symbol, UNKNOWN};

/// The end of a list, and the neighbour that is not there.
const NONE: u32 = u32::MAX;

/// Working memory.
#[derive(Debug, Default)]
pub(super) struct LongScratch {
    nodes: Vec<Node>,
    /// The first pair of each rank.
    heads: Vec<u32>,
    /// Position of a pair, and the next pair of its rank.
    pairs: Vec<(u32, u32)>,
    ranks: BitSet,
    /// Positions of the pairs of the rank that is gone through.
    run: Vec<u32>,
    early: BinaryHeap<Reverse<(u32, u32)>>,
}

/// A symbol in a doubly linked list.
#[derive(Clone, Copy, Debug)]
struct Node {
    id: u32,
    /// Bytes of text; 0 for those of an affix.
    len: u32,
    prev: u32,
    /// [`NONE`] also after it was merged into its left neighbour.
    next: u32,
}

impl LongScratch {
    /// Merges the symbols and appends the tokens.
    pub(super) fn merge(&mut self, model: &CharBpe, symbols: &[Symbol], tokens: &mut Vec<(u32, u32)>) {
        self.heads.resize(self.heads.len().max(model.table.n_ranks()), NONE);
        self.ranks.reserve(self.heads.len());
        self.pairs.clear();
        self.nodes.clear();
        let n = symbols.len() as u32;
        let node = |(idx, symbol): (u32, &Symbol)| Node {
            id: symbol.id,
            len: symbol.len,
            prev: idx.checked_sub(1).unwrap_or(NONE),
            next: if idx + 1 < n { idx + 1 } else { NONE },
        };
        self.nodes.extend((0..n).zip(symbols).map(node));
        let mut made_of =
            model.unused.as_ref().map(|unused| MadeOf { unused, parts: HashMap::new(), open: Vec::new() });
        // No rank is gone through yet: all pairs go to lists.
        for idx in 0..n {
            self.enqueue(model, idx, None, &mut made_of);
        }
        while let Some(rank) = self.ranks.pop_first() {
            self.start_run(rank);
            let mut next_in_run = 0;
            loop {
                let (rank_now, idx) = match (self.early.peek(), self.run.get(next_in_run)) {
                    (Some(&Reverse(early)), Some(&idx)) if early < (rank, idx) => early,
                    (_, Some(&idx)) => {
                        next_in_run += 1;
                        if self.merge_at(model, idx, rank) {
                            self.enqueue_around(model, idx, rank, &mut made_of);
                        }
                        continue;
                    }
                    (Some(&Reverse(early)), None) => early,
                    (None, None) => break,
                };
                self.early.pop();
                if self.merge_at(model, idx, rank_now) {
                    self.enqueue_around(model, idx, rank, &mut made_of);
                }
            }
        }
        // The first symbol is never merged into another.
        let mut idx = if n > 0 { 0 } else { NONE };
        while let Some(&Node { id, len, next, .. }) = self.nodes.get(idx as usize) {
            match &mut made_of {
                Some(made_of) => made_of.give(id, len, tokens),
                None => tokens.push((id, len)),
            }
            idx = next;
        }
    }

    /// Takes the list of a rank, in order of position.
    fn start_run(&mut self, rank: u32) {
        self.run.clear();
        let mut pair = std::mem::replace(&mut self.heads[rank as usize], NONE);
        while pair != NONE {
            let (idx, next) = self.pairs[pair as usize];
            self.run.push(idx);
            pair = next;
        }
        // Lists grow at the front.
        self.run.reverse();
        self.run.sort_unstable();
    }

    /// Merges the symbol with the next one, if the pair still has this rank.
    fn merge_at(&mut self, model: &CharBpe, idx: u32, rank: u32) -> bool {
        let node = self.nodes[idx as usize];
        if node.next == NONE {
            return false;
        }
        let right = self.nodes[node.next as usize];
        let (rank_now, merged) = model.table.get(node.id, right.id);
        if rank_now != rank {
            return false;
        }
        self.nodes[node.next as usize].next = NONE;
        self.nodes[idx as usize] = Node { id: merged, len: node.len + right.len, next: right.next, ..node };
        if right.next != NONE {
            self.nodes[right.next as usize].prev = idx;
        }
        true
    }

    fn enqueue_around(&mut self, model: &CharBpe, idx: u32, rank: u32, made_of: &mut Option<MadeOf<'_>>) {
        let prev = self.nodes[idx as usize].prev;
        if prev != NONE {
            self.enqueue(model, prev, Some(rank), made_of);
        }
        self.enqueue(model, idx, Some(rank), made_of);
    }

    /// Notes that the symbol merges with the next one, if it does. `current` is the rank that is gone through.
    fn enqueue(&mut self, model: &CharBpe, idx: u32, current: Option<u32>, made_of: &mut Option<MadeOf<'_>>) {
        let node = self.nodes[idx as usize];
        if node.next == NONE {
            return;
        }
        let right = self.nodes[node.next as usize];
        let (rank, merged) = model.table.get(node.id, right.id);
        if rank == NO_MERGE {
            return;
        }
        if let Some(made_of) = made_of {
            made_of.note(merged, (node.id, node.len), (right.id, right.len));
        }
        if current.is_some_and(|current| rank <= current) {
            self.early.push(Reverse((rank, idx)));
            return;
        }
        let head = &mut self.heads[rank as usize];
        self.pairs.push((idx, *head));
        *head = (self.pairs.len() - 1) as u32;
        self.ranks.insert(rank);
    }
}

/// What unused tokens are given out as: the two symbols that were last seen to make them, anywhere in the text, which
/// is how sentencepiece remembers it.
struct MadeOf<'a> {
    unused: &'a [bool],
    parts: HashMap<u32, [(u32, u32); 2]>,
    /// Working memory.
    open: Vec<(u32, u32)>,
}

impl MadeOf<'_> {
    fn is_unused(&self, id: u32) -> bool {
        id != UNKNOWN && self.unused.get(id as usize) == Some(&true)
    }

    fn note(&mut self, merged: u32, left: (u32, u32), right: (u32, u32)) {
        if self.is_unused(merged) {
            self.parts.insert(merged, [left, right]);
        }
    }

    /// Appends a token, or what it is made of. The parts are shorter, so this ends.
    fn give(&mut self, id: u32, len: u32, tokens: &mut Vec<(u32, u32)>) {
        self.open.push((id, len));
        while let Some((id, len)) = self.open.pop() {
            match self.parts.get(&id).filter(|_| self.is_unused(id)) {
                Some(&[left, right]) => self.open.extend([right, left]),
                None => tokens.push((id, len)),
            }
        }
    }
}

/// A set of ranks from which the lowest is taken; members only ever join above the last one taken.
#[derive(Debug, Default)]
struct BitSet {
    words: Vec<u64>,
    /// Which words are not zero.
    summary: Vec<u64>,
}

impl BitSet {
    fn reserve(&mut self, n: usize) {
        let n_words = n.div_ceil(64);
        if self.words.len() < n_words {
            self.words.resize(n_words, 0);
            self.summary.resize(n_words.div_ceil(64), 0);
        }
    }

    fn insert(&mut self, rank: u32) {
        let word_idx = rank as usize / 64;
        self.words[word_idx] |= 1 << (rank % 64);
        self.summary[word_idx / 64] |= 1 << (word_idx % 64);
    }

    fn pop_first(&mut self) -> Option<u32> {
        let (summary_idx, summary) = self.summary.iter().enumerate().find(|&(_, &word)| word != 0)?;
        let word_idx = summary_idx * 64 + summary.trailing_zeros() as usize;
        let word = &mut self.words[word_idx];
        let rank = word_idx as u32 * 64 + word.trailing_zeros();
        *word &= *word - 1;
        if *word == 0 {
            self.summary[summary_idx] &= self.summary[summary_idx] - 1;
        }
        Some(rank)
    }
}
