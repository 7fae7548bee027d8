//! Activation functions: GELU, exact and by tanh, and the gated SiLU of LLaMA's feed-forward (SwiGLU).
//!
//! A backward takes the forward's input, not its output: the derivative needs it, and recomputing the
//! exponential costs less than keeping another buffer. About one exponential per element either way, so
//! these run at a few bytes per cycle, not at the speed of memory.

use std::f32::consts::FRAC_1_SQRT_2;

use rayon::prelude::*;

use crate::simd::{Simd, dispatch, map};
use crate::{CHUNK, rows_per_task};

/// Exact GELU: `y = x * Φ(x)` with the normal distribution's `Φ`, to an absolute error below 1e-6.
///
/// # Shapes
/// - `x`, `y`: any, the same
///
/// # Panics
/// If the lengths differ.
pub fn gelu(x: &[f32], y: &mut [f32]) {
    forward("gelu", x, y, gelu_chunk);
}

/// Backward of [`gelu`]: `dx = dy * d gelu(x) / dx`.
///
/// # Shapes
/// - `x` (the forward's input), `dy`, `dx`: any, the same
///
/// # Panics
/// If the lengths differ.
pub fn gelu_backward(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    backward("gelu_backward", x, dy, dx, gelu_backward_chunk);
}

/// GELU by tanh, as in GPT-2: `y = x / 2 * (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
///
/// # Shapes
/// - `x`, `y`: any, the same
///
/// # Panics
/// If the lengths differ.
pub fn gelu_tanh(x: &[f32], y: &mut [f32]) {
    forward("gelu_tanh", x, y, gelu_tanh_chunk);
}

/// Backward of [`gelu_tanh`]: `dx = dy * d gelu_tanh(x) / dx`.
///
/// # Shapes
/// - `x` (the forward's input), `dy`, `dx`: any, the same
///
/// # Panics
/// If the lengths differ.
pub fn gelu_tanh_backward(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    backward("gelu_tanh_backward", x, dy, dx, gelu_tanh_backward_chunk);
}

/// The gated SiLU: `out = silu(gate) * up` with `silu(g) = g / (1 + e^-g)`.
///
/// # Shapes
/// - `gate_up`: `[rows, 2 * n_ff]`, in each row the gate first, then up
/// - `out`: `[rows, n_ff]`
///
/// # Panics
/// If the lengths do not fit.
pub fn swiglu(gate_up: &[f32], n_ff: usize, out: &mut [f32]) {
    check_gated("swiglu", gate_up, n_ff, out.len());
    let rows = rows_per_task(n_ff);
    let width = n_ff.max(1);
    out.par_chunks_mut(rows * width).zip(gate_up.par_chunks(2 * rows * width)).for_each(|(out, gate_up)| {
        for (gate_up, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = gate_up.split_at(width);
            swiglu_row(gate, up, out);
        }
    });
}

/// Backward of [`swiglu`].
///
/// # Shapes
/// - `gate_up` (the forward's input), `d_gate_up`: `[rows, 2 * n_ff]`
/// - `dout`: `[rows, n_ff]`
///
/// # Panics
/// If the lengths do not fit.
pub fn swiglu_backward(gate_up: &[f32], n_ff: usize, dout: &[f32], d_gate_up: &mut [f32]) {
    check_gated("swiglu_backward", gate_up, n_ff, dout.len());
    assert!(
        d_gate_up.len() == gate_up.len(),
        "swiglu_backward: gate_up {}, d_gate_up {}",
        gate_up.len(),
        d_gate_up.len()
    );
    let rows = rows_per_task(n_ff);
    let width = n_ff.max(1);
    let tasks = d_gate_up.par_chunks_mut(2 * rows * width).zip(gate_up.par_chunks(2 * rows * width));
    tasks.zip(dout.par_chunks(rows * width)).for_each(|((d_gate_up, gate_up), dout)| {
        let rows = d_gate_up.chunks_exact_mut(2 * width).zip(gate_up.chunks_exact(2 * width));
        for ((d_gate_up, gate_up), dout) in rows.zip(dout.chunks_exact(width)) {
            let (gate, up) = gate_up.split_at(width);
            let (d_gate, d_up) = d_gate_up.split_at_mut(width);
            swiglu_backward_row(gate, up, dout, d_gate, d_up);
        }
    });
}

fn check_gated(name: &str, gate_up: &[f32], n_ff: usize, n_out: usize) {
    assert!(
        gate_up.len() == 2 * n_out && (n_out == 0 || n_ff > 0 && n_out.is_multiple_of(n_ff)),
        "{name}: gate_up {}, n_ff {n_ff}, out {n_out}",
        gate_up.len()
    );
}

fn forward(name: &str, x: &[f32], y: &mut [f32], chunk: fn(&[f32], &mut [f32])) {
    assert!(x.len() == y.len(), "{name}: x {}, y {}", x.len(), y.len());
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| chunk(x, y));
}

fn backward(name: &str, x: &[f32], dy: &[f32], dx: &mut [f32], chunk: fn(&[f32], &[f32], &mut [f32])) {
    let n = x.len();
    assert!(n == dy.len() && n == dx.len(), "{name}: x {n}, dy {}, dx {}", dy.len(), dx.len());
    let tasks = dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
    tasks.for_each(|((dx, x), dy)| chunk(x, dy, dx));
}

dispatch!(fn gelu_chunk(x: &[f32], y: &mut [f32]) = gelu_chunk_impl);
dispatch!(fn gelu_backward_chunk(x: &[f32], dy: &[f32], dx: &mut [f32]) = gelu_backward_chunk_impl);
dispatch!(fn gelu_tanh_chunk(x: &[f32], y: &mut [f32]) = gelu_tanh_chunk_impl);
dispatch!(fn gelu_tanh_backward_chunk(x: &[f32], dy: &[f32], dx: &mut [f32]) = gelu_tanh_backward_chunk_impl);
dispatch!(fn swiglu_row(gate: &[f32], up: &[f32], out: &mut [f32]) = swiglu_row_impl);
dispatch! {
    fn swiglu_backward_row(gate: &[f32], up: &[f32], dout: &[f32], d_gate: &mut [f32], d_up: &mut [f32])
        = swiglu_backward_row_impl
}

#[inline(always)]
fn gelu_chunk_impl<S: Simd>(x: &[f32], y: &mut [f32]) {
    map!(S, |x in x| -> [y] [gelu_value(x)]);
}

#[inline(always)]
fn gelu_backward_chunk_impl<S: Simd>(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    map!(S, |x in x, dy in dy| -> [dx] [gelu_derivative(x, dy)]);
}

#[inline(always)]
fn gelu_tanh_chunk_impl<S: Simd>(x: &[f32], y: &mut [f32]) {
    map!(S, |x in x| -> [y] [gelu_tanh_value(x)]);
}

#[inline(always)]
fn gelu_tanh_backward_chunk_impl<S: Simd>(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    map!(S, |x in x, dy in dy| -> [dx] [gelu_tanh_derivative(x, dy)]);
}

#[inline(always)]
fn swiglu_row_impl<S: Simd>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    map!(S, |gate in gate, up in up| -> [out] [gate * sigmoid(gate) * up]);
}

#[inline(always)]
fn swiglu_backward_row_impl<S: Simd>(
    gate: &[f32],
    up: &[f32],
    dout: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    map!(S, |gate in gate, up in up, dout in dout| -> [d_gate, d_up] swiglu_derivatives(gate, up, dout));
}

/// `(erf(z), e^(-z²))` after Abramowitz and Stegun 7.1.26, |error of erf| < 1.5e-7 before rounding.
/// The derivative of erf needs the exponential again.
#[inline(always)]
fn erf_and_exp<S: Simd>(z: S) -> (S, S) {
    let v = S::splat;
    let a = z.max(v(0.0) - z);
    let t = v(1.0) / v(0.327_591_1).mul_add(a, v(1.0));
    let e = (v(0.0) - a * a).exp();
    let poly = v(1.061_405_4)
        .mul_add(t, v(-1.453_152))
        .mul_add(t, v(1.421_413_7))
        .mul_add(t, v(-0.284_496_74))
        .mul_add(t, v(0.254_829_6))
        * t;
    ((v(1.0) - poly * e).copysign(z), e)
}

#[inline(always)]
fn gelu_value<S: Simd>(x: S) -> S {
    let (erf, _) = erf_and_exp(x * S::splat(FRAC_1_SQRT_2));
    S::splat(0.5) * x * (S::splat(1.0) + erf)
}

/// `dy (Φ(x) + x φ(x))`, where `φ(x) = e^(-x²/2) / √(2π)`.
#[inline(always)]
fn gelu_derivative<S: Simd>(x: S, dy: S) -> S {
    let (erf, exp) = erf_and_exp(x * S::splat(FRAC_1_SQRT_2));
    let phi = S::splat(0.398_942_3) * exp;
    dy * x.mul_add(phi, S::splat(0.5) * (S::splat(1.0) + erf))
}

/// `√(2/π)`.
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
/// The cubic term of the tanh approximation.
const CUBIC: f32 = 0.044_715;

/// `1 / (1 + e^-x)`.
#[inline(always)]
fn sigmoid<S: Simd>(x: S) -> S {
    S::splat(1.0) / (S::splat(1.0) + (S::splat(0.0) - x).exp())
}

/// The argument of tanh, doubled: `(1 + tanh(u)) / 2 = sigmoid(2u)`.
#[inline(always)]
fn doubled_tanh_argument<S: Simd>(x: S) -> S {
    S::splat(2.0 * SQRT_2_OVER_PI) * x * (x * x).mul_add(S::splat(CUBIC), S::splat(1.0))
}

#[inline(always)]
fn gelu_tanh_value<S: Simd>(x: S) -> S {
    x * sigmoid(doubled_tanh_argument(x))
}

/// With `s = sigmoid(2u)`: `dy (s + x s (1 - s) d(2u)/dx)`.
#[inline(always)]
fn gelu_tanh_derivative<S: Simd>(x: S, dy: S) -> S {
    // Beyond 10 it is 0 or 1 to the last bit, while the factors of the second term would overflow.
    let x = S::splat(10.0).min(S::splat(-10.0).max(x));
    let s = sigmoid(doubled_tanh_argument(x));
    let slope = S::splat(2.0 * SQRT_2_OVER_PI) * (x * x).mul_add(S::splat(3.0 * CUBIC), S::splat(1.0));
    dy * (x * s * (S::splat(1.0) - s)).mul_add(slope, s)
}

/// With `s = sigmoid(gate)`: `[dout * up * s (1 + gate (1 - s)), dout * gate * s]`.
#[inline(always)]
fn swiglu_derivatives<S: Simd>(gate: S, up: S, dout: S) -> [S; 2] {
    let s = sigmoid(gate);
    [dout * up * s * gate.mul_add(S::splat(1.0) - s, S::splat(1.0)), dout * gate * s]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::on_each;
    use crate::reference::{assert_close, slope, values};

    /// The normal distribution's function by Simpson's rule from 0: slow, and plainly right.
    fn normal_cdf(x: f64) -> f64 {
        const STEPS: usize = 2000;
        let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let h = x / STEPS as f64;
        let inner: f64 = (1..STEPS).map(|i| density(i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
        0.5 + (density(0.0) + inner + density(x)) * h / 3.0
    }

    fn gelu_f64(x: f64) -> f64 {
        x * normal_cdf(x)
    }

    fn gelu_tanh_f64(x: f64) -> f64 {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        0.5 * x * (1.0 + u.tanh())
    }

    fn silu_f64(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    type Pair = (fn(&[f32], &mut [f32]), fn(&[f32], &[f32], &mut [f32]), fn(f64) -> f64);
    const BOTH: [Pair; 2] = [(gelu, gelu_backward, gelu_f64), (gelu_tanh, gelu_tanh_backward, gelu_tanh_f64)];

    #[test]
    fn gelus_and_their_derivatives_agree_with_f64() {
        on_each(|| {
            let x: Vec<f32> = (-1000..=1000).map(|i| i as f32 * 0.01).collect();
            for (forward, backward, exact) in BOTH {
                let (mut y, mut dx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
                forward(&x, &mut y);
                backward(&x, &vec![2.0; x.len()], &mut dx);
                for ((&x, &y), &dx) in x.iter().zip(&y).zip(&dx) {
                    let x = f64::from(x);
                    // Relative rounding comes on top for large values.
                    let rounding = 1.2e-7 * x.abs();
                    assert_close(y, exact(x), 1e-6 + rounding, format_args!("value at {x}"));
                    assert_close(dx, 2.0 * slope(x, exact), 4e-6, format_args!("slope at {x}"));
                }
            }
        });
    }

    #[test]
    fn extremes_stay_finite() {
        on_each(|| {
            let x = [-1e30, -100.0, 0.0, 100.0, 1e30];
            for (forward, backward, _) in BOTH {
                let (mut y, mut dx) = ([f32::NAN; 5], [f32::NAN; 5]);
                forward(&x, &mut y);
                backward(&x, &[1.0; 5], &mut dx);
                for i in 0..5 {
                    let value = [0.0, 0.0, 0.0, 100.0, 1e30][i];
                    let slope = [0.0, 0.0, 0.5, 1.0, 1.0][i];
                    assert_close(y[i], value, 1e-7 * value.max(1.0), format_args!("at {}", x[i]));
                    assert_close(dx[i], slope, 2e-7, format_args!("slope at {}", x[i]));
                }
            }
            let mut out = [f32::NAN; 2];
            swiglu(&[-1e30, 1e30, 1.0, 1.0], 2, &mut out);
            assert!(out[0].abs() < 1e-7 && out[1] == 1e30, "{out:?}");
        });
    }

    #[test]
    fn every_length_alone_and_among_others() {
        on_each(|| {
            let x = values(40_000, 1);
            let mut whole = vec![f32::NAN; x.len()];
            gelu(&x, &mut whole);
            for n in (0..40).chain([16_383, 16_384, 16_385]) {
                for first in [0, 1, 3] {
                    let mut y = vec![f32::NAN; n];
                    gelu(&x[first..first + n], &mut y);
                    assert_eq!(y, whole[first..first + n]);
                }
            }
        });
    }

    #[test]
    #[should_panic(expected = "swiglu: gate_up 5, n_ff 2, out 2")]
    fn gated_sizes_must_fit() {
        swiglu(&[0.0; 5], 2, &mut [0.0; 2]);
    }

    proptest! {
        #[test]
        fn swiglu_agrees_with_f64(rows in 0usize..5, n_ff in 1usize..40, seed in 0u32..1000) {
            on_each(|| {
                let (x, dout) = (values(rows * 2 * n_ff, seed), values(rows * n_ff, seed + 1));
                let x: Vec<f32> = x.iter().map(|x| x * 8.0).collect();
                let (mut out, mut dx) = (vec![f32::NAN; rows * n_ff], vec![f32::NAN; x.len()]);
                swiglu(&x, n_ff, &mut out);
                swiglu_backward(&x, n_ff, &dout, &mut dx);
                for (i, &y) in out.iter().enumerate() {
                    let gate_at = i / n_ff * 2 * n_ff + i % n_ff;
                    let [gate, up, dy] = [x[gate_at], x[gate_at + n_ff], dout[i]].map(f64::from);
                    assert_close(y, silu_f64(gate) * up, 1e-5, "out");
                    assert_close(dx[gate_at], dy * up * slope(gate, silu_f64), 1e-5, "gate");
                    assert_close(dx[gate_at + n_ff], dy * silu_f64(gate), 1e-5, "up");
                }
            });
        }
    }
}
