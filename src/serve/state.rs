//! What all handlers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::accounts::Accounts;
use super::metrics::Metrics;
use super::models::Models;

/// How much a server takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a body.
    pub body: usize,
    /// Choices of a request (`n`).
    pub choices: u64,
    /// How long a handshake, headers and a body may take to come, each.
    pub read_time: Duration,
    /// How long a request waits until its model is in memory.
    pub load_time: Duration,
    /// How long requests have to end when the server is told to stop.
    pub drain_time: Duration,
    /// Whether each request is logged.
    pub log: bool,
    /// Whether fields that mean nothing to this server are left out with a warning instead of refused.
    pub is_lenient: bool,
}

/// A server: its models, its limits and what it counts.
#[derive(Debug)]
pub struct State {
    /// What it serves.
    pub models: Models,
    /// Who may ask; everybody if there is nobody.
    pub accounts: Arc<Accounts>,
    /// Hosts that a request may name.
    pub hosts: Vec<String>,
    /// How much it takes.
    pub limits: Limits,
    /// What it counts.
    pub metrics: Metrics,
    /// When it began, in seconds since 1970.
    pub created: u64,
    is_draining: AtomicBool,
    is_cut: watch::Sender<bool>,
    n_ids: AtomicU64,
    /// Makes ids differ between runs.
    salt: u64,
}

impl State {
    /// A server of models that are still to be loaded.
    pub fn new(models: Models, accounts: Arc<Accounts>, hosts: Vec<String>, limits: Limits) -> Arc<Self> {
        let (created, salt) = (super::answer::now(), super::answer::now_ns());
        let (is_draining, is_cut) = (AtomicBool::new(false), watch::Sender::new(false));
        let (metrics, n_ids) = (Metrics::default(), AtomicU64::new(0));
        Arc::new(Self { models, accounts, hosts, limits, metrics, created, is_draining, is_cut, n_ids, salt })
    }

    /// Why no request should come, if so.
    pub fn unready(&self) -> Option<&'static str> {
        if self.is_draining() {
            return Some("the server is stopping");
        }
        self.models.unready()
    }

    /// Takes no more requests.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    /// Whether it takes no more.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    /// Ends what has not ended, with an error.
    pub fn cut(&self) {
        self.is_cut.send_replace(true);
    }

    /// Whether that has been said.
    pub fn is_cut(&self) -> watch::Receiver<bool> {
        self.is_cut.subscribe()
    }

    /// A name for a request or an answer, like no other.
    pub fn unique(&self, prefix: &str) -> String {
        let n = self.n_ids.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}{:016x}{n:08x}", self.salt)
    }
}
