//! Which files of a folder hold the weights: one, or the shards that an index lists (the Hugging Face layout).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Error;
use crate::files;

/// The one file.
pub(super) const SINGLE: &str = "model.safetensors";

/// The list of shards, read where there is no single file.
const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

/// The files with the weights of the model in a folder, each once.
///
/// # Errors
/// If there are none, or the index is damaged or names a file elsewhere.
pub(super) fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let (single, path) = (dir.join(SINGLE), dir.join(INDEX));
    let text = match files::read_text(&path) {
        // Whoever opens the single file says that it is missing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![single]),
        _ if single.exists() => return Ok(vec![single]),
        Err(source) => return Err(Error::Io { path, source }),
        Ok(text) => text,
    };
    let wrong = |why: String| Error::Config { path: path.clone(), why };
    let index: Index = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(wrong("`weight_map` lists no tensor".into()));
    }
    let in_folder = |name: &String| match Path::new(name).file_name() {
        Some(plain) if plain == name.as_str() => Ok(dir.join(name)),
        _ => Err(wrong(format!("`weight_map` names \"{name}\": only files of the same folder are read"))),
    };
    names.iter().map(in_folder).collect()
}
