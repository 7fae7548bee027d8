//! Finding a model and its tokenizer by what the user typed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use model::{FusedOps, Transformer, weights};
use tokenizer::chat::ChatFormat;
use tokenizer::{Error, Split, Tokenizer};

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

/// How conversations are laid out for a model: by the chat template of its folder, without one by Flint's own layout if
/// the tokenizer has its special tokens.
pub fn chat_format(dir: &Path, tokenizer: &Tokenizer) -> Result<ChatFormat> {
    if !dir.join("tokenizer_config.json").exists() && !dir.join("chat_template.jinja").exists() {
        return ChatFormat::new(tokenizer).context(NO_CHAT);
    }
    match ChatFormat::load(dir, tokenizer) {
        Err(Error::InFile { problem, .. }) if matches!(*problem, Error::NoTemplate) => {
            ChatFormat::new(tokenizer).context(NO_CHAT)
        }
        format => format.context("cannot use the model's chat template"),
    }
}

const NO_CHAT: &str = "this model was not trained to chat; try `flint generate` without `--chat`";

/// Reads the tokenizer: a file of any format, or what a model or run folder has.
pub fn tokenizer(path: &Path) -> Result<Tokenizer> {
    Tokenizer::load(tokenizer_path(path)).context("cannot open the tokenizer")
}

/// Reads tokenizers, those that are tiktoken ranks of no published encoding with `split`, which is for them alone.
pub fn tokenizers(paths: &[PathBuf], split: Option<Split>) -> Result<Vec<Tokenizer>> {
    let mut is_used = false;
    let load = |path: &PathBuf| {
        let path = tokenizer_path(path);
        let loaded = match (Tokenizer::load(&path), split) {
            (Err(error), Some(split)) if lacks_split(&error) => {
                is_used = true;
                Tokenizer::load_tiktoken(path, split)
            }
            (loaded, _) => loaded,
        };
        loaded.context("cannot open the tokenizer")
    };
    let tokenizers = paths.iter().map(load).collect::<Result<_>>()?;
    if split.is_some() && !is_used {
        let shown = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        bail!("--split has no meaning for {shown}: it is for tiktoken ranks of no published encoding");
    }
    Ok(tokenizers)
}

fn lacks_split(error: &Error) -> bool {
    matches!(error, Error::InFile { problem, .. } if matches!(**problem, Error::UnknownSplit { .. }))
}

fn tokenizer_path(path: &Path) -> PathBuf {
    let in_run = path.join("model");
    let is_run = !path.join("tokenizer.json").is_file() && in_run.join("tokenizer.json").is_file();
    if is_run { in_run } else { path.to_owned() }
}
