//! Many sequences, one model: each step takes a token of every sequence that generates and a piece of the prompts that wait.
//!
//! ```text
//! submit -> waiting -> running: pages taken, prompt read piece by piece, then a token a step -> end
//!              ^                 |
//!              +-- preempted ----+   its pages were needed; what it has is read again later
//! ```
//! Sequences join and leave between steps (Yu et al. 2022, "Orca"); keys and values lie in pages (see
//! [`Pages`]), so that a sequence takes memory as it grows and sequences with the same beginning share it. A step's
//! result does not depend on what else is in it: on the CPU backends a sequence's logits have the same bits alone and
//! among others, so when it is admitted, cut into pieces or preempted changes its time and nothing else.
//!
//! A long prompt is read in pieces that cost little beside a step that generates, so that nobody's tokens stop coming
//! (Agrawal et al. 2023, "SARATHI"). How much that is follows from how long steps took.

use std::time::{Duration, Instant};

use model::pool::{PAGE, Part};
use model::{FusedOps, Pool, Transformer};

use crate::pages::{Name, Pages};
use crate::sampler::{NotANumber, Sampler, Sampling, SamplingError};
use crate::session::FinishReason;
use crate::text::TextStream;

/// What an engine steps: a decoder over a pool of pages.
pub trait Decoder {
    /// Logits of the positions that the parts want, part after part, `vocab_size` each.
    fn step(&mut self, parts: &[Part<'_>]) -> Vec<f32>;

    /// Logits of a position.
    fn vocab_size(&self) -> usize;

    /// Positions that a sequence may have.
    fn context(&self) -> usize;

    /// Pages of the pool.
    fn n_pages(&self) -> usize;
}

/// A transformer and its pool.
#[derive(Debug)]
pub struct Paged<'a, B: FusedOps> {
    model: &'a Transformer<B>,
    pool: Pool<B>,
}

impl<'a, B: FusedOps> Paged<'a, B> {
    /// A model over an empty pool that was made for it.
    pub fn new(model: &'a Transformer<B>, pool: Pool<B>) -> Self {
        Self { model, pool }
    }
}

impl<B: FusedOps> Decoder for Paged<'_, B> {
    fn step(&mut self, parts: &[Part<'_>]) -> Vec<f32> {
        model::weights::values(&self.model.forward_paged(parts, &mut self.pool))
    }

    fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    fn context(&self) -> usize {
        self.pool.context()
    }

    fn n_pages(&self) -> usize {
        self.pool.n_pages()
    }
}

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

    /// Whether nobody listens any more: the sequence ends without a word.
    fn is_gone(&self) -> bool {
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
    /// The model computes nonsense.
    #[error(transparent)]
    NotANumber(#[from] NotANumber),
    /// The tokenizer lacks an id that the model gave.
    #[error("{0}")]
    Text(String),
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
        "the prompt has {prompt} tokens and {new} more are asked for: at most {context} fit in the model's context"
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
        /// Of prompt and answer.
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
}

/// How much an engine does at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Sequences that run, at most.
    pub n_running: usize,
    /// Positions of a step, at most.
    pub n_rows: usize,
    /// How long a step that only reads prompts is to take: until it ends, nobody can join or leave.
    pub step_time: Duration,
    /// What reading prompts may add to a step that generates, as a multiple of its time.
    pub stall: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { n_running: 16, n_rows: 512, step_time: Duration::from_millis(150), stall: 1.5 }
    }
}

/// What an engine has done, and what it is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences that have pages.
    pub n_running: usize,
    /// Sequences that wait for them.
    pub n_waiting: usize,
    /// Pages of running sequences.
    pub pages_used: usize,
    /// Pages that hold a beginning that may come again.
    pub pages_idle: usize,
    /// Positions of prompts that were computed.
    pub prompt_tokens: u64,
    /// Positions of prompts that were known.
    pub cached_tokens: u64,
    /// Tokens that were generated.
    pub new_tokens: u64,
    /// Sequences that were sent back to wait.
    pub preempted: u64,
    /// Sequences that nobody listened to any more.
    pub cancelled: u64,
    /// Steps.
    pub steps: u64,
}

/// Sequences over a decoder.
pub struct Engine<D> {
    decoder: D,
    limits: Limits,
    pages: Pages,
    /// In the order of their arrival; those sent back come first.
    waiting: Vec<Sequence>,
    /// In the order in which they were admitted.
    running: Vec<Sequence>,
    pace: Pace,
    stats: Stats,
    n_arrived: u64,
}

/// A request and how far it is.
struct Sequence {
    arrival: u64,
    arrived: Instant,
    first_step: Option<Instant>,
    first_token: Option<Instant>,
    /// Prompt and what was generated.
    ids: Vec<u32>,
    n_prompt: usize,
    n_max: usize,
    /// Ids whose keys and values are in the pages.
    n_done: usize,
    n_cached: usize,
    pages: Vec<u32>,
    /// Pages that are full and known, and the name of the last.
    known: (usize, Name),
    sampler: Sampler,
    stop_ids: Vec<u32>,
    text: TextStream,
    vocab_size: usize,
    logprobs: Option<usize>,
    /// What is wanted of the prompt, until it has been sent.
    prompt_logprobs: Option<(usize, Vec<Logprob>)>,
    owner: u64,
    sink: Box<dyn Sink>,
}

impl<D: Decoder> Engine<D> {
    /// An engine without work.
    pub fn new(decoder: D, limits: Limits) -> Self {
        let pages = Pages::new(decoder.n_pages());
        let pace = Pace::default();
        let (waiting, running, stats) = (Vec::new(), Vec::new(), Stats::default());
        Self { decoder, limits, pages, waiting, running, pace, stats, n_arrived: 0 }
    }

    /// Whether a request can ever run, and if so, how many tokens it can have: what fits if it asks for no number.
    ///
    /// # Errors
    /// [`Refused`] says why not.
    pub fn check(&self, request: &Request) -> Result<(), Refused> {
        check(request, self.decoder.context(), self.pages.len(), self.decoder.vocab_size())
    }

    /// Takes a request, whose events go to `sink`.
    ///
    /// # Errors
    /// [`Refused`] if it can never run.
    pub fn submit(&mut self, request: Request, sink: Box<dyn Sink>) -> Result<(), Refused> {
        self.check(&request)?;
        let Request { prompt, n, sampling, stop_ids, text, vocab_size, logprobs, prompt_logprobs, owner } =
            request;
        self.n_arrived += 1;
        self.waiting.push(Sequence {
            arrival: self.n_arrived,
            arrived: Instant::now(),
            first_step: None,
            first_token: None,
            n_prompt: prompt.len(),
            n_max: prompt.len() + n,
            ids: prompt,
            n_done: 0,
            n_cached: 0,
            pages: Vec::new(),
            known: (0, 0),
            sampler: Sampler::new(sampling)?,
            stop_ids,
            text,
            vocab_size: vocab_size.min(self.decoder.vocab_size()),
            logprobs,
            prompt_logprobs: prompt_logprobs.map(|n| (n, Vec::new())),
            owner,
            sink,
        });
        Ok(())
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        let pages_idle = self.pages.n_idle();
        let pages_used = self.pages.len() - self.pages.n_available();
        let (n_running, n_waiting) = (self.running.len(), self.waiting.len());
        Stats { n_running, n_waiting, pages_used, pages_idle, ..self.stats }
    }

    /// Ends every sequence with a failure.
    pub fn fail(&mut self, failure: &Failure) {
        for mut sequence in self.waiting.drain(..).chain(self.running.drain(..)) {
            self.pages.release(&sequence.pages);
            sequence.sink.send(Event::Failed(failure.clone()));
        }
    }

    /// One step. Returns whether anything was computed: if not, nothing can go on before something changes outside.
    pub fn step(&mut self) -> bool {
        self.drop_cancelled();
        self.admit();
        let plan = self.plan();
        if plan.iter().all(|&n| n == 0) {
            return false;
        }
        self.run(&plan);
        true
    }

    fn drop_cancelled(&mut self) {
        self.waiting.retain(|sequence| {
            let is_gone = sequence.sink.is_gone();
            self.stats.cancelled += u64::from(is_gone);
            !is_gone
        });
        self.running.retain(|sequence| {
            let is_gone = sequence.sink.is_gone();
            if is_gone {
                self.pages.release(&sequence.pages);
                self.stats.cancelled += 1;
            }
            !is_gone
        });
    }

    /// Lets those run who can, one owner after the other.
    fn admit(&mut self) {
        // Who waits for a beginning that somebody else is computing right now.
        let mut waits = vec![false; self.waiting.len()];
        while self.running.len() < self.limits.n_running {
            let n_of = |owner| self.running.iter().filter(|other| other.owner == owner).count();
            let next = (0..self.waiting.len())
                .filter(|&i| !waits[i])
                .min_by_key(|&i| (n_of(self.waiting[i].owner), self.waiting[i].arrival));
            let Some(i) = next else { break };
            let sequence = &self.waiting[i];
            let (n_known, n_idle) = match sequence.prompt_logprobs {
                // Logits are not kept with a page.
                Some(_) => (0, 0),
                None => self.pages.n_known(&sequence.ids),
            };
            if self.running.iter().any(|other| other.will_have_more_of(sequence, n_known)) {
                waits[i] = true;
                continue;
            }
            // And a page for each of the others, so that the first thing it does is not to have itself sent back.
            let n_needed = sequence.ids.len() / PAGE + 1 - n_known + self.running.len();
            if n_needed > self.pages.n_available() - n_idle && !self.running.is_empty() {
                break;
            }
            let mut sequence = self.waiting.remove(i);
            waits.remove(i);
            if sequence.prompt_logprobs.is_none() {
                let (pages, name) = self.pages.take_known(&sequence.ids);
                (sequence.n_done, sequence.known) = (pages.len() * PAGE, (pages.len(), name));
                sequence.pages = pages;
                let n_cached = sequence.n_done.min(sequence.n_prompt);
                self.stats.cached_tokens += n_cached as u64;
                if sequence.first_step.is_none() {
                    sequence.n_cached = n_cached;
                }
            }
            sequence.first_step.get_or_insert_with(Instant::now);
            self.running.push(sequence);
        }
    }

    /// How many positions of each running sequence are next. Those have pages then.
    fn plan(&mut self) -> Vec<usize> {
        let is_ready = |sequence: &Sequence| sequence.sink.is_ready();
        let n_generating =
            self.running.iter().filter(|sequence| is_ready(sequence) && sequence.generates()).count();
        let mut budget = self.pace.prompt_rows(n_generating, &self.limits);
        let mut plan = Vec::new();
        let mut i = 0;
        // Those that generate are not held up by those that read.
        while i < self.running.len() {
            let sequence = &self.running[i];
            let n = match (is_ready(sequence), sequence.generates()) {
                (false, _) => 0,
                (true, true) => 1,
                (true, false) => sequence.n_left().min(budget).min(sequence.most_at_once()),
            };
            if !self.make_room(i, n) {
                // It was itself the one to go.
                continue;
            }
            if !self.running[i].generates() {
                budget -= n;
            }
            plan.push(n);
            i += 1;
        }
        // The last ones may have been sent back for others' sake.
        plan.truncate(self.running.len());
        plan
    }

    /// Takes the pages that `n` more positions of a running sequence need, if need be from the one admitted last. Says
    /// whether the sequence still runs.
    fn make_room(&mut self, i: usize, n: usize) -> bool {
        loop {
            let sequence = &self.running[i];
            if (sequence.n_done + n).div_ceil(PAGE) <= sequence.pages.len() {
                return true;
            }
            match self.pages.take() {
                Some(page) => self.running[i].pages.push(page),
                None => {
                    self.send_back_last();
                    if i == self.running.len() {
                        return false;
                    }
                }
            }
        }
    }

    fn send_back_last(&mut self) {
        let mut sequence = self.running.pop().expect("somebody has the pages");
        self.pages.release(&std::mem::take(&mut sequence.pages));
        (sequence.n_done, sequence.known) = (0, (0, 0));
        if let Some((_, prompt)) = &mut sequence.prompt_logprobs {
            prompt.clear();
        }
        self.stats.preempted += 1;
        self.waiting.push(sequence);
    }

    fn run(&mut self, plan: &[usize]) {
        let begin = Instant::now();
        let parts: Vec<Part<'_>> = self
            .running
            .iter()
            .zip(plan)
            .filter(|&(_, &n)| n > 0)
            .map(|(sequence, &n)| Part {
                ids: &sequence.ids[sequence.n_done..sequence.n_done + n],
                start: sequence.n_done,
                pages: &sequence.pages,
                n_logits: sequence.n_logits(n),
            })
            .collect();
        let logits = self.decoder.step(&parts);
        let n_rows: usize = plan.iter().sum();
        let n_generating =
            self.running.iter().zip(plan).filter(|&(sequence, &n)| n == 1 && sequence.generates()).count();
        self.pace.note(n_generating, n_rows - n_generating, begin.elapsed());
        self.stats.steps += 1;
        self.stats.prompt_tokens += (n_rows - n_generating) as u64;
        let mut rest = &logits[..];
        let (context, vocab_size) = (self.decoder.context(), self.decoder.vocab_size());
        let mut is_over = Vec::new();
        for (sequence, &n) in self.running.iter_mut().zip(plan) {
            let (own, others) = rest.split_at(sequence.n_logits(n) * vocab_size);
            rest = others;
            let n_before = sequence.ids.len();
            is_over.push(n > 0 && sequence.advance(n, own, vocab_size, context));
            self.stats.new_tokens += (sequence.ids.len() - n_before) as u64;
            sequence.publish(&mut self.pages);
        }
        let mut is_over = is_over.into_iter();
        self.running.retain(|sequence| {
            let is_over = is_over.next().expect("one for each");
            if is_over {
                self.pages.release(&sequence.pages);
            }
            !is_over
        });
    }
}

/// See [`Engine::check`].
pub(crate) fn check(
    request: &Request,
    context: usize,
    n_pages: usize,
    vocab_size: usize,
) -> Result<(), Refused> {
    let (prompt, new) = (request.prompt.len(), request.n);
    if prompt == 0 {
        return Err(Refused::EmptyPrompt);
    }
    let tokens = prompt.saturating_add(new);
    if tokens > context {
        return Err(Refused::TooLong { prompt, new, context });
    }
    let pages = tokens.div_ceil(PAGE);
    if pages > n_pages {
        return Err(Refused::NoMemory { tokens, pages, available: n_pages });
    }
    request.sampling.validate()?;
    match request.prompt.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(Refused::UnknownId { id, vocab_size }),
        None => Ok(()),
    }
}

impl Sequence {
    /// Ids to compute before the next token is known.
    fn n_left(&self) -> usize {
        self.ids.len() - self.n_done
    }

    /// Whether its next position is that of its last token.
    fn generates(&self) -> bool {
        self.n_left() == 1 && self.ids.len() > self.n_prompt
    }

    /// Whether it is still reading its prompt, or what it had when it was sent back, and so will make known more pages of
    /// what `other` begins with than the `n_known` that are known now.
    fn will_have_more_of(&self, other: &Self, n_known: usize) -> bool {
        let n_same = self.ids.iter().zip(&other.ids).take_while(|(a, b)| a == b).count();
        let n_useful = n_same.min(other.ids.len() - 1) / PAGE;
        // Not if its own reader holds it up: that may last.
        let is_reading = self.n_left() > 1 && self.sink.is_ready();
        is_reading && n_useful > n_known && other.prompt_logprobs.is_none()
    }

    /// Positions of a step, where all their logits are needed.
    fn most_at_once(&self) -> usize {
        if self.prompt_logprobs.is_some() { PAGE } else { usize::MAX }
    }

    /// Logits that the next `n` positions must give.
    fn n_logits(&self, n: usize) -> usize {
        match self.prompt_logprobs {
            Some(_) => n,
            None if n == self.n_left() => n.min(1),
            None => 0,
        }
    }

    /// Notes that `n` more positions are done, and takes the next token if that was the last. Says whether it is over.
    fn advance(&mut self, n: usize, logits: &[f32], vocab_size: usize, context: usize) -> bool {
        let n_named = self.vocab_size;
        let mut rows = logits.chunks_exact(vocab_size).map(|row| &row[..n_named]);
        if let Some((n_top, mut found)) = self.prompt_logprobs.take() {
            let next = self.ids[..self.n_prompt].iter().skip(self.n_done + 1);
            found.extend(next.zip(rows.clone()).map(|(&id, row)| Logprob::of(id, row, n_top)));
            match self.n_done + n < self.n_prompt {
                true => self.prompt_logprobs = Some((n_top, found)),
                false => self.sink.send(Event::Prompt(found)),
            }
        }
        self.n_done += n;
        if self.n_left() > 0 {
            return false;
        }
        if self.ids.len() == self.n_max {
            // Nothing but the prompt was wanted.
            return self.end(FinishReason::Length);
        }
        let row = rows.next_back().expect("the logits of the last position");
        let id = match self.sampler.sample(row, &self.ids) {
            Ok(id) => id,
            Err(error) => {
                self.sink.send(Event::Failed(error.into()));
                return true;
            }
        };
        self.first_token.get_or_insert_with(Instant::now);
        if self.stop_ids.contains(&id) {
            return self.end(FinishReason::Stop);
        }
        let text = match self.text.push(id) {
            Ok(text) => text,
            Err(error) => {
                self.sink.send(Event::Failed(Failure::Text(error.to_string())));
                return true;
            }
        };
        self.ids.push(id);
        let logprob = self.logprobs.map(|n_top| Logprob::of(id, row, n_top));
        self.sink.send(Event::Token { id, text, logprob });
        if self.text.stopped() {
            return self.end(FinishReason::Stop);
        }
        match self.ids.len() {
            n if n == self.n_max => self.end(FinishReason::Length),
            n if n >= context => self.end(FinishReason::Context),
            _ => false,
        }
    }

    fn end(&mut self, reason: FinishReason) -> bool {
        let now = Instant::now();
        let (first_step, first_token) = (self.first_step.unwrap_or(now), self.first_token.unwrap_or(now));
        let text = self.text.finish();
        self.sink.send(Event::End(Finished {
            reason,
            text,
            n_prompt: self.n_prompt,
            n_cached: self.n_cached,
            n_new: self.ids.len() - self.n_prompt,
            queued: first_step - self.arrived,
            time_to_first_token: first_token - self.arrived,
            decode_time: now - first_token,
        }));
        true
    }

    /// Makes its full pages known.
    fn publish(&mut self, pages: &mut Pages) {
        let (first, mut name) = self.known;
        let n_full = self.n_done / PAGE;
        for i in first..n_full {
            name = pages.publish(self.pages[i], name, &self.ids[i * PAGE..(i + 1) * PAGE]);
        }
        self.known = (n_full.max(first), name);
    }
}

impl Logprob {
    /// Of a token by the logits before it.
    fn of(id: u32, logits: &[f32], n_top: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        let total = f64::from(max) + sum.ln();
        let of = |id: u32| (f64::from(logits[id as usize]) - total) as f32;
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let n_top = n_top.min(ids.len());
        if (1..ids.len()).contains(&n_top) {
            ids.select_nth_unstable_by(n_top - 1, order);
        }
        ids.truncate(n_top);
        ids.sort_unstable_by(order);
        Self { id, logprob: of(id), top: ids.into_iter().map(|id| (id, of(id))).collect() }
    }
}

/// What steps cost: moving averages, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// A step that only generates.
    generate: Option<f64>,
    /// A position of a prompt.
    row: Option<f64>,
}

/// Positions of a prompt in a step, at least, and in the first one.
const MIN_ROWS: usize = 4;
const FIRST_ROWS: usize = 32;

/// How fast the averages follow.
const WEIGHT: f64 = 0.2;

impl Pace {
    /// Positions of prompts that a step may take beside so many sequences that generate.
    fn prompt_rows(&self, n_generating: usize, limits: &Limits) -> usize {
        let time = match (n_generating, self.generate) {
            (0, _) => limits.step_time.as_secs_f64(),
            (_, Some(generate)) => generate * limits.stall,
            (_, None) => 0.0,
        };
        let n = self.row.map_or(FIRST_ROWS, |row| (time / row) as usize);
        n.clamp(MIN_ROWS, limits.n_rows.max(MIN_ROWS))
    }

    fn note(&mut self, n_generating: usize, n_prompt: usize, time: Duration) {
        let follow = |average: &mut Option<f64>, x: f64| {
            *average = Some(average.map_or(x, |average| average + WEIGHT * (x - average)));
        };
        let time = time.as_secs_f64();
        if n_prompt == 0 {
            follow(&mut self.generate, time);
        } else if n_prompt >= MIN_ROWS {
            let own = if n_generating > 0 { self.generate.unwrap_or(0.0) } else { 0.0 };
            // Of a step that was faster than one without it, at least something.
            follow(&mut self.row, (time - own).max(time * 0.1) / n_prompt as f64);
        }
    }
}

#[cfg(test)]
mod tests;
