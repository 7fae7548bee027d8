//! Two hashes: a fast seeded one for tables in memory, and a stable one for content.
//!
//! Tables are keyed by what files and users supply, so [`Seeded`] takes a random seed per process: nobody can choose
//! keys that collide. It folds a 128-bit product, a few instructions where the standard library's SipHash takes tens.
//! [`Fnv`] never changes, because its results are stored in files.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

/// Odd constant with well-spread bits (the golden ratio's fraction).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Drawn once per process from the standard library's random keys.
static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(MULTIPLIER));

/// Builds hashers that share the process's random seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seeded(u64);

impl Default for Seeded {
    fn default() -> Self {
        Self(*SEED)
    }
}

impl BuildHasher for Seeded {
    type Hasher = FoldHasher;

    #[inline]
    fn build_hasher(&self) -> FoldHasher {
        FoldHasher(self.0)
    }
}

impl Seeded {
    /// Hashes a byte string.
    #[inline]
    pub(crate) fn hash_bytes(self, bytes: &[u8]) -> u64 {
        let mut hasher = self.build_hasher();
        hasher.write(bytes);
        hasher.finish()
    }

    /// Hashes two integers by one multiplication; the high bits are the best.
    #[inline(always)]
    pub(crate) fn hash_pair(self, low: u64, high: u64) -> u64 {
        let product = u128::from(low ^ self.0) * u128::from(high ^ self.0.rotate_left(32));
        (product >> 64) as u64 ^ product as u64
    }
}

/// Multiplies and folds eight bytes at a time.
#[derive(Debug)]
pub(crate) struct FoldHasher(u64);

impl Hasher for FoldHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.write_u64(u64::from_le_bytes(chunk.try_into().expect("chunks are 8 bytes")));
        }
        let mut tail = [0; 8];
        tail[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        // The length goes in too, so that trailing zero bytes count.
        self.write_u64(u64::from_le_bytes(tail) ^ (bytes.len() as u64).rotate_right(8));
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.0 ^ value) * u128::from(MULTIPLIER);
        // The middle of the product depends on all bits of the value. Both halves meet there at the lowest bits, which
        // choose the slot of a table.
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }

    #[inline]
    fn finish(&self) -> u64 {
        // Tables use the lower bits, and a product's lower bits depend on the lower bits of its factors alone: without
        // this, keys that start alike collide.
        self.0 ^ self.0 >> 32
    }
}

/// FNV-1a, 64 bits: the same on every machine and in every version.
pub(crate) struct Fnv(u64);

impl Fnv {
    /// Starts from the published offset basis.
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Takes in a length and then the bytes, so that two lists of strings never look alike.
    pub(crate) fn string(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.bytes(bytes);
    }

    /// Takes in a number.
    pub(crate) fn number(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// The hash of all that was taken in.
    pub(crate) fn finish(&self) -> u64 {
        self.0
    }

    /// Takes in bytes alone.
    #[cfg(test)]
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes(bytes);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_gives_the_published_value() {
        let mut fnv = Fnv::new();
        fnv.bytes(b"foobar");
        assert_eq!(fnv.finish(), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn lengths_and_zero_bytes_count() {
        let seeded = Seeded::default();
        let hashes: Vec<u64> = (0..20).map(|len| seeded.hash_bytes(&vec![0; len])).collect();
        for (i, a) in hashes.iter().enumerate() {
            assert!(hashes[..i].iter().all(|b| a != b), "length {i}");
        }
    }
}
