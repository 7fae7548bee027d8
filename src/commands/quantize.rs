//! `flint quantize`: a model in fewer bits, and a report of what that costs.
//!
//! Tensors go from the source's files to the new one some rows at a time, so no model is in memory while that is done.
//! Only what --text asks for loads both.

mod budget;
mod calibrate;
mod measure;
mod report;

use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};

use anyhow::{Context, Result, bail};
use model::backend::Job;
use model::weights::gguf::stream::{Contents, Slab};
use model::weights::{self, Opened};
use model::{Config, FusedOps};
use quant::recipe::{self, Choice};
use quant::{Format, Importance, Lost, Recipe};
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
        loading::check_is_new(&args.out)?;
        // Beside the place where it will be, so that one rename puts it there; and now, before any work could be lost.
        let parent = args.out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let scratch = tempfile::Builder::new().prefix(".quantize-").tempdir_in(parent);
        let scratch = scratch.with_context(|| format!("cannot write to {}", parent.display()))?;
        let path = loading::model_path(&args.model)?;
        let opened = weights::open(&path).context("cannot open the model")?;
        let contents = opened.contents::<B>(&device).context("cannot open the model")?;
        check_names(&args, &contents)?;
        let source = Source::read(&path, common)?;
        say_if_rounded(&opened, common);
        let text = args.text.as_deref().map(|text| measure::Text::read(text, &args, &source, &opened));
        let text = text.transpose()?;
        let importance = importance::<B>(&args, &source, &opened, &contents, &device, common)?;
        let importance = match &importance {
            Some(importance) => calibrate::of_tensors(importance, &contents, common)?,
            None => vec![None; contents.tensors().len()],
        };
        let choices = choose(&args, &contents, opened.config(), &importance, common)?;
        let formats: Vec<Format> = choices.iter().map(|choice| choice.format).collect();
        let mut report = Report::new(&args, &contents, &choices, &importance);
        report.measured = text.as_ref().map(measure::Text::pending);
        let beside = source.pairs()?;
        let pairs = |report: &Report| {
            contents.pairs(file_type(&args, &formats), &[&beside[..], &report.pairs()].concat())
        };

        let file = scratch.path().join("model.gguf");
        let pending = pairs(&report);
        let n_elements = contents.tensors().iter().map(|tensor| tensor.n_elements() as u64).sum();
        let bar = Bar::new("quantizing", Unit::Items, Some(n_elements), common.quiet);
        let (mut lost, mut done) = (vec![Lost::default(); formats.len()], 0);
        contents.write(&file, &pending, &formats, |slab| {
            let idx = slab.tensor_idx;
            let columns = Columns::new(&contents.tensors()[idx].shape, importance[idx].as_deref());
            let (bytes, lost_here) = quantize(slab, formats[idx], columns);
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

/// Whether every --tensor means one.
fn check_names(args: &args::Quantize, contents: &Contents<'_>) -> Result<()> {
    for (part, _) in &args.tensor {
        let fits = |name: &str, shape: &[usize]| name.contains(part) && recipe::is_quantized(name, shape);
        if !contents.tensors().iter().any(|tensor| fits(&tensor.name, &tensor.shape)) {
            bail!("--tensor {part}=…: no matrix of the model has `{part}` in its name");
        }
    }
    Ok(())
}

/// Says that errors add up, where the source has been quantized before.
fn say_if_rounded(opened: &Opened, common: Common) {
    let archive = opened.archive();
    let is_rounded = |name: &&str| archive.get(name).is_some_and(|stored| stored.format.block_len() > 1);
    if let Some(name) = archive.names().find(is_rounded) {
        let format = archive.get(name).map_or(Format::F32, |stored| stored.format);
        common.note(&format!(
            "the source is quantized already ({name} is {format}): what was lost then is not in the report"
        ));
    }
}

/// What is known of columns: read, or found out and saved.
fn importance<B: FusedOps>(
    args: &args::Quantize,
    source: &Source<'_>,
    opened: &Opened,
    contents: &Contents<'_>,
    device: &B::Device,
    common: Common,
) -> Result<Option<Importance>> {
    if let Some(path) = &args.imatrix {
        return calibrate::read(path).map(Some);
    }
    let Some(path) = &args.calibrate else { return Ok(None) };
    let file = calibrate::file_of(args);
    if file.exists() {
        bail!("{} is already there: use it by --imatrix, or remove it", file.display());
    }
    let text = measure::Text::read(path, args, source, opened)?;
    let importance = calibrate::run::<B>(&text, opened, contents, device, common)?;
    model::files::write_atomic(&file, |f| importance.write(f).map_err(io::Error::other))
        .with_context(|| format!("cannot write {}", file.display()))?;
    common.note(&format!("statistics saved: --imatrix {} uses them again", file.display()));
    Ok(Some(importance))
}

/// llama.cpp's number of what the file is mostly.
fn file_type(args: &args::Quantize, formats: &[Format]) -> u32 {
    let most = || {
        let count = |format: &&Format| formats.iter().filter(|other| other == format).count();
        Format::ALL.iter().filter(|format| format.block_len() > 1).max_by_key(count)
    };
    match args.format {
        Some(recipe) => recipe.file_type(),
        None => most().map_or(0, |&format| Recipe::file_type_of(format)),
    }
}

/// What every tensor gets.
fn choose(
    args: &args::Quantize,
    contents: &Contents<'_>,
    config: &Config,
    importance: &[Option<Vec<f32>>],
    common: Common,
) -> Result<Vec<Choice>> {
    let recipe = match (args.format, args.target_bpw) {
        (Some(recipe), _) => recipe,
        (None, Some(bits)) => return budget::choose(bits, args, contents, importance, common),
        (None, None) => bail!("--format or --target-bpw is wanted"),
    };
    let model = recipe::Model {
        n_layer: config.n_layer,
        n_head: config.n_head,
        n_kv_head: config.n_kv_head(),
        n_expert: config.experts.as_ref().map_or(0, |experts| experts.n),
        has_output: !config.tie_embeddings,
        has_importance: importance.iter().any(Option::is_some),
    };
    let choose = |name: &str, shape: &[usize]| match args.pure {
        true => recipe.choose_pure(name, shape, &args.tensor),
        false => recipe.choose(name, shape, &model, &args.tensor),
    };
    Ok(contents.tensors().iter().map(|tensor| choose(&tensor.name, &tensor.shape)).collect())
}

/// Elements that one thread quantizes at a time, unless a row has more.
const PIECE: usize = 1 << 15;

/// The columns of a tensor, and how important each is where that is known.
#[derive(Clone, Copy)]
struct Columns<'a> {
    width: usize,
    /// Rows of each of the tensor's matrices.
    n_rows: usize,
    importance: Option<&'a [f32]>,
}

impl<'a> Columns<'a> {
    fn new(shape: &[usize], importance: Option<&'a [f32]>) -> Self {
        let n_rows = shape.len().checked_sub(2).map_or(1, |idx| shape[idx].max(1));
        Self { width: shape.last().map_or(1, |&width| width.max(1)), n_rows, importance }
    }

    /// As rounding takes it for a row.
    fn of_row(&self, row: usize) -> Option<&'a [f32]> {
        self.importance.map(|all| &all[row / self.n_rows * self.width..][..self.width])
    }
}

/// The blocks of some rows, and what they lost. Neither depends on the number of threads.
fn quantize(slab: Slab<'_>, format: Format, columns: Columns<'_>) -> (Vec<u8>, Lost) {
    let width = columns.width;
    let n_rows = (PIECE / width).max(1);
    let piece = |(i, rows): (usize, &[f32])| {
        let (mut bytes, mut lost) = (Vec::new(), Lost::default());
        let first = slab.first / width + i * n_rows;
        for (row_idx, row) in rows.chunks_exact(width).enumerate() {
            let importance = columns.of_row(first + row_idx);
            lost = lost.and(Lost::by_quantizing(format, row, width, importance, &mut bytes));
        }
        (bytes, lost)
    };
    let pieces: Vec<(Vec<u8>, Lost)> =
        slab.values.par_chunks(n_rows * width).enumerate().map(piece).collect();
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
