//! From the blocks of files to what `kernels::packed` packs: the numbers apart from each other, scales as they are.
//!
//! The layouts of the blocks stand at the top of the files in `block/`. Nothing is rounded: a packed matrix has exactly the
//! numbers that [`Format::dequantize`] gives.

use kernels::packed::{Bits, Group, Kind, Rows, Scales};

use crate::Format;
use crate::block::{HALF, SMALL, iq4, q3_k, scale_and_min};

impl Format {
    /// How a matrix in this format is packed, with numbers of as many bits as far as there are kernels for them: Q3_K with
    /// 4 bits, IQ4 with 8, and Q2_K, which has none, as F32.
    pub fn packed(self) -> Kind {
        let ints = |bits, scales| Kind::Ints { bits, scales };
        match self {
            Self::F32 | Self::Q2_K => Kind::F32,
            Self::F16 => Kind::F16,
            Self::BF16 => Kind::BF16,
            Self::Q8_0 | Self::IQ4_NL => ints(Bits::Eight, Scales::Half),
            Self::Q4_0 => ints(Bits::Four, Scales::Half),
            Self::Q4_1 => ints(Bits::Four, Scales::HalfAndMin),
            Self::Q5_0 => ints(Bits::Five, Scales::Half),
            Self::Q5_1 => ints(Bits::Five, Scales::HalfAndMin),
            Self::Q4_K => ints(Bits::Four, Scales::BytesAndMin),
            Self::Q5_K => ints(Bits::Five, Scales::BytesAndMin),
            Self::Q3_K => ints(Bits::Four, Scales::BytesFor16),
            Self::Q6_K => ints(Bits::Six, Scales::BytesFor16),
            Self::IQ4_XS => ints(Bits::Eight, Scales::BytesFor16),
        }
    }

    /// Appends the numbers of whole blocks for a matrix that is packed as [`packed`](Self::packed) says.
    ///
    /// # Panics
    /// If `bytes` are no whole number of blocks.
    pub fn append_to(self, bytes: &[u8], rows: &mut Rows) {
        let n_blocks = bytes.len() / self.block_bytes();
        assert!(bytes.len() == n_blocks * self.block_bytes(), "{self}: {} bytes", bytes.len());
        let group: fn(&[u8], &mut [u8]) -> Group = match self {
            Self::F32 | Self::F16 | Self::BF16 => return rows.numbers.extend_from_slice(bytes),
            Self::Q2_K => {
                let mut values = vec![0.0; n_blocks * self.block_len()];
                self.dequantize(bytes, &mut values);
                return rows.numbers.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            }
            Self::Q8_0 => q8_0,
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q3_K => q3_k,
            Self::Q4_K => q4_k,
            Self::Q5_K => q5_k,
            Self::Q6_K => q6_k,
            Self::IQ4_NL => iq4_nl,
            Self::IQ4_XS => iq4_xs,
        };
        let first = rows.numbers.len();
        rows.numbers.resize(first + n_blocks * self.block_len(), 0);
        let numbers = rows.numbers[first..].chunks_exact_mut(self.block_len());
        let blocks = bytes.chunks_exact(self.block_bytes()).zip(numbers);
        rows.groups.extend(blocks.map(|(block, q)| group(block, q)));
    }
}

fn half_at(block: &[u8], at: usize) -> [u8; HALF] {
    [block[at], block[at + 1]]
}

/// The lower halves of 16 bytes, then the upper ones.
fn halves(bytes: &[u8], q: &mut [u8]) {
    for (idx, byte) in bytes.iter().enumerate().take(SMALL / 2) {
        q[idx] = byte & 15;
        q[idx + SMALL / 2] = byte >> 4;
    }
}

/// The lower halves of 32 bytes, then the upper ones, and so on.
fn halves_of_64(bytes: &[u8], q: &mut [u8]) {
    for (bytes, q) in bytes.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<64>().0) {
        for (idx, byte) in bytes.iter().enumerate() {
            q[idx] = byte & 15;
            q[idx + 32] = byte >> 4;
        }
    }
}

fn q8_0(block: &[u8], q: &mut [u8]) -> Group {
    let group = Group { scale: half_at(block, 0), ..Group::ZERO };
    // From -128 to 0.
    q.iter_mut().zip(&block[HALF..]).for_each(|(q, byte)| *q = byte ^ 0x80);
    group
}

fn q4_0(block: &[u8], q: &mut [u8]) -> Group {
    let group = Group { scale: half_at(block, 0), ..Group::ZERO };
    halves(&block[HALF..], q);
    group
}

fn q4_1(block: &[u8], q: &mut [u8]) -> Group {
    let group = Group { scale: half_at(block, 0), min: half_at(block, HALF), ..Group::ZERO };
    halves(&block[2 * HALF..], q);
    group
}

/// The fifth bits of 32 numbers.
fn add_fifth_bits(bytes: &[u8], q: &mut [u8]) {
    for (idx, q) in q.iter_mut().enumerate().take(SMALL) {
        *q |= (bytes[idx / 8] >> (idx % 8) & 1) << 4;
    }
}

fn q5_0(block: &[u8], q: &mut [u8]) -> Group {
    let group = Group { scale: half_at(block, 0), ..Group::ZERO };
    halves(&block[HALF + 4..], q);
    add_fifth_bits(&block[HALF..], q);
    group
}

fn q5_1(block: &[u8], q: &mut [u8]) -> Group {
    let group = Group { scale: half_at(block, 0), min: half_at(block, HALF), ..Group::ZERO };
    halves(&block[2 * HALF + 4..], q);
    add_fifth_bits(&block[2 * HALF..], q);
    group
}

/// Scales and minimums of Q4_K and Q5_K.
fn scaled(block: &[u8]) -> Group {
    let mut group = Group { scale: half_at(block, 0), min: half_at(block, HALF), ..Group::ZERO };
    let packed = block[2 * HALF..].first_chunk().expect("a whole block");
    for idx in 0..8 {
        (group.scales[2 * idx], group.mins[idx]) = scale_and_min(idx, packed);
    }
    group
}

fn q4_k(block: &[u8], q: &mut [u8]) -> Group {
    let group = scaled(block);
    halves_of_64(&block[16..], q);
    group
}

fn q5_k(block: &[u8], q: &mut [u8]) -> Group {
    let group = scaled(block);
    halves_of_64(&block[48..], q);
    for (idx, q) in q.iter_mut().enumerate() {
        *q |= (block[16 + idx % 32] >> (idx / 32) & 1) << 4;
    }
    group
}

fn q3_k(block: &[u8], q: &mut [u8]) -> Group {
    let (high, rest) = block.split_at(32);
    let (quants, packed) = rest.split_at(64);
    let mut group = Group { scale: half_at(packed, 12), ..Group::ZERO };
    for (idx, scale) in group.scales.iter_mut().enumerate() {
        *scale = q3_k::group_scale(packed, idx) as u8;
    }
    for (idx, q) in q.iter_mut().enumerate() {
        let low = quants[idx / 128 * 32 + idx % 32] >> (idx % 128 / 32 * 2) & 3;
        // Its zero is 4, that of packed numbers of 4 bits is 8.
        *q = (low | (high[idx % 32] >> (idx / 32) & 1) << 2) + 4;
    }
    group
}

fn q6_k(block: &[u8], q: &mut [u8]) -> Group {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let mut group = Group { scale: half_at(rest, 16), ..Group::ZERO };
    group.scales.copy_from_slice(&rest[..16]);
    for (idx, q) in q.iter_mut().enumerate() {
        let (half_idx, of_half) = (idx / 128, idx % 128);
        let low = low[half_idx * 64 + of_half % 64] >> (of_half / 64 * 4) & 15;
        let high = high[half_idx * 32 + of_half % 32] >> (of_half / 32 * 2) & 3;
        *q = low | high << 4;
    }
    group
}

/// What numbers of 4 bits choose, moved from a zero of 0 to one of 128.
fn chosen(q: &mut [u8]) {
    q.iter_mut().for_each(|q| *q = iq4::TABLE[usize::from(*q)] as u8 ^ 0x80);
}

fn iq4_nl(block: &[u8], q: &mut [u8]) -> Group {
    let group = q4_0(block, q);
    chosen(q);
    group
}

fn iq4_xs(block: &[u8], q: &mut [u8]) -> Group {
    let mut group = Group { scale: half_at(block, 0), ..Group::ZERO };
    for (idx, scales) in group.scales.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *scales = [iq4::group_scale(block, idx) as u8; 2];
    }
    for (bytes, q) in block[8..].as_chunks::<16>().0.iter().zip(q.chunks_exact_mut(SMALL)) {
        halves(bytes, q);
    }
    chosen(q);
    group
}

#[cfg(test)]
mod tests {
    use kernels::packed::{Matrix, Part};

    use super::*;

    /// Bytes that look random, none of them making an infinite or a NaN of a scale.
    fn bytes(n: usize, seed: u32) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8 & 0xbf
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn packed_rows_are_the_numbers_of_the_format() {
        let (n_out, n_in) = (21, 512);
        for &format in Format::ALL {
            let row_bytes = format.n_bytes(n_in).expect("whole blocks");
            let bytes = bytes(n_out * row_bytes, 77);
            let mut expected = vec![0.0; n_out * n_in];
            format.dequantize(&bytes, &mut expected);
            assert!(
                format != Format::Q6_K || expected.iter().any(|&x| x < 0.0),
                "{format}: negative scales too"
            );
            let read = |rows: std::ops::Range<usize>, out: &mut Rows| {
                format.append_to(&bytes[rows.start * row_bytes..rows.end * row_bytes], out);
                Ok::<(), ()>(())
            };
            let part = Part::new(format.packed(), n_out, n_in, read).expect("nothing fails");
            let matrix = Matrix::new(vec![part]);
            let mut row = vec![0.0; n_in];
            for (i, expected) in expected.chunks_exact(n_in).enumerate() {
                matrix.row(i, &mut row);
                for (k, (got, expected)) in row.iter().zip(expected).enumerate() {
                    assert!(
                        got == expected || got.is_nan() && expected.is_nan(),
                        "{format} [{i}, {k}]: {got} for {expected}"
                    );
                }
            }
        }
    }

    /// The measures and bounds of ggml's `test-quantize-fns`: the root of the sum of squared errors, and the error of an inner
    /// product, each by the number of elements.
    #[test]
    fn errors_are_within_ggmls_bounds_on_every_instruction_set() {
        let n = 4096;
        let wave = |offset: f32| (0..n).map(|i| 0.1 + 2.0 * (i as f32 + offset).cos()).collect::<Vec<f32>>();
        let (values, others) = (wave(0.0), wave(1.0));
        let exact: f64 = values.iter().zip(&others).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        for &format in Format::ALL {
            let (mut bytes, mut back) = (Vec::new(), vec![0.0; n]);
            format.quantize(&values, &mut bytes);
            format.dequantize(&bytes, &mut back);
            let squares: f32 = back.iter().zip(&values).map(|(a, b)| (a - b).powi(2)).sum();
            let bound = match format {
                Format::Q2_K => 0.0075,
                Format::Q3_K => 0.004,
                _ => 0.002,
            };
            let error = squares.sqrt() / n as f32;
            assert!(error < bound, "{format}: {error}");
            let read = |_: std::ops::Range<usize>, out: &mut Rows| {
                format.append_to(&bytes, out);
                Ok::<(), ()>(())
            };
            let matrix = Matrix::new(vec![Part::new(format.packed(), 1, n, read).expect("nothing fails")]);
            for isa in kernels::Isa::available() {
                let product = isa.force(|| matrix.product(&others, &[1]));
                let error = (f64::from(product[0]) - exact).abs() / n as f64;
                assert!(error < 0.02, "{format} on {}: {error}", isa.name());
            }
        }
    }
}
