//! Q4_0: `x = scale * (q - 8)`, and Q4_1: `x = scale * q + min`.
//!
//! | bytes of Q4_0 | of Q4_1 | what |
//! |---|---|---|
//! | 2 | 2 | scale, f16 |
//! | | 2 | min, f16 |
//! | 16 | 16 | q, 4 bits: of the numbers 0 to 15 in the lower halves, of 16 to 31 in the upper ones |

use super::fit::{Steps, affine, mean_square, signed, weights};
use super::{HALF, SMALL, each_block, each_row, each_weighed, half, half_at, inverse};

/// Bytes of a block.
pub const Q4_0: usize = HALF + SMALL / 2;
/// Bytes of a block.
pub const Q4_1: usize = 2 * HALF + SMALL / 2;
const _: () = assert!(Q4_0 == 18 && Q4_1 == 20);

pub fn dequantize_q4_0(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; Q4_0], out: &mut [f32; SMALL]| {
        let scale = half_at(block);
        for idx in 0..SMALL / 2 {
            let byte = block[HALF + idx];
            out[idx] = f32::from((byte & 15) as i8 - 8) * scale;
            out[idx + SMALL / 2] = f32::from((byte >> 4) as i8 - 8) * scale;
        }
    });
}

pub fn dequantize_q4_1(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; Q4_1], out: &mut [f32; SMALL]| {
        let (scale, min) = (half_at(block), half_at(&block[HALF..]));
        for idx in 0..SMALL / 2 {
            let byte = block[2 * HALF + idx];
            out[idx] = f32::from(byte & 15) * scale + min;
            out[idx + SMALL / 2] = f32::from(byte >> 4) * scale + min;
        }
    });
}

/// The scale brings the number of largest magnitude to -8, whichever sign it has: that side reaches further than +7.
pub fn quantize_q4_0(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; SMALL]| {
        let scale = extreme(values) / -8.0;
        let inverse = inverse(scale);
        let mut block = [0; Q4_0];
        block[..HALF].copy_from_slice(&half(scale));
        pack(&mut block[HALF..], |idx| (values[idx] * inverse + 8.5) as u8);
        block
    });
}

/// The scale and the minimum bring the numbers to 0 to 15.
pub fn quantize_q4_1(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; SMALL]| {
        let (min, max) = bounds(values);
        let scale = (max - min) / 15.0;
        let inverse = inverse(scale);
        let mut block = [0; Q4_1];
        block[..HALF].copy_from_slice(&half(scale));
        block[HALF..2 * HALF].copy_from_slice(&half(min));
        pack(&mut block[2 * HALF..], |idx| ((values[idx] - min) * inverse + 0.5) as u8);
        block
    });
}

/// The scale is the best of several for the important numbers.
pub fn weighed_q4_0(row: &[f32], importance: &[f32], out: &mut Vec<u8>) {
    let around = mean_square(row);
    each_weighed(row, importance, out, |values: &[f32; SMALL], importance| {
        let group = signed(values, &weights(values, importance, around), 8);
        let mut block = [0; Q4_0];
        block[..HALF].copy_from_slice(&half(group.scale));
        pack(&mut block[HALF..], |idx| group.quants[idx]);
        block
    });
}

/// The scale and the minimum, not above 0, are the best of several for the important numbers.
pub fn weighed_q4_1(row: &[f32], importance: &[f32], out: &mut Vec<u8>) {
    let around = mean_square(row);
    each_weighed(row, importance, out, |values: &[f32; SMALL], importance| {
        let group = affine(values, &weights(values, importance, around), &Steps::weighed(15));
        let mut block = [0; Q4_1];
        block[..HALF].copy_from_slice(&half(group.scale));
        block[HALF..2 * HALF].copy_from_slice(&half(-group.min));
        pack(&mut block[2 * HALF..], |idx| group.quants[idx]);
        block
    });
}

/// The first of the numbers with the largest magnitude.
pub(super) fn extreme(values: &[f32; SMALL]) -> f32 {
    values.iter().fold(0.0, |extreme: f32, &value| if value.abs() > extreme.abs() { value } else { extreme })
}

/// The smallest and the largest number. By comparisons: of two zeros the first counts, whatever its sign.
pub(super) fn bounds(values: &[f32; SMALL]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, f32::MIN);
    for &value in values {
        if value < min {
            min = value;
        }
        if value > max {
            max = value;
        }
    }
    (min, max)
}

/// Two numbers of 4 bits in each byte; larger ones become 15.
fn pack(bytes: &mut [u8], quantized: impl Fn(usize) -> u8) {
    for (idx, byte) in bytes.iter_mut().enumerate() {
        *byte = quantized(idx).min(15) | quantized(idx + SMALL / 2).min(15) << 4;
    }
}
