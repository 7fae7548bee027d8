//! Products of numbers rounded to bfloat16, added up in single precision: twice as many a cycle as in single precision, on
//! CPUs with `vdpbf16ps` ([`Isa::Bf16`](crate::Isa::Bf16)).
//!
//! Neighbours along `k` make pairs, of which an instruction multiplies sixteen with one and adds both products to sixteen
//! sums. Sixteen columns make a tile `[k / 2][16]` of pairs, as packed weights lie in memory; up to twelve rows make a group
//! `[k / 2][rows]`. Every element has one sum, which pairs are added to in order, so the rules of the crate hold: a row alone
//! is bit-equal to that row among others. An odd `k` ends with a pair of which one number is zero.
//!
//! Numbers below the normal ones count as zero: so the instructions have it.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::{Mat, MatMut, Start};
use crate::Isa;

/// Columns of a tile: lanes of a vector.
pub(crate) const COLS: usize = 16;

/// The most rows of a group: their sums, a vector of the tile and a pair of the row leave registers to spare.
const ROWS: usize = 12;

/// Pairs along `k` of a block: a group of rows takes 24 KiB of an L1, through which the tiles pass.
const BLOCK: usize = 512;

/// Rows of a block, whose pairs take 480 KiB, half of an L2.
const BLOCK_ROWS: usize = 20 * ROWS;

/// Columns of a block of a product that packs both factors: 256 KiB of pairs.
const BLOCK_COLS: usize = 8 * COLS;

/// Pairs along `k`.
pub(crate) fn pairs(k: usize) -> usize {
    k.div_ceil(2)
}

/// Rows of a group, of `m`: as many in all groups, but for the last.
pub(crate) fn unit(m: usize) -> usize {
    m.div_ceil(m.div_ceil(ROWS).max(1)).max(1)
}

/// Runs `$use` with `$M` standing for `$rows`, 1 to [`ROWS`], and `$T` for tiles at a time that hide the latency of sums.
macro_rules! with_rows {
    ($rows:expr, |$M:ident, $T:ident| $use:expr) => {
        with_rows!(@ $rows, $M, $T, $use, 1 4, 2 4, 3 4, 4 3, 5 3, 6 2, 7 2, 8 2, 9 2, 10 2, 11 2, 12 2)
    };
    (@ $rows:expr, $M:ident, $T:ident, $use:expr, $($m:literal $t:literal),*) => {
        match $rows {
            $($m => {
                const $M: usize = $m;
                const $T: usize = $t;
                $use
            })*
            rows => unreachable!("a group of {rows} rows"),
        }
    };
}

/// Rounds rows to pairs, `[k / 2][width]` of them, of which those past the last row are zero.
///
/// # Safety
/// The CPU must have what [`Isa::Bf16`] stands for; `out` must be valid for writing so many pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack(rows: Mat, width: usize, out: *mut u32) {
    let (n, k) = (rows.rows(), rows.cols());
    assert!((1..=width).contains(&n) && width <= COLS);
    // SAFETY: the caller vouches for `out`; masks keep loads within the rows.
    unsafe {
        if rows.col_stride() == 1 {
            for s in (0..pairs(k)).step_by(16) {
                let there = (k - 2 * s).min(32);
                let mask = if there == 32 { u32::MAX } else { (1 << there) - 1 };
                let steps = pairs(there);
                for r in 0..width {
                    let mut both = [0u32; 16];
                    if r < n {
                        let from = rows.as_ptr().add(r * rows.row_stride() + 2 * s);
                        let first = _mm512_maskz_loadu_ps(mask as u16, from);
                        let last = _mm512_maskz_loadu_ps((mask >> 16) as u16, from.wrapping_add(16));
                        let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(last, first));
                        _mm512_storeu_si512(both.as_mut_ptr().cast(), rounded);
                    }
                    for (i, pair) in both[..steps].iter().enumerate() {
                        *out.add((s + i) * width + r) = *pair;
                    }
                }
            }
            return;
        }
        // The numbers of a step lie side by side, or are gathered.
        let mask = ((1u32 << n) - 1) as u16;
        let kept = ((1u32 << width) - 1) as u16;
        // Numbers 0 to 15 of the first vector beside those of the second.
        let order: [u16; 32] = std::array::from_fn(|i| (i / 2 + 16 * (i % 2)) as u16);
        let order = _mm512_loadu_si512(order.as_ptr().cast());
        let column = |k: usize| {
            let from = rows.as_ptr().add(k * rows.col_stride());
            if rows.row_stride() == 1 {
                return _mm512_maskz_loadu_ps(mask, from);
            }
            let mut lanes = [0.0f32; COLS];
            for (r, lane) in lanes[..n].iter_mut().enumerate() {
                *lane = *from.add(r * rows.row_stride());
            }
            _mm512_loadu_ps(lanes.as_ptr())
        };
        for s in 0..pairs(k) {
            let first = column(2 * s);
            let last = if 2 * s + 1 < k { column(2 * s + 1) } else { _mm512_setzero_ps() };
            let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(last, first));
            let both = _mm512_permutexvar_epi16(order, rounded);
            _mm512_mask_storeu_epi32(out.add(s * width).cast(), kept, both);
        }
    }
}

/// The same bits.
#[target_feature(enable = "avx512f,avx512bf16")]
fn as_bf16(x: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits, and all of these are numbers.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
}

/// `M` rows against `T` tiles, `n_pairs` deep.
///
/// # Safety
/// The CPU must have what [`Isa::Bf16`] stands for. `x` must be valid for reading `[n_pairs][M]`, `tiles` for `T` times
/// `[n_pairs][COLS]`, `tile_stride` apart, and `c` for `M` rows of `cols` elements, more than `(T - 1) * COLS`.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn multiply_tiles<const M: usize, const T: usize>(
    x: *const u32,
    (tiles, tile_stride): (*const u32, usize),
    n_pairs: usize,
    (c, c_stride, cols): (*mut f32, usize, usize),
    start: Start,
) {
    // SAFETY: the caller vouches for the pointers; masks keep what is loaded and stored of C within its columns.
    unsafe {
        let masks: [u16; T] = std::array::from_fn(|t| match cols - t * COLS {
            COLS.. => u16::MAX,
            n => (1 << n) - 1,
        });
        let mut sums = [[_mm512_setzero_ps(); T]; M];
        for (r, sums) in sums.iter_mut().enumerate() {
            for (t, sum) in sums.iter_mut().enumerate() {
                if start == Start::C {
                    *sum = _mm512_maskz_loadu_ps(masks[t], c.add(r * c_stride + t * COLS));
                }
            }
        }
        for s in 0..n_pairs {
            let mut w = [_mm512_setzero_si512(); T];
            for (t, w) in w.iter_mut().enumerate() {
                *w = _mm512_loadu_si512(tiles.add(t * tile_stride + s * COLS).cast());
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = as_bf16(_mm512_set1_epi32(*x.add(s * M + r) as i32));
                for (sum, w) in sums.iter_mut().zip(w) {
                    *sum = _mm512_dpbf16_ps(*sum, as_bf16(w), x);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (t, sum) in sums.iter().enumerate() {
                _mm512_mask_storeu_ps(c.add(r * c_stride + t * COLS), masks[t], *sum);
            }
        }
    }
}

/// A group of rows against as many tiles as C has columns for.
///
/// # Safety
/// As [`multiply_tiles`], with `c.rows()` rows, at most [`ROWS`], and all tiles.
unsafe fn multiply_group(
    x: *const u32,
    (tiles, tile_stride): (*const u32, usize),
    n_pairs: usize,
    c: &mut MatMut,
    start: Start,
) {
    let (rows, cols, stride) = (c.rows(), c.cols(), c.row_stride());
    with_rows!(rows, |M, T| {
        let mut first = 0;
        while first < cols {
            let c = c.as_mut_ptr().wrapping_add(first);
            let tiles = tiles.wrapping_add(first / COLS * tile_stride);
            // SAFETY: passed on from the caller; there are more than `(T - 1) * COLS` columns left, or one tile is taken.
            unsafe {
                let c = (c, stride, cols - first);
                if cols - first > (T - 1) * COLS {
                    multiply_tiles::<M, T>(x, (tiles, tile_stride), n_pairs, c, start);
                    first += T * COLS;
                } else {
                    multiply_tiles::<M, 1>(x, (tiles, tile_stride), n_pairs, c, start);
                    first += COLS;
                }
            }
        }
    });
}

/// Rows rounded to pairs: group after group.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pairs: Vec<u32>,
}

impl Rows {
    /// Rounds rows.
    ///
    /// # Panics
    /// If this CPU has no [`Isa::Bf16`].
    pub(crate) fn round(&mut self, x: Mat) {
        assert!(Isa::Bf16.is_available(), "vdpbf16ps");
        let (m, n_pairs) = (x.rows(), pairs(x.cols()));
        if self.pairs.len() < m * n_pairs {
            self.pairs.resize(m * n_pairs, 0);
        }
        if m <= ROWS && m * n_pairs > 0 {
            // SAFETY: the assertion above; one group. A token is generated without an allocation.
            return unsafe { pack(x, m, self.pairs.as_mut_ptr()) };
        }
        let unit = unit(m);
        let pack = |(i, out): (usize, &mut [u32])| {
            let rows = unit.min(m - i * unit);
            // SAFETY: the assertion above; `out` is one group.
            unsafe { pack(x.sub_rows(i * unit, rows), rows, out.as_mut_ptr()) };
        };
        let (groups, len) = (&mut self.pairs[..m * n_pairs], (unit * n_pairs).max(1));
        if m * n_pairs < 1 << 16 {
            groups.chunks_mut(len).enumerate().for_each(pack);
        } else {
            groups.par_chunks_mut(len).enumerate().with_min_len(4).for_each(pack);
        }
    }

    /// `C = A[rows] B` with these `m` rows of `k` numbers as A, and B in tiles `[k / 2][COLS]` of pairs, of which the last
    /// may have columns that C has not. `rows` begin at a multiple of [`unit`], and end at one or
    /// with the last row.
    ///
    /// # Panics
    /// If the shapes do not fit together, or this CPU has no [`Isa::Bf16`].
    pub(crate) fn multiply(&self, [m, k]: [usize; 2], rows: Range<usize>, tiles: &[u8], c: &mut MatMut) {
        let (n, n_pairs, unit) = (c.cols(), pairs(k), unit(m));
        assert!(Isa::Bf16.is_available() && rows.end <= m && self.pairs.len() >= m * n_pairs);
        assert!(rows.len() == c.rows() && rows.start.is_multiple_of(unit));
        assert!(rows.end == m || rows.end.is_multiple_of(unit));
        assert!(tiles.len() == n.div_ceil(COLS) * n_pairs * COLS * 4);
        if rows.len() * n * n_pairs == 0 {
            return (0..rows.len()).for_each(|i| c.row(i).fill(0.0));
        }
        // Weights are loaded without alignment.
        let tiles = (tiles.as_ptr().cast::<u32>(), n_pairs * COLS);
        if m <= ROWS {
            // SAFETY: one group of rows; the assertions above.
            return unsafe { multiply_group(self.pairs.as_ptr(), tiles, n_pairs, c, Start::Zero) };
        }
        for begin in (0..n_pairs).step_by(BLOCK) {
            let deep = BLOCK.min(n_pairs - begin);
            let start = if begin == 0 { Start::Zero } else { Start::C };
            for first in (0..n).step_by(2 * COLS) {
                let both = (tiles.0.wrapping_add(first / COLS * tiles.1 + begin * COLS), tiles.1);
                let mut c = c.sub_cols(first, (2 * COLS).min(n - first));
                for first in rows.clone().step_by(unit) {
                    let n_rows = unit.min(m - first);
                    let x = self.pairs[first * n_pairs + begin * n_rows..].as_ptr();
                    let c = &mut c.sub_rows(first - rows.start, n_rows);
                    // SAFETY: `deep` pairs of these rows and of these tiles; the assertions above.
                    unsafe { multiply_group(x, both, deep, c, start) };
                }
            }
        }
    }
}

thread_local! {
    /// Packed A and B of this thread; borrowed in [`multiply`] alone, which runs nothing else.
    static BUFFERS: RefCell<(Vec<u32>, Vec<u32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// `C = A B` or `C += A B`, on this thread. The caller has checked the shapes.
///
/// # Panics
/// If this CPU has no [`Isa::Bf16`].
pub(super) fn multiply(a: Mat, b: Mat, c: &mut MatMut, start: Start) {
    assert!(Isa::Bf16.is_available(), "vdpbf16ps");
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    if k == 0 && start == Start::Zero {
        (0..m).for_each(|i| c.row(i).fill(0.0));
    }
    if m * n * k == 0 {
        return;
    }
    BUFFERS.with_borrow_mut(|(packed_a, packed_b)| {
        let depth = 2 * BLOCK.min(pairs(k));
        packed_a.resize(packed_a.len().max(m * depth / 2), 0);
        packed_b.resize(packed_b.len().max(BLOCK_COLS.min(n.next_multiple_of(COLS)) * depth / 2), 0);
        for p in (0..k).step_by(depth) {
            let depth = depth.min(k - p);
            let (n_pairs, start) = (pairs(depth), if p == 0 { start } else { Start::C });
            for j in (0..n).step_by(BLOCK_COLS) {
                let cols = BLOCK_COLS.min(n - j);
                for t in (0..cols).step_by(COLS) {
                    let part = b.sub_cols(j + t, COLS.min(cols - t)).sub_rows(p, depth);
                    let out = packed_b[t * n_pairs..][..COLS * n_pairs].as_mut_ptr();
                    // SAFETY: the assertion above; a tile's pairs.
                    unsafe { pack(part.t(), COLS, out) };
                }
                for i in (0..m).step_by(BLOCK_ROWS) {
                    let rows = BLOCK_ROWS.min(m - i);
                    let groups =
                        (0..rows).step_by(unit(rows)).map(|first| (i + first, unit(rows).min(rows - first)));
                    if j == 0 {
                        for (first, n) in groups.clone() {
                            let x = packed_a[first * n_pairs..][..n * n_pairs].as_mut_ptr();
                            let part = a.sub_rows(first, n).sub_cols(p, depth);
                            // SAFETY: the assertion above; a group's pairs.
                            unsafe { pack(part, n, x) };
                        }
                    }
                    for t in (0..cols).step_by(2 * COLS) {
                        let both = (packed_b[t * n_pairs..].as_ptr(), n_pairs * COLS);
                        let mut c = c.sub_cols(j + t, (2 * COLS).min(cols - t));
                        for (first, n) in groups.clone() {
                            let x = packed_a[first * n_pairs..].as_ptr();
                            let mut c = c.sub_rows(first, n);
                            // SAFETY: the assertion above; both were packed for `n_pairs`.
                            unsafe { multiply_group(x, both, n_pairs, &mut c, start) };
                        }
                    }
                }
            }
        }
    });
}
