//! Picking the next token from logits.
//!
//! The steps and their order are those of Hugging Face transformers, and of llama.cpp where those have no such step:
//!
//! 1. on logits (`penalties`, [`dry`]): `logit_bias`, repetition penalty, presence and frequency penalties, DRY;
//! 2. on the distribution (`filters`): temperature, top-k, top-p, min-p, typical, XTC, each of what the one before leaves;
//! 3. [`mirostat`], which cuts what is left so that the text stays as surprising as is wanted;
//! 4. a draw from what is left.
//!
//! A setting that is off costs nothing: no copy of the logits, no pass over them, no sorting beyond what the draw reaches.
//! Tokens whose logit is minus infinity are never picked, so whoever wants to forbid some masks them before.

pub mod dry;
mod filters;
pub mod mirostat;
mod penalties;

use std::collections::HashMap;
use std::sync::Arc;

use model::rng::Rng;
use serde::{Deserialize, Serialize};

use self::dry::{Breakers, Dry};
use self::filters::Reach;
use self::mirostat::{Mirostat, Surprise};

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
    /// Only the fewest tokens remain whose surprise is nearest to the expected one and whose probabilities reach this sum
    /// (locally typical sampling, Meister et al. 2022). Default 1.
    pub typical_p: f32,
    /// How often the most probable tokens are left out: of those that reach `xtc_threshold` all but the least probable one
    /// (XTC, "exclude top choices", as llama.cpp has it). Default 0.
    pub xtc_probability: f32,
    /// The probability that makes a token one of these. Default 0.1.
    pub xtc_threshold: f32,
    /// Logits of tokens already seen are divided by it if positive, else multiplied (Keskar et al.
    /// 2019). Default 1: none.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that were generated (OpenAI's API: -2 to 2). Default 0.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens that were generated, once for each time. Default 0.
    pub frequency_penalty: f32,
    /// Added to the logits of these ids: -100 to 100 (OpenAI's API); -100 forbids the token. Default: none.
    pub logit_bias: Vec<(u32, f32)>,
    /// Against repeating sequences. Default: off.
    pub dry: Dry,
    /// Keeps the text as surprising as is wanted. Default: off.
    pub mirostat: Option<Mirostat>,
    /// Same seed, same logits: same tokens. Default 0.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            dry: Dry::default(),
            mirostat: None,
            seed: 0,
        }
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

/// The most that a penalty or a bias may change a logit by where OpenAI's API has limits.
const MAX_PENALTY: f32 = 2.0;
const MAX_BIAS: f32 = 100.0;

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
        for (key, p) in [("top_p", self.top_p), ("typical_p", self.typical_p)] {
            check(key, p, p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        }
        let shares = [
            ("min_p", self.min_p),
            ("xtc_probability", self.xtc_probability),
            ("xtc_threshold", self.xtc_threshold),
        ];
        for (key, p) in shares {
            check(key, p, (0.0..=1.0).contains(&p), "0 to 1")?;
        }
        check("repetition_penalty", r, r.is_finite() && r > 0.0, "above 0")?;
        let penalties =
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)];
        for (key, penalty) in penalties {
            check(key, penalty, penalty.abs() <= MAX_PENALTY, "-2 to 2")?;
        }
        for &(_, bias) in &self.logit_bias {
            check("logit_bias", bias, bias.abs() <= MAX_BIAS, "-100 to 100 for each token")?;
        }
        let Dry { multiplier, base, .. } = self.dry;
        check("dry_multiplier", multiplier, multiplier.is_finite() && multiplier >= 0.0, "0 or more")?;
        check("dry_base", base, base.is_finite() && base >= 1.0, "1 or more")?;
        let Mirostat { tau, eta, .. } = self.mirostat.unwrap_or_default();
        check("mirostat_tau", tau, tau.is_finite() && tau > 0.0, "above 0")?;
        check("mirostat_eta", eta, eta.is_finite() && eta >= 0.0, "0 or more")
    }
}

/// Why no token could be picked.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoToken {
    /// A logit is NaN, or infinite where a distribution is asked for.
    #[error(
        "the model's logits for token {id} are no finite numbers: its weights are damaged or its training diverged"
    )]
    NotANumber {
        /// The first such token.
        id: usize,
    },
    /// Every logit is minus infinity.
    #[error("no token may come next: all are forbidden")]
    AllForbidden,
}

impl From<kernels::logits::NotANumber> for NoToken {
    fn from(error: kernels::logits::NotANumber) -> Self {
        Self::NotANumber { id: error.index }
    }
}

/// A [`Sampling`] with its stream of random numbers, and what it remembers of the text. A clone costs no more than that.
#[derive(Debug)]
pub struct Sampler {
    rules: Arc<Rules>,
    rng: Rng,
    /// How often each token was picked; empty if no setting wants to know.
    counts: HashMap<u32, u32>,
    surprise: Option<Surprise>,
    /// The token that was drawn last, and its probability, for [`Surprise`].
    drawn: Option<(u32, f64)>,
    /// For changed logits.
    changed: Vec<f32>,
}

/// What never changes.
#[derive(Debug)]
struct Rules {
    sampling: Sampling,
    breakers: Breakers,
}

impl Clone for Sampler {
    fn clone(&self) -> Self {
        let Self { rules, rng, counts, surprise, drawn, changed: _ } = self;
        Self {
            rules: rules.clone(),
            rng: rng.clone(),
            counts: counts.clone(),
            surprise: surprise.clone(),
            drawn: *drawn,
            changed: Vec::new(),
        }
    }
}

impl Sampler {
    /// A sampler at the start of its seed's stream.
    ///
    /// # Errors
    /// If a value has no meaning.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        sampling.validate()?;
        let (rng, breakers) = (Rng::new(sampling.seed), Breakers::new(&sampling.dry.breakers));
        let surprise = sampling.mirostat.map(Surprise::new);
        let rules = Arc::new(Rules { sampling, breakers });
        Ok(Self { rules, rng, counts: HashMap::new(), surprise, drawn: None, changed: Vec::new() })
    }

    /// Forgets the text it has worked on, for another one. The stream of random numbers goes on.
    pub fn begin(&mut self) {
        self.counts.clear();
        self.surprise = self.rules.sampling.mirostat.map(Surprise::new);
    }

    /// The next token after `seen`, which counts as generated from now on.
    ///
    /// # Errors
    /// If a logit is NaN, or none is above minus infinity.
    pub fn sample(&mut self, logits: &[f32], seen: &[u32]) -> Result<u32, NoToken> {
        let id = self.draw(logits, seen)?;
        self.take(id);
        Ok(id)
    }

    /// A token that may come after `seen`; it is the next one if [`take`](Self::take) says so.
    ///
    /// # Errors
    /// If a logit is NaN, or none is above minus infinity.
    pub fn draw(&mut self, logits: &[f32], seen: &[u32]) -> Result<u32, NoToken> {
        if !self.changes_logits() {
            return self.pick(logits);
        }
        // What is changed may hide that it was not a number.
        kernels::logits::max(logits)?;
        let mut changed = std::mem::take(&mut self.changed);
        changed.clear();
        changed.extend_from_slice(logits);
        self.change(&mut changed, seen);
        let picked = self.pick(&changed);
        self.changed = changed;
        picked
    }

    /// Notes that a token was generated.
    pub fn take(&mut self, id: u32) {
        if self.counts_tokens() {
            *self.counts.entry(id).or_insert(0) += 1;
        }
        if let (Some(surprise), Some((drawn, weight))) = (&mut self.surprise, self.drawn.take())
            && drawn == id
        {
            surprise.observe(weight);
        }
    }

    fn counts_tokens(&self) -> bool {
        self.rules.sampling.presence_penalty != 0.0 || self.rules.sampling.frequency_penalty != 0.0
    }

    fn changes_logits(&self) -> bool {
        let s = &self.rules.sampling;
        !s.logit_bias.is_empty()
            || s.repetition_penalty != 1.0
            || !self.counts.is_empty()
            || s.dry.multiplier > 0.0
    }

    fn change(&self, logits: &mut [f32], seen: &[u32]) {
        let s = &self.rules.sampling;
        penalties::bias(logits, &s.logit_bias);
        penalties::repetition(logits, seen, s.repetition_penalty);
        penalties::counted(logits, &self.counts, s.presence_penalty, s.frequency_penalty);
        dry::penalise(logits, seen, &s.dry, &self.rules.breakers);
    }

    fn pick(&mut self, logits: &[f32]) -> Result<u32, NoToken> {
        if self.rules.sampling.temperature == 0.0 {
            let id = kernels::logits::argmax(logits)?.ok_or(NoToken::AllForbidden)?;
            return Ok(id as u32);
        }
        let max = kernels::logits::max(logits)?;
        let u = self.rng.uniform();
        let xtc = self.rules.sampling.xtc_probability;
        let excludes_top = xtc > 0.0 && self.rng.uniform() < f64::from(xtc);
        let reach = match &self.surprise {
            Some(surprise) => Reach::Probability(surprise.least_probability()),
            None => Reach::Draw(u),
        };
        let mut candidates = filters::candidates(&self.rules.sampling, logits, max, reach, excludes_top);
        if candidates.is_empty() {
            return Err(NoToken::AllForbidden);
        }
        let Some(surprise) = &mut self.surprise else { return Ok(filters::draw(&candidates, u).id) };
        candidates.truncate(surprise.n_allowed(&candidates, logits.len()));
        let sum: f64 = candidates.iter().map(|c| c.weight).sum();
        let picked = filters::draw(&candidates, u * sum);
        self.drawn = Some((picked.id, picked.weight));
        Ok(picked.id)
    }
}

#[cfg(test)]
mod tests;
