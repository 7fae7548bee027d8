//! Hostile blocks, and hostile numbers made into blocks: a format, the blocks of a row, then bytes as numbers.
#![no_main]

mod packed_rows;

use libfuzzer_sys::fuzz_target;
use quant::{Format, Lost};

fuzz_target!(|bytes: &[u8]| {
    let [which, n_blocks, rest @ ..] = bytes else { return };
    let format = Format::ALL[usize::from(*which) % Format::ALL.len()];
    let width = format.block_len() * (1 + usize::from(*n_blocks % 4));
    let row_bytes = format.n_bytes(width).expect("whole blocks");
    let whole = &rest[..rest.len() / row_bytes * row_bytes];
    let mut all = vec![0.0; whole.len() / row_bytes * width];
    format.dequantize(whole, &mut all);
    if !all.is_empty() {
        packed_rows::agree(format, whole, &all, width);
    }
    // Any numbers, of which the last ones are the importance of columns.
    let numbers: Vec<f32> = rest.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let Some((row, after)) = numbers.split_at_checked(width) else { return };
    let importance: Option<Vec<f32>> =
        after.get(..width).map(|after| after.iter().map(|x| x.abs()).collect());
    let mut blocks = Vec::new();
    let lost = Lost::by_quantizing(format, row, width, importance.as_deref(), &mut blocks);
    assert!(blocks.len() == row_bytes, "{format}: {} bytes", blocks.len());
    // What small numbers lose is theirs at most.
    if row.iter().all(|x| x.abs() < 1e3 && (x.abs() > 1e-3 || *x == 0.0)) && importance.is_none() {
        assert!(lost.relative() <= 1.0, "{format} lost {}", lost.relative());
    }
});
