//! The choice among experts: of each row's logits the largest few, as weights that sum to at most one.
//!
//! ```text
//! p = softmax(logits)        w[i] = p[i] if i is among the n_active largest, else 0
//! ```
//! or, normalised, the softmax of the chosen logits alone. Of equal logits the one that comes first is chosen, so that
//! the choice is the same on every machine. Rows are a few hundred wide at most: plain loops, in order.

use rayon::prelude::*;

use crate::rows_per_task;

/// How many are chosen of each row, and what their weights sum to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopK {
    /// How many are chosen.
    pub n_active: usize,
    /// Whether the weights of the chosen ones sum to 1.
    pub normalise: bool,
}

/// The weights of each row; those not chosen are zero.
///
/// # Shapes
/// - `logits`, `weights`: `[rows, n]`
///
/// # Panics
/// If the lengths differ or are no multiple of `n`, or fewer than one or more than `n` are to be chosen.
pub fn forward(logits: &[f32], n: usize, top: TopK, weights: &mut [f32]) {
    check(n, top, &[logits.len(), weights.len()]);
    let tasks = rows_per_task(n) * n;
    weights.par_chunks_mut(tasks).zip(logits.par_chunks(tasks)).for_each(|(weights, logits)| {
        for (weights, logits) in weights.chunks_exact_mut(n).zip(logits.chunks_exact(n)) {
            row_forward(logits, top, weights);
        }
    });
}

fn row_forward(logits: &[f32], top: TopK, weights: &mut [f32]) {
    const CHOSEN: f32 = 1.0;
    weights.fill(0.0);
    for _ in 0..top.n_active {
        let left = (0..logits.len()).filter(|&i| weights[i] != CHOSEN);
        let largest = left.reduce(|best, i| if logits[i] > logits[best] { i } else { best });
        weights[largest.expect("no more are chosen than there are")] = CHOSEN;
    }
    let (max, sum) = max_and_sum(logits, |i| !top.normalise || weights[i] == CHOSEN);
    for (weight, logit) in weights.iter_mut().zip(logits).filter(|(weight, _)| **weight == CHOSEN) {
        *weight = (logit - max).exp() / sum;
    }
}

/// The largest of the logits that count, and the sum of their exponentials less it.
fn max_and_sum(logits: &[f32], counts: impl Fn(usize) -> bool) -> (f32, f32) {
    let counted = || logits.iter().enumerate().filter(|(i, _)| counts(*i)).map(|(_, &logit)| logit);
    let max = counted().fold(f32::NEG_INFINITY, f32::max);
    (max, counted().map(|logit| (logit - max).exp()).sum())
}

/// What [`forward`] read and wrote.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// `[rows, n]`
    pub logits: &'a [f32],
    /// `[rows, n]`
    pub weights: &'a [f32],
}

/// Backward of [`forward`]: the gradient of the logits. Which are chosen counts as fixed.
///
/// # Shapes
/// - `dweights`, `dlogits`: `[rows, n]`
///
/// # Panics
/// As [`forward`].
pub fn backward(saved: Saved, n: usize, top: TopK, dweights: &[f32], dlogits: &mut [f32]) {
    let Saved { logits, weights } = saved;
    check(n, top, &[logits.len(), weights.len(), dweights.len(), dlogits.len()]);
    let rows = logits.par_chunks(n).zip(weights.par_chunks(n)).zip(dweights.par_chunks(n));
    dlogits.par_chunks_mut(n).zip(rows).with_min_len(rows_per_task(n)).for_each(|(dlogits, row)| {
        let ((logits, weights), dweights) = row;
        let mean: f32 = weights.iter().zip(dweights).map(|(w, d)| if *w == 0.0 { 0.0 } else { w * d }).sum();
        let (max, sum) = max_and_sum(logits, |_| true);
        for i in 0..n {
            // One that is not chosen takes part in the softmax only if that is over all.
            dlogits[i] = match (weights[i] != 0.0, top.normalise) {
                (true, _) => weights[i] * (dweights[i] - mean),
                (false, true) => 0.0,
                (false, false) => -(logits[i] - max).exp() / sum * mean,
            };
        }
    });
}

fn check(n: usize, top: TopK, lengths: &[usize]) {
    assert!(
        (1..=n).contains(&top.n_active)
            && lengths.iter().all(|&len| len == lengths[0] && len.is_multiple_of(n)),
        "router: {top:?} of {n}, lengths {lengths:?}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::values;

    fn weights(logits: &[f32], n: usize, top: TopK) -> Vec<f32> {
        let mut weights = vec![f32::NAN; logits.len()];
        forward(logits, n, top, &mut weights);
        weights
    }

    /// The definition in f64, with the choice given.
    fn reference(logits: &[f64], chosen: &[bool], normalise: bool) -> Vec<f64> {
        let of = |(logit, chosen): (&f64, &bool)| if !normalise || *chosen { logit.exp() } else { 0.0 };
        let sum: f64 = logits.iter().zip(chosen).map(of).sum();
        logits.iter().zip(chosen).map(|(l, c)| if *c { l.exp() / sum } else { 0.0 }).collect()
    }

    #[test]
    fn of_equal_logits_the_first_is_chosen() {
        let halves = TopK { n_active: 2, normalise: true };
        assert_eq!(
            weights(&[1.0, 3.0, 3.0, 3.0, 0.0, 0.0, 0.0, 0.0], 4, halves),
            [0.0, 0.5, 0.5, 0.0, 0.5, 0.5, 0.0, 0.0]
        );
        let all = TopK { n_active: 2, normalise: false };
        assert_eq!(weights(&[0.0; 4], 4, all), [0.25, 0.25, 0.0, 0.0]);
    }

    #[test]
    fn forward_and_backward_agree_with_f64() {
        for (n, n_active, normalise) in
            [(1, 1, true), (5, 2, true), (5, 2, false), (37, 8, true), (37, 37, false)]
        {
            let top = TopK { n_active, normalise };
            let logits: Vec<f32> = values(3000 * n, 1).iter().map(|x| 3.0 * x).collect();
            let dweights = values(3000 * n, 2);
            let weights = weights(&logits, n, top);
            let mut dlogits = vec![f32::NAN; logits.len()];
            backward(Saved { logits: &logits, weights: &weights }, n, top, &dweights, &mut dlogits);
            for row in (0..3000).step_by(101) {
                let row = row * n..(row + 1) * n;
                let wide: Vec<f64> = logits[row.clone()].iter().map(|&x| f64::from(x)).collect();
                let chosen: Vec<bool> = weights[row.clone()].iter().map(|&w| w > 0.0).collect();
                assert_eq!(chosen.iter().filter(|&&c| c).count(), n_active);
                let least =
                    wide.iter().zip(&chosen).filter(|(_, c)| **c).map(|(l, _)| *l).fold(9e9, f64::min);
                assert!(wide.iter().zip(&chosen).all(|(l, c)| *c || *l <= least), "the largest are chosen");
                let loss = |logits: &[f64]| -> f64 {
                    let weights = reference(logits, &chosen, normalise);
                    weights.iter().zip(&dweights[row.clone()]).map(|(w, d)| w * f64::from(*d)).sum()
                };
                let exact = reference(&wide, &chosen, normalise);
                for i in 0..n {
                    assert!((f64::from(weights[row.start + i]) - exact[i]).abs() < 1e-6);
                    let at = |step: f64| {
                        let mut moved = wide.clone();
                        moved[i] += step;
                        loss(&moved)
                    };
                    let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                    let got = f64::from(dlogits[row.start + i]);
                    assert!((got - slope).abs() < 2e-6, "{top:?}: {got} for {slope}");
                }
            }
        }
    }
}
