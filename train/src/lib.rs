//! Training: from text to a model directory.
//!
//! [`config`] says what a run is made of. [`data`] turns text into token shards and batches. [`mod@run`]
//! wires a run together on burn-train, whose custom learning strategy is [`step_loop`]: forward,
//! backward, clip, update. [`optim`] and [`schedule`] are the recipe, [`folder`] is the run on disk,
//! [`checkpoint`] survives crashes, [`log`], [`report`] and
//! [`renderer`] tell what happens, [`exam`] asks the result questions. [`eval`] measures any model.
//!
//! This crate prints nothing and knows no terminal; whoever runs it passes a [`Screen`].

pub mod config;
pub mod run;

pub mod data;
pub mod eval;
pub mod exam;
pub mod folder;
pub mod step_loop;

pub mod checkpoint;
pub mod error;
pub mod log;
pub mod optim;
pub mod renderer;
pub mod report;
pub mod schedule;

pub use config::RunConfig;
pub use error::Error;
pub use renderer::Screen;
pub use run::{Hooks, Outcome, run};
