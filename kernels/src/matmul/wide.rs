//! The register tile of a large product on 512-bit registers, 12 rows by 32 columns or 6 by 32, for CPUs with AVX-512.
//!
//! It reads two panels of either factor where the tile of [`blocked`](super::blocked) reads one: half as many bytes for a
//! sum, so panels may come out of a second-level cache. Sums are added up in the same order, to the same bits.

use std::arch::x86_64::*;

use super::blocked::{PANEL_COLS, Panels, TILE_ROWS};
use super::{MatMut, Start};
use crate::Isa;

/// Rows of the larger tile: two panels. Its sums take 24 of 32 registers, a step of B two and a number of A one.
const ROWS: usize = 2 * TILE_ROWS;

/// Columns of a tile.
const COLS: usize = 2 * PANEL_COLS;

/// `C = A B` or `C += A B` for a packed block of each.
///
/// # Panics
/// If panels are missing, or this CPU cannot run it.
pub(super) fn multiply_block(packed_a: &[f32], b: Panels, depth: usize, c: &mut MatMut, start: Start) {
    let (m, n) = (c.rows(), c.cols());
    assert!(Isa::current().has_avx512() && packed_a.len() >= m.next_multiple_of(TILE_ROWS) * depth);
    for j in (0..n).step_by(COLS) {
        let mut c = c.sub_cols(j, COLS.min(n - j));
        // A second panel that is not there is the first again, and not used.
        let last = j + (c.cols() - 1) / PANEL_COLS * PANEL_COLS;
        let next = b.data.as_ptr().wrapping_add((j + COLS) / PANEL_COLS * b.stride);
        let next = [next, next.wrapping_add(b.stride)];
        let b = [j, last].map(|j| b.panel(j, depth).as_ptr());
        for i in (0..m).step_by(ROWS) {
            let a = packed_a[i * depth..].as_ptr();
            // While the first tile is computed, the next panels come out of memory.
            let next = if i == 0 && j + COLS < n { next } else { b };
            let c = c.sub_rows(i, ROWS.min(m - i));
            // SAFETY: the CPU has it, and how many panels there are was asserted; C is as large as they say.
            unsafe {
                match (c.rows() > TILE_ROWS, c.cols() > PANEL_COLS) {
                    (true, true) => multiply_tile::<2, 2>(a, b, next, depth, c, start),
                    (true, false) => multiply_tile::<2, 1>(a, b, next, depth, c, start),
                    (false, true) => multiply_tile::<1, 2>(a, b, next, depth, c, start),
                    (false, false) => multiply_tile::<1, 1>(a, b, next, depth, c, start),
                }
            }
        }
    }
}

/// A tile of `M` panels of rows by `N` panels of columns, of which the last may have some that C has not. Asks for as much
/// from each of `next` as it reads of a panel, whatever is there.
///
/// # Safety
/// The CPU must have AVX-512. `a` must be valid for reading `M` panels of `depth` steps, and the first `N` of `b` for one
/// each. C must have more rows and columns than `M - 1` and `N - 1` panels, but no more than `M` and `N`.
#[target_feature(enable = "avx512f")]
unsafe fn multiply_tile<const M: usize, const N: usize>(
    a: *const f32,
    b: [*const f32; 2],
    next: [*const f32; 2],
    depth: usize,
    mut c: MatMut,
    start: Start,
) {
    let (rows, stride) = (c.rows(), c.row_stride());
    let masks: [u16; N] = std::array::from_fn(|t| match c.cols() - t * PANEL_COLS {
        PANEL_COLS.. => u16::MAX,
        n => (1 << n) - 1,
    });
    let mut sums = [[[_mm512_setzero_ps(); N]; TILE_ROWS]; M];
    // SAFETY: the caller vouches for the panels and the rows of C; masks keep what is loaded and stored within its columns.
    unsafe {
        for (r, sums) in sums.as_flattened_mut().iter_mut().enumerate().take(rows) {
            let c = c.as_mut_ptr().add(r * stride);
            for (t, sum) in sums.iter_mut().enumerate() {
                if start == Start::C {
                    *sum = _mm512_maskz_loadu_ps(masks[t], c.add(t * PANEL_COLS));
                }
                // The next tile begins with these lines of C; from L3 they take as long as a tenth of a tile.
                _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(ROWS * stride + t * PANEL_COLS).cast());
            }
        }
        for k in 0..depth {
            for next in next {
                _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(k * PANEL_COLS).cast());
            }
            let b: [__m512; N] = std::array::from_fn(|t| _mm512_loadu_ps(b[t].add(k * PANEL_COLS)));
            for (panel, sums) in sums.iter_mut().enumerate() {
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(*a.add((panel * depth + k) * TILE_ROWS + r));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm512_fmadd_ps(a, b, *sum);
                    }
                }
            }
        }
        for (r, sums) in sums.as_flattened().iter().enumerate().take(rows) {
            for (t, sum) in sums.iter().enumerate() {
                _mm512_mask_storeu_ps(c.as_mut_ptr().add(r * stride + t * PANEL_COLS), masks[t], *sum);
            }
        }
    }
}
