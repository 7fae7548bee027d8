//! From logits to the tokens that may be drawn, and the draw.

use std::cmp::Ordering;

use super::Sampling;

/// A token that may still be picked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub id: u32,
    /// First a multiple of its probability, then this.
    pub weight: f64,
}

/// How far candidates are looked at, where nothing but their order and their sum says which those are.
#[derive(Clone, Copy, Debug)]
pub enum Reach {
    /// Up to the one at this place in `[0, 1)` of the cumulative distribution.
    Draw(f64),
    /// Those that are at least so probable.
    Probability(f64),
}

/// Tokens that are sorted first.
const FEW: usize = 64;

/// What is left after all filters, most probable first, as far as it is wanted; the weights of all that is left sum to 1. Empty if no logit is above minus infinity.
///
/// Of a vocabulary, few tokens are ever within reach: sorting stops there.
pub fn candidates(sampling: &Sampling, logits: &[f32], reach: Reach, excludes_top: bool) -> Vec<Candidate> {
    let Sampling { temperature, top_k, top_p, min_p, typical_p, xtc_threshold, .. } = *sampling;
    let mut all = weights(logits, temperature);
    if (1..all.len()).contains(&top_k) {
        all.select_nth_unstable_by(top_k - 1, by_weight);
        all.truncate(top_k);
    }
    let total: f64 = all.iter().map(|c| c.weight).sum();
    let is_filtered = top_p < 1.0 || min_p > 0.0;
    let is_all = !is_filtered && typical_p == 1.0 && !excludes_top;
    let mut sum = 0.0;
    cut(&mut all, by_weight, |c| {
        // What has no probability, such as a masked token, is the end in any case.
        let is_out = sum >= f64::from(top_p) * total || c.weight < f64::from(min_p) || c.weight == 0.0;
        let is_beyond = is_all
            && match reach {
                Reach::Draw(u) => sum > u * total,
                Reach::Probability(least) => c.weight < least * total,
            };
        sum += c.weight;
        is_out || is_beyond
    });
    let total = if is_filtered { all.iter().map(|c| c.weight).sum() } else { total };
    all.iter_mut().for_each(|c| c.weight /= total);
    if typical_p < 1.0 {
        keep_typical(&mut all, typical_p.into());
    }
    if excludes_top {
        let n_top = all.partition_point(|c| c.weight >= f64::from(xtc_threshold));
        all.drain(..n_top.saturating_sub(1));
        normalise(&mut all);
    }
    all
}

/// Keeps those whose surprise is nearest to the distribution's entropy, until their probabilities reach `mass`; those that
/// are as near as the last one too.
fn keep_typical(all: &mut Vec<Candidate>, mass: f64) {
    let entropy: f64 = all.iter().map(|c| -c.weight * c.weight.ln()).sum();
    let mut by_distance: Vec<(f64, Candidate)> =
        all.iter().map(|c| ((-c.weight.ln() - entropy).abs(), *c)).collect();
    let (mut sum, mut last) = (0.0, 0.0);
    let order = |a: &(f64, Candidate), b: &(f64, Candidate)| a.0.total_cmp(&b.0).then(by_weight(&a.1, &b.1));
    cut(&mut by_distance, order, |(distance, c)| {
        let is_out = sum >= mass && *distance > last;
        (sum, last) = (sum + c.weight, *distance);
        is_out
    });
    all.clear();
    all.extend(by_distance.into_iter().map(|(_, c)| c));
    all.sort_unstable_by(by_weight);
    normalise(all);
}

fn normalise(all: &mut [Candidate]) {
    let total: f64 = all.iter().map(|c| c.weight).sum();
    all.iter_mut().for_each(|c| c.weight /= total);
}

/// Sorts as far as is needed to find the first that is out, and drops it and all after it. The first of all stays.
fn cut<T>(all: &mut Vec<T>, order: impl Fn(&T, &T) -> Ordering + Copy, mut is_out: impl FnMut(&T) -> bool) {
    let (mut n_sorted, mut n_kept) = (0, 0);
    while n_kept < all.len() {
        // A few, and if that was not enough, many more.
        let n = (8 * n_sorted).max(FEW).min(all.len() - n_sorted);
        let rest = &mut all[n_sorted..];
        if n < rest.len() {
            rest.select_nth_unstable_by(n - 1, order);
        }
        rest[..n].sort_unstable_by(order);
        n_sorted += n;
        while n_kept < n_sorted {
            if is_out(&all[n_kept]) && n_kept > 0 {
                all.truncate(n_kept);
                return;
            }
            n_kept += 1;
        }
    }
}

/// Ties go to the smaller id, so that the result does not depend on the sort.
pub fn by_weight(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// What each token's probability is a multiple of: that of the most probable is 1. Empty if all logits are minus infinity.
fn weights(logits: &[f32], temperature: f32) -> Vec<Candidate> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &logit| logit.max(max));
    if max == f32::NEG_INFINITY {
        return Vec::new();
    }
    let of = |logit: f32| match max.is_finite() {
        true => f64::from(((logit - max) / temperature).exp()),
        // Only the certain ones share the probability: exp(inf - inf) is not a number.
        false => f64::from(u8::from(logit == f32::INFINITY)),
    };
    (0..).zip(logits).map(|(id, &logit)| Candidate { id, weight: of(logit) }).collect()
}

/// The greatest logit's id, the smallest of several; `None` if all are minus infinity.
pub fn most_probable(logits: &[f32]) -> Option<u32> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &logit| logit.max(max));
    let id = logits.iter().position(|&logit| logit == max)?;
    (max > f32::NEG_INFINITY).then_some(id as u32)
}

/// The candidate at `u` of the cumulative weights, below their sum.
///
/// # Panics
/// If there is none.
pub fn draw(candidates: &[Candidate], u: f64) -> Candidate {
    let mut sum = 0.0;
    for c in candidates {
        sum += c.weight;
        if u < sum {
            return *c;
        }
    }
    // Rounding may leave the sum just below `u`.
    candidates[candidates.len() - 1]
}
