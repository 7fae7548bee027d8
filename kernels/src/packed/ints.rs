//! Weights of 4 to 8 bits with scales, as they lie in memory, and their product with rows of 8 bits.
//!
//! Eight rows of weights make a tile, in which a vector holds the same four numbers of each: one broadcast of four
//! numbers of the other factor then serves eight sums, and no vector is ever added up across. A tile is a sequence of
//! blocks of 32 numbers a row, in the order in which the product reads them:
//!
//! | what | bytes |
//! |---|---|
//! | where blocks share one: the header, scales of the eight rows, and minimums | see [`Scales`] |
//! | scales of the block | see [`Scales`] |
//! | numbers of 8 bits: 8 vectors | 256 |
//! | or the lower 4 bits: 4 vectors, the numbers 0 to 15 in the lower halves, 16 to 31 in the upper | 128 |
//! | with 5 bits, the highest: bit `v` of a byte is for vector `v` of the 8 | 32 |
//! | with 6 bits, the upper two: bits `2 (v % 4)` on of vector `v / 4` | 64 |
//!
//! A number stands for `scale * (q - 2^(bits - 1))`, or where there are minimums for `scale * q + min`. Sums over a block
//! are exact; they are scaled and added up in floats, in order of the blocks: here and in [`ints512`], which takes two tiles
//! at a time where a CPU has wider registers, to the same bits.

use std::ops::Range;

use super::input::{self, BLOCK};
use super::ints512;
use crate::matmul::MatMut;
use crate::simd::Simd;
use crate::simd::ints::{GROUP, Ints, ROWS, VECTORS, dispatch_ints};

/// How the numbers of a part of a matrix are scaled.
pub(super) trait Scales {
    /// Scales for 32 numbers of a row: one, or two for 16 each.
    const PER_BLOCK: usize;
    /// Whether a minimum is added.
    const HAS_MIN: bool;
    /// Whether scales are single precision, in the header.
    const IS_SINGLE: bool = false;
    /// Blocks under a header.
    const BLOCKS: usize;
    /// Bytes of a header.
    const HEADER_BYTES: usize;
    /// Bytes before each block.
    const BYTES: usize;

    /// The scales of a block (with one, twice) and its minimum, if it has one.
    ///
    /// # Safety
    /// `header` and `block` must be those of a tile of this kind.
    unsafe fn load<I: Ints>(header: *const u8, block: *const u8) -> ([I::Floats; 2], I::Floats);
}

/// Bytes of a half-precision number for each row.
const HALVES: usize = 2 * ROWS;

/// `[scale, f16; 8]` in each block.
pub(super) struct Half;

impl Scales for Half {
    const PER_BLOCK: usize = 1;
    const HAS_MIN: bool = false;
    const BLOCKS: usize = 1;
    const HEADER_BYTES: usize = 0;
    const BYTES: usize = HALVES;

    #[inline(always)]
    unsafe fn load<I: Ints>(_: *const u8, block: *const u8) -> ([I::Floats; 2], I::Floats) {
        // SAFETY: the caller promises a block.
        let scale = unsafe { I::halves(block) };
        ([scale; 2], I::Floats::splat(0.0))
    }
}

/// For `N` blocks `[scale, f32; 8]`.
pub(super) struct Single<const N: usize>;

impl<const N: usize> Scales for Single<N> {
    const PER_BLOCK: usize = 1;
    const HAS_MIN: bool = false;
    const IS_SINGLE: bool = true;
    const BLOCKS: usize = N;
    const HEADER_BYTES: usize = 4 * ROWS;
    const BYTES: usize = 0;

    #[inline(always)]
    unsafe fn load<I: Ints>(header: *const u8, _: *const u8) -> ([I::Floats; 2], I::Floats) {
        // SAFETY: the caller promises a header, which is eight floats; they are loaded without alignment.
        let scale = unsafe { I::Floats::load_ptr(header.cast()) };
        ([scale; 2], I::Floats::splat(0.0))
    }
}

/// `[scale, f16; 8]`, `[min, f16; 8]` in each block.
pub(super) struct HalfAndMin;

impl Scales for HalfAndMin {
    const PER_BLOCK: usize = 1;
    const HAS_MIN: bool = true;
    const BLOCKS: usize = 1;
    const HEADER_BYTES: usize = 0;
    const BYTES: usize = 2 * HALVES;

    #[inline(always)]
    unsafe fn load<I: Ints>(_: *const u8, block: *const u8) -> ([I::Floats; 2], I::Floats) {
        // SAFETY: the caller promises a block.
        unsafe { ([I::halves(block); 2], I::halves(block.add(HALVES))) }
    }
}

/// For 8 blocks `[scale, f16; 8]`, `[min, f16; 8]`; in each block bytes to multiply these by: `[s; 8]`, `[m; 8]`. The
/// minimum is subtracted.
pub(super) struct BytesAndMin;

impl Scales for BytesAndMin {
    const PER_BLOCK: usize = 1;
    const HAS_MIN: bool = true;
    const BLOCKS: usize = 8;
    const HEADER_BYTES: usize = 2 * HALVES;
    const BYTES: usize = 2 * ROWS;

    #[inline(always)]
    unsafe fn load<I: Ints>(header: *const u8, block: *const u8) -> ([I::Floats; 2], I::Floats) {
        // SAFETY: the caller promises a header and a block.
        unsafe {
            let scale = I::halves(header) * I::unsigned(block);
            let min = I::halves(header.add(HALVES)) * I::unsigned(block.add(ROWS));
            ([scale; 2], I::Floats::splat(0.0) - min)
        }
    }
}

/// For 8 blocks `[scale, f16; 8]`; in each block bytes with a sign to multiply it by, `[s; 8]` for the first 16 numbers
/// and `[s; 8]` for the last 16.
pub(super) struct BytesFor16;

impl Scales for BytesFor16 {
    const PER_BLOCK: usize = 2;
    const HAS_MIN: bool = false;
    const BLOCKS: usize = 8;
    const HEADER_BYTES: usize = HALVES;
    const BYTES: usize = 2 * ROWS;

    #[inline(always)]
    unsafe fn load<I: Ints>(header: *const u8, block: *const u8) -> ([I::Floats; 2], I::Floats) {
        // SAFETY: the caller promises a header and a block.
        unsafe {
            let scale = I::halves(header);
            let scales = [scale * I::signed(block), scale * I::signed(block.add(ROWS))];
            (scales, I::Floats::splat(0.0))
        }
    }
}

/// How numbers of one row are scaled that share a header, or 32 where there is none, before they are packed.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The scale, a little-endian `f16`.
    pub scale: [u8; 2],
    /// The scale of kinds that have it in single precision.
    pub single: f32,
    /// The minimum, a little-endian `f16`.
    pub min: [u8; 2],
    /// What the scale is multiplied by for each 16 numbers; where it is one for 32, that of the first 16 counts.
    pub scales: [u8; 16],
    /// What the minimum is multiplied by for each 32 numbers.
    pub mins: [u8; 8],
}

impl Group {
    /// The most numbers under one header.
    pub const MAX: usize = 256;

    /// Zeros.
    pub const ZERO: Self = Self { scale: [0; 2], single: 0.0, min: [0; 2], scales: [0; 16], mins: [0; 8] };
}

/// What a product needs to know of some tiles and the rows to multiply.
pub(super) struct Job<'a> {
    /// Whole tiles.
    pub tiles: &'a [u8],
    /// Blocks of 32 numbers in a row.
    pub n_blocks: usize,
    /// The other factor, rounded.
    pub x: &'a input::Input,
    /// Rows of `x` to multiply: whole bands.
    pub rows: Range<usize>,
}

/// Rows of the other factor that meet a tile in one go: a block of weights is unpacked once for all of them, and their blocks
/// (with 2048 columns 384 KiB) stay in a core's caches until the next tile.
const ROWS_AT_ONCE: usize = 128;

/// Bytes of a block, scales included.
pub(super) const fn block_bytes<S: Scales>(bits: u32) -> usize {
    S::BYTES + bits as usize * BLOCK * ROWS / 8
}

/// Bytes of a tile of rows of so many blocks.
pub(super) const fn tile_bytes<S: Scales>(bits: u32, n_blocks: usize) -> usize {
    n_blocks * block_bytes::<S>(bits) + n_blocks / S::BLOCKS * S::HEADER_BYTES
}

/// The numbers of a block: vector `v` has the numbers `4 v` to `4 v + 3` of each row.
///
/// # Safety
/// `src` must be valid for reading the numbers of a block.
#[inline(always)]
unsafe fn numbers<I: Ints, const BITS: u32>(src: *const u8) -> [I::Bytes; VECTORS] {
    // SAFETY: the caller promises `BITS` vectors.
    unsafe {
        let at = |v: usize| src.wrapping_add(v * VECTOR);
        let b = [I::bytes(at(0)), I::bytes(at(1)), I::bytes(at(2)), I::bytes(at(3))];
        if BITS == 8 {
            let c = [I::bytes(at(4)), I::bytes(at(5)), I::bytes(at(6)), I::bytes(at(7))];
            return [b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3]];
        }
        let low = [I::low_half(b[0]), I::low_half(b[1]), I::low_half(b[2]), I::low_half(b[3])];
        let high = [I::high_half(b[0]), I::high_half(b[1]), I::high_half(b[2]), I::high_half(b[3])];
        match BITS {
            4 => [low[0], low[1], low[2], low[3], high[0], high[1], high[2], high[3]],
            5 => {
                let bits = I::bytes(at(4));
                [
                    I::add_high_bits::<1, 0>(low[0], bits),
                    I::add_high_bits::<1, 1>(low[1], bits),
                    I::add_high_bits::<1, 2>(low[2], bits),
                    I::add_high_bits::<1, 3>(low[3], bits),
                    I::add_high_bits::<1, 4>(high[0], bits),
                    I::add_high_bits::<1, 5>(high[1], bits),
                    I::add_high_bits::<1, 6>(high[2], bits),
                    I::add_high_bits::<1, 7>(high[3], bits),
                ]
            }
            _ => {
                let bits = [I::bytes(at(4)), I::bytes(at(5))];
                [
                    I::add_high_bits::<2, 0>(low[0], bits[0]),
                    I::add_high_bits::<2, 2>(low[1], bits[0]),
                    I::add_high_bits::<2, 4>(low[2], bits[0]),
                    I::add_high_bits::<2, 6>(low[3], bits[0]),
                    I::add_high_bits::<2, 0>(high[0], bits[1]),
                    I::add_high_bits::<2, 2>(high[1], bits[1]),
                    I::add_high_bits::<2, 4>(high[2], bits[1]),
                    I::add_high_bits::<2, 6>(high[3], bits[1]),
                ]
            }
        }
    }
}

/// A block of a tile, unpacked.
pub(super) struct Unpacked<I: Ints> {
    pub q: [I::Bytes; VECTORS],
    pub scales: [I::Floats; 2],
    /// What the sum of the other factor is multiplied by, where there are minimums.
    pub min: I::Floats,
}

impl<I: Ints> Unpacked<I> {
    /// # Safety
    /// `header` and `block` must be those of a tile of this kind.
    #[inline(always)]
    pub unsafe fn new<S: Scales, const BITS: u32>(header: *const u8, block: *const u8) -> Self {
        // SAFETY: the caller promises a whole block.
        unsafe {
            let (scales, min) = S::load::<I>(header, block);
            Self { q: numbers::<I, BITS>(block.add(S::BYTES)), scales, min }
        }
    }

    /// Adds the products with a block of the other factor to the sums of the eight rows.
    #[inline(always)]
    fn add<S: Scales, const BITS: u32>(&self, x: &input::Block, acc: I::Floats) -> I::Floats {
        let acc = self.add_products::<S, BITS>(x, acc);
        if S::HAS_MIN { self.min.mul_add(I::Floats::splat(x.total), acc) } else { acc }
    }

    /// The same without minimums.
    #[inline(always)]
    fn add_products<S: Scales, const BITS: u32>(&self, x: &input::Block, acc: I::Floats) -> I::Floats {
        let scale = I::Floats::splat(x.scale);
        // Without minimums, numbers are counted from a zero.
        let zero = if S::HAS_MIN { 0 } else { 1 << (BITS - 1) };
        let [all, first] = x.negated_sums.map(|sum| zero * sum);
        // SAFETY: eight vectors of four numbers meet the 32 of `x`.
        unsafe {
            if S::PER_BLOCK == 1 {
                let sums = I::dot_32::<BITS>(self.q, x.q.as_ptr(), all);
                return I::to_floats(sums).mul_add(self.scales[0] * scale, acc);
            }
            let [a, b, c, d, e, f, g, h] = self.q;
            let sums = I::dot_16::<BITS>([a, b, c, d], x.q.as_ptr(), first);
            let acc = I::to_floats(sums).mul_add(self.scales[0] * scale, acc);
            let last = x.q.as_ptr().add(BLOCK / 2);
            let sums = I::dot_16::<BITS>([e, f, g, h], last, all - first);
            I::to_floats(sums).mul_add(self.scales[1] * scale, acc)
        }
    }
}

/// How far ahead of a block memory is asked for, in bytes: the work on a block keeps the processor from looking that far by
/// itself.
pub(super) const AHEAD: usize = 3072;

/// Asks for what lies so far ahead of a block of `n_bytes`.
#[inline(always)]
pub(super) fn prefetch<S: Simd>(block: *const u8, n_bytes: usize, ahead: usize) {
    for line in (0..n_bytes).step_by(64) {
        S::prefetch(block.wrapping_add(ahead + line).cast());
    }
}

/// Calls `$use` with every unpacked block of a tile and its index. A macro, since a closure might not be inlined.
macro_rules! each_block {
    ($I:ident, $S:ident, $BITS:ident, $tile:expr, $n_blocks:expr, |$block:ident, $idx:ident| $use:expr) => {
        let mut at: *const u8 = $tile;
        for first in (0..$n_blocks).step_by($S::BLOCKS) {
            let header = at;
            at = at.wrapping_add($S::HEADER_BYTES);
            for $idx in first..first + $S::BLOCKS {
                prefetch::<$I::Floats>(at, block_bytes::<$S>($BITS), AHEAD);
                // SAFETY: a tile has `n_blocks` blocks, a multiple of those under a header.
                let $block = unsafe { Unpacked::<$I>::new::<$S, $BITS>(header, at) };
                at = at.wrapping_add(block_bytes::<$S>($BITS));
                $use
            }
        }
    };
}

/// Of so many rows, more than none, those of the next band (each of the rest has about as many), and how many these are with
/// rows of zeros: there are none.
pub(super) fn band_of(n_rows: usize) -> (usize, usize) {
    let n = n_rows.div_ceil(n_rows.div_ceil(ROWS_AT_ONCE));
    (n, n)
}

#[inline(always)]
fn multiply_impl<I: Ints, S: Scales, const BITS: u32>(job: &Job, y: &mut MatMut) {
    let Job { tiles, n_blocks, x, ref rows } = *job;
    let tile_bytes = tile_bytes::<S>(BITS, n_blocks);
    assert!(n_blocks.is_multiple_of(S::BLOCKS) && !x.is_wide);
    assert!(y.rows() == rows.len() && tiles.len() == y.cols().div_ceil(ROWS) * tile_bytes);
    // Sums of blocks and of what these leave, which are added up in the end.
    let mut acc = [[0.0; ROWS]; ROWS_AT_ONCE];
    let mut acc_rests = [[0.0; ROWS]; ROWS_AT_ONCE];
    for (band, x) in x.bands(rows, n_blocks) {
        for (tile_idx, tile) in tiles.chunks_exact(tile_bytes).enumerate() {
            let mut rests = band.rests.iter().peekable();
            if band.n == 1 {
                // In registers all the way.
                let mut sums = I::Floats::splat(0.0);
                let mut sums_of_rests = I::Floats::splat(0.0);
                each_block!(I, S, BITS, tile.as_ptr(), n_blocks, |block, idx| {
                    sums = block.add::<S, BITS>(&x[idx], sums);
                    while let Some(rest) = rests.next_if(|rest| rest.idx == idx) {
                        sums_of_rests = block.add_products::<S, BITS>(&rest.block, sums_of_rests);
                    }
                });
                (sums + sums_of_rests).store(&mut acc[0]);
            } else {
                acc[..band.n].fill([0.0; ROWS]);
                acc_rests[..band.n].fill([0.0; ROWS]);
                each_block!(I, S, BITS, tile.as_ptr(), n_blocks, |block, idx| {
                    for (x, acc) in x[idx * band.n..][..band.n].iter().zip(&mut acc) {
                        block.add::<S, BITS>(x, I::Floats::load(acc)).store(acc);
                    }
                    while let Some(rest) = rests.next_if(|rest| rest.idx == idx) {
                        let acc = &mut acc_rests[rest.row];
                        block.add_products::<S, BITS>(&rest.block, I::Floats::load(acc)).store(acc);
                    }
                });
                for (acc, rest) in acc[..band.n].iter_mut().zip(&acc_rests) {
                    (I::Floats::load(acc) + I::Floats::load(rest)).store(acc);
                }
            }
            let column = tile_idx * ROWS;
            let n = ROWS.min(y.cols() - column);
            for (row, acc) in acc[..band.n].iter().enumerate() {
                y.row(band.first - rows.start + row)[column..][..n].copy_from_slice(&acc[..n]);
            }
        }
    }
}

dispatch_ints! {
    [S: Scales, const BITS: u32] fn multiply_eight(job: &Job, y: &mut MatMut) = multiply_impl::<_, S, BITS>
}

/// Every row of `x` times every row of the tiles; a last tile may have rows that `y` has no columns for.
pub(super) fn multiply<S: Scales, const BITS: u32>(job: &Job, y: &mut MatMut) {
    match job.x.is_wide {
        true => ints512::multiply::<S, BITS>(job, y),
        false => multiply_eight::<S, BITS>(job, y),
    }
}

/// Packs eight rows of numbers, a byte each, and their groups, row after row of either.
pub(super) fn pack_tile<S: Scales>(bits: u32, q: &[u8], groups: &[Group], tile: &mut [u8]) {
    let (n, n_in) = (groups.len() / ROWS, q.len() / ROWS);
    let at = |row: usize, group: usize| &groups[row * n + group];
    let mut rest = tile;
    let mut next = |len: usize| {
        let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
        rest = after;
        part
    };
    for g in 0..n {
        let halves = |of: fn(&Group) -> [u8; 2], out: &mut [u8]| {
            out.as_chunks_mut::<2>().0.iter_mut().enumerate().for_each(|(row, out)| *out = of(at(row, g)));
        };
        let header = next(S::HEADER_BYTES);
        if S::IS_SINGLE {
            let scales = header.as_chunks_mut::<4>().0.iter_mut().enumerate();
            scales.for_each(|(row, out)| *out = at(row, g).single.to_le_bytes());
        } else if S::HEADER_BYTES > 0 {
            halves(|group| group.scale, &mut header[..HALVES]);
            if S::HAS_MIN {
                halves(|group| group.min, &mut header[HALVES..]);
            }
        }
        for b in 0..S::BLOCKS {
            let scales = next(S::BYTES);
            if S::HEADER_BYTES == 0 {
                halves(|group| group.scale, &mut scales[..HALVES]);
                if S::HAS_MIN {
                    halves(|group| group.min, &mut scales[HALVES..]);
                }
            } else if !S::IS_SINGLE {
                for row in 0..ROWS {
                    scales[row] = at(row, g).scales[2 * b];
                    scales[ROWS + row] =
                        if S::HAS_MIN { at(row, g).mins[b] } else { at(row, g).scales[2 * b + 1] };
                }
            }
            let numbers = next(bits as usize * BLOCK);
            for row in 0..ROWS {
                let first = row * n_in + (g * S::BLOCKS + b) * BLOCK;
                pack_row(bits, q[first..].first_chunk().expect("whole blocks"), row, numbers);
            }
        }
    }
}

/// Bytes of a vector: four numbers of each of eight rows.
const VECTOR: usize = ROWS * GROUP;

/// Writes the numbers of a row of a block to their places among those of eight rows.
fn pack_row(bits: u32, q: &[u8; BLOCK], row: usize, numbers: &mut [u8]) {
    let q = q.as_chunks::<GROUP>().0;
    let mut vectors = numbers.chunks_exact_mut(VECTOR).map(|vector| &mut vector[row * GROUP..][..GROUP]);
    if bits == 8 {
        vectors.zip(q).for_each(|(lane, q)| lane.copy_from_slice(q));
        return;
    }
    let (low, high) = q.split_at(VECTORS / 2);
    for ((lane, low), high) in vectors.by_ref().take(VECTORS / 2).zip(low).zip(high) {
        for j in 0..GROUP {
            lane[j] = low[j] & 15 | high[j] << 4;
        }
    }
    // What is left is for the bits above the fourth: with 5 bits one vector, with 6 two.
    let width = bits as usize - 4;
    for (lane, q) in vectors.zip(q.chunks_exact(VECTORS / width.max(1))) {
        for j in 0..GROUP {
            lane[j] = q.iter().enumerate().fold(0, |byte, (v, q)| byte | q[j] >> 4 << (v * width));
        }
    }
}

/// Number `k` of a row of a block.
fn number(bits: u32, numbers: &[u8], row: usize, k: usize) -> u8 {
    let (v, lane) = (k / GROUP, row * GROUP + k % GROUP);
    if bits == 8 {
        return numbers[v * VECTOR + lane];
    }
    let low = numbers[v % 4 * VECTOR + lane] >> (v / 4 * 4) & 15;
    match bits {
        5 => low | (numbers[4 * VECTOR + lane] >> v & 1) << 4,
        6 => low | (numbers[(4 + v / 4) * VECTOR + lane] >> (v % 4 * 2) & 3) << 4,
        _ => low,
    }
}

/// The numbers of one row of a tile.
pub(super) fn unpack_row<S: Scales>(bits: u32, tile: &[u8], row: usize, out: &mut [f32]) {
    let half_at = |bytes: &[u8]| half::f16::from_le_bytes([bytes[2 * row], bytes[2 * row + 1]]).to_f32();
    let mut rest = tile;
    for out in out.chunks_exact_mut(S::BLOCKS * BLOCK) {
        let (header, blocks) = rest.split_at(S::HEADER_BYTES);
        let (blocks, after) = blocks.split_at(S::BLOCKS * block_bytes::<S>(bits));
        rest = after;
        for (block, out) in blocks.chunks_exact(block_bytes::<S>(bits)).zip(out.chunks_exact_mut(BLOCK)) {
            let (scales, numbers) = block.split_at(S::BYTES);
            let halves = if S::HEADER_BYTES == 0 { scales } else { header };
            let scale =
                if S::IS_SINGLE { f32::from_le_bytes(header.as_chunks().0[row]) } else { half_at(halves) };
            let min = if S::HAS_MIN { half_at(&halves[HALVES..]) } else { 0.0 };
            let (scales, min) = match S::HAS_MIN {
                _ if S::IS_SINGLE || S::HEADER_BYTES == 0 => ([scale; 2], min),
                true => ([scale * f32::from(scales[row]); 2], -(min * f32::from(scales[ROWS + row]))),
                false => ([row, ROWS + row].map(|at| scale * f32::from(scales[at] as i8)), 0.0),
            };
            for (k, out) in out.iter_mut().enumerate() {
                let q = number(bits, numbers, row, k);
                let scale = scales[k / (BLOCK / 2)];
                *out = if S::HAS_MIN {
                    scale * f32::from(q) + min
                } else {
                    scale * (f32::from(q) - f32::from(1u8 << (bits - 1)))
                };
            }
        }
    }
}
