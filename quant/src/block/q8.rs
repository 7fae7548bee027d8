//! Q8_0: `x = scale * q`.
//!
//! | bytes | what |
//! |---|---|
//! | 2 | scale, f16 |
//! | 32 | q, 8 bits with a sign |

use super::{HALF, SMALL, each_block, each_row, half, half_at, inverse};

/// Bytes of a block.
pub const Q8_0: usize = HALF + SMALL;
const _: () = assert!(Q8_0 == 34);

pub fn dequantize_q8_0(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; Q8_0], out: &mut [f32; SMALL]| {
        let scale = half_at(block);
        for idx in 0..SMALL {
            out[idx] = f32::from(block[HALF + idx] as i8) * scale;
        }
    });
}

/// The scale brings the largest magnitude to 127.
pub fn quantize_q8_0(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; SMALL]| {
        let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let scale = largest / 127.0;
        let inverse = inverse(scale);
        let mut block = [0; Q8_0];
        block[..HALF].copy_from_slice(&half(scale));
        for (byte, value) in block[HALF..].iter_mut().zip(values) {
            *byte = (value * inverse).round() as i8 as u8;
        }
        block
    });
}
