//! Products of many rows, after Goto and BLIS: three levels of blocks, each sized for a cache.
//!
//! ```text
//! for each BLOCK_K of k
//!   for each BLOCK_COLS columns:     pack B[k, cols] into panels of 2 vectors' columns   (L2)
//!     for each BLOCK_ROWS rows:      pack A[rows, k] into panels of TILE_ROWS rows       (L2)
//!       for each panel of B                                                              (L1)
//!         for each panel of A:       a tile of C in 12 registers += A panel x B panel
//! ```
//! With wider registers a tile takes two panels of either at a time (`wide`).
//! A is packed on the first round over columns and kept for the others.
//! A panel is stored in the order in which the tile reads it: for each `k` the values of all its rows (or
//! columns) together. Packing a transposed operand transposes blocks in registers on the way.

use std::cell::RefCell;

#[cfg(target_arch = "x86_64")]
use super::wide;
use super::{Mat, MatMut, Start};
use crate::Isa;
use crate::simd::{MAX_LANES, Simd, dispatch};

/// Rows of a register tile. 6 x 2 accumulators, 2 vectors of B and 1 broadcast of A make 15 of AVX2's 16
/// registers, and 12 independent sums are enough to hide the latency of 4 cycles at 2 sums a cycle (8).
pub(crate) const TILE_ROWS: usize = 6;

/// Columns of a panel of B: two vectors on every instruction set.
pub(crate) const PANEL_COLS: usize = 16;

/// Depth of a block: a panel of B (256 x 16 floats = 16 KiB) takes half of a 32 KiB L1. Twice as many with wider registers
/// (see [`block_k`]), whose CPUs have a second-level cache of 1 MiB and more, but for a few laptops' (512 KiB).
const BLOCK_K: usize = 256;

/// Rows of a block: packed A (120 x 256 floats = 120 KiB) takes a quarter of a 512 KiB L2.
const BLOCK_ROWS: usize = 20 * TILE_ROWS;

/// Columns of a block: packed B (256 x 256 floats = 256 KiB) takes half of it. Larger blocks would save
/// nothing, and a few rows (a short prompt) use packed B so few times that it should never leave L2.
const BLOCK_COLS: usize = 256;

thread_local! {
    /// Packed A and packed B of this thread, kept from call to call.
    ///
    /// Borrowed only in `multiply`, which calls nothing that could run another task on this thread.
    static BUFFERS: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Packed B: panels `[depth][PANEL_COLS]`.
#[derive(Clone, Copy)]
pub(crate) struct Panels<'a> {
    /// From the first panel on.
    pub data: &'a [f32],
    /// Elements from a panel to the next.
    pub stride: usize,
}

impl<'a> Panels<'a> {
    /// The panel that column `j` is in.
    ///
    /// # Panics
    /// If it is not there.
    pub(super) fn panel(&self, j: usize, depth: usize) -> &'a [f32] {
        &self.data[j / PANEL_COLS * self.stride..][..PANEL_COLS * depth]
    }
}

/// Elements that [`pack_a`] needs for `m` rows of a depth.
pub(crate) const fn packed_a_len(m: usize, depth: usize) -> usize {
    m.next_multiple_of(TILE_ROWS) * depth + MAX_LANES
}

/// `C = A B` or `C += A B`, on this thread. The caller has checked the shapes.
pub(super) fn multiply(a: Mat, b: Mat, c: &mut MatMut, start: Start) {
    let (m, k, n) = (a.rows(), a.cols(), b.cols());
    if k == 0 && start == Start::Zero {
        (0..m).for_each(|i| c.row(i).fill(0.0));
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    BUFFERS.with_borrow_mut(|(packed_a, packed_b)| {
        let block_k = block_k(k);
        let block_rows = m.div_ceil(m.div_ceil(BLOCK_ROWS)).next_multiple_of(2 * TILE_ROWS);
        let block_cols = n.div_ceil(n.div_ceil(BLOCK_COLS)).next_multiple_of(2 * MAX_LANES);
        grow(packed_a, packed_a_len(m, block_k));
        grow(packed_b, block_cols * block_k);
        for p in (0..k).step_by(block_k) {
            let depth = block_k.min(k - p);
            let start = if p == 0 { start } else { Start::C };
            for j in (0..n).step_by(block_cols) {
                let cols = block_cols.min(n - j);
                pack_b(b.sub_cols(j, cols).sub_rows(p, depth), packed_b);
                for i in (0..m).step_by(block_rows) {
                    let rows = block_rows.min(m - i);
                    let packed_a = &mut packed_a[i * depth..];
                    if j == 0 {
                        pack_a(a.sub_rows(i, rows).sub_cols(p, depth), packed_a);
                    }
                    let panels = Panels { data: packed_b, stride: PANEL_COLS * depth };
                    multiply_block(packed_a, panels, depth, c.sub_rows(i, rows).sub_cols(j, cols), start);
                }
            }
        }
    });
}

/// Depth of the blocks of a product of depth `k`: of equal size, so 384 is cut into 192 + 192, not 256 + 128, and even. At
/// most [`BLOCK_K`], or twice that where the tile takes panels of B out of a second-level cache, as fast as out of the first:
/// C is then read and written half as often.
pub(crate) fn block_k(k: usize) -> usize {
    let max = if Isa::current().has_avx512() { 2 * BLOCK_K } else { BLOCK_K };
    k.div_ceil(k.div_ceil(max).max(1)).next_multiple_of(2)
}

pub(crate) fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

dispatch! {
    /// Packs a block of A, `[rows, depth]`, into panels `[depth][TILE_ROWS]`.
    pub(crate) fn pack_a(a: Mat, packed: &mut [f32]) = pack_a_impl
}

#[inline(always)]
fn pack_a_impl<S: Simd>(a: Mat, packed: &mut [f32]) {
    let depth = a.cols();
    // A panel's last store may run over its end: into the next panel or block, packed later, or the slack.
    assert!(packed.len() >= packed_a_len(a.rows(), depth));
    for (panel, first) in (0..a.rows()).step_by(TILE_ROWS).enumerate() {
        let rows = TILE_ROWS.min(a.rows() - first);
        let (a, panel) = (a.sub_rows(first, rows), &mut packed[panel * TILE_ROWS * depth..]);
        if a.row_stride() == 1 && rows == TILE_ROWS {
            for k in 0..depth {
                // SAFETY: `a` has TILE_ROWS rows, and with stride 1 those of column `k` are contiguous.
                let column: &[f32; TILE_ROWS] = unsafe { &*a.as_ptr().add(k * a.col_stride()).cast() };
                panel[k * TILE_ROWS..][..TILE_ROWS].copy_from_slice(column);
            }
        } else {
            interleave::<S>(a, TILE_ROWS, 0, panel);
        }
    }
}

dispatch! {
    /// Packs a block of B, `[depth, cols]`, into panels `[depth][2 vectors]`.
    fn pack_b(b: Mat, packed: &mut [f32]) = pack_b_impl
}

#[inline(always)]
fn pack_b_impl<S: Simd>(b: Mat, packed: &mut [f32]) {
    let (depth, width) = (b.rows(), 2 * S::LANES);
    let whole = if b.col_stride() == 1 { b.cols() - b.cols() % width } else { 0 };
    for first in (0..whole).step_by(PACKED_AT_ONCE * width) {
        let cols = (PACKED_AT_ONCE * width).min(whole - first);
        let panels = &mut packed[first * depth..][..cols * depth];
        for k in 0..depth {
            for (j, panel) in (0..cols).step_by(width).zip(panels.chunks_exact_mut(width * depth)) {
                let row = &mut panel[k * width..][..width];
                // SAFETY: columns first + j.. + width of row k exist, and with stride 1 they are contiguous.
                unsafe {
                    let src = b.as_ptr().add(k * b.row_stride() + first + j);
                    S::load_ptr(src).store(row);
                    S::load_ptr(src.add(S::LANES)).store(&mut row[S::LANES..]);
                }
            }
        }
    }
    let panels = packed[whole * depth..].chunks_exact_mut(width * depth);
    for (panel, first) in panels.zip((whole..b.cols()).step_by(width)) {
        for half in (0..width.min(b.cols() - first)).step_by(S::LANES) {
            let cols = S::LANES.min(b.cols() - first - half);
            interleave::<S>(b.sub_cols(first + half, cols).t(), width, half, panel);
        }
    }
}

/// Panels packed side by side where rows of B are contiguous: a row is then read 512 bytes at a time.
/// One panel alone would take 64 bytes from each row, in as many pages of memory as there are rows.
const PACKED_AT_ONCE: usize = 8;

/// Writes `rows` (at most a vector's worth) so that for each `k` their values stand side by side:
/// `out[k * width + offset + r] = rows[r][k]`.
///
/// It may write junk behind them, up to a whole vector from `offset`: only in places not yet packed or
/// belonging to rows that don't exist.
#[inline(always)]
fn interleave<S: Simd>(rows: Mat, width: usize, offset: usize, out: &mut [f32]) {
    let (n_rows, depth) = (rows.rows(), rows.cols());
    let mut done = 0;
    if rows.col_stride() == 1 && n_rows <= S::LANES {
        done = depth - depth % S::LANES;
        let starts = rows.starts();
        for k in (0..done).step_by(S::LANES) {
            // SAFETY: each start is that of a row, and columns k..k + LANES exist.
            let tile = unsafe { S::load_transposed(&starts, k) };
            for (i, column) in tile.as_ref().iter().enumerate() {
                column.store(&mut out[(k + i) * width + offset..]);
            }
        }
    }
    for k in done..depth {
        for r in 0..n_rows {
            // SAFETY: `r` and `k` are within the view.
            out[k * width + offset + r] =
                unsafe { *rows.as_ptr().add(r * rows.row_stride() + k * rows.col_stride()) };
        }
    }
}

/// `C = A B` or `C += A B` for a packed block of each.
///
/// # Panics
/// If panels are missing.
pub(crate) fn multiply_block(packed_a: &[f32], b: Panels, depth: usize, mut c: MatMut, start: Start) {
    #[cfg(target_arch = "x86_64")]
    if Isa::current().has_avx512() {
        return wide::multiply_block(packed_a, b, depth, &mut c, start);
    }
    multiply_block_narrow(packed_a, b, depth, c, start);
}

dispatch!(fn multiply_block_narrow(packed_a: &[f32], b: Panels, depth: usize, c: MatMut, start: Start) = multiply_block_impl);

#[inline(always)]
fn multiply_block_impl<S: Simd>(packed_a: &[f32], b: Panels, depth: usize, mut c: MatMut, start: Start) {
    let (m, n, width) = (c.rows(), c.cols(), 2 * S::LANES);
    assert!(width == PANEL_COLS && packed_a.len() >= m.next_multiple_of(TILE_ROWS) * depth);
    for j in (0..n).step_by(width) {
        let b = b.panel(j, depth);
        for i in (0..m).step_by(TILE_ROWS) {
            let a = &packed_a[i * depth..][..TILE_ROWS * depth];
            let (rows, cols) = (TILE_ROWS.min(m - i), width.min(n - j));
            // SAFETY: row i, column j is an element of C.
            let corner = unsafe { c.as_mut_ptr().add(i * c.row_stride() + j) };
            // The next tile starts with these lines of C; from L3 they take as long as a tenth of a tile.
            for r in TILE_ROWS..2 * TILE_ROWS {
                S::prefetch(corner.wrapping_add(r * c.row_stride()));
            }
            if cols == width {
                // SAFETY: the panels hold `depth` steps; `rows` x `width` elements of C start at the corner.
                unsafe { tile::<S>(rows, a, b, corner, c.row_stride(), start) };
                continue;
            }
            // Too narrow for whole vectors: by way of a tile on the stack.
            let mut edge = [0.0; TILE_ROWS * 2 * MAX_LANES];
            let mut edge_rows = edge.chunks_exact_mut(width);
            if start == Start::C {
                for (r, edge) in (0..rows).zip(&mut edge_rows) {
                    edge[..cols].copy_from_slice(&c.row(i + r)[j..]);
                }
            }
            // SAFETY: the panels hold `depth` steps; the edge tile has TILE_ROWS x `width` elements.
            unsafe { tile::<S>(rows, a, b, edge.as_mut_ptr(), width, start) };
            for (r, edge) in (0..rows).zip(edge.chunks_exact(width)) {
                c.row(i + r)[j..].copy_from_slice(&edge[..cols]);
            }
        }
    }
}

/// A tile of `rows` x 2 vectors of C.
///
/// # Safety
/// `c` must be valid for `rows` (1 to TILE_ROWS) rows of 2 vectors, `c_stride` apart; the panels for
/// `b.len() / (2 * LANES)` steps.
#[inline(always)]
unsafe fn tile<S: Simd>(rows: usize, a: &[f32], b: &[f32], c: *mut f32, c_stride: usize, start: Start) {
    // SAFETY: passed on from the caller.
    unsafe {
        match rows {
            6 => tile_of_rows::<S, 6>(a, b, c, c_stride, start),
            5 => tile_of_rows::<S, 5>(a, b, c, c_stride, start),
            4 => tile_of_rows::<S, 4>(a, b, c, c_stride, start),
            3 => tile_of_rows::<S, 3>(a, b, c, c_stride, start),
            2 => tile_of_rows::<S, 2>(a, b, c, c_stride, start),
            _ => tile_of_rows::<S, 1>(a, b, c, c_stride, start),
        }
    }
}

/// The innermost loop: all the arithmetic of a large product is in here.
///
/// # Safety
/// As [`tile`], with `ROWS` rows.
#[inline(always)]
unsafe fn tile_of_rows<S: Simd, const ROWS: usize>(
    a: &[f32],
    b: &[f32],
    c: *mut f32,
    c_stride: usize,
    start: Start,
) {
    let mut acc = [[S::splat(0.0); 2]; ROWS];
    // SAFETY: the caller vouches for C's rows; steps of A and B come in whole chunks.
    unsafe {
        if start == Start::C {
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = [S::load_ptr(c.add(r * c_stride)), S::load_ptr(c.add(r * c_stride + S::LANES))];
            }
        }
        for (a, b) in a.chunks_exact(TILE_ROWS).zip(b.chunks_exact(2 * S::LANES)) {
            let b = [S::load_ptr(b.as_ptr()), S::load_ptr(b.as_ptr().add(S::LANES))];
            for (acc, &a) in acc.iter_mut().zip(a) {
                let a = S::splat(a);
                *acc = [a.mul_add(b[0], acc[0]), a.mul_add(b[1], acc[1])];
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            acc[0].store_ptr(c.add(r * c_stride));
            acc[1].store_ptr(c.add(r * c_stride + S::LANES));
        }
    }
}
