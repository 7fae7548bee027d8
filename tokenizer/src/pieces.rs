//! A map from byte strings to small values: open addressing over one arena, no allocation per key.
//!
//! Counting pre-tokens and caching their ids are the same job: look a short byte string up tens of millions of times,
//! and rarely add one. The keys lie end to end in one buffer and a slot holds the index of an entry, so an insertion
//! costs a copy of the key and a growth of the table moves only indices.

use crate::hash::Seeded;

/// Marks a slot of the table that no entry uses.
const EMPTY: u32 = u32::MAX;

/// Values by byte string, in order of first insertion.
#[derive(Debug)]
pub(crate) struct PieceMap<V> {
    seeded: Seeded,
    slots: Vec<u32>,
    entries: Vec<Entry<V>>,
    keys: Vec<u8>,
}

#[derive(Debug)]
struct Entry<V> {
    hash: u64,
    start: usize,
    len: usize,
    value: V,
}

impl<V: Copy> PieceMap<V> {
    /// An empty map.
    pub(crate) fn new() -> Self {
        Self { seeded: Seeded::default(), slots: vec![EMPTY; 1024], entries: Vec::new(), keys: Vec::new() }
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of all keys together.
    pub(crate) fn key_bytes(&self) -> usize {
        self.keys.len()
    }

    /// Forgets all keys and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.slots.fill(EMPTY);
        self.entries.clear();
        self.keys.clear();
    }

    /// All keys with their values, in order of first insertion.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], V)> {
        self.entries.iter().map(|entry| (&self.keys[entry.start..entry.start + entry.len], entry.value))
    }

    /// The key that was inserted as number `entry_idx`.
    pub(crate) fn key(&self, entry_idx: usize) -> Option<&[u8]> {
        self.entries.get(entry_idx).map(|entry| &self.keys[entry.start..entry.start + entry.len])
    }

    /// The value of `key`.
    #[inline]
    pub(crate) fn get(&self, key: &[u8]) -> Option<V> {
        if self.entries.is_empty() {
            return None;
        }
        match self.find(key, self.seeded.hash_bytes(key)) {
            Ok(entry_idx) => Some(self.entries[entry_idx].value),
            Err(_) => None,
        }
    }

    /// The value of `key`, which becomes `value` if it was not there.
    #[inline]
    pub(crate) fn entry(&mut self, key: &[u8], value: V) -> &mut V {
        let hash = self.seeded.hash_bytes(key);
        let entry_idx = match self.find(key, hash) {
            Ok(entry_idx) => entry_idx,
            Err(slot_idx) => self.insert(key, hash, slot_idx, value),
        };
        &mut self.entries[entry_idx].value
    }

    /// The entry of `key`, or else the slot where it belongs.
    #[inline]
    fn find(&self, key: &[u8], hash: u64) -> Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut slot_idx = hash as usize & mask;
        loop {
            let entry_idx = self.slots[slot_idx];
            if entry_idx == EMPTY {
                return Err(slot_idx);
            }
            let entry = &self.entries[entry_idx as usize];
            if entry.hash == hash && &self.keys[entry.start..entry.start + entry.len] == key {
                return Ok(entry_idx as usize);
            }
            slot_idx = (slot_idx + 1) & mask;
        }
    }

    #[cold]
    fn insert(&mut self, key: &[u8], hash: u64, slot_idx: usize, value: V) -> usize {
        let entry_idx = self.entries.len();
        assert!(entry_idx < EMPTY as usize, "more than {EMPTY} distinct pieces");
        self.entries.push(Entry { hash, start: self.keys.len(), len: key.len(), value });
        self.keys.extend_from_slice(key);
        self.slots[slot_idx] = entry_idx as u32;
        // Linear probing stays short while at most half of the slots are taken.
        if self.entries.len() * 2 > self.slots.len() {
            self.grow();
        }
        entry_idx
    }

    fn grow(&mut self) {
        let n_slots = self.slots.len() * 2;
        self.slots.clear();
        self.slots.resize(n_slots, EMPTY);
        for (entry_idx, entry) in self.entries.iter().enumerate() {
            let mut slot_idx = entry.hash as usize & (n_slots - 1);
            while self.slots[slot_idx] != EMPTY {
                slot_idx = (slot_idx + 1) & (n_slots - 1);
            }
            self.slots[slot_idx] = entry_idx as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_as_a_map_across_growth_and_clearing() {
        let mut map = PieceMap::new();
        for round in 0..2 {
            for i in 0..5000u32 {
                let key = format!("key {}", i % 3000);
                *map.entry(key.as_bytes(), 0) += i;
            }
            assert_eq!(map.len(), 3000, "round {round}");
            assert_eq!(map.get(b"key 7"), Some(7 + 3007));
            assert_eq!(map.get(b"key 2999"), Some(2999));
            assert_eq!(map.get(b"absent"), None);
            assert_eq!(map.iter().next(), Some((&b"key 0"[..], 3000)));
            map.clear();
            assert_eq!(map.get(b"key 7"), None);
        }
    }
}
