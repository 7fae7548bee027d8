//! Finding a model and its tokenizer by what the user typed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use infer::Embedder;
use model::weights::lora::Adapter;
use model::weights::{Opened, Widened, gguf};
use model::{FusedOps, Transformer, weights};
use tokenizer::chat::ChatFormat;
use tokenizer::{Error, Split, Tokenizer};

use crate::args::LoraArgs;
use crate::commands::Common;

/// Where the model is: the path itself if it is a model folder or a GGUF file, the first part of one that is a part, or the
/// `model` folder of a run.
pub fn model_path(path: &Path) -> Result<PathBuf> {
    let inside = path.join("model");
    if let Some(first) = gguf::parts::first(path).filter(|first| first.is_file()) {
        return Ok(first);
    }
    if path.join("config.json").is_file() || path.is_file() {
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
    if let Some(file) = only_gguf(path) {
        return Ok(file);
    }
    bail!(
        "{} holds no model: a model folder has a `config.json` and a `model.safetensors`, or one GGUF file",
        path.display()
    )
}

/// Whether a model may be written here: never over something.
pub fn check_is_new(out: &Path) -> Result<()> {
    if out.exists() {
        bail!("{} is already there: remove it or choose another -o", out.display());
    }
    Ok(())
}

/// The GGUF file of a folder that has just one, or the first part of just one, besides statistics that `flint quantize`
/// saved beside it.
fn only_gguf(folder: &Path) -> Option<PathBuf> {
    let entries = folder.read_dir().ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_model = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".gguf") && !name.ends_with(".imatrix.gguf")
    };
    let mut files: Vec<PathBuf> = entries.filter(is_model).collect();
    files.sort();
    let first = files.first()?.clone();
    let parts = first.file_name().and_then(|name| gguf::parts::names(name.to_str()?));
    let is_part = |file: &PathBuf| parts.iter().flatten().any(|part| file.ends_with(part));
    (files.len() == 1 || files.iter().all(is_part)).then_some(first)
}

/// Reads the weights for inference.
pub fn model<B: FusedOps>(path: &Path, device: &B::Device) -> Result<Transformer<B>> {
    weights::open(path).and_then(|opened| opened.load_packed(device)).context("cannot open the model")
}

/// Says which weights take more memory than their file, where weights are packed.
pub fn say_if_widened(opened: &Opened, packs: bool, common: Common) {
    if let Some(Widened { n_tensors, format, file_bytes, bytes }) = opened.widened().filter(|_| packs) {
        let [bytes, file_bytes] = [bytes, file_bytes].map(|bytes| bytes >> 20);
        common.note(&format!(
            "{n_tensors} tensors in {format} are float32 in memory, {bytes} MiB for {file_bytes}: there are no kernels for it"
        ));
    }
}

/// Reads the weights for inference and adds adapters.
pub fn model_with<B: FusedOps>(
    path: &Path,
    lora: &LoraArgs,
    device: &B::Device,
    common: Common,
) -> Result<Transformer<B>> {
    let opened = weights::open(path).context("cannot open the model")?;
    if lora.lora.is_empty() {
        say_if_widened(&opened, B::PACKS, common);
        return opened.load_packed(device).context("cannot open the model");
    }
    let (packed, dense) = (opened.weights_bytes(B::PACKS), opened.weights_bytes(false));
    if dense > packed {
        let [packed, dense] = [packed, dense].map(|bytes| bytes >> 20);
        common.note(&format!(
            "adapters are added to weights in float32: {dense} MiB instead of {packed}; `flint convert --lora` writes the sum"
        ));
    }
    with_adapters(opened.load(device).context("cannot open the model")?, lora)
}

/// Adds adapters to a model.
pub fn with_adapters<B: FusedOps>(model: Transformer<B>, lora: &LoraArgs) -> Result<Transformer<B>> {
    let load = |(folder, factor): &(PathBuf, f64)| Ok((Adapter::load(folder)?, *factor));
    let adapters = lora.lora.iter().map(load).collect::<Result<Vec<_>, weights::Error>>();
    let adapters = adapters.context("cannot open the adapter")?;
    let borrowed: Vec<_> = adapters.iter().map(|(adapter, factor)| (adapter, *factor)).collect();
    weights::lora::merge(model, &borrowed).context("the adapter does not fit the model")
}

/// Reads an encoder with its tokenizer and what says how texts get their vectors. Says if nothing does.
pub fn embedder<B: FusedOps>(dir: &Path, device: &B::Device) -> Result<(Embedder<B>, bool)> {
    let encoder = weights::bert::load::<B>(dir, device).context("cannot open the encoder")?;
    let sentence = weights::sentence::read(dir, encoder.config().n_embd)?;
    let is_said = sentence.is_some();
    let embedder = Embedder::new(encoder, tokenizer(dir)?, sentence.unwrap_or_default())?;
    Ok((embedder, is_said))
}

/// How conversations are laid out for a model: by its chat template, without one by Flint's own layout if
/// the tokenizer has its special tokens.
pub fn chat_format(path: &Path, tokenizer: &Tokenizer) -> Result<ChatFormat> {
    let files = ["tokenizer_config.json", "chat_template.jinja"];
    if path.is_dir() && !files.iter().any(|name| path.join(name).exists()) {
        return ChatFormat::new(tokenizer).context(NO_CHAT);
    }
    match ChatFormat::load(path, tokenizer) {
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

/// Reads the tokenizer of a model, if it has one.
pub fn tokenizer_if_any(model: &Path) -> Result<Option<Tokenizer>> {
    if model.is_file() && !gguf::has_vocabulary(model)? {
        return Ok(None);
    }
    match Tokenizer::load(model) {
        Err(Error::InFolder { .. }) => Ok(None),
        loaded => loaded.map(Some).context("cannot open the tokenizer"),
    }
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_may_hold_the_parts_of_one_model() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let put = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, "").expect("written");
            path
        };
        let second = put("a-00002-of-00002.gguf");
        assert_eq!(model_path(&second).expect("itself"), second, "the first is not there");
        let first = put("a-00001-of-00002.gguf");
        put("a.imatrix.gguf");
        for path in [dir.path(), &first, &second] {
            assert_eq!(model_path(path).expect("a model"), first, "{path:?}");
        }
        put("b.gguf");
        let error = model_path(dir.path()).expect_err("two models").to_string();
        assert!(error.contains("one GGUF file"), "{error}");
        assert_eq!(model_path(&second).expect("a model"), first);
    }
}
