//! Perplexity of a text: the exponential of the mean negative log-likelihood of its tokens.
//!
//! A text is longer than a context, so it is cut, and how it is cut is part of the number. Two definitions are common:
//!
//! - [`Windows::Halves`], as llama.cpp's `llama-perplexity` has it: windows of `context` tokens side by side; of each,
//!   the first token becomes the beginning of a text where the tokenizer has one, and the second half is scored (its
//!   first token aside). What is left at the end is dropped.
//! - [`Windows::Sliding`], as transformers' guide to perplexity of fixed-length models has it: windows of `context`
//!   tokens, each `stride` further; of each, the tokens that the one before did not reach are scored. The text's mean
//!   is that of the windows' means, each weighing as many tokens as it scores, less one.

use model::{FusedOps, Transformer};
use serde::Serialize;
use tokenizer::{EncodeOptions, Tokenizer};

use super::likelihood::{self, Query, Scored};
use crate::error::Error;

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// Side by side, second halves scored.
    Halves {
        /// Tokens of a window.
        context: usize,
    },
    /// Overlapping, what is new scored.
    Sliding {
        /// Tokens of a window.
        context: usize,
        /// From the beginning of one to that of the next, in tokens.
        stride: usize,
    },
}

/// What a text measures.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Perplexity {
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Its standard error, by the spread of the tokens' likelihoods; none for a single token.
    pub stderr: Option<f64>,
    /// The mean negative log-likelihood of a token, in nats.
    pub nll: f64,
    /// Tokens scored.
    pub tokens: usize,
    /// Tokens of the text, those around it included.
    pub text_tokens: usize,
    /// Windows.
    pub windows: usize,
    /// Tokens of a window.
    pub context: usize,
    /// From window to window, in tokens.
    pub stride: usize,
    /// Whose definition it is.
    pub definition: &'static str,
}

/// Measures a text. `show` is told how many of how many windows are done.
///
/// # Errors
/// If the windows do not fit the model or the text, or the tokenizer is another model's.
pub fn measure<B: FusedOps>(
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
    text: &str,
    windows: Windows,
    mut show: impl FnMut(usize, usize),
) -> Result<Perplexity, Error> {
    let (context, stride) = check(model, windows)?;
    let ids = ids(model, tokenizer, text, windows)?;
    let (queries, n_new) = cut(&ids, tokenizer, windows)?;
    let scored = likelihood::score(model, &queries, |n_done| show(n_done, queries.len()));
    let nll = match windows {
        Windows::Halves { .. } => mean(scored.iter().flatten().map(|token| token.nll)),
        Windows::Sliding { .. } => mean_of_windows(&scored, &n_new),
    };
    if !nll.is_finite() {
        return Err(Error::Data(format!(
            "the mean negative log-likelihood of the text is {nll}: the weights are damaged"
        )));
    }
    let tokens = scored.iter().map(Vec::len).sum();
    Ok(Perplexity {
        perplexity: nll.exp(),
        stderr: standard_error(&scored).map(|error| error * nll.exp()),
        nll,
        tokens,
        text_tokens: ids.len(),
        windows: queries.len(),
        context,
        stride,
        definition: match windows {
            Windows::Halves { .. } => "llama.cpp",
            Windows::Sliding { .. } => "transformers",
        },
    })
}

/// The text's windows, as [`measure`] scores them.
///
/// # Errors
/// As [`measure`].
pub(super) fn queries<B: FusedOps>(
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
    text: &str,
    windows: Windows,
) -> Result<Vec<Query>, Error> {
    check(model, windows)?;
    Ok(cut(&ids(model, tokenizer, text, windows)?, tokenizer, windows)?.0)
}

/// Windows, and for each sliding one the number of its tokens that the one before did not reach.
fn cut(ids: &[i32], tokenizer: &Tokenizer, windows: Windows) -> Result<(Vec<Query>, Vec<usize>), Error> {
    match windows {
        Windows::Halves { context } => Ok((halves(ids, context, tokenizer.around().0.first())?, Vec::new())),
        Windows::Sliding { context, stride } => Ok(sliding(ids, context, stride)?.into_iter().unzip()),
    }
}

/// Tokens of a window and from window to window.
fn check<B: FusedOps>(model: &Transformer<B>, windows: Windows) -> Result<(usize, usize), Error> {
    let (context, stride) = match windows {
        Windows::Halves { context } => (context, context),
        Windows::Sliding { context, stride } => (context, stride),
    };
    let most = model.config().context;
    // Of shorter windows no token would be scored.
    let least = if matches!(windows, Windows::Halves { .. }) { 3 } else { 2 };
    if !(least..=most).contains(&context) {
        return Err(Error::config("context", context, format!("must be {least} to the model's {most}")));
    }
    if !(1..=context).contains(&stride) {
        return Err(Error::config("stride", stride, format!("must be 1 to the window's {context}")));
    }
    Ok((context, stride))
}

/// The text's ids with what each definition puts around them: llama.cpp nothing at the end.
fn ids<B: FusedOps>(
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
    text: &str,
    windows: Windows,
) -> Result<Vec<i32>, Error> {
    let ids = match windows {
        Windows::Halves { .. } => [tokenizer.around().0, &tokenizer.encode(text)].concat(),
        Windows::Sliding { .. } => {
            tokenizer.encode_with(text, EncodeOptions { add_special: true, ..EncodeOptions::default() })
        }
    };
    checked_ids(model, ids)
}

/// Ids as the model takes them.
pub(super) fn checked_ids<B: FusedOps>(model: &Transformer<B>, ids: Vec<u32>) -> Result<Vec<i32>, Error> {
    let vocab_size = model.config().vocab_size;
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(infer::session::Error::UnknownId { id, vocab_size }.into()),
        None => Ok(ids.into_iter().map(|id| id as i32).collect()),
    }
}

fn halves(ids: &[i32], context: usize, beginning: Option<&u32>) -> Result<Vec<Query>, Error> {
    if ids.len() < 2 * context {
        return Err(Error::Data(format!(
            "the text has {} tokens, two windows of {context} need {}: give a longer text or a smaller context",
            ids.len(),
            2 * context
        )));
    }
    let window = |window: &[i32]| {
        let mut ids = window.to_vec();
        if let Some(&id) = beginning {
            ids[0] = id as i32;
        }
        Query { ids, first_scored: context / 2 + 1 }
    };
    Ok(ids.chunks_exact(context).map(window).collect())
}

/// Windows, each with its number of tokens that the one before did not reach.
fn sliding(ids: &[i32], context: usize, stride: usize) -> Result<Vec<(Query, usize)>, Error> {
    if ids.len() < 2 {
        return Err(Error::Data(format!("the text has {} tokens, at least 2 are needed", ids.len())));
    }
    let (mut queries, mut reached) = (Vec::new(), 0);
    for begin in (0..).step_by(stride) {
        let end = (begin + context).min(ids.len());
        // The first token of a window has nothing before it, new or not.
        let query = Query { ids: ids[begin..end].to_vec(), first_scored: (reached - begin).max(1) };
        queries.push((query, end - reached));
        reached = end;
        if end == ids.len() {
            break;
        }
    }
    Ok(queries)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
    sum / n as f64
}

/// Each window's mean, weighing the number of tokens that are new in it, less one.
fn mean_of_windows(scored: &[Vec<Scored>], n_new: &[usize]) -> f64 {
    let (mut sum, mut weight) = (0.0, 0.0);
    for (tokens, n_new) in scored.iter().zip(n_new) {
        let w = (n_new - 1) as f64;
        if w > 0.0 {
            sum += w * mean(tokens.iter().map(|token| token.nll));
            weight += w;
        }
    }
    sum / weight
}

/// Of the mean negative log-likelihood: the tokens' deviation over the root of their number less one.
fn standard_error(scored: &[Vec<Scored>]) -> Option<f64> {
    let nlls = || scored.iter().flatten().map(|token| token.nll);
    let n = nlls().count();
    let mean = mean(nlls());
    let variance = nlls().map(|nll| (nll - mean).powi(2)).sum::<f64>() / n as f64;
    (n > 1).then(|| (variance / (n - 1) as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(ids: &[i32], first_scored: usize) -> Query {
        Query { ids: ids.to_vec(), first_scored }
    }

    #[test]
    fn second_halves_are_scored_behind_the_beginning_of_a_text() {
        let ids: Vec<i32> = (10..21).collect();
        let found = halves(&ids, 5, Some(&1)).expect("two windows");
        assert_eq!(found, [query(&[1, 11, 12, 13, 14], 3), query(&[1, 16, 17, 18, 19], 3)]);
        let found = halves(&ids, 4, None).expect("two windows");
        assert_eq!(found, [query(&[10, 11, 12, 13], 3), query(&[14, 15, 16, 17], 3)]);
        let error = halves(&ids, 6, None).expect_err("too short").to_string();
        assert!(error.contains("11 tokens") && error.contains("12"), "{error}");
    }

    #[test]
    fn what_is_new_is_scored_in_sliding_windows() {
        let ids: Vec<i32> = (10..19).collect();
        let found = sliding(&ids, 4, 3).expect("windows");
        let want = [
            (query(&[10, 11, 12, 13], 1), 4),
            (query(&[13, 14, 15, 16], 1), 3),
            (query(&[16, 17, 18], 1), 2),
        ];
        assert_eq!(found, want);
        let found = sliding(&ids, 6, 2).expect("windows");
        let want = [(query(&ids[..6], 1), 6), (query(&ids[2..8], 4), 2), (query(&ids[4..9], 4), 1)];
        assert_eq!(found, want);
        assert_eq!(sliding(&ids, 9, 2).expect("a window"), [(query(&ids, 1), 9)]);
        // Windows side by side: the first token of each has nothing before it.
        let want = [(query(&[10, 11], 1), 2), (query(&[12, 13], 1), 2)];
        assert_eq!(sliding(&ids[..4], 2, 2).expect("windows"), want);
        assert!(sliding(&ids[..1], 2, 2).is_err());
    }

    #[test]
    fn windows_weigh_as_in_the_guide() {
        let tokens = |nlls: &[f64]| nlls.iter().map(|&nll| Scored { nll, is_greedy: false }).collect();
        let scored = [tokens(&[1.0, 2.0, 3.0]), tokens(&[4.0, 6.0]), tokens(&[9.0])];
        assert_eq!(mean_of_windows(&scored, &[4, 2, 1]), (3.0 * 2.0 + 1.0 * 5.0) / 4.0);
    }
}
