//! Mirostat: keeps the surprise of the text near a target by feedback (Basu et al. 2021).
//!
//! The surprise of a token is `-log2` of its probability. A bound `mu` begins at `2 tau`; after each token it moves against
//! the error, `mu -= eta * (surprise - tau)`. Version 1 takes the most probable `k` tokens, where `k` follows from `mu` by
//! an estimate of how steeply probabilities fall (Zipf's law); version 2 takes all whose own surprise is at most `mu`.
//!
//! As in the paper, the surprise that is fed back is that under the distribution before the cut. (llama.cpp takes the one
//! after it, which is lower; the same `tau` then gives it a more surprising text.)

use serde::{Deserialize, Serialize};

use super::filters::Candidate;

/// Settings; the defaults are those of llama.cpp.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mirostat {
    /// How the bound becomes a cut. Default: the second.
    pub version: Version,
    /// The surprise that is wanted, in bits. Default 5.
    pub tau: f32,
    /// How fast the bound follows. Default 0.1.
    pub eta: f32,
}

/// How the bound becomes a cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Version {
    /// The `k` most probable tokens.
    V1,
    /// Those that are not too surprising.
    #[default]
    V2,
}

impl Default for Mirostat {
    fn default() -> Self {
        Self { version: Version::V2, tau: 5.0, eta: 0.1 }
    }
}

/// Tokens whose probabilities tell how steeply they fall (the paper's `m`).
const N_ESTIMATE: usize = 100;

/// The bound, as it moves.
#[derive(Clone, Debug)]
pub(super) struct Surprise {
    settings: Mirostat,
    /// In bits.
    mu: f64,
}

impl Surprise {
    pub(super) fn new(settings: Mirostat) -> Self {
        Self { settings, mu: 2.0 * f64::from(settings.tau) }
    }

    /// What is less probable does not remain.
    pub(super) fn least_probability(&self) -> f64 {
        match self.settings.version {
            // A little less, so that rounding leaves it to the count.
            Version::V2 => (-self.mu).exp2() * (1.0 - 1e-9),
            Version::V1 => 0.0,
        }
    }

    /// How many of the candidates remain, which are sorted, with their probabilities: at least one.
    pub(super) fn n_allowed(&self, candidates: &[Candidate], vocab_size: usize) -> usize {
        let n = match self.settings.version {
            // Weights are never 0: what underflows is no candidate.
            Version::V2 => candidates.partition_point(|c| -c.weight.log2() <= self.mu),
            Version::V1 => n_most_probable(candidates, self.mu, vocab_size),
        };
        n.clamp(1, candidates.len().max(1))
    }

    /// Moves the bound after a token of this probability was picked.
    pub(super) fn observe(&mut self, probability: f64) {
        let Mirostat { tau, eta, .. } = self.settings;
        self.mu -= f64::from(eta) * (-probability.log2() - f64::from(tau));
    }
}

/// The paper's Algorithm 1: the exponent `s` by least squares over ratios of neighbours, and from it `k`.
fn n_most_probable(candidates: &[Candidate], mu: f64, vocab_size: usize) -> usize {
    let pairs = candidates[..candidates.len().min(N_ESTIMATE)].windows(2);
    let (mut numerator, mut denominator) = (0.0, 0.0);
    for (i, pair) in (1..).zip(pairs) {
        let t = (f64::from(i + 1) / f64::from(i)).ln();
        numerator += t * (pair[0].weight / pair[1].weight).ln();
        denominator += t * t;
    }
    if denominator == 0.0 {
        return 1;
    }
    let s = numerator / denominator;
    let epsilon = s - 1.0;
    // Where epsilon vanishes, epsilon / (1 - n^-epsilon) is 1 / ln n.
    let ratio = match epsilon.abs() < 1e-9 {
        true => 1.0 / (vocab_size as f64).ln(),
        false => epsilon / (1.0 - (vocab_size as f64).powf(-epsilon)),
    };
    (ratio * mu.exp2()).powf(1.0 / s) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zipf(s: f64, n: u32) -> Vec<Candidate> {
        let weights: Vec<f64> = (1..=n).map(|rank| f64::from(rank).powf(-s)).collect();
        let total: f64 = weights.iter().sum();
        (0..).zip(weights).map(|(id, weight)| Candidate { id, weight: weight / total }).collect()
    }

    #[test]
    fn the_bound_moves_against_the_error() {
        let mut surprise = Surprise::new(Mirostat { version: Version::V2, tau: 3.0, eta: 0.5 });
        let four = zipf(0.0, 4);
        assert_eq!((surprise.mu, surprise.n_allowed(&four, 4)), (6.0, 4));
        // 2 bits, one less than wanted: more is allowed.
        surprise.observe(0.25);
        assert_eq!(surprise.mu, 6.5);
        surprise.observe(2f64.powi(-15));
        assert_eq!(surprise.mu, 0.5);
        assert_eq!(surprise.n_allowed(&four, 4), 1, "one always remains");
    }

    #[test]
    fn the_cut_of_version_1_follows_zipfs_law() {
        // For exponent 2 over 50,000 tokens: k = (2^mu / (1 - 1/50000))^(1/2).
        let candidates = zipf(2.0, 1000);
        assert_eq!(n_most_probable(&candidates, 8.0, 50_000), 16);
        // For exponent 1: 2^mu / ln n.
        let k = n_most_probable(&zipf(1.0, 1000), 8.0, 50_000);
        assert_eq!(k, (256.0 / 50_000f64.ln()) as usize);
        assert_eq!(n_most_probable(&candidates[..1], 8.0, 50_000), 1);
    }
}
