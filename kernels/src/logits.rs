//! What picking tokens needs of a row of logits: passes over a vocabulary of tens or hundreds of thousands, of which few
//! ever matter.

use crate::simd::{Simd, dispatch, map};

/// Logits looked at in one go: LLVM makes a few vectors of them on every instruction set.
const AT_ONCE: usize = 16;

/// Logits exponentiated and then summed at a time, while they are in L1.
const BLOCK: usize = 512;

/// A logit is NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotANumber {
    /// The first such logit.
    pub index: usize,
}

/// The largest logit, minus infinity of none.
///
/// # Errors
/// If one is NaN.
pub fn max(row: &[f32]) -> Result<f32, NotANumber> {
    let (blocks, rest) = row.as_chunks::<AT_ONCE>();
    let mut lanes = [f32::NEG_INFINITY; AT_ONCE];
    let mut are_numbers = [true; AT_ONCE];
    for block in blocks {
        for ((lane, is_number), &x) in lanes.iter_mut().zip(&mut are_numbers).zip(block) {
            *lane = if x > *lane { x } else { *lane };
            *is_number &= !x.is_nan();
        }
    }
    if (are_numbers.contains(&false) || rest.iter().any(|x| x.is_nan()))
        && let Some(index) = row.iter().position(|x| x.is_nan())
    {
        return Err(NotANumber { index });
    }
    Ok(lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max))
}

/// Calls `visit` with the index and the value of every logit that is at least `bound`, in order; it may raise the bound.
pub fn each_at_least(row: &[f32], mut bound: f32, mut visit: impl FnMut(usize, f32, &mut f32)) {
    for (i, block) in row.chunks(AT_ONCE).enumerate() {
        let is_any = match <&[f32; AT_ONCE]>::try_from(block) {
            Ok(block) => block.iter().fold(false, |any, &x| any | (x >= bound)),
            Err(_) => true,
        };
        if is_any {
            for (j, &x) in block.iter().enumerate() {
                if x >= bound {
                    visit(i * AT_ONCE + j, x, &mut bound);
                }
            }
        }
    }
}

/// The index of the largest logit, the smallest of several; `None` if there is none above minus infinity.
///
/// # Errors
/// If one is NaN.
pub fn argmax(row: &[f32]) -> Result<Option<usize>, NotANumber> {
    let max = max(row)?;
    let mut first = None;
    each_at_least(row, max, |i, _, bound| {
        first.get_or_insert(i);
        *bound = f32::INFINITY;
    });
    Ok(first.filter(|_| max > f32::NEG_INFINITY))
}

/// The indices of the `n` largest logits or of all, largest first, of equal ones the smaller index first. NaN is left out.
pub fn largest(row: &[f32], n: usize) -> Vec<usize> {
    let n = n.min(row.len());
    if n == 0 {
        return Vec::new();
    }
    let order = |a: &usize, b: &usize| row[*b].total_cmp(&row[*a]).then(a.cmp(b));
    // Room for as many again, so that what falls out is thrown away n at a time.
    let mut found = Vec::with_capacity(2 * n);
    each_at_least(row, f32::NEG_INFINITY, |i, _, bound| {
        found.push(i);
        if found.len() == 2 * n {
            found.select_nth_unstable_by(n - 1, order);
            found.truncate(n);
            *bound = row[found[n - 1]];
        }
    });
    found.sort_unstable_by(order);
    found.truncate(n);
    found
}

dispatch! {
    /// Replaces each logit by `exp((logit - max) / temperature)`, where `max` is finite. The relative error is below 1e-6
    /// for results above 1e-6.
    pub fn exp_in_place(row: &mut [f32], max: f32, temperature: f32) = exp_in_place_impl
}

#[inline(always)]
fn exp_in_place_impl<S: Simd>(row: &mut [f32], max: f32, temperature: f32) {
    let (max, temperature) = (S::splat(max), S::splat(temperature));
    map!(S, |x in row| -> [row] [((x - max) / temperature).exp()]);
}

/// The sum of what [`exp_in_place`] makes of a row, in double precision. With the largest logit and temperature 1, its
/// logarithm and `max` make that of the sum of all exponentials.
pub fn sum_exp(row: &[f32], max: f32, temperature: f32) -> f64 {
    let mut exps = [0.0; BLOCK];
    let mut lanes = [0.0; AT_ONCE];
    for block in row.chunks(BLOCK) {
        let exps = &mut exps[..block.len()];
        exps.copy_from_slice(block);
        exp_in_place(exps, max, temperature);
        for exps in exps.chunks(AT_ONCE) {
            for (lane, &exp) in lanes.iter_mut().zip(exps) {
                *lane += f64::from(exp);
            }
        }
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::on_each;
    use crate::reference::values;

    const LENGTHS: [usize; 9] = [1, 2, 15, 16, 17, 511, 513, 1000, 5003];

    /// With many that are equal, and some of minus infinity.
    fn row(n: usize) -> Vec<f32> {
        let mut row: Vec<f32> = values(n, n as u32).iter().map(|x| (x * 40.0).round() / 4.0).collect();
        row.iter_mut().skip(1).step_by(7).for_each(|x| *x = f32::NEG_INFINITY);
        row
    }

    #[test]
    fn largest_and_how_many_one_likes_of_them() {
        for n in LENGTHS {
            let row = row(n);
            let mut sorted: Vec<usize> = (0..n).collect();
            sorted.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            assert_eq!(max(&row), Ok(row[sorted[0]]));
            assert_eq!(argmax(&row), Ok(Some(sorted[0])));
            for few in [0, 1, 2, 5, 20, 100, 2000, n, n + 1] {
                assert_eq!(largest(&row, few), sorted[..few.min(n)], "{few} of {n}");
            }
            for bound in [f32::NEG_INFINITY, 0.0, 1.25, 100.0] {
                let mut found = Vec::new();
                each_at_least(&row, bound, |i, x, _| found.push((i, x)));
                let expected: Vec<(usize, f32)> =
                    row.iter().copied().enumerate().filter(|(_, x)| *x >= bound).collect();
                assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn nothing_infinite_and_not_a_number() {
        assert_eq!((max(&[]), argmax(&[])), (Ok(f32::NEG_INFINITY), Ok(None)));
        assert_eq!(argmax(&[f32::NEG_INFINITY; 40]), Ok(None));
        let mut row = [1.0; 40];
        row[30] = f32::INFINITY;
        assert_eq!(argmax(&row), Ok(Some(30)));
        for i in [0, 17, 33, 39] {
            let mut row = row;
            row[i] = f32::NAN;
            row[39] = f32::NAN;
            let error = NotANumber { index: i };
            assert_eq!((max(&row), argmax(&row)), (Err(error), Err(error)));
        }
    }

    #[test]
    fn sums_of_exponentials() {
        on_each(|| {
            for n in LENGTHS {
                let row = row(n);
                let max = max(&row).expect("numbers");
                for temperature in [0.01, 0.7, 1.0, 30.0] {
                    let of = |x: &f32| (f64::from(x - max) / f64::from(temperature)).exp();
                    let exact: f64 = row.iter().map(of).sum();
                    let found = sum_exp(&row, max, temperature);
                    assert!((found / exact - 1.0).abs() < 1e-6, "{n}, {temperature}: {found} for {exact}");
                    let mut exps = row.clone();
                    exp_in_place(&mut exps, max, temperature);
                    for (x, found) in row.iter().zip(exps) {
                        let error = (f64::from(found) - of(x)).abs();
                        assert!(error <= 1e-6 * of(x).max(1e-6), "{x}, {temperature}: {found}");
                    }
                }
            }
        });
    }
}
