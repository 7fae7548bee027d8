//! Which models are in memory: each is loaded when it is first asked for, and let go when its room is needed.
//!
//! ```text
//! absent -> loading -> ready -> leaving -> absent
//!             |                    ^
//!             +-> failed           +-- idle, used longest ago, and another's room is needed
//! ```
//! What a model takes is known before it is loaded, from its plan, and the sum never passes the budget: a model that
//! leaves counts until its engine has ended. Who waits for room that only busy models have is patient for a while; then
//! these take nothing new, so that they end what they have and go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use infer::embedder::Reader;
use infer::{Client, encoding};
use tokenizer::Tokenizer;
use tokenizer::chat::ChatFormat;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use super::constraint::Grammars;
use super::error::ApiError;

/// How often who waits for room looks whether somebody has become idle.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long somebody waits for a busy model's room before that takes nothing new.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a model takes nothing new after somebody has last said that it is in the way.
const CLOSED: Duration = Duration::from_millis(200);

/// How long a model that could not be loaded is not tried again.
const PAUSE: Duration = Duration::from_secs(10);

/// A model as it is known before it is loaded.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its name in requests.
    pub id: String,
    /// Other names of it.
    pub aliases: Vec<String>,
    /// What it takes in memory.
    pub bytes: u64,
    /// Tokens of prompt and answer, or of a text that is to have a vector.
    pub context: usize,
    /// Whether it makes vectors, not texts.
    pub is_encoder: bool,
}

impl Model {
    /// All its names, its own first.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        [&self.id].into_iter().chain(&self.aliases)
    }
}

/// A model that continues texts.
#[derive(Debug)]
pub struct Served {
    /// Its vocabulary.
    pub tokenizer: Tokenizer,
    /// How its conversations are laid out, or why it has none.
    pub format: Result<ChatFormat, String>,
    /// To its engine.
    pub client: Client,
    /// What its answers may have to be.
    pub grammars: Grammars,
}

/// A model that makes vectors of texts.
#[derive(Debug)]
pub struct Encoder {
    /// What turns texts into ids.
    pub reader: Reader,
    /// Elements of a vector.
    pub n_embd: usize,
    /// To its thread.
    pub client: encoding::Client,
}

/// A model in memory. It stays there while somebody holds this.
#[derive(Clone, Debug)]
pub enum Loaded {
    /// One that continues texts.
    Decoder(Arc<Served>),
    /// One that makes vectors.
    Encoder(Arc<Encoder>),
}

impl Loaded {
    fn is_idle(&self) -> bool {
        match self {
            Self::Decoder(served) => Arc::strong_count(served) == 1 && served.client.is_idle(),
            Self::Encoder(encoder) => Arc::strong_count(encoder) == 1 && encoder.client.is_idle(),
        }
    }

    fn is_alive(&self) -> bool {
        match self {
            Self::Decoder(served) => served.client.is_alive(),
            Self::Encoder(encoder) => encoder.client.is_alive(),
        }
    }
}

#[derive(Debug)]
enum Place {
    Absent,
    Loading,
    Ready { loaded: Loaded, used: Instant, closed_until: Option<Instant> },
    Leaving,
    Failed(Instant),
}

/// The models of a server.
#[derive(Debug)]
pub struct Models {
    all: Vec<Model>,
    /// By every name.
    by_name: BTreeMap<String, usize>,
    /// Bytes that all in memory may take together.
    budget: u64,
    /// Requests that may wait for one model.
    max_waiting: usize,
    n_waiting: Vec<AtomicUsize>,
    places: Mutex<Vec<Place>>,
    /// Models that are loaded before the server is ready, and still are not.
    first: Mutex<Vec<usize>>,
    changed: watch::Sender<()>,
    /// To whoever loads.
    wanted: UnboundedSender<usize>,
}

impl Models {
    /// None of these is loaded yet. What is to be, comes out at the other end of `wanted`.
    pub fn new(all: Vec<Model>, budget: u64, max_waiting: usize, wanted: UnboundedSender<usize>) -> Self {
        let names = |(i, model): (usize, &Model)| {
            model.names().map(move |name| (name.clone(), i)).collect::<Vec<_>>()
        };
        let by_name = all.iter().enumerate().flat_map(names).collect();
        let n_waiting = all.iter().map(|_| AtomicUsize::new(0)).collect();
        let places = Mutex::new(all.iter().map(|_| Place::Absent).collect());
        let (first, changed) = (Mutex::default(), watch::Sender::new(()));
        Self { all, by_name, budget, max_waiting, n_waiting, places, first, changed, wanted }
    }

    /// Begins to load those that fit together, in their order.
    pub fn begin(&self) {
        let mut places = self.places();
        let mut used = 0;
        for (i, model) in self.all.iter().enumerate() {
            if used + model.bytes <= self.budget {
                used += model.bytes;
                self.first().push(i);
                self.begin_loading(&mut places, i);
            }
        }
    }

    /// A model by one of its names, loaded if it is not; waits until it is, but not longer than `time`.
    ///
    /// # Errors
    /// If there is none, it cannot be loaded, too many wait for it, or it takes longer: it goes on being loaded then.
    pub async fn get(&self, name: &str, time: Duration) -> Result<Loaded, ApiError> {
        let i = self.find(name)?;
        let begin = Instant::now();
        let mut changed = self.changed.subscribe();
        let mut place_in_line = None;
        loop {
            if let Some(loaded) = self.step(i, begin)? {
                return Ok(loaded);
            }
            if place_in_line.is_none() {
                place_in_line = Some(InLine::new(&self.n_waiting[i], self.max_waiting)?);
            }
            if begin.elapsed() > time {
                return Err(ApiError::unavailable("the model is still being loaded: try again later"));
            }
            // Nobody tells when a model becomes idle.
            let _ = tokio::time::timeout(LOOK_AGAIN, changed.changed()).await;
        }
    }

    /// Puts a model in its place that was loaded there.
    pub fn put(&self, i: usize, loaded: Loaded) {
        self.places()[i] = Place::Ready { loaded, used: Instant::now(), closed_until: None };
        self.first().retain(|&first| first != i);
        self.changed.send_replace(());
    }

    /// Notes that a model's memory is free again.
    pub fn gone(&self, i: usize) {
        self.places()[i] = Place::Absent;
        self.changed.send_replace(());
    }

    /// Notes that a model could not be loaded or has broken down. Says whether the server can go on: it can if that
    /// model was not to be there from the start and answers nobody.
    pub fn failed(&self, i: usize) -> bool {
        let mut places = self.places();
        let goes_on = matches!(places[i], Place::Loading) && !self.first().contains(&i);
        // One that has broken down stays, for whoever asks what is wrong.
        if goes_on {
            places[i] = Place::Failed(Instant::now());
        }
        self.changed.send_replace(());
        goes_on
    }

    /// All of them, and what each is doing.
    pub fn all(&self) -> Vec<(&Model, &'static str)> {
        let places = self.places();
        self.all.iter().zip(places.iter().map(state)).collect()
    }

    /// One by one of its names, and what it is doing.
    ///
    /// # Errors
    /// If there is none.
    pub fn one(&self, name: &str) -> Result<(&Model, &'static str), ApiError> {
        let i = self.find(name)?;
        Ok((&self.all[i], state(&self.places()[i])))
    }

    /// Those in memory.
    pub fn ready(&self) -> Vec<(&Model, Loaded)> {
        let places = self.places();
        let ready = |(model, place): (_, &Place)| match place {
            Place::Ready { loaded, .. } => Some((model, loaded.clone())),
            _ => None,
        };
        self.all.iter().zip(places.iter()).filter_map(ready).collect()
    }

    /// Why requests cannot be answered, if so.
    pub fn unready(&self) -> Option<&'static str> {
        if !self.first().is_empty() {
            return Some("a model is still being loaded");
        }
        let is_dead = |place: &Place| matches!(place, Place::Ready { loaded, .. } if !loaded.is_alive());
        self.places().iter().any(is_dead).then_some("an engine has stopped: the log says why")
    }

    fn places(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn first(&self) -> MutexGuard<'_, Vec<usize>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Result<usize, ApiError> {
        self.by_name.get(name).copied().ok_or_else(|| ApiError::unknown_model(name))
    }

    fn begin_loading(&self, places: &mut [Place], i: usize) {
        places[i] = Place::Loading;
        // If nobody loads any more, the server is stopping.
        let _ = self.wanted.send(i);
    }

    /// The model if it is there; else what can be done for whoever has wanted it since `begin`.
    fn step(&self, i: usize, begin: Instant) -> Result<Option<Loaded>, ApiError> {
        let mut places = self.places();
        let now = Instant::now();
        match &mut places[i] {
            Place::Ready { closed_until: Some(until), .. } if *until > now => Ok(None),
            Place::Ready { loaded, used, .. } => {
                *used = now;
                Ok(Some(loaded.clone()))
            }
            Place::Loading | Place::Leaving => Ok(None),
            Place::Failed(when) if when.elapsed() < PAUSE => {
                Err(ApiError::unavailable("the model cannot be loaded: the log says why"))
            }
            Place::Failed(_) | Place::Absent => {
                self.make_room(&mut places, i, begin.elapsed() > PATIENCE);
                Ok(None)
            }
        }
    }

    /// Begins to load a model if there is room, else to let others go, if that makes room.
    fn make_room(&self, places: &mut [Place], i: usize, is_impatient: bool) {
        let bytes = |is: fn(&Place) -> bool| -> u64 {
            places.iter().zip(&self.all).filter(|(place, _)| is(place)).map(|(_, model)| model.bytes).sum()
        };
        let staying = bytes(|place| matches!(place, Place::Loading | Place::Ready { .. }));
        let leaving = bytes(|place| matches!(place, Place::Leaving));
        let needed = self.all[i].bytes;
        if staying + leaving + needed <= self.budget {
            self.begin_loading(places, i);
            return;
        }
        let missing = (staying + needed).saturating_sub(self.budget);
        let mut others: Vec<(usize, Instant, bool)> = places
            .iter()
            .enumerate()
            .filter_map(|(other, place)| match place {
                Place::Ready { loaded, used, .. } => Some((other, *used, loaded.is_idle())),
                _ => None,
            })
            .collect();
        others.sort_by_key(|&(_, used, _)| used);
        let enough = |of: &mut dyn Iterator<Item = usize>| {
            let mut freed = 0;
            let taken: Vec<usize> = of
                .take_while(|&other| {
                    let is_needed = freed < missing;
                    freed += self.all[other].bytes;
                    is_needed
                })
                .collect();
            (freed >= missing).then_some(taken)
        };
        let idle = enough(&mut others.iter().filter(|(_, _, is_idle)| *is_idle).map(|&(other, ..)| other));
        if let Some(idle) = idle {
            // Dropping the client ends the engine, which then says that it is gone.
            idle.into_iter().for_each(|other| places[other] = Place::Leaving);
        } else if is_impatient {
            let all = enough(&mut others.iter().map(|&(other, ..)| other));
            for other in all.into_iter().flatten() {
                if let Place::Ready { closed_until, .. } = &mut places[other] {
                    *closed_until = Some(Instant::now() + CLOSED);
                }
            }
        }
    }
}

fn state(place: &Place) -> &'static str {
    match place {
        Place::Absent => "unloaded",
        Place::Loading => "loading",
        Place::Ready { .. } => "loaded",
        Place::Leaving => "unloading",
        Place::Failed(_) => "failed",
    }
}

/// A place among those who wait for a model.
struct InLine<'a>(&'a AtomicUsize);

impl<'a> InLine<'a> {
    fn new(n_waiting: &'a AtomicUsize, max: usize) -> Result<Self, ApiError> {
        let n_before = n_waiting.fetch_add(1, Ordering::AcqRel);
        let place = Self(n_waiting);
        if n_before >= max { Err(ApiError::full(n_before)) } else { Ok(place) }
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use infer::embedder;
    use infer::encoding::{Failure, Sink};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    /// Longer than any test waits.
    const LONG: Duration = Duration::from_secs(60);

    struct Nobody;

    impl Sink for Nobody {
        fn send(self: Box<Self>, _: Result<Vec<Vec<f32>>, Failure>) {}
    }

    struct Fake;

    impl encoding::Encode for Fake {
        fn vectors(&self, sequences: &[&[i32]]) -> Result<Vec<Vec<f32>>, embedder::Error> {
            Ok(vec![vec![]; sequences.len()])
        }
    }

    fn model(id: &str, bytes: u64) -> Model {
        Model { id: id.into(), aliases: vec![format!("{id}-alias")], bytes, context: 8, is_encoder: false }
    }

    /// Models of 4, 5 and 6 bytes where 10 fit, at most two waiting for each.
    fn models() -> (Arc<Models>, UnboundedReceiver<usize>) {
        let (wanted, receiver) = unbounded_channel();
        let all = vec![model("a", 4), model("b", 5), model("c", 6)];
        (Arc::new(Models::new(all, 10, 2, wanted)), receiver)
    }

    /// A model whose requests stay until its worker runs.
    fn loaded() -> (Loaded, encoding::Client, encoding::Worker) {
        let (client, worker) = encoding::pair(9);
        let tokenizer = br#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
        let tokenizer = Tokenizer::from_json(tokenizer).expect("a vocabulary");
        let reader = Reader::new(tokenizer, false, 8, 1);
        let loaded = Loaded::Encoder(Arc::new(Encoder { reader, n_embd: 1, client: client.clone() }));
        (loaded, client, worker)
    }

    fn states(models: &Models) -> Vec<&'static str> {
        models.all().into_iter().map(|(_, state)| state).collect()
    }

    async fn until(mut is: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !is() {
            assert!(begin.elapsed() < Duration::from_secs(20), "it comes");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn those_that_fit_are_loaded_first_and_the_idle_one_used_longest_ago_makes_room() {
        let (models, mut wanted) = models();
        models.begin();
        assert_eq!((wanted.try_recv(), wanted.try_recv(), wanted.try_recv().is_err()), (Ok(0), Ok(1), true));
        assert_eq!(models.unready(), Some("a model is still being loaded"));
        models.put(0, loaded().0);
        models.put(1, loaded().0);
        assert_eq!((models.unready(), states(&models)), (None, vec!["loaded", "loaded", "unloaded"]));
        models.get("a-alias", LONG).await.expect("there");
        assert!(models.get("d", LONG).await.is_err());
        let getting = tokio::spawn({
            let models = models.clone();
            async move { models.get("c", LONG).await.is_ok() }
        });
        // The first to go is the one used longest ago, and that is not enough: 4 + 6 fit, 5 + 6 do not.
        until(|| states(&models) == ["loaded", "unloading", "unloaded"]).await;
        assert!(wanted.try_recv().is_err(), "it counts until it is gone");
        models.gone(1);
        assert_eq!(wanted.recv().await, Some(2));
        assert_eq!(states(&models), ["loaded", "unloaded", "loading"]);
        models.put(2, loaded().0);
        assert!(getting.await.expect("no panic"));
    }

    #[tokio::test]
    async fn a_busy_model_stays_and_only_so_many_wait_for_its_room() {
        let (models, mut wanted) = models();
        let (of_a, client, worker) = loaded();
        models.put(0, of_a);
        models.put(1, loaded().0);
        client.submit(vec![vec![0]], Box::new(Nobody)).expect("taken");
        let held = models.get("b", LONG).await.expect("there");
        let get_c = || {
            let models = models.clone();
            tokio::spawn(async move { models.get("c", LONG).await.map(|_| ()) })
        };
        let (first, second) = (get_c(), get_c());
        until(|| models.n_waiting[2].load(Ordering::Acquire) == 2).await;
        let third = get_c().await.expect("no panic").expect_err("too many").body();
        assert_eq!(third["error"]["code"], "queue_full");
        tokio::time::sleep(3 * LOOK_AGAIN).await;
        assert_eq!(states(&models), ["loaded", "loaded", "unloaded"], "one works, the other is held");
        drop((held, client));
        until(|| states(&models)[1] == "unloading").await;
        models.gone(1);
        assert_eq!(wanted.recv().await, Some(2));
        models.put(2, loaded().0);
        assert!(first.await.expect("no panic").is_ok() && second.await.expect("no panic").is_ok());
        assert_eq!(models.n_waiting[2].load(Ordering::Acquire), 0);
        drop(worker);
    }

    #[tokio::test]
    async fn who_has_waited_long_for_a_model_is_told_to_come_again() {
        let (models, mut wanted) = models();
        let error = models.get("a", Duration::from_millis(30)).await.map(|_| ()).expect_err("not yet");
        assert_eq!((&error.body()["error"]["code"], wanted.try_recv()), (&"unavailable".into(), Ok(0)));
        assert_eq!((states(&models)[0], models.n_waiting[0].load(Ordering::Acquire)), ("loading", 0));
        models.put(0, loaded().0);
        models.get("a", Duration::ZERO).await.expect("what is there is not waited for");
    }

    /// Whoever asks a model that has broken down is told so, and so is a balancer.
    #[tokio::test]
    async fn a_model_that_has_broken_down_makes_the_server_unready_and_answers_nobody() {
        struct Broken;
        impl encoding::Encode for Broken {
            fn vectors(&self, _: &[&[i32]]) -> Result<Vec<Vec<f32>>, embedder::Error> {
                panic!("a fault")
            }
        }
        let (models, _wanted) = models();
        let (of_a, client, worker) = loaded();
        models.put(0, of_a);
        assert_eq!(models.unready(), None);
        client.submit(vec![vec![0]], Box::new(Nobody)).expect("taken");
        assert_eq!(worker.run(&Broken), Err("a fault".to_owned()));
        assert!(!models.failed(0), "the server cannot go on without it");
        assert_eq!(models.unready(), Some("an engine has stopped: the log says why"));
        let error = ApiError::from(client.submit(vec![vec![0]], Box::new(Nobody)).expect_err("gone")).body();
        assert_eq!(error["error"]["type"], "server_error");
    }

    #[tokio::test]
    async fn what_is_always_busy_takes_nothing_new_when_somebody_has_waited_long() {
        let (wanted, mut receiver) = unbounded_channel();
        let models = Arc::new(Models::new(vec![model("a", 6), model("b", 6)], 10, 2, wanted));
        let (of_a, client, worker) = loaded();
        models.put(0, of_a);
        client.submit(vec![vec![0]], Box::new(Nobody)).expect("taken");
        assert!(models.step(0, Instant::now()).is_ok_and(|loaded| loaded.is_some()));
        let long_ago = Instant::now() - 2 * PATIENCE;
        assert!(models.step(1, long_ago).is_ok_and(|loaded| loaded.is_none()));
        assert!(models.step(0, Instant::now()).is_ok_and(|loaded| loaded.is_none()), "closed");
        drop(client);
        let thread = std::thread::spawn(move || worker.run(&Fake));
        while states(&models)[0] != "unloading" {
            assert!(models.step(1, long_ago).is_ok_and(|loaded| loaded.is_none()));
            std::thread::yield_now();
        }
        assert_eq!(thread.join().expect("no panic"), Ok(()));
        models.gone(0);
        assert!(models.step(1, long_ago).is_ok_and(|loaded| loaded.is_none()));
        assert_eq!(receiver.try_recv(), Ok(1));
    }

    #[tokio::test]
    async fn a_model_that_cannot_be_loaded_is_not_tried_all_the_time() {
        let (models, mut wanted) = models();
        models.begin();
        assert!(!models.failed(0), "the server cannot begin without it");
        models.put(0, loaded().0);
        models.put(1, loaded().0);
        let getting = tokio::spawn({
            let models = models.clone();
            async move { models.get("c", LONG).await.map(|_| ()) }
        });
        until(|| states(&models).contains(&"unloading")).await;
        (0..2).filter(|&i| states(&models)[i] == "unloading").for_each(|i| models.gone(i));
        while wanted.recv().await != Some(2) {}
        assert!(models.failed(2));
        let error = getting.await.expect("no panic").expect_err("it failed").body();
        assert_eq!(error["error"]["type"], "server_error");
        assert!(models.get("c", LONG).await.is_err() && wanted.try_recv().is_err());
    }
}
