//! Writing a folder: `config.json` with what its matrices are, and one safetensors file, tensor by tensor.
//!
//! Places of all tensors follow from their shapes, so the header goes first and numbers as they come. Tensors of larger
//! elements stand before those of smaller ones: readers map them, and want them aligned.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use quant::{Format, Symmetric};
use serde_json::{Map, Value, json};

use super::{KEY, NUMBERS, PLAIN, SCALE, SHAPE};
use crate::weights::archive::Encoding;
use crate::weights::gguf::stream::{Contents, Slab};
use crate::weights::{Error, Opened, config_json, shards};

/// A tensor of the file.
struct Entry {
    name: String,
    dtype: &'static str,
    element_bytes: usize,
    shape: Vec<usize>,
    /// Bytes from the first of all tensors.
    begin: usize,
    n_bytes: usize,
}

/// A file in the making.
pub struct Folder<'a> {
    contents: &'a Contents<'a>,
    encodings: &'a [Encoding],
    /// What each tensor is in the file: its numbers, and if they are whole ones their scales and shape.
    entries: Vec<Vec<Entry>>,
    /// Of the JSON, padded.
    header_len: usize,
}

/// Bytes of a header that are left for what metadata may become, besides some for each tensor.
const ROOM: usize = 4096;

/// Of each tensor: its error in digits.
const ROOM_EACH: usize = 24;

impl<'a> Folder<'a> {
    /// Plans a file of these tensors, each of which becomes floats or whole numbers.
    pub fn new(contents: &'a Contents<'a>, encodings: &'a [Encoding]) -> Self {
        let tensors = contents.tensors().iter().zip(encodings);
        let mut entries: Vec<Vec<Entry>> =
            tensors.map(|(tensor, encoding)| entries(&tensor.name, &tensor.shape, *encoding)).collect();
        let mut all: Vec<&mut Entry> = entries.iter_mut().flatten().collect();
        all.sort_by_key(|entry| std::cmp::Reverse(entry.element_bytes));
        let mut end = 0;
        for entry in all {
            entry.begin = end;
            end += entry.n_bytes;
        }
        let mut folder = Self { contents, encodings, entries, header_len: 0 };
        let room = ROOM + ROOM_EACH * folder.entries.len();
        folder.header_len = (folder.header(&BTreeMap::new()).len() + room).next_multiple_of(8);
        folder
    }

    /// Bytes of all tensors.
    pub fn n_bytes(&self) -> u64 {
        self.entries.iter().flatten().map(|entry| entry.n_bytes as u64).sum()
    }

    /// Bytes of what a tensor became, scales included.
    pub fn bytes_of(&self, tensor_idx: usize) -> u64 {
        self.entries[tensor_idx].iter().map(|entry| entry.n_bytes as u64).sum()
    }

    /// Writes the file of weights into a folder, atomically. `quantize` makes the bytes of some rows, and of their scales.
    ///
    /// # Errors
    /// As [`Contents::read`], and [`Error::Io`] if the file system refuses.
    pub fn write_weights(
        &self,
        dir: &Path,
        metadata: &BTreeMap<String, String>,
        mut quantize: impl FnMut(Slab<'_>) -> (Vec<u8>, Vec<u8>),
    ) -> Result<(), Error> {
        let path = dir.join(shards::SINGLE);
        let header = self.padded(metadata).map_err(|source| Error::Io { path: path.clone(), source })?;
        let mut refused = None;
        let written = crate::files::write_atomic(&path, |f| {
            f.write_all(&(self.header_len as u64).to_le_bytes())?;
            f.write_all(header.as_bytes())?;
            for (idx, entries) in self.entries.iter().enumerate() {
                let mut scales = Vec::new();
                f.seek(SeekFrom::Start(self.place(&entries[0])))?;
                let copied = self.contents.read(idx, |slab| {
                    let (numbers, more) = quantize(slab);
                    scales.extend(more);
                    f.write_all(&numbers).map_err(Stopped::Writing)
                });
                match copied {
                    Err(Stopped::Writing(error)) => return Err(error),
                    Err(Stopped::Reading(error)) => {
                        refused = Some(error);
                        return Err(io::ErrorKind::Other.into());
                    }
                    Ok(()) => {}
                }
                if let [_, of_scales, of_shape] = &entries[..] {
                    f.seek(SeekFrom::Start(self.place(of_scales)))?;
                    f.write_all(&scales)?;
                    f.seek(SeekFrom::Start(self.place(of_shape)))?;
                    for n in &self.contents.tensors()[idx].shape {
                        f.write_all(&(*n as i64).to_le_bytes())?;
                    }
                }
            }
            Ok(())
        });
        written.map_err(|source| refused.unwrap_or(Error::Io { path, source }))
    }

    /// Replaces the metadata of the file in a folder, which [`write_weights`](Self::write_weights) wrote.
    ///
    /// # Errors
    /// [`Error::Io`] if the file system refuses, or there is no room for so much.
    pub fn replace_metadata(&self, dir: &Path, metadata: &BTreeMap<String, String>) -> Result<(), Error> {
        let path = dir.join(shards::SINGLE);
        let replace = || {
            let header = self.padded(metadata)?;
            let mut file = OpenOptions::new().write(true).open(&path)?;
            file.seek(SeekFrom::Start(8))?;
            file.write_all(header.as_bytes())?;
            file.sync_all()
        };
        replace().map_err(|source| Error::Io { path: path.clone(), source })
    }

    /// Where an entry begins in the file.
    fn place(&self, entry: &Entry) -> u64 {
        (8 + self.header_len + entry.begin) as u64
    }

    fn header(&self, metadata: &BTreeMap<String, String>) -> String {
        let mut metadata = metadata.clone();
        // transformers refuses files that do not say which framework's layout they have.
        metadata.insert("format".into(), "pt".into());
        let mut map = BTreeMap::from([("__metadata__", json!(metadata))]);
        for Entry { name, dtype, shape, begin, n_bytes, .. } in self.entries.iter().flatten() {
            let offsets = [*begin, begin + n_bytes];
            map.insert(name, json!({ "data_offsets": offsets, "dtype": dtype, "shape": shape }));
        }
        serde_json::to_string(&map).expect("plain data")
    }

    fn padded(&self, metadata: &BTreeMap<String, String>) -> io::Result<String> {
        let mut header = self.header(metadata);
        if header.len() > self.header_len {
            let why =
                format!("{} bytes of header, more than the {} kept for it", header.len(), self.header_len);
            return Err(io::Error::other(why));
        }
        header.extend(std::iter::repeat_n(' ', self.header_len - header.len()));
        Ok(header)
    }

    /// What `quantization_config` says of the file: what most matrices are holds for every linear layer but those that are
    /// named with something else, or are left as floats.
    pub fn said(&self) -> Value {
        let mut kinds: Vec<(Symmetric, Vec<&str>)> = Vec::new();
        let mut ignored = vec!["lm_head"];
        for (tensor, encoding) in self.contents.tensors().iter().zip(self.encodings) {
            let module = tensor.name.strip_suffix(PLAIN).unwrap_or(&tensor.name);
            match encoding {
                Encoding::Ints { ints, .. } => match kinds.iter_mut().find(|(kind, _)| kind == ints) {
                    Some((_, modules)) => modules.push(module),
                    None => kinds.push((*ints, vec![module])),
                },
                Encoding::Blocks(_) if is_linear(&tensor.name, &tensor.shape) => ignored.push(module),
                Encoding::Blocks(_) => {}
            }
        }
        ignored.dedup();
        kinds.sort_by_key(|(_, modules)| std::cmp::Reverse(modules.len()));
        let group = |(idx, (ints, modules)): (usize, &(Symmetric, Vec<&str>))| {
            let targets = if idx == 0 { vec!["Linear"] } else { modules.clone() };
            let weights = json!({
                "num_bits": ints.bits(),
                "type": "int",
                "symmetric": true,
                "strategy": if ints.group().is_some() { "group" } else { "channel" },
                "group_size": ints.group(),
                "dynamic": false,
            });
            let group = json!({
                "targets": targets,
                "weights": weights,
                "input_activations": null,
                "output_activations": null,
                "format": "pack-quantized",
            });
            (format!("group_{idx}"), group)
        };
        let groups: Map<String, Value> = kinds.iter().enumerate().map(group).collect();
        json!({
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": ignored,
        })
    }
}

impl Opened {
    /// Writes the `config.json` of a folder whose file of weights is planned.
    ///
    /// # Errors
    /// [`Error::Io`] if the file system refuses.
    pub fn write_config(&self, folder: &Folder<'_>, dir: &Path) -> Result<(), Error> {
        let path = dir.join("config.json");
        let mut config: Map<String, Value> =
            serde_json::from_str(&config_json::write(self.config())).expect("an object, as it was written");
        config.insert(KEY.to_owned(), folder.said());
        let mut config = Value::Object(config);
        config.sort_all_objects();
        let text = serde_json::to_string_pretty(&config).expect("plain data");
        crate::files::write_atomic(&path, |f| f.write_all(text.as_bytes()))
            .map_err(|source| Error::Io { path, source })
    }
}

/// Whether a tensor of a folder is the matrix of a linear layer, of those that may be quantized or have to be named as not
/// quantized: neither embedding nor norm.
pub fn is_linear(name: &str, shape: &[usize]) -> bool {
    let is_table = ["embed_tokens", "embed_positions", "embed_in"].iter().any(|table| name.contains(table));
    shape.len() == 2 && name.ends_with(PLAIN) && !is_table
}

/// Whether a tensor of a folder is quantized: a linear layer's, but neither the head nor what chooses among experts.
pub fn is_quantized(name: &str, shape: &[usize]) -> bool {
    let is_head = name.starts_with("lm_head") || name.starts_with("embed_out");
    is_linear(name, shape) && !is_head && !name.ends_with(".gate.weight")
}

/// What a tensor is in the file.
fn entries(name: &str, shape: &[usize], encoding: Encoding) -> Vec<Entry> {
    let entry = |name: String, (dtype, element_bytes): (&'static str, usize), shape: Vec<usize>| {
        let n_bytes = shape.iter().product::<usize>() * element_bytes;
        Entry { name, dtype, element_bytes, shape, begin: 0, n_bytes }
    };
    let float = |format: Format| (format.name(), format.block_bytes());
    match (encoding, shape) {
        (Encoding::Ints { ints, scales }, &[n_rows, width]) => {
            let part = |end: &str| format!("{}{end}", name.strip_suffix(PLAIN).unwrap_or(name));
            vec![
                entry(part(NUMBERS), ("I32", 4), vec![n_rows, ints.row_bytes(width) / 4]),
                entry(part(SCALE), float(scales), vec![n_rows, ints.n_scales(width)]),
                entry(part(SHAPE), ("I64", 8), vec![2]),
            ]
        }
        (Encoding::Blocks(format), _) if format.block_len() == 1 => {
            vec![entry(name.to_owned(), float(format), shape.to_vec())]
        }
        _ => panic!("{name} {shape:?} as {}", encoding.name()),
    }
}

/// Why copying ended.
enum Stopped {
    Reading(Error),
    Writing(io::Error),
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Reading(error)
    }
}
