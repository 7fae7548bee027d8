//! `flint eval`: what a model is worth, in numbers that other tools give too.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use model::backend::Job;
use model::{FusedOps, Transformer};
use serde_json::json;
use tokenizer::Tokenizer;
use train::eval::perplexity::{self, Windows};
use train::eval::tasks::{self, Outcome, Share};

use super::Common;
use crate::bar::{Bar, Unit};
use crate::{args, loading, output};

/// Tokens of a window where nobody says, as llama.cpp has it.
const CONTEXT: usize = 512;

pub fn run(args: args::Eval, common: Common) -> Result<ExitCode> {
    common.on_backend(Run { args, common })
}

struct Run {
    args: args::Eval,
    common: Common,
}

impl Job for Run {
    type Output = Result<ExitCode>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<ExitCode> {
        let Self { args, common } = self;
        for name in &args.tasks {
            if Path::new(name).file_name().is_none_or(|file| file != name.as_str()) {
                bail!("`{name}` is no name of a task: a task is a file NAME.jsonl in the folder of --data");
            }
        }
        let dir = loading::model_path(&args.model)?;
        let tokenizer = loading::tokenizer(&dir)?;
        let model = loading::model::<B>(&dir, &device)?;
        match &args.ppl {
            Some(path) => ppl(&args, path, &model, &tokenizer, common)?,
            None => ask(&args, &model, &tokenizer, common)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn ppl<B: FusedOps>(
    args: &args::Eval,
    path: &Path,
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
    common: Common,
) -> Result<()> {
    let text = match path == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin()).context("cannot read stdin")?,
        false => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
    };
    let most = model.config().context;
    let windows = match args.stride {
        Some(stride) => Windows::Sliding { context: args.context.unwrap_or(most), stride },
        None => Windows::Halves { context: args.context.unwrap_or(CONTEXT.min(most)) },
    };
    let mut bar = Progress::new("windows", common.quiet);
    let found = perplexity::measure(model, tokenizer, &text, windows, |done, all| bar.show(done, all))?;
    drop(bar);
    if args.json {
        return Ok(output::json(&found)?);
    }
    let error = found.stderr.map_or_else(String::new, |error| format!(" ± {error:.4}"));
    output::line(&format!(
        "perplexity {:.4}{error} ({:.4} nats a token) over {} tokens, {} windows of {}, as {} defines it",
        found.perplexity, found.nll, found.tokens, found.windows, found.context, found.definition
    ))?;
    Ok(())
}

fn ask<B: FusedOps>(
    args: &args::Eval,
    model: &Transformer<B>,
    tokenizer: &Tokenizer,
    common: Common,
) -> Result<()> {
    let data = args.data.as_deref().unwrap_or(Path::new("."));
    let mut outcomes = BTreeMap::new();
    for name in &args.tasks {
        let path = data.join(format!("{name}.jsonl"));
        let mut bar = Progress::new("texts", common.quiet);
        let found = tasks::ask(model, tokenizer, &path, args.limit, |done, all| bar.show(done, all))
            .with_context(|| format!("task `{name}`"))?;
        drop(bar);
        if found.n_truncated > 0 {
            common.note(&format!(
                "{name}: {} contexts lost their beginning, because they do not fit the model's {} tokens",
                found.n_truncated,
                model.config().context
            ));
        }
        if !args.json {
            output::line(&line(name, &found))?;
        }
        outcomes.insert(name, found);
    }
    match args.json {
        true => Ok(output::json(&json!({ "tasks": outcomes }))?),
        false => Ok(()),
    }
}

fn line(name: &str, found: &Outcome) -> String {
    let share = |name: &str, share: Share| {
        let error = share.stderr.map_or_else(String::new, |error| format!(" ± {error:.4}"));
        format!("{name} {:.4}{error}", share.value)
    };
    let mut parts = vec![share("acc", found.acc)];
    parts.extend(found.acc_norm.map(|norm| share("acc_norm", norm)));
    parts.extend(found.perplexity.map(|perplexity| format!("perplexity {perplexity:.4}")));
    format!("{name}: {}, {} questions", parts.join(", "), found.n)
}

/// A bar that begins when it is known how much there is to do.
struct Progress {
    what: &'static str,
    is_quiet: bool,
    bar: Option<Bar>,
}

impl Progress {
    fn new(what: &'static str, is_quiet: bool) -> Self {
        Self { what, is_quiet, bar: None }
    }

    fn show(&mut self, done: usize, all: usize) {
        let begin = || Bar::new(self.what, Unit::Items, Some(all as u64), self.is_quiet);
        self.bar.get_or_insert_with(begin).set(done as u64);
    }
}
