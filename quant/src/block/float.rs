//! F32, F16 and BF16: numbers without blocks.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Numbers that are turned at once; 2 KiB of them in half precision, and so in the first cache.
const CHUNK: usize = 1024;

pub fn dequantize_f32(bytes: &[u8], out: &mut [f32]) {
    let numbers = bytes.as_chunks().0.iter();
    numbers.zip(out).for_each(|(bytes, out)| *out = f32::from_le_bytes(*bytes));
}

pub fn quantize_f32(values: &[f32], out: &mut Vec<u8>) {
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

/// By the processor's own instruction where it has one, as the crate `half` finds out.
pub fn dequantize_f16(bytes: &[u8], out: &mut [f32]) {
    let mut chunk = [f16::ZERO; CHUNK];
    for (bytes, out) in bytes.as_chunks().0.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
        let chunk = &mut chunk[..out.len()];
        bytes.iter().zip(&mut *chunk).for_each(|(bytes, number)| *number = f16::from_le_bytes(*bytes));
        chunk.convert_to_f32_slice(out);
    }
}

/// To the nearest, of two as near to the even one.
pub fn quantize_f16(values: &[f32], out: &mut Vec<u8>) {
    let mut chunk = [f16::ZERO; CHUNK];
    for values in values.chunks(CHUNK) {
        let chunk = &mut chunk[..values.len()];
        chunk.convert_from_f32_slice(values);
        out.extend(chunk.iter().flat_map(|number| number.to_le_bytes()));
    }
}

pub fn dequantize_bf16(bytes: &[u8], out: &mut [f32]) {
    let numbers = bytes.as_chunks().0.iter();
    numbers.zip(out).for_each(|(bytes, out)| {
        *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    });
}

/// To the nearest, of two as near to the even one; what is no number stays so.
pub fn quantize_bf16(values: &[f32], out: &mut Vec<u8>) {
    out.extend(values.iter().flat_map(|&value| {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let upper = if value.is_nan() { bits >> 16 | 64 } else { rounded };
        (upper as u16).to_le_bytes()
    }));
}
