//! What an engine is asked for, and what it answers.

use std::time::Duration;

use crate::constrain::{Broken, Constraint};
use crate::sampler::{NoToken, Sampling, SamplingError};
use crate::session::FinishReason;
use crate::text::TextStream;

/// What to continue, and how.
#[derive(Debug)]
pub struct Request {
    /// Ids to continue; not empty.
    pub prompt: Vec<u32>,
    /// Most new tokens; the context may end it before.
    pub n: usize,
    /// How tokens are picked.
    pub sampling: Sampling,
    /// Ids that end the text.
    pub stop_ids: Vec<u32>,
    /// Turns ids into text, and ends it at stop strings.
    pub text: TextStream,
    /// Ids below it may be picked: a model may have room for more than its tokenizer names.
    pub vocab_size: usize,
    /// What the text must be. It ends where nothing may follow, and always in time.
    pub constraint: Option<Constraint>,
    /// Of each new token its probability and those of so many of the most probable ones.
    pub logprobs: Option<usize>,
    /// The same of each token of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Who asks: those who have less running go first.
    pub owner: u64,
}

/// Where a request's events go.
pub trait Sink: Send {
    /// Takes one event. After the last one nothing comes.
    fn send(&mut self, event: Event);

    /// Whether there is room for another event. A sequence waits until there is.
    fn is_ready(&self) -> bool {
        true
    }

    /// Whether nobody listens any more: the sequence ends without a word. Asked before each step.
    fn is_gone(&mut self) -> bool {
        false
    }
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Each token of the prompt but the first, if that was wanted.
    Prompt(Vec<Logprob>),
    /// Another token.
    Token {
        /// Its id.
        id: u32,
        /// Text that has become certain; often that of this token.
        text: String,
        /// If that was wanted.
        logprob: Option<Logprob>,
    },
    /// It is done.
    End(Finished),
    /// It cannot go on.
    Failed(Failure),
}

/// A token's probability, and which would have been the most probable ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability under the model, before sampling changes anything.
    pub logprob: f32,
    /// The most probable tokens, with theirs.
    pub top: Vec<(u32, f32)>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// Text that was held back until nothing more came.
    pub text: String,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Of these, those that were known from others.
    pub n_cached: usize,
    /// New tokens, without the one that ended it.
    pub n_new: usize,
    /// Until its first step.
    pub queued: Duration,
    /// From being asked to the first token.
    pub time_to_first_token: Duration,
    /// From the first token to the end.
    pub decode_time: Duration,
}

/// Why a request ended in the middle.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The model computes nonsense, or every token is forbidden.
    #[error(transparent)]
    NoToken(#[from] NoToken),
    /// The tokenizer lacks an id that the model gave.
    #[error("{0}")]
    Text(String),
    /// What the text must be could not be followed to its end.
    #[error(transparent)]
    Constraint(#[from] Broken),
    /// The engine is gone.
    #[error("the engine stopped: its log says why")]
    Engine,
}

/// Why a request is not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// There is nothing to continue.
    #[error("the prompt is empty: a model continues at least one token")]
    EmptyPrompt,
    /// It could never run.
    #[error(
        "the prompt has {prompt} tokens and {new} more are asked for: at most {context} fit in the model's context, \
         and one after them"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens wanted.
        new: usize,
        /// Positions that a sequence may have.
        context: usize,
    },
    /// It needs more memory than all others together may have.
    #[error("{tokens} tokens need {pages} pages of the cache, which has {available}")]
    NoMemory {
        /// Of prompt and answer, but the last.
        tokens: usize,
        /// That they fill.
        pages: usize,
        /// Of the pool.
        available: usize,
    },
    /// An id of the prompt is not in the vocabulary.
    #[error("token id {id} is not in the model's vocabulary of {vocab_size}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Number of ids the model knows.
        vocab_size: usize,
    },
    /// A setting of the sampler has no meaning.
    #[error(transparent)]
    Sampling(#[from] SamplingError),
    /// What the text must be is longer than what is asked for.
    #[error("what the grammar allows has at least {least} tokens, and {new} are asked for")]
    NoRoom {
        /// Tokens of the shortest text that is known.
        least: usize,
        /// Tokens wanted.
        new: usize,
    },
}

impl Logprob {
    /// Of a token by the logits before it.
    pub(super) fn of(id: u32, logits: &[f32], n_top: usize) -> Result<Self, NoToken> {
        let max = kernels::logits::max(logits)?;
        if max.is_infinite() {
            // Of infinities there is no distribution. These are the model's own: nothing was forbidden yet.
            let id = logits.iter().position(|&logit| logit == max).unwrap_or_default();
            return Err(NoToken::NotANumber { id });
        }
        let total = f64::from(max) + kernels::logits::sum_exp(logits, max, 1.0).ln();
        let of = |id: usize| (f64::from(logits[id]) - total) as f32;
        let top = kernels::logits::largest(logits, n_top);
        let top = top.into_iter().map(|id| (id as u32, of(id))).collect();
        Ok(Self { id, logprob: of(id as usize), top })
    }
}
