//! `flint bench MODEL`: how fast a model reads prompts and generates tokens.
//!
//! Tokens are fixed and logits are not looked at, so what is measured is the model alone. Rates are of all sequences
//! together.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::prelude::*;
use kernels::limits;
use model::backend::{Job, Kind};
use model::{Cache, Config, FusedOps, Transformer, span, weights};
use serde_json::{Value, json};

use super::super::Common;
use super::train::peak_memory_bytes;
use crate::bar::{Bar, Unit};
use crate::{args, loading, output, profile};

pub fn model(args: args::BenchModel, common: Common) -> Result<ExitCode> {
    let backend = common.backend()?;
    let run = Run { args: &args, common };
    let result = profile::around(args.profile.profile.as_deref(), common, || common.on_backend(run))?;
    let tests: Vec<Value> = result.tests.iter().map(|test| test.json(&result.limits)).collect();
    let rate = |is_prompt: bool| {
        let of = result.tests.iter().find(|test| (test.prompt > 0) == is_prompt);
        of.map(|test| test.rates().median)
    };
    let record = json!({
        "model": args.model,
        "parameters": result.n_params,
        "bytes_per_token": result.bytes_per_token,
        "backend": backend.name(),
        "instruction_set": kernels::Isa::current().name(),
        "threads": rayon::current_num_threads(),
        "cache": args.cache.name(),
        "limits": { "flops_per_s": result.limits.flops, "read_bytes_per_s": result.limits.read_rate },
        "prompt_tokens_per_s": rate(true),
        "generate_tokens_per_s": rate(false),
        "bytes_per_s": result.tests.iter().find(|test| test.prompt == 0).map(|test| test.bytes_per_s()),
        "peak_memory_bytes": result.peak_bytes,
        "tests": tests,
    });
    if args.json {
        output::json(&record)?;
    } else {
        table(backend, &result)?;
    }
    if let Some(path) = &args.out {
        let text = serde_json::to_string_pretty(&record)? + "\n";
        ::model::files::write_atomic(path, |f| std::io::Write::write_all(f, text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(backend: Kind, result: &Measured) -> Result<()> {
    output::line(&format!(
        "{backend}, {}, {} threads; this machine: {:.0} GFLOP/s, reads {:.1} GB/s",
        kernels::Isa::current().name(),
        rayon::current_num_threads(),
        result.limits.flops / 1e9,
        result.limits.read_rate / 1e9
    ))?;
    output::line(&format!(
        "{:<10} {:>7} {:>6} {:>10} {:>17} {:>9} {:>5} {:>8} {:>5}",
        "test", "depth", "batch", "tokens/s", "least to most", "GFLOP/s", "%", "GB/s", "%"
    ))?;
    for test in &result.tests {
        output::line(&test.line(&result.limits))?;
    }
    Ok(())
}

/// What the machine can do at most, in a second.
struct Limits {
    flops: f64,
    read_rate: f64,
}

struct Measured {
    n_params: usize,
    bytes_per_token: usize,
    peak_bytes: Option<u64>,
    limits: Limits,
    tests: Vec<Test>,
}

/// One row of the table.
struct Test {
    /// Tokens of the prompt, or 0 if tokens were generated.
    prompt: usize,
    /// Tokens that were generated.
    n: usize,
    depth: usize,
    batch: usize,
    /// Of each repetition.
    seconds: Vec<f64>,
    /// Floating-point operations of a token.
    flops: f64,
    /// Bytes that a step reads.
    step_bytes: f64,
}

/// Tokens a second.
struct Rates {
    median: f64,
    least: f64,
    most: f64,
}

impl Test {
    fn name(&self) -> String {
        if self.prompt > 0 { format!("prompt {}", self.prompt) } else { format!("gen {}", self.n) }
    }

    fn n_tokens(&self) -> usize {
        self.batch * self.prompt.max(self.n)
    }

    fn rates(&self) -> Rates {
        let mut rates: Vec<f64> = self.seconds.iter().map(|s| self.n_tokens() as f64 / s).collect();
        rates.sort_by(f64::total_cmp);
        Rates { median: rates[rates.len() / 2], least: rates[0], most: rates[rates.len() - 1] }
    }

    fn flops_per_s(&self) -> f64 {
        self.flops * self.rates().median
    }

    fn bytes_per_s(&self) -> f64 {
        let steps_per_s = self.rates().median / (self.n_tokens() as f64 / self.steps());
        self.step_bytes * steps_per_s
    }

    /// Times that all weights are read.
    fn steps(&self) -> f64 {
        if self.prompt > 0 { self.prompt.div_ceil(::model::cache::MAX_STEP) as f64 } else { self.n as f64 }
    }

    fn line(&self, limits: &Limits) -> String {
        let Rates { median, least, most } = self.rates();
        let (flops, bytes) = (self.flops_per_s(), self.bytes_per_s());
        format!(
            "{:<10} {:>7} {:>6} {median:>10.2} {:>17} {:>9.1} {:>5.0} {:>8.1} {:>5.0}",
            self.name(),
            self.depth,
            self.batch,
            format!("{least:.2} - {most:.2}"),
            flops / 1e9,
            100.0 * flops / limits.flops,
            bytes / 1e9,
            100.0 * bytes / limits.read_rate,
        )
    }

    fn json(&self, limits: &Limits) -> Value {
        let Rates { median, least, most } = self.rates();
        json!({
            "prompt": self.prompt,
            "generate": self.n,
            "depth": self.depth,
            "batch": self.batch,
            "tokens_per_s": median,
            "least_tokens_per_s": least,
            "most_tokens_per_s": most,
            "seconds": self.seconds,
            "flops_per_s": self.flops_per_s(),
            "share_of_flops": self.flops_per_s() / limits.flops,
            "bytes_per_s": self.bytes_per_s(),
            "share_of_read_rate": self.bytes_per_s() / limits.read_rate,
        })
    }
}

struct Run<'a> {
    args: &'a args::BenchModel,
    common: Common,
}

impl Job for Run<'_> {
    type Output = Result<Measured>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<Measured> {
        let Self { args, common } = self;
        let path = loading::model_path(args.model.as_deref().context("name a model")?)?;
        let opened = weights::open(&path).context("cannot open the model")?;
        let prompts = args.prompt.iter().filter(|&&n| n > 0).map(|&n| (n, 0));
        let generated = args.n.iter().filter(|&&n| n > 0).map(|&n| (0, n));
        let whats: Vec<(usize, usize)> = prompts.chain(generated).collect();
        check(args, &whats, opened.config())?;
        loading::say_if_widened(&opened, B::PACKS, common);
        let model = {
            let _phase = span::phase("loading");
            opened.load_packed::<B>(&device).context("cannot open the model")?
        };
        let n_tests = whats.len() * args.depth.len() * args.batch.len();
        let bar = Bar::new("measuring", Unit::Items, Some(n_tests as u64), common.quiet);
        let mut tests = Vec::with_capacity(n_tests);
        for &depth in &args.depth {
            for &batch in &args.batch {
                for &(prompt, n) in &whats {
                    tests.push(measure(&model, args, depth, batch as usize, [prompt, n]));
                    bar.set(tests.len() as u64);
                }
            }
        }
        let peak_bytes = peak_memory_bytes();
        // Last, as its own memory would count for the model's.
        let _phase = span::phase("limits of the machine");
        let limits = Limits { flops: limits::flops(), read_rate: limits::read_rate() };
        let (n_params, bytes_per_token) = (model.config().n_params(), model.bytes_per_token());
        Ok(Measured { n_params, bytes_per_token, peak_bytes, limits, tests })
    }
}

/// Most sequences at once.
const MAX_BATCH: u32 = 1024;

/// Whether everything asked for can be measured, before anything is.
fn check(args: &args::BenchModel, whats: &[(usize, usize)], config: &Config) -> Result<()> {
    if whats.is_empty() {
        bail!("nothing to measure: give -p or -n a number above 0");
    }
    if let Some(batch) = args.batch.iter().find(|&&batch| batch > MAX_BATCH) {
        bail!("-b {batch}: at most {MAX_BATCH} sequences at once");
    }
    for &depth in &args.depth {
        for &(prompt, n) in whats {
            let new = prompt.saturating_add(n);
            if depth.saturating_add(new) > config.context {
                bail!(
                    "{depth} tokens in the cache and {new} more are {}, the model's context is {}",
                    depth.saturating_add(new),
                    config.context
                );
            }
        }
    }
    Ok(())
}

/// Fills a cache to `depth`, and reads a prompt or generates tokens from there, again and again.
fn measure<B: FusedOps>(
    model: &Transformer<B>,
    args: &args::BenchModel,
    depth: usize,
    batch: usize,
    [prompt, n]: [usize; 2],
) -> Test {
    let config = model.config();
    let new = prompt + n;
    let len = depth + new;
    let device = model.device();
    let kind = args.cache.kind();
    let mut cache = Cache::new(config, batch, len, &device).stored_as(kind, &device);
    let ids = |n: usize| {
        // Any that there are, not all the same.
        let ids: Vec<i32> = (0..batch * n).map(|i| (i * 7919 % config.vocab_size) as i32).collect();
        Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [batch, n]), &device)
    };
    let step = |phase: &str, n: usize, cache: &mut Cache<B>| {
        let _phase = span::phase(phase);
        // Asking for numbers waits for a device that computes on its own.
        let _ = model.next_logits(ids(n), cache).into_data();
    };
    let what = match prompt {
        0 => format!("token {depth} to {} of {batch}", depth + n),
        _ => format!("prompt {depth} to {} of {batch}", depth + prompt),
    };
    let mut once = |phase: &str| {
        cache.truncate(depth);
        if cache.len() < depth {
            // A sliding layer that has moved on forgets everything.
            cache.truncate(0);
            step("filling the cache", depth, &mut cache);
        }
        let started = Instant::now();
        match prompt {
            0 => (0..n).for_each(|_| step(phase, 1, &mut cache)),
            _ => step(phase, prompt, &mut cache),
        }
        started.elapsed().as_secs_f64()
    };
    once("not counted");
    let seconds = (0..args.repeat).map(|_| once(&what)).collect();
    // As of the token in the middle, in layers that see everything and in those that see a window.
    let middle = depth + new / 2;
    let rows: usize = (0..config.n_layer).map(|i| config.seen(i, middle)).sum();
    let row = 2 * config.n_kv_head() * kind.row_bytes(config.head_dim());
    // Of a prompt the last position alone gets logits.
    let head = 2.0 * (config.vocab_size * config.n_embd) as f64;
    let without_head = if prompt > 0 { head * (1.0 - 1.0 / prompt as f64) } else { 0.0 };
    Test {
        prompt,
        n,
        depth,
        batch,
        seconds,
        flops: config.train_flops_per_token(middle) / 3.0 - without_head,
        step_bytes: model.bytes_per_token() as f64 + (batch * rows * row) as f64,
    }
}
