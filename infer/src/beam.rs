//! Beam search: the most probable text, as far as keeping the best few beginnings finds it.
//!
//! The definition is that of Hugging Face transformers. Of all continuations of the `n` beginnings by a token, the
//! `max(2, 1 + stop tokens) * n` most probable are looked at. Those among the first `n` that end are finished, with the sum
//! of their log-probabilities divided by `length^length_penalty` as score; the `n` best are kept. The first `n` that do not
//! end go on. [`EarlyStopping`] says when nothing better is expected.
//!
//! Beams lie in pages of one pool. Full pages are shared, as they are between a server's sequences (see [`Pages`]); a beam
//! that is continued twice has its last, half-full page copied. Hence a step costs what a step of `n` sequences does.

use model::FusedOps;
use model::pool::{PAGE, Part};

use crate::engine::{Decoder, Paged};
use crate::pages::{Name, Pages};
use crate::sampler::NoToken;

/// A decoder whose sequences can be continued in several ways.
pub trait Branching: Decoder {
    /// Copies what a page holds to another one.
    fn copy_page(&mut self, from: u32, to: u32);
}

impl<B: FusedOps> Branching for Paged<'_, B> {
    fn copy_page(&mut self, from: u32, to: u32) {
        self.pool_mut().copy_page(from as usize, to as usize);
    }
}

/// How to search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beams {
    /// Beginnings that are kept; 1 is greedy.
    pub n: usize,
    /// Scores are divided by the length to this power: above 0 longer texts win, below 0 shorter ones.
    pub length_penalty: f32,
    /// When to end.
    pub early_stopping: EarlyStopping,
}

/// When a search ends, before all beams have the wanted length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// As soon as `n` texts have ended.
    Yes,
    /// When no beam, if it ended with its present score and length, would be among the best `n`.
    #[default]
    No,
    /// When no beam could be among the best `n` even if all its further tokens were certain.
    Never,
}

/// What to continue.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Ids to continue; not empty.
    pub prompt: &'a [u32],
    /// Most new tokens.
    pub n: usize,
    /// Ids that end a text.
    pub stop_ids: &'a [u32],
    /// Ids below it may be picked.
    pub vocab_size: usize,
}

/// A text that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its new ids, with the stop id if it ended by one.
    pub ids: Vec<u32>,
    /// The sum of their log-probabilities, divided by their number to the power of the length penalty.
    pub score: f64,
}

/// Why nothing was found.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// There is nothing to continue.
    #[error("the prompt is empty: a model continues at least one token")]
    EmptyPrompt,
    /// There are no beams, or too many to tell them apart.
    #[error("`beams` is {n}: must be 1 to {most}")]
    Beams {
        /// How many were asked for.
        n: usize,
        /// How many there can be in this vocabulary.
        most: usize,
    },
    /// Prompt and answer do not fit.
    #[error("the prompt has {prompt} tokens and {new} more are asked for: the context holds {context}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens wanted.
        new: usize,
        /// Positions of a sequence.
        context: usize,
    },
    /// Beams do not fit.
    #[error("{n} beams need up to {pages} pages of the cache, which has {available}")]
    NoMemory {
        /// Beams.
        n: usize,
        /// That they may need.
        pages: usize,
        /// That there are.
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
    /// The model computes nonsense.
    #[error(transparent)]
    NoToken(#[from] NoToken),
}

/// Pages that a search needs at most.
pub fn n_pages(n_beams: usize, n_tokens: usize) -> usize {
    // While beams are exchanged, the old ones' last pages are still there.
    n_beams * n_tokens.div_ceil(PAGE) + n_beams
}

/// A beginning that is kept.
struct Beam {
    ids: Vec<u32>,
    /// Sum of the log-probabilities of its new ids.
    score: f64,
    pages: Vec<u32>,
    known: (usize, Name),
    /// Positions in the pages.
    n_done: usize,
}

/// A beginning with one more token.
#[derive(Clone, Copy)]
struct Continuation {
    beam: usize,
    id: u32,
    score: f64,
}

/// Positions of a step, at most.
const MAX_ROWS: usize = 512;

/// The best texts, best first: `beams.n` of them, unless fewer exist.
///
/// # Errors
/// [`Error`] if there is nothing to search, or no room.
pub fn search<D: Branching>(
    decoder: &mut D,
    request: Request<'_>,
    beams: Beams,
) -> Result<Vec<Found>, Error> {
    check(decoder, request, beams)?;
    let Request { prompt, n: n_new, stop_ids, .. } = request;
    if n_new == 0 {
        return Ok(vec![Found { ids: Vec::new(), score: 0.0 }]);
    }
    let mut pages = Pages::new(decoder.n_pages());
    let mut running =
        vec![Beam { ids: prompt.to_vec(), score: 0.0, pages: Vec::new(), known: (0, 0), n_done: 0 }];
    let mut finished: Vec<Found> = Vec::new();
    let n_looked_at = 2.max(1 + stop_ids.len()) * beams.n;
    loop {
        let logits = step(decoder, &mut pages, &mut running);
        let found = continuations(&running, &logits, decoder.vocab_size(), request.vocab_size, n_looked_at)?;
        let len = running[0].ids.len() + 1 - prompt.len();
        let ends = |c: &Continuation| stop_ids.contains(&c.id) || len == n_new;
        for c in found.iter().take(beams.n).filter(|c| ends(c)) {
            let mut ids = running[c.beam].ids[prompt.len()..].to_vec();
            ids.push(c.id);
            finished.push(Found { ids, score: c.score / length_factor(len, beams) });
        }
        finished.sort_by(|a, b| b.score.total_cmp(&a.score));
        finished.truncate(beams.n);
        let next: Vec<Continuation> = found.into_iter().filter(|c| !ends(c)).take(beams.n).collect();
        let Some(best) = next.first() else { return Ok(finished) };
        let best_len = match beams.early_stopping {
            EarlyStopping::Never if beams.length_penalty > 0.0 => n_new,
            _ => len,
        };
        let hope = best.score / length_factor(best_len, beams);
        let is_full = finished.len() == beams.n;
        let is_hopeless = finished.last().is_some_and(|worst| hope <= worst.score);
        if is_full && (is_hopeless || beams.early_stopping == EarlyStopping::Yes) {
            return Ok(finished);
        }
        running = branch(decoder, &mut pages, running, &next);
    }
}

fn check<D: Decoder>(decoder: &D, request: Request<'_>, beams: Beams) -> Result<(), Error> {
    let (prompt, new) = (request.prompt.len(), request.n);
    let vocab_size = request.vocab_size.min(decoder.vocab_size());
    if prompt == 0 {
        return Err(Error::EmptyPrompt);
    }
    if beams.n == 0 || beams.n > vocab_size / 2 {
        return Err(Error::Beams { n: beams.n, most: vocab_size / 2 });
    }
    let (n_tokens, context) = (prompt.saturating_add(new), decoder.context());
    if n_tokens > context {
        return Err(Error::TooLong { prompt, new, context });
    }
    let (needed, available) = (n_pages(beams.n, n_tokens), decoder.n_pages());
    if needed > available {
        return Err(Error::NoMemory { n: beams.n, pages: needed, available });
    }
    match request.prompt.iter().find(|&&id| id as usize >= decoder.vocab_size()) {
        Some(&id) => Err(Error::UnknownId { id, vocab_size: decoder.vocab_size() }),
        None => Ok(()),
    }
}

fn length_factor(len: usize, beams: Beams) -> f64 {
    (len as f64).powf(beams.length_penalty.into())
}

/// Computes the positions that are new, and gives the logits after each beam. At first that is the prompt, in pieces.
fn step<D: Decoder>(decoder: &mut D, pages: &mut Pages, running: &mut [Beam]) -> Vec<f32> {
    loop {
        for beam in running.iter_mut() {
            let n_positions = beam.ids.len().min(beam.n_done + MAX_ROWS);
            while beam.pages.len() * PAGE < n_positions {
                beam.pages.push(pages.take().expect("there are as many as beams can need"));
            }
        }
        let part = |beam: &'_ Beam| {
            let end = beam.ids.len().min(beam.n_done + MAX_ROWS);
            (beam.n_done..end, usize::from(end == beam.ids.len()))
        };
        let parts: Vec<Part<'_>> = running
            .iter()
            .map(|beam| {
                let (new, n_logits) = part(beam);
                Part { ids: &beam.ids[new.clone()], start: new.start, pages: &beam.pages, n_logits }
            })
            .collect();
        let logits = decoder.step(&parts);
        for beam in running.iter_mut() {
            beam.n_done = part(beam).0.end;
            let (first, mut name) = beam.known;
            let n_full = beam.n_done / PAGE;
            for i in first..n_full {
                name = pages.publish(beam.pages[i], name, &beam.ids[i * PAGE..(i + 1) * PAGE]);
            }
            beam.known = (n_full, name);
        }
        if running.iter().all(|beam| beam.n_done == beam.ids.len()) {
            return logits;
        }
    }
}

/// The `n` most probable beginnings with one more token.
fn continuations(
    running: &[Beam],
    logits: &[f32],
    width: usize,
    n_named: usize,
    n: usize,
) -> Result<Vec<Continuation>, NoToken> {
    let order = |a: &Continuation, b: &Continuation| {
        b.score.total_cmp(&a.score).then((a.beam, a.id).cmp(&(b.beam, b.id)))
    };
    let mut all = Vec::with_capacity(running.len() * n);
    for (i, (beam, row)) in running.iter().zip(logits.chunks_exact(width)).enumerate() {
        let row = &row[..n_named.min(width)];
        let max = kernels::logits::max(row)?;
        let total = f64::from(max) + kernels::logits::sum_exp(row, max, 1.0).ln();
        let of = |id: usize| Continuation {
            beam: i,
            id: id as u32,
            score: beam.score + f64::from(row[id]) - total,
        };
        all.extend(kernels::logits::largest(row, n).into_iter().map(of));
    }
    all.sort_unstable_by(order);
    all.truncate(n);
    Ok(all)
}

/// The beams of the next step. The first continuation of a beam takes its pages over, others share those that are full and
/// have a copy of the last.
fn branch<D: Branching>(
    decoder: &mut D,
    pages: &mut Pages,
    running: Vec<Beam>,
    next: &[Continuation],
) -> Vec<Beam> {
    let mut is_continued = vec![false; running.len()];
    next.iter().for_each(|c| is_continued[c.beam] = true);
    for (beam, _) in running.iter().zip(&is_continued).filter(|(_, is_continued)| !**is_continued) {
        pages.release(&beam.pages);
    }
    let mut is_taken = vec![false; running.len()];
    let continued = next.iter().map(|c| {
        let parent = &running[c.beam];
        let mut ids = parent.ids.clone();
        ids.push(c.id);
        let (n_done, score) = (parent.n_done, c.score);
        if !std::mem::replace(&mut is_taken[c.beam], true) {
            return Beam { ids, score, pages: parent.pages.clone(), known: parent.known, n_done };
        }
        let (mut own, name) = pages.take_known(&ids);
        let known = (own.len(), name);
        while own.len() * PAGE < n_done {
            let page = pages.take().expect("there are as many as beams can need");
            decoder.copy_page(parent.pages[own.len()], page);
            own.push(page);
        }
        Beam { ids, score, pages: own, known, n_done }
    });
    continued.collect()
}

#[cfg(test)]
mod tests;
