//! The ids of pieces that were seen before, in bounded memory.
//!
//! A piece of at most 15 bytes is its own key: two integers, the length in the top byte. Two entries share a cache line
//! of 64 bytes; where a bucket and three neighbours are full, a new entry pushes the older one at home out. Three ids fit
//! into an entry, which is all for 99 of 100 English pieces; longer lists, one in eight where scripts are many, lie in one
//! array. Pieces of 16 bytes and more are rarer
//! and go to a map.

use crate::hash::Seeded;
use crate::pieces::PieceMap;

/// Longest piece that is its own key.
const SHORT: usize = 15;

/// Longest piece that is remembered at all: longer ones hardly repeat.
pub(crate) const LONG: usize = 256;

/// A bucket without entries.
const EMPTY: Bucket = [[0; 4]; 2];

/// Buckets to begin with, and at most: 64 KiB and 32 MiB, for half a million pieces.
const BUCKETS: usize = 1 << 10;
const MAX_BUCKETS: usize = 1 << 19;

/// Most long pieces, most bytes of them, and most ids in the array, before they start over: about 16 MB each.
const MAX_LONG: usize = 1 << 18;
const MAX_LONG_BYTES: usize = 1 << 24;
const MAX_IDS: usize = 1 << 22;

/// Ids that are copied together where a list is no longer: cheaper than a copy of so many as there are. The array ends with
/// as many that mean nothing.
pub(super) const AT_ONCE: usize = 8;

/// Marks an entry whose ids lie in the array: the rest of the number is how many.
const IN_ARRAY: u32 = 1 << 31;

/// A short piece as two integers: its bytes, zeros, and its length in the top byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Key {
    low: u64,
    high: u64,
}

/// Which bytes of each half belong to a piece of so many bytes.
const MASKS: [(u64, u64); SHORT + 1] = {
    let mut masks = [(0, 0); SHORT + 1];
    let mut len = 1;
    while len <= SHORT {
        let mask = (1u128 << (8 * len)) - 1;
        masks[len] = (mask as u64, (mask >> 64) as u64);
        len += 1;
    }
    masks
};

impl Key {
    /// Stands for all longer pieces; no entry has it.
    pub(super) const LONG: Self = Self { low: 0, high: u64::MAX };

    /// The key of `bytes[start..end]`.
    #[inline(always)]
    pub(super) fn new(bytes: &[u8], start: usize, end: usize) -> Self {
        let len = end - start;
        if len > SHORT {
            return Self::LONG;
        }
        let raw = match bytes.get(start..).and_then(<[u8]>::first_chunk) {
            Some(all) => u128::from_le_bytes(*all),
            None => at_end(&bytes[start..end]),
        };
        let (low, high) = MASKS[len];
        Self { low: raw as u64 & low, high: (raw >> 64) as u64 & high | (len as u64) << 56 }
    }

    /// Zero if the keys are equal; computed without a branch.
    #[inline(always)]
    fn differs(self, other: Self) -> u64 {
        self.low ^ other.low | self.high ^ other.high
    }
}

/// A piece with fewer than 16 bytes of text from its start on.
#[cold]
fn at_end(piece: &[u8]) -> u128 {
    let mut padded = [0; 16];
    padded[..piece.len()].copy_from_slice(piece);
    u128::from_le_bytes(padded)
}

/// A remembered piece: its key; two ids; a third id, and in the upper half the number of ids, perhaps with
/// [`IN_ARRAY`]. Of longer lists the first word of ids is the start in the array. Plain integers, because a vector of
/// zeros costs nothing until it is touched.
type Entry = [u64; 4];

/// The newer entry first: one cache line.
type Bucket = [Entry; 2];

fn entry(key: Key, ids: [u32; 3], n_ids: u32) -> Entry {
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    [key.low, key.high, join(ids[0], ids[1]), join(ids[2], n_ids)]
}

#[inline(always)]
fn key(entry: &Entry) -> Key {
    Key { low: entry[0], high: entry[1] }
}

/// The three ids, and a number that is none: four are copied faster than three.
#[inline(always)]
fn ids(entry: &Entry) -> [u32; 4] {
    [entry[2] as u32, (entry[2] >> 32) as u32, entry[3] as u32, (entry[3] >> 32) as u32]
}

#[inline(always)]
fn n_ids(entry: &Entry) -> u32 {
    (entry[3] >> 32) as u32
}

/// Whether a new entry would push one out.
#[inline]
fn is_full(bucket: &Bucket) -> bool {
    n_ids(&bucket[1]) > 0
}

/// The buckets where an entry may lie, home first; it goes on to the next only if one is full.
#[inline]
fn neighbours(home: usize) -> impl Iterator<Item = usize> {
    (0..4).map(move |i| home ^ i)
}

/// The ids of a piece.
pub(super) enum Found<'a> {
    /// So many of these.
    Few([u32; 4], usize),
    /// So many of these, behind which [`AT_ONCE`] others lie.
    Many(&'a [u32], usize),
}

impl Found<'_> {
    /// The ids alone.
    #[inline]
    pub(super) fn ids(&self) -> &[u32] {
        match self {
            Self::Few(ids, n_ids) => &ids[..*n_ids],
            Self::Many(ids, n_ids) => &ids[..*n_ids],
        }
    }

    /// Writes the ids, and perhaps others behind them, up to [`AT_ONCE`] in all; tells how many there are.
    #[inline(always)]
    pub(super) fn write(self, out: &mut [u32]) -> usize {
        match self {
            Self::Few(ids, n_ids) => {
                out[..4].copy_from_slice(&ids);
                n_ids
            }
            Self::Many(ids, n_ids) if n_ids <= AT_ONCE => {
                out[..AT_ONCE].copy_from_slice(&ids[..AT_ONCE]);
                n_ids
            }
            Self::Many(ids, n_ids) => {
                out[..n_ids].copy_from_slice(&ids[..n_ids]);
                n_ids
            }
        }
    }
}

/// The pieces with their ids.
#[derive(Debug)]
pub(super) struct Table {
    seeded: Seeded,
    buckets: Vec<Bucket>,
    /// The bits of a hash that number a bucket are those left after this shift.
    shift: u32,
    /// Entries made so far, also those that have been pushed out since.
    n_inserted: usize,
    /// Start and number of the ids of long pieces in `array`.
    long: PieceMap<(u32, u32)>,
    array: Vec<u32>,
}

impl Default for Table {
    /// No pieces.
    fn default() -> Self {
        Self {
            seeded: Seeded::default(),
            buckets: vec![EMPTY; BUCKETS],
            shift: u64::BITS - BUCKETS.ilog2(),
            n_inserted: 0,
            long: PieceMap::new(),
            array: vec![0; AT_ONCE],
        }
    }
}

impl Table {
    /// The ids of a short piece, if it lies where most do.
    #[inline(always)]
    pub(super) fn get(&self, wanted: Key, bucket_idx: u32) -> Option<Found<'_>> {
        let bucket = &self.buckets[bucket_idx as usize];
        // Chosen without a branch: a wrong guess would wait for memory before the next piece is looked up.
        let entry = &bucket[usize::from(key(&bucket[1]).differs(wanted) == 0)];
        if key(entry).differs(wanted) != 0 { None } else { self.ids_of(entry) }
    }

    /// The ids of a piece that [`Table::get`] does not find.
    pub(super) fn get_rare(&mut self, wanted: Key, piece: &[u8]) -> Option<Found<'_>> {
        if wanted != Key::LONG {
            let entry = self.bring_home(wanted)?;
            self.ids_of(&entry)
        } else if piece.len() <= LONG {
            self.long.get(piece).and_then(|place| self.in_array(place))
        } else {
            None
        }
    }

    /// The entry of a short piece that is not in its bucket, from a neighbour. It changes places with an entry that is at
    /// home: the more frequent ones stay there.
    fn bring_home(&mut self, wanted: Key) -> Option<Entry> {
        let home = self.bucket_idx(wanted) as usize;
        for neighbour in neighbours(home).skip(1) {
            let bucket = &mut self.buckets[neighbour];
            if let Some(slot) = bucket.iter().position(|entry| key(entry) == wanted) {
                let entry = bucket[slot];
                let other = self.buckets[home][1];
                // Others are looked for along other ways, which need not lead here.
                if self.bucket_idx(key(&other)) as usize == home && n_ids(&entry) > 0 {
                    self.buckets[home][1] = entry;
                    self.buckets[neighbour][slot] = other;
                }
                return Some(entry);
            }
            if !is_full(bucket) {
                break;
            }
        }
        None
    }

    #[inline(always)]
    fn ids_of(&self, entry: &Entry) -> Option<Found<'_>> {
        match n_ids(entry) {
            n_ids if n_ids < IN_ARRAY => Some(Found::Few(ids(entry), n_ids as usize)),
            n_ids => self.in_array((ids(entry)[0], n_ids & !IN_ARRAY)),
        }
    }

    #[inline(always)]
    fn in_array(&self, (start, n_ids): (u32, u32)) -> Option<Found<'_>> {
        let ids = self.array.get(start as usize..)?;
        (ids.len() >= n_ids as usize + AT_ONCE).then_some(Found::Many(ids, n_ids as usize))
    }

    /// Remembers the ids of a piece that is not there.
    pub(super) fn insert(&mut self, key: Key, piece: &[u8], ids: &[u32]) {
        if piece.len() > LONG {
            return;
        }
        let has_room = self.array.len() + ids.len() <= MAX_IDS
            && self.long.len() < MAX_LONG
            && self.long.key_bytes() < MAX_LONG_BYTES;
        if !has_room {
            self.clear();
        }
        if key == Key::LONG {
            let place = self.store(ids);
            self.long.entry(piece, place);
        } else {
            self.insert_short(key, ids);
        }
    }

    fn insert_short(&mut self, key: Key, ids: &[u32]) {
        let mut few = [0; 3];
        let n_ids = match few.get_mut(..ids.len()) {
            Some(inline) => {
                inline.copy_from_slice(ids);
                ids.len() as u32
            }
            None => {
                few[0] = self.store(ids).0;
                ids.len() as u32 | IN_ARRAY
            }
        };
        self.n_inserted += 1;
        self.place(entry(key, few, n_ids));
    }

    /// Puts an entry into its bucket, or the first neighbour that has room. If none has, the older one at home goes.
    fn place(&mut self, entry: Entry) {
        let home = self.bucket_idx(key(&entry)) as usize;
        let idx = neighbours(home).find(|&idx| !is_full(&self.buckets[idx])).unwrap_or(home);
        let bucket = &mut self.buckets[idx];
        *bucket = [entry, bucket[0]];
    }

    /// Makes more buckets if half of the entries are taken: a full bucket costs a second look. Numbers of buckets then
    /// change.
    #[inline(always)]
    pub(super) fn grow_if_full(&mut self) {
        if self.n_inserted > self.buckets.len() && self.buckets.len() < MAX_BUCKETS {
            self.grow();
        }
    }

    #[cold]
    fn grow(&mut self) {
        let n_buckets = self.buckets.len() * 2;
        self.shift = u64::BITS - n_buckets.ilog2();
        let old = std::mem::replace(&mut self.buckets, vec![EMPTY; n_buckets]);
        for [newer, older] in old {
            for entry in [older, newer].into_iter().filter(|entry| n_ids(entry) > 0) {
                self.place(entry);
            }
        }
    }

    fn store(&mut self, ids: &[u32]) -> (u32, u32) {
        // At most MAX_IDS, far below u32::MAX.
        let start = self.array.len() - AT_ONCE;
        self.array.truncate(start);
        self.array.extend_from_slice(ids);
        self.array.extend([0; AT_ONCE]);
        (start as u32, ids.len() as u32)
    }

    #[cold]
    fn clear(&mut self) {
        self.buckets.fill(EMPTY);
        self.long.clear();
        self.array.truncate(AT_ONCE);
    }

    /// The bucket where the key belongs.
    #[inline(always)]
    pub(super) fn bucket_idx(&self, key: Key) -> u32 {
        (self.seeded.hash_pair(key.low, key.high) >> self.shift) as u32
    }

    /// Asks for a bucket, so that a later read finds it near.
    #[inline(always)]
    pub(super) fn prefetch(&self, bucket_idx: u32) {
        #[cfg(target_feature = "sse")]
        safe_arch::prefetch_t0(&self.buckets[bucket_idx as usize]);
        #[cfg(not(target_feature = "sse"))]
        std::hint::black_box(self.buckets[bucket_idx as usize][0][0]);
    }
}
