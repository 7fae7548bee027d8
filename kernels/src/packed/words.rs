//! Packed rows for devices: each in words of 32 bits of its own, row after row, so that threads side by side read words side
//! by side, whatever their number.
//!
//! The words of a row, in order:
//!
//! | what | words |
//! |---|---|
//! | the lower 4 bits of 8 numbers, number `i` at bit `4 i` | `n_in / 8` |
//! | the `h` bits above them, if there are any: those of 8 numbers take `8 h` bits, number `i` at bit `h i` | `n_in / 32 h` |
//! | bytes that scales are multiplied by, if there are any: for 256 numbers 16 of [`Group::scales`], or 8 of these and 8 of [`Group::mins`] | 4 each 256 numbers |
//! | scales in half precision, two in a word, or a scale and above it a minimum | one for a group, or half a one |
//! | or scales in single precision | one for a group |
//!
//! Floats lie as they are, with zeros after the last up to a multiple of 8. What a number stands for is said at [`Scales`];
//! the numbers take as many bytes as in a tile, but for the halves of a word at the ends of rows.

use std::ops::Range;

use rayon::prelude::*;

use super::{Group, Kind, PACKED_AT_ONCE, Rows, Scales};

/// Numbers that are unpacked together.
pub const UNIT: usize = 8;

/// Where the words of a row begin that are not the lower bits of its numbers, and where they end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowWords {
    /// Bits above the fourth.
    pub high: usize,
    /// Bytes that scales are multiplied by.
    pub bytes: usize,
    /// Scales and minimums.
    pub scales: usize,
    /// Words of a row.
    pub len: usize,
}

/// Words of [`RowWords::bytes`] for 256 numbers.
const BYTES: usize = 4;

impl Kind {
    /// The words of a row of `n_in` numbers.
    pub fn row_words(self, n_in: usize) -> RowWords {
        let n_units = n_in.div_ceil(UNIT);
        let Self::Ints { bits, scales } = self else {
            let len = n_units * UNIT * self.element_bytes() / 4;
            return RowWords { high: len, bytes: len, scales: len, len };
        };
        let bytes = n_units + n_units * (bits.n() as usize - 4) / 4;
        let n_groups = n_in / self.block_len();
        let first_scale = bytes + if self.block_len() == Group::MAX { BYTES * n_groups } else { 0 };
        let takes_word = scales.has_min() || scales.is_single();
        let len = first_scale + if takes_word { n_groups } else { n_groups.div_ceil(2) };
        RowWords { high: n_units, bytes, scales: first_scale, len }
    }
}

impl Scales {
    /// Whether something is added besides the scaled number.
    pub fn has_min(self) -> bool {
        matches!(self, Self::HalfAndMin | Self::BytesAndMin)
    }

    /// Whether scales are in single precision.
    pub fn is_single(self) -> bool {
        matches!(self, Self::Single32 | Self::Single64 | Self::Single128)
    }
}

/// Packs rows of `n_in` numbers. `read` appends those of a range of rows to empty [`Rows`]; it is called by several threads,
/// for all rows once.
///
/// # Errors
/// Those of `read`.
///
/// # Panics
/// If `n_in` is no multiple of the kind's [`block_len`](Kind::block_len), or `read` gives another number of numbers.
pub fn pack<E: Send>(
    kind: Kind,
    rows: Range<usize>,
    n_in: usize,
    read: impl Fn(Range<usize>, &mut Rows) -> Result<(), E> + Sync,
) -> Result<Vec<u32>, E> {
    assert!(n_in.is_multiple_of(kind.block_len()) && n_in > 0, "{kind:?}: rows of {n_in} numbers");
    let len = kind.row_words(n_in).len;
    let mut words: Vec<u32> = crate::memory::zeroed(rows.len() * len);
    let at_once = (PACKED_AT_ONCE / n_in).max(1);
    let pack = |numbers: &mut Rows, (chunk_idx, chunk): (usize, &mut [u32])| {
        let first = rows.start + chunk_idx * at_once;
        numbers.numbers.clear();
        numbers.groups.clear();
        read(first..first + chunk.len() / len, numbers)?;
        pack_rows(kind, n_in, numbers, chunk);
        Ok(())
    };
    words.par_chunks_mut(at_once * len).enumerate().try_for_each_init(Rows::default, pack)?;
    Ok(words)
}

fn pack_rows(kind: Kind, n_in: usize, rows: &Rows, words: &mut [u32]) {
    let at = kind.row_words(n_in);
    let n_rows = words.len() / at.len;
    let Kind::Ints { bits, scales } = kind else {
        let row_bytes = n_in * kind.element_bytes();
        assert!(rows.numbers.len() == n_rows * row_bytes, "{kind:?}: {} bytes", rows.numbers.len());
        for (row, words) in rows.numbers.chunks_exact(row_bytes).zip(words.chunks_exact_mut(at.len)) {
            fill(words, row);
        }
        return;
    };
    let n_groups = n_in / kind.block_len();
    assert!(
        rows.groups.len() == n_rows * n_groups && rows.numbers.len() == n_rows * n_in,
        "{kind:?}: {} numbers in {} groups",
        rows.numbers.len(),
        rows.groups.len()
    );
    let each = rows.numbers.chunks_exact(n_in).zip(rows.groups.chunks_exact(n_groups));
    for ((numbers, groups), words) in each.zip(words.chunks_exact_mut(at.len)) {
        pack_numbers(bits.n() as usize - 4, numbers, &mut words[..at.bytes]);
        if at.scales > at.bytes {
            for (group, words) in groups.iter().zip(words[at.bytes..].chunks_exact_mut(BYTES)) {
                fill(words, &bytes_of(group, scales));
            }
        }
        let factors: Vec<u8> = match scales {
            _ if scales.has_min() => {
                groups.iter().flat_map(|group| [group.scale, group.min]).flatten().collect()
            }
            _ if scales.is_single() => groups.iter().flat_map(|group| group.single.to_le_bytes()).collect(),
            _ => groups.iter().flat_map(|group| group.scale).collect(),
        };
        fill(&mut words[at.scales..], &factors);
    }
}

/// Numbers of which `width` bits lie above the fourth.
fn pack_numbers(width: usize, numbers: &[u8], words: &mut [u32]) {
    let (low, high) = words.split_at_mut(numbers.len() / UNIT);
    for (unit, (numbers, low)) in numbers.chunks_exact(UNIT).zip(low).enumerate() {
        let mut upper = 0;
        for (i, &q) in numbers.iter().enumerate() {
            *low |= u32::from(q & 15) << (4 * i);
            upper |= u32::from(q >> 4) << (width * i);
        }
        if width > 0 {
            let bit = unit * UNIT * width;
            high[bit / 32] |= upper << (bit % 32);
        }
    }
}

/// What the scales of 256 numbers are multiplied by.
fn bytes_of(group: &Group, scales: Scales) -> [u8; 16] {
    match scales {
        Scales::BytesAndMin => {
            std::array::from_fn(|i| if i < 8 { group.scales[2 * i] } else { group.mins[i - 8] })
        }
        _ => group.scales,
    }
}

/// Bytes as words, the first lowest; what is left of the last word stays.
fn fill(words: &mut [u32], bytes: &[u8]) {
    for (word, bytes) in words.iter_mut().zip(bytes.chunks(4)) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
    }
}
