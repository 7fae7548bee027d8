//! A model's parameters and the tensors that files have of them: reading the former from the latter, and the reverse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use quant::Format;

use super::archive::Archive;
use super::names::{self, Form, Layout, Piece};
use super::{Error, packing};
use crate::config::Config;
use crate::linear;
use crate::ops::{FusedOps, PackedMatrix};
use crate::transformer::Transformer;

/// A tensor that is to be written; its numbers are fetched when their turn comes.
pub struct Saved<'a> {
    /// Row-major.
    pub(super) shape: Vec<usize>,
    /// How its numbers are to be spelled.
    pub(super) format: Format,
    /// One part after the other.
    values: Vec<Box<dyn Fn() -> Vec<f32> + 'a>>,
}

impl<'a> Saved<'a> {
    /// A tensor of this shape whose elements, row-major, `values` gives, to be written as F32.
    pub fn new(shape: Vec<usize>, values: impl Fn() -> Vec<f32> + 'a) -> Self {
        Self { shape, format: Format::F32, values: vec![Box::new(values)] }
    }

    /// Adds the elements that follow; the shape has room for them.
    fn extend(&mut self, values: impl Fn() -> Vec<f32> + 'a) {
        self.values.push(Box::new(values));
    }

    /// The elements as they are to be written.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.format.quantize(&self.values(), &mut bytes);
        bytes
    }

    /// The elements, row-major.
    pub(super) fn values(&self) -> Vec<f32> {
        match &self.values[..] {
            [all] => all(),
            parts => {
                let mut all = Vec::with_capacity(self.shape.iter().product());
                parts.iter().for_each(|part| all.extend(part()));
                all
            }
        }
    }

    /// Bytes of all elements.
    pub(super) fn n_bytes(&self) -> usize {
        self.format.n_bytes(self.shape.iter().product()).expect("whole blocks")
    }
}

/// The elements of a tensor on the host.
pub fn values<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().convert::<f32>().into_vec().expect("converted to f32")
}

/// The tensors that files of a layout have of a model.
pub(super) fn collect<B: Backend>(model: &Transformer<B>, layout: Layout) -> Vec<(String, Saved<'static>)> {
    let mut collector = Collector { path: Vec::new(), config: model.config(), layout, pieces: Vec::new() };
    model.visit(&mut collector);
    collector.pieces
}

struct Collector<'a> {
    path: Vec<String>,
    config: &'a Config,
    layout: Layout,
    pieces: Vec<(String, Saved<'static>)>,
}

impl<B: Backend> ModuleVisitor<B> for Collector<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let tensor = param.val();
        let shape = tensor.dims();
        let mut first = 0;
        for piece in names::pieces(&self.path.join("."), shape[0], self.config, self.layout) {
            let rows = tensor.clone().narrow(0, first, piece.rows);
            first += piece.rows;
            let shape = [&[piece.rows], &shape[1..]].concat();
            let in_file = piece.shape(&shape);
            let values = move || piece.form.apply(values(&rows), &shape);
            match self.pieces.iter_mut().find(|(name, _)| piece.expert.is_some() && *name == piece.name) {
                Some((_, saved)) => saved.extend(values),
                None => self.pieces.push((piece.name, Saved::new(in_file, values))),
            }
        }
    }
}

/// How the parameters of a module are called in files.
pub(super) struct Names<'a> {
    /// The tensors of the parameter at a path that has so many rows, in each way that files have them.
    pub pieces: &'a dyn Fn(&str, usize) -> Vec<Vec<Piece>>,
    /// A tensor that may be there too, if it is the embedding again.
    pub tied_head: Option<String>,
}

/// Rows of a parameter, and the tensor of the files that has them.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The tensor's name in the files.
    pub name: String,
    /// What it has.
    pub piece: Piece,
    /// Of the rows here.
    pub shape: Vec<usize>,
}

impl Found {
    /// Elements of the tensor before these rows, which those of other experts may precede.
    pub(super) fn first(&self) -> usize {
        self.piece.expert.map_or(0, |expert| expert.idx * self.shape.iter().product::<usize>())
    }
}

impl Names<'_> {
    /// The pieces of the parameter at a path, in order of its rows, in the way that the files have them.
    ///
    /// # Errors
    /// If one is missing or has another shape.
    pub(super) fn find(&self, archive: &Archive, path: &str, shape: &[usize]) -> Result<Vec<Found>, Error> {
        let mut ways = (self.pieces)(path, shape[0]);
        let is_there = |way: &Vec<Piece>| way.iter().any(|piece| find(archive, &piece.name).is_some());
        // If they have none, the usual ones are missing.
        let way = ways.iter().position(is_there).unwrap_or(0);
        let found = |piece: Piece| {
            let shape = [&[piece.rows], &shape[1..]].concat();
            let Some(name) = find(archive, &piece.name) else {
                return Err(Error::Missing { path: archive.path_of(&piece.name).into(), name: piece.name });
            };
            let (expected, found) = (piece.shape(&shape), archive.get(&name).map(|s| s.shape.clone()));
            if found.as_ref() != Some(&expected) {
                let path = archive.path_of(&name).into();
                return Err(Error::Shape { path, name, found: found.unwrap_or_default(), expected });
            }
            Ok(Found { name, piece, shape })
        };
        ways.swap_remove(way).into_iter().map(found).collect()
    }

    /// The head that many files of tied models have as well. It must be the embedding, which is `embedding` there.
    ///
    /// # Errors
    /// If it is not.
    pub(super) fn check_tied_head(&self, archive: &Archive, embedding: &str) -> Result<Option<&str>, Error> {
        let Some(name) = self.tied_head.as_ref().filter(|name| archive.get(name).is_some()) else {
            return Ok(None);
        };
        match archive.are_same(name, embedding)? {
            true => Ok(Some(name)),
            false => Err(Error::Unused { path: archive.path_of(name).into(), name: name.clone() }),
        }
    }
}

/// The name that a tensor has in the files: that of the layout or the one that transformers has in memory, or either
/// without the part before the first dot, which files of the bare decoder or encoder lack. Gains and biases of BERT's
/// norms have other names in its oldest files.
fn find(archive: &Archive, name: &str) -> Option<String> {
    let bare = |name: &str| name.split_once('.').map_or(name, |(_, bare)| bare).to_owned();
    let in_memory = names::in_memory(name);
    let older = |name: &str| {
        let (rest, kind) = name.rsplit_once("LayerNorm.")?;
        Some(format!("{rest}LayerNorm.{}", if kind == "weight" { "gamma" } else { "beta" }))
    };
    let known = [name.to_owned(), bare(name), bare(&in_memory), in_memory];
    let older = [older(name), older(&bare(name))];
    known.into_iter().chain(older.into_iter().flatten()).find(|name| archive.get(name).is_some())
}

/// Replaces all parameters of a module by those in files, which together must hold exactly these; a tied head may be there
/// too.
///
/// # Errors
/// [`Error`] names the file and the tensor at fault.
pub(super) fn fill<B: FusedOps, M: Module<B>>(
    model: M,
    archive: &Archive,
    names: &Names<'_>,
    device: &B::Device,
) -> Result<M, Error> {
    fill_by(model, None, archive, names, device).map(|(model, _)| model)
}

/// The matrices that were packed, by the paths of their parameters.
pub(super) type PackedByPath = BTreeMap<String, Arc<PackedMatrix>>;

/// As [`fill`], but matrices are packed, and parameters in their place are made of these when they are asked for.
pub(super) fn fill_packed<B: FusedOps, M: Module<B>>(
    model: M,
    archive: &Archive,
    names: &Names<'_>,
    device: &B::Device,
) -> Result<(M, PackedByPath), Error> {
    fill_by(model, Some(BTreeMap::new()), archive, names, device)
}

fn fill_by<B: FusedOps, M: Module<B>>(
    model: M,
    packed: Option<PackedByPath>,
    archive: &Archive,
    names: &Names<'_>,
    device: &B::Device,
) -> Result<(M, PackedByPath), Error> {
    let unused = archive.names().collect();
    let (path, device) = (Vec::new(), device.clone());
    let mut filler = Filler { path, archive, names, device, unused, packed, error: None };
    let model = model.map(&mut filler);
    match (filler.error, filler.unused.pop_first()) {
        (Some(error), _) => Err(error),
        (None, Some(name)) => {
            Err(Error::Unused { path: archive.path_of(name).into(), name: name.to_owned() })
        }
        (None, None) => Ok((model, filler.packed.unwrap_or_default())),
    }
}

struct Filler<'a, B: FusedOps> {
    path: Vec<String>,
    archive: &'a Archive,
    names: &'a Names<'a>,
    device: B::Device,
    /// The tensors that no parameter took yet.
    unused: BTreeSet<&'a str>,
    /// Those that were packed, if matrices are to be.
    packed: Option<PackedByPath>,
    error: Option<Error>,
}

impl<B: FusedOps> Filler<'_, B> {
    /// The tensors of the parameter at the current path, one below the other.
    fn found(&mut self, shape: &[usize]) -> Result<Vec<Found>, Error> {
        let all = self.names.find(self.archive, &self.path.join("."), shape)?;
        for found in &all {
            self.unused.remove(found.name.as_str());
            if self.path == ["embedding"]
                && let Some(head) = self.names.check_tied_head(self.archive, &found.name)?
            {
                self.unused.remove(head);
            }
        }
        Ok(all)
    }

    /// The numbers of the parameter at the current path.
    fn read(&mut self, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let mut values = kernels::memory::zeroed(shape.iter().product());
        let mut rest = values.as_mut_slice();
        for found in self.found(shape)? {
            let (part, after) = rest.split_at_mut(found.shape.iter().product());
            self.archive.read(&found.name, found.first(), part)?;
            found.piece.form.undo(part, &found.shape);
            rest = after;
        }
        Ok(values)
    }

    /// Whether the parameter at the current path is a factor of products with rows, and is to be packed.
    fn is_packed(&self, n_dims: usize) -> bool {
        let is_factor = self.path == ["embedding"] || self.path.last().is_some_and(|name| name == "weight");
        self.packed.is_some() && n_dims == 2 && is_factor
    }
}

impl<B: FusedOps> ModuleMapper<B> for Filler<'_, B> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if self.error.is_some() {
            return param;
        }
        // The old value is not asked for: it need not exist yet.
        let shape = param.lazy_shape();
        let filled = if self.is_packed(D) {
            self.found(shape.as_slice())
                .and_then(|pieces| packing::pack::<B>(self.archive, &pieces, shape[1], &self.device))
                .map(|matrix| {
                    let matrix = Arc::new(matrix);
                    self.packed.get_or_insert_default().insert(self.path.join("."), matrix.clone());
                    linear::unpacked(param.id, matrix, shape, &self.device)
                })
        } else {
            self.read(shape.as_slice()).map(|values| {
                let tensor = Tensor::from_data(TensorData::new(values, shape), &self.device);
                Param::initialized(param.id, tensor.require_grad())
            })
        };
        filled.unwrap_or_else(|error| {
            self.error = Some(error);
            param
        })
    }
}

impl Piece {
    /// The shape in the file of a tensor that has this shape here.
    pub(super) fn shape(&self, shape: &[usize]) -> Vec<usize> {
        match (self.form, self.expert) {
            (Form::Transposed, _) => shape.iter().rev().copied().collect(),
            (_, Some(expert)) => [&[expert.n], shape].concat(),
            _ => shape.to_vec(),
        }
    }
}

impl Form {
    /// Turns the numbers as the file has them into those here. `shape` is that of the tensor here.
    pub(super) fn undo(self, values: &mut [f32], shape: &[usize]) {
        let changed = match self {
            Self::Same => return,
            Self::LessOne => return values.iter_mut().for_each(|value| *value += 1.0),
            Self::Transposed => transposed(values, shape[1], shape[0]),
            Self::ByHead { n_head } => regrouped(values, n_head, 3),
            Self::PairsTogether { n_head } => {
                by_head(values, n_head, |head| regrouped(head, shape[0] / n_head / 2, 2))
            }
        };
        values.copy_from_slice(&changed);
    }

    /// Where the file has row `row` of `n_rows`, in a form that only changes the order of rows.
    pub(super) fn row_in_file(self, row: usize, n_rows: usize) -> usize {
        // `regrouped` brings what was `[outer, inner, len]` to `[inner, outer, len]`.
        let back = |row: usize, outer: usize, inner: usize, len: usize| {
            let (i, o) = (row / len / outer, row / len % outer);
            (o * inner + i) * len + row % len
        };
        match self {
            Self::ByHead { n_head } => back(row, n_head, 3, n_rows / n_head / 3),
            Self::PairsTogether { n_head } => {
                let of_head = n_rows / n_head;
                row / of_head * of_head + back(row % of_head, of_head / 2, 2, 1)
            }
            Self::Same | Self::LessOne | Self::Transposed => row,
        }
    }

    /// The inverse.
    pub(super) fn apply(self, values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match self {
            Self::Same => values,
            Self::Transposed => transposed(&values, shape[0], shape[1]),
            Self::LessOne => values.into_iter().map(|value| value - 1.0).collect(),
            Self::ByHead { n_head } => regrouped(&values, 3, n_head),
            Self::PairsTogether { n_head } => {
                by_head(&values, n_head, |head| regrouped(head, 2, shape[0] / n_head / 2))
            }
        }
    }
}

/// What `change` makes of each head's rows.
fn by_head(values: &[f32], n_head: usize, change: impl Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
    values.chunks(values.len() / n_head).flat_map(change).collect()
}

/// `[rows, cols]` to `[cols, rows]`.
fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}

/// `[outer, inner, …]` to `[inner, outer, …]`.
fn regrouped(values: &[f32], outer: usize, inner: usize) -> Vec<f32> {
    let len = values.len() / (outer * inner);
    let block = |i: usize, o: usize| &values[(o * inner + i) * len..][..len];
    (0..inner).flat_map(|i| (0..outer).flat_map(move |o| block(i, o))).copied().collect()
}
