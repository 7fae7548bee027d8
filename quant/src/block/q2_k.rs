//! Q2_K: `x = scale * s * q - min * m`, with s and m for every 16 numbers.
//!
//! | bytes | what |
//! |---|---|
//! | 16 | s in the lower 4 bits, m in the upper |
//! | 64 | q, 2 bits: byte b of each 32 has the numbers b, b + 32, b + 64 and b + 96 of 128, lowest bits first |
//! | 2 | scale, f16 |
//! | 2 | min, f16 |

use super::{HALF, LARGE, each_block, half_at};

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
