//! The other factor of a product with packed integers: rows of floats, rounded to 8 bits in blocks of 32.

use rayon::prelude::*;

use crate::simd::{Simd, dispatch};

/// Numbers in a block: as many as share a scale in the weights' formats.
pub(super) const BLOCK: usize = 32;

/// 32 numbers `scale * q`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Block {
    /// From -127 to 127.
    pub q: [i8; BLOCK],
    /// The largest magnitude divided by 127.
    pub scale: f32,
    /// `scale` times the sum of all `q`: what a minimum of the weights is multiplied by.
    pub scaled_sum: f32,
    /// `scale` times the sum of the first 16.
    pub scaled_first: f32,
    /// The sums of all `q` and of the first 16.
    pub sums: [i16; 2],
}

/// Numbers below which rayon's threads are not woken: on one thread they take some 20 µs.
const PARALLEL: usize = 1 << 17;

/// Rounds `m` rows of `n_in` numbers, a multiple of 32. Block `b` of row `i` is at `b * m + i`: a tile of weights meets
/// the same block of all rows in one go.
///
/// A row's blocks follow from the row alone. A row with a number that is not finite has blocks whose scale is not.
pub(super) fn quantize(x: &[f32], m: usize, out: &mut Vec<Block>) {
    let n_blocks = x.len() / m / BLOCK;
    out.resize(m * n_blocks, Block::default());
    let task = |(b, out): (usize, &mut [Block])| quantize_column(x, b, out);
    if m * BLOCK * n_blocks < PARALLEL {
        out.chunks_exact_mut(m).enumerate().for_each(task);
    } else {
        out.par_chunks_exact_mut(m).with_min_len(8).enumerate().for_each(task);
    }
}

dispatch!(fn quantize_column(x: &[f32], block_idx: usize, out: &mut [Block]) = quantize_column_impl);

/// The same block of all rows; `S` only brings its instruction set, which LLVM makes vectors of these loops with.
#[inline(always)]
fn quantize_column_impl<S: Simd>(x: &[f32], block_idx: usize, out: &mut [Block]) {
    let n_in = x.len() / out.len();
    for (row, out) in x.chunks_exact(n_in).zip(out) {
        let x: &[f32; BLOCK] = row[block_idx * BLOCK..].first_chunk().expect("whole blocks");
        // Bits of floats without a sign are in the order of the floats, NaN above all others.
        let mut largest = 0;
        for x in x {
            largest = largest.max(x.to_bits() & (u32::MAX >> 1));
        }
        let largest = f32::from_bits(largest);
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        out.scale = largest / 127.0;
        for (q, x) in out.q.iter_mut().zip(x) {
            *q = nearest(x * inverse);
        }
        let [first, last] = [0, BLOCK / 2].map(|at| sum(&out.q[at..][..BLOCK / 2]));
        out.sums = [(first + last) as i16, first as i16];
        out.scaled_first = out.scale * first as f32;
        out.scaled_sum = out.scale * (first + last) as f32;
    }
}

#[inline(always)]
fn sum(q: &[i8]) -> i32 {
    let mut sum = 0;
    for &q in q {
        sum += i32::from(q);
    }
    sum
}

/// The nearest whole number, ties to even, of magnitude below 128: adding 1.5 * 2^23 leaves no bits for a fraction, and
/// the whole number in the lowest bits.
#[inline(always)]
fn nearest(x: f32) -> i8 {
    (x + 12_582_912.0).to_bits() as i8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::on_each;
    use crate::reference::{bits, values};

    #[test]
    fn rounds_to_the_nearest_of_255_numbers() {
        on_each(|| {
            let (m, n) = (3, 96);
            let mut x = values(m * n, 5);
            x[n..2 * n].iter_mut().for_each(|x| *x *= 1e-20);
            x[2 * n..][..32].fill(0.0);
            let mut blocks = vec![Block::default(); 7];
            quantize(&x, m, &mut blocks);
            assert_eq!(blocks.len(), 9);
            for (i, b) in (0..m).flat_map(|i| (0..3).map(move |b| (i, b))) {
                let block = &blocks[b * m + i];
                let x = &x[i * n + b * 32..][..32];
                let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                assert_eq!(block.scale, largest / 127.0);
                for (x, &q) in x.iter().zip(&block.q) {
                    assert!((x - block.scale * f32::from(q)).abs() <= 0.5001 * block.scale, "{x} {q}");
                }
                let sums =
                    [&block.q[..16], &block.q[16..]].map(|q| q.iter().map(|&q| i32::from(q)).sum::<i32>());
                assert_eq!(block.sums.map(i32::from), [sums[0] + sums[1], sums[0]]);
                assert_eq!(block.scaled_first, block.scale * sums[0] as f32);
                assert_eq!(block.scaled_sum, block.scale * (sums[0] + sums[1]) as f32);
            }
        });
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = values(64, 1);
            x[40] = bad;
            let mut blocks = Vec::new();
            quantize(&x, 1, &mut blocks);
            assert!(blocks[0].scale.is_finite() && !blocks[1].scale.is_finite());
        }
    }

    #[test]
    fn a_row_alone_and_among_others() {
        let x = values(1100 * 64, 3);
        let mut all = Vec::new();
        quantize(&x, 1100, &mut all);
        let mut alone = Vec::new();
        quantize(&x[700 * 64..701 * 64], 1, &mut alone);
        for (b, alone) in alone.iter().enumerate() {
            let among = &all[b * 1100 + 700];
            assert!(among.q == alone.q && bits(&[among.scale]) == bits(&[alone.scale]));
        }
    }
}
