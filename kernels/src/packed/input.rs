//! The other factor of a product with packed integers: rows of floats, rounded to 8 bits in blocks of 32.
//!
//! A few numbers of a row of activations are often far larger than the rest, and their blocks make nearly all of the error:
//! what rounding leaves of such a block is rounded once more and multiplied besides (Dettmers et al. 2022, "LLM.int8()",
//! keeps such columns in half precision). With SmolLM2-135M that is every eighth block, and leaves a fifth of the
//! divergence from float32.

use rayon::prelude::*;

use crate::simd::{self, Simd, dispatch};

/// Numbers in a block: as many as share a scale in the weights' formats.
pub(super) const BLOCK: usize = 32;

/// A block stands out if its largest number is more than so many times the root of the row's mean square.
const STANDS_OUT: f32 = 5.0;

/// 32 numbers `scale * q`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Block {
    /// From -127 to 127.
    pub q: [i8; BLOCK],
    /// The largest magnitude divided by 127.
    pub scale: f32,
    /// The sum of all numbers: what a minimum of the weights is multiplied by.
    pub total: f32,
    /// The sum of the first 16.
    pub first_total: f32,
    /// The sums of all `q` and of the first 16.
    pub sums: [i16; 2],
}

/// What rounding left of a block that stands out. The totals of that block include these numbers.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    /// Of which row.
    pub row: usize,
    /// Rounded again.
    pub block: Block,
}

/// Rows, rounded. A row's blocks follow from the row alone.
#[derive(Default)]
pub(super) struct Input {
    /// Block `b` of row `i` of `m` at `b * m + i`: a tile of weights meets the same block of all rows in one go.
    pub blocks: Vec<Block>,
    /// Of those that stand out among the blocks `b` of all rows, in order.
    pub rests: Vec<Vec<Rest>>,
    /// What the numbers of a row that do not stand out are at most.
    limits: Vec<f32>,
}

/// Numbers below which rayon's threads are not woken: on one thread they take some 20 µs.
const PARALLEL: usize = 1 << 17;

impl Input {
    /// Rounds `m` rows of `n_in` numbers, a multiple of 32. A row with a number that is not finite has blocks whose scale is
    /// not.
    pub fn round(&mut self, x: &[f32], m: usize) {
        let n_in = x.len() / m;
        let n_blocks = n_in / BLOCK;
        self.blocks.resize(m * n_blocks, Block::default());
        self.rests.resize_with(n_blocks, Vec::new);
        self.limits.resize(m, 0.0);
        let limit = |(row, limit): (&[f32], &mut f32)| *limit = STANDS_OUT * rms(row);
        let is_small = x.len() < PARALLEL;
        if is_small {
            x.chunks_exact(n_in).zip(&mut self.limits).for_each(limit);
        } else {
            x.par_chunks_exact(n_in).zip(&mut self.limits).with_min_len(8).for_each(limit);
        }
        let limits = &self.limits;
        let column = |(b, (out, rests)): (usize, (&mut [Block], &mut Vec<Rest>))| {
            round_column(x, b, limits, out, rests);
        };
        if is_small {
            self.blocks.chunks_exact_mut(m).zip(&mut self.rests).enumerate().for_each(column);
        } else {
            let columns = self.blocks.par_chunks_exact_mut(m).zip(&mut self.rests);
            columns.enumerate().with_min_len(8).for_each(column);
        }
    }
}

dispatch!(fn rms(x: &[f32]) -> f32 = rms_impl);
dispatch! {
    fn round_column(x: &[f32], block_idx: usize, limits: &[f32], out: &mut [Block], rests: &mut Vec<Rest>)
        = round_column_impl
}

#[inline(always)]
fn rms_impl<S: Simd>(x: &[f32]) -> f32 {
    (simd::sum_of_squares::<S>(x) / x.len() as f32).sqrt()
}

/// The same block of all rows; `S` only brings its instruction set, which LLVM makes vectors of these loops with.
#[inline(always)]
fn round_column_impl<S: Simd>(
    x: &[f32],
    block_idx: usize,
    limits: &[f32],
    out: &mut [Block],
    rests: &mut Vec<Rest>,
) {
    rests.clear();
    let n_in = x.len() / out.len();
    for (row_idx, ((row, out), limit)) in x.chunks_exact(n_in).zip(out).zip(limits).enumerate() {
        let x: &[f32; BLOCK] = row[block_idx * BLOCK..].first_chunk().expect("whole blocks");
        let largest = round_block(x, out);
        if largest > *limit {
            let mut rest = *x;
            for (rest, q) in rest.iter_mut().zip(out.q) {
                *rest -= out.scale * f32::from(q);
            }
            let mut block = Block::default();
            round_block(&rest, &mut block);
            out.total += block.total;
            out.first_total += block.first_total;
            rests.push(Rest { row: row_idx, block });
        }
    }
}

/// Returns the largest magnitude.
#[inline(always)]
fn round_block(x: &[f32; BLOCK], out: &mut Block) -> f32 {
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
    out.first_total = out.scale * first as f32;
    out.total = out.scale * (first + last) as f32;
    largest
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
impl Input {
    /// What number `k` of row `i` of `m` was rounded to.
    pub fn number(&self, m: usize, i: usize, k: usize) -> f64 {
        let of = |block: &Block| f64::from(block.scale) * f64::from(block.q[k % BLOCK]);
        let rest = self.rests[k / BLOCK].iter().find(|rest| rest.row == i);
        of(&self.blocks[k / BLOCK * m + i]) + rest.map_or(0.0, |rest| of(&rest.block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::on_each;
    use crate::reference::{bits, values};

    fn rounded(x: &[f32], m: usize) -> Input {
        let mut input = Input::default();
        input.round(x, m);
        input
    }

    #[test]
    fn rounds_to_the_nearest_of_255_numbers() {
        on_each(|| {
            let (m, n) = (3, 96);
            let mut x = values(m * n, 5);
            x[n..2 * n].iter_mut().for_each(|x| *x *= 1e-20);
            x[2 * n..][..32].fill(0.0);
            // A row before has others that stand out, which must be forgotten.
            let mut input = rounded(&[[9.0; 1].as_slice(), &[0.1; 255]].concat(), 1);
            assert_eq!(input.rests.iter().map(Vec::len).sum::<usize>(), 1);
            input.round(&x, m);
            assert_eq!((input.blocks.len(), input.rests.len()), (9, 3));
            assert!(input.rests.iter().all(Vec::is_empty));
            for (i, b) in (0..m).flat_map(|i| (0..3).map(move |b| (i, b))) {
                let block = &input.blocks[b * m + i];
                let x = &x[i * n + b * 32..][..32];
                let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                assert_eq!(block.scale, largest / 127.0);
                for (x, &q) in x.iter().zip(&block.q) {
                    assert!((x - block.scale * f32::from(q)).abs() <= 0.5001 * block.scale, "{x} {q}");
                }
                let sums =
                    [&block.q[..16], &block.q[16..]].map(|q| q.iter().map(|&q| i32::from(q)).sum::<i32>());
                assert_eq!(block.sums.map(i32::from), [sums[0] + sums[1], sums[0]]);
                assert_eq!(block.first_total, block.scale * sums[0] as f32);
                assert_eq!(block.total, block.scale * (sums[0] + sums[1]) as f32);
            }
        });
    }

    #[test]
    fn what_stands_out_is_rounded_twice() {
        on_each(|| {
            let (m, n) = (2, 256);
            let mut x = values(m * n, 8);
            // 0.29 is the root of the mean square of the others.
            x[n + 70] = -8.0;
            let input = rounded(&x, m);
            let rows: Vec<Vec<usize>> =
                input.rests.iter().map(|rests| rests.iter().map(|rest| rest.row).collect()).collect();
            assert_eq!(rows, [vec![], vec![], vec![1], vec![], vec![], vec![], vec![], vec![]]);
            for k in 64..96 {
                let error = (input.number(m, 1, k) - f64::from(x[n + k])).abs();
                assert!(error <= 8.0 / 127.0 / 254.0 * 0.51, "{k}: {error}");
            }
            let total: f64 = (64..96).map(|k| input.number(m, 1, k)).sum();
            assert!((f64::from(input.blocks[2 * m + 1].total) - total).abs() < 1e-5);
            let first: f64 = (64..80).map(|k| input.number(m, 1, k)).sum();
            assert!((f64::from(input.blocks[2 * m + 1].first_total) - first).abs() < 1e-5);
        });
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = values(64, 1);
            x[40] = bad;
            let input = rounded(&x, 1);
            assert!(input.blocks[0].scale.is_finite() && !input.blocks[1].scale.is_finite());
        }
    }

    #[test]
    fn a_row_alone_and_among_others() {
        on_each(|| {
            let mut x = values(1100 * 64, 3);
            x[700 * 64 + 33] = 40.0;
            let all = rounded(&x, 1100);
            let alone = rounded(&x[700 * 64..701 * 64], 1);
            for (b, alone) in alone.blocks.iter().enumerate() {
                let among = &all.blocks[b * 1100 + 700];
                assert!(among.q == alone.q && bits(&[among.scale]) == bits(&[alone.scale]));
            }
            assert_eq!((alone.rests[0].len(), alone.rests[1].len()), (0, 1));
            assert_eq!((all.rests[0].len(), all.rests[1].len()), (0, 1));
            assert!(all.rests[1][0].block.q == alone.rests[1][0].block.q);
        });
    }
}
