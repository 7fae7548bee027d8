//! Products with packed weights against their definition.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::isa::on_each;
use crate::matmul::matmul;
use crate::reference::{bits, on_threads, values};

/// Every combination of bits and scales that there is.
fn ints() -> Vec<(Bits, Scales)> {
    let all = [Bits::Four, Bits::Five, Bits::Six, Bits::Eight];
    let scales = [
        Scales::Half,
        Scales::HalfAndMin,
        Scales::BytesAndMin,
        Scales::BytesFor16,
        Scales::Single32,
        Scales::Single64,
        Scales::Single128,
    ];
    let pairs = all.into_iter().flat_map(|bits| scales.map(|scales| (bits, scales)));
    pairs.filter(|&(bits, scales)| scales.go_with(bits)).collect()
}

/// Random numbers of a kind, and what they stand for, row after row.
fn groups(bits: Bits, scales: Scales, n_out: usize, n_in: usize, seed: u32) -> (Rows, Vec<f32>) {
    let len = Kind::Ints { bits, scales }.block_len();
    let random = values(n_out * n_in, seed);
    let (mut dense, mut numbers) = (Vec::new(), Vec::new());
    let groups = random.chunks_exact(len).map(|random| {
        let byte = |i: usize| (random[i % len] * 1e6) as i64 as u8;
        let group = Group {
            scale: f16::from_f32(random[0] * 0.01).to_le_bytes(),
            // No half-precision number.
            single: random[0] * 1e-12,
            min: f16::from_f32(random[1] * 0.02).to_le_bytes(),
            scales: std::array::from_fn(|i| byte(2 + i)),
            mins: std::array::from_fn(|i| byte(20 + i)),
        };
        // Extremes first, for the sums that are as large as they get.
        let largest = ((1u32 << bits.n()) - 1) as u8;
        let q = |i| if seed.is_multiple_of(3) { largest * (i as u8 % 2) } else { byte(i) & largest };
        let first = numbers.len();
        numbers.extend((0..len).map(q));
        let [scale, min] = [group.scale, group.min].map(|bits| f16::from_le_bytes(bits).to_f32());
        for (i, &q) in numbers[first..].iter().enumerate() {
            let centred = f32::from(q) - f32::from(1u8 << (bits.n() - 1));
            dense.push(match scales {
                Scales::Half => scale * centred,
                Scales::Single32 | Scales::Single64 | Scales::Single128 => group.single * centred,
                Scales::HalfAndMin => scale * f32::from(q) + min,
                Scales::BytesAndMin => {
                    let (s, m) = (group.scales[i / 32 * 2], group.mins[i / 32]);
                    scale * f32::from(s) * f32::from(q) - min * f32::from(m)
                }
                Scales::BytesFor16 => scale * f32::from(group.scales[i / 16] as i8) * centred,
            });
        }
        group
    });
    let groups = groups.collect();
    (Rows { numbers, groups }, dense)
}

/// A part of integers, and what its numbers stand for.
fn part(bits: Bits, scales: Scales, n_out: usize, n_in: usize, seed: u32) -> (Part, Vec<f32>) {
    let kind = Kind::Ints { bits, scales };
    let (all, dense) = groups(bits, scales, n_out, n_in, seed);
    let n = n_in / kind.block_len();
    let read = |rows: Range<usize>, out: &mut Rows| {
        out.groups.extend_from_slice(&all.groups[rows.start * n..rows.end * n]);
        out.numbers.extend_from_slice(&all.numbers[rows.start * n_in..rows.end * n_in]);
        Ok::<(), ()>(())
    };
    (Part::new(kind, n_out, n_in, read).expect("reads"), dense)
}

const FLOATS: [Kind; 4] = [Kind::F32, Kind::F16, Kind::BF16, Kind::F32AsBF16];

/// A part of floats, and what its numbers stand for.
fn float_part(kind: Kind, n_out: usize, n_in: usize, seed: u32) -> (Part, Vec<f32>) {
    let mut dense = values(n_out * n_in, seed);
    let mut bytes = Vec::new();
    for x in &mut dense {
        match kind {
            Kind::F32 => bytes.extend(x.to_le_bytes()),
            Kind::F16 => bytes.extend(f16::from_f32(*x).to_le_bytes()),
            _ => bytes.extend(bf16::from_f32(*x).to_le_bytes()),
        }
        *x = match kind {
            Kind::F32 => *x,
            Kind::F16 => f16::from_f32(*x).to_f32(),
            _ => bf16::from_f32(*x).to_f32(),
        };
    }
    let row_bytes = n_in * kind.element_bytes();
    let read = |rows: Range<usize>, out: &mut Rows| {
        out.numbers.extend_from_slice(&bytes[rows.start * row_bytes..rows.end * row_bytes]);
        Ok::<(), ()>(())
    };
    (Part::new(kind, n_out, n_in, read).expect("reads"), dense)
}

fn multiplied(matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    matrix.product(x, &[x.len() / matrix.n_in()])
}

#[test]
fn rows_are_what_was_packed() {
    for (bits_of, scales) in ints() {
        for (n_out, n_in) in [(1, 256), (8, 512), (19, 256)] {
            let (part, dense) = part(bits_of, scales, n_out, n_in, 7);
            let matrix = Matrix::new(vec![part]);
            for (i, expected) in dense.chunks_exact(n_in).enumerate() {
                let mut row = vec![f32::NAN; n_in];
                matrix.row(i, &mut row);
                assert_eq!(bits(&row), bits(expected), "{bits_of:?} {scales:?}, row {i} of {n_out}");
            }
        }
    }
    for kind in FLOATS {
        let (part, dense) = float_part(kind, 21, 37, 4);
        let matrix = Matrix::new(vec![part]);
        let mut row = vec![f32::NAN; 37];
        matrix.row(20, &mut row);
        assert_eq!(bits(&row), bits(&dense[20 * 37..]), "{kind:?}");
    }
}

#[test]
fn integers_multiply_as_defined() {
    on_each(|| {
        for (bits_of, scales) in ints() {
            for (m, n_out, n_in, seed) in [(1, 40, 512, 1), (5, 13, 256, 2), (131, 8, 256, 3)] {
                let (part, dense) = part(bits_of, scales, n_out, n_in, seed);
                let mut x = values(m * n_in, seed + 10);
                // Of every third row, a block that stands out.
                x.chunks_exact_mut(n_in).step_by(3).for_each(|row| row[n_in - 7] = 20.0);
                let y = multiplied(&Matrix::new(vec![part]), &x);
                let mut rounded = input::Input::default();
                rounded.round(&x, m);
                for (i, j) in (0..m).flat_map(|i| (0..n_out).map(move |j| (i, j))) {
                    let (mut exact, mut size) = (0.0, 0.0);
                    for (k, &w) in dense[j * n_in..][..n_in].iter().enumerate() {
                        let product = rounded.number(i, k) * f64::from(w);
                        exact += product;
                        size += product.abs();
                    }
                    let got = f64::from(y[i * n_out + j]);
                    // Minimum and rest may nearly cancel, so the bound is by the size of what was added up.
                    assert!(
                        (got - exact).abs() <= 4e-6 * size + 1e-30,
                        "{bits_of:?} {scales:?} [{i}, {j}] of {m} x {n_out} x {n_in}: {got} for {exact}"
                    );
                }
            }
        }
    });
}

#[test]
fn floats_multiply_to_the_bits_of_the_plain_product() {
    on_each(|| {
        for kind in FLOATS {
            if kind.rounds_to_bf16() {
                continue;
            }
            for (m, n_out, n_in) in [
                (1, 50, 33),
                (2, 16, 300),
                (3, 1, 7),
                (4, 33, 20),
                (5, 100, 300),
                (13, 33, 40),
                (24, 20, 9),
                (70, 300, 40),
                (130, 40, 600),
                (300, 100, 600),
            ] {
                let (part, dense) = float_part(kind, n_out, n_in, 9);
                let x = values(m * n_in, 2);
                let mut expected = vec![0.0; m * n_out];
                let w = Mat::new(&dense, n_out, n_in).t();
                matmul(Mat::new(&x, m, n_in), w, MatMut::new(&mut expected, m, n_out));
                let y = multiplied(&Matrix::new(vec![part]), &x);
                assert_eq!(bits(&y), bits(&expected), "{kind:?} {m} x {n_out} x {n_in}");
            }
        }
    });
}

/// Rows are rounded like the weights, and products added up in single precision.
#[test]
fn bfloat16_multiplies_as_defined_where_the_cpu_does() {
    on_each(|| {
        if !Kind::BF16.rounds_to_bf16() {
            return;
        }
        for (m, n_out, n_in) in
            [(1, 50, 33), (2, 16, 300), (3, 1, 7), (12, 33, 20), (13, 100, 700), (40, 40, 1100)]
        {
            let (part, dense) = float_part(Kind::BF16, n_out, n_in, 9);
            let x = values(m * n_in, 2);
            let y = multiplied(&Matrix::new(vec![part]), &x);
            for (i, j) in (0..m).flat_map(|i| (0..n_out).map(move |j| (i, j))) {
                let product = |k: usize| {
                    let x = bf16::from_f32(x[i * n_in + k]).to_f32();
                    f64::from(x) * f64::from(dense[j * n_in + k])
                };
                let (exact, got) = ((0..n_in).map(product).sum::<f64>(), f64::from(y[i * n_out + j]));
                assert!(
                    (got - exact).abs() < 1e-4,
                    "[{i}, {j}] of {m} x {n_out} x {n_in}: {got} for {exact}"
                );
            }
        }
    });
}

#[test]
fn parts_of_several_kinds_lie_one_below_the_other() {
    on_each(|| {
        let (n_in, m) = (256, 3);
        let (a, a_dense) = part(Bits::Four, Scales::BytesAndMin, 20, n_in, 1);
        let (b, b_dense) = float_part(Kind::F16, 5, n_in, 2);
        let (c, c_dense) = part(Bits::Six, Scales::BytesFor16, 9, n_in, 4);
        let matrix = Matrix::new(vec![a, b, c]);
        assert_eq!((matrix.n_out(), matrix.n_in()), (34, n_in));
        let mut row = vec![0.0; n_in];
        for (i, expected) in [a_dense, b_dense, c_dense].concat().chunks_exact(n_in).enumerate() {
            matrix.row(i, &mut row);
            assert_eq!(bits(&row), bits(expected), "row {i}");
        }
        let x = values(m * n_in, 8);
        let whole = multiplied(&matrix, &x);
        for rows in [0..20, 20..25, 25..34, 20..34] {
            let mut y = vec![0.0; m * rows.len()];
            matrix.multiply_rows(rows.clone(), &x, MatMut::new(&mut y, m, rows.len()));
            for (i, y) in y.chunks_exact(rows.len()).enumerate() {
                assert_eq!(bits(y), bits(&whole[i * 34..][rows.clone()]), "rows {rows:?}");
            }
        }
        let cut = || matrix.multiply_rows(0..7, &[0.0; 256], MatMut::new(&mut [0.0; 7], 1, 7));
        assert!(std::panic::catch_unwind(cut).is_err());
    });
}

#[test]
fn stacked_matrices_meet_their_rows() {
    on_each(|| {
        let (n_in, n_out) = (256, 19);
        let kinds = [Kind::F16, Kind::BF16, Kind::F32];
        let parts = |seed| kinds.map(|kind| float_part(kind, n_out, n_in, seed).0);
        let stacked = Matrix::new([1, 2, 3].into_iter().flat_map(parts).collect());
        for counts in [[2, 0, 3], [0, 0, 1], [0, 0, 0], [70, 3, 40]] {
            let x = values(counts.iter().sum::<usize>() * n_in, 8);
            let mut expected = Vec::new();
            let mut rest = &x[..];
            for (seed, count) in [1, 2, 3].into_iter().zip(counts) {
                let x = rest.split_off(..count * n_in).expect("rows left");
                expected.extend(multiplied(&Matrix::new(parts(seed).into()), x));
            }
            assert_eq!(bits(&stacked.product(&x, &counts)), bits(&expected), "{counts:?}");
        }
        let too_few = || stacked.product(&[0.0; 256], &[0, 2, 0]);
        assert!(std::panic::catch_unwind(too_few).is_err());
    });
}

/// Number `k` of a row of words, as [`words`] describes it.
fn number_in_words(kind: Kind, row: &[u32], n_in: usize, k: usize) -> f32 {
    let at = kind.row_words(n_in);
    let field = |first: usize, width: usize, idx: usize| {
        let bit = idx * width;
        row[first + bit / 32] >> (bit % 32) & ((1u64 << width) - 1) as u32
    };
    let half = |idx: usize| f16::from_bits(field(at.scales, 16, idx) as u16).to_f32();
    let (bits, scales) = match kind {
        Kind::F32 => return f32::from_bits(row[k]),
        Kind::F16 => return f16::from_bits(field(0, 16, k) as u16).to_f32(),
        Kind::BF16 | Kind::F32AsBF16 => return bf16::from_bits(field(0, 16, k) as u16).to_f32(),
        Kind::Ints { bits, scales } => (bits.n() as usize, scales),
    };
    let high = if bits > 4 { field(at.high, bits - 4, k) } else { 0 };
    let q = (field(0, 4, k) | high << 4) as f32;
    let centred = q - (1 << (bits - 1)) as f32;
    let byte = |idx: usize| field(at.bytes + 4 * (k / 256), 8, idx) as u8;
    match scales {
        Scales::Half => half(k / 32) * centred,
        Scales::Single32 | Scales::Single64 | Scales::Single128 => {
            f32::from_bits(row[at.scales + k / kind.block_len()]) * centred
        }
        Scales::HalfAndMin => half(k / 32 * 2) * q + half(k / 32 * 2 + 1),
        Scales::BytesAndMin => {
            let [s, m] = [0, 8].map(|first| f32::from(byte(first + k % 256 / 32)));
            half(k / 256 * 2) * s * q - half(k / 256 * 2 + 1) * m
        }
        Scales::BytesFor16 => half(k / 256) * f32::from(byte(k % 256 / 16) as i8) * centred,
    }
}

#[test]
fn words_are_what_was_packed() {
    for (bits_of, scales) in ints() {
        let kind = Kind::Ints { bits: bits_of, scales };
        let block_len = kind.block_len();
        for (n_out, n_in) in [(1, block_len), (5, 3 * block_len), (300, 2 * block_len)] {
            let (all, dense) = groups(bits_of, scales, n_out, n_in, 7);
            let n = n_in / block_len;
            let read = |rows: Range<usize>, out: &mut Rows| {
                out.groups.extend_from_slice(&all.groups[rows.start * n..rows.end * n]);
                out.numbers.extend_from_slice(&all.numbers[rows.start * n_in..rows.end * n_in]);
                Ok::<(), ()>(())
            };
            let first = n_out / 3;
            let words = words::pack(kind, first..n_out, n_in, read).expect("reads");
            let len = kind.row_words(n_in).len;
            assert_eq!(words.len(), (n_out - first) * len);
            // As many bits as in a tile, and at most half a word to fill the last.
            let more = (len * 32) as f64 - n_in as f64 * kind.bits_per_number();
            assert!(more == 0.0 || more == 16.0, "{kind:?}: {more} bits more");
            for (i, row) in words.chunks_exact(len).enumerate() {
                for k in 0..n_in {
                    let want = dense[(first + i) * n_in + k];
                    let got = number_in_words(kind, row, n_in, k);
                    assert_eq!(got.to_bits(), want.to_bits(), "{kind:?} [{i}, {k}]");
                }
            }
        }
    }
    for kind in FLOATS {
        let bytes = if kind == Kind::F32 { 4 } else { 2 };
        let (n_out, n_in) = (9, 37);
        let numbers: Vec<u8> = (0..n_out * n_in * bytes).map(|i| (i * 37 % 251) as u8).collect();
        let read = |rows: Range<usize>, out: &mut Rows| {
            out.numbers.extend_from_slice(&numbers[rows.start * n_in * bytes..rows.end * n_in * bytes]);
            Ok::<(), ()>(())
        };
        let words = words::pack(kind, 0..n_out, n_in, read).expect("reads");
        let len = kind.row_words(n_in).len;
        assert_eq!(len, 40 * bytes / 4);
        for (row, got) in words.chunks_exact(len).enumerate() {
            let got: Vec<u8> = got.iter().flat_map(|word| word.to_le_bytes()).collect();
            let (there, rest) = got.split_at(n_in * bytes);
            assert_eq!(there, &numbers[row * n_in * bytes..][..n_in * bytes], "{kind:?}");
            assert!(rest.iter().all(|&byte| byte == 0), "{kind:?}");
        }
    }
}

#[test]
fn an_error_while_reading_is_passed_on() {
    let kind = Kind::Ints { bits: Bits::Four, scales: Scales::Half };
    let read = |rows: Range<usize>, _: &mut Rows| Err::<(), _>(rows.end);
    assert!(Part::new(kind, 30, 32, read).is_err());
    assert!(words::pack(kind, 0..30, 32, read).is_err());
}

/// Of a matrix with few rows, those of the other factor are dealt out; each kind's tasks begin in the middle of them.
#[test]
fn products_are_cut_by_rows_where_columns_are_few() {
    on_each(|| {
        let n_in = 768;
        let mut parts: Vec<Part> =
            ints().into_iter().map(|(bits, scales)| part(bits, scales, 40, n_in, 5).0).collect();
        parts.extend(FLOATS.map(|kind| float_part(kind, 40, n_in, 5).0));
        for part in parts {
            let (kind, matrix) = (part.kind, Matrix::new(vec![part]));
            for m in [130, 299] {
                let x = values(m * n_in, 6);
                let whole = bits(&on_threads(1, || multiplied(&matrix, &x)));
                for n_threads in [2, 5] {
                    let y = bits(&on_threads(n_threads, || multiplied(&matrix, &x)));
                    assert!(y == whole, "{kind:?}, {m} rows, {n_threads} threads");
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// A row's result is the same alone, among others, and on any number of threads.
    #[test]
    fn rows_do_not_depend_on_each_other(
        which in 0..ints().len(),
        m in 2usize..140,
        n_out in 1usize..300,
        n_blocks in 1usize..4,
        n_threads in 2usize..4,
    ) {
        let (bits_of, scales) = ints()[which];
        let n_in = 256 * n_blocks;
        let (ints, _) = part(bits_of, scales, n_out, n_in, 5);
        let (floats, _) = float_part(Kind::BF16, n_out, n_in, 5);
        let matrix = Matrix::new(vec![ints, floats]);
        let mut x = values(m * n_in, 6);
        x.chunks_exact_mut(n_in).step_by(2).for_each(|row| row[77] = -30.0);
        on_each(|| {
            let together = bits(&on_threads(1, || multiplied(&matrix, &x)));
            assert!(bits(&on_threads(n_threads, || multiplied(&matrix, &x))) == together);
            for i in [0, m / 2, m - 1] {
                let alone = bits(&multiplied(&matrix, &x[i * n_in..(i + 1) * n_in]));
                assert!(alone == together[i * 2 * n_out..(i + 1) * 2 * n_out], "row {i}");
            }
        });
    }
}
