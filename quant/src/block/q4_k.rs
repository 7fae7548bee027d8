//! Q4_K: `x = scale * s * q - min * m`, with s and m for every 32 numbers.
//!
//! | bytes | what |
//! |---|---|
//! | 2 | scale, f16 |
//! | 2 | min, f16 |
//! | 12 | s and m, 6 bits each (`scale_and_min`) |
//! | 128 | q, 4 bits: byte b of each 32 has number b of 64 in its lower half, b + 32 in the upper |

use super::fit::{Affine, Steps, affine, mean_square, nearest, positive, sum, weights};
use super::{HALF, LARGE, each_block, each_row, each_weighed, half, half_at, scale_and_min};

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
const STEPS: Steps = Steps { max: 15, first: -1.0, step: 0.1, last: 20, absolute: false };

pub fn quantize(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; LARGE]| block(&quantize_groups(values, &STEPS)));
}

/// The same for the important numbers.
pub fn weighed(row: &[f32], importance: &[f32], out: &mut Vec<u8>) {
    each_weighed(row, importance, out, |values, importance| block(&weighed_groups(values, importance, 15)));
}

fn block(groups: &Groups) -> [u8; Q4_K] {
    let mut block = [0; Q4_K];
    let (head, packed) = block.split_at_mut(2 * HALF + SCALES);
    head.copy_from_slice(&groups.head);
    for (idx, byte) in packed.iter_mut().enumerate() {
        let first = idx / 32 * 64 + idx % 32;
        *byte = groups.quants[first] | groups.quants[first + 32] << 4;
    }
    block
}

/// What a block is made of (Q4_K, Q5_K).
pub(super) struct Groups {
    /// Scale, minimum, and those of the groups.
    pub head: [u8; 2 * HALF + SCALES],
    /// The numbers that go with them.
    pub quants: [u8; LARGE],
}

/// First each group gets a scale and a minimum of its own, then these are quantized, then the numbers by what they became.
pub(super) fn quantize_groups(values: &[f32; LARGE], steps: &Steps) -> Groups {
    let rows = values.as_chunks::<32>().0;
    let groups: [Affine<32>; 8] = std::array::from_fn(|idx| {
        let mean = mean_square(&rows[idx]).sqrt();
        affine(&rows[idx], &rows[idx].map(|value| mean + value.abs()), steps)
    });
    let largest = |of: fn(&Affine<32>) -> f32| {
        groups.iter().map(of).fold(0.0, |largest, value| if value > largest { value } else { largest })
    };
    let (max_scale, max_min) = (largest(|group| group.scale), largest(|group| group.min));
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (inverse_scale, inverse_min) = (inverse(max_scale), inverse(max_min));
    let scales = std::array::from_fn(|idx| (nearest(inverse_scale * groups[idx].scale) as u8).min(63));
    let mins = std::array::from_fn(|idx| (nearest(inverse_min * groups[idx].min) as u8).min(63));
    let halves = [half(max_scale / 63.0), half(max_min / 63.0)];
    finish(values, &groups, steps.max, halves, [scales, mins])
}

/// The same; errors of numbers weigh what their columns are important, those of scales what their groups are.
pub(super) fn weighed_groups(values: &[f32; LARGE], importance: &[f32; LARGE], max: i32) -> Groups {
    let around = 2.0 * mean_square(values);
    let (rows, columns) = (values.as_chunks::<32>().0, importance.as_chunks::<32>().0);
    let weights: [[f32; 32]; 8] = std::array::from_fn(|idx| weights(&rows[idx], &columns[idx], around));
    let groups: [Affine<32>; 8] =
        std::array::from_fn(|idx| affine(&rows[idx], &weights[idx], &Steps::weighed(max)));
    let sums: [f32; 8] = std::array::from_fn(|idx| sum(&weights[idx]));
    let scales = positive(&std::array::from_fn(|idx| groups[idx].scale), &sums, 63);
    let mins = positive(&std::array::from_fn(|idx| groups[idx].min), &sums, 63);
    let halves = [half(scales.scale), half(mins.scale)];
    finish(values, &groups, max, halves, [scales.quants, mins.quants])
}

/// Packs scales and minimums, and rounds the numbers by what they became.
fn finish(
    values: &[f32; LARGE],
    groups: &[Affine<32>; 8],
    max: i32,
    [half_scale, half_min]: [[u8; HALF]; 2],
    [scales, mins]: [[u8; 8]; 2],
) -> Groups {
    let mut packed = [0; SCALES];
    for (idx, (s, m)) in scales.into_iter().zip(mins).enumerate() {
        if idx < 4 {
            (packed[idx], packed[idx + 4]) = (s, m);
        } else {
            packed[idx + 4] = s & 15 | m << 4;
            packed[idx - 4] |= s >> 4 << 6;
            packed[idx] |= m >> 4 << 6;
        }
    }
    let mut quants = [0; LARGE];
    for (idx, (group, row)) in groups.iter().zip(values.as_chunks::<32>().0).enumerate() {
        let (s, m) = scale_and_min(idx, &packed);
        let (scale, min) = (half_at(&half_scale) * f32::from(s), half_at(&half_min) * f32::from(m));
        let row = match scale {
            0.0 => group.quants,
            _ => row.map(|value| nearest((value + min) / scale).clamp(0, max) as u8),
        };
        quants[32 * idx..][..32].copy_from_slice(&row);
    }
    let mut head = [0; 2 * HALF + SCALES];
    head[..HALF].copy_from_slice(&half_scale);
    head[HALF..2 * HALF].copy_from_slice(&half_min);
    head[2 * HALF..].copy_from_slice(&packed);
    Groups { head, quants }
}
