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

/// Shares of the largest weight down to which tokens are looked at, one after the other until those are enough: of a
/// vocabulary, few tokens are ever within reach. The last takes all.
const SHARES: [f64; 4] = [1.0 / 16.0, 1.0 / 512.0, 1.0 / 65_536.0, 0.0];

/// Tokens that are looked at in one go.
const FEW_LOGITS: usize = 512;

/// More than what a sum of weights depends on their order.
const MARGIN: f64 = 1e-9;

/// What is left after all filters, most probable first, as far as it is wanted; the weights of all that is left sum to 1.
/// Empty if no logit is above minus infinity. None may be NaN, and `max` is the largest.
pub fn candidates(
    sampling: &Sampling,
    logits: &[f32],
    max: f32,
    reach: Reach,
    excludes_top: bool,
) -> Vec<Candidate> {
    let Sampling { temperature, top_k, top_p, min_p, typical_p, xtc_threshold, .. } = *sampling;
    if max == f32::NEG_INFINITY {
        return Vec::new();
    }
    if max == f32::INFINITY {
        // Only the certain ones share the probability.
        let of = |&logit: &f32| if logit == max { 0.0 } else { f32::NEG_INFINITY };
        let certain: Vec<f32> = logits.iter().map(of).collect();
        return candidates(sampling, &certain, 0.0, reach, excludes_top);
    }
    let total = kernels::logits::sum_exp(logits, max, temperature);
    let is_filtered = top_p < 1.0 || min_p > 0.0;
    let is_all = !is_filtered && typical_p == 1.0 && !excludes_top;
    let has_top_k = (1..logits.len()).contains(&top_k);
    // What is wanted adds up to at most this share of all, and none of it weighs less.
    let (share_wanted, least) = match reach {
        _ if has_top_k => (f64::INFINITY, 0.0),
        _ if top_p < 1.0 => (f64::from(top_p), f64::from(min_p)),
        Reach::Draw(u) if is_all => (u, 0.0),
        Reach::Probability(p) if is_all => (f64::INFINITY, p * total),
        _ => (f64::INFINITY, f64::from(min_p)),
    };
    let ends_early = has_top_k || share_wanted.is_finite();
    let shares = if ends_early && logits.len() > FEW_LOGITS { &SHARES[..] } else { &[0.0] };
    let mut all = Vec::new();
    for &share in shares {
        all = weights(logits, max, temperature, share.max(least).min(1.0));
        let sum: f64 = all.iter().map(|c| c.weight).sum();
        let is_enough = sum > (share_wanted + MARGIN) * total || has_top_k && all.len() >= top_k;
        if is_enough || share <= least {
            break;
        }
    }
    let total = match has_top_k {
        true => {
            all.select_nth_unstable_by(top_k - 1, by_weight);
            all.truncate(top_k);
            all.iter().map(|c| c.weight).sum()
        }
        false => total,
    };
    let mut sum = 0.0;
    cut(&mut all, by_weight, |c| {
        // What has no probability, such as a masked token, is the end in any case.
        let is_out = (top_p < 1.0 && sum >= f64::from(top_p) * total)
            || c.weight < f64::from(min_p)
            || c.weight == 0.0;
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

/// What each token's probability is a multiple of, for those with at least a share of that of the most probable, which is 1.
fn weights(logits: &[f32], max: f32, temperature: f32, share: f64) -> Vec<Candidate> {
    let bound = match share {
        0.0 => f32::NEG_INFINITY,
        // Rounded down: one too many does no harm.
        _ => (max + temperature * (0.99 * share).ln() as f32).next_down(),
    };
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    kernels::logits::each_at_least(logits, bound, |id, logit, _| {
        ids.push(id as u32);
        weights.push(logit);
    });
    kernels::logits::exp_in_place(&mut weights, max, temperature);
    ids.into_iter().zip(weights).map(|(id, weight)| Candidate { id, weight: weight.into() }).collect()
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
