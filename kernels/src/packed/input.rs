//! The other factor of a product with packed integers: rows of floats, rounded to 8 bits in blocks of 32.
//!
//! A few numbers of a row of activations are often far larger than the rest, and their blocks make nearly all of the error:
//! what rounding leaves of such a block is rounded once more and multiplied besides (Dettmers et al. 2022, "LLM.int8()",
//! keeps such columns in half precision). With SmolLM2-135M that is every eighth block, and leaves a fifth of the
//! divergence from float32.

use std::ops::Range;

use rayon::prelude::*;

use crate::Isa;
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
    /// The sums of all `q` and of the first 16, with the other sign: times the zero that weights are counted from, they make
    /// up for it.
    pub negated_sums: [i32; 2],
}

/// What rounding left of a block that stands out. The total of that block includes these numbers.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    /// Of which block of a row.
    pub idx: usize,
    /// Of which row of the band.
    pub row: usize,
    /// Rounded again.
    pub block: Block,
}

/// Some rows that meet a tile of weights in one go.
#[derive(Default)]
pub(super) struct Band {
    /// Its first row.
    pub first: usize,
    /// Rows.
    pub n: usize,
    /// Rows with those of zeros that fill it up.
    pub width: usize,
    /// Where its blocks begin among those of the input: block `b` of row `r` is number `b * width + r` of them.
    begin: usize,
    /// Of blocks that stand out, in order of these and then of rows.
    pub rests: Vec<Rest>,
}

/// Rows, rounded. A row's blocks follow from the row alone.
#[derive(Default)]
pub(super) struct Input {
    blocks: Vec<Block>,
    bands: Vec<Band>,
    /// Whether bands are those of [`super::ints512`].
    pub is_wide: bool,
}

/// Numbers below which rayon's threads are not woken: on one thread they take some 20 µs.
const PARALLEL: usize = 1 << 17;

impl Input {
    /// Rounds `m` rows of `n_in` numbers, a multiple of 32. A row with a number that is not finite has blocks whose scale is
    /// not.
    pub fn round(&mut self, x: &[f32], m: usize) {
        let n_in = x.len() / m;
        self.is_wide = m > 1 && Isa::current().has_avx512();
        let band_of = if self.is_wide { super::ints512::band_of } else { super::ints::band_of };
        let (mut first, mut begin, mut n_bands) = (0, 0, 0);
        while first < m {
            let (n, width) = band_of(m - first);
            if self.bands.len() == n_bands {
                self.bands.push(Band::default());
            }
            let band = &mut self.bands[n_bands];
            (band.first, band.n, band.width, band.begin) = (first, n, width, begin);
            (first, begin, n_bands) = (first + n, begin + width * n_in / BLOCK, n_bands + 1);
        }
        self.bands.truncate(n_bands);
        if self.blocks.len() < begin {
            self.blocks.resize(begin, Block::default());
        }
        if x.len() < PARALLEL {
            for band in &mut self.bands {
                let blocks = &mut self.blocks[band.begin..][..band.width * n_in / BLOCK];
                round_band(&x[band.first * n_in..][..band.n * n_in], band, blocks);
            }
            return;
        }
        let mut rest = &mut self.blocks[..];
        let bands = self.bands.iter_mut().map(|band| {
            let blocks = rest.split_off_mut(..band.width * n_in / BLOCK).expect("as many as were counted");
            (band, blocks)
        });
        bands.collect::<Vec<_>>().into_par_iter().for_each(|(band, blocks)| {
            round_band(&x[band.first * n_in..][..band.n * n_in], band, blocks);
        });
    }

    /// Rows of a band, but for the last.
    pub fn unit(&self) -> usize {
        self.bands.first().map_or(1, |band| band.n)
    }

    /// Bands that begin within some rows, in order, with the blocks of each.
    pub fn bands(&self, rows: &Range<usize>, n_blocks: usize) -> impl Iterator<Item = (&Band, &[Block])> {
        let bands = self.bands.iter().filter(|band| rows.contains(&band.first));
        bands.map(move |band| (band, &self.blocks[band.begin..][..band.width * n_blocks]))
    }
}

dispatch!(fn round_band(x: &[f32], band: &mut Band, out: &mut [Block]) = round_band_impl);

#[inline(always)]
fn rms_impl<S: Simd>(x: &[f32]) -> f32 {
    (simd::sum_of_squares::<S>(x) / x.len() as f32).sqrt()
}

/// Beyond the root mean square, `S` only brings its instruction set, which LLVM makes vectors of these loops with.
#[inline(always)]
fn round_band_impl<S: Simd>(x: &[f32], band: &mut Band, out: &mut [Block]) {
    band.rests.clear();
    let n_in = x.len() / band.n;
    for (r, row) in x.chunks_exact(n_in).enumerate() {
        let limit = STANDS_OUT * rms_impl::<S>(row);
        for (idx, x) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
            let out = &mut out[idx * band.width + r];
            let largest = round_block(x, out);
            if largest > limit {
                let mut rest = *x;
                for (rest, q) in rest.iter_mut().zip(out.q) {
                    *rest -= out.scale * f32::from(q);
                }
                let mut block = Block::default();
                round_block(&rest, &mut block);
                out.total += block.total;
                band.rests.push(Rest { idx, row: r, block });
            }
        }
    }
    for out in out.chunks_exact_mut(band.width) {
        out[band.n..].fill(Block::default());
    }
    band.rests.sort_unstable_by_key(|rest| (rest.idx, rest.row));
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
    out.negated_sums = [-(first + last), -first];
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
    /// Block `idx` of a row and, if it stands out, its rest.
    pub fn block(&self, row: usize, idx: usize) -> (Block, Option<Block>) {
        let band = self.bands.iter().find(|band| row < band.first + band.n).expect("a band");
        let r = row - band.first;
        let rest = band.rests.iter().find(|rest| (rest.idx, rest.row) == (idx, r));
        (self.blocks[band.begin + idx * band.width + r], rest.map(|rest| rest.block))
    }

    /// What number `k` of a row was rounded to.
    pub fn number(&self, row: usize, k: usize) -> f64 {
        let of = |block: &Block| f64::from(block.scale) * f64::from(block.q[k % BLOCK]);
        let (block, rest) = self.block(row, k / BLOCK);
        of(&block) + rest.as_ref().map_or(0.0, of)
    }

    /// How many blocks stand out.
    pub fn n_rests(&self) -> usize {
        self.bands.iter().map(|band| band.rests.len()).sum()
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
            assert_eq!(input.n_rests(), 1);
            input.round(&x, m);
            assert_eq!(input.n_rests(), 0);
            for (i, b) in (0..m).flat_map(|i| (0..3).map(move |b| (i, b))) {
                let (block, _) = input.block(i, b);
                let x = &x[i * n + b * 32..][..32];
                let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                assert_eq!(block.scale, largest / 127.0);
                for (x, &q) in x.iter().zip(&block.q) {
                    assert!((x - block.scale * f32::from(q)).abs() <= 0.5001 * block.scale, "{x} {q}");
                }
                let sums =
                    [&block.q[..16], &block.q[16..]].map(|q| q.iter().map(|&q| i32::from(q)).sum::<i32>());
                assert_eq!(block.negated_sums, [-sums[0] - sums[1], -sums[0]]);
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
            let (block, rest) = input.block(1, 2);
            assert!(input.n_rests() == 1 && rest.is_some());
            for k in 64..96 {
                let error = (input.number(1, k) - f64::from(x[n + k])).abs();
                assert!(error <= 8.0 / 127.0 / 254.0 * 0.51, "{k}: {error}");
            }
            let total: f64 = (64..96).map(|k| input.number(1, k)).sum();
            assert!((f64::from(block.total) - total).abs() < 1e-5);
        });
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        on_each(|| {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![1.0; 64];
                x[40] = bad;
                let input = rounded(&x, 1);
                assert!(input.block(0, 0).0.scale.is_finite() && !input.block(0, 1).0.scale.is_finite());
            }
        });
    }

    #[test]
    fn a_row_alone_and_among_others() {
        on_each(|| {
            for m in [2, 5, 9, 13, 17, 130, 1100] {
                let mut x = values(m * 128, 3);
                let row = m * 7 / 11;
                x[row * 128 + 33] = 40.0;
                let (all, alone) = (rounded(&x, m), rounded(&x[row * 128..][..128], 1));
                assert_eq!((all.n_rests(), alone.n_rests()), (1, 1), "{m} rows");
                for idx in 0..4 {
                    let parts = |input: &Input, row: usize| {
                        let (block, rest) = input.block(row, idx);
                        [Some(block), rest]
                            .map(|b| b.map(|b| (b.q, bits(&[b.scale, b.total]), b.negated_sums)))
                    };
                    assert_eq!(parts(&all, row), parts(&alone, 0), "block {idx} of {m} rows");
                }
            }
        });
    }
}
