//! Weights in safetensors files (the Hugging Face format: a JSON header, then the tensors' bytes).
//!
//! Reading goes through a memory map, tensor by tensor; writing produces one tensor at a time.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::{bf16, f16};
use kernels::mmap::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::family::Family;
use super::names::{self, Form, Piece};
use super::{Error, config_json};
use crate::config::Config;
use crate::transformer::Transformer;

/// Writes all parameters as F32, with `metadata` in the header.
///
/// # Errors
/// [`Error::Io`] if the file system refuses.
pub fn save<B: Backend>(
    model: &Transformer<B>,
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let config = model.config();
    let family = config_json::family_of(config);
    let mut collector = Collector { path: Vec::new(), config, family, pieces: Vec::new() };
    model.visit(&mut collector);
    let mut metadata = metadata.clone();
    // transformers refuses files that do not say which framework's layout they have.
    metadata.insert("format".into(), "pt".into());
    write(&collector.pieces, &metadata, path)
}

/// Writes named tensors as one safetensors file, atomically. One tensor at a time is fetched, and the same
/// tensors give the same bytes: the header is in order of names.
///
/// # Errors
/// [`Error::Io`] if the file system refuses.
pub fn write(
    tensors: &[(String, Saved<'_>)],
    metadata: &BTreeMap<String, String>,
    path: &Path,
) -> Result<(), Error> {
    let header = header(tensors, metadata);
    crate::files::write_atomic(path, |f| {
        f.write_all(&(header.len() as u64).to_le_bytes())?;
        f.write_all(header.as_bytes())?;
        for (_, tensor) in tensors {
            (tensor.values)().iter().try_for_each(|v| f.write_all(&v.to_le_bytes()))?;
        }
        Ok(())
    })
    .map_err(|source| Error::Io { path: path.into(), source })
}

/// The JSON header: metadata, then type, shape and place of each tensor; padded to eight bytes.
fn header(tensors: &[(String, Saved<'_>)], metadata: &BTreeMap<String, String>) -> String {
    let mut entries = BTreeMap::from([("__metadata__", serde_json::json!(metadata))]);
    let mut end = 0;
    for (name, Saved { shape, .. }) in tensors {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        entries.insert(
            name,
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] }),
        );
    }
    let mut header = serde_json::to_string(&entries).expect("plain data");
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    header
}

/// A tensor that is to be written as F32; its numbers are fetched when their turn comes.
pub struct Saved<'a> {
    shape: Vec<usize>,
    values: Box<dyn Fn() -> Vec<f32> + 'a>,
}

impl<'a> Saved<'a> {
    /// A tensor of this shape whose elements, row-major, `values` gives.
    pub fn new(shape: Vec<usize>, values: impl Fn() -> Vec<f32> + 'a) -> Self {
        Self { shape, values: Box::new(values) }
    }
}

/// The elements of a tensor on the host.
pub fn values<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    tensor.to_data().convert::<f32>().into_vec().expect("converted to f32")
}

struct Collector<'a> {
    path: Vec<String>,
    config: &'a Config,
    family: Family,
    pieces: Vec<(String, Saved<'a>)>,
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
        for piece in names::pieces(&self.path.join("."), shape[0], self.config, self.family) {
            let rows = tensor.clone().narrow(0, first, piece.rows);
            first += piece.rows;
            let shape = [&[piece.rows], &shape[1..]].concat();
            let saved = Saved::new(piece.shape(&shape), move || piece.form.apply(values(&rows), &shape));
            self.pieces.push((piece.name, saved));
        }
    }
}

/// Replaces all parameters of `model` by those in files, which together must hold exactly these under the family's
/// names; what follows from others (a tied head, tables, masks) may be there too.
///
/// # Errors
/// [`Error`] names the file and the tensor at fault.
pub fn load<B: Backend>(
    model: Transformer<B>,
    family: Family,
    paths: &[PathBuf],
    device: &B::Device,
) -> Result<Transformer<B>, Error> {
    let open = |path: &PathBuf| Mmap::open(path).map_err(|source| Error::Io { path: path.clone(), source });
    let maps = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut files = Vec::with_capacity(paths.len());
    let mut unused = BTreeMap::new();
    for (path, map) in paths.iter().zip(&maps) {
        let wrong = |why| Error::Format { path: path.clone(), why };
        let tensors = SafeTensors::deserialize(map).map_err(|error| wrong(error.to_string()))?;
        for name in tensors.names().into_iter().filter(|name| !is_derived(name)) {
            if let Some(other) = unused.insert(name.to_owned(), path.as_path()) {
                return Err(wrong(format!("tensor `{name}` is also in {}", other.display())));
            }
        }
        files.push(File { path, tensors });
    }
    let config = model.config().clone();
    let mut filler =
        Filler { path: Vec::new(), files, config, family, device: device.clone(), unused, error: None };
    let model = model.map(&mut filler);
    match (filler.error, filler.unused.pop_first()) {
        (Some(error), _) => Err(error),
        (None, Some((name, path))) => Err(Error::Unused { path: path.into(), name }),
        (None, None) => Ok(model),
    }
}

/// An open file.
struct File<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
}

struct Filler<'a, B: Backend> {
    path: Vec<String>,
    files: Vec<File<'a>>,
    config: Config,
    family: Family,
    device: B::Device,
    /// The tensors that no parameter took yet, and their files.
    unused: BTreeMap<String, &'a Path>,
    error: Option<Error>,
}

impl<'a, B: Backend> Filler<'a, B> {
    /// A tensor and its file, by the tensor's name or by that without the part before the first dot, which files of the
    /// bare decoder lack.
    fn find(&self, name: &str) -> Option<(&'a Path, String, TensorView<'a>)> {
        let bare = name.split_once('.').map_or(name, |(_, bare)| bare);
        let of = |name: &str| {
            let found = |file: &File<'a>| Some((file.path, name.to_owned(), file.tensors.tensor(name).ok()?));
            self.files.iter().find_map(found)
        };
        of(name).or_else(|| of(bare))
    }

    /// Many files of tied models have the head as well. It must be the embedding.
    fn check_tied_head(&mut self, embedding: &TensorView<'_>) -> Result<(), Error> {
        if !self.config.tie_embeddings {
            return Ok(());
        }
        let pieces = names::pieces("head.weight", self.config.vocab_size, &self.config, self.family);
        let name = &pieces[0].name;
        let found = self.files.iter().find_map(|file| Some((file.path, file.tensors.tensor(name).ok()?)));
        match found {
            Some((_, head)) if head.dtype() == embedding.dtype() && head.data() == embedding.data() => {
                self.unused.remove(name);
                Ok(())
            }
            Some((path, _)) => Err(Error::Unused { path: path.into(), name: name.clone() }),
            None => Ok(()),
        }
    }

    /// All pieces of the parameter at the current path, one below the other.
    fn read(&mut self, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let mut values = Vec::new();
        for piece in names::pieces(&self.path.join("."), shape[0], &self.config, self.family) {
            let shape = [&[piece.rows], &shape[1..]].concat();
            let Some((path, name, view)) = self.find(&piece.name) else {
                return Err(Error::Missing { path: self.files[0].path.into(), name: piece.name });
            };
            let path = path.to_path_buf();
            let expected = piece.shape(&shape);
            if view.shape() != expected {
                return Err(Error::Shape { path, name, found: view.shape().to_vec(), expected });
            }
            let mut read = Vec::with_capacity(shape.iter().product());
            extend(&mut read, view.dtype(), view.data()).map_err(|dtype| Error::Dtype {
                path: path.clone(),
                name: name.clone(),
                dtype,
            })?;
            if self.path == ["embedding"] {
                self.check_tied_head(&view)?;
            }
            self.unused.remove(&name);
            match values.is_empty() {
                true => values = piece.form.undo(read, &shape),
                false => values.extend(piece.form.undo(read, &shape)),
            }
        }
        Ok(values)
    }
}

/// Whether a tensor follows from the config: tables of rotary positions and causal masks, which older files have.
fn is_derived(name: &str) -> bool {
    let derived =
        ["rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias"];
    derived
        .iter()
        .any(|end| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

impl Piece {
    /// The shape in the file of a tensor that has this shape here.
    fn shape(&self, shape: &[usize]) -> Vec<usize> {
        match self.form {
            Form::Transposed => shape.iter().rev().copied().collect(),
            _ => shape.to_vec(),
        }
    }
}

impl Form {
    /// The numbers as they are here, from those in the file. `shape` is that of the tensor here.
    fn undo(self, values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match self {
            Self::Same => values,
            Self::Transposed => transposed(&values, shape[1], shape[0]),
            Self::LessOne => values.into_iter().map(|value| value + 1.0).collect(),
            Self::ByHead { n_head } => regrouped(&values, n_head, 3),
        }
    }

    /// The inverse.
    fn apply(self, values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match self {
            Self::Same => values,
            Self::Transposed => transposed(&values, shape[0], shape[1]),
            Self::LessOne => values.into_iter().map(|value| value - 1.0).collect(),
            Self::ByHead { n_head } => regrouped(&values, 3, n_head),
        }
    }
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

/// Appends little-endian floats; the error is the name of a type that is not one.
fn extend(values: &mut Vec<f32>, dtype: Dtype, bytes: &[u8]) -> Result<(), String> {
    match dtype {
        Dtype::F32 => values.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
        Dtype::F16 => values.extend(bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => values.extend(bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32())),
        other => return Err(format!("{other:?}")),
    }
    Ok(())
}

impl<B: Backend> ModuleMapper<B> for Filler<'_, B> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = param.consume();
        let shape = tensor.dims();
        let tensor = match self.error.is_none().then(|| self.read(&shape)) {
            Some(Ok(values)) => {
                let data = TensorData::new(values, shape);
                Tensor::from_data(data, &self.device).set_require_grad(tensor.is_require_grad())
            }
            Some(Err(error)) => {
                self.error = Some(error);
                tensor
            }
            None => tensor,
        };
        Param::from_mapped_value(id, tensor, mapper)
    }
}
