//! Packing matrices as they are read: each tensor in the numbers that its file has, rows in the order that they have here.
//!
//! Single precision of which 16 bits tell everything is packed in these: half the memory, and to the bit the same results.

use std::ops::Range;

use kernels::packed::{Kind, Rows};
use quant::Format;
use rayon::prelude::*;

use super::Error;
use super::archive::{Archive, Stored};
use super::names::Form;
use super::parameters::Found;
use crate::ops::{FusedOps, PackedMatrix, Source};

/// Reads tensors one below the other. A row has `n_in` numbers.
///
/// # Errors
/// If a file cannot be read.
pub(super) fn pack<B: FusedOps>(
    archive: &Archive,
    found: &[Found],
    n_in: usize,
    device: &B::Device,
) -> Result<PackedMatrix, Error> {
    let sources = found.iter().map(|found| source(archive, found, n_in)).collect::<Result<Vec<_>, _>>()?;
    B::pack(&sources, n_in, device)
}

fn source<'a>(archive: &'a Archive, found: &'a Found, n_in: usize) -> Result<Source<'a, Error>, Error> {
    let (name, form, n_out) = (&found.name, found.piece.form, found.piece.rows);
    let stored = archive.get(name).expect("a tensor that was found");
    let is_single = stored.encoding.float() == Some(Format::F32);
    if form == Form::Transposed {
        let mut values = kernels::memory::zeroed(n_out * n_in);
        archive.read(name, 0, &mut values)?;
        form.undo(&mut values, &[n_out, n_in]);
        // Numbers of a float format go back to it unchanged; those of blocks were made for rows that these are not.
        let format = stored.encoding.float().unwrap_or(Format::F32);
        let narrow = NARROW.into_iter().find(|&(format, _)| is_single && holds(format, &values));
        let (format, kind) = narrow.unwrap_or((format, format.packed()));
        let read = move |rows: Range<usize>, out: &mut Rows| {
            append(format, &values[rows.start * n_in..rows.end * n_in], out);
            Ok(())
        };
        return Ok(Source { kind, n_out, read: Box::new(read) });
    }
    let first = found.first();
    let narrow = if is_single { narrow(archive, name, first..first + n_out * n_in)? } else { None };
    let read_rows = move |row: usize, n_rows: usize, out: &mut Rows| {
        let (first, n) = (first + row * n_in, n_rows * n_in);
        let Some((format, _)) = narrow else { return archive.read_packed(name, first, n, out) };
        let mut values = vec![0.0; n];
        archive.read(name, first, &mut values)?;
        append(format, &values, out);
        Ok(())
    };
    let read = move |rows: Range<usize>, out: &mut Rows| match form {
        Form::Same => read_rows(rows.start, rows.len(), out),
        _ => rows.into_iter().try_for_each(|row| read_rows(form.row_in_file(row, n_out), 1, out)),
    };
    let kind = narrow.map_or_else(|| stored.packed(), |(_, kind)| kind);
    Ok(Source { kind, n_out, read: Box::new(read) })
}

/// Formats of 16 bits, and how single precision is packed whose numbers are all of such a format: many a file is the model
/// of another, written out.
const NARROW: [(Format, Kind); 2] = [(Format::F16, Kind::F16), (Format::BF16, Kind::F32AsBF16)];

/// Numbers that are looked at in one go.
const PIECE: usize = 1 << 16;

/// The format of 16 bits of which all of these numbers of a tensor are, if they are. The first that is not ends the search.
fn narrow(archive: &Archive, name: &str, of: Range<usize>) -> Result<Option<(Format, Kind)>, Error> {
    for (format, kind) in NARROW {
        // Done when one does not fit, or cannot be read.
        let look = |values: &mut Vec<f32>, first: usize| {
            values.resize(PIECE.min(of.end - first), 0.0);
            archive.read(name, first, values).map_err(Some)?;
            if holds(format, values) { Ok(()) } else { Err(None) }
        };
        let pieces = of.clone().into_par_iter().step_by(PIECE);
        match pieces.try_for_each_init(Vec::new, look) {
            Ok(()) => return Ok(Some((format, kind))),
            Err(None) => {}
            Err(Some(error)) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether numbers are the same to the bit in a float format.
fn holds(format: Format, values: &[f32]) -> bool {
    let (mut bytes, mut back) = (Vec::new(), vec![0.0; values.len()]);
    format.quantize(values, &mut bytes);
    format.dequantize(&bytes, &mut back);
    back.iter().zip(values).all(|(back, value)| back.to_bits() == value.to_bits())
}

/// Appends numbers in a format that holds them.
fn append(format: Format, values: &[f32], out: &mut Rows) {
    let mut bytes = Vec::new();
    format.quantize(values, &mut bytes);
    format.append_to(&bytes, out);
}

/// Bytes of the numbers of a matrix, packed; short of rows that fill up the last tile.
pub(super) fn packed_bytes(stored: &Stored) -> u64 {
    (stored.n_elements() as f64 * stored.packed().bits_per_number() / 8.0) as u64
}
