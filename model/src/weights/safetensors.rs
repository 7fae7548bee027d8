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
use super::archive::{Archive, Stored};
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
        entries.insert(
            name,
            serde_json::json!({
                "dtype": tensor.format.name(),
                "shape": tensor.shape,
                "data_offsets": [begin, end],
            }),
        );
    }
    let mut header = serde_json::to_string(&entries).expect("plain data");
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    header
}

/// The tensors of the files that a model's weights are spread over, but for those that are left out.
///
/// # Errors
/// [`Error`] names the file and what is wrong with it: lengths and places that do not add up to exactly the file, a name
/// that stands twice, a type that is not read.
pub(super) fn open(paths: &[PathBuf], is_left_out: fn(&str) -> bool) -> Result<Archive, Error> {
    let mut archive = Archive::default();
    for path in paths {
        archive.add(path, tensors_of(path, is_left_out)?)?;
    }
    Ok(archive)
}

fn tensors_of(path: &Path, is_left_out: fn(&str) -> bool) -> Result<Vec<(String, Stored)>, Error> {
    let map = Mmap::open(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let wrong = |why: String| Error::Format { path: path.into(), why };
    // The reader below takes the last of two tensors of one name, and any name.
    if let Some(header) = header_bytes(&map) {
        check_names(header).map_err(|error| wrong(error.to_string()))?;
    }
    let (header_len, header) = SafeTensors::read_metadata(&map).map_err(|error| wrong(error.to_string()))?;
    let begin = 8 + header_len as u64;
    let stored = |name: String| {
        let info = header.info(&name).expect("one of its own names");
        let format = match info.dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::BF16,
            other => return Err(Error::Dtype { path: path.into(), name, dtype: format!("{other:?}") }),
        };
        let offset = begin + info.data_offsets.0 as u64;
        Ok((name, Stored { shape: info.shape.clone(), format, offset }))
    };
    header.offset_keys().into_iter().filter(|name| !is_left_out(name)).map(stored).collect()
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
