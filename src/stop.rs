//! Ctrl-C and termination: the first asks to stop after the step, the second ends at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use burn::train::Interrupter;
use signal_hook::consts::{SIGINT, SIGTERM};

/// Which signal came, if any; shared with the dashboard, whose terminal turns Ctrl-C into a key.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    signal: Arc<AtomicUsize>,
    armed: Arc<AtomicBool>,
}

impl Stop {
    /// Begins to listen; `interrupter` is stopped when a signal comes.
    pub fn listen(interrupter: Interrupter) -> Result<Self> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM] {
            // Before the first signal arms, so that only the second one ends the program.
            signal_hook::flag::register_conditional_shutdown(signal, exit_code(signal), stop.armed.clone())
                .context("cannot listen for signals")?;
        }
        stop.begin(interrupter)
    }

    /// As [`Stop::listen`], but a second signal does not end the program: for work that [`Stop::insist`] ends soon after
    /// the first and cleans up after.
    pub fn listen_once(interrupter: Interrupter) -> Result<Self> {
        Self::default().begin(interrupter)
    }

    fn begin(self, interrupter: Interrupter) -> Result<Self> {
        let stop = self;
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_usize(signal, stop.signal.clone(), signal as usize)
                .and_then(|_| signal_hook::flag::register(signal, stop.armed.clone()))
                .context("cannot listen for signals")?;
        }
        let signal = stop.signal.clone();
        let wait = move || {
            while signal.load(Ordering::Relaxed) == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            interrupter.stop(Some("signal"));
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(wait)
            .context("cannot listen for signals")?;
        Ok(stop)
    }

    /// What a Ctrl-C key means: as the signal. Says whether it is the second one.
    pub fn key(&self) -> bool {
        self.signal.store(SIGINT as usize, Ordering::Relaxed);
        self.armed.swap(true, Ordering::Relaxed)
    }

    /// Ends the program if a signal came and the work did not end within `grace`, after `clean_up`, until what is returned
    /// is dropped. The work must leave nothing behind, whenever it ends, that `clean_up` does not remove.
    ///
    /// # Errors
    /// If there is no thread to wait on.
    pub fn insist(&self, grace: Duration, clean_up: impl FnOnce() + Send + 'static) -> Result<Insistence> {
        let (stop, is_over) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let insistence = Insistence(is_over.clone());
        let wait = move || {
            while !is_over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
                let Some(code) = stop.exit_code() else { continue };
                std::thread::sleep(grace);
                if !is_over.load(Ordering::Relaxed) {
                    clean_up();
                    std::process::exit(code.into());
                }
            }
        };
        std::thread::Builder::new()
            .name("insistence".into())
            .spawn(wait)
            .context("cannot listen for signals")?;
        Ok(insistence)
    }

    /// The exit code that says by which signal the program ended, if one came.
    pub fn exit_code(&self) -> Option<u8> {
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            signal => Some(exit_code(signal as i32) as u8),
        }
    }
}

/// The time in which [`Stop::insist`] may end the program; ends when dropped.
pub struct Insistence(Arc<AtomicBool>);

impl Drop for Insistence {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// 128 and the signal's number, as shells have it.
pub fn exit_code(signal: i32) -> i32 {
    128 + signal
}
