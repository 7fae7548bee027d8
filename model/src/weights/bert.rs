//! Encoders of the BERT class in folders: the parameters' names in files, and which tensors are left alone.

use std::path::Path;

use super::names::{Form, Piece};
use super::parameters::{self, Names};
use super::{Error, check_size, config_json, config_text, safetensors, shards};
use crate::encoder::{Config, Encoder};
use crate::ops::FusedOps;

/// Reads the shape of the encoder in a folder.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it.
pub fn config(dir: &Path) -> Result<Config, Error> {
    let (path, text) = config_text(dir)?;
    config_json::parse_encoder(&text).map_err(|why| Error::Config { path, why })
}

/// Reads the encoder in a folder.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it.
pub fn load<B: FusedOps>(dir: &Path, device: &B::Device) -> Result<Encoder<B>, Error> {
    let config = config(dir)?;
    let archive = safetensors::open(&shards::files(dir)?, is_left_out, None)?;
    check_size(&archive, config.n_layer, config.n_params(), dir)?;
    let names = Names { pieces: &|path, rows| vec![pieces(path, rows)], tied_head: None };
    parameters::fill(Encoder::empty(&config, device), &archive, &names, device)
}

/// The tensors that a parameter is stored as, in order of rows.
///
/// # Panics
/// If there is no such parameter: the paths come from the module itself.
fn pieces(path: &str, rows: usize) -> Vec<Piece> {
    let path: Vec<&str> = path.split('.').collect();
    let piece = |name: String, rows| Piece::new(name, rows, Form::Same);
    let one = |name: String| vec![piece(format!("bert.{name}"), rows)];
    match *path {
        ["embedding"] => one("embeddings.word_embeddings.weight".into()),
        ["positions"] => one("embeddings.position_embeddings.weight".into()),
        ["types"] => one("embeddings.token_type_embeddings.weight".into()),
        ["norm", kind] => one(format!("embeddings.LayerNorm.{kind}")),
        ["layers", i, "attention", "qkv", kind] => ["query", "key", "value"]
            .map(|part| piece(format!("bert.encoder.layer.{i}.attention.self.{part}.{kind}"), rows / 3))
            .to_vec(),
        ["layers", i, "attention", "out", kind] => {
            one(format!("encoder.layer.{i}.attention.output.dense.{kind}"))
        }
        ["layers", i, "attention_norm", kind] => {
            one(format!("encoder.layer.{i}.attention.output.LayerNorm.{kind}"))
        }
        ["layers", i, "mlp", "up", kind] => one(format!("encoder.layer.{i}.intermediate.dense.{kind}")),
        ["layers", i, "mlp", "down", kind] => one(format!("encoder.layer.{i}.output.dense.{kind}")),
        ["layers", i, "mlp_norm", kind] => one(format!("encoder.layer.{i}.output.LayerNorm.{kind}")),
        _ => panic!("no file name for parameter `{}`", path.join(".")),
    }
}

/// Whether a tensor changes no position's vector: a count of positions, or a head of training.
fn is_left_out(name: &str) -> bool {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    name == "embeddings.position_ids" || name.starts_with("pooler.") || name.starts_with("cls.")
}
