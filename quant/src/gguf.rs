//! GGUF files: keys and values, then a table of tensors, then their data.
//!
//! Each entry of the table has a name, the number of dimensions, the dimensions (the fastest first, unlike in Rust), the
//! type, and where the data starts, counted from where all data does: the first multiple of the alignment after the
//! table.

mod read;
mod write;

pub use read::{Gguf, Tensor};
pub use write::{NewTensor, Put, replace_values, write, write_in_pieces};

use crate::{Error, Format};

/// Most dimensions of a tensor (ggml's `GGML_MAX_DIMS`).
const MAX_DIMS: usize = 4;

/// Most bytes of a tensor's name (one less than ggml's `GGML_MAX_NAME`, which counts a closing zero).
const MAX_NAME: usize = 63;

/// Checks a name, and a shape in the order of rows, and gives the bytes that the tensor takes.
fn check(name: &str, shape: &[usize], format: Format) -> Result<usize, Error> {
    let wrong = |reason: String| Error::Tensor { name: name.to_owned(), reason };
    if name.len() > MAX_NAME {
        return Err(wrong(format!("the name has {} bytes, but may have {MAX_NAME}", name.len())));
    }
    let n_dims = shape.len();
    if !(1..=MAX_DIMS).contains(&n_dims) {
        return Err(wrong(format!("{n_dims} dimensions, but 1 to {MAX_DIMS} are possible")));
    }
    // Empty dimensions are legal in ggml. The others must have a product in any case, so that strides do.
    let product = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n.max(1)));
    if product.is_none_or(|product| i64::try_from(product).is_err()) {
        return Err(wrong(format!("the shape {shape:?} has more elements than can be counted")));
    }
    let row = shape[n_dims - 1];
    if !row.is_multiple_of(format.block_len()) {
        let block_len = format.block_len();
        return Err(wrong(format!("rows of {row} are no multiple of {block_len}, a block of {format}")));
    }
    let n_bytes = format.n_bytes(shape.iter().product()).filter(|&n_bytes| i64::try_from(n_bytes).is_ok());
    n_bytes.ok_or_else(|| wrong(format!("the shape {shape:?} has more bytes than can be counted")))
}
