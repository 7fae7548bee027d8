//! Questions with known answers, counted as lm-eval counts them.
//!
//! Where a line has choices, the likelihood of each after its context is summed over its tokens: `acc` is how often the
//! right one has the largest, `acc_norm` how often it has the largest by character. Where the last word of a text is
//! asked for, `acc` is how often the model would have given it, and `perplexity` belongs to whole words. Contexts have
//! no examples before them, and begin with what the tokenizer puts before a text.

use std::path::Path;

use model::{FusedOps, Transformer};
use serde::Serialize;
use tokenizer::Tokenizer;

use super::likelihood::{self, Query};
use super::perplexity::checked_ids;
use super::questions::{self, Pair, Question};
use crate::error::Error;

/// A share of right answers.
#[derive(Clone, Copy, Debug, Serialize, PartialEq)]
pub struct Share {
    /// From 0 to 1.
    pub value: f64,
    /// Its standard error; none for a single question.
    pub stderr: Option<f64>,
}

/// What a file of questions gave.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Outcome {
    /// Questions asked.
    pub n: usize,
    /// By the sum of log-likelihoods, or of last words.
    pub acc: Share,
    /// By log-likelihood per character, where there are choices of which that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<Share>,
    /// Of last words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Contexts whose beginning was left out, because they do not fit the model.
    pub n_truncated: usize,
}

/// Asks the questions of a file, one a line, at most so many. `show` is told how many of how many texts are scored.
///
/// # Errors
/// If the file cannot be read; a line that is no question, by its number; lines of different kinds.
pub fn ask<B: FusedOps>(
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
    path: &Path,
    limit: Option<usize>,
    mut show: impl FnMut(usize, usize),
) -> Result<Outcome, Error> {
    let questions = read(path, limit)?;
    let mut queries = Vec::new();
    let mut n_truncated = 0;
    for question in &questions {
        for pair in question.pairs() {
            let (query, is_truncated) = query(model, tokenizer, pair)?;
            n_truncated += usize::from(is_truncated);
            queries.push(query);
        }
    }
    let scored = likelihood::score(model, &queries, |n_done| show(n_done, queries.len()));
    let mut scored = scored.into_iter().map(|tokens| Sum {
        log_likelihood: -tokens.iter().map(|token| token.nll).sum::<f64>(),
        is_greedy: tokens.iter().all(|token| token.is_greedy),
    });
    let (mut acc, mut acc_norm, mut words) = (Vec::new(), Vec::new(), Vec::new());
    for question in &questions {
        let sums: Vec<Sum> = scored.by_ref().take(question.pairs().len()).collect();
        if sums.iter().any(|sum| sum.log_likelihood.is_nan()) {
            let why = "a log-likelihood is not a number: the weights are damaged";
            return Err(Error::Data(why.into()));
        }
        match question {
            Question::LastWord(_) => {
                acc.push(sums[0].is_greedy);
                words.push(sums[0].log_likelihood);
            }
            Question::Choice { lengths, answer, .. } => {
                let sums: Vec<f64> = sums.iter().map(|sum| sum.log_likelihood).collect();
                acc.push(first_largest(&sums) == *answer);
                if let Some(lengths) = lengths {
                    let each: Vec<f64> = sums.iter().zip(lengths).map(|(sum, &n)| sum / n as f64).collect();
                    acc_norm.push(first_largest(&each) == *answer);
                }
            }
        }
    }
    let mean_of_words = words.iter().sum::<f64>() / words.len() as f64;
    Ok(Outcome {
        n: questions.len(),
        acc: share(&acc),
        acc_norm: (!acc_norm.is_empty()).then(|| share(&acc_norm)),
        perplexity: (!words.is_empty()).then(|| (-mean_of_words).exp()),
        n_truncated,
    })
}

/// What a text's tokens come to.
struct Sum {
    log_likelihood: f64,
    is_greedy: bool,
}

impl Question {
    fn pairs(&self) -> &[Pair] {
        match self {
            Self::LastWord(pair) => std::slice::from_ref(pair),
            Self::Choice { pairs, .. } => pairs,
        }
    }
}

fn read(path: &Path, limit: Option<usize>) -> Result<Vec<Question>, Error> {
    let wrong = |idx: usize, why: String| Error::Damaged {
        path: path.into(),
        why: format!("line {}: {why}", idx + 1),
    };
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let mut questions: Vec<Question> = Vec::new();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    for (idx, line) in lines.take(limit.unwrap_or(usize::MAX)) {
        let question = questions::parse(line).map_err(|why| wrong(idx, why))?;
        let is_other = |first: &Question| match (first, &question) {
            (Question::LastWord(_), Question::LastWord(_)) => false,
            (Question::Choice { lengths: a, .. }, Question::Choice { lengths: b, .. }) => {
                a.is_some() != b.is_some()
            }
            _ => true,
        };
        if questions.first().is_some_and(is_other) {
            return Err(wrong(idx, "another kind of question than before: one file, one kind".into()));
        }
        questions.push(question);
    }
    match questions.is_empty() {
        true => Err(Error::Damaged { path: path.into(), why: "there is no question in it".into() }),
        false => Ok(questions),
    }
}

/// The tokens of both texts together, of which those beyond the context's own are scored: a token that reaches over
/// the seam belongs to neither. Says whether the beginning had to be left out.
fn query<B: FusedOps>(
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
    pair: &Pair,
) -> Result<(Query, bool), Error> {
    // Spaces at the seam go to the continuation, where a token for them and the next word is.
    let context = pair.context.trim_end();
    let spaces = &pair.context[context.len()..];
    let whole = tokenizer.encode(&format!("{context}{spaces}{}", pair.continuation));
    let n_context = tokenizer.encode(context).len().min(whole.len());
    let before = tokenizer.around().0;
    // Something must stand before the first token that is scored.
    let before = match (before, n_context) {
        ([], 0) => {
            let id = tokenizer.bos_id().or(tokenizer.eos_id());
            vec![id.ok_or_else(|| {
                Error::Data(format!(
                    "the context of \"{}\" is empty, and the tokenizer has no token that begins a text",
                    pair.continuation.trim()
                ))
            })?]
        }
        _ => before.to_vec(),
    };
    let n_scored = whole.len() - n_context;
    if n_scored == 0 {
        let shown = pair.continuation.trim();
        return Err(Error::Data(format!("\"{shown}\" has no token of its own after its context")));
    }
    let ids = checked_ids(model, [before, whole].concat())?;
    // The last token is predicted, not read.
    let most = model.config().context + 1;
    if n_scored >= most {
        let shown: String = pair.continuation.chars().take(60).collect();
        let context = most - 1;
        return Err(Error::Data(format!(
            "\"{shown}…\" has {n_scored} tokens, the model's context holds {context}"
        )));
    }
    let start = ids.len().saturating_sub(most);
    let ids = ids[start..].to_vec();
    Ok((Query { first_scored: ids.len() - n_scored, ids }, start > 0))
}

/// Of equals the first.
fn first_largest(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// The mean, and its standard error by the sample's deviation.
fn share(are_right: &[bool]) -> Share {
    let n = are_right.len() as f64;
    let value = are_right.iter().filter(|&&is_right| is_right).count() as f64 / n;
    Share { value, stderr: (n > 1.0).then(|| (value * (1.0 - value) / (n - 1.0)).sqrt()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_the_samples_error() {
        // The deviation of 1, 1, 0, 0, 0 with n - 1 is √0.3, over √5.
        let found = share(&[true, true, false, false, false]);
        assert_eq!(found.value, 0.4);
        assert!((found.stderr.expect("five questions") - (0.3f64 / 5.0).sqrt()).abs() < 1e-12);
        assert_eq!(share(&[true]).stderr, None);
    }

    #[test]
    fn of_equal_choices_the_first_is_taken() {
        assert_eq!(first_largest(&[-3.0, -1.0, -1.0, f64::NEG_INFINITY]), 1);
    }
}
