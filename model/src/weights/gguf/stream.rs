//! A model's tensors as a GGUF or a folder has them, read straight from its files, some rows at a time: no model is
//! loaded.
//!
//! A tensor here is rows of tensors there, mostly in the same order. Where the order differs (turned pairs of LLaMA,
//! columns of GPT-2), the tensor is read as a whole; those are never the largest of a model.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::Path;

use burn::module::{ModuleVisitor, Param};
use burn::prelude::*;
use quant::{Format, NewTensor};
use tokenizer::gguf::Value;

use super::config;
use crate::config::Config;
use crate::transformer::Transformer;
use crate::weights::archive::Archive;
use crate::weights::config_json;
use crate::weights::names::{self, Form, Layout, Piece};
use crate::weights::parameters::{Found, Names};
use crate::weights::{Error, Opened};

/// Elements that are handed on at once, unless a row has more: 16 MiB.
const SLAB: usize = 1 << 22;

/// What a GGUF of a model, or a folder, will consist of, but for the formats.
pub struct Contents<'a> {
    archive: &'a Archive,
    layout: Layout,
    /// Keys of the model.
    pairs: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

/// A tensor of the GGUF or the folder.
pub struct Tensor {
    /// Its name there.
    pub name: String,
    /// In the order of rows.
    pub shape: Vec<usize>,
    /// The tensor of a GGUF that has the same columns, and which of its matrices: by these names columns are calibrated.
    pub in_gguf: Option<InGguf>,
    /// One below the other.
    runs: Vec<Run>,
}

/// Where a GGUF has a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InGguf {
    /// The tensor's name there.
    pub name: String,
    /// Which of its matrices.
    pub matrix_idx: usize,
    /// Of how many.
    pub n_matrices: usize,
}

/// From where rows come.
enum Run {
    /// As they stand in a tensor of the files.
    Rows { name: String, elements: Range<usize> },
    /// Some of the rows of a parameter, which the files have in another order: these tensors one below the other, of which
    /// the elements are put into the form.
    Turned { from: Vec<Found>, elements: Range<usize>, shape: Vec<usize>, form: Form },
    /// Numbers that follow from the config.
    Given(Vec<f32>),
}

/// Some rows of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Slab<'a> {
    /// Which tensor.
    pub tensor_idx: usize,
    /// Elements of it before these.
    pub first: usize,
    /// Whole rows.
    pub values: &'a [f32],
}

impl Tensor {
    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Opened {
    /// What a GGUF of the model consists of.
    ///
    /// # Errors
    /// [`Error::Config`] if GGUF has no architecture that is this model, and as [`load`](Self::load) for tensors that are
    /// missing, of another shape, or not the model's.
    pub fn contents<B: Backend>(&self, device: &B::Device) -> Result<Contents<'_>, Error> {
        let config::Written { family, pairs, facts } = config::write(&self.config)
            .map_err(|why| Error::Config { path: self.archive.path_of("").into(), why })?;
        let layout = Layout::Gguf(family);
        let mut tensors = self.tensors_in::<B>(layout, Some(layout), device)?;
        for (name, values) in facts.rope {
            let shape = vec![values.len()];
            tensors.push(Tensor {
                name: name.to_owned(),
                shape,
                in_gguf: None,
                runs: vec![Run::Given(values)],
            });
        }
        Ok(Contents { archive: &self.archive, layout, pairs, tensors })
    }

    /// What a folder of the model consists of.
    ///
    /// # Errors
    /// As [`contents`](Self::contents) for tensors.
    pub fn folder_contents<B: Backend>(&self, device: &B::Device) -> Result<Contents<'_>, Error> {
        let layout = Layout::HuggingFace(config_json::family_of(&self.config));
        let tensors = self.tensors_in::<B>(layout, self.gguf_layout(), device)?;
        Ok(Contents { archive: &self.archive, layout, pairs: Vec::new(), tensors })
    }

    /// The names that a GGUF has for the model's tensors, if there is an architecture that is this model.
    pub fn gguf_layout(&self) -> Option<Layout> {
        config::write(&self.config).ok().map(|written| Layout::Gguf(written.family))
    }

    fn tensors_in<B: Backend>(
        &self,
        layout: Layout,
        gguf: Option<Layout>,
        device: &B::Device,
    ) -> Result<Vec<Tensor>, Error> {
        // Its matrices take no memory, for nobody asks for them.
        let model = Transformer::<B>::empty(&self.config, device);
        self.with_names(|names| {
            let (config, archive) = (&self.config, &self.archive);
            let unused = archive.names().collect();
            let tensors = Ok(Vec::new());
            let mut walk = Walk { path: Vec::new(), config, layout, gguf, archive, names, unused, tensors };
            model.visit(&mut walk);
            let (tensors, mut unused) = (walk.tensors?, walk.unused);
            match unused.pop_first() {
                Some(name) => {
                    Err(Error::Unused { path: archive.path_of(name).into(), name: name.to_owned() })
                }
                None => Ok(tensors),
            }
        })
    }
}

struct Walk<'a, 'n> {
    path: Vec<String>,
    config: &'a Config,
    layout: Layout,
    /// Names for calibration.
    gguf: Option<Layout>,
    archive: &'a Archive,
    names: &'n Names<'n>,
    /// The tensors of the files that no parameter took yet.
    unused: BTreeSet<&'a str>,
    tensors: Result<Vec<Tensor>, Error>,
}

impl<B: Backend> ModuleVisitor<B> for Walk<'_, '_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<burn::Tensor<B, D>>) {
        // The value is not asked for: it need not exist.
        let shape = param.lazy_shape();
        if let Ok(mut tensors) = std::mem::replace(&mut self.tensors, Ok(Vec::new())) {
            self.tensors = self.parameter(shape.as_slice(), &mut tensors).map(|()| tensors);
        }
    }
}

impl Walk<'_, '_> {
    /// Adds the tensors that the parameter at the current path becomes.
    fn parameter(&mut self, shape: &[usize], tensors: &mut Vec<Tensor>) -> Result<(), Error> {
        let path = self.path.join(".");
        let from = self.names.find(self.archive, &path, shape)?;
        for found in &from {
            self.unused.remove(found.name.as_str());
        }
        if path == "embedding"
            && let Some(head) = self.names.check_tied_head(self.archive, &from[0].name)?
        {
            self.unused.remove(head);
        }
        let mut first = 0;
        for piece in names::pieces(&path, shape[0], self.config, self.layout) {
            let in_gguf = self.in_gguf(&path, shape[0], first);
            let shape = [&[piece.rows], &shape[1..]].concat();
            let runs = runs(&from, first..first + piece.rows, &piece, &shape);
            first += piece.rows;
            match tensors.iter_mut().find(|tensor| piece.expert.is_some() && tensor.name == piece.name) {
                Some(tensor) => tensor.runs.extend(runs),
                None => tensors.push(Tensor { shape: piece.shape(&shape), name: piece.name, in_gguf, runs }),
            }
        }
        Ok(())
    }

    /// Where a GGUF has row `row` of the parameter at a path that has `rows`.
    fn in_gguf(&self, path: &str, rows: usize, row: usize) -> Option<InGguf> {
        let mut end = 0;
        let piece = names::pieces(path, rows, self.config, self.gguf?).into_iter().find(|piece| {
            end += piece.rows;
            row < end
        })?;
        let (matrix_idx, n_matrices) = piece.expert.map_or((0, 1), |expert| (expert.idx, expert.n));
        Some(InGguf { name: piece.name, matrix_idx, n_matrices })
    }
}

/// From where a piece gets these rows of a parameter, which the files have in these tensors.
fn runs(from: &[Found], rows: Range<usize>, piece: &Piece, shape: &[usize]) -> Vec<Run> {
    let width: usize = shape[1..].iter().product();
    let mut overlapping = Vec::new();
    let mut begin = 0;
    for found in from {
        let own = begin..begin + found.shape[0];
        begin = own.end;
        if own.start < rows.end && rows.start < own.end {
            overlapping.push((own, found));
        }
    }
    let is_plain = |own: &Range<usize>, found: &Found| match (found.piece.form, piece.form) {
        (Form::Same, Form::Same) => true,
        (theirs, ours) => theirs == ours && theirs != Form::Transposed && *own == rows,
    };
    if overlapping.iter().all(|(own, found)| is_plain(own, found)) {
        let run = |(own, found): (Range<usize>, &Found)| {
            let shared = own.start.max(rows.start)..own.end.min(rows.end);
            let at = |row: usize| found.first() + (row - own.start) * width;
            Run::Rows { name: found.name.clone(), elements: at(shared.start)..at(shared.end) }
        };
        return overlapping.into_iter().map(run).collect();
    }
    let before = overlapping.first().map_or(0, |(own, _)| rows.start - own.start);
    let elements = before * width..(before + rows.len()) * width;
    let from = overlapping.into_iter().map(|(_, found)| found.clone()).collect();
    vec![Run::Turned { from, elements, shape: shape.to_vec(), form: piece.form }]
}

impl Contents<'_> {
    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// How they are named.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Bytes of the tensors in the files that they come from.
    pub fn source_bytes(&self) -> u64 {
        let stored = self.archive.names().filter_map(|name| self.archive.get(name));
        stored.map(|stored| stored.n_bytes() as u64).sum()
    }

    /// Hands out a tensor from its first row to its last.
    ///
    /// # Errors
    /// If the files cannot be read, and what `take` gives.
    pub fn read<E: From<Error>>(
        &self,
        tensor_idx: usize,
        mut take: impl FnMut(Slab<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let tensor = &self.tensors[tensor_idx];
        let width = tensor.shape.last().map_or(1, |&width| width.max(1));
        let n_together = (SLAB / width).max(1) * width;
        let mut first = 0;
        let mut hand_on = |values: &[f32]| {
            let slab = Slab { tensor_idx, first, values };
            first += values.len();
            take(slab)
        };
        let mut buffer = Vec::new();
        for run in &tensor.runs {
            match run {
                Run::Given(values) => hand_on(values)?,
                Run::Rows { name, elements } => {
                    for begin in elements.clone().step_by(n_together) {
                        buffer.resize(n_together.min(elements.end - begin), 0.0);
                        self.archive.read(name, begin, &mut buffer)?;
                        hand_on(&buffer)?;
                    }
                }
                Run::Turned { from, elements, shape, form } => {
                    let values = form.apply(self.turned(from, elements)?, shape);
                    values.chunks(n_together).try_for_each(&mut hand_on)?;
                }
            }
        }
        Ok(())
    }

    /// Rows of a parameter in the order that they have here.
    fn turned(&self, from: &[Found], elements: &Range<usize>) -> Result<Vec<f32>, Error> {
        let mut values = vec![0.0; from.iter().map(|found| found.shape.iter().product::<usize>()).sum()];
        let mut rest = values.as_mut_slice();
        for found in from {
            let (part, after) = rest.split_at_mut(found.shape.iter().product());
            self.archive.read(&found.name, found.first(), part)?;
            found.piece.form.undo(part, &found.shape);
            rest = after;
        }
        values.truncate(elements.end);
        values.drain(..elements.start);
        Ok(values)
    }

    /// The keys of the file: those of the model, then `more`.
    pub fn pairs(&self, file_type: u32, more: &[(String, Value)]) -> Vec<(String, Value)> {
        let mut pairs = self.pairs.clone();
        pairs.push(("general.file_type".to_owned(), Value::U32(file_type)));
        pairs.push(("general.quantization_version".to_owned(), Value::U32(2)));
        pairs.extend_from_slice(more);
        pairs
    }

    /// Writes the file, atomically: the tensors in these formats, whose blocks `quantize` makes of some rows at a time.
    ///
    /// # Errors
    /// [`Error::Format`] if the pairs hold what no reader would take, [`Error::Io`] if the file system refuses.
    pub fn write(
        &self,
        path: &Path,
        pairs: &[(String, Value)],
        formats: &[Format],
        mut quantize: impl FnMut(Slab<'_>) -> Vec<u8>,
    ) -> Result<(), Error> {
        let entry = |(tensor, &format): (&Tensor, &Format)| NewTensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            format,
        };
        let table: Vec<NewTensor> = self.tensors.iter().zip(formats).map(entry).collect();
        let mut refused = None;
        let written = crate::files::write_atomic(path, |f| {
            let pieces = |idx: usize, put: &mut quant::Put<'_>| {
                self.read(idx, |slab| put(&quantize(slab)).map_err(Refused::from))
            };
            quant::write_in_pieces(f, pairs, &table, pieces).map_err(|error| match error {
                Refused::Writing(quant::Error::Io(source)) => source,
                other => {
                    refused = Some(other);
                    io::ErrorKind::Other.into()
                }
            })
        });
        let io = |source| Error::Io { path: path.into(), source };
        written.map_err(|source| match refused {
            Some(Refused::Writing(error)) => Error::Format { path: path.into(), why: error.to_string() },
            Some(Refused::Reading(error)) => error,
            None => io(source),
        })
    }
}

/// Why writing ended.
enum Refused {
    Reading(Error),
    Writing(quant::Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Reading(error)
    }
}

impl From<quant::Error> for Refused {
    fn from(error: quant::Error) -> Self {
        Self::Writing(error)
    }
}
