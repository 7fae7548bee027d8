//! Packing matrices as they are read: each tensor in the numbers that its file has, rows in the order that they have here.

use std::ops::Range;

use kernels::packed::Rows;
use quant::Format;

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
    if form == Form::Transposed {
        let mut values = kernels::memory::zeroed(n_out * n_in);
        archive.read(name, 0, &mut values)?;
        form.undo(&mut values, &[n_out, n_in]);
        // Numbers of a float format go back to it unchanged; those of blocks were made for rows that these are not.
        let format = stored.encoding.float().unwrap_or(Format::F32);
        let read = move |rows: Range<usize>, out: &mut Rows| {
            let mut bytes = Vec::new();
            format.quantize(&values[rows.start * n_in..rows.end * n_in], &mut bytes);
            format.append_to(&bytes, out);
            Ok(())
        };
        return Ok(Source { kind: format.packed(), n_out, read: Box::new(read) });
    }
    let first_row = found.first() / n_in;
    let read = move |rows: Range<usize>, out: &mut Rows| {
        if form == Form::Same {
            return archive.read_packed(name, (first_row + rows.start) * n_in, rows.len() * n_in, out);
        }
        rows.into_iter().try_for_each(|row| {
            archive.read_packed(name, (first_row + form.row_in_file(row, n_out)) * n_in, n_in, out)
        })
    };
    Ok(Source { kind: stored.packed(), n_out, read: Box::new(read) })
}

/// Bytes of the numbers of a matrix, packed; short of rows that fill up the last tile.
pub(super) fn packed_bytes(stored: &Stored) -> u64 {
    (stored.n_elements() as f64 * stored.packed().bits_per_number() / 8.0) as u64
}
