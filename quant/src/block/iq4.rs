//! IQ4_NL: `x = scale * TABLE[q]`, and IQ4_XS: `x = scale * (s - 32) * TABLE[q]` with s for every 32 numbers.
//!
//! | bytes of IQ4_NL | of IQ4_XS | what |
//! |---|---|---|
//! | 2 | 2 | scale, f16 |
//! | | 2 | the upper 2 bits of s, lowest bits first |
//! | | 4 | the lower 4 bits of s, lower halves first |
//! | 16 | 128 | q, 4 bits: byte b of each 16 has number b of 32 in its lower half, b + 16 in the upper |

use super::{HALF, LARGE, SMALL, each_block, half_at};

/// What q chooses from: values that lie closer where weights are more frequent.
const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Bytes of a block.
pub const IQ4_NL: usize = HALF + SMALL / 2;
/// Bytes of a block.
pub const IQ4_XS: usize = HALF + 2 + LARGE / 64 + LARGE / 2;
const _: () = assert!(IQ4_NL == 18 && IQ4_XS == 136);

pub fn dequantize_nl(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; IQ4_NL], out: &mut [f32; SMALL]| {
        chosen(half_at(block), block[HALF..].first_chunk().unwrap_or(&[0; SMALL / 2]), out);
    });
}

pub fn dequantize_xs(bytes: &[u8], out: &mut [f32]) {
    each_block(bytes, out, |block: &[u8; IQ4_XS], out: &mut [f32; LARGE]| {
        let scale = half_at(block);
        let high = u16::from_le_bytes([block[HALF], block[HALF + 1]]);
        let (low, quants) = block[HALF + 2..].split_at(LARGE / 64);
        let groups = out.as_chunks_mut().0.iter_mut().zip(quants.as_chunks().0);
        for (idx, (out, quants)) in groups.enumerate() {
            let s = low[idx / 2] >> (idx % 2 * 4) & 15 | ((high >> (2 * idx) & 3) as u8) << 4;
            chosen(scale * f32::from(s as i8 - 32), quants, out);
        }
    });
}

/// The values that 32 numbers choose, scaled.
fn chosen(scale: f32, quants: &[u8; SMALL / 2], out: &mut [f32; SMALL]) {
    for (idx, byte) in quants.iter().enumerate() {
        out[idx] = scale * f32::from(TABLE[usize::from(byte & 15)]);
        out[idx + SMALL / 2] = scale * f32::from(TABLE[usize::from(byte >> 4)]);
    }
}
