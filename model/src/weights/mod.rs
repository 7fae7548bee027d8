//! Models in files: directories in the Hugging Face layout (`config.json` and `model.safetensors`, or shards with an
//! index), and single GGUF files.
//!
//! [`family`] lists whose files are understood. [`config_json`] and [`gguf`] map what they say of the model onto a
//! [`Config`](struct@Config), [`names`] the parameters' names. [`archive`] reads the numbers of either, `parameters` puts
//! them into a model and takes them out, [`safetensors`] and [`gguf`] write them. [`bert`] does the same for encoders, and
//! [`sentence`] reads what sentence-transformers puts beside one to say how texts get their vectors. [`lora`] adds
//! adapters.

pub mod archive;
pub mod bert;
pub mod compressed;
pub mod config_json;
pub mod family;
pub mod gguf;
pub mod lora;
pub mod names;
mod packing;
mod parameters;
pub mod safetensors;
pub mod sentence;
mod shards;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use kernels::packed::Kind;
use quant::Format;

use crate::config::{Config, ConfigError};
use crate::ops::FusedOps;
use crate::transformer::Transformer;
use archive::Archive;
use names::Layout;
use parameters::Names;
pub use parameters::{Saved, values};

/// Why a model could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("cannot read or write {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// What the files say of the model is not what Flint understands.
    #[error("{path}: {why}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The key and value at fault.
        why: String,
    },
    /// The weights file is damaged or none.
    #[error("{path}: not a usable file of weights: {why}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        why: String,
    },
    /// A parameter of the model is not in the file.
    #[error("{path}: tensor `{}` is missing", name.escape_debug())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// The file has tensors that the model has no place for.
    #[error("{path}: tensor `{}` has no place in this model", name.escape_debug())]
    Unused {
        /// The file.
        path: PathBuf,
        /// The first such tensor.
        name: String,
    },
    /// A tensor has another shape than the config says.
    #[error(
        "{path}: tensor `{}` has shape {found:?}, its config asks for {expected:?}",
        name.escape_debug()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the config.
        expected: Vec<usize>,
    },
    /// A tensor is of a type that cannot be read yet.
    #[error("{path}: tensor `{}` has type {dtype}, only F32, F16 and BF16 are read", name.escape_debug())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// The type in the file.
        dtype: String,
    },
    /// The config has an impossible value.
    #[error(transparent)]
    Impossible(#[from] ConfigError),
}

/// A model in files, of which so far only what it is made of was read.
#[derive(Debug)]
pub struct Opened {
    config: Config,
    layout: Layout,
    archive: Archive,
}

/// Matrices that take more memory than their file, packed or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Widened {
    /// How many.
    pub n_tensors: usize,
    /// The format of the first of them.
    pub format: String,
    /// What they take in files.
    pub file_bytes: u64,
    /// What they take in memory.
    pub bytes: u64,
}

/// Reads what a model is made of and where its weights lie, in a folder or a GGUF file.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it.
pub fn open(path: &Path) -> Result<Opened, Error> {
    let opened = match path.is_dir() {
        true => {
            let (file, text) = config_text(path)?;
            let wrong = |why| Error::Config { path: file.clone(), why };
            let (family, config) = config_json::parse(&text).map_err(wrong)?;
            let scheme = compressed::Scheme::of_config(&text).map_err(wrong)?;
            let archive = safetensors::open(&shards::files(path)?, is_derived, scheme.as_ref())?;
            Opened { config, layout: Layout::HuggingFace(family), archive }
        }
        false => {
            let (family, config, archive) = gguf::open(path)?;
            Opened { config, layout: Layout::Gguf(family), archive }
        }
    };
    opened.config.validate()?;
    check_size(&opened.archive, opened.config.n_layer, opened.config.n_params(), path)?;
    Ok(opened)
}

impl Opened {
    /// What the model is made of.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whose layout the files have.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The tensors of the files.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// [`Error`] names the file and the tensor at fault.
    pub fn load<B: FusedOps>(&self, device: &B::Device) -> Result<Transformer<B>, Error> {
        self.fill(Transformer::empty(&self.config, device), device)
    }

    /// Reads the weights for inference: matrices are packed in the numbers of the file, where the backend
    /// [packs](FusedOps::PACKS), and take the memory that these take.
    ///
    /// The parameters are all there, as after [`load`](Self::load), but are made of packed matrices when something asks
    /// for them; training, which changes them, must not begin from such a model.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_packed<B: FusedOps>(&self, device: &B::Device) -> Result<Transformer<B>, Error> {
        let empty = Transformer::empty(&self.config, device);
        if !B::PACKS {
            return self.fill(empty, device);
        }
        let fill = |names: &Names<'_>| parameters::fill_packed(empty, &self.archive, names, device);
        let (mut model, mut packed) = self.with_names(fill)?;
        for (path, place) in model.packed_mut() {
            place.0 = packed.remove(&path);
        }
        Ok(model)
    }

    /// Bytes that the weights take in memory at most, after [`load_packed`](Self::load_packed) where the backend packs,
    /// else after [`load`](Self::load).
    pub fn weights_bytes(&self, packs: bool) -> u64 {
        let bytes = |stored: &archive::Stored| match packs && stored.shape.len() > 1 {
            true => packing::packed_bytes(stored),
            false => 4 * stored.n_elements() as u64,
        };
        self.archive.tensors().map(bytes).sum()
    }

    /// The matrices that [`load_packed`](Self::load_packed) holds in single precision although the files have them smaller,
    /// as there are no kernels for them: how many, their format, and bytes in files and in memory.
    pub fn widened(&self) -> Option<Widened> {
        let is_widened = |stored: &&archive::Stored| {
            stored.shape.len() > 1 && stored.encoding.float().is_none() && stored.packed() == Kind::F32
        };
        let all: Vec<_> = self.archive.tensors().filter(is_widened).collect();
        Some(Widened {
            n_tensors: all.len(),
            format: all.first()?.encoding.name(),
            file_bytes: all.iter().map(|stored| stored.n_bytes() as u64).sum(),
            bytes: all.iter().map(|stored| 4 * stored.n_elements() as u64).sum(),
        })
    }

    fn fill<B: FusedOps>(&self, model: Transformer<B>, device: &B::Device) -> Result<Transformer<B>, Error> {
        self.with_names(|names| parameters::fill(model, &self.archive, names, device))
    }

    /// Lends what parameters are called in the files.
    fn with_names<T>(&self, job: impl FnOnce(&Names<'_>) -> T) -> T {
        let (config, layout) = (&self.config, self.layout);
        let pieces = |path: &str, rows: usize| {
            let usual = names::pieces(path, rows, config, layout);
            let stacked =
                names::stacked(path, rows, config).filter(|_| matches!(layout, Layout::HuggingFace(_)));
            std::iter::once(usual).chain(stacked).collect()
        };
        let head = || names::pieces("head.weight", config.vocab_size, config, layout).remove(0).name;
        job(&Names { pieces: &pieces, tied_head: config.tie_embeddings.then(head) })
    }
}

/// Before memory for the parameters is asked for: whether the files have about as many. Which ones are missing is said
/// later.
fn check_size(archive: &Archive, n_layer: usize, n_params: usize, path: &Path) -> Result<(), Error> {
    let n_tensors = archive.names().count();
    if n_layer > n_tensors {
        let why = format!("{n_tensors} tensors, too few for the {n_layer} layers of its config");
        return Err(Error::Format { path: path.into(), why });
    }
    let found = archive.n_elements();
    if n_params as u64 / 2 > found + (1 << 20) {
        let why = format!("{found} numbers, too few for the {n_params} parameters of its config");
        return Err(Error::Format { path: path.into(), why });
    }
    Ok(())
}

/// Whether a tensor follows from the config: tables of rotary positions and causal masks, which older files have.
fn is_derived(name: &str) -> bool {
    let derived =
        ["rotary_emb.inv_freq", "attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias"];
    derived
        .iter()
        .any(|end| name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// Reads the model in a folder or a GGUF file.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it.
pub fn load<B: FusedOps>(path: &Path, device: &B::Device) -> Result<Transformer<B>, Error> {
    open(path)?.load(device)
}

/// Replaces the parameters of a model by those in a folder, whose config may differ in what acts in training only.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it.
pub fn fill<B: FusedOps>(
    model: Transformer<B>,
    dir: &Path,
    device: &B::Device,
) -> Result<Transformer<B>, Error> {
    let opened = open(dir)?;
    if !config_json::are_same(opened.config(), model.config()) {
        let why = "describes another model than the one to be filled".to_owned();
        return Err(Error::Config { path: dir.join("config.json"), why });
    }
    opened.fill(model, device)
}

fn config_text(dir: &Path) -> Result<(PathBuf, String), Error> {
    let path = dir.join("config.json");
    match crate::files::read_text(&path) {
        Ok(text) => Ok((path, text)),
        Err(source) => Err(Error::Io { path, source }),
    }
}

/// Writes the model into a folder, which must exist, with numbers in F32; see [`save_as`].
///
/// # Errors
/// [`Error::Io`] if the file system refuses.
pub fn save<B: Backend>(
    model: &Transformer<B>,
    dir: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    save_as(model, Format::F32, dir, metadata)
}

/// Writes the model into a folder, which must exist, with numbers in F32, F16 or BF16. `config.json` goes first and the
/// weights, with `metadata` in their header, are replaced in one rename: at no moment does the folder hold a mixture.
///
/// # Errors
/// [`Error::Io`] if the file system refuses.
///
/// # Panics
/// If the format is of blocks, which safetensors files do not have.
pub fn save_as<B: Backend>(
    model: &Transformer<B>,
    format: Format,
    dir: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    assert!(matches!(format, Format::F32 | Format::F16 | Format::BF16), "{format:?} in a safetensors file");
    let path = dir.join("config.json");
    let text = config_json::write(model.config());
    crate::files::write_atomic(&path, |f| io::Write::write_all(f, text.as_bytes()))
        .map_err(|source| Error::Io { path, source })?;
    let layout = Layout::HuggingFace(config_json::family_of(model.config()));
    let mut tensors = parameters::collect(model, layout);
    tensors.iter_mut().for_each(|(_, tensor)| tensor.format = format);
    let mut metadata = metadata.clone();
    // transformers refuses files that do not say which framework's layout they have.
    metadata.insert("format".into(), "pt".into());
    safetensors::write(&tensors, &metadata, &dir.join(shards::SINGLE))
}
