//! Safetensors files (the Hugging Face format): the length of a JSON header, the header, then the tensors' bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use kernels::mmap::Mmap;
use quant::Format;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserializer;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

use super::Error;
use super::archive::{Archive, Encoding, Stored};
use super::compressed::{self, Scheme};
use super::parameters::Saved;

/// Writes named tensors as one file, atomically. One tensor at a time is fetched, and the same tensors give the same
/// bytes: the header is in order of names.
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
            f.write_all(&tensor.bytes())?;
        }
        Ok(())
    })
    .map_err(|source| Error::Io { path: path.into(), source })
}

/// The JSON header: metadata, then type, shape and place of each tensor; padded to eight bytes.
fn header(tensors: &[(String, Saved<'_>)], metadata: &BTreeMap<String, String>) -> String {
    let mut entries = BTreeMap::from([("__metadata__", serde_json::json!(metadata))]);
    let mut end = 0;
    for (name, tensor) in tensors {
        let begin = end;
        end += tensor.n_bytes();
        // In the order of the alphabet, which serde_json does or does not bring about by itself.
        let entry = serde_json::json!({
            "data_offsets": [begin, end],
            "dtype": tensor.format.name(),
            "shape": tensor.shape,
        });
        entries.insert(name, entry);
    }
    let mut header = serde_json::to_string(&entries).expect("plain data");
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    header
}

/// The tensors of the files that a model's weights are spread over, but for those that are left out. With a scheme, the
/// tensors that spell a quantized matrix are one.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it: lengths and places that do not add up to exactly the file, a name
/// that stands twice, a type that is not read.
pub(super) fn open(
    paths: &[PathBuf],
    is_left_out: fn(&str) -> bool,
    scheme: Option<&Scheme>,
) -> Result<Archive, Error> {
    let mut archive = Archive::default();
    let mut quantized = BTreeMap::new();
    for path in paths {
        let file_idx = archive.add_file(path)?;
        for (name, raw) in tensors_of(path, file_idx, is_left_out)? {
            match raw.format() {
                // Scales are floats too.
                Some(format) if scheme.is_none() || !name.ends_with(compressed::SCALE) => {
                    let encoding = Encoding::Blocks(format);
                    let stored = Stored { shape: raw.shape, encoding, offset: raw.offset };
                    archive.add_tensor(name, stored, file_idx, None)?;
                }
                _ if scheme.is_some() => {
                    if let Some(other) = quantized.insert(name.clone(), raw) {
                        let (name, other) = (name.escape_debug(), archive.path(other.file_idx).display());
                        let why = format!("tensor `{name}` is also in {other}");
                        return Err(Error::Format { path: path.clone(), why });
                    }
                }
                _ => return Err(raw.refused(path, name)),
            }
        }
    }
    if let Some(scheme) = scheme {
        compressed::assemble(quantized, scheme, &mut archive)?;
    }
    Ok(archive)
}

/// A tensor as a file lists it.
pub(super) struct Raw {
    pub file_idx: usize,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub offset: u64,
    /// Of a tensor that says a shape.
    pub says: Option<[u64; 2]>,
    /// Of zero points: whether all are zero.
    pub is_zero: bool,
}

impl Raw {
    /// Of what is read by itself.
    pub fn format(&self) -> Option<Format> {
        match self.dtype {
            Dtype::F32 => Some(Format::F32),
            Dtype::F16 => Some(Format::F16),
            Dtype::BF16 => Some(Format::BF16),
            _ => None,
        }
    }

    /// That it is of a type that is not read.
    pub fn refused(&self, path: &Path, name: String) -> Error {
        Error::Dtype { path: path.into(), name, dtype: format!("{:?}", self.dtype) }
    }
}

fn tensors_of(
    path: &Path,
    file_idx: usize,
    is_left_out: fn(&str) -> bool,
) -> Result<Vec<(String, Raw)>, Error> {
    let map = Mmap::open(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let wrong = |why: String| Error::Format { path: path.into(), why };
    // The reader below takes the last of two tensors of one name, and any name.
    if let Some(header) = header_bytes(&map) {
        check_names(header).map_err(|error| wrong(error.to_string()))?;
    }
    let (header_len, header) = SafeTensors::read_metadata(&map).map_err(|error| wrong(error.to_string()))?;
    let begin = 8 + header_len;
    let raw = |name: String| {
        let info = header.info(&name).expect("one of its own names");
        let (start, end) = info.data_offsets;
        let data = map.get(begin + start..begin + end).unwrap_or_default();
        let says = name.ends_with(compressed::SHAPE).then(|| pair(info.dtype, data)).flatten();
        let is_zero = name.ends_with(compressed::ZERO_POINT) && data.iter().all(|&byte| byte == 0);
        let (shape, offset) = (info.shape.clone(), (begin + start) as u64);
        (name, Raw { file_idx, shape, dtype: info.dtype, offset, says, is_zero })
    };
    Ok(header.offset_keys().into_iter().filter(|name| !is_left_out(name)).map(raw).collect())
}

/// Two whole numbers, in the types that they have in such files.
fn pair(dtype: Dtype, data: &[u8]) -> Option<[u64; 2]> {
    let numbers: Vec<i64> = match dtype {
        Dtype::I64 => data.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
        Dtype::I32 => data.as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes).into()).collect(),
        _ => return None,
    };
    match numbers[..] {
        [rows, columns] => Some([rows.try_into().ok()?, columns.try_into().ok()?]),
        _ => None,
    }
}

/// The JSON, if its length fits into the file.
fn header_bytes(file: &[u8]) -> Option<&[u8]> {
    let (len, rest) = file.split_first_chunk()?;
    rest.get(..usize::try_from(u64::from_le_bytes(*len)).ok()?)
}

fn check_names(header: &[u8]) -> serde_json::Result<()> {
    serde_json::Deserializer::from_slice(header).deserialize_map(Names)
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a header with each tensor once")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut names = BTreeSet::new();
        while let Some((name, _)) = map.next_entry::<String, IgnoredAny>()? {
            if name.contains('\0') {
                return Err(A::Error::custom(format!("the name {name:?} has a zero character")));
            }
            if let Some(name) = names.replace(name) {
                return Err(A::Error::custom(format!("the name {name:?} stands twice")));
            }
        }
        Ok(())
    }
}
