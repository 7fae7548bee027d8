//! `flint plan`: what follows from a config, before anything runs.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use model::cache::Kind;
use model::memory::{Plan, cache_bytes_per_token};
use serde_json::json;
use train::RunConfig;

use super::Common;
use crate::progress::time;
use crate::{args, config, output};

pub fn run(args: &args::Plan, common: Common) -> Result<ExitCode> {
    let config = config::load(&args.config)?;
    let (config, note) = with_vocabulary(config);
    let model = &config.model;
    let backend = common.backend()?;
    let gflops = measured_gflops();
    let phases: Vec<_> = config.phases().iter().map(|(_, _, train)| phase(&config, train, gflops)).collect();
    let memory =
        phases.iter().map(|p| p.memory).max_by_key(Plan::total_bytes).expect("there is a first phase");
    if args.json {
        let phases: Vec<_> = phases
            .iter()
            .map(|p| json!({ "steps": p.steps, "tokens": p.tokens, "flops": p.flops, "seconds": p.seconds }))
            .collect();
        output::json(&json!({
            "name": config.name,
            "parameters": model.n_params(),
            "vocab_size": model.vocab_size,
            "backend": backend.name(),
            "gflops": gflops,
            "memory_bytes": {
                "weights": memory.weights_bytes,
                "gradients": memory.gradient_bytes,
                "optimizer": memory.optimizer_bytes,
                "activations": memory.activation_bytes,
                "total": memory.total_bytes(),
            },
            "cache_bytes_per_token": cache_bytes_per_token(model, Kind::F32),
            "phases": phases,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!("{}: {} parameters on {backend}{note}", config.name, model.n_params()))?;
    let experts = model.experts.as_ref().map(|of| {
        format!(" ({} experts of {}, {} at a time)", of.n, of.n_ff.unwrap_or(model.n_ff()), of.n_active)
    });
    output::line(&format!(
        "  {} layers x {} wide, {} heads ({} for keys and values), feed-forward {}{}, context {}",
        model.n_layer,
        model.n_embd,
        model.n_head,
        model.n_kv_head(),
        model.n_ff(),
        experts.unwrap_or_default(),
        model.context
    ))?;
    output::line(&format!(
        "  memory while training: {} (weights {}, gradients {}, optimizer {}, activations {})",
        mib(memory.total_bytes()),
        mib(memory.weights_bytes),
        mib(memory.gradient_bytes),
        mib(memory.optimizer_bytes),
        mib(memory.activation_bytes)
    ))?;
    output::line(&format!(
        "  cache while generating: {} bytes a token",
        cache_bytes_per_token(model, Kind::F32)
    ))?;
    for (idx, p) in phases.iter().enumerate() {
        output::line(&format!(
            "  phase {}: {} steps, {} tokens, {:.2e} floating-point operations, about {} at {gflops:.0} GFLOP/s",
            idx + 1,
            p.steps,
            p.tokens,
            p.flops,
            time(p.seconds)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a run that cannot fit into this machine, before anything is allocated.
pub fn check_memory(config: &RunConfig) -> Result<()> {
    let (config, _) = with_vocabulary(config.clone());
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let has = system.total_memory();
    for (prefix, _, train) in config.phases() {
        let needs =
            Plan::training(&config.model, train.batch_size, train.seq_len(&config.model)).total_bytes();
        if needs > has && has > 0 {
            bail!(
                "training needs about {} of memory, this machine has {}: lower `{prefix}train.batch_size` or the \
                 sizes in `model` (`flint plan` shows what each part takes)",
                mib(needs),
                mib(has)
            );
        }
    }
    Ok(())
}

struct Phase {
    steps: usize,
    tokens: f64,
    flops: f64,
    seconds: f64,
    memory: Plan,
}

/// Part of the measured matrix speed that training reaches: it also does much that is not a matrix product.
const EFFICIENCY: f64 = 0.7;

fn phase(config: &RunConfig, train: &train::config::TrainConfig, gflops: f64) -> Phase {
    let seq_len = train.seq_len(&config.model);
    let tokens = (train.steps * train.batch_size * train.accumulation * seq_len) as f64;
    let flops = tokens * config.model.train_flops_per_token(seq_len);
    let memory = Plan::training(&config.model, train.batch_size, seq_len);
    Phase { steps: train.steps, tokens, flops, seconds: flops / (gflops * 1e9 * EFFICIENCY), memory }
}

/// The vocabulary's size is not known before the data is read; the tokenizer's limit stands for it.
fn with_vocabulary(mut config: RunConfig) -> (RunConfig, String) {
    if config.model.vocab_size > 0 {
        return (config, String::new());
    }
    let limit = config.tokenizer.vocab_size;
    config.model.vocab_size = limit;
    (config, format!(" (with the tokenizer's limit of {limit} tokens; the data may give fewer)"))
}

/// What this machine's cores do in a matrix product of a model's size, right now. GPUs do more.
fn measured_gflops() -> f64 {
    use kernels::matmul::{Mat, MatMut, matmul};
    let n = 512;
    let (a, b, mut c) = (vec![1.0; n * n], vec![1.0; n * n], vec![0.0; n * n]);
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let begin = Instant::now();
        matmul(Mat::new(&a, n, n), Mat::new(&b, n, n), MatMut::new(&mut c, n, n));
        best = best.min(begin.elapsed().as_secs_f64());
    }
    2.0 * (n * n * n) as f64 / best / 1e9
}

pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
