//! What is to be served: names, where each model lies, and what it will take in memory.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use model::backend::{Job, Kind};
use model::memory::Inference;
use model::pool::PAGE;
use model::weights::{self, lora::Adapter};
use model::{FusedOps, Pool};

use crate::commands::Common;
use crate::commands::plan::mib;
use crate::{guessing, loading, serve};

/// Positions of a sequence, unless more are asked for: few need what some models could attend to.
const MAX_CONTEXT: usize = 8192;

/// What a model is made of.
#[derive(Clone, Debug)]
pub enum Parts {
    /// A model that continues texts, and what is added to it.
    Decoder {
        /// A folder or a file.
        path: PathBuf,
        /// An adapter's folder.
        lora: Option<PathBuf>,
    },
    /// A model that makes vectors.
    Encoder(PathBuf),
}

/// A model with its place and its plan.
#[derive(Clone, Debug)]
pub struct Source {
    /// As the server knows it.
    pub model: serve::Model,
    /// What it is made of.
    pub parts: Parts,
    /// Pages of its keys and values.
    pub n_pages: usize,
}

/// All models of a config in the order in which they are loaded, and how much memory they may take together.
pub fn all(config: &serve::Config, common: Common) -> Result<(Vec<Source>, u64)> {
    let mut parts: Vec<(String, Parts)> = Vec::new();
    for text in &config.models {
        let (name, path) = named(text)?;
        parts.push((name, Parts::Decoder { path, lora: None }));
    }
    for text in &config.lora {
        let adapter = adapter(text, &parts)?;
        parts.push(adapter);
    }
    for text in &config.embed {
        let (name, path) = named(text)?;
        parts.push((name, Parts::Encoder(path)));
    }
    for (i, (name, _)) in parts.iter().enumerate() {
        if parts[..i].iter().any(|(other, _)| other == name) {
            bail!("two models are named `{name}`: give one another name, as in NAME=PATH");
        }
    }
    let aliases = aliases(&config.alias, &parts)?;
    let kind = common.backend()?;
    let budget = match config.memory {
        Some(mib) => mib.saturating_mul(1 << 20),
        // What a device has nobody tells.
        None if kind.has_own_memory() => u64::MAX,
        None => free_memory(),
    };
    let sources = parts
        .into_iter()
        .map(|(id, parts)| {
            let of_it = |(_, name): &&(String, String)| *name == id;
            let aliases = aliases.iter().filter(of_it).map(|(alias, _)| alias.clone()).collect();
            let plan = plan(&parts, config, budget, kind).with_context(|| format!("in the model `{id}`"))?;
            let Plan { bytes, context, n_pages } = plan;
            if bytes > budget {
                bail!(
                    "the model `{id}` takes {}, and all together may take {}: raise --memory, or lower --cache-memory \
                     or --context",
                    mib(bytes),
                    mib(budget)
                );
            }
            let is_encoder = matches!(parts, Parts::Encoder(_));
            let model = serve::Model { id, aliases, bytes, context, is_encoder };
            Ok(Source { model, parts, n_pages })
        })
        .collect::<Result<_>>()?;
    Ok((sources, budget))
}

/// `NAME=PATH`, or a path, whose last part is the name.
fn named(model: &str) -> Result<(String, PathBuf)> {
    let (name, path) = match model.split_once('=') {
        Some((name, path)) if !name.contains(std::path::MAIN_SEPARATOR) => (Some(name), path),
        _ => (None, model),
    };
    // Of a run, its own name: the model in it is `model` in all of them.
    let given = Path::new(path);
    let path = loading::model_path(given)?;
    let of_path = || {
        let stem = if given.is_file() { given.file_stem() } else { given.file_name() };
        stem.map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned())
    };
    match name.map_or_else(of_path, str::to_owned) {
        name if name.is_empty() => bail!("`{model}` has no name before the `=`"),
        name => Ok((name, path)),
    }
}

/// `NAME=FOLDER`, an adapter of the first model, or `NAME@MODEL=FOLDER`.
fn adapter(text: &str, models: &[(String, Parts)]) -> Result<(String, Parts)> {
    let Some((names, folder)) = text.split_once('=').filter(|(names, _)| !names.is_empty()) else {
        bail!("--lora {text}: must be NAME=FOLDER or NAME@MODEL=FOLDER");
    };
    let (name, base) = match names.split_once('@') {
        Some((name, base)) => (name, models.iter().find(|(other, _)| other == base)),
        None => (names, models.first()),
    };
    let Some((_, Parts::Decoder { path, lora: None })) = base else {
        bail!("--lora {text}: there is no such model to add it to");
    };
    let folder = PathBuf::from(folder);
    Adapter::load(&folder).context("cannot open the adapter")?;
    Ok((name.to_owned(), Parts::Decoder { path: path.clone(), lora: Some(folder) }))
}

/// `ALIAS=NAME` each.
fn aliases(texts: &[String], models: &[(String, Parts)]) -> Result<Vec<(String, String)>> {
    let mut aliases: Vec<(String, String)> = Vec::new();
    for text in texts {
        let Some((alias, name)) = text.split_once('=').filter(|(alias, _)| !alias.is_empty()) else {
            bail!("--alias {text}: must be ALIAS=NAME");
        };
        let is_model = |name: &str| models.iter().any(|(model, _)| model == name);
        if !is_model(name) {
            bail!("--alias {text}: there is no model `{name}`");
        }
        if is_model(alias) || aliases.iter().any(|(other, _)| other == alias) {
            bail!("--alias {text}: `{alias}` is another model's name already");
        }
        aliases.push((alias.to_owned(), name.to_owned()));
    }
    Ok(aliases)
}

/// What a model will take, and how much it then does.
struct Plan {
    bytes: u64,
    context: usize,
    n_pages: usize,
}

fn plan(parts: &Parts, config: &serve::Config, budget: u64, kind: Kind) -> Result<Plan> {
    match parts {
        Parts::Encoder(path) => {
            let shape = weights::bert::config(path).context("cannot open the encoder")?;
            let bytes = Inference::of_encoder(&shape, infer::embedder::ROWS_TOGETHER).total_bytes();
            let sentence = weights::sentence::read(path, shape.n_embd)?.unwrap_or_default();
            let context = sentence.max_tokens.unwrap_or(shape.context).min(shape.context);
            Ok(Plan { bytes, context, n_pages: 0 })
        }
        Parts::Decoder { path, lora } => {
            let job = Measure { path, has_lora: lora.is_some(), config, budget };
            model::backend::dispatch(kind, job)?
        }
    }
}

struct Measure<'a> {
    path: &'a Path,
    has_lora: bool,
    config: &'a serve::Config,
    budget: u64,
}

impl Job for Measure<'_> {
    type Output = Result<Plan>;

    fn run<B: FusedOps>(self, _: B::Device) -> Result<Plan> {
        let opened = weights::open(self.path).context("cannot open the model")?;
        let (shape, kind) = (opened.config(), self.config.cache.kind());
        let context = self.config.context.map_or(MAX_CONTEXT, |n| n as usize).min(shape.context);
        let draft = self.draft::<B>()?;
        let page_bytes = Pool::<B>::page_bytes(shape, kind) + draft.page_bytes;
        let n_running = usize::from(self.config.parallel);
        let n_models = self.config.models.len() + self.config.lora.len();
        let memory = self.config.cache_memory.map_or_else(
            || (self.budget.min(free_memory()) / 4) as usize / n_models,
            |mib| mib.saturating_mul(1 << 20),
        );
        // More than all sequences at their longest would never be used but for beginnings.
        let n_pages = (memory / page_bytes).min(2 * n_running * context.div_ceil(PAGE));
        if n_pages < 2 {
            bail!(
                "{} MiB hold not even two pages of {} KiB: raise --cache-memory",
                memory >> 20,
                page_bytes >> 10
            );
        }
        let context = context.min(n_pages * PAGE);
        // Sums with adapters are not packed.
        let weights = opened.weights_bytes(B::PACKS && !self.has_lora) + draft.weights_bytes;
        let rows = infer::engine::Limits::default().n_rows;
        let mut plan = Inference::new(shape, weights, kind, 1, rows);
        if B::HAS_SCORES {
            plan = plan.with_scores(shape, 1, context);
        }
        plan.cache_bytes = (n_pages as u64).saturating_mul(page_bytes as u64);
        let logits = 8 * (n_running * shape.vocab_size) as u64;
        Ok(Plan { bytes: plan.total_bytes().saturating_add(logits), context, n_pages })
    }
}

/// What a model that guesses for another takes.
#[derive(Default)]
struct Draft {
    weights_bytes: u64,
    /// Of a page.
    page_bytes: usize,
}

impl Measure<'_> {
    fn draft<B: FusedOps>(&self) -> Result<Draft> {
        let Some(guess) = self.config.guess() else { return Ok(Draft::default()) };
        let Some(path) = guessing::checked(&guess, &loading::tokenizer(self.path)?)? else {
            return Ok(Draft::default());
        };
        let opened = weights::open(&path).context("cannot open the model that guesses")?;
        let page_bytes = Pool::<B>::page_bytes(opened.config(), self.config.cache.kind());
        Ok(Draft { weights_bytes: opened.weights_bytes(B::PACKS), page_bytes })
    }
}

/// Bytes that programs can still take.
fn free_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    system.available_memory()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_model_is_named_by_its_flag_or_by_its_file_folder_or_run() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        for folder in ["hf", "runs/quick/model"] {
            fs::create_dir_all(dir.path().join(folder)).expect("made");
            fs::write(dir.path().join(folder).join("config.json"), "{}").expect("written");
        }
        fs::write(dir.path().join("a.Q8_0.gguf"), "").expect("written");
        let name = |of: &str, path: &str| {
            let model = format!("{of}{}", dir.path().join(path).display());
            named(&model).map(|(name, _)| name).map_err(|error| error.to_string())
        };
        for (path, expected) in
            [("hf", "hf"), ("runs/quick", "quick"), ("runs/quick/", "quick"), ("a.Q8_0.gguf", "a.Q8_0")]
        {
            assert_eq!(name("", path).as_deref(), Ok(expected));
        }
        assert_eq!(name("x=", "runs/quick").as_deref(), Ok("x"));
        assert!(name("=", "hf").is_err());
    }
}
