//! A byte trie in a double array: which keys does a text start with, one array access a byte.
//!
//! The child of a node by a byte stands at `base ^ byte`, and it is the child if it names the node as its parent. Nodes
//! are placed block by block (256 slots, so that one base reaches all of them): the free slots of a block are a bit set,
//! and the bases that fit all children of a node are the intersection of that set shifted by each child's byte. Only
//! the last blocks are searched, so building takes time linear in the keys.

use crate::Error;

/// Marks a free slot, and a node without a value.
const NONE: u32 = u32::MAX;

/// Blocks that are searched for room. Darts-clone keeps as many open; more hardly packs tighter.
const OPEN_BLOCKS: usize = 16;

/// Byte strings with a number each.
#[derive(Debug)]
pub(crate) struct Trie {
    units: Vec<Unit>,
}

/// A slot of the array.
#[derive(Clone, Copy, Debug)]
struct Unit {
    base: u32,
    parent: u32,
    value: u32,
}

const FREE: Unit = Unit { base: 0, parent: NONE, value: NONE };

/// A position in the trie: what was read so far is the beginning of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node(u32);

impl Trie {
    /// Where matching starts.
    pub(crate) const ROOT: Node = Node(0);

    /// Takes keys and their numbers. Empty keys are left out; of equal keys, the last one counts.
    pub(crate) fn new<K: AsRef<[u8]>>(keys: impl IntoIterator<Item = (K, u32)>) -> Result<Self, Error> {
        let mut keys: Vec<(K, u32)> = keys.into_iter().filter(|(key, _)| !key.as_ref().is_empty()).collect();
        keys.sort_by(|(a, _), (b, _)| a.as_ref().cmp(b.as_ref()));
        Builder { keys: &keys, units: vec![FREE; 256], free: vec![[u64::MAX; 4]] }.build()
    }

    /// One byte further.
    #[inline]
    pub(crate) fn child(&self, node: Node, byte: u8) -> Option<Node> {
        let idx = self.units[node.0 as usize].base ^ u32::from(byte);
        let unit = self.units.get(idx as usize)?;
        (unit.parent == node.0).then_some(Node(idx))
    }

    /// The number of the key that ends here.
    #[inline]
    pub(crate) fn value(&self, node: Node) -> Option<u32> {
        let value = self.units[node.0 as usize].value;
        (value != NONE).then_some(value)
    }

    /// The node that a text leads to from another one.
    pub(crate) fn descend(&self, node: Node, text: &[u8]) -> Option<Node> {
        text.iter().try_fold(node, |node, &byte| self.child(node, byte))
    }

    /// The number of a key.
    pub(crate) fn get(&self, key: &[u8]) -> Option<u32> {
        self.value(self.descend(Self::ROOT, key)?)
    }

    /// The longest key, continued from `node`, that `text` starts with: its length in bytes and its number.
    #[inline]
    pub(crate) fn longest_from(&self, mut node: Node, text: &[u8]) -> Option<(usize, u32)> {
        let mut longest = None;
        for (idx, &byte) in text.iter().enumerate() {
            match self.child(node, byte) {
                Some(child) => node = child,
                None => break,
            }
            if let Some(value) = self.value(node) {
                longest = Some((idx + 1, value));
            }
        }
        longest
    }

    /// The longest key that `text` starts with.
    #[inline]
    pub(crate) fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        self.longest_from(Self::ROOT, text)
    }
}

/// The array while it is filled.
struct Builder<'a, K> {
    keys: &'a [(K, u32)],
    units: Vec<Unit>,
    /// The free slots of each block of 256.
    free: Vec<[u64; 4]>,
}

impl<K: AsRef<[u8]>> Builder<'_, K> {
    fn build(mut self) -> Result<Trie, Error> {
        self.take(0, NONE - 1);
        // A node, the keys below it, and how many of their bytes lead to it.
        let mut open = vec![(0u32, 0..self.keys.len(), 0usize)];
        let mut children = Vec::new();
        while let Some((node, mut range, depth)) = open.pop() {
            while range.start < range.end && self.keys[range.start].0.as_ref().len() == depth {
                self.units[node as usize].value = self.keys[range.start].1;
                range.start += 1;
            }
            children.clear();
            while range.start < range.end {
                let byte = self.keys[range.start].0.as_ref()[depth];
                let n = self.keys[range.clone()].partition_point(|(key, _)| key.as_ref()[depth] == byte);
                children.push((byte, range.start..range.start + n));
                range.start += n;
            }
            if children.is_empty() {
                continue;
            }
            let base = self.base(&children)?;
            self.units[node as usize].base = base;
            for (byte, below) in children.drain(..) {
                let child = base ^ u32::from(byte);
                self.take(child, node);
                open.push((child, below, depth + 1));
            }
        }
        Ok(Trie { units: self.units })
    }

    fn take(&mut self, slot: u32, parent: u32) {
        self.units[slot as usize].parent = parent;
        self.free[slot as usize / 256][slot as usize % 256 / 64] &= !(1 << (slot % 64));
    }

    /// A base from which the slots of all children are free.
    fn base<R>(&mut self, children: &[(u8, R)]) -> Result<u32, Error> {
        let fit = |free: &[u64; 4]| {
            let mut fit = [u64::MAX; 4];
            for (byte, _) in children {
                for (word, shifted) in fit.iter_mut().zip(xor_shift(free, *byte)) {
                    *word &= shifted;
                }
            }
            fit.iter()
                .enumerate()
                .find(|&(_, &word)| word != 0)
                .map(|(i, word)| i as u32 * 64 + word.trailing_zeros())
        };
        let first = self.free.len().saturating_sub(OPEN_BLOCKS);
        for block_idx in first..self.free.len() {
            if let Some(low) = fit(&self.free[block_idx]) {
                return Ok(block_idx as u32 * 256 + low);
            }
        }
        let start = self.units.len();
        // The last two numbers are NONE and the root's parent.
        if start + 256 >= (NONE - 1) as usize {
            return Err(Error::TooLarge { len: start as u64, limit: u64::from(NONE) });
        }
        self.units.resize(start + 256, FREE);
        self.free.push([u64::MAX; 4]);
        Ok(start as u32)
    }
}

/// The set of all `x ^ shift` for `x` in the set: whole words swap places by the high bits, bits within them by the low.
fn xor_shift(set: &[u64; 4], shift: u8) -> [u64; 4] {
    const MASKS: [u64; 6] = [
        0x5555_5555_5555_5555,
        0x3333_3333_3333_3333,
        0x0f0f_0f0f_0f0f_0f0f,
        0x00ff_00ff_00ff_00ff,
        0x0000_ffff_0000_ffff,
        0x0000_0000_ffff_ffff,
    ];
    std::array::from_fn(|i| {
        let mut word = set[i ^ usize::from(shift >> 6)];
        for (bit, mask) in MASKS.iter().enumerate() {
            if shift >> bit & 1 == 1 {
                word = (word & mask) << (1 << bit) | (word >> (1 << bit)) & mask;
            }
        }
        word
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn finds_what_a_map_finds(
            keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..6), 0..600),
            texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..8), 50),
        ) {
            let map: BTreeMap<&[u8], u32> = keys.iter().zip(0..).map(|(key, id)| (&key[..], id)).collect();
            let trie = Trie::new(keys.iter().zip(0..)).unwrap();
            for text in keys.iter().chain(&texts) {
                prop_assert_eq!(trie.get(text), map.get(&text[..]).copied());
                let longest = (1..=text.len()).rev().find_map(|n| Some((n, *map.get(&text[..n])?)));
                prop_assert_eq!(trie.longest(text), longest);
            }
        }
    }

    #[test]
    fn an_empty_trie_and_an_empty_key() {
        let trie = Trie::new([("", 3)]).unwrap();
        assert_eq!((trie.get(b""), trie.get(b"\0"), trie.longest(b"abc")), (None, None, None));
    }
}
