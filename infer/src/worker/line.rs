//! Who is on the way to an engine, and what it does: told by its thread, asked by its clients.
//!
//! Its primitives are those of `super::sync`, so that a test can put in others, which try all orders of events.

use std::sync::PoisonError;

use super::sync::{AtomicBool, AtomicUsize, Mutex, Ordering};
use crate::engine::Stats;

/// What an engine and its clients share.
#[derive(Debug)]
pub(super) struct Line {
    n_most: usize,
    stats: Mutex<Stats>,
    /// Requests on their way to the engine.
    n_sent: AtomicUsize,
    is_alive: AtomicBool,
}

impl Line {
    /// Before an engine that has nothing to do; at most so many requests wait for it.
    pub fn new(n_most: usize) -> Self {
        let (stats, n_sent, is_alive) =
            (Mutex::new(Stats::default()), AtomicUsize::new(0), AtomicBool::new(true));
        Self { n_most, stats, n_sent, is_alive }
    }

    /// Counts a request as on its way.
    ///
    /// # Errors
    /// How many wait already, if that is too many.
    pub fn enter(&self) -> Result<(), usize> {
        // Counted before it is looked at, so that many at once do not all see the last place.
        let n_before = self.n_sent.fetch_add(1, Ordering::AcqRel) + self.stats().n_waiting;
        if n_before < self.n_most {
            return Ok(());
        }
        self.leave();
        Err(n_before)
    }

    /// A request is no longer on its way: it is in the numbers of the engine, or nowhere.
    pub fn leave(&self) {
        self.n_sent.fetch_sub(1, Ordering::AcqRel);
    }

    /// Tells what the engine does.
    pub fn note(&self, stats: Stats) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    /// What the engine has last told.
    pub fn stats(&self) -> Stats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing waits, runs or is on its way.
    pub fn is_idle(&self) -> bool {
        // In this order: what is counted no longer as on its way is in the numbers already.
        self.n_sent.load(Ordering::Acquire) == 0 && {
            let stats = self.stats();
            stats.n_waiting == 0 && stats.n_running == 0
        }
    }

    /// Tells that the engine is gone.
    pub fn end(&self) {
        self.is_alive.store(false, Ordering::Release);
    }

    /// Whether it can still work.
    pub fn is_alive(&self) -> bool {
        self.is_alive.load(Ordering::Acquire)
    }
}
