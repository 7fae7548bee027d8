//! Finding a model and its tokenizer by what the user typed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use model::{FusedOps, Transformer, weights};
use tokenizer::Tokenizer;

/// The model folder: the path itself, or the `model` folder of a run.
pub fn model_dir(path: &Path) -> Result<PathBuf> {
    let inside = path.join("model");
    if path.join("config.json").is_file() {
        return Ok(path.to_owned());
    }
    if inside.join("config.json").is_file() {
        return Ok(inside);
    }
    if !path.exists() {
        bail!("there is no model at {}: train one with `flint train CONFIG`", path.display());
    }
    if path.join("run.ron").is_file() {
        bail!(
            "the run in {} has saved no model yet: wait for its first evaluation or its end",
            path.display()
        );
    }
    bail!("{} holds no model: a model folder has a `config.json` and a `model.safetensors`", path.display())
}

/// Reads the weights.
pub fn model<B: FusedOps>(dir: &Path, device: &B::Device) -> Result<Transformer<B>> {
    weights::load(dir, device).context("cannot open the model")
}

/// Reads the tokenizer: a file of any format, or what a model or run folder has.
pub fn tokenizer(path: &Path) -> Result<Tokenizer> {
    let in_run = path.join("model");
    let is_run = !path.join("tokenizer.json").is_file() && in_run.join("tokenizer.json").is_file();
    Tokenizer::load(if is_run { &in_run } else { path }).context("cannot open the tokenizer")
}
