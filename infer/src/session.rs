//! One sequence, one model, one cache.
//!
//! A [`Session`] remembers the ids whose keys and values its cache holds. A prompt that begins with them,
//! as every turn of a conversation does, costs only its new part.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use burn::prelude::*;
use model::cache::{CannotEvict, Kind};
use model::{Cache, FusedOps, Transformer, span};

use crate::constrain::{Broken, Constraint};
use crate::sampler::{NoToken, Sampler};

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model gave a stop token, or the caller saw a stop string.
    Stop,
    /// The wanted number of tokens is reached.
    Length,
    /// The context is full.
    Context,
    /// The form that the text must have was brought to its end, as there was no room for what was more probable.
    Cut,
}

impl FinishReason {
    /// The name that OpenAI's API has for it.
    pub fn name(self) -> &'static str {
        match self {
            // A form that had to be brief is whole: whoever asks for one can use it.
            Self::Stop | Self::Cut => "stop",
            Self::Length | Self::Context => "length",
        }
    }
}

/// What happens when the context is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Prompts that do not fit are refused, and generation ends.
    #[default]
    Refuse,
    /// The oldest quarter is forgotten, and the rest is read again.
    Slide,
    /// The oldest tokens are dropped from the cache, but for so many sinks at the front (see [`Cache::evicting`]).
    Evict {
        /// Tokens that stay.
        n_sink: usize,
    },
}

/// What one call generated.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The new ids, without the stop token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens of prompt and answer that were out of the model's sight when the last one was generated.
    pub n_forgotten: usize,
    /// From the call to the first token.
    pub time_to_first_token: Duration,
    /// For all tokens after the first.
    pub decode_time: Duration,
}

impl Generated {
    /// Rate of the tokens after the first, which the prompt's time does not touch; 0 if there are none.
    pub fn tokens_per_s(&self) -> f64 {
        let n = self.ids.len().saturating_sub(1) as f64;
        if n == 0.0 { 0.0 } else { n / self.decode_time.as_secs_f64().max(1e-9) }
    }
}

/// Why nothing could be generated.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// There is nothing to continue.
    #[error("the prompt is empty: a model continues at least one token")]
    EmptyPrompt,
    /// The prompt leaves no room.
    #[error(
        "the prompt has {prompt} tokens, the context holds {context}: shorten it, or let it slide or evict"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Positions the session has.
        context: usize,
    },
    /// An id of the prompt is not in the vocabulary.
    #[error(
        "token id {id} is not in the model's vocabulary of {vocab_size}: the tokenizer belongs to another model"
    )]
    UnknownId {
        /// The id.
        id: u32,
        /// Number of ids the model knows.
        vocab_size: usize,
    },
    /// The model computes nonsense, or every token is forbidden.
    #[error(transparent)]
    NoToken(#[from] NoToken),
    /// What the text must be is longer than it may be.
    #[error("what the grammar allows has at least {least} tokens, and there is room for {room}")]
    NoRoom {
        /// Tokens of the shortest text that is known.
        least: usize,
        /// New tokens that may come.
        room: usize,
    },
    /// What the text must be could not be followed to its end.
    #[error(transparent)]
    Constraint(#[from] Broken),
}

/// A model at work on one sequence.
#[derive(Debug)]
pub struct Session<'a, B: Backend> {
    model: &'a Transformer<B>,
    cache: Cache<B>,
    ids: Vec<u32>,
    vocab_size: usize,
    when_full: WhenFull,
    constraint: Option<Constraint>,
}

impl<'a, B: FusedOps> Session<'a, B> {
    /// An empty session of up to `context` positions (at most the model's context), which ends when it is full.
    pub fn new(model: &'a Transformer<B>, context: usize) -> Self {
        Self::over(model, Cache::new(model.config(), 1, at_most(context, model), &model.device()))
    }

    /// An empty session of up to `context` positions (at most the model's context).
    ///
    /// # Errors
    /// [`CannotEvict`] if that is asked for and the model or the size does not allow it.
    pub fn with_end(
        model: &'a Transformer<B>,
        context: usize,
        when_full: WhenFull,
    ) -> Result<Self, CannotEvict> {
        let (config, context) = (model.config(), at_most(context, model));
        let cache = match when_full {
            WhenFull::Evict { n_sink } => Cache::evicting(config, 1, context, n_sink, &model.device())?,
            WhenFull::Refuse | WhenFull::Slide => Cache::new(config, 1, context, &model.device()),
        };
        Ok(Self { when_full, ..Self::over(model, cache) })
    }

    fn over(model: &'a Transformer<B>, cache: Cache<B>) -> Self {
        let vocab_size = model.config().vocab_size;
        Self { model, cache, ids: Vec::new(), vocab_size, when_full: WhenFull::Refuse, constraint: None }
    }

    /// Keys and values are stored as `kind`.
    pub fn with_cache(self, kind: Kind) -> Self {
        Self { cache: self.cache.stored_as(kind, &self.model.device()), ..self }
    }

    /// Only ids below `n` may be picked: a model may have room for more than its tokenizer names.
    pub fn with_vocabulary(self, n: usize) -> Self {
        Self { vocab_size: self.vocab_size.min(n), ..self }
    }

    /// The next text must be what `constraint` allows. It ends where nothing may follow, and always in time.
    pub fn with_constraint(self, constraint: Constraint) -> Self {
        Self { constraint: Some(constraint), ..self }
    }

    /// Positions that fit.
    pub fn context(&self) -> usize {
        self.cache.capacity()
    }

    /// Continues `prompt` by up to `n` tokens, ending at a token of `stop`. Each new token is shown to
    /// `on_token`, which may break off.
    ///
    /// # Errors
    /// [`Error`] if the prompt cannot be continued.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        n: usize,
        stop: &[u32],
        sampler: &mut Sampler,
        mut on_token: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated, Error> {
        self.check(prompt)?;
        // The last token needs no position.
        let room = (self.context() + 1).saturating_sub(prompt.len());
        let n_max = if self.when_full == WhenFull::Refuse { n.min(room) } else { n };
        let mut constraint = self.constraint.take();
        if let Some(least) = constraint.as_ref().map(Constraint::least_tokens).filter(|&least| least > n_max)
        {
            return Err(Error::NoRoom { least, room: n_max });
        }
        sampler.begin();
        let begin = Instant::now();
        let mut seen = prompt.to_vec();
        let mut first_token = None;
        // The first token that the model sees, and whether the cache may hold something else.
        let (mut first, mut is_new) = (0, true);
        let finish_reason = loop {
            if seen.len() - prompt.len() == n {
                break FinishReason::Length;
            }
            if seen.len() - first > self.context() {
                match self.when_full {
                    WhenFull::Refuse => break FinishReason::Context,
                    WhenFull::Slide => {
                        first = seen.len() - (self.context() * 3 / 4).max(1);
                        is_new = true;
                    }
                    WhenFull::Evict { .. } => {}
                }
            }
            let _phase = span::phase(if is_new { "prompt" } else { "token" });
            let logits = if is_new { self.read(&seen[first..]) } else { self.feed(&seen[seen.len() - 1..]) };
            is_new = false;
            let id = {
                let _op = span::host_op("sampling");
                match &mut constraint {
                    None => sampler.sample(&logits, &seen)?,
                    Some(constraint) => {
                        let left = n_max - (seen.len() - prompt.len());
                        let draw = |logits: &[f32]| sampler.draw(logits, &seen).map_err(Error::from);
                        let id = constraint.pick(&logits, left, stop, draw)?;
                        sampler.take(id);
                        id
                    }
                }
            };
            first_token.get_or_insert_with(Instant::now);
            let stopped = constraint.as_ref().map_or(FinishReason::Stop, Constraint::finish_reason);
            if stop.contains(&id) {
                break stopped;
            }
            seen.push(id);
            if on_token(id).is_break() {
                break FinishReason::Stop;
            }
            if constraint.as_ref().is_some_and(Constraint::is_over) {
                break stopped;
            }
        };
        let n_forgotten = first + self.cache.n_evicted();
        let first_token = first_token.unwrap_or(begin);
        Ok(Generated {
            ids: seen.split_off(prompt.len()),
            finish_reason,
            n_forgotten,
            time_to_first_token: first_token - begin,
            decode_time: first_token.elapsed(),
        })
    }

    /// Logits after `ids`; only those that the cache does not hold are computed.
    fn read(&mut self, ids: &[u32]) -> Vec<f32> {
        let same = ids.iter().zip(&self.ids).take_while(|(a, b)| a == b).count();
        // The last id is computed even if it is known: its logits were not kept.
        self.cache.truncate(same.min(ids.len() - 1));
        let known = self.cache.len();
        self.ids.truncate(known);
        self.feed(&ids[known..])
    }

    /// Logits after more ids.
    fn feed(&mut self, ids: &[u32]) -> Vec<f32> {
        self.ids.extend_from_slice(ids);
        let new = ids.iter().map(|&id| id as i32).collect::<Vec<_>>();
        let shape = [1, new.len()];
        let input = Tensor::from_data(TensorData::new(new, shape), &self.model.device());
        let logits = self.model.next_logits(input, &mut self.cache);
        let _op = span::host_op("logits to host");
        let mut logits = model::weights::values(&logits);
        logits.truncate(self.vocab_size);
        logits
    }

    fn check(&self, prompt: &[u32]) -> Result<(), Error> {
        let (context, vocab_size) = (self.context(), self.model.config().vocab_size);
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() > context && self.when_full == WhenFull::Refuse {
            return Err(Error::PromptTooLong { prompt: prompt.len(), context });
        }
        match prompt.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(Error::UnknownId { id, vocab_size }),
            None => Ok(()),
        }
    }
}

/// So many positions, but not more than the model's context.
fn at_most<B: Backend>(context: usize, model: &Transformer<B>) -> usize {
    context.min(model.config().context)
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use model::Config;

    use super::*;
    use crate::sampler::Sampling;

    fn tiny() -> Transformer<Flex> {
        Transformer::init(&Config::new(50, 2, 32, 4, 24), 1, &Default::default())
    }

    fn run(session: &mut Session<'_, Flex>, prompt: &[u32], n: usize, seed: u64) -> Generated {
        let mut sampler = Sampler::new(Sampling { seed, ..Sampling::default() }).expect("valid");
        session.generate(prompt, n, &[], &mut sampler, |_| ControlFlow::Continue(())).expect("generated")
    }

    #[test]
    fn a_used_session_gives_what_a_fresh_one_gives() {
        let model = tiny();
        let mut used = Session::new(&model, 24);
        for (prompt, seed) in [(&[1, 2, 3][..], 5), (&[1, 2, 3, 4][..], 6), (&[9][..], 7), (&[9][..], 7)] {
            let fresh = run(&mut Session::new(&model, 24), prompt, 8, seed).ids;
            assert_eq!(run(&mut used, prompt, 8, seed).ids, fresh, "prompt {prompt:?}");
        }
    }

    #[test]
    fn ends_at_the_count_at_the_context_at_a_stop_token_and_on_request() {
        let model = tiny();
        let mut session = Session::new(&model, 24);
        let all = run(&mut session, &[1], 10, 3);
        assert_eq!((all.ids.len(), all.finish_reason), (10, FinishReason::Length));
        // The last position's logits still give a token, which itself has no position any more.
        let full = run(&mut session, &[1], 100, 3);
        assert_eq!((full.ids.len(), full.finish_reason), (24, FinishReason::Context));
        let mut sampler = Sampler::new(Sampling { seed: 3, ..Sampling::default() }).expect("valid");
        let stopped = session
            .generate(&[1], 10, &[all.ids[4]], &mut sampler, |_| ControlFlow::Continue(()))
            .expect("generated");
        let first = all.ids.iter().position(|id| *id == all.ids[4]).expect("there");
        assert_eq!((&stopped.ids[..], stopped.finish_reason), (&all.ids[..first], FinishReason::Stop));
        let mut sampler = Sampler::new(Sampling { seed: 3, ..Sampling::default() }).expect("valid");
        let broken =
            session.generate(&[1], 10, &[], &mut sampler, |_| ControlFlow::Break(())).expect("generated");
        assert_eq!(broken.ids, all.ids[..1]);
    }

    #[test]
    fn a_full_context_slides_or_evicts() {
        let model = tiny();
        let ended = |when_full| {
            let mut session = Session::with_end(&model, 12, when_full).expect("room");
            let mut sampler = Sampler::new(Sampling { seed: 3, ..Sampling::default() }).expect("valid");
            let prompt: Vec<u32> = (0..20).collect();
            session.generate(&prompt, 30, &[], &mut sampler, |_| ControlFlow::Continue(()))
        };
        assert_eq!(ended(WhenFull::Refuse).unwrap_err(), Error::PromptTooLong { prompt: 20, context: 12 });
        for when_full in [WhenFull::Slide, WhenFull::Evict { n_sink: 2 }] {
            let generated = ended(when_full).expect("generated");
            assert_eq!((generated.ids.len(), generated.finish_reason), (30, FinishReason::Length));
            // The last token was generated from the 49 before it.
            assert!((49 - 12..49).contains(&generated.n_forgotten), "{}", generated.n_forgotten);
        }
        assert!(Session::with_end(&model, 12, WhenFull::Evict { n_sink: 11 }).is_err());
    }

    #[test]
    fn a_cache_of_fewer_bits_holds_rounded_keys() {
        let model = tiny();
        let keys = |kind| {
            let mut session = Session::new(&model, 12).with_cache(kind);
            let mut sampler = Sampler::new(Sampling::default()).expect("valid");
            let shown = |_| ControlFlow::Continue(());
            session.generate(&[3, 1, 4, 1, 5], 1, &[], &mut sampler, shown).expect("generated");
            assert_eq!(session.cache.kind(), kind);
            session.cache.layer(0).0.into_data().iter::<f32>().collect::<Vec<_>>()
        };
        let exact = keys(Kind::F32);
        let largest = exact.iter().fold(0.0f32, |largest, key| largest.max(key.abs()));
        for (kind, bound) in [(Kind::F16, 1e-3), (Kind::Q8, 5e-3)] {
            let rounded = keys(kind);
            assert!(rounded != exact && largest > 0.0, "{kind:?}");
            let pairs = rounded.iter().zip(&exact);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() <= bound * largest), "{kind:?}");
        }
    }

    #[test]
    fn a_constrained_text_is_whole_when_the_context_is_full() {
        let model = tiny();
        let names: Vec<String> = (0..50u8).map(|id| format!("\"{}\":{id}", char::from(b'A' + id))).collect();
        let json = format!(
            r#"{{"version":"1.0","model":{{"type":"BPE","vocab":{{{}}},"merges":[]}},"decoder":{{"type":"Fuse"}}}}"#,
            names.join(",").replace('\\', "\\\\")
        );
        let tokenizer = tokenizer::Tokenizer::from_json(json.as_bytes()).expect("a vocabulary");
        let vocabulary = crate::Vocabulary::new(&tokenizer, 50).expect("a vocabulary");
        let source = crate::constrain::Source::Regex("([A-Z]{2}_)*END".into());
        let grammar = vocabulary.grammar(&source).expect("a grammar");
        let run = |n: usize, seed: u64| {
            let mut session = Session::new(&model, 12).with_constraint(grammar.begin());
            let mut sampler = Sampler::new(Sampling { seed, ..Sampling::default() }).expect("valid");
            session.generate(&[1, 2], n, &[], &mut sampler, |_| ControlFlow::Continue(()))
        };
        let mut n_cut = 0;
        for seed in 0..30 {
            let generated = run(40, seed).expect("generated");
            let text: String = generated.ids.iter().map(|&id| char::from(b'A' + id as u8)).collect();
            assert!(text.ends_with("END") && text.len() <= 11, "{text}");
            // Three letters more would have fitted into any shorter text.
            let is_cut = generated.finish_reason == FinishReason::Cut;
            assert!(generated.finish_reason == FinishReason::Stop || (is_cut && text.len() == 9), "{text}");
            n_cut += usize::from(is_cut);
        }
        assert!((1..30).contains(&n_cut), "{n_cut} of 30 would have gone on");
        assert_eq!(run(2, 1).unwrap_err(), Error::NoRoom { least: 3, room: 2 });
    }

    #[test]
    fn prompts_that_cannot_be_continued_say_why() {
        let model = tiny();
        let mut session = Session::new(&model, 8);
        let mut sampler = Sampler::new(Sampling::greedy()).expect("valid");
        let mut error = |prompt: &[u32]| {
            session.generate(prompt, 1, &[], &mut sampler, |_| ControlFlow::Continue(())).unwrap_err()
        };
        assert_eq!(error(&[]), Error::EmptyPrompt);
        assert_eq!(error(&[0; 9]), Error::PromptTooLong { prompt: 9, context: 8 });
        assert_eq!(error(&[1, 50]), Error::UnknownId { id: 50, vocab_size: 50 });
    }
}
