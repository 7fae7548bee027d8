//! Rows of blocks, read and packed.

use std::ops::Range;

use kernels::packed::{Matrix, Part, Rows};
use quant::Format;

/// Reads rows of `width` numbers one by one and packed, and holds both to what all of them are.
pub fn agree(format: Format, bytes: &[u8], all: &[f32], width: usize) {
    let (n_rows, row_bytes) = (all.len() / width, format.n_bytes(width).expect("whole blocks"));
    let read = |rows: Range<usize>, out: &mut Rows| {
        format.append_to(&bytes[rows.start * row_bytes..rows.end * row_bytes], out);
        Ok::<(), ()>(())
    };
    let matrix = Matrix::new(vec![Part::new(format.packed(), n_rows, width, read).expect("nothing fails")]);
    let (mut alone, mut packed) = (vec![0.0; width], vec![0.0; width]);
    for (i, expected) in all.chunks_exact(width).enumerate() {
        format.dequantize(&bytes[i * row_bytes..][..row_bytes], &mut alone);
        matrix.row(i, &mut packed);
        for (k, &x) in expected.iter().enumerate() {
            let is = |y: f32| x == y || x.is_nan() && y.is_nan();
            assert!(is(alone[k]) && is(packed[k]), "{format} [{i}, {k}]: {x}, {}, {}", alone[k], packed[k]);
        }
    }
}
