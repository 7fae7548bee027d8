//! Q6_K: `x = scale * s * (q - 32)`, with s for every 16 numbers.
//!
//! | bytes | what |
//! |---|---|
//! | 128 | the lower 4 bits of q: byte b of each 64 has number b of 128 in its lower half, b + 64 in the upper |
//! | 64 | the upper 2 bits: byte b of each 32 has the numbers b, b + 32, b + 64 and b + 96 of 128, lowest bits first |
//! | 16 | s, 8 bits with a sign |
//! | 2 | scale, f16 |

use super::{HALF, LARGE, each_block, half_at};

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
