//! How much memory reading a file takes at its peak, measured: a binary of its own, because it counts every allocation.
//!
//! At most as much as the file has bytes, and 1 MiB: of each key 8 bytes are kept, and of each tensor, while places are
//! compared, 24.

use peak_alloc::PeakAlloc;
use quant::{Format, Gguf, NewTensor, write};
use tokenizer::gguf::{Array, Value};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const FLOOR: usize = 1 << 20;

/// What reading takes at its peak beyond what was there before.
fn peak(file: &[u8]) -> usize {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let _ = Gguf::parse(file);
    ALLOCATOR.peak_usage().saturating_sub(before)
}

/// Keys of four letters, with a value of one byte.
fn keys(n: usize) -> Vec<(String, Value)> {
    (0..n).map(|idx| (format!("{idx:04x}"), Value::U8(0))).collect()
}

/// Tensors without numbers.
fn tensors(n: usize) -> Vec<NewTensor> {
    (0..n).map(|idx| NewTensor { name: format!("{idx:x}"), shape: vec![0], format: Format::F32 }).collect()
}

fn file(values: &[(String, Value)], tensors: &[NewTensor]) -> Vec<u8> {
    let mut file = Vec::new();
    let n_bytes = |tensor: &NewTensor| tensor.format.n_bytes(tensor.shape.iter().product()).unwrap();
    write(&mut file, values, tensors, |idx, bytes| {
        bytes.resize(n_bytes(&tensors[idx]), 0);
        Ok(())
    })
    .unwrap();
    file
}

/// `n_tensors` and `n_values` as a file claims them, before so many bytes of `filler`.
fn claim(n_tensors: u64, n_values: u64, filler: u8, n_bytes: usize) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(n_tensors.to_le_bytes());
    file.extend(n_values.to_le_bytes());
    file.resize(file.len() + n_bytes, filler);
    file
}

#[test]
fn reading_takes_no_more_memory_than_the_file() {
    let long = Value::Array(Array::String(vec![String::new(); 500_000]));
    let large = NewTensor { name: "large".to_owned(), shape: vec![1 << 20], format: Format::F32 };
    let mut numbers = tensors(100_000);
    numbers.iter_mut().for_each(|tensor| tensor.shape = vec![1]);
    for (name, file) in [
        ("many keys", file(&keys(60_000), &[])),
        ("many empty tensors", file(&[], &tensors(200_000))),
        ("many tensors", file(&[], &numbers)),
        ("a long array", file(&[("texts".to_owned(), long)], &[])),
        ("a large tensor", file(&[], &[large])),
        ("keys that are not there", claim(0, 600_000, 0, 10 << 20)),
        ("as many keys as would fit", claim(0, (10 << 20) / 14, 1, 10 << 20)),
        ("more keys than would fit", claim(0, u64::MAX, 0, 1 << 20)),
        ("as many tensors as would fit", claim((10 << 20) / 32, 0, 0, 10 << 20)),
        ("more tensors than would fit", claim(u64::MAX / 32, 0, 0, 1 << 20)),
    ] {
        let peak = peak(&file);
        assert!(peak <= file.len() + FLOOR, "{name}: {peak} bytes for {} of the file", file.len());
    }
    // The measure measures.
    assert!(peak(&file(&keys(60_000), &[])) >= 8 * 60_000);
}
