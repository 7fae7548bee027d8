//! An encoder on a thread of its own, and clients on others.
//!
//! Texts of all who wait go through the encoder together, one of each in turn, so that nobody waits for all texts of
//! another. A text's vector has the same bits alone and among others, so that changes its time and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use model::FusedOps;

use crate::embedder::{self, Embedder, ROWS_TOGETHER};
use crate::worker::words;

/// What turns sequences of ids into vectors.
pub trait Encode {
    /// One vector for each, in their order.
    ///
    /// # Errors
    /// If one is not made of numbers.
    fn vectors(&self, sequences: &[&[i32]]) -> Result<Vec<Vec<f32>>, embedder::Error>;
}

impl<B: FusedOps> Encode for Embedder<B> {
    fn vectors(&self, sequences: &[&[i32]]) -> Result<Vec<Vec<f32>>, embedder::Error> {
        Embedder::vectors(self, sequences)
    }
}

/// Who waits for vectors.
pub trait Sink: Send {
    /// Takes them, or why there are none.
    fn send(self: Box<Self>, vectors: Result<Vec<Vec<f32>>, Failure>);

    /// Whether nobody waits any more.
    fn is_gone(&self) -> bool {
        false
    }
}

/// Why there are no vectors.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// Of one of the sequences that went through together.
    #[error(transparent)]
    Encoder(#[from] embedder::Error),
    /// The encoder is gone.
    #[error("the encoder stopped: its log says why")]
    Stopped,
}

/// Why sequences were not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too many wait already.
    #[error("{0} requests wait already: try again later")]
    Full(usize),
    /// The encoder is gone.
    #[error("the encoder stopped: its log says why")]
    Stopped,
}

/// What an encoder has done, and what it is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that are not answered yet.
    pub n_waiting: usize,
    /// Tokens that went through.
    pub tokens: u64,
    /// Times that something did.
    pub steps: u64,
}

/// Hands sequences to an encoder. Clones are clients of the same one.
#[derive(Clone, Debug)]
pub struct Client {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
}

/// The encoder's end.
#[derive(Debug)]
pub struct Worker {
    jobs: Receiver<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max_waiting: usize,
    n_waiting: AtomicUsize,
    tokens: AtomicU64,
    steps: AtomicU64,
    is_alive: AtomicBool,
}

struct Job {
    sequences: Vec<Vec<i32>>,
    /// Of the first sequences.
    vectors: Vec<Vec<f32>>,
    sink: Box<dyn Sink>,
}

/// A client and the end that an encoder is to be [run](Worker::run) at. More than `max_waiting` are turned away.
pub fn pair(max_waiting: usize) -> (Client, Worker) {
    let (sender, jobs) = mpsc::channel();
    let shared = Arc::new(Shared {
        max_waiting,
        n_waiting: AtomicUsize::new(0),
        tokens: AtomicU64::new(0),
        steps: AtomicU64::new(0),
        is_alive: AtomicBool::new(true),
    });
    (Client { jobs: sender, shared: shared.clone() }, Worker { jobs, shared })
}

impl Client {
    /// Hands over sequences, whose vectors go to `sink`, on the encoder's thread.
    ///
    /// # Errors
    /// [`Error`] if they are not taken; then nothing comes.
    pub fn submit(&self, sequences: Vec<Vec<i32>>, sink: Box<dyn Sink>) -> Result<(), Error> {
        if !self.is_alive() {
            return Err(Error::Stopped);
        }
        let n_before = self.shared.n_waiting.fetch_add(1, Ordering::AcqRel);
        let sent = match n_before >= self.shared.max_waiting {
            true => Err(Error::Full(n_before)),
            false => {
                let job = Job { sequences, vectors: Vec::new(), sink };
                self.jobs.send(job).map_err(|_| Error::Stopped)
            }
        };
        if sent.is_err() {
            self.shared.n_waiting.fetch_sub(1, Ordering::AcqRel);
        }
        sent
    }

    /// What the encoder has done.
    pub fn stats(&self) -> Stats {
        let Shared { n_waiting, tokens, steps, .. } = &*self.shared;
        Stats {
            n_waiting: n_waiting.load(Ordering::Acquire),
            tokens: tokens.load(Ordering::Relaxed),
            steps: steps.load(Ordering::Relaxed),
        }
    }

    /// Whether nobody waits.
    pub fn is_idle(&self) -> bool {
        self.stats().n_waiting == 0
    }

    /// Whether it can still work.
    pub fn is_alive(&self) -> bool {
        self.shared.is_alive.load(Ordering::Acquire)
    }
}

impl Worker {
    /// Works until all clients are gone and their sequences are done.
    ///
    /// # Errors
    /// What the encoder panicked with. All who wait have been told then.
    pub fn run(self, encoder: &impl Encode) -> Result<(), String> {
        let mut waiting: Vec<Job> = Vec::new();
        loop {
            if waiting.is_empty() {
                match self.jobs.recv() {
                    Ok(job) => waiting.push(job),
                    Err(_) => return Ok(()),
                }
            }
            waiting.extend(self.jobs.try_iter());
            self.forget(&mut waiting);
            // Whatever it is in the middle of belongs to those who are told that it failed.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.step(encoder, &mut waiting))) {
                self.shared.is_alive.store(false, Ordering::Release);
                waiting.extend(self.jobs.try_iter());
                waiting.into_iter().for_each(|job| self.end(job.sink, Err(Failure::Stopped)));
                return Err(words(&*panic));
            }
        }
    }

    /// Drops what nobody waits for.
    fn forget(&self, waiting: &mut Vec<Job>) {
        let n = waiting.len();
        waiting.retain(|job| !job.sink.is_gone());
        self.shared.n_waiting.fetch_sub(n - waiting.len(), Ordering::AcqRel);
    }

    fn end(&self, sink: Box<dyn Sink>, vectors: Result<Vec<Vec<f32>>, Failure>) {
        // Before it is told, so that whoever has an answer is not counted.
        self.shared.n_waiting.fetch_sub(1, Ordering::AcqRel);
        sink.send(vectors);
    }

    fn step(&self, encoder: &impl Encode, waiting: &mut Vec<Job>) {
        let batch = picked(waiting);
        let ids: Vec<&[i32]> = batch.iter().map(|&(job, i)| &*waiting[job].sequences[i]).collect();
        let n_tokens: usize = ids.iter().map(|ids| ids.len()).sum();
        let done = if ids.is_empty() { Ok(Vec::new()) } else { encoder.vectors(&ids) };
        self.shared.tokens.fetch_add(n_tokens as u64, Ordering::Relaxed);
        self.shared.steps.fetch_add(u64::from(n_tokens > 0), Ordering::Relaxed);
        let mut failed = vec![None; waiting.len()];
        match done {
            // Those of a job come in their order.
            Ok(vectors) => {
                for (vector, (job, _)) in vectors.into_iter().zip(batch) {
                    waiting[job].vectors.push(vector);
                }
            }
            Err(embedder::Error::NotANumber { text_idx }) => {
                let (job, i) = batch[text_idx];
                failed[job] = Some(embedder::Error::NotANumber { text_idx: i });
            }
            Err(error) => failed.fill(Some(error)),
        }
        for (mut job, failure) in std::mem::take(waiting).into_iter().zip(failed) {
            match failure {
                Some(failure) => self.end(job.sink, Err(failure.into())),
                None if job.vectors.len() == job.sequences.len() => {
                    self.end(job.sink, Ok(std::mem::take(&mut job.vectors)));
                }
                None => waiting.push(job),
            }
        }
    }
}

/// Which sequences are next: one of each job in turn, while they fit together; one at least.
fn picked(waiting: &[Job]) -> Vec<(usize, usize)> {
    let (mut rows, mut batch) = (0, Vec::new());
    let longest = waiting.iter().map(|job| job.sequences.len() - job.vectors.len()).max().unwrap_or(0);
    for turn in 0..longest {
        for (job_idx, job) in waiting.iter().enumerate() {
            let i = job.vectors.len() + turn;
            let Some(ids) = job.sequences.get(i) else { continue };
            rows += ids.len();
            if rows > ROWS_TOGETHER && !batch.is_empty() {
                return batch;
            }
            batch.push((job_idx, i));
        }
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vector of the sum; panics at 99, and has no number for 13.
    struct Fake;

    impl Encode for Fake {
        fn vectors(&self, sequences: &[&[i32]]) -> Result<Vec<Vec<f32>>, embedder::Error> {
            assert!(sequences.iter().all(|ids| !ids.contains(&99)), "a fault");
            assert!(sequences.iter().map(|ids| ids.len()).sum::<usize>() <= ROWS_TOGETHER);
            if let Some(text_idx) = sequences.iter().position(|ids| ids.contains(&13)) {
                return Err(embedder::Error::NotANumber { text_idx });
            }
            Ok(sequences.iter().map(|ids| vec![ids.iter().sum::<i32>() as f32]).collect())
        }
    }

    struct Vectors(Sender<Result<Vec<Vec<f32>>, Failure>>);

    impl Sink for Vectors {
        fn send(self: Box<Self>, vectors: Result<Vec<Vec<f32>>, Failure>) {
            // Whoever does not listen is not asked in these tests.
            let _ = self.0.send(vectors);
        }
    }

    type Answer = Receiver<Result<Vec<Vec<f32>>, Failure>>;

    fn submit(client: &Client, sequences: &[Vec<i32>]) -> Result<Answer, Error> {
        let (sender, answer) = mpsc::channel();
        client.submit(sequences.to_vec(), Box::new(Vectors(sender))).map(|()| answer)
    }

    #[test]
    fn many_are_answered_in_turn_each_with_its_own() {
        let (client, worker) = pair(4);
        let long: Vec<Vec<i32>> = (0..40).map(|i| vec![i; 100]).filter(|ids| ids[0] != 13).collect();
        let many = submit(&client, &long).expect("taken");
        let one = submit(&client, &[vec![3, 4]]).expect("taken");
        let none = submit(&client, &[]).expect("taken");
        let bad = submit(&client, &[vec![1], vec![13]]).expect("taken");
        assert_eq!(submit(&client, &[vec![1]]).err(), Some(Error::Full(4)));
        let thread = std::thread::spawn(|| worker.run(&Fake));
        assert_eq!(one.recv().expect("answered"), Ok(vec![vec![7.0]]));
        assert_eq!(none.recv().expect("answered"), Ok(vec![]));
        let failure = Failure::Encoder(embedder::Error::NotANumber { text_idx: 1 });
        assert_eq!(bad.recv().expect("answered"), Err(failure));
        let expected: Vec<Vec<f32>> = long.iter().map(|ids| vec![100.0 * ids[0] as f32]).collect();
        assert_eq!(many.recv().expect("answered"), Ok(expected));
        assert!(client.is_idle() && client.stats().steps >= 4);
        drop(client);
        assert_eq!(thread.join().expect("no panic"), Ok(()));
    }

    #[test]
    fn a_panic_is_told_to_everybody_and_ends_it() {
        let (client, worker) = pair(9);
        let waiting: Vec<Answer> =
            [vec![1; 900], vec![99; 900]].map(|ids| submit(&client, &[ids]).expect("taken")).into();
        let thread = std::thread::spawn(|| worker.run(&Fake));
        let answers: Vec<_> = waiting.iter().map(|answer| answer.recv().expect("answered")).collect();
        assert_eq!(answers, [Ok(vec![vec![900.0]]), Err(Failure::Stopped)]);
        assert_eq!(thread.join().expect("caught"), Err("a fault".into()));
        assert_eq!(submit(&client, &[vec![1]]).err(), Some(Error::Stopped));
    }
}
