//! Q3_K: `x = scale * (s - 32) * (q - 4)`, with s for every 16 numbers.
//!
//! | bytes | what |
//! |---|---|
//! | 32 | the highest bit of q: byte b has in bit n that of number 32 n + b |
//! | 64 | the lower 2 bits: byte b of each 32 has the numbers b, b + 32, b + 64 and b + 96 of 128, lowest bits first |
//! | 12 | s, 6 bits: the lower 4 of s 0 to 7 in the lower halves of bytes 0 to 7, of 8 to 15 in the upper ones; the upper 2 of s n in byte 8 + n % 4, lowest bits first |
//! | 2 | scale, f16 |

use super::{HALF, LARGE, each_block, half_at};

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
            let low = packed[idx % 8] >> (idx / 8 * 4) & 15;
            let group_scale = low | (packed[8 + idx % 4] >> (idx / 4 * 2) & 3) << 4;
            let scale = scale * f32::from(group_scale as i8 - 32);
            let (bytes, shift) = (&quants[idx / 8 * 2 + idx % 2], idx % 8 / 2 * 2);
            let (high, bit) = (&high[idx % 2], idx / 2);
            for ((out, byte), high) in out.iter_mut().zip(bytes).zip(high) {
                let number = byte >> shift & 3 | (high >> bit & 1) << 2;
                *out = scale * f32::from(number as i8 - 4);
            }
        }
    });
}
