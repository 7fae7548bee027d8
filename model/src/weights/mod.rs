//! Model directories in the Hugging Face layout: `config.json` and `model.safetensors`, or shards with an index.
//!
//! [`family`] lists whose files are understood, [`config_json`] maps the config, [`names`] the parameters' names,
//! [`safetensors`] moves the numbers.

pub mod config_json;
pub mod family;
pub mod names;
pub mod safetensors;
mod shards;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use burn::prelude::*;

use crate::config::{Config, ConfigError};
use crate::transformer::Transformer;
use family::Family;

/// Why a model could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// `config.json` is not one that Flint understands.
    #[error("{path}: {why}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The key and value at fault.
        why: String,
    },
    /// The weights file is damaged or not a safetensors file.
    #[error("{path}: not a usable safetensors file: {why}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        why: String,
    },
    /// A parameter of the model is not in the file.
    #[error("{path}: tensor `{name}` is missing")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// The file has tensors that the model has no place for.
    #[error("{path}: tensor `{name}` has no place in this model")]
    Unused {
        /// The file.
        path: PathBuf,
        /// The first such tensor.
        name: String,
    },
    /// A tensor has another shape than the config says.
    #[error("{path}: tensor `{name}` has shape {found:?}, `config.json` asks for {expected:?}")]
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
    #[error("{path}: tensor `{name}` has type {dtype}, only F32, F16 and BF16 are read")]
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

/// Reads the model in a folder.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it.
pub fn load<B: Backend>(dir: &Path, device: &B::Device) -> Result<Transformer<B>, Error> {
    let (family, config) = parse_config(dir)?;
    config.validate()?;
    let paths = shards::files(dir)?;
    check_size(&config, &paths)?;
    safetensors::load(Transformer::empty(&config, device), family, &paths, device)
}

/// Replaces the parameters of a model by those in a folder, whose config may differ in what acts in training only.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it.
pub fn fill<B: Backend>(
    model: Transformer<B>,
    dir: &Path,
    device: &B::Device,
) -> Result<Transformer<B>, Error> {
    let (family, config) = parse_config(dir)?;
    if !config_json::are_same(&config, model.config()) {
        let why = "describes another model than the one to be filled".to_owned();
        return Err(Error::Config { path: dir.join("config.json"), why });
    }
    safetensors::load(model, family, &shards::files(dir)?, device)
}

/// Before memory for the parameters is asked for: whether the files can hold as many, at the two bytes
/// that each takes at least.
fn check_size(config: &Config, paths: &[PathBuf]) -> Result<(), Error> {
    let len = |path: &PathBuf| {
        std::fs::metadata(path)
            .map(|file| file.len())
            .map_err(|source| Error::Io { path: path.into(), source })
    };
    let len: u64 = paths.iter().map(len).sum::<Result<_, _>>()?;
    if len / 2 < config.n_params() as u64 {
        let why = format!("{len} bytes, too few for the {} parameters of `config.json`", config.n_params());
        return Err(Error::Format { path: paths[0].clone(), why });
    }
    Ok(())
}

/// Reads the `config.json` in a folder.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it.
pub fn load_config(dir: &Path) -> Result<Config, Error> {
    parse_config(dir).map(|(_, config)| config)
}

fn parse_config(dir: &Path) -> Result<(Family, Config), Error> {
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    config_json::parse(&text).map_err(|why| Error::Config { path, why })
}

/// Writes the model into a folder, which must exist. `config.json` goes first and the weights, with
/// `metadata` in their header, are replaced in one rename: at no moment does the folder hold a mixture.
///
/// # Errors
/// [`Error::Io`] if the file system refuses.
pub fn save<B: Backend>(
    model: &Transformer<B>,
    dir: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let path = dir.join("config.json");
    let text = config_json::write(model.config());
    crate::files::write_atomic(&path, |f| io::Write::write_all(f, text.as_bytes()))
        .map_err(|source| Error::Io { path, source })?;
    safetensors::save(model, &dir.join(shards::SINGLE), metadata)
}
