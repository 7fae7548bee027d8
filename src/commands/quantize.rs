//! `flint quantize`: a model in fewer bits, and a report of what that costs.
//!
//! Tensors go from the source's files to the new one some rows at a time, so no model is in memory while that is done.
//! Only what --text asks for loads both.

mod budget;
mod calibrate;
mod folder;
mod measure;
mod report;

use std::path::Path;
use std::process::ExitCode;
use std::{fs, io};

use anyhow::{Context, Result, bail};
use model::backend::Job;
use model::weights::gguf::stream::{Contents, Slab};
use model::weights::names::Layout;
use model::weights::{self, Opened};
use model::{Config, FusedOps};
use quant::recipe::{self, Choice};
use quant::{Format, Importance, Lost, Recipe};
use rayon::prelude::*;
use tokenizer::gguf::Value;

use self::report::{Gets, Report};
use super::Common;
use crate::args::Wanted;
use crate::bar::{Bar, Unit};
use crate::scratch::Scratch;
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
        // Now, before any work could be lost.
        let scratch = Scratch::beside(&args.out, ".quantize-")?;
        let path = loading::model_path(&args.model)?;
        let opened = weights::open(&path).context("cannot open the model")?;
        let source = Source::read(&path, common)?;
        say_if_rounded(&opened, common);
        let text = args.text.as_deref().map(|text| measure::Text::read(text, &args, &source, &opened));
        let work = Work {
            args: &args,
            opened: &opened,
            source: &source,
            text: text.transpose()?,
            scratch: &scratch,
            common,
        };
        let report = match args.format {
            Some(Wanted::Folder(ints)) => folder::write::<B>(ints, &work, &device)?,
            _ => write_gguf::<B>(&work, &device)?,
        };
        match args.json {
            true => output::json(&report)?,
            false => report.lines().iter().try_for_each(|line| output::line(line))?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What is quantized, and how.
struct Work<'a> {
    args: &'a args::Quantize,
    opened: &'a Opened,
    source: &'a Source<'a>,
    text: Option<measure::Text<'a>>,
    scratch: &'a Scratch,
    common: Common,
}

/// Writes a GGUF.
fn write_gguf<B: FusedOps>(work: &Work<'_>, device: &B::Device) -> Result<Report> {
    let &Work { args, opened, source, ref text, scratch, common } = work;
    let contents = opened.contents::<B>(device).context("cannot open the model")?;
    check_names(args, &contents)?;
    let importance = match importance::<B>(work, contents.layout(), device)? {
        Some(importance) => calibrate::of_tensors(&importance, &contents, recipe::is_quantized, common)?,
        None => vec![None; contents.tensors().len()],
    };
    let choices = choose(args, &contents, opened.config(), &importance, common)?;
    let formats: Vec<Format> = choices.iter().map(|choice| choice.format).collect();
    let gets =
        contents.tensors().iter().zip(&choices).zip(&importance).map(|((tensor, choice), known)| Gets {
            format: choice.format.name().to_owned(),
            wanted: choice.wanted.name().to_owned(),
            bytes: choice.format.n_bytes(tensor.n_elements()).unwrap_or(0) as u64,
            is_weighed: choice.format.is_weighed(),
            has_importance: known.is_some(),
        });
    let mut report = Report::new(args, &contents, gets.collect());
    report.measured = text.as_ref().map(measure::Text::pending);
    let beside = source.pairs()?;
    let pairs =
        |report: &Report| contents.pairs(file_type(args, &formats), &[&beside[..], &report.pairs()].concat());

    let file = scratch.path().join("model.gguf");
    let pending = pairs(&report);
    let mut progress = Progress::new(&contents, common);
    contents.write(&file, &pending, &formats, |slab| {
        let idx = slab.tensor_idx;
        let columns = Columns::new(&contents.tensors()[idx].shape, importance[idx].as_deref());
        let (bytes, lost) = quantize(slab, columns, |row, importance, bytes: &mut Vec<u8>| {
            Lost::by_quantizing(formats[idx], row, row.len(), importance, bytes)
        });
        progress.add(slab, lost);
        bytes
    })?;
    report.set_lost(&progress.finish());
    if let Some(text) = text {
        report.measured = Some(text.measure::<B>(opened, &file, device, common)?);
    }
    put_into(&file, contents.tensors().len(), &pending, &pairs(&report))
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    scratch.publish(&file, &args.out)?;
    Ok(report)
}

/// What was lost so far, and a bar.
struct Progress {
    lost: Vec<Lost>,
    done: u64,
    bar: Bar,
}

impl Progress {
    fn new(contents: &Contents<'_>, common: Common) -> Self {
        let n_elements = contents.tensors().iter().map(|tensor| tensor.n_elements() as u64).sum();
        let bar = Bar::new("quantizing", Unit::Items, Some(n_elements), common.quiet);
        Self { lost: vec![Lost::default(); contents.tensors().len()], done: 0, bar }
    }

    fn add(&mut self, slab: Slab<'_>, lost: Lost) {
        self.lost[slab.tensor_idx] = self.lost[slab.tensor_idx].and(lost);
        self.done += slab.values.len() as u64;
        self.bar.set(self.done);
    }

    fn finish(self) -> Vec<Lost> {
        self.lost
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
    let is_rounded = |name: &&str| archive.get(name).is_some_and(|stored| stored.encoding.float().is_none());
    if let Some(name) = archive.names().find(is_rounded) {
        let format = archive.get(name).map_or(String::new(), |stored| stored.encoding.name());
        common.note(&format!(
            "the source is quantized already ({name} is {format}): what was lost then is not in the report"
        ));
    }
}

/// What is known of columns, by the names of tensors in this layout: read, or found out and saved.
fn importance<B: FusedOps>(
    work: &Work<'_>,
    layout: Layout,
    device: &B::Device,
) -> Result<Option<Importance>> {
    let &Work { args, opened, source, common, .. } = work;
    if let Some(path) = &args.imatrix {
        return calibrate::read(path).map(Some);
    }
    let Some(path) = &args.calibrate else { return Ok(None) };
    let file = calibrate::file_of(args);
    if file.exists() {
        bail!("{} is already there: use it by --imatrix, or remove it", file.display());
    }
    let text = measure::Text::read(path, args, source, opened)?;
    let importance = calibrate::run::<B>(&text, opened, layout, device, common)?;
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
    match args.recipe() {
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
    let recipe = match (args.recipe(), args.target_bpw) {
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

/// What some rows become, row by row, and what they lost. Neither depends on the number of threads.
fn quantize<T: Pieces>(
    slab: Slab<'_>,
    columns: Columns<'_>,
    row: impl Fn(&[f32], Option<&[f32]>, &mut T) -> Lost + Sync,
) -> (T, Lost) {
    let width = columns.width;
    let n_rows = (PIECE / width).max(1);
    let piece = |(i, rows): (usize, &[f32])| {
        let (mut bytes, mut lost) = (T::default(), Lost::default());
        let first = slab.first / width + i * n_rows;
        for (row_idx, values) in rows.chunks_exact(width).enumerate() {
            lost = lost.and(row(values, columns.of_row(first + row_idx), &mut bytes));
        }
        (bytes, lost)
    };
    let pieces: Vec<(T, Lost)> = slab.values.par_chunks(n_rows * width).enumerate().map(piece).collect();
    let lost = pieces.iter().fold(Lost::default(), |sum, (_, lost)| sum.and(*lost));
    (T::joined(pieces.into_iter().map(|(bytes, _)| bytes)), lost)
}

/// Bytes that are made piece by piece.
trait Pieces: Default + Send {
    fn joined(pieces: impl Iterator<Item = Self>) -> Self;
}

impl Pieces for Vec<u8> {
    fn joined(pieces: impl Iterator<Item = Self>) -> Self {
        pieces.collect::<Vec<_>>().concat()
    }
}

/// Of numbers and of scales.
impl Pieces for (Vec<u8>, Vec<u8>) {
    fn joined(pieces: impl Iterator<Item = Self>) -> Self {
        let (numbers, scales): (Vec<_>, Vec<_>) = pieces.unzip();
        (numbers.concat(), scales.concat())
    }
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
