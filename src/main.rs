//! The program `flint`: from raw text to a working language model, and the model put to use.
//!
//! `args` is the command line, `commands` has one file per verb, `config` loads run configs, `output` is
//! the only place that prints. Everything that computes lives in the crates below.

mod args;
mod bar;
mod chart;
mod commands;
mod config;
mod dashboard;
mod guessing;
mod hub;
mod loading;
mod output;
mod profile;
mod progress;
mod scratch;
mod serve;
mod source;
mod stop;
mod streaming;

use std::process::ExitCode;

use clap::Parser;
use kernels::allocator::Freed;
use mimalloc::MiMalloc;

/// Training allocates and frees large buffers all the time. The system's allocator gives each back to the
/// kernel and takes page faults for the next; this one can keep them (measured in the commit that added it).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // Before anything is freed: what then waits to go back goes by no date any more.
    kernels::allocator::set_freed(Freed::GoesBack);
    let args = args::Args::parse();
    match commands::run(args) {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::from(2)
        }
    }
}
