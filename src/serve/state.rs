//! What all handlers share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use infer::Client;
use tokenizer::Tokenizer;
use tokenizer::chat::ChatFormat;

use super::error::ApiError;
use super::metrics::Metrics;

/// How much a server takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// Choices of a request (`n`).
    pub choices: u64,
    /// How long headers and a body may take to come.
    pub read_time: Duration,
    /// How long requests have to end when the server is told to stop.
    pub drain_time: Duration,
    /// Whether each request is logged.
    pub log: bool,
}

/// A model that answers.
#[derive(Debug)]
pub struct Served {
    /// Its name in requests.
    pub id: String,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// Its vocabulary.
    pub tokenizer: Tokenizer,
    /// How its conversations are laid out, or why it has none.
    pub format: Result<ChatFormat, String>,
    /// To its engine.
    pub client: Client,
}

/// A server: its models, its limits and what it counts.
#[derive(Debug)]
pub struct State {
    /// By name; empty until loaded.
    models: BTreeMap<String, OnceLock<Served>>,
    /// Hashes of the keys, if there are any.
    pub keys: Vec<(String, [u8; 32])>,
    /// Hosts that a request may name.
    pub hosts: Vec<String>,
    /// How much it takes.
    pub limits: Limits,
    /// What it counts.
    pub metrics: Metrics,
    is_draining: AtomicBool,
    n_ids: AtomicU64,
    /// Makes ids differ between runs.
    salt: u64,
}

impl State {
    /// A server of models that are still to be loaded.
    pub fn new(
        names: impl IntoIterator<Item = String>,
        keys: Vec<(String, [u8; 32])>,
        hosts: Vec<String>,
        limits: Limits,
    ) -> Arc<Self> {
        let models = names.into_iter().map(|name| (name, OnceLock::new())).collect();
        let salt = super::answer::now_ns();
        let (is_draining, n_ids) = (AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self { models, keys, hosts, limits, metrics: Metrics::default(), is_draining, n_ids, salt })
    }

    /// Puts a loaded model in its place.
    ///
    /// # Panics
    /// If it has none, or is there already.
    pub fn put(&self, served: Served) {
        let place = self.models.get(&served.id).expect("a name given at the start");
        assert!(place.set(served).is_ok(), "a model is loaded once");
    }

    /// Those that are loaded.
    pub fn served(&self) -> impl Iterator<Item = &Served> {
        self.models.values().filter_map(OnceLock::get)
    }

    /// A model by its name.
    ///
    /// # Errors
    /// If there is none, or it is not loaded yet.
    pub fn model(&self, id: &str) -> Result<&Served, ApiError> {
        let place = self.models.get(id).ok_or_else(|| ApiError::unknown_model(id))?;
        place.get().ok_or_else(|| ApiError::unavailable("the model is still being loaded"))
    }

    /// Why no request should come, if so.
    pub fn unready(&self) -> Option<&'static str> {
        if self.is_draining() {
            return Some("the server is stopping");
        }
        match self.models.values().map(OnceLock::get).collect::<Option<Vec<_>>>() {
            None => Some("a model is still being loaded"),
            Some(served) if served.iter().any(|served| !served.client.is_alive()) => {
                Some("an engine has stopped: the log says why")
            }
            Some(_) => None,
        }
    }

    /// Takes no more requests.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    /// Whether it takes no more.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// A name for a request or an answer, like no other.
    pub fn unique(&self, prefix: &str) -> String {
        let n = self.n_ids.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}-{:016x}{n:08x}", self.salt)
    }
}
