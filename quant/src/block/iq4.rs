//! IQ4_NL: `x = scale * TABLE[q]`, and IQ4_XS: `x = scale * (s - 32) * TABLE[q]` with s for every 32 numbers.
//!
//! | bytes of IQ4_NL | of IQ4_XS | what |
//! |---|---|---|
//! | 2 | 2 | scale, f16 |
//! | | 2 | the upper 2 bits of s, lowest bits first |
//! | | 4 | the lower 4 bits of s, lower halves first |
//! | 16 | 128 | q, 4 bits: byte b of each 16 has number b of 32 in its lower half, b + 16 in the upper |

use super::fit::{TINY, extreme, mean_square, nearest, squares, weights};
use super::{HALF, LARGE, SMALL, each_block, each_row, each_weighed, half, half_at, inverse};

/// What q chooses from: values that lie closer where weights are more frequent.
pub const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

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
        let quants = &block[HALF + 2 + LARGE / 64..];
        let groups = out.as_chunks_mut().0.iter_mut().zip(quants.as_chunks().0);
        for (idx, (out, quants)) in groups.enumerate() {
            chosen(scale * f32::from(group_scale(block, idx)), quants, out);
        }
    });
}

/// What the scale of a block of IQ4_XS is multiplied by for the `idx`-th 32 numbers.
pub fn group_scale(block: &[u8], idx: usize) -> i8 {
    let high = u16::from_le_bytes([block[HALF], block[HALF + 1]]);
    let low = block[HALF + 2 + idx / 2] >> (idx % 2 * 4) & 15;
    (low | ((high >> (2 * idx) & 3) as u8) << 4) as i8 - 32
}

/// The values that 32 numbers choose, scaled.
fn chosen(scale: f32, quants: &[u8; SMALL / 2], out: &mut [f32; SMALL]) {
    for (idx, byte) in quants.iter().enumerate() {
        out[idx] = scale * f32::from(TABLE[usize::from(byte & 15)]);
        out[idx + SMALL / 2] = scale * f32::from(TABLE[usize::from(byte >> 4)]);
    }
}

/// Scales that are tried at each side of the obvious one (IQ4_XS).
const N_TRIES: i32 = 7;

/// The scale solves least squares for the choices that bring the largest magnitude to -127. A block of zeros is zeros.
pub fn quantize_nl(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; SMALL]| {
        let mut block = [0; IQ4_NL];
        let extreme = extreme(values);
        if extreme.abs() < TINY {
            return block;
        }
        let first = 1.0 / (extreme / f32::from(TABLE[0]));
        let (products, squares) = sums(values, &squares(values), first);
        let scale = if squares > 0.0 { products / squares } else { 0.0 };
        block[..HALF].copy_from_slice(&half(scale));
        pack(values, first, &mut block[HALF..]);
        block
    });
}

/// The scale is the best of several, as llama.cpp's tools have it; slower than the reference.
pub fn search_nl(row: &[f32], out: &mut Vec<u8>) {
    each_row(row, out, |values: &[f32; SMALL]| block_nl(values, &squares(values)));
}

/// The same for the important numbers.
pub fn weighed_nl(row: &[f32], importance: &[f32], out: &mut Vec<u8>) {
    each_weighed(row, importance, out, |values: &[f32; SMALL], importance| {
        block_nl(values, &weights(values, importance, 2.0 * mean_square(values)))
    });
}

fn block_nl(values: &[f32; SMALL], weights: &[f32; SMALL]) -> [u8; IQ4_NL] {
    let mut block = [0; IQ4_NL];
    let scale = best_scale(values, weights);
    block[..HALF].copy_from_slice(&half(scale));
    pack(values, inverse(scale), &mut block[HALF..]);
    block
}

/// Each group of 32 gets the best of several scales, these are quantized, then numbers choose by what they became.
pub fn quantize_xs(values: &[f32], out: &mut Vec<u8>) {
    each_row(values, out, |values: &[f32; LARGE]| block_xs(values, |_, row| squares(row)));
}

/// The same for the important numbers.
pub fn weighed_xs(row: &[f32], importance: &[f32], out: &mut Vec<u8>) {
    each_weighed(row, importance, out, |values: &[f32; LARGE], importance: &[f32; LARGE]| {
        let around = 2.0 * mean_square(values);
        let columns = importance.as_chunks::<SMALL>().0;
        block_xs(values, |idx, row| weights(row, &columns[idx], around))
    });
}

/// A block, by what errors weigh in each group.
fn block_xs(values: &[f32; LARGE], weights: impl Fn(usize, &[f32; SMALL]) -> [f32; SMALL]) -> [u8; IQ4_XS] {
    let rows = values.as_chunks::<SMALL>().0;
    let scales: [f32; LARGE / SMALL] =
        std::array::from_fn(|idx| best_scale(&rows[idx], &weights(idx, &rows[idx])));
    let scale = -extreme(&scales) / 32.0;
    let inverse_scale = inverse(scale);
    let mut block = [0; IQ4_XS];
    block[..HALF].copy_from_slice(&half(scale));
    let mut high = 0;
    for (idx, row) in rows.iter().enumerate() {
        let quant = nearest(inverse_scale * scales[idx]).clamp(-32, 31);
        let inverse = inverse(scale * quant as f32);
        let s = (quant + 32) as u16;
        block[HALF + 2 + idx / 2] |= (s as u8 & 15) << (idx % 2 * 4);
        high |= s >> 4 << (2 * idx);
        pack(row, inverse, &mut block[HALF + 2 + LARGE / 64 + idx * SMALL / 2..][..SMALL / 2]);
    }
    block[HALF..HALF + 2].copy_from_slice(&high.to_le_bytes());
    block
}

/// The scale of 32 numbers that loses least.
fn best_scale(values: &[f32; SMALL], weights: &[f32; SMALL]) -> f32 {
    let extreme = extreme(values);
    if extreme.abs() < TINY {
        return 0.0;
    }
    let (products, squares) = sums(values, weights, 1.0 / (-extreme / f32::from(TABLE[0])));
    let mut scale = if squares > 0.0 { products / squares } else { 0.0 };
    let mut best = scale * products;
    for tried in -N_TRIES..=N_TRIES {
        let (products, squares) = sums(values, weights, (tried + i32::from(TABLE[0])) as f32 / extreme);
        if squares > 0.0 && products * products > best * squares {
            scale = products / squares;
            best = scale * products;
        }
    }
    scale
}

/// The weighed products of numbers with their choices, and the choices' weighed squares.
fn sums(values: &[f32; SMALL], weights: &[f32; SMALL], inverse: f32) -> (f32, f32) {
    let (mut products, mut squares) = (0.0f32, 0.0f32);
    for (value, weight) in values.iter().zip(weights) {
        let chosen = f32::from(TABLE[choice(inverse * value)]);
        products += weight * chosen * value;
        squares += weight * chosen * chosen;
    }
    (products, squares)
}

/// The nearest value of the table; of two as near, the larger.
fn choice(value: f32) -> usize {
    let table = TABLE.map(f32::from);
    if value <= table[0] {
        return 0;
    }
    let above = table.iter().position(|&entry| value < entry).unwrap_or(table.len() - 1);
    if value - table[above - 1] < table[above] - value { above - 1 } else { above }
}

/// The choices of 32 numbers, two in a byte.
fn pack(values: &[f32; SMALL], inverse: f32, bytes: &mut [u8]) {
    for (idx, byte) in bytes.iter_mut().enumerate() {
        let choice = |idx: usize| choice(inverse * values[idx]) as u8;
        *byte = choice(idx) | choice(idx + SMALL / 2) << 4;
    }
}
