//! Small whole numbers with scales, as matrices of models in the Hugging Face layout have them (compressed-tensors,
//! <https://github.com/vllm-project/compressed-tensors>).
//!
//! A number is `scale * q`, where `q` has 4 or 8 bits with a sign, and a scale serves a group of neighbours in a row, or the
//! whole row. Numbers and scales are tensors of their own. Numbers lie in one of two ways ([`Packing`]).
//!
//! Scales are written in half precision and have no more digits than BF16: whoever computes in either, or in single
//! precision, gets the same numbers.

use half::{bf16, f16};
use kernels::packed::{Bits, Group, Kind, Rows, Scales};

use crate::{Format, Lost};

/// How the numbers of a tensor are rounded and laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symmetric {
    bits: Bits,
    group: Option<usize>,
    packing: Packing,
}

/// How numbers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Each plus `2^(bits - 1)`, in little-endian words of 32 bits from the lowest bits on; a row has whole words
    /// (`pack-quantized`).
    Words,
    /// Each a byte with a sign (`int-quantized`).
    Bytes,
}

/// Scales that are tried for a group of 4 bits: the largest magnitude divided by these. Below 7 the scale is larger than
/// need be, above 8 the largest numbers are cut, which pays where the others are more important.
const DIVISORS: std::ops::RangeInclusive<u32> = 0..=24;

fn divisor(i: u32) -> f32 {
    6.0 + 0.15 * i as f32
}

impl Symmetric {
    /// The format of so many bits with a scale for `group` numbers, or for a row.
    ///
    /// # Errors
    /// What is not read: bits other than 4 and 8, groups that are no multiple of 32.
    pub fn new(bits: u64, group: Option<usize>, packing: Packing) -> Result<Self, String> {
        let bits = match bits {
            4 if packing == Packing::Words => Bits::Four,
            8 => Bits::Eight,
            4 => return Err("4 bits in a byte each: only `pack-quantized` is read with 4 bits".into()),
            _ => return Err(format!("numbers of {bits} bits: only 4 and 8 are read")),
        };
        match group {
            Some(n) if n == 0 || !n.is_multiple_of(32) => Err(format!(
                "a scale for {n} numbers: only for multiples of 32, or for a row, are scales read"
            )),
            _ => Ok(Self { bits, group, packing }),
        }
    }

    /// What `flint quantize` writes, by its name there: `int8`, or `int4-g` with 32, 64 or 128.
    pub fn from_name(name: &str) -> Option<Self> {
        let four = |n| Self { bits: Bits::Four, group: Some(n), packing: Packing::Words };
        match name.to_lowercase().as_str() {
            "int8" => Some(Self { bits: Bits::Eight, group: None, packing: Packing::Words }),
            "int4-g32" => Some(four(32)),
            "int4-g64" => Some(four(64)),
            "int4-g128" => Some(four(128)),
            _ => None,
        }
    }

    /// The names that [`from_name`](Self::from_name) knows.
    pub const NAMES: [&str; 4] = ["int8", "int4-g32", "int4-g64", "int4-g128"];

    /// Its name.
    pub fn name(self) -> String {
        let group = self.group.map_or_else(String::new, |n| format!("-G{n}"));
        format!("INT{}{group}", self.bits.n())
    }

    /// Bits of a number.
    pub fn bits(self) -> u32 {
        self.bits.n()
    }

    /// Numbers with one scale, if not a whole row.
    pub fn group(self) -> Option<usize> {
        self.group
    }

    /// How numbers lie.
    pub fn packing(self) -> Packing {
        self.packing
    }

    /// This with the largest groups, of those that are at most as large and at least 32, that rows of `width` are a whole
    /// number of.
    pub fn fitting(self, width: usize) -> Option<Self> {
        let Some(group) = self.group else { return width.is_multiple_of(32).then_some(self) };
        let halves = std::iter::successors(Some(group), |n| Some(n / 2)).take_while(|n| *n >= 32);
        let fits = |n: &usize| n.is_multiple_of(32) && width.is_multiple_of(*n);
        halves.into_iter().find(fits).map(|n| Self { group: Some(n), ..self })
    }

    /// Scales of a row.
    pub fn n_scales(self, width: usize) -> usize {
        self.group.map_or(1, |n| width.div_ceil(n))
    }

    /// Bytes of the numbers of a row.
    pub fn row_bytes(self, width: usize) -> usize {
        match self.packing {
            Packing::Bytes => width,
            Packing::Words => (width * self.bits.n() as usize).div_ceil(32) * 4,
        }
    }

    /// Whether [`quantize_row`](Self::quantize_row) regards the importance of columns.
    pub fn is_weighed(self) -> bool {
        self.bits == Bits::Four
    }

    /// How a matrix with rows of `width` and scales in `scales` is packed: exactly, and as F32 if the rows are no whole
    /// number of blocks of 32.
    pub fn packed(self, width: usize, scales: Format) -> Kind {
        let ints = |scales| Kind::Ints { bits: self.bits, scales };
        match self.group.unwrap_or(width) {
            n if n.is_multiple_of(128) => ints(Scales::Single128),
            n if n.is_multiple_of(64) => ints(Scales::Single64),
            n if n.is_multiple_of(32) && scales == Format::F16 => ints(Scales::Half),
            n if n.is_multiple_of(32) => ints(Scales::Single32),
            _ => Kind::F32,
        }
    }

    /// The numbers of whole rows, from their bytes and those of their scales, which are in `format`.
    ///
    /// # Panics
    /// If `ints` and `scales` are not those of as many numbers as `out` has room for.
    pub fn dequantize(self, ints: &[u8], scales: &[u8], format: Format, width: usize, out: &mut [f32]) {
        let scales = self.scales(ints, scales, format, width, out.len() / width);
        let group = self.group.unwrap_or(width);
        let zero = f32::from(1u8 << (self.bits.n() - 1));
        let mut q = Vec::with_capacity(width);
        let rows = ints.chunks_exact(self.row_bytes(width)).zip(scales.chunks_exact(self.n_scales(width)));
        for ((row, scales), out) in rows.zip(out.chunks_exact_mut(width)) {
            q.clear();
            self.unpack(row, width, &mut q);
            for ((out, q), scale) in out.chunks_mut(group).zip(q.chunks(group)).zip(scales) {
                out.iter_mut().zip(q).for_each(|(out, &q)| *out = scale * (f32::from(q) - zero));
            }
        }
    }

    /// Appends whole rows for a matrix that is packed as [`packed`](Self::packed) says.
    ///
    /// # Panics
    /// As [`dequantize`](Self::dequantize).
    pub fn append_to(self, ints: &[u8], scales: &[u8], format: Format, width: usize, rows: &mut Rows) {
        let n_rows = ints.len() / self.row_bytes(width);
        let kind = self.packed(width, format);
        let Kind::Ints { .. } = kind else {
            let mut values = vec![0.0; n_rows * width];
            self.dequantize(ints, scales, format, width, &mut values);
            return rows.numbers.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        };
        let values = self.scales(ints, scales, format, width, n_rows);
        ints.chunks_exact(self.row_bytes(width)).for_each(|row| self.unpack(row, width, &mut rows.numbers));
        // Groups of the packed matrix that share a scale of the file.
        let n_together = self.group.unwrap_or(width) / kind.block_len();
        for (i, &single) in values.iter().enumerate() {
            let scale = if format == Format::F16 { [scales[2 * i], scales[2 * i + 1]] } else { [0; 2] };
            rows.groups.extend(std::iter::repeat_n(Group { scale, single, ..Group::ZERO }, n_together));
        }
    }

    /// Appends the numbers of a row, and its scales in F16. With 4 bits scales are searched for: errors are small in
    /// important columns, or in the mean where `importance`, the mean square of what each column is multiplied by, is not
    /// known.
    ///
    /// # Panics
    /// If the row is no whole number of groups, or not as long as `importance`.
    pub fn quantize_row(
        self,
        row: &[f32],
        importance: Option<&[f32]>,
        ints: &mut Vec<u8>,
        scales: &mut Vec<u8>,
    ) {
        let group = self.group.unwrap_or(row.len());
        assert!(row.len().is_multiple_of(group), "{}: a row of {}", self.name(), row.len());
        assert!(importance.is_none_or(|columns| columns.len() == row.len()), "importance of other columns");
        let mut q = Vec::with_capacity(row.len());
        for (i, values) in row.chunks_exact(group).enumerate() {
            let importance = importance.map(|columns| &columns[i * group..][..group]);
            let scale = self.fit(values, importance);
            scales.extend(f16::from_f32(scale).to_le_bytes());
            let inverse = inverse(scale);
            q.extend(values.iter().map(|x| self.round(x * inverse)));
        }
        self.pack(&q, ints);
    }

    /// Appends whole rows of `width` numbers, as [`quantize_row`](Self::quantize_row), and gives what was lost.
    ///
    /// # Panics
    /// As [`quantize_row`](Self::quantize_row).
    pub fn quantize(self, row: &[f32], importance: Option<&[f32]>, to: (&mut Vec<u8>, &mut Vec<u8>)) -> Lost {
        let (ints, scales) = to;
        let begin = (ints.len(), scales.len());
        self.quantize_row(row, importance, ints, scales);
        let mut back = vec![0.0; row.len()];
        self.dequantize(&ints[begin.0..], &scales[begin.1..], Format::F16, row.len(), &mut back);
        Lost::of(row, &back, importance)
    }

    /// The scale of a group.
    fn fit(self, values: &[f32], importance: Option<&[f32]>) -> f32 {
        let largest = values.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        if values.iter().any(|x| !x.is_finite()) {
            return f32::NAN;
        }
        if self.bits == Bits::Eight {
            return rounded(largest / 127.0);
        }
        let weight = |i: usize| importance.map_or(1.0, |columns| columns[i]);
        // The sum of weighed squares of the errors, for a scale, less that of the numbers.
        let error = |scale: f32| {
            let inverse = inverse(scale);
            let (mut xq, mut qq) = (0.0, 0.0);
            for (i, x) in values.iter().enumerate() {
                let q = nearest(x * inverse).clamp(-8.0, 7.0);
                xq += weight(i) * x * q;
                qq += weight(i) * q * q;
            }
            (scale * (scale * qq - 2.0 * xq), if qq > 0.0 { xq / qq } else { 0.0 })
        };
        let mut best = (0.0, 0.0);
        for i in DIVISORS {
            let scale = rounded(largest / divisor(i));
            let (lost, least) = error(scale);
            if lost < best.0 {
                best = (lost, scale);
            }
            // The best scale for numbers that are rounded so; that may round others.
            let scale = rounded(least);
            let (lost, _) = error(scale);
            if lost < best.0 {
                best = (lost, scale);
            }
        }
        best.1
    }

    /// The nearest number, plus the zero.
    fn round(self, x: f32) -> u8 {
        let half = 1 << (self.bits.n() - 1);
        (nearest(x).clamp(-half as f32, (half - 1) as f32) as i32 + half) as u8
    }

    /// Appends the numbers of a row, which has their zero added.
    fn pack(self, q: &[u8], ints: &mut Vec<u8>) {
        let begin = ints.len();
        match (self.packing, self.bits) {
            (Packing::Bytes, _) => ints.extend(q.iter().map(|q| q ^ 0x80)),
            (Packing::Words, Bits::Four) => {
                ints.extend(q.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |q| q << 4)));
            }
            (Packing::Words, _) => ints.extend_from_slice(q),
        }
        ints.resize(begin + self.row_bytes(q.len()), 0);
    }

    /// Appends the numbers of a row of `width`, plus their zero.
    fn unpack(self, row: &[u8], width: usize, q: &mut Vec<u8>) {
        match (self.packing, self.bits) {
            (Packing::Bytes, _) => q.extend(row.iter().map(|byte| byte ^ 0x80)),
            (Packing::Words, Bits::Four) => {
                q.extend(row.iter().flat_map(|byte| [byte & 15, byte >> 4]).take(width));
            }
            (Packing::Words, _) => q.extend_from_slice(&row[..width]),
        }
    }

    /// The scales of some rows.
    fn scales(self, ints: &[u8], scales: &[u8], format: Format, width: usize, n_rows: usize) -> Vec<f32> {
        let (n, n_ints) = (n_rows * self.n_scales(width), n_rows * self.row_bytes(width));
        let n_bytes = Some(scales.len());
        assert!(
            ints.len() == n_ints && format.n_bytes(n) == n_bytes,
            "{}: {} bytes and {} of scales for {n_rows} rows of {width}",
            self.name(),
            ints.len(),
            scales.len()
        );
        let mut values = vec![0.0; n];
        format.dequantize(scales, &mut values);
        values
    }
}

/// What to multiply by instead of dividing by `scale`; 0 for a group of zeros.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The nearest whole number, ties to even, of a magnitude below 2^22: `f32::round_ties_even` is a call without SSE 4.1.
fn nearest(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x.clamp(-1e4, 1e4) + MAGIC) - MAGIC
}

/// A scale that half precision and BF16 both have, as near as can be.
fn rounded(scale: f32) -> f32 {
    // The largest one.
    f16::from_f32(bf16::from_f32(scale.min(65280.0)).to_f32()).to_f32()
}

#[cfg(test)]
mod tests {
    use kernels::packed::{Matrix, Part};
    use proptest::prelude::*;

    use super::*;

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 1.7).sin() * (1.0 + (i % 7) as f32)).collect()
    }

    fn all() -> Vec<Symmetric> {
        Symmetric::NAMES.iter().map(|name| Symmetric::from_name(name).expect("known")).collect()
    }

    #[test]
    fn words_have_the_first_numbers_lowest() {
        let int4 = Symmetric::from_name("int4-g32").expect("known");
        let row: Vec<f32> = (0..32).map(|i| (i % 16) as f32 - 8.0).collect();
        let (mut ints, mut scales) = (Vec::new(), Vec::new());
        int4.quantize_row(&row, None, &mut ints, &mut scales);
        // -8 to 7 become 0 to 15.
        assert_eq!(u32::from_le_bytes([ints[0], ints[1], ints[2], ints[3]]), 0x7654_3210);
        assert_eq!((ints.len(), &scales[..]), (16, &f16::ONE.to_le_bytes()[..]));
        let bytes = Symmetric::new(8, None, Packing::Bytes).expect("read");
        let mut back = [0.0; 4];
        bytes.dequantize(&[0, 1, 0x7f, 0x80], &0.5f32.to_le_bytes(), Format::F32, 4, &mut back);
        assert_eq!(back, [0.0, 0.5, 63.5, -64.0]);
        // A row is whole words: the rest is nothing.
        let rows = [0x21, 0x43, 0xf5, 0, 0x21, 0x43, 0xf5, 0];
        let scales = [1f32.to_le_bytes(), 2f32.to_le_bytes()].concat();
        let mut back = [0.0; 10];
        let by_row = Symmetric::new(4, None, Packing::Words).expect("read");
        by_row.dequantize(&rows, &scales, Format::F32, 5, &mut back);
        assert_eq!(back, [-7.0, -6.0, -5.0, -4.0, -3.0, -14.0, -12.0, -10.0, -8.0, -6.0]);
    }

    #[test]
    fn packed_rows_are_the_numbers_of_the_file() {
        let layouts = [
            (4, Some(32)),
            (4, Some(64)),
            (4, Some(128)),
            (4, Some(96)),
            (4, None),
            (8, Some(32)),
            (8, None),
        ];
        for ((bits, group), format) in
            layouts.into_iter().flat_map(|l| [Format::F32, Format::F16, Format::BF16].map(|f| (l, f)))
        {
            for (width, packing) in [(384, Packing::Words), (384, Packing::Bytes), (20, Packing::Words)] {
                let Ok(ints) = Symmetric::new(bits, group, packing) else { continue };
                if group.is_some_and(|n| width % n != 0) {
                    continue;
                }
                let n_rows = 11;
                let bytes: Vec<u8> =
                    (0..n_rows * ints.row_bytes(width)).map(|i| (i * 37 % 251) as u8).collect();
                let mut scales = Vec::new();
                format.quantize(&wave(n_rows * ints.n_scales(width)), &mut scales);
                let mut expected = vec![0.0; n_rows * width];
                ints.dequantize(&bytes, &scales, format, width, &mut expected);
                let (row_bytes, scale_bytes) = (bytes.len() / n_rows, scales.len() / n_rows);
                let read = |rows: std::ops::Range<usize>, out: &mut Rows| {
                    let of = |all: &[u8], n: usize| all[rows.start * n..rows.end * n].to_vec();
                    ints.append_to(&of(&bytes, row_bytes), &of(&scales, scale_bytes), format, width, out);
                    Ok::<(), ()>(())
                };
                let part = Part::new(ints.packed(width, format), n_rows, width, read).expect("nothing fails");
                let (matrix, mut row) = (Matrix::new(vec![part]), vec![0.0; width]);
                for (i, expected) in expected.chunks_exact(width).enumerate() {
                    matrix.row(i, &mut row);
                    assert!(row == expected, "{} of {width}, scales {format}, row {i}", ints.name());
                }
            }
        }
    }

    #[test]
    fn groups_become_smaller_where_rows_are_no_whole_number_of_them() {
        let of = |name: &str, width| {
            Symmetric::from_name(name).and_then(|it| it.fitting(width)).map(Symmetric::name)
        };
        assert_eq!(of("int4-g128", 1536).as_deref(), Some("INT4-G128"));
        assert_eq!(of("int4-g128", 576).as_deref(), Some("INT4-G64"));
        assert_eq!(of("int4-g64", 96).as_deref(), Some("INT4-G32"));
        assert_eq!((of("int4-g32", 48), of("int8", 48)), (None, None));
        assert_eq!(of("int8", 96).as_deref(), Some("INT8"));
    }

    #[test]
    fn what_is_not_read_is_named() {
        let refused = |bits, group, packing| Symmetric::new(bits, group, packing).expect_err("refused");
        assert!(refused(3, None, Packing::Words).contains("3 bits"));
        assert!(refused(4, Some(32), Packing::Bytes).contains("pack-quantized"));
        for n in [0, 16, 33] {
            assert!(refused(4, Some(n), Packing::Words).contains(&format!("{n} numbers")));
        }
    }

    #[test]
    fn important_columns_lose_less() {
        let int4 = Symmetric::from_name("int4-g64").expect("known");
        let row = wave(256);
        let importance: Vec<f32> = (0..256).map(|i| if i % 8 == 0 { 100.0 } else { 0.1 }).collect();
        let lost = |weights| {
            let (mut ints, mut scales, mut back) = (Vec::new(), Vec::new(), vec![0.0; 256]);
            int4.quantize_row(&row, weights, &mut ints, &mut scales);
            int4.dequantize(&ints, &scales, Format::F16, 256, &mut back);
            Lost::of(&row, &back, Some(&importance)).relative_weighed()
        };
        let (plain, weighed) = (lost(None), lost(Some(&importance)));
        assert!(weighed < 0.9 * plain, "{weighed} for {plain}");
    }

    #[test]
    fn numbers_that_no_scale_reaches() {
        for symmetric in all() {
            for bad in [f32::NAN, f32::INFINITY, 1e38, -1e38, 1e-40, 0.0] {
                let row: Vec<f32> = (0..128).map(|i| if i == 3 { bad } else { 0.0 }).collect();
                let (mut ints, mut scales, mut back) = (Vec::new(), Vec::new(), vec![0.0; 128]);
                symmetric.quantize_row(&row, None, &mut ints, &mut scales);
                symmetric.dequantize(&ints, &scales, Format::F16, 128, &mut back);
                let (of_bad, rest) = (back[3], back[100]);
                assert!(bad.is_finite() == of_bad.is_finite(), "{bad} became {of_bad}");
                let is_large = !bad.is_finite() || bad.abs() > 1e-30;
                assert!(is_large || of_bad == 0.0 && rest == 0.0, "{bad} became {of_bad}");
            }
        }
    }

    proptest! {
        /// The error is at most half a step, or what rounding the scale adds, and scales are what BF16 has too.
        #[test]
        fn rounds_to_what_is_near(row in proptest::collection::vec(-3f32..3.0, 128), which in 0usize..4) {
            let symmetric = all()[which];
            let (mut ints, mut scales, mut back) = (Vec::new(), Vec::new(), vec![0.0; 128]);
            let lost = symmetric.quantize(&row, None, (&mut ints, &mut scales));
            prop_assert_eq!(ints.len(), symmetric.row_bytes(128));
            prop_assert_eq!(scales.len(), 2 * symmetric.n_scales(128));
            symmetric.dequantize(&ints, &scales, Format::F16, 128, &mut back);
            let step = if symmetric.bits() == 8 { 3.0 / 127.0 } else { 3.0 / 6.0 };
            for (x, y) in row.iter().zip(&back) {
                // With 4 bits the largest may be cut, where that makes the others better.
                let most = if symmetric.bits() == 8 { 0.51 * step } else { 3.0 * step };
                prop_assert!((x - y).abs() <= most, "{} became {}", x, y);
            }
            let most = if symmetric.bits() == 8 { 0.02 } else { 0.2 };
            prop_assert!(lost.relative() < most);
            let mut values = vec![0.0; scales.len() / 2];
            Format::F16.dequantize(&scales, &mut values);
            prop_assert!(values.iter().all(|&s| s >= 0.0 && bf16::from_f32(s).to_f32() == s));
            // No scale that was tried is better than the usual one, so the error is not above its.
            if symmetric.bits() == 4 {
                let group = symmetric.group().unwrap();
                let mut usual = vec![0.0; 128];
                for (x, y) in row.chunks(group).zip(usual.chunks_mut(group)) {
                    let scale = rounded(x.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 7.5);
                    x.iter().zip(y).for_each(|(x, y)| *y = scale * nearest(x * inverse(scale)).clamp(-8.0, 7.0));
                }
                prop_assert!(lost.relative() <= Lost::of(&row, &usual, None).relative() * 1.0001);
            }
        }
    }
}
