//! Weights that stay floats, as they lie in memory, and their product with rows of floats.
//!
//! Sixteen rows make a tile, `[k][16]`: what the register tile of a large product reads, and what makes a product with one
//! row a plain stream. bfloat16 lies in pairs along `k`, `[k / 2][16][2]`, as the dot product of AVX-512 BF16 reads it: where
//! a CPU has that, rows meet such weights rounded to bfloat16 themselves (`matmul::bf16`). Everything else becomes single
//! precision in registers, which is exact, so results are bit for bit those of [`matmul`](crate::matmul::matmul) with the
//! same numbers as `f32`.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use crate::matmul::blocked;
use crate::matmul::{Mat, MatMut, Start};
use crate::simd::Simd;
use crate::simd::ints::{Ints, dispatch_ints};

/// Rows of a tile: the columns of a panel of [`blocked`].
pub(super) const TILE: usize = 16;

/// How the numbers of a part of a matrix are stored.
pub(super) trait Element {
    /// Bytes of a number.
    const BYTES: usize;

    /// Numbers of a row that lie side by side, of which the last may be missing at the end.
    const STEP: usize = 1;

    /// Number `k` of eight rows of a tile, from row `8 half` on, where `odd` is `k % STEP`.
    ///
    /// # Safety
    /// `tile` must be valid for reading a tile with such a number.
    unsafe fn load<I: Ints>(tile: *const u8, k: usize, odd: usize, half: usize) -> I::Floats;

    /// One number, from its bytes.
    fn get(bytes: &[u8]) -> f32;

    /// A tile that already is single precision.
    fn floats(_: &[u8]) -> Option<&[f32]> {
        None
    }
}

/// Where number `k` of row `row` lies in a tile.
fn offset<E: Element>(k: usize, row: usize) -> usize {
    ((k / E::STEP * TILE + row) * E::STEP + k % E::STEP) * E::BYTES
}

/// Bytes of a tile of rows of so many numbers.
pub(super) const fn tile_bytes<E: Element>(n_in: usize) -> usize {
    n_in.next_multiple_of(E::STEP) * TILE * E::BYTES
}

/// Single precision.
pub(super) struct F32;

impl Element for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<I: Ints>(tile: *const u8, k: usize, _: usize, half: usize) -> I::Floats {
        // SAFETY: the caller promises a tile; floats are loaded without alignment.
        unsafe { I::Floats::load_ptr(tile.add((k * TILE + half * LANES) * Self::BYTES).cast()) }
    }

    fn get(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn floats(tile: &[u8]) -> Option<&[f32]> {
        // SAFETY: any bytes are floats, and these lie as in memory where such a number is little-endian.
        match unsafe { tile.align_to() } {
            ([], floats, []) if cfg!(target_endian = "little") => Some(floats),
            _ => None,
        }
    }
}

/// IEEE half precision.
pub(super) struct F16;

impl Element for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<I: Ints>(tile: *const u8, k: usize, _: usize, half: usize) -> I::Floats {
        // SAFETY: the caller promises a tile.
        unsafe { I::halves(tile.add((k * TILE + half * LANES) * Self::BYTES)) }
    }

    fn get(bytes: &[u8]) -> f32 {
        half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

/// The upper half of single precision.
pub(super) struct BF16;

impl Element for BF16 {
    const BYTES: usize = 2;
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn load<I: Ints>(tile: *const u8, k: usize, odd: usize, half: usize) -> I::Floats {
        // SAFETY: the caller promises a tile, which is of whole pairs.
        unsafe {
            let pairs = tile.add(((k - odd) * TILE + half * LANES * Self::STEP) * Self::BYTES);
            if odd == 0 { I::of_pairs::<0>(pairs) } else { I::of_pairs::<1>(pairs) }
        }
    }

    fn get(bytes: &[u8]) -> f32 {
        half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

/// Rows of `x` up to which each tile is streamed, from the second time on out of the core's cache; more rows go by blocks.
const MAX_STREAMED: usize = 24;

/// Rows whose sums fit into registers: with a tile, of which one step is loaded, and a number of `x`.
const MAX_AT_ONCE: usize = 6;

/// Lanes of the vectors here, on every instruction set.
const LANES: usize = 8;

/// `y = x[rows] Wᵀ` for the rows of whole tiles; `y` has as many columns as there are rows of weights, and the last tile may
/// have some that do not exist. `panels` are those of `x`, of whose [`unit`] the first of `rows` is a multiple.
pub(super) fn multiply<E: Element>(
    tiles: &[u8],
    x: Mat,
    panels: &Panels,
    rows: Range<usize>,
    y: &mut MatMut,
) {
    let (m, n) = (x.rows(), y.cols());
    assert!(rows.len() == y.rows() && tiles.len() == n.div_ceil(TILE) * tile_bytes::<E>(x.cols()));
    if m > MAX_STREAMED {
        return by_blocks::<E>(tiles, x, panels, rows, y);
    }
    assert!(rows == (0..m));
    match m {
        0 => {}
        1 => stream::<E, 1, 2>(tiles, x, y),
        2 => stream::<E, 2, 2>(tiles, x, y),
        _ => {
            // Few in the last group would leave the processor waiting for their sums.
            let n_groups = m.div_ceil(MAX_AT_ONCE);
            for (tile_idx, tile) in tiles.chunks_exact(tile_bytes::<E>(x.cols())).enumerate() {
                let columns = TILE.min(n - tile_idx * TILE);
                for group in 0..n_groups {
                    let rows = m * group / n_groups..m * (group + 1) / n_groups;
                    let x = x.sub_rows(rows.start, rows.len());
                    let mut y = y.sub_rows(rows.start, rows.len());
                    let mut y = y.sub_cols(tile_idx * TILE, columns);
                    match rows.len() {
                        3 => stream::<E, 3, 1>(tile, x, &mut y),
                        4 => stream::<E, 4, 1>(tile, x, &mut y),
                        5 => stream::<E, 5, 1>(tile, x, &mut y),
                        _ => stream::<E, MAX_AT_ONCE, 1>(tile, x, &mut y),
                    }
                }
            }
        }
    }
}

dispatch_ints!([E: Element, const M: usize, const T: usize] fn stream(tiles: &[u8], x: Mat, y: &mut MatMut) = stream_impl::<_, E, M, T>);

/// `M` rows of `x` against `T` tiles at a time, with all sums in registers.
#[inline(always)]
fn stream_impl<I: Ints, E: Element, const M: usize, const T: usize>(tiles: &[u8], x: Mat, y: &mut MatMut) {
    let (depth, n) = (x.cols(), y.cols());
    let tile_bytes = tile_bytes::<E>(depth);
    let rows = x.starts();
    for first in (0..n).step_by(TILE * T) {
        let there = (n - first).div_ceil(TILE).min(T);
        let mut acc = [[[I::Floats::splat(0.0); 2]; T]; M];
        // Tiles past the last are the last again; what they give is not stored.
        let mut at = [tiles.as_ptr(); T];
        for (t, at) in at.iter_mut().enumerate() {
            *at = tiles[(first / TILE + t.min(there - 1)) * tile_bytes..].as_ptr();
        }
        assert!(x.col_stride() == 1 && x.rows() == M);
        for first in (0..depth).step_by(E::STEP) {
            // The last may be alone.
            for odd in 0..E::STEP.min(depth - first) {
                let k = first + odd;
                for t in 0..T {
                    // SAFETY: a tile has `depth` times 16 numbers, and a row of `x` `depth` contiguous ones.
                    unsafe {
                        let w = [E::load::<I>(at[t], k, odd, 0), E::load::<I>(at[t], k, odd, 1)];
                        for (row, acc) in acc.iter_mut().enumerate() {
                            let x = I::Floats::splat(*rows[row].add(k));
                            acc[t] = [x.mul_add(w[0], acc[t][0]), x.mul_add(w[1], acc[t][1])];
                        }
                    }
                }
            }
        }
        for (row, acc) in acc.iter().enumerate() {
            for (t, acc) in acc.iter().take(there).enumerate() {
                let mut sums = [0.0; TILE];
                acc[0].store(&mut sums);
                acc[1].store(&mut sums[LANES..]);
                let column = first + t * TILE;
                let n = TILE.min(n - column);
                y.row(row)[column..][..n].copy_from_slice(&sums[..n]);
            }
        }
    }
}

/// Tiles that are multiplied with all rows before the next: 256 columns.
const TILES_AT_ONCE: usize = 16;

/// The most rows that are packed together: with the depth of a block 120 KiB, of which a second-level cache has room for
/// several.
const MAX_UNIT: usize = 120;

/// Rows that are packed and multiplied together, of `m`; a task's first row is a multiple of it.
pub(super) fn unit(m: usize) -> usize {
    match m.div_ceil(MAX_UNIT) {
        _ if m <= MAX_STREAMED => m,
        n => m.div_ceil(n).next_multiple_of(2 * blocked::TILE_ROWS),
    }
}

/// Numbers below which rayon's threads are not woken: on one thread they take some 20 µs.
const PARALLEL: usize = 1 << 16;

/// The rows of the other factor in the order of the large product, for all tasks that have a part of it.
#[derive(Default)]
pub(super) struct Panels {
    /// For each block of the depth the rows, a [`unit`] in a chunk.
    chunks: Vec<f32>,
}

/// Floats that are kept between products: 64 MiB, for 512 rows of 27,000 numbers.
const MAX_KEPT: usize = 16 << 20;

/// Floats of a chunk of rows of `depth` numbers.
fn chunk_len(depth: usize) -> usize {
    blocked::packed_a_len(MAX_UNIT, blocked::block_k(depth))
}

impl Panels {
    /// Packs rows that are too many to be streamed; fewer are read where they lie.
    pub fn pack(&mut self, x: Mat) {
        let (m, depth) = (x.rows(), x.cols());
        if m <= MAX_STREAMED {
            return;
        }
        let unit = unit(m);
        let n_units = m.div_ceil(unit);
        let (block_k, chunk_len) = (blocked::block_k(depth), chunk_len(depth));
        let len = depth.div_ceil(block_k) * n_units * chunk_len;
        blocked::grow(&mut self.chunks, len);
        let pack = |(i, chunk): (usize, &mut [f32])| {
            let (first, row) = (i / n_units * block_k, i % n_units * unit);
            let x = x.sub_cols(first, block_k.min(depth - first));
            blocked::pack_a(x.sub_rows(row, unit.min(m - row)), chunk);
        };
        let chunks = &mut self.chunks[..len];
        match m * depth < PARALLEL {
            true => chunks.chunks_exact_mut(chunk_len).enumerate().for_each(pack),
            false => chunks.par_chunks_exact_mut(chunk_len).enumerate().for_each(pack),
        }
    }

    /// Gives much memory back; less of it is kept for the next product.
    pub fn trim(&mut self) {
        if self.chunks.capacity() > MAX_KEPT {
            self.chunks = Vec::new();
        }
    }

    /// The unit of rows that `row`, of `m`, is in, within block `idx` of the depth.
    fn chunk(&self, [m, depth]: [usize; 2], idx: usize, row: usize) -> &[f32] {
        let (n_units, len) = (m.div_ceil(unit(m)), chunk_len(depth));
        &self.chunks[(idx * n_units + row / unit(m)) * len..][..len]
    }
}

thread_local! {
    /// Tiles in single precision; borrowed in `by_blocks` alone, which runs nothing else.
    static WIDENED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `x` tells of the shape, `panels` what is in it. The part of `y` that is worked on stays in a second-level cache.
fn by_blocks<E: Element>(tiles: &[u8], x: Mat, panels: &Panels, rows: Range<usize>, y: &mut MatMut) {
    let (m, depth, n) = (x.rows(), x.cols(), y.cols());
    let (tile_bytes, max_k) = (tile_bytes::<E>(depth), blocked::block_k(depth));
    WIDENED.with_borrow_mut(|widened| {
        for first in (0..n).step_by(TILES_AT_ONCE * TILE) {
            let mut y = y.sub_cols(first, (n - first).min(TILES_AT_ONCE * TILE));
            let tiles = &tiles[first / TILE * tile_bytes..][..y.cols().div_ceil(TILE) * tile_bytes];
            // Weights that are read where they lie meet one unit at a time, whose part of `y` stays in the cache.
            let at_once = if E::floats(tiles).is_some() { unit(m) } else { rows.len().max(1) };
            for first in rows.clone().step_by(at_once) {
                let group = first..rows.end.min(first + at_once);
                for (idx, p) in (0..depth).step_by(max_k).enumerate() {
                    let block_k = max_k.min(depth - p);
                    let start = if p == 0 { Start::Zero } else { Start::C };
                    let weights = match E::floats(tiles) {
                        Some(tiles) => blocked::Panels { data: &tiles[p * TILE..], stride: depth * TILE },
                        None => {
                            blocked::grow(widened, TILES_AT_ONCE * TILE * max_k);
                            let stride = block_k * TILE;
                            for (tile, out) in
                                tiles.chunks_exact(tile_bytes).zip(widened.chunks_exact_mut(stride))
                            {
                                let part = &tile[p * TILE * E::BYTES..][..self::tile_bytes::<E>(block_k)];
                                widen::<E>(part, out);
                            }
                            blocked::Panels { data: widened, stride }
                        }
                    };
                    for row in group.clone().step_by(unit(m)) {
                        let y = y.sub_rows(row - rows.start, unit(m).min(group.end - row));
                        let rows = panels.chunk([m, depth], idx, row);
                        blocked::multiply_block(rows, weights, block_k, y, start);
                    }
                }
            }
        }
    });
}

dispatch_ints!([E: Element] fn widen(numbers: &[u8], out: &mut [f32]) = widen_impl::<_, E>);

#[inline(always)]
fn widen_impl<I: Ints, E: Element>(part: &[u8], out: &mut [f32]) {
    let depth = out.len() / TILE;
    assert!(part.len() == tile_bytes::<E>(depth));
    for first in (0..depth).step_by(E::STEP) {
        for odd in 0..E::STEP.min(depth - first) {
            let k = first + odd;
            for half in 0..TILE / LANES {
                // SAFETY: the assertion above.
                unsafe { E::load::<I>(part.as_ptr(), k, odd, half) }
                    .store(&mut out[k * TILE + half * LANES..]);
            }
        }
    }
}

/// Packs sixteen rows of numbers, one after the other in `rows`, of which the last may be missing.
pub(super) fn pack_tile<E: Element>(rows: &[u8], n_in: usize, tile: &mut [u8]) {
    for (row, numbers) in rows.chunks_exact(n_in * E::BYTES).enumerate() {
        for (k, number) in numbers.chunks_exact(E::BYTES).enumerate() {
            tile[offset::<E>(k, row)..][..E::BYTES].copy_from_slice(number);
        }
    }
}

/// The numbers of one row of a tile.
pub(super) fn unpack_row<E: Element>(tile: &[u8], row: usize, out: &mut [f32]) {
    for (k, out) in out.iter_mut().enumerate() {
        *out = E::get(&tile[offset::<E>(k, row)..]);
    }
}
