//! Normalisation of rows: RMS norm and layer norm, with their gradients.
//!
//! ```text
//! rms:    y = x / √(mean(x²) + eps) * weight
//! layer:  y = (x - mean(x)) / √(var(x) + eps) * weight + bias
//! ```
//! Sums are in f32 over fixed lanes. The backward recomputes a row's statistics rather than keeping them:
//! the row has to be read anyway. The weight's gradient is a sum over rows; it is taken per task of
//! 32 rows and these sums are added up in order, whatever the number of threads.

use rayon::prelude::*;

use crate::rows_per_task;
use crate::simd::{self, Simd, dispatch, map};

/// Rows whose contributions to a weight's gradient are added up by one task. Part of the result.
const ROWS_PER_TASK: usize = 32;

/// `y = x / √(mean(x²) + eps) * weight`, row by row.
///
/// # Shapes
/// - `x`, `y`: `[rows, n]`
/// - `weight`: `[n]`
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let n = row_width("rms_norm", weight, &[x, y]);
    for_rows(n, x, y, |x, y| rms_norm_row(x, weight, eps, y));
}

/// `y = (x - mean(x)) / √(var(x) + eps) * weight + bias`, row by row; the variance is that of the row
/// itself (divided by `n`).
///
/// # Shapes
/// - `x`, `y`: `[rows, n]`
/// - `weight`, `bias`: `[n]`
///
/// # Panics
/// If the lengths do not fit.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, y: &mut [f32]) {
    let n = row_width("layer_norm", weight, &[x, y]);
    assert!(bias.is_none_or(|b| b.len() == n), "layer_norm: weight {n}, bias {:?}", bias.map(<[f32]>::len));
    for_rows(n, x, y, |x, y| layer_norm_row(x, weight, bias, eps, y));
}

/// Backward of [`rms_norm`]. Overwrites `dx` and `dweight`.
///
/// # Shapes
/// - `x` (the forward's input), `dy`, `dx`: `[rows, n]`
/// - `weight`, `dweight`: `[n]`
///
/// # Panics
/// If the lengths do not fit.
pub fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
) {
    let n = row_width("rms_norm_backward", weight, &[x, dy, dx]);
    assert!(dweight.len() == n, "rms_norm_backward: weight {n}, dweight {}", dweight.len());
    dweight.fill(0.0);
    let tasks = backward_tasks(n, x, dy, dx).map(|((dx, x), dy)| {
        let mut dweight = vec![0.0; n];
        for ((dx, x), dy) in dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(dy.chunks_exact(n)) {
            rms_norm_backward_row(x, weight, eps, dy, dx, &mut dweight);
        }
        dweight
    });
    add_in_order(tasks.collect(), dweight);
}

/// Backward of [`layer_norm`]. Overwrites `dx`, `dweight` and `dbias`.
///
/// # Shapes
/// - `x` (the forward's input), `dy`, `dx`: `[rows, n]`
/// - `weight`, `dweight`, `dbias`: `[n]`
///
/// # Panics
/// If the lengths do not fit.
pub fn layer_norm_backward(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
    dbias: Option<&mut [f32]>,
) {
    let n = row_width("layer_norm_backward", weight, &[x, dy, dx]);
    assert!(dweight.len() == n, "layer_norm_backward: weight {n}, dweight {}", dweight.len());
    dweight.fill(0.0);
    let tasks = backward_tasks(n, x, dy, dx).map(|((dx, x), dy)| {
        let mut sums = vec![0.0; 2 * n];
        let (dweight, dbias) = sums.split_at_mut(n);
        let mut x_hat = vec![0.0; n];
        for ((dx, x), dy) in dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(dy.chunks_exact(n)) {
            layer_norm_backward_row(x, weight, eps, dy, &mut x_hat, dx);
            add_product(dy, &x_hat, dweight);
            add(dy, dbias);
        }
        sums
    });
    let sums: Vec<Vec<f32>> = tasks.collect();
    if let Some(dbias) = dbias {
        assert!(dbias.len() == n, "layer_norm_backward: weight {n}, dbias {}", dbias.len());
        dbias.fill(0.0);
        sums.iter().for_each(|sums| add(&sums[n..], dbias));
    }
    sums.iter().for_each(|sums| add(&sums[..n], dweight));
}

/// The width of a row, after checking that all matrices have the same number of whole rows.
fn row_width(name: &str, weight: &[f32], matrices: &[&[f32]]) -> usize {
    let n = weight.len();
    let lengths: Vec<usize> = matrices.iter().map(|m| m.len()).collect();
    let fits = lengths.iter().all(|&len| len == lengths[0] && n > 0 && len.is_multiple_of(n));
    assert!(fits, "{name}: weight {n}, x, y and their gradients {lengths:?}");
    n
}

fn for_rows(n: usize, x: &[f32], y: &mut [f32], row: impl Fn(&[f32], &mut [f32]) + Sync) {
    let task = rows_per_task(n) * n;
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
        x.chunks_exact(n).zip(y.chunks_exact_mut(n)).for_each(|(x, y)| row(x, y));
    });
}

/// `((dx, x), dy)` of each task.
fn backward_tasks<'a>(
    n: usize,
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
) -> impl IndexedParallelIterator<Item = ((&'a mut [f32], &'a [f32]), &'a [f32])> {
    let task = ROWS_PER_TASK * n;
    dx.par_chunks_mut(task).zip(x.par_chunks(task)).zip(dy.par_chunks(task))
}

fn add_in_order(parts: Vec<Vec<f32>>, total: &mut [f32]) {
    parts.iter().for_each(|part| add(part, total));
}

dispatch!(fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) = rms_norm_row_impl);
dispatch! {
    fn rms_norm_backward_row(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dweight: &mut [f32])
        = rms_norm_backward_row_impl
}
dispatch! {
    fn layer_norm_row(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, y: &mut [f32])
        = layer_norm_row_impl
}
dispatch! {
    fn layer_norm_backward_row(x: &[f32], weight: &[f32], eps: f32, dy: &[f32], x_hat: &mut [f32], dx: &mut [f32])
        = layer_norm_backward_row_impl
}
dispatch!(fn add(x: &[f32], total: &mut [f32]) = add_impl);
dispatch!(fn add_product(x: &[f32], y: &[f32], total: &mut [f32]) = add_product_impl);

#[inline(always)]
fn rms_norm_row_impl<S: Simd>(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let r = S::splat(inverse_rms::<S>(x, eps));
    map!(S, |x in x, w in weight| -> [y] [x * r * w]);
}

/// `1 / √(mean(x²) + eps)`.
#[inline(always)]
fn inverse_rms<S: Simd>(x: &[f32], eps: f32) -> f32 {
    1.0 / (simd::sum_of_squares::<S>(x) / x.len() as f32 + eps).sqrt()
}

/// With `r = 1 / rms` and `g = dy * weight`: `dx = r g - x r³ mean(g x)` and `dweight += dy x r`.
#[inline(always)]
fn rms_norm_backward_row_impl<S: Simd>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    dx: &mut [f32],
    dweight: &mut [f32],
) {
    let r = inverse_rms::<S>(x, eps);
    map!(S, |dy in dy, w in weight| -> [dx] [dy * w]); // g
    let along_x = r * r * r * simd::dot::<S>(dx, x) / x.len() as f32;
    let (r, along_x) = (S::splat(r), S::splat(along_x));
    map!(S, |x in x, g in dx| -> [dx] [r * g - along_x * x]);
    map!(S, |x in x, dy in dy, sum in dweight| -> [dweight] [(x * r).mul_add(dy, sum)]);
}

/// `(x - mean(x)) / √(var(x) + eps)` into `x_hat`; returns the factor.
///
/// The mean is taken first and the squares of the differences second: the shortcut by `mean(x²)` loses
/// all digits when the mean is large.
#[inline(always)]
fn standardise<S: Simd>(x: &[f32], eps: f32, x_hat: &mut [f32]) -> f32 {
    let n = x.len() as f32;
    let mean = S::splat(simd::sum::<S>(x) / n);
    map!(S, |x in x| -> [x_hat] [x - mean]);
    let r = 1.0 / (simd::sum_of_squares::<S>(x_hat) / n + eps).sqrt();
    x_hat.iter_mut().for_each(|x| *x *= r);
    r
}

#[inline(always)]
fn layer_norm_row_impl<S: Simd>(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, y: &mut [f32]) {
    standardise::<S>(x, eps, y);
    match bias {
        Some(bias) => map!(S, |w in weight, b in bias, y in y| -> [y] [y.mul_add(w, b)]),
        None => map!(S, |w in weight, y in y| -> [y] [y * w]),
    }
}

/// With `r = 1 / √(var + eps)` and `g = dy * weight`: `dx = r (g - mean(g) - x_hat mean(g x_hat))`.
#[inline(always)]
fn layer_norm_backward_row_impl<S: Simd>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    x_hat: &mut [f32],
    dx: &mut [f32],
) {
    let n = x.len() as f32;
    let r = S::splat(standardise::<S>(x, eps, x_hat));
    map!(S, |dy in dy, w in weight| -> [dx] [dy * w]); // g
    let mean = S::splat(simd::sum::<S>(dx) / n);
    let along_x = S::splat(simd::dot::<S>(dx, x_hat) / n);
    map!(S, |x_hat in x_hat, g in dx| -> [dx] [r * (g - mean - x_hat * along_x)]);
}

#[inline(always)]
fn add_impl<S: Simd>(x: &[f32], total: &mut [f32]) {
    map!(S, |x in x, sum in total| -> [total] [sum + x]);
}

#[inline(always)]
fn add_product_impl<S: Simd>(x: &[f32], y: &[f32], total: &mut [f32]) {
    map!(S, |x in x, y in y, sum in total| -> [total] [x.mul_add(y, sum)]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::on_each;
    use crate::reference::{assert_all_close, bits, gradient, on_threads, values};

    const EPS: f32 = 1e-5;

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().copied().map(f64::from).collect()
    }

    /// The definition, in f64, of either norm (`centre` for layer norm).
    fn reference(x: &[f64], weight: &[f64], bias: Option<&[f64]>, centre: bool) -> Vec<f64> {
        let n = weight.len();
        let row = |x: &[f64]| -> Vec<f64> {
            let mean = if centre { x.iter().sum::<f64>() / n as f64 } else { 0.0 };
            let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            let r = 1.0 / (square + f64::from(EPS)).sqrt();
            (0..n).map(|i| (x[i] - mean) * r * weight[i] + bias.map_or(0.0, |b| b[i])).collect()
        };
        x.chunks(n).flat_map(row).collect()
    }

    fn check_against_f64(rows: usize, n: usize, seed: u32) {
        let [x, dy] = [seed, seed + 1].map(|seed| values(rows * n, seed));
        let [weight, bias] = [seed + 2, seed + 3].map(|seed| values(n, seed));
        let [mut y, mut dx] = [(); 2].map(|()| vec![f32::NAN; rows * n]);
        let [mut dweight, mut dbias] = [(); 2].map(|()| vec![f32::NAN; n]);
        let (x_wide, weight_wide, bias_wide) = (wide(&x), wide(&weight), wide(&bias));
        let inner = |y: Vec<f64>| -> f64 { y.iter().zip(&dy).map(|(y, dy)| y * f64::from(*dy)).sum() };
        // Rows of one or two elements have steep slopes, where f32 rounding shows.
        let tolerance = if n < 4 { 2e-2 } else { 2e-4 };

        for centre in [false, true] {
            let exact_bias = centre.then_some(&bias_wide[..]);
            if centre {
                layer_norm(&x, &weight, Some(&bias), EPS, &mut y);
                layer_norm_backward(&x, &weight, EPS, &dy, &mut dx, &mut dweight, Some(&mut dbias));
                let column = |j: usize| (0..rows).map(|r| f64::from(dy[r * n + j])).sum();
                assert_all_close(&dbias, &(0..n).map(column).collect::<Vec<f64>>(), 1e-5, "dbias");
            } else {
                rms_norm(&x, &weight, EPS, &mut y);
                rms_norm_backward(&x, &weight, EPS, &dy, &mut dx, &mut dweight);
            }
            assert_all_close(&y, &reference(&x_wide, &weight_wide, exact_bias, centre), tolerance, "y");
            let exact = gradient(&x_wide, |x| inner(reference(x, &weight_wide, exact_bias, centre)));
            assert_all_close(&dx, &exact, tolerance, "dx");
            let exact = gradient(&weight_wide, |w| inner(reference(&x_wide, w, exact_bias, centre)));
            assert_all_close(&dweight, &exact, tolerance, "dweight");
        }
    }

    #[test]
    fn every_width_against_f64() {
        on_each(|| (1..40).for_each(|n| check_against_f64(3, n, 40 + n as u32)));
    }

    #[test]
    fn without_bias() {
        on_each(|| {
            let (x, weight) = (values(5 * 19, 1), values(19, 2));
            let [mut y, mut with_zeros, mut dx] = [(); 3].map(|()| vec![f32::NAN; x.len()]);
            let mut dweight = vec![f32::NAN; 19];
            layer_norm(&x, &weight, None, EPS, &mut y);
            layer_norm(&x, &weight, Some(&[0.0; 19]), EPS, &mut with_zeros);
            assert_eq!(y, with_zeros);
            layer_norm_backward(&x, &weight, EPS, &y, &mut dx, &mut dweight, None);
            assert!(dx.iter().chain(&dweight).all(|x| x.is_finite()));
        });
    }

    #[test]
    fn a_large_mean_does_no_harm() {
        on_each(|| {
            let x: Vec<f32> = (0..64).map(|i| 1000.0 + i as f32).collect();
            let mut y = vec![f32::NAN; 64];
            layer_norm(&x, &[1.0; 64], None, EPS, &mut y);
            assert_all_close(&y, &reference(&wide(&x), &[1.0; 64], None, true), 1e-5, "y");
        });
    }

    #[test]
    fn rows_alone_and_among_others_on_any_number_of_threads() {
        on_each(|| {
            let (rows, n) = (200, 333);
            let (x, dy, weight) = (values(rows * n, 1), values(rows * n, 2), values(n, 3));
            let all = |n_threads| {
                on_threads(n_threads, || {
                    let [mut y, mut z, mut dx, mut dz] = [(); 4].map(|()| vec![f32::NAN; rows * n]);
                    let [mut dw, mut dv, mut db] = [(); 3].map(|()| vec![f32::NAN; n]);
                    rms_norm(&x, &weight, EPS, &mut y);
                    layer_norm(&x, &weight, None, EPS, &mut z);
                    rms_norm_backward(&x, &weight, EPS, &dy, &mut dx, &mut dw);
                    layer_norm_backward(&x, &weight, EPS, &dy, &mut dz, &mut dv, Some(&mut db));
                    [y, z, dx, dz, dw, dv, db].map(|x| bits(&x))
                })
            };
            let one = all(1);
            assert!(one == all(2) && one == all(3));
            for r in [0, 1, 57, 199] {
                let row = r * n..(r + 1) * n;
                let [mut y, mut z] = [(); 2].map(|()| vec![f32::NAN; n]);
                rms_norm(&x[row.clone()], &weight, EPS, &mut y);
                layer_norm(&x[row.clone()], &weight, None, EPS, &mut z);
                assert!(bits(&y) == one[0][row.clone()] && bits(&z) == one[1][row]);
            }
        });
    }

    #[test]
    #[should_panic(expected = "rms_norm: weight 3, x, y and their gradients [8, 8]")]
    fn sizes_must_fit() {
        rms_norm(&[0.0; 8], &[1.0; 3], EPS, &mut [0.0; 8]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn random_shapes(rows in 0usize..6, n in 4usize..60, seed in 0u32..1000) {
            on_each(|| check_against_f64(rows, n, seed));
        }
    }
}
