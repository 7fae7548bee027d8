//! A long text through a model with a cache of constant size: how well each part of it is predicted, how long it takes.
//!
//! The text is read from the front, a few tokens a step, and each token is predicted from those before it that the cache
//! still holds. With an evicting cache that never ends (Xiao et al. 2023); a plain one ends where it is full, and gets
//! worse as soon as positions are larger than those of training.

use std::time::Instant;

use burn::prelude::*;
use model::cache::CannotEvict;
use model::{Cache, FusedOps, Transformer, ops};
use serde::{Deserialize, Serialize};

/// Positions of a plain cache at most: it keeps all of them, and each token is compared with all before it.
const MAX_PLAIN: usize = 1 << 17;

/// How a text is streamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Tokens to stream; a shorter text begins again at its front.
    pub n_tokens: usize,
    /// Positions that the cache holds, at most the model's context.
    pub cache: usize,
    /// How many of the first positions stay (Xiao et al. use 4).
    pub n_sink: usize,
    /// Tokens of a step; each is computed with all before it, in its step too.
    pub step: usize,
    /// Tokens of a point of the curve.
    pub bucket: usize,
    /// Tokens that a plain cache, which keeps all of them, is shown for comparison; 0 for none.
    pub n_plain: usize,
}

/// A value of [`Config`](struct@Config) that cannot be.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// A number that must not be so small.
    #[error("`{key}` is {value}: must be at least {least}")]
    TooSmall {
        /// The key.
        key: &'static str,
        /// Its value.
        value: usize,
        /// The least possible.
        least: usize,
    },
    /// A number that must not be so large.
    #[error("`{key}` is {value}: must be at most {most}")]
    TooLarge {
        /// The key.
        key: &'static str,
        /// Its value.
        value: usize,
        /// The most possible.
        most: usize,
    },
    /// The cache would hold positions that the model was not trained for.
    #[error("`cache` is {cache}: the model's context is {context}")]
    BeyondContext {
        /// Positions of the cache.
        cache: usize,
        /// Positions of the model.
        context: usize,
    },
    /// The model or the sizes do not allow it.
    #[error(transparent)]
    CannotEvict(#[from] CannotEvict),
}

/// A part of the curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Tokens seen at its end.
    pub n_tokens: usize,
    /// `exp` of the mean loss of its tokens.
    pub perplexity: f64,
    /// Time of one of its tokens.
    pub us_per_token: f64,
}

impl Config {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error`] names the key and what is allowed.
    pub fn validate(&self) -> Result<(), Error> {
        let least = [
            ("n_tokens", self.n_tokens, 2),
            ("step", self.step, 1),
            ("bucket", self.bucket, 1),
            ("cache", self.cache, self.n_sink.saturating_add(self.step.max(1).saturating_mul(2))),
        ];
        match least.into_iter().find(|(_, value, least)| value < least) {
            Some((key, value, least)) => Err(Error::TooSmall { key, value, least }),
            None if self.n_plain > self.n_tokens => {
                Err(Error::TooLarge { key: "n_plain", value: self.n_plain, most: self.n_tokens })
            }
            None if self.n_plain > MAX_PLAIN => {
                Err(Error::TooLarge { key: "n_plain", value: self.n_plain, most: MAX_PLAIN })
            }
            None => Ok(()),
        }
    }

    /// Streams `text` through a cache that evicts; each point goes to `on_point`.
    ///
    /// # Errors
    /// [`Error`] if the config does not fit the model.
    ///
    /// # Panics
    /// If the text is empty.
    pub fn evicting<B: FusedOps>(
        &self,
        model: &Transformer<B>,
        text: &[u32],
        on_point: impl FnMut(Point),
    ) -> Result<(), Error> {
        self.validate()?;
        let context = model.config().context;
        if self.cache > context {
            return Err(Error::BeyondContext { cache: self.cache, context });
        }
        let cache = Cache::evicting(model.config(), 1, self.cache, self.n_sink, &model.device())?;
        self.run(model, cache, text, self.n_tokens, on_point);
        Ok(())
    }

    /// Streams the beginning of `text` through a cache that keeps all.
    ///
    /// # Panics
    /// If the text is empty.
    pub fn plain<B: FusedOps>(&self, model: &Transformer<B>, text: &[u32], on_point: impl FnMut(Point)) {
        let cache = Cache::new(model.config(), 1, self.n_plain, &model.device());
        let n = self.n_plain.min(cache.capacity());
        self.run(model, cache, text, n, on_point);
    }

    fn run<B: FusedOps>(
        &self,
        model: &Transformer<B>,
        mut cache: Cache<B>,
        text: &[u32],
        n_tokens: usize,
        mut on_point: impl FnMut(Point),
    ) {
        let at = |i: usize| text[i % text.len()] as i32;
        let (mut loss, mut n_scored, mut begin) = (0.0, 0, Instant::now());
        let mut n_seen = 0;
        while n_seen < n_tokens {
            let n = self.step.min(n_tokens - n_seen);
            let ints = |first: usize| (first..first + n).map(at).collect::<Vec<i32>>();
            let device = model.device();
            let ids = Tensor::from_data(TensorData::new(ints(n_seen), [1, n]), &device);
            let targets = Tensor::from_data(TensorData::new(ints(n_seen + 1), [n]), &device);
            let logits = model.forward_cached(ids, &mut cache);
            loss += ops::cross_entropy(logits, targets, 1.0).into_scalar().elem::<f64>();
            n_scored += n;
            n_seen += n;
            if n_scored >= self.bucket || n_seen == n_tokens {
                on_point(Point {
                    n_tokens: n_seen,
                    perplexity: (loss / n_scored as f64).exp(),
                    us_per_token: begin.elapsed().as_secs_f64() * 1e6 / n_scored as f64,
                });
                (loss, n_scored, begin) = (0.0, 0, Instant::now());
            }
        }
    }
}
