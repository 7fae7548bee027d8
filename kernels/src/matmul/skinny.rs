//! Products of a few rows, such as one token's vector times a weight: bound by reading B, once.
//!
//! Nothing is packed. If rows of B are contiguous, several of them are added to C in one pass, while C
//! stays in L1. If columns are (a weight stored `[out, in]`, the main case), square blocks are transposed
//! in registers, so that lanes still run over columns of C and `k` stays in order.

use std::cell::RefCell;

use super::{Mat, MatMut, Start};
use crate::simd::{MAX_LANES, Rows, Simd, dispatch};

/// The most rows that take this path. Its accumulators and a transposed block share the registers.
pub(super) const MAX_ROWS: usize = 4;

thread_local! {
    /// A with its rows interleaved, kept from call to call; borrowed while nothing else can run here.
    static INTERLEAVED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `C = A B` or `C += A B`, on this thread. The caller has checked the shapes; B has a unit stride.
pub(super) fn multiply(a: Mat, b: Mat, c: &mut MatMut, start: Start) {
    assert!(a.rows() <= MAX_ROWS && b.has_unit_stride());
    if b.col_stride() == 1 && (b.row_stride() != 1 || b.cols() > 1) {
        by_rows(a, b, c, start);
    } else {
        INTERLEAVED.with_borrow_mut(|interleaved| {
            interleaved.clear();
            let rows = a.rows();
            for k in 0..b.rows() {
                interleaved.extend((0..rows).map(|i| a.at(i, k)));
            }
            by_columns(interleaved, b, c, start);
        });
    }
}

dispatch!(fn by_rows(a: Mat, b: Mat, c: &mut MatMut, start: Start) = by_rows_impl);
dispatch!(fn by_columns(a: &[f32], b: Mat, c: &mut MatMut, start: Start) = by_columns_impl);

#[inline(always)]
fn by_rows_impl<S: Simd>(a: Mat, b: Mat, c: &mut MatMut, start: Start) {
    match a.rows() {
        0 => {}
        1 => add_rows::<S, 1>(a, b, c, start),
        2 => add_rows::<S, 2>(a, b, c, start),
        3 => add_rows::<S, 3>(a, b, c, start),
        _ => add_rows::<S, 4>(a, b, c, start),
    }
}

#[inline(always)]
fn by_columns_impl<S: Simd>(a: &[f32], b: Mat, c: &mut MatMut, start: Start) {
    match c.rows() {
        0 => {}
        1 => dot_columns::<S, 1>(a, b, c, start),
        2 => dot_columns::<S, 2>(a, b, c, start),
        3 => dot_columns::<S, 3>(a, b, c, start),
        _ => dot_columns::<S, 4>(a, b, c, start),
    }
}

/// Rows of B added to C in one pass: each pass loads and stores C once.
const ROWS_PER_PASS: usize = 4;

/// Columns of C done at a time, so that `MAX_ROWS` rows of it (16 KiB) stay in L1.
const COLS_PER_BLOCK: usize = 1024;

/// B with contiguous rows.
#[inline(always)]
fn add_rows<S: Simd, const M: usize>(a: Mat, b: Mat, c: &mut MatMut, start: Start) {
    let (depth, n) = (b.rows(), b.cols());
    if start == Start::Zero {
        (0..M).for_each(|i| c.row(i).fill(0.0));
    }
    for first in (0..n).step_by(COLS_PER_BLOCK) {
        let cols = COLS_PER_BLOCK.min(n - first);
        let whole = depth - depth % ROWS_PER_PASS;
        for k in (0..whole).step_by(ROWS_PER_PASS) {
            // SAFETY: rows k..k + ROWS_PER_PASS of B and columns first..first + cols exist.
            unsafe { add_pass::<S, M, ROWS_PER_PASS>(a, b, c, k, first, cols) };
        }
        for k in whole..depth {
            // SAFETY: row k of B and columns first..first + cols exist.
            unsafe { add_pass::<S, M, 1>(a, b, c, k, first, cols) };
        }
    }
}

/// Adds rows `k..k + K` of B, each times its elements of A, to columns `first..first + cols` of C.
///
/// # Safety
/// A and C must have `M` rows; those rows of B and those columns of B and C must exist.
#[inline(always)]
unsafe fn add_pass<S: Simd, const M: usize, const K: usize>(
    a: Mat,
    b: Mat,
    c: &mut MatMut,
    k: usize,
    first: usize,
    cols: usize,
) {
    let (c_stride, c) = (c.row_stride(), c.as_mut_ptr().wrapping_add(first));
    // SAFETY: all offsets are of elements that the caller promises.
    unsafe {
        let mut scale = [[0.0; K]; M];
        for (i, p) in (0..M).flat_map(|i| (0..K).map(move |p| (i, p))) {
            scale[i][p] = *a.as_ptr().add(i * a.row_stride() + (k + p) * a.col_stride());
        }
        let mut rows = [b.as_ptr(); K];
        for (p, row) in rows.iter_mut().enumerate() {
            *row = b.as_ptr().add((k + p) * b.row_stride() + first);
        }
        let whole = cols - cols % S::LANES;
        for j in (0..whole).step_by(S::LANES) {
            let mut b = [S::splat(0.0); K];
            for (b, row) in b.iter_mut().zip(rows) {
                *b = S::load_ptr(row.add(j));
            }
            for (i, scale) in scale.iter().enumerate() {
                let c = c.add(i * c_stride + j);
                let mut acc = S::load_ptr(c);
                for (&scale, &b) in scale.iter().zip(&b) {
                    acc = S::splat(scale).mul_add(b, acc);
                }
                acc.store_ptr(c);
            }
        }
        if whole < cols {
            let tail = cols - whole;
            let mut b = [S::splat(0.0); K];
            for (b, row) in b.iter_mut().zip(rows) {
                *b = S::load_partial(std::slice::from_raw_parts(row.add(whole), tail), 0.0);
            }
            for (i, scale) in scale.iter().enumerate() {
                let c = std::slice::from_raw_parts_mut(c.add(i * c_stride + whole), tail);
                let mut acc = S::load_partial(c, 0.0);
                for (&scale, &b) in scale.iter().zip(&b) {
                    acc = S::splat(scale).mul_add(b, acc);
                }
                acc.store_partial(c);
            }
        }
    }
}

/// Elements of a column read before turning to the next columns: a cache line of 64 bytes.
///
/// Columns a multiple of 4 KiB apart share one set of an L1 with 8 ways. Leaving half a line for the next
/// round would load it again: 16 columns had evicted it.
const DEPTH_PER_VISIT: usize = 16;

/// How far ahead of reading a column asks for it, in elements: 16 columns at once are more than the
/// hardware's own prefetcher follows.
const PREFETCH: usize = 256;

/// B with contiguous columns: two vectors of C at a time, so that two sums run side by side.
///
/// `a` holds for each `k` the `M` values of A's column `k`: at constant distances, a broadcast needs no
/// address arithmetic.
#[inline(always)]
fn dot_columns<S: Simd, const M: usize>(a: &[f32], b: Mat, c: &mut MatMut, start: Start) {
    assert!(a.len() == b.rows() * M && c.rows() == M);
    let (depth, n, lanes) = (b.rows(), b.cols(), S::LANES);
    for j in (0..n).step_by(2 * lanes) {
        let cols = (2 * lanes).min(n - j);
        let (mut low, mut high) = ([S::splat(0.0); M], [S::splat(0.0); M]);
        if start == Start::C {
            for (i, (low, high)) in low.iter_mut().zip(&mut high).enumerate() {
                let mut row = [0.0; 2 * MAX_LANES];
                row[..cols].copy_from_slice(&c.row(i)[j..][..cols]);
                (*low, *high) = (S::load(&row), S::load(&row[lanes..]));
            }
        }
        // Columns past the last are the last again; what they give is not stored.
        let low_columns = b.sub_cols(j, cols.min(lanes)).t().starts();
        let other = cols.saturating_sub(lanes).max(1);
        let high_columns = b.sub_cols(j + cols - other, other).t().starts();
        for k in (0..depth).step_by(DEPTH_PER_VISIT) {
            let a = &a[k * M..depth.min(k + DEPTH_PER_VISIT) * M];
            // SAFETY: the columns have `depth` contiguous elements, at least `a.len() / M` from k on.
            unsafe {
                visit(a, &low_columns, k, &mut low);
                visit(a, &high_columns, k, &mut high);
            }
        }
        for (i, (low, high)) in low.into_iter().zip(high).enumerate() {
            let mut row = [0.0; 2 * MAX_LANES];
            low.store(&mut row);
            high.store(&mut row[lanes..]);
            c.row(i)[j..][..cols].copy_from_slice(&row[..cols]);
        }
    }
}

/// Adds products with a stretch of a vector's worth of columns, as long as `a`, to the accumulators.
///
/// # Safety
/// The first `LANES` columns must be valid for reading `a.len() / M` elements from `k` on.
#[inline(always)]
unsafe fn visit<S: Simd, const M: usize>(a: &[f32], columns: &Rows, k: usize, acc: &mut [S; M]) {
    for column in &columns[..S::LANES] {
        S::prefetch(column.wrapping_add(k + PREFETCH));
    }
    let blocks = a.chunks_exact(S::LANES * M);
    let whole = k + a.len() / M - blocks.remainder().len() / M;
    for (i, a) in blocks.enumerate() {
        // SAFETY: a block of `a` stands for LANES elements of each column.
        let tile = unsafe { S::load_transposed(columns, k + i * S::LANES) };
        for (&b, a) in tile.as_ref().iter().zip(a.chunks_exact(M)) {
            add_step(a, b, acc);
        }
    }
    for (a, k) in a.chunks_exact(S::LANES * M).remainder().chunks_exact(M).zip(whole..) {
        let mut lanes = [0.0; MAX_LANES];
        for (lane, column) in lanes[..S::LANES].iter_mut().zip(columns) {
            // SAFETY: the rest of `a` stands for elements of each column, too.
            *lane = unsafe { *column.add(k) };
        }
        add_step(a, S::load(&lanes), acc);
    }
}

#[inline(always)]
fn add_step<S: Simd, const M: usize>(a: &[f32], b: S, acc: &mut [S; M]) {
    for (acc, &a) in acc.iter_mut().zip(a) {
        *acc = S::splat(a).mul_add(b, *acc);
    }
}
