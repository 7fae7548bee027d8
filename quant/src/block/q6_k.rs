//! Q6_K: `x = scale * s * (q - 32)`, with s for every 16 numbers.
//!
//! | bytes | what |
//! |---|---|
//! | 128 | the lower 4 bits of q: byte b of each 64 has number b of 128 in its lower half, b + 64 in the upper |
//! | 64 | the upper 2 bits: byte b of each 32 has the numbers b, b + 32, b + 64 and b + 96 of 128, lowest bits first |
//! | 16 | s, 8 bits with a sign |
//! | 2 | scale, f16 |

use super::fit::{Signed, TINY, extreme, nearest, signed, squares};
use super::{HALF, LARGE, each_block, each_row, each_weighed, half, half_at};

const LOW: usize = LARGE / 2;
const HIGH: usize = LARGE / 4;
const SCALES: usize = LARGE / 16;

/// Bytes of a block.
pub const Q6_K: usize = LOW + HIGH + SCALES + HALF;
const _: () = assert!(Q6_K == 210);

pub fn dequantize(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; Q6_K], out: &mut [f32; LARGE]| {
        let scale = half_at(&block[LOW + HIGH + SCALES..]);
        let (low, high) = (block.as_chunks::<16>().0, block[LOW..].as_chunks::<16>().0);
        for (idx, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            // 128 numbers are 8 groups: four share the lower halves of 64 bytes, four the upper ones.
            let (half_idx, group) = (idx / 8, idx % 8);
            let scale = scale * f32::from(block[LOW + HIGH + idx] as i8);
            let (low, low_shift) = (&low[half_idx * 4 + group % 4], group / 4 * 4);
            let (high, high_shift) = (&high[half_idx * 2 + group % 2], group / 2 * 2);
            for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
                let number = low >> low_shift & 15 | (high >> high_shift & 3) << 4;
                *out = scale * f32::from(number as i8 - 32);
            }
        }
    });
}

/// First each group gets a scale of its own, then these are quantized, then the numbers by what they became.
pub fn quantize(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; LARGE]| block(values, |_, row| signed(row, &squares(row), 32)));
}

/// The same; errors weigh what their columns are important.
pub fn weighed(row: &[f32], importance: &[f32], out: &mut Vec<u8>) {
    each_weighed(row, importance, out, |values: &[f32; LARGE], importance: &[f32; LARGE]| {
        let importance = importance.as_chunks::<16>().0;
        block(values, |idx, row| signed(row, &importance[idx], 32))
    });
}

/// A block, by how a group gets its scale.
fn block(values: &[f32; LARGE], fit: impl Fn(usize, &[f32; 16]) -> Signed<16>) -> [u8; Q6_K] {
    let rows = values.as_chunks::<16>().0;
    let mut groups: [Signed<16>; SCALES] = std::array::from_fn(|idx| fit(idx, &rows[idx]));
    let scales: [f32; SCALES] = std::array::from_fn(|idx| groups[idx].scale);
    let max_scale = extreme(&scales);
    let mut block = [0; Q6_K];
    if max_scale.abs() < TINY {
        return block;
    }
    let inverse = -128.0 / max_scale;
    let scale = half(1.0 / inverse);
    block[LOW + HIGH + SCALES..].copy_from_slice(&scale);
    let mut quants = [0; LARGE];
    for (idx, (group, row)) in groups.iter_mut().zip(rows).enumerate() {
        let quant = nearest(inverse * group.scale).min(127) as i8;
        block[LOW + HIGH + idx] = quant as u8;
        let scale = half_at(&scale) * f32::from(quant);
        if scale != 0.0 {
            group.quants = row.map(|value| (nearest(value / scale).clamp(-32, 31) + 32) as u8);
        }
        quants[16 * idx..][..16].copy_from_slice(&group.quants);
    }
    let (low, rest) = block.split_at_mut(LOW);
    for (idx, byte) in low.iter_mut().enumerate() {
        let first = idx / 64 * 128 + idx % 64;
        *byte = quants[first] & 15 | quants[first + 64] << 4;
    }
    for (idx, byte) in rest[..HIGH].iter_mut().enumerate() {
        let first = idx / 32 * 128 + idx % 32;
        *byte = (0..4).fold(0, |byte, part| byte | quants[first + 32 * part] >> 4 << (2 * part));
    }
    block
}
