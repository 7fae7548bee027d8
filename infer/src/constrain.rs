//! Text that a grammar allows, and nothing else.
//!
//! A [`Source`] says what is allowed: JSON, JSON of a schema, what a regular expression matches, or a context-free grammar.
//! [`Vocabulary`] compiles it once into a [`Grammar`], from which each sequence takes a [`Constraint`]: before a token is
//! picked, those that cannot go on are ruled out; after it, the constraint moves on. Grammars, their lexers and the walk
//! over the trie of the vocabulary are llguidance's.
//!
//! Tokens are allowed by their bytes, so a model may spell a text as it likes. Special tokens are ruled out unless a grammar
//! names them. The end is not a token of the grammar: where it may end, the caller's own stop tokens are allowed, and where
//! nothing may follow, [`Constraint::is_over`] says so.
//!
//! **A text ends in time.** A constraint always knows one way to the end that fits into the tokens that are left (see
//! `constrain/finish.rs`). A token after which none is known is not taken, so the text is whole when the budget is spent, if the budget
//! is at least [`Constraint::least_tokens`].
//!
//! JSON bounds no number, but most who read it do: where the text as a whole is JSON, numbers have at most 32
//! characters and exponents two digits, if the schema does not ask for more.

mod finish;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use llguidance::{JsonCompileOptions, ParserFactory, TokenParser, panic_utils};
use serde_json::{Value, json};
use tokenizer::Tokenizer;

use crate::session::FinishReason;
use finish::{Number, Place, Way};

/// Bytes of a grammar's text, at most: a schema of this size has some ten thousand names.
pub const MAX_BYTES: usize = 256 << 10;

/// Longer tokens are never allowed: the trie counts parents in ten bits, and no text needs them.
const MAX_TOKEN_BYTES: usize = 512;

/// Grammars that are kept, and bytes of their texts.
const MAX_KEPT: usize = 64;
const MAX_KEPT_BYTES: usize = 4 << 20;

/// Characters of an error.
const MAX_WHY: usize = 300;

/// Tokens that are drawn in vain before the known way to the end is taken.
const MAX_DRAWS: usize = 8;

/// What stands between JSON's tokens: nothing, a space, or a line's end and an indentation. A model that is at a loss
/// would otherwise go on with spaces for as long as it may.
const WHITESPACE: &str = r"[ ]|\n[ \t]{0,40}";

/// What is allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes. The schema is JSON itself.
    JsonSchema(String),
    /// What a regular expression matches as a whole.
    Regex(String),
    /// What the rule `start` of a grammar in Lark's notation derives.
    Lark(String),
}

/// Why there is no grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Its text is too long.
    #[error("the grammar has {bytes} bytes: at most {MAX_BYTES}")]
    TooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// A schema is not JSON, or neither an object nor a truth value.
    #[error("the schema is no JSON Schema: {0}")]
    NotASchema(String),
    /// It is malformed, asks for what cannot be enforced, or is too large or too deep.
    #[error("{0}")]
    Refused(String),
    /// No text at all, or none that was found, leads to an end.
    #[error("no text was found that the grammar allows as a whole")]
    NoEnd,
}

/// A constraint that cannot go on: its limits were reached in the middle, or it has a fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the grammar cannot go on: {0}")]
pub struct Broken(pub String);

/// A model's tokens as a trie, built once, and the grammars that were compiled for it.
pub struct Vocabulary {
    factory: ParserFactory,
    env: Arc<Env>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    grammars: HashMap<Source, (u64, Grammar)>,
    bytes: usize,
    n_uses: u64,
}

/// The trie. Its last token is one that no tokenizer has: the end.
struct Env {
    trie: TokTrie,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.greedy_tokenize(bytes)
    }

    /// Bytes that can only be these are left to the model's spelling.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl Env {
    fn end(&self) -> u32 {
        self.trie.eos_token()
    }
}

/// What is allowed, compiled. Cloning is cheap: clones share what the lexer has learned.
#[derive(Clone)]
pub struct Grammar {
    start: TokenParser,
    env: Arc<Env>,
    is_json: bool,
    way: Way,
    is_broken: Arc<AtomicBool>,
}

/// A grammar and how far one sequence is.
pub struct Constraint {
    parser: TokenParser,
    env: Arc<Env>,
    /// Known to lead to an end from here.
    way: Way,
    is_json: bool,
    place: Place,
    number: Number,
    /// Whether a token was ruled out because too few could follow it: the text would have gone on otherwise.
    was_cut: bool,
    is_broken: Arc<AtomicBool>,
}

impl Source {
    /// Its text.
    pub fn text(&self) -> &str {
        match self {
            Self::JsonObject => "",
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) => text,
        }
    }

    /// The schema, if it is JSON that is allowed, as it can stand in a grammar after `%json`.
    ///
    /// # Errors
    /// If it is no schema.
    pub fn as_schema(&self) -> Result<Option<Value>, Error> {
        Ok(match self {
            Self::JsonObject => Some(with_options(json!({ "type": "object" }))),
            Self::JsonSchema(text) => Some(schema(text)?),
            Self::Regex(_) | Self::Lark(_) => None,
        })
    }

    fn parsed(&self) -> Result<TopLevelGrammar, Error> {
        if let Some(schema) = self.as_schema()? {
            return Ok(TopLevelGrammar::from_json_schema(schema));
        }
        Ok(match self {
            Self::JsonObject | Self::JsonSchema(_) => unreachable!("these have schemas"),
            Self::Regex(text) => TopLevelGrammar::from_regex(text),
            Self::Lark(text) => TopLevelGrammar::from_lark(text.clone()),
        })
    }
}

/// A schema with the options by which it is compiled: those that it may bring itself are not looked at.
///
/// # Errors
/// If it is no schema.
pub fn schema(text: &str) -> Result<Value, Error> {
    match serde_json::from_str(text) {
        Ok(Value::Bool(true)) => Ok(with_options(json!({}))),
        Ok(schema @ Value::Object(_)) => Ok(with_options(schema)),
        Ok(Value::Bool(false)) => Err(Error::NotASchema("`false` allows nothing".into())),
        Ok(_) => Err(Error::NotASchema("it must be an object".into())),
        Err(error) => Err(Error::NotASchema(error.to_string())),
    }
}

fn with_options(mut schema: Value) -> Value {
    let options =
        JsonCompileOptions { whitespace_pattern: Some(WHITESPACE.into()), ..JsonCompileOptions::default() };
    options.apply_to(&mut schema);
    schema
}

impl Vocabulary {
    /// The tokens of a model that gives logits for `n` ids. Takes about a second for 250,000.
    ///
    /// # Errors
    /// If the trie cannot hold them.
    pub fn new(tokenizer: &Tokenizer, n: usize) -> Result<Self, Error> {
        let word = |id: u32| {
            let bytes = tokenizer.token_bytes(id).unwrap_or_default();
            match tokenizer.id_to_token(id) {
                _ if bytes.len() > MAX_TOKEN_BYTES => Vec::new(),
                // Not a text: only a grammar that names it can ask for it.
                Some(name) if tokenizer.is_special(id) && name.len() <= MAX_TOKEN_BYTES => {
                    [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat()
                }
                // The byte that marks special tokens is part of no text.
                Some(_) if !tokenizer.is_special(id) && !bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) => {
                    bytes.to_vec()
                }
                _ => Vec::new(),
            }
        };
        let mut words: Vec<Vec<u8>> = (0..n.min(tokenizer.vocab_size()) as u32).map(word).collect();
        let end = words.len() as u32;
        words.push(b"\xff<|end of the grammar|>".to_vec());
        caught(|| {
            let trie = TokTrie::from(&TokRxInfo::new(end + 1, end), &words);
            let env = Arc::new(Env { trie });
            let shared: TokEnv = env.clone();
            let slices = SlicedBiasComputer::general_slices();
            let mut factory = ParserFactory::new(&shared, InferenceCapabilities::default(), &slices)?;
            factory.quiet();
            factory.limits_mut().verbose_errors = false;
            Ok(Self { factory, env, kept: Mutex::default() })
        })
        .map_err(Error::Refused)
    }

    /// Compiles what is allowed, or finds it among what was compiled before.
    ///
    /// # Errors
    /// [`Error`] says what cannot be.
    pub fn grammar(&self, source: &Source) -> Result<Grammar, Error> {
        let bytes = source.text().len();
        if bytes > MAX_BYTES {
            return Err(Error::TooLong { bytes });
        }
        if let Some(grammar) = self.kept().find(source) {
            return Ok(grammar);
        }
        let parsed = source.parsed()?;
        let start = caught(|| {
            let mut parser = self.factory.create_parser(parsed)?;
            // What would take tokens back, and what counts tokens itself.
            parser.parser.grammar().lexer_spec().check_rollback()?;
            parser.start_without_prompt();
            Ok(parser)
        })
        .map_err(Error::Refused)?;
        let is_json = matches!(source, Source::JsonObject | Source::JsonSchema(_));
        let (env, is_broken) = (self.env.clone(), Arc::new(AtomicBool::new(false)));
        let mut grammar = Grammar { start, env, is_json, way: Way::default(), is_broken };
        let mut probe = grammar.begin();
        grammar.way = caught(|| Ok(probe.shortest())).map_err(Error::Refused)?.ok_or(Error::NoEnd)?;
        self.kept().keep(source, &grammar);
        Ok(grammar)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn find(&mut self, source: &Source) -> Option<Grammar> {
        self.n_uses += 1;
        let (last_use, grammar) = self.grammars.get_mut(source)?;
        *last_use = self.n_uses;
        // One that broke may have left its lexer in the middle of something.
        (!grammar.is_broken.load(Ordering::Acquire)).then(|| grammar.clone())
    }

    fn keep(&mut self, source: &Source, grammar: &Grammar) {
        self.n_uses += 1;
        self.bytes += source.text().len();
        if self.grammars.insert(source.clone(), (self.n_uses, grammar.clone())).is_some() {
            self.bytes -= source.text().len();
        }
        while self.grammars.len() > MAX_KEPT || self.bytes > MAX_KEPT_BYTES {
            let oldest = self.grammars.iter().min_by_key(|(_, (last_use, _))| *last_use);
            let Some(oldest) = oldest.map(|(source, _)| source.clone()) else { break };
            self.bytes -= oldest.text().len();
            self.grammars.remove(&oldest);
        }
    }
}

impl Grammar {
    /// A constraint at its start.
    pub fn begin(&self) -> Constraint {
        let Self { start, env, is_json, way, is_broken } = self.clone();
        let (place, number) = (Place::default(), Number::default());
        Constraint { parser: start, env, way, is_json, place, number, was_cut: false, is_broken }
    }
}

impl Constraint {
    /// Tokens in which a text is known to end from here.
    pub fn least_tokens(&self) -> usize {
        self.way.n_tokens()
    }

    /// Whether nothing may follow.
    pub fn is_over(&self) -> bool {
        self.parser.stopped()
    }

    /// Why a text has ended that is as it must be: what was brought to its end for want of room is not whole.
    pub fn finish_reason(&self) -> FinishReason {
        if self.was_cut { FinishReason::Cut } else { FinishReason::Stop }
    }

    /// Picks a token: `sample` is given the logits, with those of tokens that cannot follow at negative infinity. `left` is
    /// how many tokens the text may still have, this one included. Ids of `stop` may be picked where the text may end;
    /// after one of them, nothing is to come.
    ///
    /// A token after which no way to the end is known that fits is drawn in vain: it is ruled out as well, and drawn again.
    ///
    /// # Errors
    /// What `sample` fails with, and [`Broken`].
    pub fn pick<E: From<Broken>>(
        &mut self,
        logits: &[f32],
        left: usize,
        stop: &[u32],
        mut sample: impl FnMut(&[f32]) -> Result<u32, E>,
    ) -> Result<u32, E> {
        let mut masked = logits.to_vec();
        let allowed = self.mask(&mut masked, stop)?;
        let may_end = allowed.is_allowed(self.env.end());
        for n_drawn in 0..MAX_DRAWS {
            if masked.iter().all(|&logit| logit == f32::NEG_INFINITY) {
                break;
            }
            let id = match sample(&masked) {
                Ok(id) => id,
                Err(error) if n_drawn == 0 => return Err(error),
                // What is left has been ruled out by the sampler's settings; the way to the end is known.
                Err(_) => break,
            };
            if stop.contains(&id) && may_end {
                return Ok(id);
            }
            let is_allowed = (id as usize) < masked.len() && allowed.is_allowed(id);
            if is_allowed && self.accept(id, left.saturating_sub(1))? {
                return Ok(id);
            }
            if let Some(logit) = masked.get_mut(id as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        match self.way.first() {
            Some(id) if self.accept(id, left.saturating_sub(1))? => Ok(id),
            // It may end here.
            None if !stop.is_empty() => Ok(stop[0]),
            _ => Err(Broken("no token was found that can follow".into()).into()),
        }
    }

    /// Sets the logits of all tokens that cannot follow to negative infinity; those of `stop` can where the text may end.
    /// Returns what can.
    ///
    /// # Errors
    /// [`Broken`] if the grammar's limits are reached.
    pub fn mask(&mut self, logits: &mut [f32], stop: &[u32]) -> Result<SimpleVob, Broken> {
        let allowed = self.guarded(TokenParser::compute_mask)?;
        let may_end = allowed.is_allowed(self.env.end());
        // A stop token stands for the end: its own logit, where there is one.
        let ends = stop.iter().filter(|_| may_end);
        let ends: Vec<_> = ends.filter_map(|&id| Some((id as usize, *logits.get(id as usize)?))).collect();
        for (word, logits) in allowed.as_slice().iter().zip(logits.chunks_mut(32)) {
            if *word != u32::MAX {
                for (_, logit) in logits.iter_mut().enumerate().filter(|(i, _)| word >> i & 1 == 0) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        // The model may have room for more ids than have names.
        if let Some(rest) = logits.get_mut(self.env.end() as usize..) {
            rest.fill(f32::NEG_INFINITY);
        }
        if !may_end {
            // A stop token that is also a text would end this one in the middle.
            let is_text = |id: &&u32| !self.env.trie.is_special_token(**id);
            for &id in stop.iter().filter(is_text) {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        ends.into_iter().for_each(|(id, logit)| logits[id] = logit);
        Ok(allowed)
    }

    /// Moves on by a token, if that can follow and a way to the end of at most `left` tokens is known after it. Says
    /// whether it did.
    ///
    /// # Errors
    /// [`Broken`] if the grammar's limits are reached.
    pub fn accept(&mut self, id: u32, left: usize) -> Result<bool, Broken> {
        let env = self.env.clone();
        let is_text = id < env.end() && !env.trie.is_special_token(id);
        let bytes = if is_text { env.trie.token(id) } else { &[] };
        let (mut place, mut number) = (self.place, self.number);
        for &byte in bytes {
            number = number.after(byte, place);
            place = place.after(byte);
            if self.is_json && number.is_too_long() && !self.way.begins_with(bytes) {
                return Ok(false);
            }
        }
        let is_known = self.guarded(|parser| {
            if parser.stopped() || !parser.validate_token(id)? {
                return Ok(false);
            }
            parser.consume_token(id)?;
            parser.check_stop()?;
            Ok(true)
        })?;
        if !is_known {
            return Ok(false);
        }
        let before = (std::mem::replace(&mut self.place, place), std::mem::replace(&mut self.number, number));
        let is_broken = self.is_broken.clone();
        let way = caught(|| Ok(self.way_after(bytes, left))).map_err(|why| broken(&is_broken, why))?;
        match way {
            Some(way) => {
                self.way = way;
                Ok(true)
            }
            None => {
                if !self.was_cut {
                    let longer = caught(|| Ok(self.way_after(bytes, usize::MAX)));
                    self.was_cut = longer.map_err(|why| broken(&is_broken, why))?.is_some();
                }
                (self.place, self.number) = before;
                self.guarded(|parser| parser.rollback(1))?;
                Ok(false)
            }
        }
    }

    /// Calls the parser, whose faults end the sequence and not the engine.
    fn guarded<T>(&mut self, f: impl FnOnce(&mut TokenParser) -> anyhow::Result<T>) -> Result<T, Broken> {
        caught(|| f(&mut self.parser)).map_err(|why| broken(&self.is_broken, why))
    }
}

/// Notes that a grammar must not be used again.
fn broken(is_broken: &AtomicBool, why: String) -> Broken {
    is_broken.store(true, Ordering::Release);
    Broken(why)
}

/// Runs what may fail or panic. Of why, only so much as a person reads: it may repeat a grammar, or the parser's state.
fn caught<T>(f: impl FnOnce() -> anyhow::Result<T>) -> Result<T, String> {
    panic_utils::catch_unwind(AssertUnwindSafe(f)).map_err(|error| {
        let text = format!("{error:#}");
        let lines = text.lines().take_while(|line| !line.starts_with('<')).map(str::trim_end);
        let mut text = lines.collect::<Vec<_>>().join("\n").trim().to_owned();
        if let Some((end, _)) = text.char_indices().nth(MAX_WHY) {
            text.truncate(end);
            text.push('\u{2026}');
        }
        text
    })
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").field("n_tokens", &self.env.end()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("way", &self.way).finish_non_exhaustive()
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("way", &self.way).finish_non_exhaustive()
    }
}
