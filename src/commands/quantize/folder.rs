//! Writing a folder whose matrices are whole numbers with scales.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;

use anyhow::{Context, Result, bail};
use model::FusedOps;
use model::weights::Opened;
use model::weights::archive::Encoding;
use model::weights::compressed::write::{Folder, is_quantized};
use model::weights::family::Family;
use model::weights::gguf::stream::{Contents, Tensor};
use model::weights::names::Layout;
use quant::{Format, Lost, Symmetric};

use super::report::{Gets, Report};
use super::{Columns, Progress, Work, calibrate, importance, measure, quantize};

/// The report's file in the folder.
const REPORT: &str = "flint_quantize.json";

/// Writes the folder.
pub fn write<B: FusedOps>(ints: Symmetric, work: &Work<'_>, device: &B::Device) -> Result<Report> {
    let &Work { args, opened, source, ref text, scratch, common } = work;
    let name = ints.name().to_lowercase();
    if !args.tensor.is_empty() || args.pure {
        bail!("--tensor and --pure are for GGUF files: {name} is one format for all linear layers");
    }
    let contents = opened.folder_contents::<B>(device).context("cannot open the model")?;
    if contents.layout() == Layout::HuggingFace(Family::Gpt2) {
        bail!(
            "GPT-2's layers are no linear layers to transformers, so {name} has no form for them: choose a GGUF format, such as q8_0"
        );
    }
    let encodings: Vec<Encoding> =
        contents.tensors().iter().map(|tensor| encoding(tensor, ints, opened)).collect();
    if !encodings.iter().any(|encoding| matches!(encoding, Encoding::Ints { .. })) {
        bail!("no rows of this model are a whole number of 32: choose a GGUF format, such as f16");
    }
    let importance = columns::<B>(work, &contents, device)?;
    let plan = Folder::new(&contents, &encodings);
    let gets = contents.tensors().iter().zip(&encodings).enumerate().map(|(idx, (tensor, encoding))| Gets {
        format: encoding.name(),
        wanted: if is_quantized(&tensor.name, &tensor.shape) { ints.name() } else { encoding.name() },
        bytes: plan.bytes_of(idx),
        is_weighed: matches!(encoding, Encoding::Ints { ints, .. } if ints.is_weighed()),
        has_importance: importance[idx].is_some(),
    });
    let mut report = Report::new(args, &contents, gets.collect());
    report.measured = text.as_ref().map(measure::Text::pending);

    let folder = scratch.path().join("model");
    model::files::create_dir(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
    source.copy_to(&folder, opened.config().context)?;
    opened.write_config(&plan, &folder)?;
    let mut progress = Progress::new(&contents, common);
    plan.write_weights(&folder, &report.metadata(), |slab| {
        let idx = slab.tensor_idx;
        let columns = Columns::new(&contents.tensors()[idx].shape, importance[idx].as_deref());
        let (bytes, lost) =
            quantize(slab, columns, |row, importance, to: &mut (Vec<u8>, Vec<u8>)| match encodings[idx] {
                Encoding::Ints { ints, .. } => ints.quantize(row, importance, (&mut to.0, &mut to.1)),
                Encoding::Blocks(format) => Lost::by_quantizing(format, row, row.len(), None, &mut to.0),
            });
        progress.add(slab, lost);
        bytes
    })?;
    report.set_lost(&progress.finish());
    if let Some(text) = text {
        report.measured = Some(text.measure::<B>(opened, &folder, device, common)?);
    }
    plan.replace_metadata(&folder, &report.metadata())?;
    let json = serde_json::to_string_pretty(&report)?;
    model::files::write_atomic(&folder.join(REPORT), |f| f.write_all(json.as_bytes()))
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    // Copied files last, too, before the folder has its name.
    for entry in fs::read_dir(&folder)? {
        fs::File::open(entry?.path())?.sync_all()?;
    }
    scratch.publish(&folder, &args.out)?;
    Ok(report)
}

/// What a tensor becomes: whole numbers where its rows are a whole number of groups, or of smaller ones; else what it was, if
/// that are floats.
fn encoding(tensor: &Tensor, ints: Symmetric, opened: &Opened) -> Encoding {
    let width = tensor.shape.last().copied().unwrap_or(0);
    let fitting = ints.fitting(width).filter(|_| is_quantized(&tensor.name, &tensor.shape));
    match fitting {
        Some(ints) => Encoding::Ints { ints, scales: Format::F16 },
        None => Encoding::Blocks(float(tensor, opened)),
    }
}

/// What the source has for most of its tensors of as many dimensions; half precision where that is blocks.
fn float(tensor: &Tensor, opened: &Opened) -> Format {
    let alike = opened.archive().tensors().filter(|stored| stored.shape.len() == tensor.shape.len());
    let mut counts = BTreeMap::new();
    for stored in alike {
        *counts.entry(stored.encoding.float().map(Format::number)).or_insert(0) += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, n)| *n).and_then(|(number, _)| number);
    most.and_then(Format::from_number).unwrap_or(Format::F16)
}

/// The importance of the columns of each tensor, where that is asked for.
fn columns<B: FusedOps>(
    work: &Work<'_>,
    contents: &Contents<'_>,
    device: &B::Device,
) -> Result<Vec<Option<Vec<f32>>>> {
    if work.args.imatrix.is_none() && work.args.calibrate.is_none() {
        return Ok(vec![None; contents.tensors().len()]);
    }
    let layout = work.opened.gguf_layout().context(
        "columns are calibrated under the names of a GGUF, which has none for this model: leave out --calibrate and --imatrix",
    )?;
    match importance::<B>(work, layout, device)? {
        Some(importance) => calibrate::of_tensors(&importance, contents, is_quantized, work.common),
        None => Ok(vec![None; contents.tensors().len()]),
    }
}
