//! Cross-entropy of next-token predictions, with its gradient.
//!
//! `nll = ln Σ exp(logit) - logit[target]` per row. Logits are the largest activation of a small model
//! (rows x vocabulary), so [`cross_entropy`] turns them into their gradient in place.

use rayon::prelude::*;

use crate::softmax;

/// The loss, and in place of the logits its gradient: `(softmax(logits) - onehot(target)) * scale`.
///
/// Returns the sum of the rows' negative log-likelihoods, times `scale`: 1 / (number of targets) for a
/// mean. A negative target marks a row to ignore: no loss, zero gradient.
///
/// # Shapes
/// - `logits`: `[rows, vocab_size]`, becomes the gradient
/// - `targets`: `[rows]`
///
/// # Panics
/// If the lengths do not fit or a target is not below `vocab_size`.
pub fn cross_entropy(logits: &mut [f32], targets: &[i32], scale: f32) -> f64 {
    let Some(vocab_size) = vocab_size("cross_entropy", logits, targets) else {
        return 0.0;
    };
    let rows = logits.par_chunks_mut(vocab_size).zip(targets);
    // One value per row, added up in order: the same sum whatever the threads.
    let losses: Vec<f64> = rows.map(|(row, &target)| cross_entropy_row(row, target, scale)).collect();
    losses.iter().sum::<f64>() * f64::from(scale)
}

/// The sum of negative log-likelihoods and the number of rows that count, for evaluation.
///
/// The sum is bit-equal to that of [`cross_entropy`] with scale 1.
///
/// # Shapes
/// - `logits`: `[rows, vocab_size]`
/// - `targets`: `[rows]`, negative where a row is to be ignored
///
/// # Panics
/// If the lengths do not fit or a target is not below `vocab_size`.
pub fn nll(logits: &[f32], targets: &[i32]) -> (f64, usize) {
    let losses = nll_rows(logits, targets);
    (losses.iter().sum(), targets.iter().filter(|&&target| target >= 0).count())
}

/// The negative log-likelihood of each row's target; 0 where the row is to be ignored.
///
/// # Shapes
/// - `logits`: `[rows, vocab_size]`
/// - `targets`: `[rows]`, negative where a row is to be ignored
///
/// # Panics
/// If the lengths do not fit or a target is not below `vocab_size`.
pub fn nll_rows(logits: &[f32], targets: &[i32]) -> Vec<f64> {
    let Some(vocab_size) = vocab_size("nll", logits, targets) else {
        return Vec::new();
    };
    logits.par_chunks(vocab_size).zip(targets).map(|(row, &target)| nll_row(row, target)).collect()
}

/// Columns of `logits`, `None` if there are no rows. Checks every target, so rows need not.
fn vocab_size(name: &str, logits: &[f32], targets: &[i32]) -> Option<usize> {
    let (len, rows) = (logits.len(), targets.len());
    if rows == 0 {
        assert!(len == 0, "{name}: {len} logits for no targets");
        return None;
    }
    assert!(len > 0 && len.is_multiple_of(rows), "{name}: {len} logits for {rows} targets");
    let vocab_size = len / rows;
    for (row, &target) in targets.iter().enumerate() {
        let in_range = usize::try_from(target).is_ok_and(|target| target < vocab_size);
        assert!(
            target < 0 || in_range,
            "{name}: target {target} in row {row} of a vocabulary of {vocab_size}"
        );
    }
    Some(vocab_size)
}

fn cross_entropy_row(row: &mut [f32], target: i32, scale: f32) -> f64 {
    let Ok(target) = usize::try_from(target) else {
        row.fill(0.0);
        return 0.0;
    };
    let (max, target_logit) = (softmax::max(row), row[target]);
    let sum = softmax::exp_in_place(row, 1.0, -max);
    softmax::scale(row, scale / sum);
    row[target] -= scale;
    log_sum_exp(max, sum) - f64::from(target_logit)
}

fn nll_row(row: &[f32], target: i32) -> f64 {
    let Ok(target) = usize::try_from(target) else {
        return 0.0;
    };
    let max = softmax::max(row);
    log_sum_exp(max, softmax::sum_exp(row, -max)) - f64::from(row[target])
}

/// In f64: the logarithm of a confident row's sum is so small that adding it to `max` in f32 would lose it.
fn log_sum_exp(max: f32, sum: f32) -> f64 {
    f64::from(max) + f64::from(sum).ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isa::on_each;
    use crate::reference::{assert_close, bits, on_threads, values};

    fn logits(rows: usize, vocab_size: usize, seed: u32) -> Vec<f32> {
        values(rows * vocab_size, seed).iter().map(|x| x * 10.0).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_f64(rows in 1usize..6, vocab_size in 1usize..600, seed in 0u32..1000) {
            let logits = logits(rows, vocab_size, seed);
            // Every third row is ignored.
            let target = |r: usize| if r % 3 == 2 { -1 } else { ((r * 31 + seed as usize) % vocab_size) as i32 };
            let targets: Vec<i32> = (0..rows).map(target).collect();
            let mut exact_loss = 0.0;
            let mut exact = vec![0.0; logits.len()];
            for r in (0..rows).filter(|r| r % 3 != 2) {
                let row = &logits[r * vocab_size..(r + 1) * vocab_size];
                let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                exact_loss += total.ln() - f64::from(row[targets[r] as usize]);
                for (j, x) in row.iter().enumerate() {
                    let hit = f64::from(u8::from(j as i32 == targets[r]));
                    exact[r * vocab_size + j] = (f64::from(*x).exp() / total - hit) * 0.5;
                }
            }
            on_each(|| {
                let mut gradient = logits.clone();
                let loss = cross_entropy(&mut gradient, &targets, 0.5);
                assert!((loss - exact_loss * 0.5).abs() < 1e-5, "{loss} for {}", exact_loss * 0.5);
                for (i, (x, exact)) in gradient.iter().zip(&exact).enumerate() {
                    assert_close(*x, *exact, 1e-6, i);
                }
                let (sum, n) = nll(&logits, &targets);
                assert_eq!(n, targets.iter().filter(|t| **t >= 0).count());
                assert_eq!(sum, cross_entropy(&mut logits.clone(), &targets, 1.0));
            });
        }
    }

    #[test]
    fn rows_alone_and_among_others_on_any_number_of_threads() {
        on_each(|| {
            let logits = logits(50, 1000, 1);
            let targets: Vec<i32> = (0..50).map(|r| r * 7).collect();
            let run = |n_threads| {
                let mut gradient = logits.clone();
                let loss = on_threads(n_threads, || cross_entropy(&mut gradient, &targets, 0.1));
                (loss.to_bits(), bits(&gradient))
            };
            let one = run(1);
            assert!(one == run(2));
            let mut row = logits[3000..4000].to_vec();
            cross_entropy(&mut row, &targets[3..4], 0.1);
            assert_eq!(bits(&row), one.1[3000..4000]);
        });
    }

    #[test]
    fn confident_rows_and_masked_logits() {
        on_each(|| {
            let mut row = [50.0, f32::NEG_INFINITY, 0.0, 0.0];
            let loss = cross_entropy(&mut row, &[0], 1.0);
            assert!((0.0..1e-15).contains(&loss), "{loss}");
            assert_eq!(row[1], 0.0);
            assert_eq!(cross_entropy(&mut [], &[], 1.0), 0.0);
        });
    }

    #[test]
    #[should_panic(expected = "nll: target 4 in row 1 of a vocabulary of 4")]
    fn targets_must_be_in_the_vocabulary() {
        nll(&[0.0; 8], &[3, 4]);
    }
}
