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
//!
//! If it is told to, it guesses tokens that a step then checks several of (see [`crate::speculate`]).

mod guess;
mod pace;
mod request;

use std::time::{Duration, Instant};

use model::pool::{PAGE, Part};
use model::{FusedOps, Pool, Transformer};

use self::guess::{Guesses, Speculating};
use self::pace::{Pace, Rows};
use crate::constrain::Constraint;
use crate::pages::{Name, Pages};
use crate::sampler::Sampler;
use crate::session::FinishReason;
use crate::text::TextStream;

pub use self::guess::{Source, Speculation};
pub use self::request::{Event, Failure, Finished, Logprob, Refused, Request, Sink};

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

    pub(crate) fn pool_mut(&mut self) -> &mut Pool<B> {
        &mut self.pool
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
    /// How long a sequence whose reader holds it up keeps its place while others wait.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let (step_time, patience) = (Duration::from_millis(150), Duration::from_secs(1));
        Self { n_running: 16, n_rows: 512, step_time, stall: 1.0, patience }
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
    /// Positions that were computed again, after their sequence was sent back.
    pub recomputed_tokens: u64,
    /// Positions of prompts that were known.
    pub cached_tokens: u64,
    /// Tokens that were generated.
    pub new_tokens: u64,
    /// Tokens that were guessed and checked.
    pub guessed_tokens: u64,
    /// Of these, those that were right.
    pub accepted_tokens: u64,
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
    speculation: Option<Speculating<D>>,
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
    /// Ids that it has read once, whether they are still in the pages or not.
    n_read: usize,
    /// Since when its reader has held it up.
    held_since: Option<Instant>,
    n_cached: usize,
    pages: Vec<u32>,
    /// Pages that are full and known, and the name of the last.
    known: (usize, Name),
    sampler: Sampler,
    stop_ids: Vec<u32>,
    text: TextStream,
    vocab_size: usize,
    constraint: Option<Constraint>,
    logprobs: Option<usize>,
    /// What is wanted of the prompt, until it has been sent.
    prompt_logprobs: Option<(usize, Vec<Logprob>)>,
    owner: u64,
    guesses: Guesses,
    sink: Box<dyn Sink>,
}

impl<D: Decoder> Engine<D> {
    /// An engine without work.
    pub fn new(decoder: D, limits: Limits) -> Self {
        let pages = Pages::new(decoder.n_pages());
        let pace = Pace::default();
        let (waiting, running, stats) = (Vec::new(), Vec::new(), Stats::default());
        Self { decoder, limits, pages, waiting, running, pace, stats, n_arrived: 0, speculation: None }
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
        let Request {
            prompt, n, sampling, stop_ids, text, vocab_size, logprobs, prompt_logprobs, owner, ..
        } = request;
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
            n_read: 0,
            held_since: None,
            n_cached: 0,
            pages: Vec::new(),
            known: (0, 0),
            sampler: Sampler::new(sampling)?,
            stop_ids,
            text,
            vocab_size: vocab_size.min(self.decoder.vocab_size()),
            constraint: request.constraint,
            logprobs,
            prompt_logprobs: prompt_logprobs.map(|n| (n, Vec::new())),
            owner,
            guesses: Guesses::default(),
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
        for Sequence { sink, held_since, .. } in &mut self.running {
            *held_since = held_since.take().or_else(|| Some(Instant::now())).filter(|_| !sink.is_ready());
        }
        self.admit();
        self.guess();
        let plan = self.plan();
        if plan.iter().all(|&n| n == 0) {
            return false;
        }
        self.run(&plan);
        true
    }

    fn drop_cancelled(&mut self) {
        self.waiting.retain_mut(|sequence| {
            let is_gone = sequence.sink.is_gone();
            self.stats.cancelled += u64::from(is_gone);
            !is_gone
        });
        self.running.retain_mut(|sequence| {
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
        loop {
            let n_of = |owner| self.running.iter().filter(|other| other.owner == owner).count();
            let next = (0..self.waiting.len())
                .filter(|&i| !waits[i] && self.waiting[i].sink.is_ready())
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
            let lacks_pages = n_needed > self.pages.n_available() - n_idle && !self.running.is_empty();
            if lacks_pages || self.running.len() >= self.limits.n_running {
                let Some(held) = self.longest_held() else { break };
                self.send_back(held);
                waits.push(true);
                continue;
            }
            let mut sequence = self.waiting.remove(i);
            waits.remove(i);
            if sequence.prompt_logprobs.is_none() {
                let (pages, name) = self.pages.take_known(&sequence.ids);
                (sequence.n_done, sequence.known) = (pages.len() * PAGE, (pages.len(), name));
                sequence.guesses.n_drafted = self.n_drafted(&pages);
                sequence.pages = pages;
                let n_cached = sequence.n_done.min(sequence.n_prompt);
                if sequence.first_step.is_none() {
                    self.stats.cached_tokens += n_cached as u64;
                    sequence.n_cached = n_cached;
                }
            }
            sequence.first_step.get_or_insert_with(Instant::now);
            self.running.push(sequence);
        }
    }

    /// The sequence whose reader has held it up the longest, if that is long enough to let others have its place.
    fn longest_held(&self) -> Option<usize> {
        let held = |(i, sequence): (usize, &Sequence)| Some((sequence.held_since?, i));
        let (since, i) = self.running.iter().enumerate().filter_map(held).min()?;
        (since.elapsed() >= self.limits.patience).then_some(i)
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
                (true, true) => 1 + sequence.guesses.n(),
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
            match self.take_page() {
                Some(page) => self.running[i].pages.push(page),
                None => {
                    self.send_back(self.running.len() - 1);
                    if i == self.running.len() {
                        return false;
                    }
                }
            }
        }
    }

    /// Makes a running sequence wait, without its pages.
    fn send_back(&mut self, i: usize) {
        let mut sequence = self.running.remove(i);
        self.pages.release(&std::mem::take(&mut sequence.pages));
        (sequence.n_done, sequence.known, sequence.held_since) = (0, (0, 0), None);
        sequence.guesses.let_go();
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
                ids: match sequence.guesses.n() {
                    0 => &sequence.ids[sequence.n_done..sequence.n_done + n],
                    _ => &sequence.guesses.fed,
                },
                start: sequence.n_done,
                pages: &sequence.pages,
                n_logits: sequence.n_logits(n),
            })
            .collect();
        let logits = self.decoder.step(&parts);
        let n_rows: usize = plan.iter().sum();
        let n_generating =
            self.running.iter().zip(plan).filter(|&(sequence, &n)| n > 0 && sequence.generates()).count();
        let n_guessed = self.running.iter().map(|sequence| sequence.guesses.n()).sum();
        let n_prompt = n_rows - n_generating - n_guessed;
        self.pace.note(Rows { n_generating, n_prompt, n_guessed }, begin.elapsed());
        self.stats.steps += 1;
        for (sequence, &n) in self.running.iter_mut().zip(plan).filter(|(sequence, _)| !sequence.generates())
        {
            let n_new = sequence.read(n);
            self.stats.prompt_tokens += n_new as u64;
            self.stats.recomputed_tokens += (n - n_new) as u64;
        }
        self.stats.guessed_tokens += n_guessed as u64;
        let mut rest = &logits[..];
        let vocab_size = self.decoder.vocab_size();
        let mut is_over = Vec::new();
        for (sequence, &n) in self.running.iter_mut().zip(plan) {
            let (own, others) = rest.split_at(sequence.n_logits(n) * vocab_size);
            rest = others;
            let n_before = sequence.ids.len();
            is_over.push(n > 0 && sequence.advance(n, own, vocab_size));
            self.stats.new_tokens += (sequence.ids.len() - n_before) as u64;
            self.stats.accepted_tokens += std::mem::take(&mut sequence.guesses.n_right) as u64;
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
    // The last new token is told and never read.
    let tokens = prompt.saturating_add(new.saturating_sub(1));
    if tokens > context {
        return Err(Refused::TooLong { prompt, new, context });
    }
    let pages = tokens.div_ceil(PAGE);
    if pages > n_pages {
        return Err(Refused::NoMemory { tokens, pages, available: n_pages });
    }
    request.sampling.validate()?;
    let least = request.constraint.as_ref().map_or(0, Constraint::least_tokens);
    if least > new {
        return Err(Refused::NoRoom { least, new });
    }
    // Of ids without a name no probabilities are told.
    let vocab_size = match request.prompt_logprobs {
        Some(_) => vocab_size.min(request.vocab_size),
        None => vocab_size,
    };
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

    /// Notes that it reads `n` more ids; how many of them are the prompt's, and read for the first time.
    fn read(&mut self, n: usize) -> usize {
        let end = self.n_done + n;
        let n_new = end.min(self.n_prompt).saturating_sub(self.n_read.max(self.n_done));
        self.n_read = self.n_read.max(end);
        n_new
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
            None if n >= self.n_left() => n.min(1) + self.guesses.n(),
            None => 0,
        }
    }

    /// Notes that `n` more positions are done, and takes the next token if that was the last. Says whether it is over.
    fn advance(&mut self, n: usize, logits: &[f32], vocab_size: usize) -> bool {
        let n_named = self.vocab_size;
        let rows = logits.chunks_exact(vocab_size).map(|row| &row[..n_named]);
        if let Some((n_top, mut found)) = self.prompt_logprobs.take() {
            let next = self.ids[..self.n_prompt].iter().skip(self.n_done + 1);
            for (&id, row) in next.zip(rows.clone()) {
                match Logprob::of(id, row, n_top) {
                    Ok(logprob) => found.push(logprob),
                    Err(error) => return self.fail(error.into()),
                }
            }
            match self.n_done + n < self.n_prompt {
                true => self.prompt_logprobs = Some((n_top, found)),
                false => self.sink.send(Event::Prompt(found)),
            }
        }
        let n_guessed = self.guesses.n();
        self.n_done += n - n_guessed;
        if self.n_left() > 0 {
            return false;
        }
        if self.ids.len() == self.n_max {
            // Nothing but the prompt was wanted.
            return self.end(FinishReason::Length);
        }
        let fed = std::mem::take(&mut self.guesses.fed);
        let n_rows = rows.len();
        let rows = rows.skip(n_rows - 1 - n_guessed);
        for (row, guess) in rows.zip(fed.iter().skip(1).map(Some).chain([None])) {
            let id = match self.pick(row) {
                Ok(id) => id,
                Err(failure) => return self.fail(failure),
            };
            let is_right = Some(&id) == guess;
            self.guesses.n_right += usize::from(is_right);
            if self.take(id, row) {
                return true;
            }
            // The next row is of a position that is done, if the token there is the one that was guessed.
            if !is_right {
                break;
            }
            self.n_done += 1;
        }
        self.guesses.note(n_guessed, self.n_done);
        false
    }

    /// Takes the token that was picked by a row of logits. Says whether it is over.
    fn take(&mut self, id: u32, row: &[f32]) -> bool {
        self.first_token.get_or_insert_with(Instant::now);
        let stopped = self.constraint.as_ref().map_or(FinishReason::Stop, Constraint::finish_reason);
        if self.stop_ids.contains(&id) {
            return self.end(stopped);
        }
        let text = match self.text.push(id) {
            Ok(text) => text,
            Err(error) => return self.fail(Failure::Text(error.to_string())),
        };
        self.ids.push(id);
        let logprob = match self.logprobs.map(|n_top| Logprob::of(id, row, n_top)).transpose() {
            Ok(logprob) => logprob,
            Err(error) => return self.fail(error.into()),
        };
        self.sink.send(Event::Token { id, text, logprob });
        if self.text.stopped() {
            return self.end(FinishReason::Stop);
        }
        if self.constraint.as_ref().is_some_and(Constraint::is_over) {
            return self.end(stopped);
        }
        self.ids.len() == self.n_max && self.end(FinishReason::Length)
    }

    /// The next token by the logits before it.
    fn pick(&mut self, logits: &[f32]) -> Result<u32, Failure> {
        let Self { sampler, ids, constraint, stop_ids, n_max, .. } = self;
        let Some(constraint) = constraint else { return Ok(sampler.sample(logits, ids)?) };
        let draw = |logits: &[f32]| sampler.draw(logits, ids).map_err(Failure::from);
        let id = constraint.pick(logits, *n_max - ids.len(), stop_ids, draw)?;
        sampler.take(id);
        Ok(id)
    }

    fn fail(&mut self, failure: Failure) -> bool {
        self.sink.send(Event::Failed(failure));
        true
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

#[cfg(test)]
mod tests;
