//! Q3_K: `x = scale * (s - 32) * (q - 4)`, with s for every 16 numbers.
//!
//! | bytes | what |
//! |---|---|
//! | 32 | the highest bit of q: byte b has in bit n that of number 32 n + b |
//! | 64 | the lower 2 bits: byte b of each 32 has the numbers b, b + 32, b + 64 and b + 96 of 128, lowest bits first |
//! | 12 | s, 6 bits: the lower 4 of s 0 to 7 in the lower halves of bytes 0 to 7, of 8 to 15 in the upper ones; the upper 2 of s n in byte 8 + n % 4, lowest bits first |
//! | 2 | scale, f16 |

use super::fit::{Signed, mean_square, moved, nearest, signed, sum, weights};
use super::{HALF, LARGE, each_block, each_row, each_weighed, half, half_at, pack_2_bits};

const HIGH: usize = LARGE / 8;
const QUANTS: usize = LARGE / 4;
const SCALES: usize = 12;

/// Bytes of a block.
pub const Q3_K: usize = HIGH + QUANTS + SCALES + HALF;
const _: () = assert!(Q3_K == 110);

pub fn dequantize(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; Q3_K], out: &mut [f32; LARGE]| {
        let packed = &block[HIGH + QUANTS..];
        let scale = half_at(&packed[SCALES..]);
        let (high, quants) = (block.as_chunks::<16>().0, block[HIGH..].as_chunks::<16>().0);
        for (idx, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = scale * f32::from(group_scale(packed, idx));
            let (bytes, shift) = (&quants[idx / 8 * 2 + idx % 2], idx % 8 / 2 * 2);
            let (high, bit) = (&high[idx % 2], idx / 2);
            for ((out, byte), high) in out.iter_mut().zip(bytes).zip(high) {
                let number = byte >> shift & 3 | (high >> bit & 1) << 2;
                *out = scale * f32::from(number as i8 - 4);
            }
        }
    });
}

/// First each group gets a scale of its own, then these are quantized, then the numbers by what they became.
pub fn quantize(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; LARGE]| {
        let rows = values.as_chunks::<16>().0;
        let groups: [Signed<16>; LARGE / 16] = std::array::from_fn(|idx| moved(&rows[idx], 4));
        let scales: [f32; LARGE / 16] = std::array::from_fn(|idx| groups[idx].scale);
        let max_scale = super::fit::extreme(&scales);
        let (mut packed, mut scale) = ([0; SCALES], 0.0);
        if max_scale != 0.0 {
            let inverse = -32.0 / max_scale;
            // Eight bits are kept before the bounds, as in ggml.
            let quant = |scale: f32| (i32::from(nearest(inverse * scale) as i8).clamp(-32, 31) + 32) as u8;
            packed = pack_scales(&scales.map(quant));
            scale = 1.0 / inverse;
        }
        block(values, groups, &packed, half(scale))
    });
}

/// The same; errors of numbers weigh what their columns are important, those of scales what their groups are.
pub fn weighed(row: &[f32], importance: &[f32], out: &mut Vec<u8>) {
    each_weighed(row, importance, out, |values: &[f32; LARGE], importance: &[f32; LARGE]| {
        let around = 2.0 * mean_square(values);
        let (rows, columns) = (values.as_chunks::<16>().0, importance.as_chunks::<16>().0);
        let weights: [[f32; 16]; LARGE / 16] =
            std::array::from_fn(|idx| weights(&rows[idx], &columns[idx], around));
        let groups: [Signed<16>; LARGE / 16] =
            std::array::from_fn(|idx| signed(&rows[idx], &weights[idx], 4));
        let scales = signed(
            &std::array::from_fn(|idx| groups[idx].scale),
            &std::array::from_fn::<_, { LARGE / 16 }, _>(|idx| sum(&weights[idx])),
            32,
        );
        block(values, groups, &pack_scales(&scales.quants), half(scales.scale))
    });
}

/// A block of groups whose scales are packed.
fn block(
    values: &[f32; LARGE],
    groups: [Signed<16>; LARGE / 16],
    packed: &[u8; SCALES],
    half_scale: [u8; HALF],
) -> [u8; Q3_K] {
    let scale = half_at(&half_scale);
    let mut quants = [0; LARGE];
    for (idx, (group, row)) in groups.iter().zip(values.as_chunks::<16>().0).enumerate() {
        let scale = scale * f32::from(group_scale(packed, idx));
        let row = match scale {
            0.0 => group.quants,
            _ => row.map(|value| (nearest(value / scale).clamp(-4, 3) + 4) as u8),
        };
        quants[16 * idx..][..16].copy_from_slice(&row);
    }
    let mut block = [0; Q3_K];
    for (idx, quant) in quants.iter_mut().enumerate() {
        block[idx % HIGH] |= (*quant >> 2) << (idx / HIGH);
        *quant &= 3;
    }
    pack_2_bits(&quants, &mut block[HIGH..][..QUANTS]);
    block[HIGH + QUANTS..][..SCALES].copy_from_slice(packed);
    block[HIGH + QUANTS + SCALES..].copy_from_slice(&half_scale);
    block
}

/// Scales of 6 bits.
fn pack_scales(scales: &[u8; LARGE / 16]) -> [u8; SCALES] {
    let mut packed = [0; SCALES];
    for (idx, scale) in scales.iter().enumerate() {
        packed[idx % 8] |= (scale & 15) << (idx / 8 * 4);
        packed[8 + idx % 4] |= (scale >> 4) << (idx / 4 * 2);
    }
    packed
}

/// s - 32 of a group of 16 numbers.
pub fn group_scale(packed: &[u8], idx: usize) -> i8 {
    let low = packed[idx % 8] >> (idx / 8 * 4) & 15;
    (low | (packed[8 + idx % 4] >> (idx / 4 * 2) & 3) << 4) as i8 - 32
}
