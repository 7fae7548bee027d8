//! An engine on a thread of its own, and clients on others.

mod line;
#[cfg(all(test, feature = "loom"))]
mod orders;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use self::line::Line;
use crate::engine::{self, Decoder, Engine, Event, Failure, Refused, Request, Sink, Stats};

/// How often sequences are looked after that wait for their readers.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Hands requests to an engine. Clones are clients of the same one.
#[derive(Clone, Debug)]
pub struct Client {
    requests: Sender<Submitted>,
    shared: Arc<Shared>,
}

/// The engine's end.
#[derive(Debug)]
pub struct Worker {
    requests: Receiver<Submitted>,
    shared: Arc<Shared>,
}

type Submitted = (Request, Box<dyn Sink>);

#[derive(Debug)]
struct Shared {
    size: Size,
    line: Line,
}

mod sync {
    //! What `line` is made of.
    pub use std::sync::Mutex;
    pub use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
}

/// What can be asked of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Positions that a sequence may have.
    pub context: usize,
    /// Pages of its pool.
    pub n_pages: usize,
    /// Logits of a position.
    pub vocab_size: usize,
    /// Requests that wait, at most.
    pub n_waiting: usize,
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// It can never run.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Too many wait already.
    #[error("{0} requests wait already: try again later")]
    Full(usize),
    /// The engine is gone.
    #[error("the engine stopped: its log says why")]
    Stopped,
}

impl Client {
    /// Hands over a request, whose events go to `sink`, on the engine's thread.
    ///
    /// # Errors
    /// [`Error`] if it is not taken; then nothing comes.
    pub fn submit(&self, request: Request, sink: Box<dyn Sink>) -> Result<(), Error> {
        let Size { context, n_pages, vocab_size, .. } = self.shared.size;
        engine::check(&request, context, n_pages, vocab_size)?;
        if !self.is_alive() {
            return Err(Error::Stopped);
        }
        self.shared.line.enter().map_err(Error::Full)?;
        self.requests.send((request, sink)).map_err(|_| {
            self.shared.line.leave();
            Error::Stopped
        })
    }

    /// What the engine has done, as of its last step.
    pub fn stats(&self) -> Stats {
        self.shared.line.stats()
    }

    /// Whether nothing waits, runs or is on its way.
    pub fn is_idle(&self) -> bool {
        self.shared.line.is_idle()
    }

    /// What can be asked of it.
    pub fn size(&self) -> Size {
        self.shared.size
    }

    /// Whether it can still work.
    pub fn is_alive(&self) -> bool {
        self.shared.line.is_alive()
    }
}

/// A client and the end that an engine is to be [run](Worker::run) at.
pub fn pair(size: Size) -> (Client, Worker) {
    let (sender, requests) = mpsc::channel();
    let shared = Arc::new(Shared { size, line: Line::new(size.n_waiting) });
    (Client { requests: sender, shared: shared.clone() }, Worker { requests, shared })
}

impl Worker {
    /// Works until all clients are gone and their requests are done.
    ///
    /// # Errors
    /// What a step panicked with. All requests have been told then, and no client can submit any more.
    pub fn run<D: Decoder>(self, mut engine: Engine<D>) -> Result<(), String> {
        let mut has_clients = true;
        while has_clients || !engine.is_idle() {
            has_clients &= self.take_requests(&mut engine, true);
            // Whatever it is in the middle of belongs to requests that are told that they failed.
            let stepped = catch_unwind(AssertUnwindSafe(|| engine.step()));
            self.note(&engine);
            match stepped {
                Ok(true) => {}
                Ok(false) if engine.is_idle() => {}
                Ok(false) => std::thread::sleep(LOOK_AGAIN),
                Err(panic) => {
                    self.shared.line.end();
                    engine.fail(&Failure::Engine);
                    self.note(&engine);
                    for (_, mut sink) in self.requests.try_iter() {
                        self.shared.line.leave();
                        sink.send(Event::Failed(Failure::Engine));
                    }
                    return Err(words(&*panic));
                }
            }
        }
        Ok(())
    }

    /// Hands over what has come; waits for something if there is nothing else to do. Says whether anything can still come.
    fn take_requests<D: Decoder>(&self, engine: &mut Engine<D>, mut more: bool) -> bool {
        while more {
            let time = if engine.is_idle() { Duration::MAX } else { Duration::ZERO };
            match self.requests.recv_timeout(time.min(Duration::from_secs(3600))) {
                Ok((request, sink)) => self.take(engine, request, sink),
                Err(RecvTimeoutError::Timeout) if engine.is_idle() => {}
                Err(RecvTimeoutError::Timeout) => more = false,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        true
    }

    fn take<D: Decoder>(&self, engine: &mut Engine<D>, request: Request, sink: Box<dyn Sink>) {
        // The client has checked what the engine checks.
        let taken = engine.submit(request, sink);
        debug_assert!(taken.is_ok(), "{taken:?}");
        self.note(engine);
        self.shared.line.leave();
    }

    fn note<D: Decoder>(&self, engine: &Engine<D>) {
        self.shared.line.note(engine.stats());
    }
}

pub(crate) fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use model::pool::Part;
    use tokenizer::Tokenizer;

    use super::*;
    use crate::engine::Limits;
    use crate::sampler::Sampling;
    use crate::text::TextStream;

    /// Always the same token; panics at an id.
    struct Fake {
        panics_at: u32,
    }

    const SIZE: Size = Size { context: 100, n_pages: 8, vocab_size: 3, n_waiting: 2 };

    impl Decoder for Fake {
        fn step(&mut self, parts: &[Part<'_>]) -> Vec<f32> {
            assert!(parts.iter().all(|part| !part.ids.contains(&self.panics_at)), "a fault");
            std::thread::sleep(Duration::from_millis(1));
            parts.iter().flat_map(|part| [0.0, 9.0, 0.0].repeat(part.n_logits)).collect()
        }

        fn vocab_size(&self) -> usize {
            SIZE.vocab_size
        }

        fn context(&self) -> usize {
            SIZE.context
        }

        fn n_pages(&self) -> usize {
            SIZE.n_pages
        }
    }

    struct Events(Sender<Event>);

    impl Sink for Events {
        fn send(&mut self, event: Event) {
            // Whoever does not listen is not asked in these tests.
            let _ = self.0.send(event);
        }
    }

    pub(super) fn request(prompt: &[u32], n: usize) -> Request {
        static LETTERS: LazyLock<Tokenizer> = LazyLock::new(|| {
            let json = br#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0,"b":1,"c":2},"merges":[]}}"#;
            Tokenizer::from_json(json).expect("a vocabulary")
        });
        Request {
            prompt: prompt.to_vec(),
            n,
            sampling: Sampling::greedy(),
            stop_ids: Vec::new(),
            text: TextStream::new(&LETTERS, &[]),
            vocab_size: 3,
            constraint: None,
            logprobs: None,
            prompt_logprobs: None,
            owner: 0,
        }
    }

    fn submit(client: &Client, prompt: &[u32], n: usize) -> Result<Receiver<Event>, Error> {
        let (sender, events) = mpsc::channel();
        client.submit(request(prompt, n), Box::new(Events(sender))).map(|()| events)
    }

    #[test]
    fn clients_are_answered_until_the_last_is_gone() {
        let (client, worker) = pair(SIZE);
        let thread = std::thread::spawn(|| worker.run(Engine::new(Fake { panics_at: 9 }, Limits::default())));
        let others: Vec<_> = (0..3)
            .map(|i| {
                let client = client.clone();
                std::thread::spawn(move || {
                    // More than may wait come at once: each tries until it is taken.
                    let events = loop {
                        match submit(&client, &[i], 20) {
                            Ok(events) => break events,
                            Err(Error::Full(_)) => std::thread::yield_now(),
                            Err(error) => panic!("{error}"),
                        }
                    };
                    events.iter().filter(|event| matches!(event, Event::Token { id: 1, .. })).count()
                })
            })
            .collect();
        for other in others {
            assert_eq!(other.join().expect("no panic"), 20);
        }
        assert!(matches!(submit(&client, &[1], 200), Err(Error::Refused(Refused::TooLong { .. }))));
        let last = submit(&client, &[1], 5).expect("taken");
        drop(client);
        assert_eq!(last.iter().count(), 6);
        assert_eq!(thread.join().expect("no panic"), Ok(()));
    }

    #[test]
    fn more_than_may_wait_are_turned_away() {
        let (client, worker) = pair(SIZE);
        // Nobody works yet.
        assert!(client.is_idle());
        let waiting: Vec<_> = (0..2).map(|_| submit(&client, &[1], 1).expect("taken")).collect();
        assert!(!client.is_idle());
        assert_eq!(submit(&client, &[1], 1).err(), Some(Error::Full(2)));
        let thread = std::thread::spawn(|| worker.run(Engine::new(Fake { panics_at: 9 }, Limits::default())));
        assert!(waiting.into_iter().all(|events| events.iter().count() == 2));
        // The last word comes before the step that said it is counted.
        while !client.is_idle() {
            std::thread::yield_now();
        }
        submit(&client, &[1], 1).expect("there is room again");
        drop(client);
        assert_eq!(thread.join().expect("no panic"), Ok(()));
    }

    #[test]
    fn a_panic_is_told_to_everybody_and_ends_it() {
        let (client, worker) = pair(Size { n_waiting: 9, ..SIZE });
        let fine = submit(&client, &[1], 90).expect("taken");
        let thread = std::thread::spawn(|| worker.run(Engine::new(Fake { panics_at: 2 }, Limits::default())));
        fine.recv().expect("a token");
        let fatal = submit(&client, &[2], 90).expect("taken");
        for events in [fine, fatal] {
            assert_eq!(events.iter().last(), Some(Event::Failed(Failure::Engine)));
        }
        assert_eq!(thread.join().expect("caught"), Err("a fault".into()));
        assert!(!client.is_alive());
        assert_eq!(submit(&client, &[1], 1).err(), Some(Error::Stopped));
    }
}
