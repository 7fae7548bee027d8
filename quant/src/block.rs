//! The blocks: one file for each family, whose layout stands at its top.
//!
//! Numbers of 16 bits are little-endian, `f16` is IEEE half precision. Each loop runs over arrays whose length is known
//! when it is compiled, so it has no checks inside and becomes vector code.

pub mod float;
pub mod iq4;
pub mod q2_k;
pub mod q3_k;
pub mod q4;
pub mod q4_k;
pub mod q5;
pub mod q5_k;
pub mod q6_k;
pub mod q8;

mod fit;

use half::f16;

/// Numbers in a block of the simple formats.
pub(crate) const SMALL: usize = 32;

/// Numbers in a block of the formats whose scales are quantized too.
const LARGE: usize = 256;

/// Bytes of an `f16`.
pub(crate) const HALF: usize = 2;

/// Calls `block` with every block and the numbers that it stands for.
fn each_block<const BYTES: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; N]),
) {
    let (blocks, values) = (bytes.as_chunks().0, out.as_chunks_mut().0);
    blocks.iter().zip(values).for_each(|(bytes, values)| block(bytes, values));
}

/// Appends the block of every `N` numbers.
fn each_row<const BYTES: usize, const N: usize>(
    values: &[f32],
    out: &mut Vec<u8>,
    block: impl Fn(&[f32; N]) -> [u8; BYTES],
) {
    values.as_chunks().0.iter().for_each(|values| out.extend_from_slice(&block(values)));
}

/// Appends the block of every `N` numbers, each with the importance of its column.
fn each_weighed<const BYTES: usize, const N: usize>(
    row: &[f32],
    importance: &[f32],
    out: &mut Vec<u8>,
    block: impl Fn(&[f32; N], &[f32; N]) -> [u8; BYTES],
) {
    let columns = importance.as_chunks().0;
    let blocks = row.as_chunks().0.iter().zip(columns);
    blocks.for_each(|(values, importance)| out.extend_from_slice(&block(values, importance)));
}

/// The `f16` at the start of `bytes`.
fn half_at(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// `value` in half precision.
fn half(value: f32) -> [u8; HALF] {
    f16::from_f32(value).to_le_bytes()
}

/// What to multiply by instead of dividing by `scale`; 0 for a block of zeros.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The scale and the minimum, of 6 bits each, of the `idx`-th of 8 groups (Q4_K, Q5_K): those of the first four fill
/// bytes 0 to 3 and 4 to 7, whose upper two bits are those of the last four; their lower four bits share bytes 8 to 11.
pub(crate) fn scale_and_min(idx: usize, packed: &[u8; 12]) -> (u8, u8) {
    if idx < 4 {
        (packed[idx] & 63, packed[idx + 4] & 63)
    } else {
        let low = packed[idx + 4];
        (low & 15 | packed[idx - 4] >> 6 << 4, low >> 4 | packed[idx] >> 6 << 4)
    }
}

/// Numbers of 2 bits: byte b of each 32 gets b, b + 32, b + 64 and b + 96 of 128 (Q2_K, Q3_K).
fn pack_2_bits(quants: &[u8; LARGE], bytes: &mut [u8]) {
    for (idx, byte) in bytes.iter_mut().enumerate() {
        let first = idx / 32 * 128 + idx % 32;
        *byte = (0..4).fold(0, |byte, part| byte | quants[first + 32 * part] << (2 * part));
    }
}
