//! Guesses of what sequences go on with, which the next step checks: see [`crate::speculate`].
//!
//! A model that guesses has a pool of its own with as many pages, and uses those that the sequence has in the other one:
//! a page has the same number and the same positions in both, and pages that sequences share are shared in both. What the
//! second model has not computed yet, it catches up with when it is asked. Guesses never take pages from other sequences.

use std::time::Instant;

use model::pool::{PAGE, Part};

use super::{Decoder, Engine, Sequence};
use crate::sampler::Sampler;
use crate::speculate::{Lookup, best_length};

/// How an engine guesses.
#[derive(Debug)]
pub struct Speculation<D> {
    /// By what.
    pub source: Source<D>,
    /// Guesses of a sequence in a step, at most.
    pub n_most: usize,
    /// What a guess costs as a share of a step; measured, if nothing is said.
    pub cost: Option<f64>,
}

/// What guesses.
#[derive(Debug)]
pub enum Source<D> {
    /// The sequence's own text.
    Lookup,
    /// A smaller model of the same vocabulary, over a pool of as many pages.
    Draft(D),
}

/// Positions that a model which guesses catches up with in a step, at most.
const CATCH_UP: usize = 256;

/// Tokens after which it is tried again whether guesses became right, and how many guesses that takes.
const TRY_AGAIN: usize = 32;
const N_TRIED: usize = 2;

/// How often a new sequence's guesses are right, before anything is known, and how fast that is learnt.
const FIRST_RATE: f64 = 0.7;
const WEIGHT: f64 = 0.1;

/// Of a sequence: what is guessed, and how good that was so far.
#[derive(Debug)]
pub(super) struct Guesses {
    /// Its last id and the guesses after it, if there are any, for the next step.
    pub fed: Vec<u32>,
    lookup: Lookup,
    /// How often the model that guesses was right.
    rate: f64,
    /// Positions that it has computed.
    pub n_drafted: usize,
    /// Guesses that were right in the step that has just been.
    pub n_right: usize,
    /// How many ids there were when it guessed last.
    tried_at: usize,
}

impl Default for Guesses {
    fn default() -> Self {
        let (fed, lookup) = (Vec::new(), Lookup::default());
        Self { fed, lookup, rate: FIRST_RATE, n_drafted: 0, n_right: 0, tried_at: 0 }
    }
}

impl Guesses {
    pub fn n(&self) -> usize {
        self.fed.len().saturating_sub(1)
    }

    /// Forgets what belongs to pages that are given back.
    pub fn let_go(&mut self) {
        (self.fed, self.n_drafted) = (Vec::new(), 0);
    }

    /// Notes that `n` guesses were checked, of which the first `n_right` are right, and how many positions are done.
    pub fn note(&mut self, n: usize, n_done: usize) {
        for i in 0..n.min(self.n_right + 1) {
            self.rate += WEIGHT * (f64::from(u8::from(i < self.n_right)) - self.rate);
        }
        self.n_drafted = self.n_drafted.min(n_done);
    }
}

/// A way to guess, and which pages the model that guesses has computed to their end.
pub(super) struct Speculating<D> {
    speculation: Speculation<D>,
    is_drafted: Vec<bool>,
}

impl<D: Decoder> Engine<D> {
    /// An engine that guesses. What it gives is the same.
    ///
    /// # Panics
    /// If a model that guesses has another number of pages.
    pub fn speculating(mut self, speculation: Speculation<D>) -> Self {
        if let Source::Draft(draft) = &speculation.source {
            assert_eq!(draft.n_pages(), self.decoder.n_pages(), "both pools have the same pages");
        }
        let is_drafted = vec![false; self.decoder.n_pages()];
        self.speculation = Some(Speculating { speculation, is_drafted });
        self
    }

    /// A page to write to.
    pub(super) fn take_page(&mut self) -> Option<u32> {
        let page = self.pages.take()?;
        if let Some(speculating) = &mut self.speculation {
            speculating.is_drafted[page as usize] = false;
        }
        Some(page)
    }

    /// Lets sequences that generate have guesses.
    pub(super) fn guess(&mut self) {
        let Some(mut speculating) = self.speculation.take() else { return };
        let is_asked = |sequence: &Sequence| sequence.sink.is_ready() && sequence.generates();
        let asked: Vec<usize> = (0..self.running.len()).filter(|&i| is_asked(&self.running[i])).collect();
        let Speculation { source, n_most, cost } = &mut speculating.speculation;
        let has_draft = matches!(source, Source::Draft(_));
        let cost = cost.unwrap_or_else(|| self.pace.guess_cost(asked.len(), has_draft));
        let mut wanted = Vec::new();
        for i in asked {
            let sequence = &mut self.running[i];
            // The last token is not guessed: nothing comes after it.
            let most = (*n_most).min(sequence.n_max.saturating_sub(sequence.ids.len() + 1));
            let n = match source {
                Source::Lookup => {
                    sequence.guesses.lookup.update(&sequence.ids);
                    best_length(sequence.guesses.lookup.chances(), cost, most)
                }
                Source::Draft(draft) => sequence.n_to_draft(draft, cost, most),
            };
            let n = if n > 0 { self.make_room_for_guesses(i, n, &mut speculating.is_drafted) } else { 0 };
            if n > 0 {
                wanted.push((i, n));
            }
        }
        let Speculating { speculation, is_drafted } = &mut speculating;
        match &mut speculation.source {
            Source::Lookup => {
                for (i, n) in wanted {
                    let Sequence { ids, guesses, .. } = &mut self.running[i];
                    guesses.fed = guesses.lookup.guess(ids, n);
                    guesses.fed.insert(0, ids[ids.len() - 1]);
                }
            }
            Source::Draft(draft) => self.draft(draft, wanted, is_drafted),
        }
        self.speculation = Some(speculating);
    }

    /// Takes pages for a sequence's next position and `n` guesses, but none that others may need for theirs. Returns for how
    /// many guesses there is room.
    fn make_room_for_guesses(&mut self, i: usize, n: usize, is_drafted: &mut [bool]) -> usize {
        let n_running = self.running.len();
        let sequence = &mut self.running[i];
        while (sequence.n_done + 1 + n).div_ceil(PAGE) > sequence.pages.len() {
            let spare = (self.pages.n_available() > n_running).then(|| self.pages.take()).flatten();
            let Some(page) = spare else { break };
            is_drafted[page as usize] = false;
            sequence.pages.push(page);
        }
        n.min((sequence.pages.len() * PAGE).saturating_sub(sequence.n_done + 1))
    }

    /// Asks the model that guesses, all sequences at once, a token of each a step. It picks as the sequence itself would, with
    /// the same random numbers: where both models say nearly the same, they pick the same.
    fn draft(&mut self, draft: &mut D, wanted: Vec<(usize, usize)>, is_drafted: &mut [bool]) {
        let vocab_size = draft.vocab_size();
        let n_ids: Vec<usize> = self.running.iter().map(|sequence| sequence.ids.len()).collect();
        let mut samplers: Vec<Option<Sampler>> = vec![None; self.running.len()];
        let mut asked: Vec<usize> = wanted.iter().map(|&(i, _)| i).collect();
        while !asked.is_empty() {
            let begin = Instant::now();
            let new = |sequence: &Sequence| {
                let n_drafted = sequence.guesses.n_drafted;
                n_drafted..sequence.ids.len().min(n_drafted + CATCH_UP)
            };
            let parts: Vec<Part<'_>> = asked
                .iter()
                .map(|&i| {
                    let sequence = &self.running[i];
                    let new = new(sequence);
                    Part {
                        ids: &sequence.ids[new.clone()],
                        start: new.start,
                        pages: &sequence.pages,
                        n_logits: usize::from(new.end == sequence.ids.len()),
                    }
                })
                .collect();
            let n_most = parts.iter().map(|part| part.ids.len()).max().unwrap_or(0);
            let logits = draft.step(&parts);
            let mut rows = logits.chunks_exact(vocab_size);
            asked.retain(|&i| {
                let sequence = &mut self.running[i];
                sequence.guesses.n_drafted = new(sequence).end;
                if sequence.guesses.n_drafted < sequence.ids.len() {
                    // Behind by too much: more of it in the next step.
                    return false;
                }
                let row = &rows.next().expect("the logits of the last position")[..sequence.vocab_size];
                let sampler = samplers[i].get_or_insert_with(|| sequence.sampler.clone());
                let Ok(id) = sampler.sample(row, &sequence.ids) else { return false };
                // As if it were the next one, until all are guessed.
                sequence.ids.push(id);
                let n = wanted.iter().find(|wanted| wanted.0 == i).map_or(0, |wanted| wanted.1);
                sequence.ids.len() < n_ids[i] + n && !sequence.stop_ids.contains(&id)
            });
            if n_most <= 2 {
                self.pace.note_draft(begin.elapsed());
            }
        }
        for (i, _) in wanted {
            let sequence = &mut self.running[i];
            let guessed = sequence.ids.split_off(n_ids[i]);
            if !guessed.is_empty() {
                sequence.guesses.tried_at = n_ids[i];
                sequence.guesses.fed = [&sequence.ids[n_ids[i] - 1..], &guessed].concat();
            }
            // Pages behind the last certain id never change.
            let n_full = sequence.guesses.n_drafted.min(sequence.n_done) / PAGE;
            sequence.pages[..n_full].iter().for_each(|&page| is_drafted[page as usize] = true);
        }
    }

    /// How many positions of these pages the model that guesses has computed.
    pub(super) fn n_drafted(&self, pages: &[u32]) -> usize {
        let Some(speculating) = &self.speculation else { return 0 };
        pages.iter().take_while(|&&page| speculating.is_drafted[page as usize]).count() * PAGE
    }
}

impl Sequence {
    /// How many guesses of a model are worth their time.
    fn n_to_draft(&self, draft: &impl Decoder, cost: f64, most: usize) -> usize {
        let is_known = |&id: &u32| (id as usize) < draft.vocab_size();
        // A model may name more ids than the tokenizer, and the other one fewer.
        if self.vocab_size > draft.vocab_size() || !self.ids.iter().all(is_known) {
            return 0;
        }
        let most = most.min(draft.context().saturating_sub(self.ids.len()));
        match best_length(std::iter::repeat(self.guesses.rate), cost, most) {
            0 if self.ids.len() >= self.guesses.tried_at + TRY_AGAIN => N_TRIED.min(most),
            n => n,
        }
    }
}
