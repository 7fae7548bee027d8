//! `flint quantize`: a model in fewer bits, and a report of what that costs.
//!
//! Tensors go from the source's files to the new one some rows at a time, so no model is in memory while that is done.
//! Only what --text asks for loads both.

mod measure;
mod report;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use model::backend::Job;
use model::weights;
use model::weights::gguf::stream::{Contents, Slab};
use model::{Config, FusedOps};
use quant::recipe::{self, Choice};
use quant::{Format, Lost};
use rayon::prelude::*;
use tokenizer::gguf::Value;

use self::report::Report;
use super::Common;
use crate::bar::{Bar, Unit};
use crate::source::Source;
use crate::{args, loading, output};

pub fn run(args: args::Quantize, common: Common) -> Result<ExitCode> {
    common.on_backend(Run { args, common })
}

struct Run {
    args: args::Quantize,
    common: Common,
}

impl Job for Run {
    type Output = Result<ExitCode>;

    fn run<B: FusedOps>(self, device: B::Device) -> Result<ExitCode> {
        let Self { args, common } = self;
        if args.out.exists() {
            bail!("{} is already there: remove it or choose another -o", args.out.display());
        }
        let path = loading::model_path(&args.model)?;
        let opened = weights::open(&path).context("cannot open the model")?;
        let contents = opened.contents::<B>(&device).context("cannot open the model")?;
        let source = Source::read(&path, common)?;
        let text = args.text.as_deref().map(|text| measure::Text::read(text, &args, &source, &opened));
        let text = text.transpose()?;
        let choices = choose(&args, &contents, opened.config())?;
        let formats: Vec<Format> = choices.iter().map(|choice| choice.format).collect();
        let mut report = Report::new(&args, &contents, &choices);
        report.measured = text.as_ref().map(measure::Text::pending);
        let beside = source.pairs()?;
        let pairs = |report: &Report| {
            contents.pairs(args.format.file_type(), &[&beside[..], &report.pairs()].concat())
        };

        // Beside the place where it will be, so that one rename puts it there.
        let parent = args.out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let scratch = tempfile::Builder::new().prefix(".quantize-").tempdir_in(parent);
        let scratch = scratch.with_context(|| format!("cannot write to {}", parent.display()))?;
        let file = scratch.path().join("model.gguf");
        let pending = pairs(&report);
        let n_elements = contents.tensors().iter().map(|tensor| tensor.n_elements() as u64).sum();
        let bar = Bar::new("quantizing", Unit::Items, Some(n_elements), common.quiet);
        let (mut lost, mut done) = (vec![Lost::default(); formats.len()], 0);
        contents.write(&file, &pending, &formats, |slab| {
            let idx = slab.tensor_idx;
            let width = contents.tensors()[idx].shape.last().copied().unwrap_or(1);
            let (bytes, lost_here) = quantize(slab, formats[idx], width);
            lost[idx] = lost[idx].and(lost_here);
            done += slab.values.len() as u64;
            bar.set(done);
            bytes
        })?;
        drop(bar);
        report.set_lost(&lost);
        if let Some(text) = &text {
            report.measured = Some(text.measure::<B>(&opened, &file, &device, common)?);
        }
        put_into(&file, contents.tensors().len(), &pending, &pairs(&report))
            .with_context(|| format!("cannot write {}", args.out.display()))?;
        fs::rename(&file, &args.out)
            .and_then(|()| model::files::sync_dir(parent))
            .with_context(|| format!("cannot write {}", args.out.display()))?;
        match args.json {
            true => output::json(&report)?,
            false => report.lines().iter().try_for_each(|line| output::line(line))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What every tensor gets.
fn choose(args: &args::Quantize, contents: &Contents<'_>, config: &Config) -> Result<Vec<Choice>> {
    let tensors = contents.tensors();
    for (part, _) in &args.tensor {
        let fits = |name: &str, shape: &[usize]| name.contains(part) && recipe::is_quantized(name, shape);
        if !tensors.iter().any(|tensor| fits(&tensor.name, &tensor.shape)) {
            bail!("--tensor {part}=…: no matrix of the model has `{part}` in its name");
        }
    }
    let model = recipe::Model {
        n_layer: config.n_layer,
        n_head: config.n_head,
        n_kv_head: config.n_kv_head(),
        n_expert: config.experts.as_ref().map_or(0, |experts| experts.n),
        has_output: !config.tie_embeddings,
        has_importance: false,
    };
    let choose = |name: &str, shape: &[usize]| match args.pure {
        true => args.format.choose_pure(name, shape, &args.tensor),
        false => args.format.choose(name, shape, &model, &args.tensor),
    };
    Ok(tensors.iter().map(|tensor| choose(&tensor.name, &tensor.shape)).collect())
}

/// Elements that one thread quantizes at a time, unless a row has more.
const PIECE: usize = 1 << 15;

/// The blocks of some rows, and what they lost. Neither depends on the number of threads.
fn quantize(slab: Slab<'_>, format: Format, width: usize) -> (Vec<u8>, Lost) {
    let width = width.max(1);
    let pieces: Vec<(Vec<u8>, Lost)> = slab
        .values
        .par_chunks((PIECE / width).max(1) * width)
        .map(|rows| {
            let mut bytes = Vec::new();
            let lost = Lost::by_quantizing(format, rows, width, None, &mut bytes);
            (bytes, lost)
        })
        .collect();
    let lost = pieces.iter().fold(Lost::default(), |sum, (_, lost)| sum.and(*lost));
    (pieces.into_iter().map(|(bytes, _)| bytes).collect::<Vec<_>>().concat(), lost)
}

/// Puts what was measured into the file's header.
fn put_into(
    file: &Path,
    n_tensors: usize,
    pending: &[(String, Value)],
    pairs: &[(String, Value)],
) -> Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(file)?;
    quant::replace_values(&mut file, n_tensors, pending, pairs)?;
    Ok(file.sync_all()?)
}
