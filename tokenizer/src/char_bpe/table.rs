//! Which two symbols merge: one hash table from a pair of ids to a rank and the token that replaces them.
//!
//! Linear probing over 16-byte entries, at most half full, so that a look-up is mostly one cache line. The hash is seeded
//! per process, as everywhere: the pairs come from a file.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use super::NO_MERGE;
use crate::Error;
use crate::hash::Seeded;
use crate::trie::Trie;

/// Marks an entry that holds nothing. No two symbols have these ids.
const EMPTY: u64 = u64::MAX;

/// Most symbols; beyond it an id could not be told from a marked one.
const MAX_SYMBOLS: usize = 1 << 30;

/// Ranks and merged tokens by pair.
#[derive(Debug)]
pub(super) struct PairTable {
    entries: Vec<Entry>,
    n_pairs: usize,
    n_ranks: usize,
    seeded: Seeded,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: u64,
    rank: u32,
    merged: u32,
}

impl PairTable {
    /// Pairs in order of rank; of equal pairs, the last one counts, as in Hugging Face's table.
    pub(super) fn ranked(
        tokens: &[&str],
        pairs: &[(u32, u32)],
        prefix: &str,
        symbols: &Trie,
    ) -> Result<Self, Error> {
        let mut table = Self::new(pairs.len());
        let token = |id: u32| {
            tokens.get(id as usize).copied().ok_or(Error::UnknownId { id, vocab_size: tokens.len() })
        };
        for (merge_idx, &(left, right)) in pairs.iter().enumerate() {
            let (left_token, right_token) = (token(left)?, token(right)?);
            let bad = |reason| Error::BadMerge {
                merge_idx,
                left: left_token.to_owned(),
                right: right_token.to_owned(),
                reason,
            };
            // Hugging Face cuts the prefix's length off the right token, whatever stands there.
            let inner =
                right_token.get(prefix.len()..).ok_or_else(|| bad("the right token lacks the prefix"))?;
            let merged = symbols
                .descend(Trie::ROOT, left_token.as_bytes())
                .and_then(|node| symbols.value(symbols.descend(node, inner.as_bytes())?))
                .ok_or_else(|| bad("what they spell together is not in the vocabulary"))?;
            let rank =
                u32::try_from(merge_idx).map_err(|_| bad("there are more merges than can be numbered"))?;
            table.insert(left, right, rank, merged);
        }
        Ok(table)
    }

    /// Every way to cut a token into two symbols; the better the token's score, the lower the rank.
    pub(super) fn scored(
        tokens: &[&str],
        scores: &[f32],
        takes_part: impl Fn(u32) -> bool,
        symbols: &Trie,
    ) -> Result<Self, Error> {
        let ranks = ranks(tokens, scores)?;
        // The ids of all symbols that a token ends with are found by one walk backwards in a trie of reversed symbols.
        let reversed = Trie::new(reversed(tokens, &takes_part, symbols))?;
        let mut table = Self::new(tokens.len());
        let mut tails = Vec::new();
        for (id, token) in (0u32..).zip(tokens).filter(|&(id, _)| takes_part(id)) {
            let bytes = token.as_bytes();
            tails.clear();
            let mut node = Trie::ROOT;
            for (len, &byte) in (1..bytes.len()).zip(bytes.iter().rev()) {
                let Some(child) = reversed.child(node, byte) else { break };
                node = child;
                tails.extend(reversed.value(node).map(|tail| (bytes.len() - len, tail)));
            }
            let mut node = Trie::ROOT;
            for (end, &byte) in (1..bytes.len()).zip(bytes) {
                let Some(child) = symbols.child(node, byte) else { break };
                node = child;
                while tails.last().is_some_and(|&(start, _)| start < end) {
                    tails.pop();
                }
                if let (Some(head), Some(&(start, tail))) = (symbols.value(node), tails.last())
                    && start == end
                {
                    table.insert(head, tail, ranks[id as usize], id);
                }
            }
        }
        Ok(table)
    }

    fn new(n_pairs: usize) -> Self {
        let n_entries = (n_pairs * 2).next_power_of_two().max(16);
        let entry = Entry { key: EMPTY, rank: NO_MERGE, merged: 0 };
        Self { entries: vec![entry; n_entries], n_pairs: 0, n_ranks: 0, seeded: Seeded::default() }
    }

    /// The rank and the merged token of two neighbours; [`NO_MERGE`] if they do not merge.
    #[inline]
    pub(super) fn get(&self, left: u32, right: u32) -> (u32, u32) {
        let key = u64::from(left) << 32 | u64::from(right);
        let mask = self.entries.len() - 1;
        let mut idx = self.hash(key) & mask;
        loop {
            let entry = &self.entries[idx];
            if entry.key == key || entry.key == EMPTY {
                return (entry.rank, entry.merged);
            }
            idx = (idx + 1) & mask;
        }
    }

    /// All pairs, and what they become, in no order.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        let full = self.entries.iter().filter(|entry| entry.key != EMPTY);
        full.map(|entry| ((entry.key >> 32) as u32, entry.key as u32, entry.merged))
    }

    /// One more than the highest rank.
    pub(super) fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    /// Whether a symbol takes part in any merge.
    pub(super) fn uses(&self, id: u32) -> bool {
        let full = |entry: &&Entry| entry.key != EMPTY;
        self.entries.iter().filter(full).any(|entry| (entry.key >> 32) as u32 == id || entry.key as u32 == id)
    }

    #[inline]
    fn hash(&self, key: u64) -> usize {
        let mut hasher = self.seeded.build_hasher();
        hasher.write_u64(key);
        // The upper half: a product's lower bits depend on the lower bits of its factors alone.
        (hasher.finish() >> 32) as usize
    }

    fn insert(&mut self, left: u32, right: u32, rank: u32, merged: u32) {
        if (self.n_pairs + 1) * 2 > self.entries.len() {
            self.grow();
        }
        self.n_ranks = self.n_ranks.max(rank as usize + 1);
        self.place(Entry { key: u64::from(left) << 32 | u64::from(right), rank, merged });
    }

    fn place(&mut self, new: Entry) {
        let mask = self.entries.len() - 1;
        let mut idx = self.hash(new.key) & mask;
        while self.entries[idx].key != EMPTY && self.entries[idx].key != new.key {
            idx = (idx + 1) & mask;
        }
        self.n_pairs += usize::from(self.entries[idx].key == EMPTY);
        self.entries[idx] = new;
    }

    fn grow(&mut self) {
        let empty = Entry { key: EMPTY, rank: NO_MERGE, merged: 0 };
        let larger = vec![empty; self.entries.len() * 2];
        let old = std::mem::replace(&mut self.entries, larger);
        self.n_pairs = 0;
        for entry in old.into_iter().filter(|entry| entry.key != EMPTY) {
            self.place(entry);
        }
    }
}

/// The symbols by spelling: the tokens that take part, and for `scored` merges the characters that only stand inside
/// tokens, numbered from the number of tokens on.
pub(super) fn symbols(
    tokens: &[&str],
    scored: bool,
    takes_part: impl Fn(u32) -> bool,
) -> Result<Trie, Error> {
    let vocab_size = tokens.len();
    let mut keys: Vec<(&str, u32)> =
        (0u32..).zip(tokens).filter(|&(id, _)| takes_part(id)).map(|(id, &token)| (token, id)).collect();
    if scored {
        let mut chars: HashMap<&str, u32, Seeded> = HashMap::default();
        let inner = keys.iter().flat_map(|&(token, _)| token.split_inclusive(|_: char| true));
        for c in inner {
            let next = (vocab_size + chars.len()) as u32;
            chars.entry(c).or_insert(next);
        }
        // Of equal keys the last one counts, so tokens go after characters.
        let n_tokens = keys.len();
        keys.extend(chars);
        keys.rotate_left(n_tokens);
    }
    if vocab_size + keys.len() > MAX_SYMBOLS {
        return Err(Error::VocabSize { asked: vocab_size, least: 0, most: MAX_SYMBOLS / 2 });
    }
    Trie::new(keys)
}

/// All symbols spelled backwards.
fn reversed(tokens: &[&str], takes_part: &impl Fn(u32) -> bool, symbols: &Trie) -> Vec<(Vec<u8>, u32)> {
    let backwards = |text: &str| text.bytes().rev().collect::<Vec<u8>>();
    let takes_part = (0u32..).zip(tokens).filter(|&(id, _)| takes_part(id));
    let mut keys: Vec<(Vec<u8>, u32)> = Vec::new();
    for (_, token) in takes_part {
        keys.extend(symbols.get(token.as_bytes()).map(|id| (backwards(token), id)));
        // Of the characters that are no tokens, only a token's last one can be a tail.
        if let Some(last) = token.chars().next_back() {
            let last = &token[token.len() - last.len_utf8()..];
            keys.extend(symbols.get(last.as_bytes()).map(|id| (backwards(last), id)));
        }
    }
    keys
}

/// Ranks by id: equal scores have equal ranks, better ones lower ranks.
fn ranks(tokens: &[&str], scores: &[f32]) -> Result<Vec<u32>, Error> {
    if scores.len() != tokens.len() {
        return Err(Error::Unsupported {
            part: "model",
            found: format!("{} scores for {} tokens", scores.len(), tokens.len()),
            supported: "a score for every token",
        });
    }
    if let Some(id) = scores.iter().position(|score| score.is_nan()) {
        return Err(Error::BadToken {
            token: tokens[id].to_owned(),
            id: id as u32,
            reason: "has a score that is not a number",
        });
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Adding zero makes the two zeros one.
    order.sort_by(|&a, &b| (scores[b] + 0.0).total_cmp(&(scores[a] + 0.0)));
    let mut ranks = vec![0; scores.len()];
    let mut rank = 0;
    for pair in order.windows(2) {
        rank += u32::from(scores[pair[0]] != scores[pair[1]]);
        ranks[pair[1]] = rank;
    }
    Ok(ranks)
}
