//! Rows of exponentials, shared by attention and the loss.

use crate::simd::{self, Simd, dispatch, map};

/// Elements exponentiated and then summed at a time, while they are in L1.
///
/// Part of the definition of the sum: it fixes the order in which elements are added.
const BLOCK: usize = 512;

dispatch! {
    /// The largest element of a row.
    pub(crate) fn max(row: &[f32]) -> f32 = max_impl
}

#[inline(always)]
fn max_impl<S: Simd>(row: &[f32]) -> f32 {
    simd::max::<S>(row)
}

dispatch! {
    /// Replaces each `x` by `exp(x * scale + shift)` and returns the sum of the new values.
    pub(crate) fn exp_in_place(row: &mut [f32], scale: f32, shift: f32) -> f32 = exp_in_place_impl
}

#[inline(always)]
fn exp_in_place_impl<S: Simd>(row: &mut [f32], scale: f32, shift: f32) -> f32 {
    let (scale, shift) = (S::splat(scale), S::splat(shift));
    let mut total = 0.0;
    for block in row.chunks_mut(BLOCK) {
        map!(S, |x in block| -> [block] [x.mul_add(scale, shift).exp()]);
        total += simd::sum::<S>(block);
    }
    total
}

/// What [`exp_in_place`] with scale 1 returns, to the bit, leaving the row alone.
pub(crate) fn sum_exp(row: &[f32], shift: f32) -> f32 {
    let mut copy = [0.0; BLOCK];
    let blocks = row.chunks(BLOCK).map(|block| {
        let copy = &mut copy[..block.len()];
        copy.copy_from_slice(block);
        exp_in_place(copy, 1.0, shift)
    });
    blocks.fold(0.0, |total, sum| total + sum)
}

dispatch! {
    /// Multiplies a row by a number.
    pub(crate) fn scale(row: &mut [f32], factor: f32) = scale_impl
}

#[inline(always)]
fn scale_impl<S: Simd>(row: &mut [f32], factor: f32) {
    let factor = S::splat(factor);
    map!(S, |x in row| -> [row] [x * factor]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::on_each;

    #[test]
    fn every_length_against_f64() {
        on_each(|| {
            for n in (0..70).chain([511, 512, 513, 1500]) {
                let x: Vec<f32> = (0..n).map(|i| (i * 29 % 83) as f32 * 0.1 - 4.0).collect();
                let mut y = x.clone();
                let total = exp_in_place(&mut y, 0.5, -0.25);
                let exact: Vec<f64> = x.iter().map(|&x| (f64::from(x) * 0.5 - 0.25).exp()).collect();
                for (y, exact) in y.iter().zip(&exact) {
                    assert!((f64::from(*y) - exact).abs() <= 4e-7 * exact, "n = {n}");
                }
                let exact: f64 = exact.iter().sum();
                assert!((f64::from(total) - exact).abs() <= 2e-6 * exact, "n = {n}: {total} for {exact}");
                scale(&mut y, 2.0);
                assert_eq!(sum_exp(&x, -1.0).to_bits(), exp_in_place(&mut x.clone(), 1.0, -1.0).to_bits());
            }
        });
    }
}
