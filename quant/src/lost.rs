//! What rounding loses: sums of squared errors, from which errors relative to the numbers follow.

use crate::Format;

/// What numbers lost by being quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Lost {
    /// Of the numbers' squares.
    squares: f64,
    /// Of the errors' squares.
    errors: f64,
    /// Of both, each weighed by the importance of its column; as they are where that is not known.
    weighed: [f64; 2],
}

impl Lost {
    /// Appends the blocks of whole rows of `width` numbers, rounded with a regard to the importance of each column where
    /// that is known, and gives what was lost.
    ///
    /// # Panics
    /// If rows are no whole number of blocks, or the importance is not that of a row.
    pub fn by_quantizing(
        format: Format,
        rows: &[f32],
        width: usize,
        importance: Option<&[f32]>,
        out: &mut Vec<u8>,
    ) -> Self {
        let mut lost = Self::default();
        let mut back = vec![0.0; width];
        for row in rows.chunks_exact(width.max(1)) {
            let begin = out.len();
            format.quantize_row(row, importance, out);
            format.dequantize(&out[begin..], &mut back);
            lost = lost.and(Self::of(row, &back, importance));
        }
        lost
    }

    /// What a row lost that became `back`.
    pub(crate) fn of(row: &[f32], back: &[f32], importance: Option<&[f32]>) -> Self {
        let mut lost = Self::default();
        for (idx, (value, back)) in row.iter().zip(back).enumerate() {
            let (value, error) = (f64::from(*value), f64::from(value - back));
            let weight = importance.map_or(1.0, |importance| f64::from(importance[idx]));
            lost.squares += value * value;
            lost.errors += error * error;
            lost.weighed[0] += weight * value * value;
            lost.weighed[1] += weight * error * error;
        }
        lost
    }

    /// Of these numbers and others.
    pub fn and(self, other: Self) -> Self {
        Self {
            squares: self.squares + other.squares,
            errors: self.errors + other.errors,
            weighed: [0, 1].map(|i| self.weighed[i] + other.weighed[i]),
        }
    }

    /// The errors' root mean square by that of the numbers.
    pub fn relative(&self) -> f64 {
        ratio(self.errors, self.squares).sqrt()
    }

    /// The same of the numbers as their columns are important, so of what the matrix gives for inputs like those that were
    /// calibrated on. As [`relative`](Self::relative) where importance is not known.
    pub fn relative_weighed(&self) -> f64 {
        ratio(self.weighed[1], self.weighed[0]).sqrt()
    }
}

/// 0 of nothing: zeros lose nothing.
fn ratio(part: f64, whole: f64) -> f64 {
    if part == 0.0 { 0.0 } else { part / whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_summed_over_rows() {
        // BF16 has 8 bits of mantissa: 1 + 2^-9 loses 2^-9.
        let row = [1.0 + 1.0 / 512.0, 2.0];
        let mut bytes = Vec::new();
        let all = [row, row].concat();
        let lost = Lost::by_quantizing(Format::BF16, &all, 2, None, &mut bytes);
        let (x, error) = (f64::from(row[0]), 1.0 / 512.0);
        assert_eq!(bytes.len(), 8);
        assert!((lost.relative() - error / (x * x + 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(lost.relative(), lost.relative_weighed());
        let lost = Lost::by_quantizing(Format::BF16, &all, 2, Some(&[4.0, 1.0]), &mut bytes);
        assert!((lost.relative_weighed() - 2.0 * error / (4.0 * x * x + 4.0).sqrt()).abs() < 1e-12);
        let zeros = Lost::by_quantizing(Format::Q8_0, &[0.0; 64], 32, None, &mut bytes);
        assert_eq!((zeros.relative(), Lost::default().relative()), (0.0, 0.0));
    }
}
