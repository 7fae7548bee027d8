//! Picking the next token from logits.
//!
//! The steps and their order are those of Hugging Face transformers: repetition penalty, temperature,
//! top-k, top-p, min-p, then a draw from what is left. Each works on the distribution that the one
//! before leaves.

use std::cmp::Ordering;

use model::rng::Rng;
use serde::{Deserialize, Serialize};

/// How to pick. The default is the plain distribution of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Logits are divided by it; 0 means greedy: always the most probable token. Default 1.
    pub temperature: f32,
    /// Only the `k` most probable tokens remain; 0 means all. Default 0.
    pub top_k: usize,
    /// Only the fewest tokens whose probabilities reach this sum remain (Holtzman et al. 2020). Default 1.
    pub top_p: f32,
    /// Only tokens at least this fraction as probable as the most probable remain (Nguyen et al. 2024).
    /// Default 0.
    pub min_p: f32,
    /// Logits of tokens already seen are divided by it if positive, else multiplied (Keskar et al.
    /// 2019). Default 1: none.
    pub repetition_penalty: f32,
    /// Same seed, same logits: same tokens. Default 0.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// A value of [`Sampling`] that has no meaning.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
#[error("`{key}` is {value}: must be {allowed}")]
pub struct SamplingError {
    /// The field.
    pub key: &'static str,
    /// Its value.
    pub value: f32,
    /// What it may be.
    pub allowed: &'static str,
}

impl Sampling {
    /// Greedy picking.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first value without a meaning.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |key, value: f32, good: bool, allowed| match good {
            true => Ok(()),
            false => Err(SamplingError { key, value, allowed }),
        };
        let (t, r) = (self.temperature, self.repetition_penalty);
        check("temperature", t, t.is_finite() && t >= 0.0, "0 or more")?;
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "0 to 1")?;
        check("repetition_penalty", r, r.is_finite() && r > 0.0, "above 0")
    }
}

/// Why no token could be picked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the model's logits for token {id} are not a number: its weights are damaged or its training diverged"
)]
pub struct NotANumber {
    /// The first such token.
    pub id: usize,
}

/// A [`Sampling`] with its stream of random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: Rng,
}

/// A token that may still be picked.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    /// First a multiple of its probability, then this.
    weight: f64,
}

impl Sampler {
    /// A sampler at the start of its seed's stream.
    ///
    /// # Errors
    /// If a value has no meaning.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        sampling.validate()?;
        let rng = Rng::new(sampling.seed);
        Ok(Self { sampling, rng })
    }

    /// The next token after `seen`.
    ///
    /// # Errors
    /// If a logit is NaN.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn sample(&mut self, logits: &[f32], seen: &[u32]) -> Result<u32, NotANumber> {
        if let Some(id) = logits.iter().position(|l| l.is_nan()) {
            return Err(NotANumber { id });
        }
        let mut penalised = Vec::new();
        let logits = match self.sampling.repetition_penalty {
            1.0 => logits,
            penalty => {
                penalised.extend_from_slice(logits);
                penalise(&mut penalised, seen, penalty);
                &penalised[..]
            }
        };
        if self.sampling.temperature == 0.0 {
            return Ok(argmax(logits));
        }
        let u = self.rng.uniform();
        Ok(draw(&self.candidates(logits, u), u))
    }

    /// What is left after all filters, most probable first, up to the one that a draw of `u` takes; the weights of all that
    /// is left sum to 1.
    ///
    /// Of a vocabulary, few tokens are ever within reach: sorting stops there.
    fn candidates(&self, logits: &[f32], u: f64) -> Vec<Candidate> {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let mut all = weights(logits, temperature);
        if (1..all.len()).contains(&top_k) {
            all.select_nth_unstable_by(top_k - 1, by_weight);
            all.truncate(top_k);
        }
        let total: f64 = all.iter().map(|c| c.weight).sum();
        let is_filtered = top_p < 1.0 || min_p > 0.0;
        let (mut n_sorted, mut n_kept, mut sum) = (0, 0, 0.0);
        'sorted: while n_kept < all.len() {
            // A few, and if that was not enough, many more.
            let n = (8 * n_sorted).max(FEW).min(all.len() - n_sorted);
            let rest = &mut all[n_sorted..];
            if n < rest.len() {
                rest.select_nth_unstable_by(n - 1, by_weight);
            }
            rest[..n].sort_unstable_by(by_weight);
            n_sorted += n;
            while n_kept < n_sorted {
                let weight = all[n_kept].weight;
                let is_out = sum >= f64::from(top_p) * total || weight < f64::from(min_p) * all[0].weight;
                let is_beyond = !is_filtered && sum > u * total;
                if n_kept > 0 && (is_out || is_beyond) {
                    break 'sorted;
                }
                sum += weight;
                n_kept += 1;
            }
        }
        all.truncate(n_kept);
        let total = if is_filtered { sum } else { total };
        all.iter_mut().for_each(|c| c.weight /= total);
        all
    }
}

/// Tokens that are sorted first.
const FEW: usize = 64;

/// Ties go to the smaller id, so that the result does not depend on the sort.
fn by_weight(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// What each token's probability is a multiple of.
fn weights(logits: &[f32], temperature: f32) -> Vec<Candidate> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &logit| logit.max(max));
    let of = |logit: f32| match max.is_finite() {
        true => f64::from(((logit - max) / temperature).exp()),
        // Only the certain ones share the probability: exp(inf - inf) is not a number.
        false => f64::from(u8::from(logit == max)),
    };
    (0..).zip(logits).map(|(id, &logit)| Candidate { id, weight: of(logit) }).collect()
}

fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut done = vec![false; logits.len()];
    for &id in seen {
        let Some(logit) = logits.get_mut(id as usize) else { continue };
        if !std::mem::replace(&mut done[id as usize], true) {
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

/// The greatest logit's id; the smallest of several.
fn argmax(logits: &[f32]) -> u32 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &logit| logit.max(max));
    logits.iter().position(|&logit| logit == max).expect("there are logits") as u32
}

/// The candidate at `u` in `[0, 1)` of the cumulative distribution.
///
/// # Panics
/// If there is none.
fn draw(candidates: &[Candidate], u: f64) -> u32 {
    let mut sum = 0.0;
    for c in candidates {
        sum += c.weight;
        if u < sum {
            return c.id;
        }
    }
    // Rounding may leave the sum just below 1.
    candidates[candidates.len() - 1].id
}

#[cfg(test)]
mod tests {
    use model::rng::Rng;
    use proptest::prelude::*;

    use super::*;

    fn probabilities(sampling: Sampling, logits: &[f32]) -> Vec<(u32, f64)> {
        let sampler = Sampler::new(sampling).expect("valid");
        sampler.candidates(logits, 1.0).iter().map(|c| (c.id, c.weight)).collect()
    }

    /// Logits whose probabilities are the given ones.
    fn logits(p: &[f64]) -> Vec<f32> {
        p.iter().map(|p| p.ln() as f32).collect()
    }

    fn close(found: &[(u32, f64)], expected: &[(u32, f64)]) -> bool {
        found.len() == expected.len()
            && found.iter().zip(expected).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-6)
    }

    #[test]
    fn filters_follow_their_definitions() {
        let l = logits(&[0.1, 0.4, 0.2, 0.3]);
        let base = Sampling::default();
        let all = probabilities(base.clone(), &l);
        assert!(close(&all, &[(1, 0.4), (3, 0.3), (2, 0.2), (0, 0.1)]), "{all:?}");
        let k = probabilities(Sampling { top_k: 2, ..base.clone() }, &l);
        assert!(close(&k, &[(1, 4.0 / 7.0), (3, 3.0 / 7.0)]), "{k:?}");
        // 0.4 + 0.3 reaches 0.65: the token that crosses the line is kept.
        let p = probabilities(Sampling { top_p: 0.65, ..base.clone() }, &l);
        assert!(close(&p, &[(1, 4.0 / 7.0), (3, 3.0 / 7.0)]), "{p:?}");
        let m = probabilities(Sampling { min_p: 0.45, ..base.clone() }, &l);
        assert!(close(&m, &[(1, 4.0 / 9.0), (3, 3.0 / 9.0), (2, 2.0 / 9.0)]), "{m:?}");
        // Temperature 1/2 squares the probabilities.
        let t = probabilities(Sampling { temperature: 0.5, ..base }, &l);
        assert!(close(&t, &[(1, 16.0 / 30.0), (3, 9.0 / 30.0), (2, 4.0 / 30.0), (0, 1.0 / 30.0)]), "{t:?}");
    }

    #[test]
    fn repetition_penalty_acts_once_per_token_and_by_sign() {
        let mut l = vec![2.0, -2.0, 1.0, -1.0];
        penalise(&mut l, &[0, 0, 1, 99], 2.0);
        assert_eq!(l, [1.0, -4.0, 1.0, -1.0]);
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_nan_is_an_error() {
        let mut s = Sampler::new(Sampling::greedy()).expect("valid");
        assert_eq!(s.sample(&[0.0, 3.0, 3.0], &[]), Ok(1));
        assert_eq!(s.sample(&[0.0, f32::NAN], &[]), Err(NotANumber { id: 1 }));
    }

    #[test]
    fn infinite_logits_do_not_spoil_the_distribution() {
        let p = probabilities(Sampling::default(), &[f32::NEG_INFINITY, 0.0, f32::INFINITY]);
        assert_eq!(p[0], (2, 1.0));
        let p = probabilities(Sampling::default(), &[f32::NEG_INFINITY; 2]);
        assert!(close(&p, &[(0, 0.5), (1, 0.5)]), "{p:?}");
    }

    #[test]
    fn sorting_no_further_than_needed_draws_the_same() {
        let mut rng = Rng::new(4);
        let l: Vec<f32> = (0..5000).map(|_| (rng.uniform() * 12.0) as f32).collect();
        for base in [
            Sampling::default(),
            Sampling { temperature: 0.3, ..Sampling::default() },
            Sampling { top_k: 900, ..Sampling::default() },
            Sampling { top_p: 0.7, ..Sampling::default() },
            Sampling { min_p: 0.2, ..Sampling::default() },
        ] {
            let sampler = Sampler::new(base.clone()).expect("valid");
            let all = sampler.candidates(&l, 1.0);
            let total: f64 = all.iter().map(|c| c.weight).sum();
            assert!((total - 1.0).abs() < 1e-9, "{base:?}: {total}");
            assert!(all.is_sorted_by(|a, b| by_weight(a, b).is_le()));
            for u in [0.0, 0.1, 0.5, 0.9, 0.999, 0.999_999] {
                let reached = sampler.candidates(&l, u);
                assert!(all.starts_with(&reached));
                assert_eq!(draw(&reached, u), draw(&all, u), "{base:?}, {u}");
            }
        }
    }

    #[test]
    fn draws_follow_the_distribution() {
        // Chi-square with 3 degrees of freedom: 16.27 is exceeded once in 1,000 by chance.
        let p = [0.1, 0.4, 0.2, 0.3];
        let settings = [
            Sampling { seed: 1, ..Sampling::default() },
            Sampling { seed: 2, top_k: 3, ..Sampling::default() },
            Sampling { seed: 3, top_p: 0.8, temperature: 0.8, ..Sampling::default() },
        ];
        for sampling in settings {
            let expected = probabilities(sampling.clone(), &logits(&p));
            let mut sampler = Sampler::new(sampling).expect("valid");
            let mut counts = [0.0; 4];
            let n = 100_000;
            for _ in 0..n {
                counts[sampler.sample(&logits(&p), &[]).expect("numbers") as usize] += 1.0;
            }
            let chi: f64 = expected
                .iter()
                .map(|&(id, p)| (counts[id as usize] - n as f64 * p).powi(2) / (n as f64 * p))
                .sum();
            assert!(chi < 16.27, "chi-square {chi}, counts {counts:?}, expected {expected:?}");
            assert_eq!(
                counts.iter().sum::<f64>(),
                expected.iter().map(|e| counts[e.0 as usize]).sum::<f64>()
            );
        }
    }

    #[test]
    fn values_without_meaning_are_refused() {
        let base = Sampling::default();
        for (key, bad) in [
            ("temperature", Sampling { temperature: -1.0, ..base.clone() }),
            ("temperature", Sampling { temperature: f32::NAN, ..base.clone() }),
            ("top_p", Sampling { top_p: 0.0, ..base.clone() }),
            ("min_p", Sampling { min_p: 1.5, ..base.clone() }),
            ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..base.clone() }),
        ] {
            assert_eq!(Sampler::new(bad).unwrap_err().key, key);
        }
    }

    proptest! {
        #[test]
        fn always_picks_an_allowed_token(
            l in prop::collection::vec(-50f32..50.0, 1..40),
            top_k in 0usize..50, top_p in 0.01f32..1.0, min_p in 0f32..1.0, t in 0f32..3.0, seed: u64,
        ) {
            let sampling = Sampling { temperature: t, top_k, top_p, min_p, repetition_penalty: 1.3, seed };
            let mut a = Sampler::new(sampling.clone()).unwrap();
            let mut b = Sampler::new(sampling).unwrap();
            for _ in 0..5 {
                let id = a.sample(&l, &[0]).unwrap();
                prop_assert!((id as usize) < l.len());
                prop_assert_eq!(id, b.sample(&l, &[0]).unwrap());
            }
        }
    }
}
