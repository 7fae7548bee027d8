//! Merge rules, and merging a piece by them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::hash::Seeded;

/// So few tokens are merged to the end even if rounds gain little.
const LEFT: usize = 64;

/// The rank of a pair that does not merge.
const NO_MERGE: u32 = u32::MAX;

/// Bits of an id or a rank in a [`Slot`].
const BITS: u32 = 21;

/// Most ids, and most merges: eight times what the largest published vocabularies have.
pub(crate) const MAX_IDS: usize = 1 << BITS;

/// The lowest [`BITS`].
const MASK: u64 = (1 << BITS) - 1;

/// Longest piece in bytes that is merged in place: its symbols are the bits of an integer.
const SHORT: usize = 64;

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

/// One integer for a pair, to hash.
#[inline]
pub(crate) fn pack((left, right): Pair) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Merge rules as tables.
#[derive(Debug)]
pub(crate) struct Rules {
    byte_ids: [u32; 256],
    /// Bytes by id.
    bytes: HashMap<u32, u8, Seeded>,
    /// Ranks by two bytes: most look-ups are of the pairs that a piece starts with.
    byte_pairs: Vec<u32>,
    /// Open addressing over the pairs, with [`EMPTY`] slots. Eight lie in a cache line.
    slots: Vec<Slot>,
    shift: u32,
    /// One bit for each of sixteen times as many hashes as there are pairs. It fits into a cache that the slots do not
    /// fit into, and tells most pairs that do not merge.
    filter: Vec<u64>,
    /// What merges give, by rank.
    ids: Vec<u32>,
}

/// Two ids, and the rank of their pair in the lowest bits.
type Slot = u64;

const EMPTY: Slot = Slot::MAX;

impl Rules {
    /// Takes distinct pairs in order of rank, with the ids they give; at most [`MAX_IDS`].
    pub(crate) fn new(byte_ids: [u32; 256], merges: &[Merge]) -> Self {
        let mut rules = Self::with_capacity(byte_ids, merges.len());
        for &merge in merges {
            rules.add(merge);
        }
        rules
    }

    fn with_capacity(byte_ids: [u32; 256], n_merges: usize) -> Self {
        // At most half of the slots is taken, so that pairs that do not merge are known soon.
        let n_slots = (n_merges * 2).next_power_of_two().max(16);
        Self {
            bytes: byte_ids.iter().copied().zip(0..=255).collect(),
            byte_ids,
            byte_pairs: vec![NO_MERGE; 1 << 16],
            slots: vec![EMPTY; n_slots],
            shift: u64::BITS - n_slots.ilog2(),
            filter: vec![0; n_slots / 8],
            ids: Vec::with_capacity(n_merges),
        }
    }

    /// Adds a pair that is not there; its rank is the next one.
    fn add(&mut self, Merge { pair, id }: Merge) {
        let rank = self.ids.len() as u32;
        self.ids.push(id);
        let bit = self.bit(hash(pair));
        self.filter[bit / 64] |= 1 << (bit % 64);
        let mut idx = self.home(hash(pair));
        while self.slots[idx] != EMPTY {
            idx = (idx + 1) & (self.slots.len() - 1);
        }
        self.slots[idx] = u64::from(pair.0) << (2 * BITS) | u64::from(pair.1) << BITS | u64::from(rank);
        if let (Some(&left), Some(&right)) = (self.bytes.get(&pair.0), self.bytes.get(&pair.1)) {
            self.byte_pairs[usize::from(left) << 8 | usize::from(right)] = rank;
        }
    }

    /// All merges, by rank.
    pub(super) fn merges(&self) -> Vec<Merge> {
        let of = |slot: Slot, n: u32| (slot >> (n * BITS) & MASK) as u32;
        let mut slots: Vec<Slot> = self.slots.iter().copied().filter(|&slot| slot != EMPTY).collect();
        slots.sort_unstable_by_key(|&slot| of(slot, 0));
        slots
            .iter()
            .zip(&self.ids)
            .map(|(&slot, &id)| Merge { pair: (of(slot, 2), of(slot, 1)), id })
            .collect()
    }

    /// The id of a single byte.
    #[inline]
    pub(super) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// What the pair of this rank merges into.
    #[inline]
    fn id(&self, rank: u32) -> u32 {
        self.ids[rank as usize]
    }

    /// The rank of a pair; [`NO_MERGE`] if it does not merge.
    #[inline]
    fn rank(&self, left: u32, right: u32) -> u32 {
        let hash = hash((left, right));
        let bit = self.bit(hash);
        if self.filter[bit / 64] >> (bit % 64) & 1 == 0 {
            return NO_MERGE;
        }
        let pair = u64::from(left) << BITS | u64::from(right);
        let mut idx = self.home(hash);
        loop {
            let slot = self.slots[idx];
            if slot >> BITS == pair {
                return (slot & MASK) as u32;
            }
            if slot == EMPTY {
                return NO_MERGE;
            }
            idx = (idx + 1) & (self.slots.len() - 1);
        }
    }

    /// Where a hash belongs.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        (hash >> self.shift) as usize
    }

    /// The bit of the filter: eight for each slot.
    #[inline]
    fn bit(&self, hash: u64) -> usize {
        (hash >> (self.shift - 3)) as usize
    }

    /// Appends the ids of `piece`: look for the lowest rank, merge, look up the new neighbours. Quadratic, with no
    /// set-up.
    pub(super) fn merge_in_array(&self, piece: &[u8], symbols: &mut Symbols, ids: &mut Vec<u32>) {
        if piece.len() <= SHORT {
            self.merge_short(piece, symbols, ids);
            return;
        }
        self.start(piece, symbols);
        let Symbols { ids: tokens, ranks } = symbols;
        // Rank `idx` is of the tokens `idx` and `idx + 1`.
        while let Some(idx) = lowest(ranks) {
            tokens[idx] = self.id(ranks[idx]);
            tokens.remove(idx + 1);
            ranks.remove(idx);
            if idx < ranks.len() {
                ranks[idx] = self.rank(tokens[idx], tokens[idx + 1]);
            }
            if idx > 0 {
                ranks[idx - 1] = self.rank(tokens[idx - 1], tokens[idx]);
            }
        }
        ids.extend_from_slice(tokens);
    }

    /// As [`Rules::merge_in_array`], without moving anything: a bit for each byte where a token begins.
    fn merge_short(&self, piece: &[u8], symbols: &mut Symbols, ids: &mut Vec<u32>) {
        self.start(piece, symbols);
        let Symbols { ids: tokens, ranks } = symbols;
        let mut starts = u64::MAX >> (SHORT - piece.len());
        while let Some(idx) = lowest(ranks) {
            tokens[idx] = self.id(ranks[idx]);
            let next = following(starts, idx);
            starts &= !(1 << next);
            // Looked up together, so that memory is waited for once.
            let (before, after) = (starts & ((1 << idx) - 1), following(starts, idx));
            ranks[idx] = match after {
                64 => NO_MERGE,
                after => self.rank(tokens[idx], tokens[after]),
            };
            if before != 0 {
                let before = before.ilog2() as usize;
                ranks[before] = self.rank(tokens[before], tokens[idx]);
            }
            if let Some(gone) = ranks.get_mut(next) {
                *gone = NO_MERGE;
            }
        }
        while starts != 0 {
            ids.push(tokens[starts.trailing_zeros() as usize]);
            starts &= starts - 1;
        }
    }

    /// Appends the ids of `piece` if it is so regular that every round of merging makes it shorter by a good part: one
    /// letter, or one emoji, a million times. A round merges the lowest rank wherever it stands, from left to right,
    /// which is what merging one pair after another does: what a merge gives ranks after it. Returns whether it did.
    ///
    /// This takes rules in which every part ranks before what it merges into.
    pub(super) fn merge_in_rounds(&self, piece: &[u8], symbols: &mut Symbols, ids: &mut Vec<u32>) -> bool {
        self.start(piece, symbols);
        let Symbols { ids: tokens, ranks } = symbols;
        while let Some(lowest) = ranks.iter().copied().min().filter(|&rank| rank != NO_MERGE) {
            let n_before = tokens.len();
            let merged = self.id(lowest);
            // The last pair that was looked up: in a regular text it is the next one too.
            let mut known = ((u32::MAX, u32::MAX), NO_MERGE);
            let (mut read, mut write, mut last_merged) = (0, 0, false);
            let mut old_rank = NO_MERGE;
            while read < n_before {
                let merges = ranks.get(read) == Some(&lowest);
                let token = if merges { merged } else { tokens[read] };
                read += if merges { 2 } else { 1 };
                if write > 0 {
                    let pair = (tokens[write - 1], token);
                    ranks[write - 1] = if !(merges || last_merged) {
                        old_rank
                    } else if known.0 == pair {
                        known.1
                    } else {
                        known = (pair, self.rank(pair.0, pair.1));
                        known.1
                    };
                }
                tokens[write] = token;
                write += 1;
                last_merged = merges;
                old_rank = ranks.get(read - 1).copied().unwrap_or(NO_MERGE);
            }
            tokens.truncate(write);
            ranks.truncate(write - 1);
            if n_before - write < n_before / 16 && write > LEFT {
                return false;
            }
        }
        ids.extend_from_slice(tokens);
        true
    }

    /// The bytes of a piece as tokens, and the ranks of their pairs.
    fn start(&self, piece: &[u8], Symbols { ids: tokens, ranks }: &mut Symbols) {
        tokens.clear();
        ranks.clear();
        tokens.extend(piece.iter().map(|&byte| self.byte_id(byte)));
        ranks.extend(
            piece.windows(2).map(|pair| self.byte_pairs[usize::from(pair[0]) << 8 | usize::from(pair[1])]),
        );
    }

    /// Appends the ids of `piece`, by a queue of pairs over a linked list: `n log n`, for rules of any kind.
    pub(super) fn merge_by_queue(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let mut list = LinkedIds::new(piece.iter().map(|&byte| self.byte_id(byte)).collect());
        let mut queue: BinaryHeap<Reverse<(u32, usize)>> = BinaryHeap::new();
        for idx in 0..piece.len() - 1 {
            self.enqueue(&list, idx, &mut queue);
        }
        while let Some(Reverse((rank, idx))) = queue.pop() {
            let Some(next) = list.next(idx) else { continue };
            // An entry is out of date if either symbol has merged since; its pair then has another rank, or none.
            if self.rank(list.ids[idx], list.ids[next]) != rank {
                continue;
            }
            list.merge(idx, next, self.id(rank));
            self.enqueue(&list, idx, &mut queue);
            if let Some(prev) = list.prev(idx) {
                self.enqueue(&list, prev, &mut queue);
            }
        }
        ids.extend(list.iter());
    }

    fn enqueue(&self, list: &LinkedIds, idx: usize, queue: &mut BinaryHeap<Reverse<(u32, usize)>>) {
        let Some(next) = list.next(idx) else { return };
        let rank = self.rank(list.ids[idx], list.ids[next]);
        if rank != NO_MERGE {
            queue.push(Reverse((rank, idx)));
        }
    }
}

/// The merges that "any two neighbours whose concatenation is a token, lowest id first" amounts to, in order of id.
///
/// A token can come only from the two parts to which the rules for smaller ids lead, because until its parts meet nothing
/// has merged across its ends; so there is one pair for each token, or none if the rules lead elsewhere. `tokens` are in
/// order of id.
pub(crate) fn merges_by_id<'a>(
    byte_ids: [u32; 256],
    tokens: impl Iterator<Item = (&'a [u8], u32)>,
) -> Vec<Merge> {
    let tokens: Vec<_> = tokens.filter(|(bytes, _)| bytes.len() > 1).collect();
    let mut rules = Rules::with_capacity(byte_ids, tokens.len());
    let (mut symbols, mut parts) = (Symbols::default(), Vec::new());
    let mut merges = Vec::with_capacity(tokens.len());
    for (bytes, id) in tokens {
        parts.clear();
        match bytes.len() {
            ..=super::ARRAY => rules.merge_in_array(bytes, &mut symbols, &mut parts),
            _ => rules.merge_by_queue(bytes, &mut parts),
        }
        if let [left, right] = parts[..] {
            let merge = Merge { pair: (left, right), id };
            rules.add(merge);
            merges.push(merge);
        }
    }
    merges
}

/// Whether every part ranks before what it merges into.
pub(super) fn is_ordered(merges: &[Merge]) -> bool {
    let mut first_made: HashMap<u32, usize, Seeded> = HashMap::default();
    for (rank, merge) in merges.iter().enumerate() {
        first_made.entry(merge.id).or_insert(rank);
    }
    let ranks_before = |part: u32, rank: usize| first_made.get(&part).is_none_or(|&made| made < rank);
    let mut ranks = merges.iter().enumerate();
    ranks.all(|(rank, merge)| ranks_before(merge.pair.0, rank) && ranks_before(merge.pair.1, rank))
}

/// Multiplying by an odd number (the golden ratio's fraction) spreads the low bits over the high ones.
#[inline]
fn hash(pair: Pair) -> u64 {
    (u64::from(pair.0) << 24 ^ u64::from(pair.1)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The place of the lowest rank, the first among equals; nothing if no pair merges.
#[inline]
fn lowest(ranks: &[u32]) -> Option<usize> {
    let lowest = ranks.iter().copied().min().filter(|&rank| rank != NO_MERGE)?;
    ranks.iter().position(|&rank| rank == lowest)
}

/// The first bit that is set above `idx`, or 64.
#[inline]
fn following(bits: u64, idx: usize) -> usize {
    (bits & (u64::MAX << idx << 1)).trailing_zeros() as usize
}

/// Working memory: the tokens of a piece, and the rank of each pair of neighbours.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    ids: Vec<u32>,
    ranks: Vec<u32>,
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
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::Bpe;
    use super::super::linear::Linear;
    use super::*;

    /// Rules over bytes from `merges`, each of two earlier tokens; ids from 256 on.
    fn rules(merges: &[Pair]) -> (Rules, Vec<Merge>) {
        let merges: Vec<_> =
            merges.iter().enumerate().map(|(i, &pair)| Merge { pair, id: 256 + i as u32 }).collect();
        (Rules::new(std::array::from_fn(|byte| byte as u32), &merges), merges)
    }

    /// Rules over a, b, c whose order matters: later merges have higher rank but shorter left parts.
    pub(in super::super) fn bpe() -> Bpe {
        let (a, b, c) = (97, 98, 99);
        let pairs =
            [(a, a), (b, c), (256, 256), (a, b), (258, 257), (256, a), (c, 259), (261, 258), (260, 260)];
        Bpe::new(std::array::from_fn(|byte| byte as u32), &rules(&pairs).1)
    }

    /// The definition: merge the leftmost pair of the lowest rank until none is left.
    pub(in super::super) fn by_definition(rules: &Rules, piece: &[u8]) -> Vec<u32> {
        let mut ids: Vec<u32> = piece.iter().map(|&byte| u32::from(byte)).collect();
        loop {
            let pairs = ids.windows(2).enumerate().map(|(idx, pair)| (rules.rank(pair[0], pair[1]), idx));
            match pairs.min() {
                Some((rank, idx)) if rank != NO_MERGE => {
                    ids.splice(idx..idx + 2, [rules.id(rank)]);
                }
                _ => return ids,
            }
        }
    }

    /// Pairs of a, b, c and of what earlier pairs gave; with repeats, tokens that spell the same, and dead ends.
    fn pairs() -> impl Strategy<Value = Vec<Pair>> {
        proptest::collection::vec((any::<u16>(), any::<u16>()), 1..24).prop_map(|seeds| {
            let mut pairs: Vec<Pair> = Vec::new();
            for (left, right) in seeds {
                let pick = |seed: u16| match usize::from(seed) % (3 + pairs.len()) {
                    letter @ 0..3 => 97 + letter as u32,
                    earlier => 256 + earlier as u32 - 3,
                };
                let pair = (pick(left), pick(right));
                if !pairs.contains(&pair) {
                    pairs.push(pair);
                }
            }
            pairs
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn all_ways_of_merging_follow_the_definition(pairs in pairs(), piece in "[abc]{2,90}") {
            let (rules, merges) = rules(&pairs);
            let expected = by_definition(&rules, piece.as_bytes());
            let (mut array, mut queue, mut linear) = (Vec::new(), Vec::new(), Vec::new());
            rules.merge_in_array(piece.as_bytes(), &mut Symbols::default(), &mut array);
            rules.merge_by_queue(piece.as_bytes(), &mut queue);
            prop_assert_eq!(&array, &expected);
            prop_assert_eq!(&queue, &expected);
            prop_assert!(is_ordered(&merges));
            Linear::new(&rules).unwrap().encode(piece.as_bytes(), &mut linear);
            prop_assert_eq!(&linear, &expected);
            let mut rounds = Vec::new();
            // At most 64 bytes, so that it never gives up.
            let piece = &piece[..piece.len().min(LEFT)];
            let expected = by_definition(&rules, piece.as_bytes());
            prop_assert!(rules.merge_in_rounds(piece.as_bytes(), &mut Symbols::default(), &mut rounds));
            prop_assert_eq!(&rounds, &expected);
        }
    }
}
