//! Byte-level byte-pair encoding: a piece starts as its bytes and neighbours merge, lowest rank first.
//!
//! Short pieces, nearly all of them, are merged in an array: scan for the lowest rank, merge, close the gap; quadratic,
//! but with no set-up. Long pieces use a heap over a linked list, `n log n`, so that a megabyte of one letter costs no
//! more per byte than prose. Both do what Hugging Face does: the lowest rank first, the leftmost among equals.
//! Whole pieces are cached with their ids, because the pieces of a text repeat.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::Split;
use crate::hash::Seeded;
use crate::pieces::PieceMap;

/// The rank of a pair that does not merge.
const NO_MERGE: u32 = u32::MAX;

/// Longest piece in bytes that is merged in an array. Beyond it, the scans cost more than the heap.
const SHORT: usize = 64;

/// Longest piece in bytes that is cached: longer ones hardly repeat.
const CACHED: usize = 48;

/// Most pieces in a cache before it starts over; with their ids, about 6 MB.
const CACHE_LEN: usize = 1 << 16;

/// Two neighbouring tokens.
pub(crate) type Pair = (u32, u32);

/// What two neighbouring tokens merge into.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merge {
    /// The neighbours.
    pub pair: Pair,
    /// The token that replaces them.
    pub id: u32,
}

/// The merge rules of a byte-level vocabulary.
#[derive(Debug)]
pub(crate) struct Bpe {
    /// How text is cut into pieces.
    pub split: Split,
    /// Pairs of ids, in order of rank.
    pub merges: Vec<Pair>,
    /// The ids of whole pieces that win over merging, if the file asks for it (`ignore_merges`).
    pub whole: Option<HashMap<Box<[u8]>, u32>>,
    byte_ids: [u32; 256],
    /// Rank and merged id, by the packed pair.
    ranks: HashMap<u64, (u32, u32), Seeded>,
}

impl Bpe {
    /// Takes checked rules: `merges` are distinct pairs with the ids they give, fewer than `u32::MAX`.
    pub(crate) fn new(split: Split, byte_ids: [u32; 256], merges: &[Merge]) -> Self {
        let mut ranks = HashMap::with_capacity_and_hasher(merges.len(), Seeded::default());
        for (rank, merge) in merges.iter().enumerate() {
            ranks.insert(pack(merge.pair), (rank as u32, merge.id));
        }
        let merges = merges.iter().map(|merge| merge.pair).collect();
        Self { split, merges, whole: None, byte_ids, ranks }
    }

    /// Appends the ids of `text`.
    pub(crate) fn encode(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        for piece in self.split.pieces(text) {
            self.encode_piece(piece.as_bytes(), scratch, ids);
        }
    }

    /// Appends one id for each byte.
    pub(crate) fn encode_bytes(&self, bytes: &[u8], ids: &mut Vec<u32>) {
        ids.extend(bytes.iter().map(|&byte| self.byte_ids[usize::from(byte)]));
    }

    /// Appends the ids of one piece.
    #[inline]
    fn encode_piece(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if let [byte] = piece {
            ids.push(self.byte_ids[usize::from(*byte)]);
        } else if piece.len() > CACHED {
            self.merge_piece(piece, scratch, ids);
        } else if let Some((start, len)) = scratch.cache.get(piece) {
            ids.extend_from_slice(&scratch.cached_ids[start as usize..][..len as usize]);
        } else {
            let start = ids.len();
            self.merge_piece(piece, scratch, ids);
            scratch.remember(piece, &ids[start..]);
        }
    }

    fn merge_piece(&self, piece: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if let Some(&id) = self.whole.as_ref().and_then(|whole| whole.get(piece)) {
            ids.push(id);
        } else if piece.len() <= SHORT {
            self.merge_short(piece, &mut scratch.symbols, ids);
        } else {
            self.merge_long(piece, ids);
        }
    }

    /// The rank and the merged id of a pair; [`NO_MERGE`] if it does not merge.
    #[inline]
    fn rank(&self, left: u32, right: u32) -> (u32, u32) {
        self.ranks.get(&pack((left, right))).copied().unwrap_or((NO_MERGE, 0))
    }

    fn merge_short(&self, piece: &[u8], symbols: &mut Vec<Symbol>, ids: &mut Vec<u32>) {
        symbols.clear();
        symbols.extend(piece.iter().map(|&byte| Symbol::last(self.byte_ids[usize::from(byte)])));
        for idx in 0..symbols.len() - 1 {
            self.rank_with_next(symbols, idx);
        }
        loop {
            let mut best = (NO_MERGE, 0);
            for (idx, symbol) in symbols.iter().enumerate() {
                if symbol.rank < best.0 {
                    best = (symbol.rank, idx);
                }
            }
            let (rank, idx) = best;
            if rank == NO_MERGE {
                break;
            }
            symbols[idx].id = symbols[idx].merged;
            symbols.remove(idx + 1);
            self.rank_with_next(symbols, idx);
            if idx > 0 {
                self.rank_with_next(symbols, idx - 1);
            }
        }
        ids.extend(symbols.iter().map(|symbol| symbol.id));
    }

    /// Looks up how the symbol merges with the one after it.
    #[inline]
    fn rank_with_next(&self, symbols: &mut [Symbol], idx: usize) {
        let (rank, merged) = match symbols.get(idx + 1) {
            Some(next) => self.rank(symbols[idx].id, next.id),
            None => (NO_MERGE, 0),
        };
        symbols[idx].rank = rank;
        symbols[idx].merged = merged;
    }

    fn merge_long(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let mut list = LinkedIds::new(piece.iter().map(|&byte| self.byte_ids[usize::from(byte)]).collect());
        let mut queue: BinaryHeap<Reverse<(u32, usize)>> = BinaryHeap::new();
        for idx in 0..piece.len() - 1 {
            self.enqueue(&list, idx, &mut queue);
        }
        while let Some(Reverse((rank, idx))) = queue.pop() {
            let Some(next) = list.next(idx) else { continue };
            // An entry is out of date if either symbol has merged since; its pair then has another rank, or none.
            let (rank_now, merged) = self.rank(list.ids[idx], list.ids[next]);
            if rank_now != rank {
                continue;
            }
            list.merge(idx, next, merged);
            self.enqueue(&list, idx, &mut queue);
            if let Some(prev) = list.prev(idx) {
                self.enqueue(&list, prev, &mut queue);
            }
        }
        ids.extend(list.iter());
    }

    fn enqueue(&self, list: &LinkedIds, idx: usize, queue: &mut BinaryHeap<Reverse<(u32, usize)>>) {
        let Some(next) = list.next(idx) else { return };
        let (rank, _) = self.rank(list.ids[idx], list.ids[next]);
        if rank != NO_MERGE {
            queue.push(Reverse((rank, idx)));
        }
    }
}

/// One integer for a pair, to hash.
#[inline]
pub(crate) fn pack((left, right): Pair) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Working memory of one encoding thread.
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    /// Start and number of the ids of a piece in `cached_ids`.
    cache: PieceMap<(u32, u32)>,
    cached_ids: Vec<u32>,
}

impl Scratch {
    /// Empty memory.
    pub(crate) fn new() -> Self {
        Self { symbols: Vec::new(), cache: PieceMap::new(), cached_ids: Vec::new() }
    }

    fn remember(&mut self, piece: &[u8], ids: &[u32]) {
        if self.cache.len() == CACHE_LEN {
            self.cache.clear();
            self.cached_ids.clear();
        }
        // At most CACHE_LEN * CACHED ids, far below u32::MAX.
        self.cache.entry(piece, (self.cached_ids.len() as u32, ids.len() as u32));
        self.cached_ids.extend_from_slice(ids);
    }
}

/// A token of a short piece, and how it merges with the one after it.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    rank: u32,
    merged: u32,
}

impl Symbol {
    /// A symbol with nothing after it.
    fn last(id: u32) -> Self {
        Self { id, rank: NO_MERGE, merged: 0 }
    }
}

/// The tokens of a long piece as a doubly linked list in arrays.
struct LinkedIds {
    ids: Vec<u32>,
    /// Position after each symbol; the length of the list after the last one, and [`GONE`] for a merged right part.
    after: Vec<usize>,
    /// Position before each symbol plus one, 0 before the first.
    before: Vec<usize>,
}

/// Marks a symbol that was merged into its left neighbour.
const GONE: usize = usize::MAX;

impl LinkedIds {
    fn new(ids: Vec<u32>) -> Self {
        let n = ids.len();
        Self { ids, after: (1..=n).collect(), before: (0..n).collect() }
    }

    /// The symbol after `idx`, unless it is the last one or gone.
    fn next(&self, idx: usize) -> Option<usize> {
        Some(self.after[idx]).filter(|&next| next < self.ids.len())
    }

    fn prev(&self, idx: usize) -> Option<usize> {
        self.before[idx].checked_sub(1)
    }

    fn merge(&mut self, idx: usize, next: usize, merged: u32) {
        let after = self.after[next];
        self.ids[idx] = merged;
        self.after[idx] = after;
        self.after[next] = GONE;
        if after < self.ids.len() {
            self.before[after] = idx + 1;
        }
    }

    fn iter(&self) -> impl Iterator<Item = u32> {
        self.ids.iter().zip(&self.after).filter(|&(_, &after)| after != GONE).map(|(&id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rules over a, b, c whose order matters: later merges have higher rank but shorter left parts.
    fn bpe() -> Bpe {
        let mut byte_ids = [0; 256];
        for (byte, id) in byte_ids.iter_mut().enumerate() {
            *id = byte as u32;
        }
        let (a, b, c) = (97, 98, 99);
        let merges =
            [(a, a), (b, c), (256, 256), (a, b), (258, 257), (256, a), (c, 259), (261, 258), (260, 260)];
        let merges: Vec<_> =
            merges.into_iter().enumerate().map(|(i, pair)| Merge { pair, id: 256 + i as u32 }).collect();
        Bpe::new(Split::Gpt2, byte_ids, &merges)
    }

    /// The definition: merge the leftmost pair of the lowest rank until none is left.
    fn by_definition(bpe: &Bpe, piece: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = piece.iter().map(|&byte| u32::from(byte)).collect();
        loop {
            let pairs = ids.windows(2).enumerate().map(|(idx, pair)| (bpe.rank(pair[0], pair[1]), idx));
            match pairs.min_by_key(|&((rank, _), idx)| (rank, idx)) {
                Some(((rank, merged), idx)) if rank != NO_MERGE => {
                    ids.splice(idx..idx + 2, [merged]);
                }
                _ => return ids,
            }
        }
    }

    proptest! {
        #[test]
        fn both_ways_of_merging_follow_the_definition(piece in "[abc]{2,90}") {
            let bpe = bpe();
            let expected = by_definition(&bpe, piece.as_bytes());
            let (mut short, mut long) = (Vec::new(), Vec::new());
            bpe.merge_short(piece.as_bytes(), &mut Vec::new(), &mut short);
            bpe.merge_long(piece.as_bytes(), &mut long);
            prop_assert_eq!(&short, &expected);
            prop_assert_eq!(&long, &expected);
        }
    }

    #[test]
    fn a_full_cache_starts_over() {
        let bpe = bpe();
        let mut scratch = Scratch::new();
        for i in 0..CACHE_LEN as u32 + 10 {
            let piece = format!("{i:x}ab");
            let mut ids = Vec::new();
            bpe.encode_piece(piece.as_bytes(), &mut scratch, &mut ids);
            assert_eq!(ids, by_definition(&bpe, piece.as_bytes()));
        }
        assert_eq!(scratch.cache.len(), 10);
    }
}
