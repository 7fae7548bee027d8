//! Q2_K: `x = scale * s * q - min * m`, with s and m for every 16 numbers.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | s in the lower 4 bits, m in the upper |
//! | 64 | q, 2 bits: byte b of each 32 has the numbers b, b + 32, b + 64 and b + 96 of 128, lowest bits first |
//! | 2 | scale, f16 |
//! | 2 | min, f16 |

use super::fit::{Affine, Steps, affine, mean_square, nearest, positive, sum, weights};
use super::{HALF, LARGE, each_block, each_row, each_weighed, half, half_at, pack_2_bits};

const SCALES: usize = LARGE / 16;
const QUANTS: usize = LARGE / 4;

/// Bytes of a block.
pub const Q2_K: usize = SCALES + QUANTS + 2 * HALF;
const _: () = assert!(Q2_K == 84);

pub fn dequantize(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; Q2_K], out: &mut [f32; LARGE]| {
        let (scale, min) = (half_at(&block[SCALES + QUANTS..]), half_at(&block[SCALES + QUANTS + HALF..]));
        let (groups, quants) = (out.as_chunks_mut::<16>().0, block[SCALES..].as_chunks::<16>().0);
        for (idx, (out, packed)) in groups.iter_mut().zip(block).enumerate() {
            let (scale, min) = (scale * f32::from(packed & 15), min * f32::from(packed >> 4));
            // Of 8 groups that share 32 bytes, two have the same bits, of the one and of the other 16 bytes.
            let (bytes, shift) = (&quants[idx / 8 * 2 + idx % 2], idx % 8 / 2 * 2);
            for (out, byte) in out.iter_mut().zip(bytes) {
                *out = scale * f32::from(byte >> shift & 3) - min;
            }
        }
    });
}

/// What is tried for the scales of groups.
const STEPS: Steps = Steps { max: 3, first: -0.5, step: 0.1, last: 15, absolute: true };

/// First each group gets a scale and a minimum of its own, then these are quantized, then the numbers by what they became.
pub fn quantize(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; LARGE]| {
        let rows = values.as_chunks::<16>().0;
        let groups: [Affine<16>; SCALES] =
            std::array::from_fn(|idx| affine(&rows[idx], &rows[idx].map(f32::abs), &STEPS));
        let largest = |of: fn(&Affine<16>) -> f32| {
            groups.iter().map(of).fold(0.0, |largest, value| if value > largest { value } else { largest })
        };
        let (max_scale, max_min) = (largest(|group| group.scale), largest(|group| group.min));
        let inverse = |max: f32| if max > 0.0 { 15.0 / max } else { 0.0 };
        let (inverse_scale, inverse_min) = (inverse(max_scale), inverse(max_min));
        let packed = std::array::from_fn(|idx| {
            let group = &groups[idx];
            nearest(inverse_scale * group.scale) as u8 | (nearest(inverse_min * group.min) << 4) as u8
        });
        block(values, groups, &packed, [half(max_scale / 15.0), half(max_min / 15.0)])
    });
}

/// The same; errors of numbers weigh what their columns are important, those of scales what their groups are.
pub fn weighed(row: &[f32], importance: &[f32], out: &mut Vec<u8>) {
    each_weighed(row, importance, out, |values: &[f32; LARGE], importance: &[f32; LARGE]| {
        let around = mean_square(values);
        let (rows, columns) = (values.as_chunks::<16>().0, importance.as_chunks::<16>().0);
        let weights: [[f32; 16]; SCALES] =
            std::array::from_fn(|idx| weights(&rows[idx], &columns[idx], around));
        let groups: [Affine<16>; SCALES] =
            std::array::from_fn(|idx| affine(&rows[idx], &weights[idx], &Steps::weighed(3)));
        let sums: [f32; SCALES] = std::array::from_fn(|idx| sum(&weights[idx]));
        let scales = positive(&std::array::from_fn(|idx| groups[idx].scale), &sums, 15);
        let mins = positive(&std::array::from_fn(|idx| groups[idx].min), &sums, 15);
        let packed = std::array::from_fn(|idx| scales.quants[idx] | mins.quants[idx] << 4);
        block(values, groups, &packed, [half(scales.scale), half(mins.scale)])
    });
}

/// A block of groups whose scales and minimums are packed.
fn block(
    values: &[f32; LARGE],
    groups: [Affine<16>; SCALES],
    packed: &[u8; SCALES],
    [half_scale, half_min]: [[u8; HALF]; 2],
) -> [u8; Q2_K] {
    let (scale, min) = (half_at(&half_scale), half_at(&half_min));
    let mut quants = [0; LARGE];
    for (idx, (group, row)) in groups.iter().zip(values.as_chunks::<16>().0).enumerate() {
        let (scale, min) = (scale * f32::from(packed[idx] & 15), min * f32::from(packed[idx] >> 4));
        let row = match scale {
            0.0 => group.quants,
            _ => row.map(|value| nearest((value + min) / scale).clamp(0, 3) as u8),
        };
        quants[16 * idx..][..16].copy_from_slice(&row);
    }
    let mut block = [0; Q2_K];
    block[..SCALES].copy_from_slice(packed);
    pack_2_bits(&quants, &mut block[SCALES..][..QUANTS]);
    block[SCALES + QUANTS..][..HALF].copy_from_slice(&half_scale);
    block[SCALES + QUANTS + HALF..].copy_from_slice(&half_min);
    block
}
