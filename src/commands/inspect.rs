//! `flint inspect`: what a model is made of, what lies in its files, and what memory it needs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use burn::tensor::{Tensor, TensorData};
use indicatif::HumanCount;
use model::backend::Job;
use model::cache::Kind;
use model::memory::{Inference, cache_bytes_per_token};
use model::weights::names::Layout;
use model::weights::{self, Opened};
use model::{Cache, Config, FusedOps};
use serde_json::{Value, json};

use super::Common;
use super::bench::{peak_memory_bytes, resident_bytes};
use super::plan::mib;
use crate::{args, loading, output};

/// Tokens that memory is planned for unless asked otherwise: caches are made as large as asked for, not as contexts are.
const CONTEXT: usize = 4096;

pub fn run(args: args::Inspect, common: Common) -> Result<ExitCode> {
    let path = loading::model_path(&args.model)?;
    let opened = weights::open(&path).context("cannot open the model")?;
    let config = opened.config();
    let context = args.context.map_or(config.context.min(CONTEXT), |n| n as usize);
    let backend = common.backend()?;
    let packs = backend.packs();
    loading::say_if_widened(&opened, packs, common);
    let cache = args.cache.kind();
    let batch = args.batch.into();
    let mut plan = Inference::new(config, opened.weights_bytes(packs), cache, batch, context);
    if backend.has_scores() {
        plan = plan.with_scores(config, batch, context);
    }
    let measured = match args.measure {
        true => Some(common.on_backend(Measure { opened: &opened, cache, batch, context })?),
        false => None,
    };
    let tokenizer = tokenizer(&path);
    let formats = formats(&opened);
    if args.json {
        let tensors: Vec<Value> = if args.tensors { tensors(&opened) } else { Vec::new() };
        output::json(&json!({
            "family": family(&opened),
            "config": config,
            "parameters": config.n_params(),
            "parameters_by_part": parts(config).collect::<BTreeMap<_, _>>(),
            "formats": formats.iter().map(|(name, (n, bytes))| (name, json!({ "tensors": n, "bytes": bytes }))).collect::<BTreeMap<_, _>>(),
            "tensors": tensors,
            "tokenizer": tokenizer,
            "memory": {
                "backend": backend.name(),
                "weights": if packs { "packed" } else { "f32" },
                "cache": args.cache.name(),
                "context": context,
                "batch": args.batch,
                "weights_bytes": plan.weights_bytes,
                "cache_bytes": plan.cache_bytes,
                "cache_bytes_per_token": cache_bytes_per_token(config, cache),
                "activation_bytes": plan.activation_bytes,
                "scratch_bytes": plan.scratch_bytes,
                "total_bytes": plan.total_bytes(),
                "measured_bytes": measured,
            },
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(&format!(
        "{}: {}, {} parameters",
        path.display(),
        family(&opened),
        HumanCount(config.n_params() as u64)
    ))?;
    output::line(&format!(
        "  {} layers x {} wide, {} heads of {} ({} for keys and values), feed-forward {} ({}), context {}",
        config.n_layer,
        config.n_embd,
        config.n_head,
        config.head_dim(),
        config.n_kv_head(),
        config.n_ff(),
        word(&config.mlp),
        config.context,
    ))?;
    output::line(&format!(
        "  {} positions, {}, vocabulary {}{}",
        word(&config.position),
        word(&config.norm),
        config.vocab_size,
        if config.tie_embeddings { ", head tied to the embedding" } else { "" },
    ))?;
    for (name, n) in parts(config).filter(|(_, n)| *n > 0) {
        output::line(&format!("    {name:<14}{:>16}", HumanCount(n as u64).to_string()))?;
    }
    for (name, (n, bytes)) in &formats {
        output::line(&format!("  {n} tensors in {name}, {}", mib(*bytes)))?;
    }
    if args.tensors {
        for name in opened.archive().names() {
            let stored = opened.archive().get(name).expect("one of its names");
            output::line(&format!("    {name:<48} {:<8} {:?}", stored.encoding.name(), stored.shape))?;
        }
    }
    output::line(&format!("  tokenizer: {}", tokenizer.as_ref().map_or("none".into(), Value::to_string)))?;
    output::line(&format!(
        "  memory on {backend}: weights {}{}, cache {} in {} ({} a token, {context} tokens x {}), activations {}, scratch {}: {}",
        mib(plan.weights_bytes),
        if packs { " packed" } else { " in f32" },
        mib(plan.cache_bytes),
        args.cache.name(),
        kib(cache_bytes_per_token(config, cache)),
        args.batch,
        mib(plan.activation_bytes),
        mib(plan.scratch_bytes),
        mib(plan.total_bytes()),
    ))?;
    if let Some(bytes) = measured {
        let ratio = bytes as f64 / plan.total_bytes() as f64;
        output::line(&format!("  measured: {}, {ratio:.2} times the plan", mib(bytes)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Loads the model and fills a cache; the most memory that this took of the process, or what it took of the device.
struct Measure<'a> {
    opened: &'a Opened,
    cache: Kind,
    batch: usize,
    context: usize,
}

impl Job for Measure<'_> {
    type Output = Result<u64>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<u64> {
        let Self { opened, cache, batch, context } = self;
        let before = resident_bytes().context("this system does not tell how much memory a process has")?;
        let model = opened.load_packed::<B>(&device).context("cannot open the model")?;
        let mut cache = Cache::new(model.config(), batch, context, &device).stored_as(cache, &device);
        let n = cache.capacity();
        let ids = TensorData::new(vec![0i32; batch * n], [batch, n]);
        let _ = weights::values(&model.next_logits(Tensor::from_data(ids, &device), &mut cache));
        let of_process = || peak_memory_bytes().unwrap_or(0).saturating_sub(before);
        Ok(B::device_bytes(&device).unwrap_or_else(of_process))
    }
}

fn family(opened: &Opened) -> String {
    match opened.layout() {
        Layout::HuggingFace(family) => format!("{} (safetensors)", family.model_type()),
        Layout::Gguf(family) => format!("{} (GGUF)", family.model_type()),
    }
}

fn parts(config: &Config) -> impl Iterator<Item = (&'static str, u128)> {
    config.params_by_part().into_iter()
}

/// Number and bytes of the tensors in each format.
fn formats(opened: &Opened) -> BTreeMap<String, (usize, u64)> {
    let mut formats = BTreeMap::new();
    for stored in opened.archive().names().filter_map(|name| opened.archive().get(name)) {
        let (n, bytes) = formats.entry(stored.encoding.name()).or_insert((0, 0));
        *n += 1;
        *bytes += stored.n_bytes() as u64;
    }
    formats
}

fn tensors(opened: &Opened) -> Vec<Value> {
    let archive = opened.archive();
    let entry = |name: &str| {
        let stored = archive.get(name)?;
        Some(json!({ "name": name, "shape": stored.shape, "format": stored.encoding.name() }))
    };
    archive.names().filter_map(entry).collect()
}

/// What is known of the vocabulary, or why it cannot be read; nothing if the model has none.
fn tokenizer(path: &Path) -> Option<Value> {
    let tokenizer = match loading::tokenizer_if_any(path) {
        Ok(tokenizer) => tokenizer?,
        Err(error) => return Some(json!({ "error": format!("{error:#}") })),
    };
    Some(json!({
        "kind": format!("{:?}", tokenizer.kind()),
        "tokens": tokenizer.vocab_size(),
        "chat_template": loading::chat_format(path, &tokenizer).is_ok(),
    }))
}

/// How a value is spelled in a config.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn kib(bytes: u64) -> String {
    format!("{:.1} KiB", bytes as f64 / 1024.0)
}
