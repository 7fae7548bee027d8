//! `flint convert`: a model in another format, and proof that it is still the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use burn::tensor::{Tensor, TensorData};
use model::backend::Job;
use model::weights::{self, Opened, gguf};
use model::{Config, FusedOps, Transformer};
use quant::Format;
use serde_json::json;
use tokenizer::Tokenizer;
use tokenizer::gguf::Value;

use super::Common;
use crate::args::{self, FileFormat};
use crate::scratch::Scratch;
use crate::source::Source;
use crate::{loading, output};

/// What both models are asked: long enough that every part of a block takes part, short enough to cost nothing.
const PROMPT: &str = "The capital of France is Paris. 1 + 2 = 3. fn main() { println!(\"Grüße, 世界\"); }";

/// Where the outcome of the check is put, in the metadata of either format.
const KEY: &str = "flint.self_check.max_logit_difference";

/// Stands in the file until the check is done, which reads the file; as many bytes as what replaces it.
const PENDING: &str = "pending-pending-pending!";

pub fn run(args: args::Convert, common: Common) -> Result<ExitCode> {
    common.on_backend(Run { args, common })
}

struct Run {
    args: args::Convert,
    common: Common,
}

impl Job for Run {
    type Output = Result<ExitCode>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<ExitCode> {
        let Self { args, common } = self;
        loading::check_is_new(&args.out)?;
        let path = loading::model_path(&args.model)?;
        let opened = weights::open(&path).context("cannot open the model")?;
        let format = args.dtype.unwrap_or_else(|| format_of(&opened));
        if args.to == FileFormat::Safetensors && format.block_len() > 1 {
            bail!("{format} is not written to {}: choose f32, f16 or bf16", args.to.name());
        }
        let source = Source::read(&path, common)?;
        let ids = ids(source.tokenizer.as_ref(), opened.config());
        let model: Transformer<B> = opened.load(&device).context("cannot open the model")?;
        let model = loading::with_adapters(model, &args.lora)?;
        let before = logits(&model, &ids);
        let scratch = Scratch::beside(&args.out, ".convert-")?;
        let (written, weights_file) = match args.to {
            FileFormat::Safetensors => write_folder(&source, &model, format, scratch.path())?,
            FileFormat::Gguf => write_gguf(&source, &model, format, scratch.path())?,
        };
        drop(model);
        let after: Transformer<B> = weights::load(&written, &device)
            .with_context(|| format!("what {} was converted to does not open", path.display()))?;
        let difference = largest_difference(&before, &logits(&after, &ids));
        if !difference.is_finite() {
            bail!(
                "the converted model gives logits that are not finite, so nothing was written: {format} cannot hold \
                 its numbers, choose another --dtype such as f32 or bf16"
            );
        }
        put_into(&weights_file, &format!("{difference:e}"))?;
        scratch.publish(&written, &args.out)?;
        let scale = before.iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
        if args.json {
            output::json(&json!({
                "out": args.out,
                "format": format.name(),
                "max_logit_difference": difference,
                "max_logit": scale,
                "checked_tokens": ids.len(),
            }))?;
        } else {
            output::line(&format!(
                "wrote {}: {format}, logits of {} tokens differ by at most {difference:.2e} (largest logit {scale:.1})",
                args.out.display(),
                ids.len(),
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The format of the source's matrices, where all have the same; F32 for blocks and mixtures.
fn format_of(opened: &Opened) -> Format {
    let archive = opened.archive();
    let matrices =
        archive.names().filter_map(|name| archive.get(name)).filter(|stored| stored.shape.len() > 1);
    let mut formats = matrices.map(|stored| stored.encoding.float());
    let first = formats.next().flatten().unwrap_or(Format::F32);
    if formats.all(|format| format == Some(first)) { first } else { Format::F32 }
}

/// What both models are asked.
fn ids(tokenizer: Option<&Tokenizer>, config: &Config) -> Vec<u32> {
    let ids = match tokenizer {
        Some(tokenizer) => tokenizer.encode(PROMPT),
        None => (0..64).map(|i| i * 7919 % config.vocab_size as u32).collect(),
    };
    ids.into_iter().filter(|&id| (id as usize) < config.vocab_size).take(config.context).collect()
}

/// The result and its file of weights.
fn write_folder<B: FusedOps>(
    source: &Source<'_>,
    model: &Transformer<B>,
    format: Format,
    scratch: &Path,
) -> Result<(PathBuf, PathBuf)> {
    let folder = scratch.join("model");
    model::files::create_dir(&folder)?;
    source.copy_to(&folder, model.config().context)?;
    let metadata = BTreeMap::from([(KEY.to_owned(), PENDING.to_owned())]);
    weights::save_as(model, format, &folder, &metadata)?;
    let file = folder.join("model.safetensors");
    Ok((folder, file))
}

fn write_gguf<B: FusedOps>(
    source: &Source<'_>,
    model: &Transformer<B>,
    format: Format,
    scratch: &Path,
) -> Result<(PathBuf, PathBuf)> {
    // Where it is looked for: before the vocabulary.
    let mut pairs = vec![(KEY.to_owned(), Value::String(PENDING.to_owned()))];
    pairs.extend(source.pairs()?);
    let file = scratch.join("model.gguf");
    gguf::save(model, format, &pairs, &file)?;
    Ok((file.clone(), file))
}

/// `[positions, vocabulary]`, row-major.
fn logits<B: FusedOps>(model: &Transformer<B>, ids: &[u32]) -> Vec<f32> {
    let ids = TensorData::new(ids.iter().map(|&id| id as i32).collect(), [1, ids.len()]);
    weights::values(&model.forward(Tensor::from_data(ids, &model.device())))
}

/// Not a number if either has one that is none.
fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |most, d| if d.is_nan() || most.is_nan() { f32::NAN } else { most.max(d) })
}

/// Replaces the pending outcome in a file's header, where it stands once.
fn put_into(file: &Path, outcome: &str) -> Result<()> {
    use std::io::{Read, Seek, SeekFrom, Write};
    let io = || format!("cannot write {}", file.display());
    let mut file = fs::OpenOptions::new().read(true).write(true).open(file).with_context(io)?;
    let mut head = Vec::new();
    Read::take(&mut file, 1 << 20).read_to_end(&mut head).with_context(io)?;
    let place = head.windows(PENDING.len()).position(|window| window == PENDING.as_bytes());
    let place = place.context("the new file lacks the place of the check's outcome")?;
    file.seek(SeekFrom::Start(place as u64)).with_context(io)?;
    file.write_all(format!("{outcome:<width$}", width = PENDING.len()).as_bytes()).with_context(io)?;
    file.sync_all().with_context(io)
}
