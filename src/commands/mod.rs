//! One file per verb.

mod bench;
mod chat;
mod convert;
mod doctor;
mod embed;
mod eval;
mod generate;
mod inspect;
mod logits;
mod plan;
mod pull;
mod quantize;
mod serve;
mod tokenizer;
mod train;

use std::process::ExitCode;

use anyhow::{Context, Result};
use kernels::allocator::Freed;
use model::backend::{self, Job, Kind};

use crate::args::{Args, BenchVerb, Verb};

/// What holds for every verb.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    /// Where to compute, if asked for.
    backend: Option<Kind>,
    /// Whether to say nothing but results and errors.
    pub quiet: bool,
}

impl Common {
    /// Runs `job` on the backend asked for, else on the fastest usable.
    fn on_backend<T, J: Job<Output = Result<T>>>(&self, job: J) -> Result<T> {
        backend::dispatch(self.backend()?, job)?
    }

    fn backend(&self) -> Result<Kind> {
        match self.backend {
            Some(kind) => Ok(kind),
            None => Ok(Kind::fastest()?),
        }
    }

    /// Tells a person something, unless asked not to.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            crate::output::note(text);
        }
    }
}

/// Does what the command line says.
pub fn run(args: Args) -> Result<ExitCode> {
    if !matches!(args.verb, Verb::Tokenizer(_)) {
        kernels::allocator::set_freed(Freed::Stays);
    }
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global().context("cannot start the threads")?;
    }
    if matches!(args.verb, Verb::Serve(_)) {
        // It waits for the network for as long as it lives; its engines have threads of their own.
        return dispatch(args);
    }
    // On a thread of the pool: from outside, every parallel kernel would begin and end with putting this
    // thread to sleep and waking it, which is half the time of a small model.
    rayon::scope(|_| dispatch(args))
}

fn dispatch(args: Args) -> Result<ExitCode> {
    let common = Common { backend: args.backend, quiet: args.quiet };
    match args.verb {
        Verb::Train(args) => train::run(&args, common),
        Verb::Plan(args) => plan::run(&args, common),
        Verb::Generate(args) => generate::run(args, common),
        Verb::Chat(args) => chat::run(args, common),
        Verb::Eval(args) => eval::run(args, common),
        Verb::Embed(args) => embed::run(args, common),
        Verb::Pull(args) => pull::run(&args, common),
        Verb::Logits(args) => logits::run(args, common),
        Verb::Convert(args) => convert::run(args, common),
        Verb::Quantize(args) => quantize::run(args, common),
        Verb::Serve(args) => serve::run(args, common),
        Verb::Inspect(args) => inspect::run(args, common),
        Verb::Tokenizer(verb) => tokenizer::run(verb, common),
        Verb::Bench(args) => match args.verb {
            Some(BenchVerb::Train(args)) => bench::train(&args, common),
            Some(BenchVerb::Stream(args)) => bench::stream(&args, common),
            None => bench::model(args.model, common),
        },
        Verb::Doctor(args) => doctor::run(&args, common),
    }
}
