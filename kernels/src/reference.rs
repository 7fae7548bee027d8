//! What tests compare with: varied numbers, slopes by finite differences, tolerances in f64.

use std::fmt::Display;

/// Numbers in [-1, 1], the same for the same seed (xorshift).
pub(crate) fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Bits, so that equality is that of the representation: NaN equals itself, zero differs from minus zero.
pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Runs `f` on a rayon pool of some size.
pub(crate) fn on_threads<R: Send>(n_threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("threads start").install(f)
}

/// The derivative of a function of one number, by central difference.
pub(crate) fn slope(x: f64, f: impl Fn(f64) -> f64) -> f64 {
    const STEP: f64 = 1e-5;
    (f(x + STEP) - f(x - STEP)) / (2.0 * STEP)
}

/// The gradient of a function of many numbers, by a central difference for each.
pub(crate) fn gradient(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let partial = |i: usize| {
        slope(x[i], |value| {
            let mut moved = x.to_vec();
            moved[i] = value;
            f(&moved)
        })
    };
    (0..x.len()).map(partial).collect()
}

/// Fails unless `got` is within `tolerance` of `expected`.
pub(crate) fn assert_close(got: f32, expected: f64, tolerance: f64, what: impl Display) {
    assert!((f64::from(got) - expected).abs() <= tolerance, "{what}: {got} for {expected}");
}

/// [`assert_close`] for every element.
pub(crate) fn assert_all_close(got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_close(*got, *expected, tolerance, format_args!("{what}[{i}]"));
    }
}
