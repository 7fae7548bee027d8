//! Q4_K: `x = scale * s * q - min * m`, with s and m for every 32 numbers.
//!
//! | bytes | what |
//! |---|---|
//! | 2 | scale, f16 |
//! | 2 | min, f16 |
//! | 12 | s and m, 6 bits each (`scale_and_min`) |
//! | 128 | q, 4 bits: byte b of each 32 has number b of 64 in its lower half, b + 32 in the upper |

use super::fit::{Affine, Steps, affine, nearest};
use super::{HALF, LARGE, each_block, each_row, half, half_at, scale_and_min};

const SCALES: usize = 12;

/// Bytes of a block.
pub const Q4_K: usize = 2 * HALF + SCALES + LARGE / 2;
const _: () = assert!(Q4_K == 144);

pub fn dequantize(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; Q4_K], out: &mut [f32; LARGE]| {
        let (scale, min) = (half_at(block), half_at(&block[HALF..]));
        let packed = block[2 * HALF..].first_chunk().unwrap_or(&[0; SCALES]);
        let quants = block[2 * HALF + SCALES..].as_chunks::<32>().0;
        for (idx, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (s, m) = scale_and_min(idx, packed);
            let (scale, min) = (scale * f32::from(s), min * f32::from(m));
            let shift = idx % 2 * 4;
            for (out, byte) in out.iter_mut().zip(&quants[idx / 2]) {
                *out = scale * f32::from(byte >> shift & 15) - min;
            }
        }
    });
}

/// What is tried for the scales of groups.
const STEPS: Steps = Steps { max: 15, first: -1.0, last: 20, absolute: false };

pub fn quantize(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; LARGE]| {
        let mut block = [0; Q4_K];
        let (head, packed) = block.split_at_mut(2 * HALF + SCALES);
        let quants = quantize_groups(values, &STEPS, head);
        for (idx, byte) in packed.iter_mut().enumerate() {
            let first = idx / 32 * 64 + idx % 32;
            *byte = quants[first] | quants[first + 32] << 4;
        }
        block
    });
}

/// Writes scales and minimums to the head of a block, and gives the numbers that go with them (Q4_K, Q5_K): first each
/// group gets a scale and a minimum of its own, then these are quantized, then the numbers by what they became.
pub(super) fn quantize_groups(values: &[f32; LARGE], steps: &Steps, head: &mut [u8]) -> [u8; LARGE] {
    let rows = values.as_chunks::<32>().0;
    let groups: [Affine<32>; 8] = std::array::from_fn(|idx| {
        let squares = rows[idx].iter().fold(0.0f32, |sum, value| sum + value * value);
        let mean = (squares / 32.0).sqrt();
        affine(&rows[idx], &rows[idx].map(|value| mean + value.abs()), steps)
    });
    let largest = |of: fn(&Affine<32>) -> f32| {
        groups.iter().map(of).fold(0.0, |largest, value| if value > largest { value } else { largest })
    };
    let (max_scale, max_min) = (largest(|group| group.scale), largest(|group| group.min));
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (inverse_scale, inverse_min) = (inverse(max_scale), inverse(max_min));
    let (scale, min) = (half(max_scale / 63.0), half(max_min / 63.0));
    head[..HALF].copy_from_slice(&scale);
    head[HALF..2 * HALF].copy_from_slice(&min);
    let mut packed = [0; SCALES];
    for (idx, group) in groups.iter().enumerate() {
        let s = (nearest(inverse_scale * group.scale) as u8).min(63);
        let m = (nearest(inverse_min * group.min) as u8).min(63);
        if idx < 4 {
            (packed[idx], packed[idx + 4]) = (s, m);
        } else {
            packed[idx + 4] = s & 15 | m << 4;
            packed[idx - 4] |= s >> 4 << 6;
            packed[idx] |= m >> 4 << 6;
        }
    }
    head[2 * HALF..].copy_from_slice(&packed);
    let mut quants = [0; LARGE];
    for (idx, (group, row)) in groups.iter().zip(rows).enumerate() {
        let (s, m) = scale_and_min(idx, &packed);
        let (scale, min) = (half_at(&scale) * f32::from(s), half_at(&min) * f32::from(m));
        let row = match scale {
            0.0 => group.quants,
            _ => row.map(|value| nearest((value + min) / scale).clamp(0, steps.max) as u8),
        };
        quants[32 * idx..][..32].copy_from_slice(&row);
    }
    quants
}
