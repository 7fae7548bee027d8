//! Q5_K: `x = scale * s * q - min * m`, with s and m for every 32 numbers.
//!
//! | bytes | what |
//! |---|---|
//! | 2 | scale, f16 |
//! | 2 | min, f16 |
//! | 12 | s and m, 6 bits each (`scale_and_min`) |
//! | 32 | the highest bit of q: byte b has in bit n that of number 32 n + b |
//! | 128 | the lower 4 bits: byte b of each 32 has number b of 64 in its lower half, b + 32 in the upper |

use super::fit::Steps;
use super::q4_k::{Groups, quantize_groups, weighed_groups};
use super::{HALF, LARGE, each_block, each_row, each_weighed, half_at, scale_and_min};

const SCALES: usize = 12;
const HIGH: usize = LARGE / 8;

/// Bytes of a block.
pub const Q5_K: usize = 2 * HALF + SCALES + HIGH + LARGE / 2;
const _: () = assert!(Q5_K == 176);

pub fn dequantize(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; Q5_K], out: &mut [f32; LARGE]| {
        let (scale, min) = (half_at(block), half_at(&block[HALF..]));
        let packed = block[2 * HALF..].first_chunk().unwrap_or(&[0; SCALES]);
        let high = &block[2 * HALF + SCALES..][..HIGH];
        let quants = block[2 * HALF + SCALES + HIGH..].as_chunks::<32>().0;
        for (idx, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (s, m) = scale_and_min(idx, packed);
            let (scale, min) = (scale * f32::from(s), min * f32::from(m));
            let shift = idx % 2 * 4;
            for ((out, byte), high) in out.iter_mut().zip(&quants[idx / 2]).zip(high) {
                let number = byte >> shift & 15 | (high >> idx & 1) << 4;
                *out = scale * f32::from(number) - min;
            }
        }
    });
}

/// What is tried for the scales of groups.
const STEPS: Steps = Steps { max: 31, first: -0.5, step: 0.1, last: 15, absolute: false };

pub fn quantize(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; LARGE]| block(&quantize_groups(values, &STEPS)));
}

/// The same for the important numbers.
pub fn weighed(row: &[f32], importance: &[f32], out: &mut Vec<u8>) {
    each_weighed(row, importance, out, |values, importance| block(&weighed_groups(values, importance, 31)));
}

fn block(groups: &Groups) -> [u8; Q5_K] {
    let mut block = [0; Q5_K];
    let (head, packed) = block.split_at_mut(2 * HALF + SCALES);
    head.copy_from_slice(&groups.head);
    let (high, low) = packed.split_at_mut(HIGH);
    for (idx, quant) in groups.quants.iter().enumerate() {
        high[idx % HIGH] |= (quant >> 4) << (idx / HIGH);
    }
    for (idx, byte) in low.iter_mut().enumerate() {
        let first = idx / 32 * 64 + idx % 32;
        *byte = groups.quants[first] & 15 | groups.quants[first + 32] << 4;
    }
    block
}
