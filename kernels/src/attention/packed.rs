//! Keys or values of a cache in 16 or 8 bits an element: a half or a quarter of the memory, and of the time to read it.
//!
//! Rows are rounded once, when they are stored, and widened to `f32` a few at a time, in L1, when attention reads them. So
//! whether a position is stored in a prompt or alone, and read by one query or by many, its numbers are the same.

use std::ops::Range;

use super::{Place, Rows};
use crate::matmul::Mat;
use crate::memory;
use crate::simd::{Simd, dispatch};

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// IEEE 754's binary16, rounded to nearest: 11 bits of precision; infinite from 65520 on.
    F16,
    /// For each row of a head a scale, its largest magnitude divided by 127, and for each element how many of it there
    /// are, rounded to nearest. A row that has an element that is not finite is NaN altogether.
    Q8,
}

/// The keys or the values of a cache, `[batch, n_kv_head, capacity, head_dim]`, packed. All zero at first.
#[derive(Clone, Debug)]
pub struct Packed {
    elements: Elements,
    batch: usize,
    n_kv_head: usize,
    capacity: usize,
    head_dim: usize,
}

#[derive(Clone, Debug)]
enum Elements {
    F16(Vec<u16>),
    Q8 { counts: Vec<i8>, scales: Vec<f32> },
}

impl Packing {
    /// Bytes of a row of a head.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            Packing::F16 => 2 * head_dim,
            Packing::Q8 => head_dim + 4,
        }
    }
}

impl Packed {
    /// Room for `capacity` rows of each head of each sequence: memory that is not touched before they come.
    pub fn new(packing: Packing, [batch, n_kv_head, capacity, head_dim]: [usize; 4]) -> Self {
        let n_rows = batch * n_kv_head * capacity;
        let elements = match packing {
            Packing::F16 => Elements::F16(memory::zeroed(n_rows * head_dim)),
            Packing::Q8 => {
                let (counts, scales) = (memory::zeroed(n_rows * head_dim), memory::zeroed(n_rows));
                Elements::Q8 { counts, scales }
            }
        };
        Self { elements, batch, n_kv_head, capacity, head_dim }
    }

    /// How elements are stored.
    pub fn packing(&self) -> Packing {
        match self.elements {
            Elements::F16(_) => Packing::F16,
            Elements::Q8 { .. } => Packing::Q8,
        }
    }

    /// `[batch, n_kv_head, capacity, head_dim]`
    pub fn shape(&self) -> [usize; 4] {
        [self.batch, self.n_kv_head, self.capacity, self.head_dim]
    }

    /// Stores the rows of a head from a position on, rounded. `[n, head_dim]`
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn store(&mut self, batch: usize, head: usize, position: usize, rows: &[f32]) {
        let n = rows.len() / self.head_dim;
        let of = self.places(batch, head, position..position + n);
        let elements = of.start * self.head_dim..of.end * self.head_dim;
        match &mut self.elements {
            Elements::F16(halves) => narrow_to_f16(rows, &mut halves[elements]),
            Elements::Q8 { counts, scales } => {
                narrow_to_q8(rows, self.head_dim, &mut counts[elements], &mut scales[of]);
            }
        }
    }

    /// Some rows of a head, widened. `[positions.len(), head_dim]`
    ///
    /// # Panics
    /// If there are no such rows, or `out` has another size.
    pub fn widen(&self, batch: usize, head: usize, positions: Range<usize>, out: &mut [f32]) {
        let of = self.places(batch, head, positions);
        let elements = of.start * self.head_dim..of.end * self.head_dim;
        match &self.elements {
            Elements::F16(halves) => widen_f16(&halves[elements], out),
            Elements::Q8 { counts, scales } => {
                widen_q8(&counts[elements], self.head_dim, &scales[of], out);
            }
        }
    }

    /// Moves some rows of every head to other positions, as they are stored; they may overlap.
    ///
    /// # Panics
    /// If there are no such rows, or no room for them.
    pub fn move_rows(&mut self, from: Range<usize>, to: usize) {
        let (capacity, head_dim) = (self.capacity, self.head_dim);
        assert!(from.end <= capacity && to + from.len() <= capacity, "rows {from:?} to {to} of {capacity}");
        let moved = |first: usize, width: usize| {
            ((first + from.start) * width..(first + from.end) * width, (first + to) * width)
        };
        for first in (0..self.batch * self.n_kv_head).map(|i| i * capacity) {
            let (elements, place) = moved(first, head_dim);
            match &mut self.elements {
                Elements::F16(halves) => halves.copy_within(elements, place),
                Elements::Q8 { counts, scales } => {
                    counts.copy_within(elements, place);
                    let (rows, place) = moved(first, 1);
                    scales.copy_within(rows, place);
                }
            }
        }
    }

    /// Copies all rows of one sequence to another one, as they are stored.
    ///
    /// # Panics
    /// If one of them is not there.
    pub fn copy_batch(&mut self, from: usize, to: usize) {
        assert!(from.max(to) < self.batch, "sequence {from} to {to} of {}", self.batch);
        let copied = |width: usize| {
            let n = self.n_kv_head * self.capacity * width;
            (from * n..(from + 1) * n, to * n)
        };
        let ((elements, place), (rows, row)) = (copied(self.head_dim), copied(1));
        match &mut self.elements {
            Elements::F16(halves) => halves.copy_within(elements, place),
            Elements::Q8 { counts, scales } => {
                counts.copy_within(elements, place);
                scales.copy_within(rows, row);
            }
        }
    }

    /// Which rows of all these are.
    fn places(&self, batch: usize, head: usize, positions: Range<usize>) -> Range<usize> {
        let Self { n_kv_head, capacity, .. } = *self;
        assert!(
            batch < self.batch && head < n_kv_head && positions.end <= capacity,
            "sequence {batch}, head {head}, positions {positions:?} of {:?}",
            self.shape()
        );
        let first = (batch * n_kv_head + head) * capacity;
        first + positions.start..first + positions.end
    }
}

impl Rows for &Packed {
    const AT_ONCE: usize = 64;

    fn scratch(head_dim: usize) -> usize {
        Self::AT_ONCE * head_dim
    }

    fn rows<'s>(
        &'s self,
        batch: usize,
        head: usize,
        positions: Range<usize>,
        head_dim: usize,
        scratch: &'s mut [f32],
    ) -> Mat<'s> {
        assert!(head_dim == self.head_dim, "heads of {head_dim} in a cache for {}", self.head_dim);
        let n = positions.len();
        let widened = &mut scratch[..n * head_dim];
        self.widen(batch, head, positions, widened);
        Mat::new(widened, n, head_dim)
    }

    fn place(&self, batch: usize, head: usize, positions: Range<usize>, head_dim: usize) -> Place {
        let first = (batch * self.n_kv_head + head) * self.capacity;
        let elements = (first + positions.start) * head_dim..(first + positions.end) * head_dim;
        match &self.elements {
            Elements::F16(halves) => Place::of(halves.as_ptr(), elements),
            // Scales lie elsewhere, but are few.
            Elements::Q8 { counts, .. } => Place::of(counts.as_ptr(), elements),
        }
    }
}

dispatch!(fn widen_f16(halves: &[u16], out: &mut [f32]) = widen_f16_impl);
dispatch!(fn narrow_to_f16(x: &[f32], halves: &mut [u16]) = narrow_to_f16_impl);
dispatch!(fn widen_q8(counts: &[i8], head_dim: usize, scales: &[f32], out: &mut [f32]) = widen_q8_impl);
dispatch!(fn narrow_to_q8(x: &[f32], head_dim: usize, counts: &mut [i8], scales: &mut [f32]) = narrow_to_q8_impl);

#[inline(always)]
fn widen_f16_impl<S: Simd>(halves: &[u16], out: &mut [f32]) {
    assert!(halves.len() == out.len());
    let (from, to) = (halves.chunks_exact(S::LANES), out.chunks_exact_mut(S::LANES));
    let rest = from.remainder();
    for (from, to) in from.zip(to) {
        S::load_f16(from).store(to);
    }
    let whole = out.len() - rest.len();
    for (half, out) in rest.iter().zip(&mut out[whole..]) {
        *out = f16_to_f32(*half);
    }
}

#[inline(always)]
fn narrow_to_f16_impl<S: Simd>(x: &[f32], halves: &mut [u16]) {
    assert!(halves.len() == x.len());
    let (from, to) = (x.chunks_exact(S::LANES), halves.chunks_exact_mut(S::LANES));
    let rest = from.remainder();
    for (from, to) in from.zip(to) {
        S::load(from).store_f16(to);
    }
    let whole = x.len() - rest.len();
    for (x, half) in rest.iter().zip(&mut halves[whole..]) {
        *half = f32_to_f16(*x);
    }
}

#[inline(always)]
fn widen_q8_impl<S: Simd>(counts: &[i8], head_dim: usize, scales: &[f32], out: &mut [f32]) {
    assert!(counts.len() == out.len() && out.len() == scales.len() * head_dim);
    let rows = counts.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
    for ((counts, out), &scale) in rows.zip(scales) {
        let (from, to) = (counts.chunks_exact(S::LANES), out.chunks_exact_mut(S::LANES));
        let rest = from.remainder();
        let all = S::splat(scale);
        for (from, to) in from.zip(to) {
            (S::load_i8(from) * all).store(to);
        }
        for (count, out) in rest.iter().zip(&mut out[head_dim - rest.len()..]) {
            *out = f32::from(*count) * scale;
        }
    }
}

/// Plain loops, which LLVM makes vectors of: a row is stored once and read many times.
#[inline(always)]
fn narrow_to_q8_impl<S: Simd>(x: &[f32], head_dim: usize, counts: &mut [i8], scales: &mut [f32]) {
    assert!(counts.len() == x.len() && x.len() == scales.len() * head_dim);
    let rows = x.chunks_exact(head_dim).zip(counts.chunks_exact_mut(head_dim));
    for ((x, counts), scale) in rows.zip(scales) {
        let largest = x.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        // What is not finite leaves no zero here: the largest alone would pass over a NaN.
        let is_finite = x.iter().fold(0.0, |sum, x| sum + x * 0.0) == 0.0;
        *scale = match is_finite {
            // The inverse of a number that is not normal may be infinite.
            true if largest < 127.0 * f32::MIN_POSITIVE => 0.0,
            true => largest / 127.0,
            false => f32::NAN,
        };
        let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
        for (x, count) in x.iter().zip(counts) {
            *count = (x * inverse).round_ties_even() as i8;
        }
    }
}

/// The number that a binary16 stands for.
#[inline(always)]
pub(crate) fn f16_to_f32(half: u16) -> f32 {
    /// The exponents' biases differ by 112. A product also gives numbers below binary16's normal ones.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let magnitude = u32::from(half & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * REBIAS).to_bits();
    let bits = if half & 0x7c00 == 0x7c00 { magnitude | 0x7f80_0000 } else { finite };
    f32::from_bits(bits | u32::from(half & 0x8000) << 16)
}

/// The binary16 nearest to a number, the even one of two.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    /// A half is 2^23 of the smallest binary16: adding it rounds to a multiple of that.
    const HALF: f32 = 0.5;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    let nearest = if magnitude > 0x7f80_0000 {
        0x7e00
    } else if magnitude >= (127 + 16) << 23 {
        0x7c00
    } else if magnitude < (127 - 14) << 23 {
        (f32::from_bits(magnitude) + HALF).to_bits() - HALF.to_bits()
    } else {
        // A carry out of the last binade makes an infinity, as it should.
        (magnitude + 0xfff + (magnitude >> 13 & 1) - (112 << 23)) >> 13
    };
    (x.to_bits() >> 16 & 0x8000 | nearest) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attention::tests::{causal_variants, dims};
    use crate::attention::{Dims, Heads, Input, forward};
    use crate::isa::on_each;
    use crate::reference::{bits, on_threads, values};

    fn widened(halves: &[u16]) -> Vec<f32> {
        let mut out = vec![f32::NAN; halves.len()];
        widen_f16(halves, &mut out);
        out
    }

    fn narrowed(x: &[f32]) -> Vec<u16> {
        let mut halves = vec![0; x.len()];
        narrow_to_f16(x, &mut halves);
        halves
    }

    /// The definition of binary16, for finite ones.
    fn number(half: u16) -> f64 {
        let (exponent, fraction) = (i32::from(half >> 10 & 31), f64::from(half & 1023));
        let magnitude = match exponent {
            0 => fraction * 2f64.powi(-24),
            _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
        };
        if half & 0x8000 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn every_binary16_is_widened_and_comes_back() {
        on_each(|| {
            // An odd number, so that some pass by the vectors.
            let all: Vec<u16> = (0..=u16::MAX).chain([1, 0x8001, 0x7bff]).collect();
            let wide = widened(&all);
            for (&half, &x) in all.iter().zip(&wide) {
                match (half & 0x7c00, half & 0x3ff) {
                    (0x7c00, 0) => assert!(x.is_infinite() && x.is_sign_negative() == (half >= 0x8000)),
                    (0x7c00, _) => assert!(x.is_nan()),
                    _ => assert_eq!(f64::from(x).to_bits(), number(half).to_bits(), "{half:#x}"),
                }
            }
            for (back, half) in narrowed(&wide).into_iter().zip(all) {
                assert!(
                    back == half || (half & 0x7c00 == 0x7c00 && back & 0x7c00 == 0x7c00 && back & 0x3ff != 0)
                );
            }
        });
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_binary16() {
        on_each(|| {
            for half in 0..0x7bff_u16 {
                // Halfway to the next, which f32 has room for, and to either side of it.
                let middle = ((number(half) + number(half + 1)) / 2.0) as f32;
                let even = half + (half & 1);
                let around = [middle.next_down(), middle, middle.next_up()];
                let with_signs = around.map(|x| [x, -x]).concat();
                let expected = [half, even, half + 1].map(|half| [half, half | 0x8000]).concat();
                assert_eq!(narrowed(&with_signs), expected, "{middle}");
                let in_a_vector: Vec<f32> = with_signs.iter().cycle().take(18).copied().collect();
                assert_eq!(narrowed(&in_a_vector)[..6], expected, "{middle}");
            }
            let large = [65519.996, 65520.0, 1e30, f32::INFINITY];
            assert_eq!(narrowed(&large.repeat(3))[..4], [0x7bff, 0x7c00, 0x7c00, 0x7c00]);
            assert!(narrowed(&[f32::NAN; 9]).iter().all(|half| half & 0x7fff > 0x7c00));
        });
    }

    #[test]
    fn rows_of_8_bits_are_within_half_a_step() {
        on_each(|| {
            for head_dim in [1, 3, 8, 20, 64] {
                let x: Vec<f32> = values(5 * head_dim, 1).iter().map(|x| x * 7.0).collect();
                let mut packed = Packed::new(Packing::Q8, [1, 1, 6, head_dim]);
                packed.store(0, 0, 1, &x);
                let mut out = vec![f32::NAN; x.len()];
                packed.widen(0, 0, 1..6, &mut out);
                for (x, out) in x.chunks(head_dim).zip(out.chunks(head_dim)) {
                    let largest = x.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
                    for (x, out) in x.iter().zip(out) {
                        assert!(
                            (x - out).abs() <= largest / 127.0 * 0.50001,
                            "{x}: {out}, largest {largest}"
                        );
                    }
                    let rounded = out.iter().fold(0.0, |a: f32, x| a.max(x.abs()));
                    assert!((rounded / largest - 1.0).abs() < 1e-6, "the largest stays");
                }
            }
        });
    }

    #[test]
    fn rows_of_8_bits_at_the_ends() {
        on_each(|| {
            let mut packed = Packed::new(Packing::Q8, [1, 1, 5, 3]);
            let rows = [
                [0.0; 3],
                [1e-38, 0.0, 0.0],
                [1.0, f32::NAN, 0.0],
                [0.0, 2.0, f32::INFINITY],
                [3e38, -3e38, 0.0],
            ];
            packed.store(0, 0, 0, rows.as_flattened());
            let mut out = [1.0; 15];
            packed.widen(0, 0, 0..5, &mut out);
            assert!(out[..6] == [0.0; 6] && out[6..12].iter().all(|x| x.is_nan()));
            assert!(out[12..].iter().zip(rows[4]).all(|(out, x)| (out - x).abs() < 1e32));
        });
    }

    #[test]
    fn rows_move_with_their_scales() {
        for packing in [Packing::F16, Packing::Q8] {
            let mut packed = Packed::new(packing, [2, 2, 8, 5]);
            let x = values(8 * 5, 2);
            let read = |packed: &Packed, positions: Range<usize>| {
                let mut out = vec![f32::NAN; positions.len() * 5];
                packed.widen(1, 1, positions, &mut out);
                out
            };
            packed.store(1, 1, 0, &x);
            let before = read(&packed, 0..8);
            packed.move_rows(3..8, 1);
            assert_eq!(read(&packed, 0..6), [&before[..5], &before[15..]].concat());
        }
    }

    /// Attention over packed keys and values, and over what they are widened to; both as bits.
    fn both_ways(dims: &Dims, packing: Packing, n_threads: usize) -> [Vec<u32>; 2] {
        let Dims { batch, seq_len, start, n_head, n_kv_head, head_dim, .. } = *dims;
        let (n_keys, capacity) = (start + seq_len, start + seq_len + 3);
        let mut caches = [3, 4].map(|seed| {
            let mut packed = Packed::new(packing, [batch, n_kv_head, capacity, head_dim]);
            // NaN behind the last key.
            let mut wide = vec![f32::NAN; batch * n_kv_head * capacity * head_dim];
            for (i, wide) in wide.chunks_mut(capacity * head_dim).enumerate() {
                let (b, head) = (i / n_kv_head, i % n_kv_head);
                packed.store(b, head, 0, wide);
                packed.store(b, head, 0, &values(n_keys * head_dim, seed * 100 + i as u32));
                packed.widen(b, head, 0..n_keys, &mut wide[..n_keys * head_dim]);
            }
            (packed, wide)
        });
        let [(packed_k, k), (packed_v, v)] = caches.each_mut();
        let heads = |data, n_head, n: usize| Heads {
            data,
            batch_stride: n_head * n * head_dim,
            head_stride: n * head_dim,
            pos_stride: head_dim,
        };
        let (q, sinks) = (values(batch * n_head * seq_len * head_dim, 5), values(n_head, 6));
        let (q, sinks) = (heads(&q, n_head, seq_len), Some(&sinks[..]));
        let [k, v] = [k, v].map(|data| heads(data, n_kv_head, capacity));
        let (packed_k, packed_v) = (&*packed_k, &*packed_v);
        let mut out = [
            vec![f32::NAN; batch * seq_len * n_head * head_dim],
            vec![0.0; batch * seq_len * n_head * head_dim],
        ];
        let [packed_out, wide_out] = &mut out;
        on_threads(n_threads, || {
            forward(dims, Input { q, k: packed_k, v: packed_v, sinks }, packed_out, None);
            forward(dims, Input { q, k, v, sinks }, wide_out, None);
        });
        out.map(|out| bits(&out))
    }

    #[test]
    fn attention_is_that_over_the_widened_numbers() {
        on_each(|| {
            for packing in [Packing::F16, Packing::Q8] {
                for (seq_len, start) in [(1, 0), (1, 63), (1, 64), (1, 200), (5, 130), (70, 100), (130, 0)] {
                    for dims in causal_variants(Dims { start, ..dims(2, seq_len, 6, 2, 20) }) {
                        let [packed, wide] = both_ways(&dims, packing, 1);
                        assert_eq!(packed, wide, "{packing:?}, {dims:?}");
                    }
                }
                // Long enough that steps are shared out one by one.
                let long = Dims { start: 2900, ..dims(1, 1, 10, 2, 40) };
                let [packed, wide] = both_ways(&long, packing, 5);
                assert!(packed == wide && both_ways(&long, packing, 1)[0] == packed, "{packing:?}");
            }
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn random_shapes(
            batch in 1usize..3, seq_len in 1usize..4, start in 0usize..150,
            group in 1usize..15, n_kv_head in 1usize..4, head_dim in 1usize..70,
        ) {
            on_each(|| {
                let dims = Dims { start, ..dims(batch, seq_len, group * n_kv_head, n_kv_head, head_dim) };
                for packing in [Packing::F16, Packing::Q8] {
                    let [packed, wide] = both_ways(&dims, packing, 2);
                    assert_eq!(packed, wide, "{packing:?}, {dims:?}");
                }
            });
        }
    }
}
