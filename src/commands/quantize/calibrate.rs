//! Where the importance of columns comes from: a file, or a model's run over a text.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use burn::tensor::TensorData;
use model::FusedOps;
use model::tap::Taps;
use model::weights::Opened;
use model::weights::gguf::stream::{Contents, InGguf, Tensor};
use model::weights::names::Layout;
use quant::Importance;

use super::measure::Text;
use crate::args;
use crate::bar::{Bar, Unit};
use crate::commands::Common;

/// Bytes of an imatrix at most: those of the largest models have some hundred megabytes.
const MAX_BYTES: u64 = 4 << 30;

/// Tokens that go through the model together, about.
const TOGETHER: usize = 2048;

/// Reads a file of either of llama.cpp's formats.
pub fn read(path: &Path) -> Result<Importance> {
    let io = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(io)?;
    let meta = file.metadata().with_context(io)?;
    if !meta.is_file() || meta.len() > MAX_BYTES {
        bail!("{} is no imatrix: {} bytes, or no regular file", path.display(), meta.len());
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).with_context(io)?;
    Importance::parse(&bytes).with_context(|| path.display().to_string())
}

/// Where the statistics of a calibration are saved: beside the result.
pub fn file_of(args: &args::Quantize) -> PathBuf {
    args.out.with_extension("imatrix.gguf")
}

/// Runs the model over the windows of a text; what is left at the end is dropped.
pub fn run<B: FusedOps>(
    text: &Text<'_>,
    opened: &Opened,
    layout: Layout,
    device: &B::Device,
    common: Common,
) -> Result<Importance> {
    let mut model = opened.load_packed::<B>(device).context("cannot open the model")?;
    let taps = Taps::listen(&mut model);
    let context = text.context();
    let windows = text.windows(opened.config().vocab_size)?;
    let bar = Bar::new("calibrating", Unit::Items, Some(windows.len() as u64), common.quiet);
    let n_together = (TOGETHER / context).max(1);
    for (i, batch) in windows.chunks(n_together).enumerate() {
        let ids = TensorData::new(batch.concat(), [batch.len(), context]);
        model.hidden(burn::Tensor::from_data(ids, device));
        bar.set((i * n_together + batch.len()) as u64);
    }
    drop(bar);
    let mut importance = taps.importance(opened.config(), layout);
    importance.check().context("the model computes no numbers on this text")?;
    importance.texts.push(text.path().display().to_string());
    importance.n_chunks = windows.len() as u32;
    importance.chunk_len = context as u32;
    Ok(importance)
}

/// The importance of every tensor's columns, of each of its matrices; nothing for what `is_quantized` leaves out. Says
/// which matrices have none.
pub fn of_tensors(
    importance: &Importance,
    contents: &Contents<'_>,
    is_quantized: fn(&str, &[usize]) -> bool,
    common: Common,
) -> Result<Vec<Option<Vec<f32>>>> {
    let mut lacking = Vec::new();
    let mut found = Vec::new();
    for tensor in contents.tensors() {
        let is_quantized = is_quantized(&tensor.name, &tensor.shape);
        let columns = if is_quantized { of_tensor(importance, tensor)? } else { None };
        if columns.is_none() && is_quantized {
            lacking.push(tensor.name.as_str());
        }
        found.push(columns);
    }
    if found.iter().all(Option::is_none) {
        bail!("the imatrix has statistics of no matrix of this model: it is another model's");
    }
    if let [first, others @ ..] = &lacking[..] {
        let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
        common.note(&format!("without statistics, so not weighed: {first}{more}"));
    }
    Ok(found)
}

/// Those of a tensor, which in a GGUF may be one of several matrices.
fn of_tensor(importance: &Importance, tensor: &Tensor) -> Result<Option<Vec<f32>>> {
    let Some(InGguf { name, matrix_idx, n_matrices }) = &tensor.in_gguf else { return Ok(None) };
    let width = tensor.shape.last().copied().unwrap_or(0);
    let of_all = importance.of(name, *n_matrices, width)?;
    Ok(of_all.map(|all| match tensor.shape.len() {
        // A tensor of them all.
        3 => all,
        _ => all[matrix_idx * width..][..width].to_vec(),
    }))
}
