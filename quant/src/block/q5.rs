//! Q5_0: `x = scale * (q - 16)`, and Q5_1: `x = scale * q + min`.
//!
//! | bytes of Q5_0 | of Q5_1 | what |
//! |---|---|---|
//! | 2 | 2 | scale, f16 |
//! | | 2 | min, f16 |
//! | 4 | 4 | the highest bit of q: of number n in bit n |
//! | 16 | 16 | the lower 4 bits: of the numbers 0 to 15 in the lower halves, of 16 to 31 in the upper ones |

use super::fit::{Steps, affine, mean_square, signed, weights};
use super::q4::{bounds, extreme};
use super::{HALF, SMALL, each_block, each_row, each_weighed, half, half_at, inverse};

/// Bytes of the highest bits.
const HIGH: usize = SMALL / 8;

/// Bytes of a block.
pub const Q5_0: usize = HALF + HIGH + SMALL / 2;
/// Bytes of a block.
pub const Q5_1: usize = 2 * HALF + HIGH + SMALL / 2;
const _: () = assert!(Q5_0 == 22 && Q5_1 == 24);

pub fn dequantize_q5_0(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; Q5_0], out: &mut [f32; SMALL]| {
        let scale = half_at(block);
        let numbers = unpack(block[HALF..].first_chunk().unwrap_or(&[0; HIGH + SMALL / 2]));
        for (out, number) in out.iter_mut().zip(numbers) {
            *out = f32::from(number as i8 - 16) * scale;
        }
    });
}

pub fn dequantize_q5_1(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; Q5_1], out: &mut [f32; SMALL]| {
        let (scale, min) = (half_at(block), half_at(&block[HALF..]));
        let numbers = unpack(block[2 * HALF..].first_chunk().unwrap_or(&[0; HIGH + SMALL / 2]));
        for (out, number) in out.iter_mut().zip(numbers) {
            *out = f32::from(number) * scale + min;
        }
    });
}

/// The scale brings the number of largest magnitude to -16.
pub fn quantize_q5_0(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; SMALL]| {
        let scale = extreme(values) / -16.0;
        let inverse = inverse(scale);
        let mut block = [0; Q5_0];
        block[..HALF].copy_from_slice(&half(scale));
        pack(&mut block[HALF..], values.map(|value| (value * inverse + 16.5) as u8));
        block
    });
}

/// The scale and the minimum bring the numbers to 0 to 31.
pub fn quantize_q5_1(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; SMALL]| {
        let (min, max) = bounds(values);
        let scale = (max - min) / 31.0;
        let inverse = inverse(scale);
        let mut block = [0; Q5_1];
        block[..HALF].copy_from_slice(&half(scale));
        block[HALF..2 * HALF].copy_from_slice(&half(min));
        pack(&mut block[2 * HALF..], values.map(|value| ((value - min) * inverse + 0.5) as u8));
        block
    });
}

/// The scale is the best of several for the important numbers.
pub fn weighed_q5_0(row: &[f32], importance: &[f32], out: &mut Vec<u8>) {
    let around = mean_square(row);
    each_weighed(row, importance, out, |values: &[f32; SMALL], importance| {
        let group = signed(values, &weights(values, importance, around), 16);
        let mut block = [0; Q5_0];
        block[..HALF].copy_from_slice(&half(group.scale));
        pack(&mut block[HALF..], group.quants);
        block
    });
}

/// The scale and the minimum, not above 0, are the best of several for the important numbers.
pub fn weighed_q5_1(row: &[f32], importance: &[f32], out: &mut Vec<u8>) {
    let around = mean_square(row);
    each_weighed(row, importance, out, |values: &[f32; SMALL], importance| {
        let group = affine(values, &weights(values, importance, around), &Steps::weighed(31));
        let mut block = [0; Q5_1];
        block[..HALF].copy_from_slice(&half(group.scale));
        block[HALF..2 * HALF].copy_from_slice(&half(-group.min));
        pack(&mut block[2 * HALF..], group.quants);
        block
    });
}

/// The numbers of 5 bits.
fn unpack(packed: &[u8; HIGH + SMALL / 2]) -> [u8; SMALL] {
    let high = u32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]);
    let mut numbers = [0; SMALL];
    for idx in 0..SMALL / 2 {
        let low = packed[HIGH + idx];
        numbers[idx] = low & 15 | (((high >> idx & 1) as u8) << 4);
        numbers[idx + SMALL / 2] = low >> 4 | (((high >> (idx + SMALL / 2) & 1) as u8) << 4);
    }
    numbers
}

/// Numbers of 5 bits, the highest of each apart; larger ones become 31.
fn pack(bytes: &mut [u8], numbers: [u8; SMALL]) {
    let numbers = numbers.map(|number| number.min(31));
    let (low, high) = numbers.split_at(SMALL / 2);
    let (highest, packed) = bytes.split_at_mut(HIGH);
    for (idx, number) in numbers.iter().enumerate() {
        highest[idx / 8] |= (number >> 4) << (idx % 8);
    }
    for ((byte, low), high) in packed.iter_mut().zip(low).zip(high) {
        *byte = low & 15 | high << 4;
    }
}
