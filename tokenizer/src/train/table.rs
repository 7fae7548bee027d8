//! Tables of pieces and their counts: packed keys, a small cache for each thread, shards that all threads share.
//!
//! Nearly all pieces have at most 15 bytes. Such a piece and its length fit in 128 bits, so that it is hashed and
//! compared in a few instructions and needs no arena. A thread counts into [`Local`], a two-way cache that stays in
//! the second-level cache of a core: the words of a language repeat so often that nine lookups in ten end there. What
//! it evicts goes, a block at a time, to the [`Shards`], each a table of its own behind a lock. So every distinct
//! piece is held once, whatever the number of threads, and a block of evicted entries meets one small table.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::hash::Seeded;
use crate::pieces::PieceMap;

/// Most bytes of a piece that is packed; the sixteenth byte holds the length.
pub(super) const PACKED: usize = 15;

/// Number of shards: enough that threads rarely meet at one, and that one is small beside the whole.
pub(super) const N_SHARDS: usize = 64;

/// Sets of two entries in a thread's cache: 256 KB, half of a common second-level cache.
const N_SETS: usize = 4096;

/// Entries gathered for a shard before it is locked.
const OUTBOX: usize = 64;

/// Bytes and number of long pieces that a thread gathers before it hands them on.
const LONG_BYTES: usize = 128 << 10;
const LONG_PIECES: usize = 2048;

/// A piece of at most [`PACKED`] bytes, padded with zeros, and its length in the top byte. All zeros is no piece.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Key {
    low: u64,
    high: u64,
}

impl Key {
    /// The `len` bytes of `text` from `start` on.
    #[inline]
    fn read(text: &[u8], start: usize, len: usize) -> Self {
        let mut padded = [0; 16];
        match text.get(start..start + 16) {
            Some(bytes) => padded.copy_from_slice(bytes),
            // Only the last pieces of a text.
            None => padded[..len].copy_from_slice(&text[start..start + len]),
        }
        let value = u128::from_le_bytes(padded) & ((1 << (8 * len)) - 1);
        Self { low: value as u64, high: (value >> 64) as u64 | (len as u64) << 56 }
    }

    fn bytes(self) -> ([u8; 16], usize) {
        // The top byte is the length.
        let value = u128::from(self.low) | u128::from(self.high << 8 >> 8) << 64;
        (value.to_le_bytes(), (self.high >> 56) as usize)
    }

    fn is_none(self) -> bool {
        self.high == 0
    }
}

/// A packed piece with its count.
#[derive(Clone, Copy, Default)]
struct Entry {
    key: Key,
    count: u64,
}

/// Two entries of a cache, in one line of the processor's.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
struct Set([Entry; 2]);

/// Hashes packed keys with two secrets of the process.
#[derive(Clone, Copy)]
struct Hash {
    low: u64,
    high: u64,
}

impl Hash {
    fn new() -> Self {
        let seeded = Seeded::default();
        Self { low: seeded.hash_bytes(b"low half"), high: seeded.hash_bytes(b"high half") }
    }

    #[inline]
    fn of(self, key: Key) -> u64 {
        let product = u128::from(key.low ^ self.low) * u128::from(key.high ^ self.high);
        (product as u64) ^ (product >> 64) as u64
    }
}

/// The shard of a hash: its upper bits. A slot within the shard takes the bits below them, a set of the cache the
/// lowest.
fn shard_of(hash: u64) -> usize {
    (hash >> 58) as usize
}

/// Counts of all pieces, shared by all threads.
pub(super) struct Shards {
    hash: Hash,
    shards: Vec<Mutex<Shard>>,
}

impl Shards {
    pub(super) fn new() -> Self {
        Self { hash: Hash::new(), shards: (0..N_SHARDS).map(|_| Mutex::new(Shard::new())).collect() }
    }

    /// The shard, locked.
    pub(super) fn lock(&self, shard_idx: usize) -> MutexGuard<'_, Shard> {
        // A thread that panicked between two additions left a whole table behind.
        self.shards[shard_idx].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of memory that the tables hold.
    pub(super) fn n_bytes(&self) -> u64 {
        (0..N_SHARDS).map(|shard_idx| self.lock(shard_idx).n_bytes()).sum()
    }
}

/// The counts of one shard.
pub(super) struct Shard {
    hash: Hash,
    slots: Vec<Entry>,
    n_used: usize,
    long: PieceMap<u64>,
}

impl Shard {
    /// No counts yet.
    pub(super) fn new() -> Self {
        Self { hash: Hash::new(), slots: vec![Entry::default(); 64], n_used: 0, long: PieceMap::new() }
    }

    /// Calls `each` with all pieces and their counts.
    pub(super) fn for_each(&self, mut each: impl FnMut(&[u8], u64)) {
        for entry in self.slots.iter().filter(|entry| !entry.key.is_none()) {
            let (bytes, len) = entry.key.bytes();
            each(&bytes[..len], entry.count);
        }
        for (piece, count) in self.long.iter() {
            each(piece, count);
        }
    }

    /// Forgets all counts and gives the memory back.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }

    fn n_bytes(&self) -> u64 {
        // An entry of the map has 32 bytes and at most four slots of 4.
        (self.slots.len() * size_of::<Entry>() + self.long.key_bytes() + self.long.len() * 48) as u64
    }

    /// Adds to a piece of any length.
    pub(super) fn add(&mut self, piece: &[u8], count: u64) {
        if piece.len() <= PACKED {
            self.add_packed(Entry { key: Key::read(piece, 0, piece.len()), count });
        } else {
            *self.long.entry(piece, 0) += count;
        }
    }

    #[inline]
    fn add_packed(&mut self, entry: Entry) {
        let slot_idx = self.find(entry.key);
        let slot = &mut self.slots[slot_idx];
        slot.count += entry.count;
        if slot.key.is_none() {
            slot.key = entry.key;
            self.n_used += 1;
            if self.n_used * 4 > self.slots.len() * 3 {
                self.grow();
            }
        }
    }

    /// The slot of `key`, or the free one where it belongs.
    #[inline]
    fn find(&self, key: Key) -> usize {
        let n_slots = self.slots.len();
        // The 32 bits below those that chose the shard, scaled to the table, which may have any size.
        let fraction = (self.hash.of(key) << 6) >> 32;
        let mut slot_idx = ((fraction * n_slots as u64) >> 32) as usize;
        loop {
            let found = self.slots[slot_idx].key;
            if found == key || found.is_none() {
                return slot_idx;
            }
            slot_idx = if slot_idx + 1 == n_slots { 0 } else { slot_idx + 1 };
        }
    }

    #[cold]
    fn grow(&mut self) {
        // By half, not by two: the largest tables decide the peak of memory.
        let n_slots = self.slots.len() / 2 * 3;
        let old = std::mem::replace(&mut self.slots, vec![Entry::default(); n_slots]);
        for entry in old.into_iter().filter(|entry| !entry.key.is_none()) {
            let slot_idx = self.find(entry.key);
            self.slots[slot_idx] = entry;
        }
    }
}

/// What one thread counts before it reaches the shards.
pub(super) struct Local {
    hash: Hash,
    /// In a set, the second entry is the one that gives way.
    cache: Box<[Set; N_SETS]>,
    outboxes: Vec<Vec<Entry>>,
    long: PieceMap<u64>,
}

impl Local {
    pub(super) fn new(shards: &Shards) -> Self {
        let cache = vec![Set::default(); N_SETS].into_boxed_slice();
        Self {
            hash: shards.hash,
            cache: cache.try_into().unwrap_or_else(|_| unreachable!("the slice was made with this length")),
            outboxes: (0..N_SHARDS).map(|_| Vec::with_capacity(OUTBOX)).collect(),
            long: PieceMap::new(),
        }
    }

    /// Counts the piece of `len` bytes that starts at `start`. It is read out of the whole text, because sixteen
    /// bytes are loaded faster than `len`.
    #[inline]
    pub(super) fn add(&mut self, shards: &Shards, text: &[u8], start: usize, len: usize) {
        if len > PACKED {
            self.add_long(shards, &text[start..start + len]);
            return;
        }
        let key = Key::read(text, start, len);
        let hash = self.hash.of(key);
        let set = &mut self.cache[hash as usize % N_SETS].0;
        if set[0].key == key {
            set[0].count += 1;
            return;
        }
        if set[1].key == key {
            set[1].count += 1;
            if set[1].count > set[0].count {
                set.swap(0, 1);
            }
            return;
        }
        let evicted = std::mem::replace(&mut set[1], Entry { key, count: 1 });
        if !evicted.key.is_none() {
            self.evict(shards, evicted);
        }
    }

    fn evict(&mut self, shards: &Shards, entry: Entry) {
        let shard_idx = shard_of(self.hash.of(entry.key));
        let outbox = &mut self.outboxes[shard_idx];
        outbox.push(entry);
        if outbox.len() == OUTBOX {
            deliver(shards, shard_idx, outbox);
        }
    }

    #[cold]
    #[inline(never)]
    fn add_long(&mut self, shards: &Shards, piece: &[u8]) {
        *self.long.entry(piece, 0) += 1;
        if self.long.key_bytes() > LONG_BYTES || self.long.len() > LONG_PIECES {
            self.flush_long(shards);
        }
    }

    fn flush_long(&mut self, shards: &Shards) {
        let seeded = Seeded::default();
        for (piece, count) in self.long.iter() {
            shards.lock(shard_of(seeded.hash_bytes(piece))).add(piece, count);
        }
        if self.long.key_bytes() > 2 * LONG_BYTES {
            // A huge piece must not hold its memory for ever.
            self.long = PieceMap::new();
        } else {
            self.long.clear();
        }
    }

    /// Hands all counts on to the shards.
    pub(super) fn flush(&mut self, shards: &Shards) {
        let hash = self.hash;
        for entry in self.cache.iter_mut().flat_map(|set| &mut set.0).filter(|entry| !entry.key.is_none()) {
            let shard_idx = shard_of(hash.of(entry.key));
            self.outboxes[shard_idx].push(std::mem::take(entry));
        }
        for (shard_idx, outbox) in self.outboxes.iter_mut().enumerate() {
            deliver(shards, shard_idx, outbox);
        }
        self.flush_long(shards);
    }
}

fn deliver(shards: &Shards, shard_idx: usize, outbox: &mut Vec<Entry>) {
    let mut shard = shards.lock(shard_idx);
    for entry in outbox.drain(..) {
        shard.add_packed(entry);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn pieces_of_all_lengths_are_counted_as_by_a_map() {
        let shards = Shards::new();
        let mut locals = [Local::new(&shards), Local::new(&shards)];
        let mut expected: HashMap<Vec<u8>, u64> = HashMap::new();
        let text: Vec<u8> = (0..60_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 29) as u8).collect();
        let mut start = 0;
        for i in 0.. {
            let len = i * 7 % 23;
            if start + len > text.len() {
                break;
            }
            if len > 0 {
                locals[i % 2].add(&shards, &text, start, len);
                *expected.entry(text[start..start + len].to_vec()).or_default() += 1;
            }
            start += len;
        }
        locals.iter_mut().for_each(|local| local.flush(&shards));
        let mut counts = HashMap::new();
        for shard_idx in 0..N_SHARDS {
            shards.lock(shard_idx).for_each(|piece, count| {
                assert!(counts.insert(piece.to_vec(), count).is_none(), "{piece:?} stands twice");
            });
        }
        assert_eq!(counts, expected);
    }

    #[test]
    fn zero_bytes_and_lengths_tell_keys_apart() {
        let zeros = [0; 20];
        let keys: Vec<Key> = (1..=PACKED).map(|len| Key::read(&zeros, 0, len)).collect();
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[..i].iter().all(|b| a != b) && !a.is_none());
            assert_eq!(a.bytes(), ([0; 16], i + 1));
        }
    }
}
