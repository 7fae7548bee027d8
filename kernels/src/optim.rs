//! The optimizer's step: AdamW in place, and the norm it clips gradients by.

use rayon::prelude::*;

use crate::CHUNK;
use crate::simd::{self, Simd, dispatch, map};

/// Hyperparameters of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root of the mean square.
    pub eps: f32,
    /// Decoupled weight decay: each step multiplies the parameters by `1 - lr * weight_decay`.
    pub weight_decay: f32,
    /// Number of this step, from 1, for the correction of both means' bias towards zero.
    pub step: u64,
    /// Multiplies gradients first: 1, or less where they are clipped or were accumulated as sums.
    pub grad_scale: f32,
}

/// One step of AdamW (Loshchilov and Hutter, 2019) in place:
/// ```text
/// g = grad * grad_scale
/// m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g²
/// param = param (1 - lr weight_decay) - lr (m / (1 - beta1^step)) / (√(v / (1 - beta2^step)) + eps)
/// ```
///
/// # Shapes
/// - `param`, `grad`, `m`, `v`: any, the same; `m` and `v` start as zeros
///
/// # Panics
/// If the lengths differ or `step` is 0.
pub fn adamw(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], config: &AdamW) {
    let n = param.len();
    assert!(
        grad.len() == n && m.len() == n && v.len() == n,
        "adamw: param {n}, grad {}, m {}, v {}",
        grad.len(),
        m.len(),
        v.len()
    );
    assert!(config.step > 0, "adamw: steps count from 1");
    let factors = Factors::new(config);
    let tasks = param.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK));
    let tasks = tasks.zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
    tasks.for_each(|(((param, grad), m), v)| adamw_chunk(param, grad, m, v, &factors));
}

/// The sum of squares, for the norm of gradients. Independent of the number of threads.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    let sums: Vec<f64> = x.par_chunks(CHUNK).map(|chunk| f64::from(sum_of_squares_chunk(chunk))).collect();
    sums.iter().sum()
}

/// What a step does to every element, computed once and in f64.
struct Factors {
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    grad_scale: f32,
    keep: f32,
    rate: f32,
    inverse_correction2: f32,
    eps: f32,
}

impl Factors {
    fn new(config: &AdamW) -> Self {
        let [lr, beta1, beta2, decay] =
            [config.lr, config.beta1, config.beta2, config.weight_decay].map(f64::from);
        let correction = |beta: f64| 1.0 - beta.powf(config.step as f64);
        Self {
            beta1: config.beta1,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: config.beta2,
            one_minus_beta2: (1.0 - beta2) as f32,
            grad_scale: config.grad_scale,
            keep: (1.0 - lr * decay) as f32,
            rate: (lr / correction(beta1)) as f32,
            inverse_correction2: (1.0 / correction(beta2)) as f32,
            eps: config.eps,
        }
    }
}

dispatch! {
    fn adamw_chunk(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], factors: &Factors)
        = adamw_chunk_impl
}
dispatch!(fn sum_of_squares_chunk(x: &[f32]) -> f32 = sum_of_squares_chunk_impl);

#[inline(always)]
fn sum_of_squares_chunk_impl<S: Simd>(x: &[f32]) -> f32 {
    simd::sum_of_squares::<S>(x)
}

#[inline(always)]
fn adamw_chunk_impl<S: Simd>(
    param: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    factors: &Factors,
) {
    map!(S, |p in param, g in grad, m in m, v in v| -> [param, m, v] adamw_values(p, g, m, v, factors));
}

/// The new `[param, m, v]`.
#[inline(always)]
fn adamw_values<S: Simd>(param: S, grad: S, m: S, v: S, f: &Factors) -> [S; 3] {
    let s = S::splat;
    let g = grad * s(f.grad_scale);
    let m = s(f.beta1).mul_add(m, s(f.one_minus_beta1) * g);
    let v = s(f.beta2).mul_add(v, s(f.one_minus_beta2) * g * g);
    let root = (v * s(f.inverse_correction2)).sqrt() + s(f.eps);
    [param * s(f.keep) - s(f.rate) * m / root, m, v]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::on_each;
    use crate::reference::{assert_close, bits, on_threads, values};

    const CONFIG: AdamW =
        AdamW { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step: 1, grad_scale: 0.5 };

    /// One element's steps by the definition, in f64.
    fn reference(mut param: f64, grads: &[f64]) -> f64 {
        let [lr, beta1, beta2, decay] =
            [CONFIG.lr, CONFIG.beta1, CONFIG.beta2, CONFIG.weight_decay].map(f64::from);
        let (mut m, mut v) = (0.0, 0.0);
        for (t, grad) in (1..).zip(grads) {
            let g = grad * 0.5;
            m = beta1 * m + (1.0 - beta1) * g;
            v = beta2 * v + (1.0 - beta2) * g * g;
            let (m_hat, v_hat) = (m / (1.0 - beta1.powi(t)), v / (1.0 - beta2.powi(t)));
            param = param * (1.0 - lr * decay) - lr * m_hat / (v_hat.sqrt() + 1e-8);
        }
        param
    }

    #[test]
    fn steps_agree_with_f64_at_every_length() {
        on_each(|| {
            for n in (0..40).chain([CHUNK + 3]) {
                let start = values(n, 1);
                let grads: Vec<Vec<f32>> = (2..12).map(|seed| values(n, seed)).collect();
                let (mut param, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
                for (step, grad) in (1..).zip(&grads) {
                    adamw(&mut param, grad, &mut m, &mut v, &AdamW { step, ..CONFIG });
                }
                for i in 0..n {
                    let grads: Vec<f64> = grads.iter().map(|g| f64::from(g[i])).collect();
                    assert_close(
                        param[i],
                        reference(f64::from(start[i]), &grads),
                        1e-6,
                        format_args!("{i} of {n}"),
                    );
                }
            }
        });
    }

    #[test]
    fn the_same_on_any_number_of_threads_and_in_any_cut() {
        on_each(|| {
            let n = 3 * CHUNK + 5;
            let (x, grad) = (values(n, 1), values(n, 2));
            let all = |n_threads| {
                on_threads(n_threads, || {
                    let (mut param, mut m, mut v) = (x.clone(), vec![0.1; n], vec![0.2; n]);
                    adamw(&mut param, &grad, &mut m, &mut v, &CONFIG);
                    (sum_of_squares(&x).to_bits(), bits(&param))
                })
            };
            let one = all(1);
            assert!(one == all(2) && one == all(3));
            let (mut param, mut m, mut v) = (x[3..50].to_vec(), vec![0.1; 47], vec![0.2; 47]);
            adamw(&mut param, &grad[3..50], &mut m, &mut v, &CONFIG);
            assert_eq!(bits(&param), one.1[3..50]);
            let exact: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            assert!((f64::from_bits(one.0) / exact - 1.0).abs() < 1e-6);
        });
    }

    #[test]
    #[should_panic(expected = "steps count from 1")]
    fn step_zero_is_refused() {
        adamw(&mut [], &[], &mut [], &mut [], &AdamW { step: 0, ..CONFIG });
    }
}
