//! Encoding a piece in time linear in its length.
//!
//! A list of tokens is what merging gives if and only if every two neighbours are: merging the bytes of both together
//! gives just them. So the longest token at each place is taken, a shorter one where it does not get on with the token
//! before, and where none does, the token before is taken back; a place that was taken back is never tried again,
//! which bounds the work. The idea is that of GitHub's `bpe` crate ("So many tokens, so little time", 2024).
//!
//! Two neighbours are checked along their seam only: whatever merges across it must be made of the last part of the
//! left and the first part of the right token, at some stage of their own merging.
//!
//! This needs rules in which every part ranks before what it merges into, as every trained vocabulary has.

use std::collections::HashMap;

use super::merge::{Merge, Pair, Rules};
use crate::Error;
use crate::hash::Seeded;
use crate::trie::Trie;

/// Tables over the tokens that merging can give. Their numbers here: the bytes, then the merges in order of rank, so
/// that comparing numbers compares ranks.
#[derive(Debug)]
pub(super) struct Linear {
    /// The id of each token.
    ids: Vec<u32>,
    /// What each token was last merged from; a byte from itself twice.
    parts: Vec<Pair>,
    lens: Vec<u32>,
    /// The longest token that a token begins with and is not; bytes have none.
    shorter: Vec<Option<u32>>,
    /// The number of the token that a pair of numbers merges into.
    pairs: HashMap<Pair, u32, Seeded>,
    /// The tokens by their bytes.
    trie: Trie,
}

impl Linear {
    /// Takes rules in which every part ranks before what it merges into. Fails for more tokens than a trie can hold.
    pub(super) fn new(rules: &Rules) -> Result<Self, Error> {
        let mut tables = Self {
            ids: (0..=255).map(|byte| rules.byte_id(byte)).collect(),
            parts: (0..256).map(|number| (number, number)).collect(),
            lens: vec![1; 256],
            shorter: Vec::new(),
            pairs: HashMap::default(),
            trie: Trie::new::<[u8; 1]>([])?,
        };
        let mut numbers: HashMap<u32, u32, Seeded> =
            (0..256).map(|number| (tables.ids[number as usize], number)).collect();
        let mut bytes: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        for Merge { pair: (left, right), id } in rules.merges() {
            let (Some(&left), Some(&right)) = (numbers.get(&left), numbers.get(&right)) else {
                continue;
            };
            // A token that its own parts do not lead to: some other merge comes first, always.
            if numbers.contains_key(&id) || !tables.get_on(left, right) {
                continue;
            }
            let number = tables.ids.len() as u32;
            numbers.insert(id, number);
            tables.ids.push(id);
            tables.parts.push((left, right));
            tables.lens.push(tables.lens[left as usize] + tables.lens[right as usize]);
            tables.pairs.insert((left, right), number);
            bytes.push([&bytes[left as usize][..], &bytes[right as usize]].concat());
        }
        tables.trie = Trie::new(bytes.iter().zip(0..))?;
        tables.shorter = bytes.iter().map(|bytes| tables.longest(&bytes[..bytes.len() - 1])).collect();
        Ok(tables)
    }

    /// Appends the ids of `piece`.
    pub(super) fn encode(&self, piece: &[u8], ids: &mut Vec<u32>) {
        // Whether a list of tokens may still end at each place.
        let mut open = vec![true; piece.len() + 1];
        let mut tokens: Vec<u32> = Vec::with_capacity(piece.len() / 3);
        let mut at = 0;
        let mut candidate = self.longest(piece);
        while let Some(token) = candidate {
            let end = at + self.lens[token as usize] as usize;
            if open[end] && tokens.last().is_none_or(|&last| self.get_on(last, token)) {
                tokens.push(token);
                at = end;
                candidate = self.longest(&piece[at..]);
                continue;
            }
            candidate = self.shorter[token as usize];
            if candidate.is_none() {
                open[at] = false;
                // The bytes of a piece always have a list, so the first place is never closed.
                let Some(last) = tokens.pop() else { break };
                at -= self.lens[last as usize] as usize;
                candidate = Some(last);
            }
        }
        ids.extend(tokens.iter().map(|&number| self.ids[number as usize]));
    }

    /// The longest token that `bytes` begin with.
    fn longest(&self, bytes: &[u8]) -> Option<u32> {
        self.trie.longest(bytes).map(|(_, number)| number)
    }

    /// Whether two neighbours stay as they are when their bytes are merged together.
    fn get_on(&self, mut left: u32, mut right: u32) -> bool {
        // Merges from this number on come after the stage that is looked at.
        let mut limit = u32::MAX;
        loop {
            if self.pairs.get(&(left, right)).is_some_and(|&number| number < limit) {
                return false;
            }
            if left.max(right) < 256 {
                return true;
            }
            // Undo the later of the two last merges; of equal ones, the left was merged first.
            if left > right {
                limit = left;
                left = self.parts[left as usize].1;
            } else {
                limit = right + 1;
                right = self.parts[right as usize].0;
            }
        }
    }
}
