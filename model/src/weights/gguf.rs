//! Models in GGUF files, as llama.cpp has them: one file with keys, vocabulary and weights.

mod config;
mod names;
pub mod parts;
pub mod stream;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::path::Path;

use burn::prelude::*;
use kernels::mmap::Mmap;
use quant::{Format, Gguf, NewTensor, Tensor};
use tokenizer::gguf::{Entry, Value};

use super::Error;
use super::archive::{Archive, Encoding, Stored};
use super::family::Family;
use super::names::Layout;
use super::parameters::{self, Saved};
use crate::config::Config;
use crate::transformer::Transformer;

pub(super) use names::pieces;

/// Bytes of a value at most that says what a model is made of: a number for each of some thousand layers.
const MAX_VALUE: usize = 1 << 16;

fn map(path: &Path) -> Result<Mmap, Error> {
    Mmap::open(path).map_err(|source| Error::Io { path: path.into(), source })
}

fn parse<'a>(path: &Path, map: &'a Mmap) -> Result<Gguf<'a>, Error> {
    Gguf::parse(map).map_err(|error| Error::Format { path: path.into(), why: error.to_string() })
}

/// Reads the header of a file, and of the parts after it if it is the first of some: the family, the config, and where the
/// tensors lie.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it.
pub(super) fn open(path: &Path) -> Result<(Family, Config, Archive), Error> {
    let first = map(path)?;
    let gguf = parse(path, &first)?;
    let wrong = |error: &dyn Display| Error::Format { path: path.into(), why: error.to_string() };
    let others = parts::after(path, gguf.header()).map_err(|why| wrong(&why))?;
    let others = others.into_iter().map(|path| Ok((map(&path)?, path))).collect::<Result<Vec<_>, Error>>()?;
    let mut all = vec![(path, &first, gguf)];
    for (i, (map, path)) in others.iter().enumerate() {
        let gguf = parse(path, map)?;
        let wrong = |why| Error::Format { path: path.clone(), why };
        parts::check(gguf.header(), i + 1, others.len() + 1).map_err(wrong)?;
        all.push((path, map, gguf));
    }
    let gguf = &all[0].2;
    let tensor = |name: &str| all.iter().find_map(|(_, _, gguf)| gguf.tensor(name));
    let mut values = BTreeMap::new();
    for (key, entry) in gguf.header().entries().filter(|(key, _)| says_what_it_is(key)) {
        if entry.n_bytes() > MAX_VALUE {
            let key = key.chars().take(64).flat_map(char::escape_debug).collect::<String>();
            let n = entry.n_bytes();
            return Err(wrong(&format!("`{key}` takes {n} bytes, more than any model needs ({MAX_VALUE})")));
        }
        values.insert(key.to_owned(), entry.to_value().map_err(|error| wrong(&error))?);
    }
    let has = |name: &str| tensor(name).is_some();
    let mut rope = BTreeMap::new();
    for name in config::ROPE {
        match tensor(name) {
            Some(tensor) if tensor.n_elements() > MAX_VALUE => {
                let n = tensor.n_elements();
                return Err(wrong(&format!(
                    "`{name}` has {n} numbers: one for each pair of a head is wanted"
                )));
            }
            Some(tensor) => _ = rope.insert(name, tensor.to_vec()),
            None => {}
        }
    }
    let facts = config::Facts {
        vocab_size: tensor("token_embd.weight").and_then(|t| t.shape.first().copied()).unwrap_or(0),
        has_head: has("output.weight"),
        has_qkv_bias: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
        has_out_bias: has("blk.0.attn_output.bias"),
        has_bias: has("blk.0.ffn_down.bias"),
        rope,
    };
    let (family, config) =
        config::parse(&values, &facts).map_err(|why| Error::Config { path: path.into(), why })?;
    let mut archive = Archive::default();
    for (path, map, gguf) in &all {
        let place = |tensor: Tensor<'_>| {
            let offset = (tensor.data.as_ptr() as usize - map.as_ptr() as usize) as u64;
            let encoding = Encoding::Blocks(tensor.format);
            (tensor.name.to_owned(), Stored { shape: tensor.shape, encoding, offset })
        };
        let parameters = gguf.tensors().filter(|tensor| !config::ROPE.contains(&tensor.name));
        archive.add(path, parameters.map(place).collect())?;
    }
    Ok((family, config, archive))
}

/// Whether a file has a vocabulary beside the weights.
///
/// # Errors
/// [`Error`] if it is no GGUF.
pub fn has_vocabulary(path: &Path) -> Result<bool, Error> {
    let map = map(path)?;
    let gguf = parse(path, &map)?;
    Ok(gguf.header().entries().any(|(key, _)| key == "tokenizer.ggml.model"))
}

/// The vocabulary beside the weights with its chat templates, as it stands in the file; nothing if there is none.
///
/// # Errors
/// [`Error`] if it is no GGUF, or one with texts that are not UTF-8.
pub fn vocabulary(path: &Path) -> Result<Vec<(String, Value)>, Error> {
    let map = map(path)?;
    let gguf = parse(path, &map)?;
    let ours = gguf.header().entries().filter(|(key, _)| key.starts_with("tokenizer."));
    let read = |(key, entry): (&str, Entry<'_>)| Ok((key.to_owned(), entry.to_value()?));
    let values: Result<_, tokenizer::Error> = ours.map(read).collect();
    values.map_err(|error| Error::Format { path: path.into(), why: error.to_string() })
}

/// llama.cpp's number of a file whose matrices are mostly in this format (`llama_ftype`).
fn file_type(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q8_0 => 7,
        Format::Q5_0 => 8,
        Format::Q5_1 => 9,
        Format::Q2_K => 10,
        Format::Q3_K => 12,
        Format::Q4_K => 15,
        Format::Q5_K => 17,
        Format::Q6_K => 18,
        Format::IQ4_NL => 25,
        Format::IQ4_XS => 30,
        Format::BF16 => 32,
    }
}

/// Whether a key is of the model: not of the vocabulary, and neither name nor licence.
fn says_what_it_is(key: &str) -> bool {
    key == "general.architecture" || !(key.starts_with("general.") || key.starts_with("tokenizer."))
}

/// Writes a model as one file, atomically: keys of the model, then `more` of them (vocabulary, name, …), then the
/// tensors: matrices in `format`, as far as their rows are whole blocks of it (others in F16), the rest in F32.
///
/// # Errors
/// [`Error::Config`] if the format has no architecture that is this model, [`Error::Format`] if `more` holds what no
/// reader would take, [`Error::Io`] if the file system refuses.
pub fn save<B: Backend>(
    model: &Transformer<B>,
    format: Format,
    more: &[(String, Value)],
    path: &Path,
) -> Result<(), Error> {
    let config::Written { family, mut pairs, facts } =
        config::write(model.config()).map_err(|why| Error::Config { path: path.into(), why })?;
    pairs.push(("general.file_type".to_owned(), Value::U32(file_type(format))));
    pairs.push(("general.quantization_version".to_owned(), Value::U32(2)));
    pairs.extend_from_slice(more);
    let mut tensors = parameters::collect(model, Layout::Gguf(family));
    for (name, values) in facts.rope {
        tensors.push((name.to_owned(), Saved::new(vec![values.len()], move || values.clone())));
    }
    let entry = |(name, tensor): &(String, Saved<'_>)| {
        let format = match tensor.shape[..] {
            [_, .., width] if width.is_multiple_of(format.block_len()) => format,
            [_, _, ..] => Format::F16,
            _ => Format::F32,
        };
        NewTensor { name: name.clone(), shape: tensor.shape.clone(), format }
    };
    let table: Vec<NewTensor> = tensors.iter().map(entry).collect();
    let mut refused = None;
    let written = crate::files::write_atomic(path, |f| {
        let blocks = |idx: usize, bytes: &mut Vec<u8>| {
            table[idx].format.quantize(&tensors[idx].1.values(), bytes);
            Ok(())
        };
        quant::write(f, &pairs, &table, blocks).map_err(|error| match error {
            quant::Error::Io(source) => source,
            other => io::Error::other(refused.insert(other).to_string()),
        })
    });
    match (written, refused) {
        (_, Some(error)) => Err(Error::Format { path: path.into(), why: error.to_string() }),
        (Err(source), None) => Err(Error::Io { path: path.into(), source }),
        (Ok(()), None) => Ok(()),
    }
}
