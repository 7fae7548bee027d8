//! How far one model is from another on a text: the perplexity of both, and how their predictions differ.
//!
//! The text is cut as llama.cpp's `llama-perplexity` does ([`Windows::Halves`]). At each scored position the
//! Kullback-Leibler divergence `Σ p (ln p - ln q)` says how many nats are lost where `p` is the first model's
//! distribution of the next token and the second's, `q`, is believed. Of either only some rows of logits are in memory
//! at a time.

use model::{FusedOps, Transformer};
use rayon::prelude::*;
use serde::Serialize;
use tokenizer::Tokenizer;

use super::likelihood;
use super::perplexity::{self, Windows};
use crate::error::Error;

/// Two models on one text.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Comparison {
    /// Perplexity of the text by the first, the source.
    pub source_perplexity: f64,
    /// By the second.
    pub perplexity: f64,
    /// The mean divergence of the second from the first, in nats a token.
    pub kl_divergence: f64,
    /// The standard error of that mean; none for a single token.
    pub kl_stderr: Option<f64>,
    /// The largest divergence at one position.
    pub max_kl_divergence: f64,
    /// The share of positions at which both find the same token most probable.
    pub same_top: f64,
    /// Positions scored.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
    /// Tokens of a window.
    pub context: usize,
}

/// What is summed up at a position.
struct Position {
    nll: [f64; 2],
    divergence: f64,
    is_same: bool,
}

/// Compares two models of one vocabulary on a text, in windows of `context` tokens. `show` is told how many of how many
/// windows are done.
///
/// # Errors
/// If the windows do not fit the models or the text, or the tokenizer is another model's.
pub fn compare<B: FusedOps>(
    [source, other]: [&Transformer<B>; 2],
    tokenizer: &Tokenizer,
    text: &str,
    context: usize,
    mut show: impl FnMut(usize, usize),
) -> Result<Comparison, Error> {
    let queries = perplexity::queries(source, tokenizer, text, Windows::Halves { context })?;
    let mut positions = Vec::new();
    likelihood::each_batch(source, &queries, |batch, n_done| {
        batch.logits([source, other], |[p, q], targets| {
            let vocab_size = p.len() / targets.len();
            let rows = p.par_chunks(vocab_size).zip(q.par_chunks(vocab_size)).zip(targets);
            positions.par_extend(rows.map(|((p, q), &target)| position(p, q, target as usize)));
        });
        show(n_done, queries.len());
    });
    let mean = |of: &dyn Fn(&Position) -> f64| positions.iter().map(of).sum::<f64>() / positions.len() as f64;
    let kl = mean(&|position| position.divergence);
    let variance = mean(&|position| (position.divergence - kl).powi(2));
    let n = positions.len();
    let nlls = [0, 1].map(|i| mean(&|position| position.nll[i]));
    if let Some(nll) = nlls.into_iter().chain([kl]).find(|value| !value.is_finite()) {
        return Err(Error::Data(format!(
            "what the models make of the text is {nll}: the weights are damaged, or the format cannot hold them"
        )));
    }
    Ok(Comparison {
        source_perplexity: nlls[0].exp(),
        perplexity: nlls[1].exp(),
        kl_divergence: kl,
        kl_stderr: (n > 1).then(|| (variance / (n - 1) as f64).sqrt()),
        max_kl_divergence: positions.iter().map(|position| position.divergence).fold(0.0, f64::max),
        same_top: mean(&|position| f64::from(u8::from(position.is_same))),
        tokens: n,
        windows: queries.len(),
        context,
    })
}

/// Both models' logits at a position, and the token that follows.
fn position(p: &[f32], q: &[f32], target: usize) -> Position {
    let [p_norm, q_norm] = [p, q].map(log_sum_exp);
    let divergence = p.iter().zip(q).map(|(&p, &q)| {
        let (p, q) = (f64::from(p) - p_norm, f64::from(q) - q_norm);
        p.exp() * (p - q)
    });
    Position {
        nll: [p_norm - f64::from(p[target]), q_norm - f64::from(q[target])],
        // Rounding makes of none at all sometimes less than none.
        divergence: divergence.sum::<f64>().max(0.0),
        is_same: top(p) == top(q),
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}

/// The first of the most probable tokens.
fn top(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |top, i| if logits[i] > logits[top] { i } else { top })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_by_hand() {
        // Probabilities 1/2, 1/4, 1/4 and 1/4, 1/2, 1/4.
        let (p, q) = ([2.0f32, 1.0, 1.0].map(f32::ln), [1.0f32, 2.0, 1.0].map(|x| (5.0 * x).ln()));
        let found = position(&p, &q, 0);
        assert!((found.divergence - 0.25 * 2f64.ln()).abs() < 1e-7, "{}", found.divergence);
        assert!((found.nll[0] - 2f64.ln()).abs() < 1e-7 && (found.nll[1] - 4f64.ln()).abs() < 1e-7);
        assert!(!found.is_same);
        let same = position(&p, &p.map(|x| x + 3.0), 1);
        assert!(same.divergence < 1e-7 && same.is_same);
        assert!(position(&p, &q.map(|_| f32::NAN), 0).nll[1].is_nan());
    }
}
