//! Writing: one tensor after the other, each at once or in pieces, so that no more than that need be in memory.

use std::collections::HashSet;
use std::io::{self, Seek, SeekFrom, Write};

use tokenizer::gguf::{DEFAULT_ALIGNMENT, Value, write_head};

use super::check;
use crate::{Error, Format};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct NewTensor {
    /// Its name, of at most 63 bytes.
    pub name: String,
    /// Its dimensions, in the order of rows.
    pub shape: Vec<usize>,
    /// How its numbers are to be stored.
    pub format: Format,
}

/// Writes a file of version 3: the same bytes for the same contents. For the data of each tensor, in their order,
/// `bytes_of` is asked once: it appends the blocks of the tensor of that index to an empty buffer, as
/// [`Format::quantize`] does. The caller buffers `out`, and makes the file durable.
///
/// # Errors
/// [`Error::Gguf`] for keys and [`Error::Tensor`] for tensors that no reader would take (among them, data of the wrong
/// length), [`Error::Io`], and whatever `bytes_of` gives.
pub fn write(
    out: &mut impl Write,
    values: &[(String, Value)],
    tensors: &[NewTensor],
    mut bytes_of: impl FnMut(usize, &mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut bytes = Vec::new();
    write_in_pieces(out, values, tensors, |idx, put| {
        bytes.clear();
        bytes_of(idx, &mut bytes)?;
        put(&bytes)
    })
}

/// Takes the next bytes of a tensor.
pub type Put<'a> = dyn FnMut(&[u8]) -> Result<(), Error> + 'a;

/// As [`write()`], but a tensor's data comes in pieces, so that not even one tensor need be in memory: `pieces_of` is
/// asked once for each, and puts one piece after the other.
///
/// # Errors
/// As [`write()`].
pub fn write_in_pieces<E: From<Error>>(
    out: &mut impl Write,
    values: &[(String, Value)],
    tensors: &[NewTensor],
    mut pieces_of: impl FnMut(usize, &mut Put<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let alignment = alignment(values);
    let mut head = write_head(tensors.len(), values).map_err(Error::from)?;
    let sizes = write_table(tensors, alignment, &mut head)?;
    pad(&mut head, alignment);
    out.write_all(&head).map_err(Error::from)?;
    drop(head);
    for ((idx, tensor), n_bytes) in tensors.iter().enumerate().zip(sizes) {
        let mut n_put = 0;
        pieces_of(idx, &mut |bytes| {
            n_put += bytes.len();
            Ok(out.write_all(bytes)?)
        })?;
        if n_put != n_bytes {
            let reason = format!("{n_bytes} bytes are needed for its shape, but {n_put} were given");
            return Err(Error::Tensor { name: tensor.name.clone(), reason }.into());
        }
        let n_padding = n_bytes.next_multiple_of(alignment as usize) - n_bytes;
        out.write_all(&vec![0; n_padding]).map_err(Error::from)?;
    }
    Ok(())
}

/// Replaces the values of a file that was written with `old` ones by others that take as many bytes: numbers by
/// numbers, texts by texts of the same length. What is measured on the whole file can so be put into it.
///
/// # Errors
/// [`Error::Io`], also if the new values take another number of bytes.
pub fn replace_values(
    file: &mut (impl Write + Seek),
    n_tensors: usize,
    old: &[(String, Value)],
    new: &[(String, Value)],
) -> Result<(), Error> {
    let (before, after) = (write_head(n_tensors, old)?, write_head(n_tensors, new)?);
    if before.len() != after.len() {
        let why = format!("the values take {} bytes, the new ones {}", before.len(), after.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why).into());
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(file.write_all(&after)?)
}

/// Checks and appends the table of tensors; gives the bytes that each takes.
fn write_table(tensors: &[NewTensor], alignment: u64, head: &mut Vec<u8>) -> Result<Vec<usize>, Error> {
    let mut names = HashSet::new();
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut offset = 0u64;
    for tensor in tensors {
        let n_bytes = check(&tensor.name, &tensor.shape, tensor.format)?;
        let wrong = |reason: &str| Error::Tensor { name: tensor.name.clone(), reason: reason.to_owned() };
        if !names.insert(&tensor.name) {
            return Err(wrong("the name stands twice"));
        }
        write_entry(tensor, offset, head);
        let next = offset.checked_add(n_bytes as u64).and_then(|end| end.checked_next_multiple_of(alignment));
        offset = next.ok_or_else(|| wrong("it ends where no file can"))?;
        sizes.push(n_bytes);
    }
    Ok(sizes)
}

/// What `general.alignment` among the values says; the start of the file refuses it if it is none.
fn alignment(values: &[(String, Value)]) -> u64 {
    let own = values.iter().find_map(|(key, value)| match value {
        Value::U32(alignment) if key == "general.alignment" => Some(*alignment),
        _ => None,
    });
    own.unwrap_or(DEFAULT_ALIGNMENT).into()
}

fn write_entry(tensor: &NewTensor, offset: u64, out: &mut Vec<u8>) {
    out.extend((tensor.name.len() as u64).to_le_bytes());
    out.extend(tensor.name.as_bytes());
    out.extend((tensor.shape.len() as u32).to_le_bytes());
    for &n in tensor.shape.iter().rev() {
        out.extend((n as u64).to_le_bytes());
    }
    out.extend(tensor.format.number().to_le_bytes());
    out.extend(offset.to_le_bytes());
}

fn pad(bytes: &mut Vec<u8>, alignment: u64) {
    bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
}
