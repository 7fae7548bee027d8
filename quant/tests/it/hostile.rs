//! Files that lie: known holes of other readers, every truncation, every flipped bit.

use quant::{Format, Gguf, NewTensor, write};
use tokenizer::Tokenizer;
use tokenizer::gguf::{Array, Value};

use crate::made::{Entry, File};

const F32: u32 = 0;

fn refused(file: &[u8]) -> String {
    match Gguf::parse(file) {
        Ok(_) => panic!("{} bytes were read", file.len()),
        Err(problem) => problem.to_string(),
    }
}

#[track_caller]
fn assert_refused(entries: &[Entry], n_data: usize, expected: &str) {
    let message = refused(&File::of(entries, n_data));
    assert!(message.contains(expected), "{message}");
}

#[test]
fn data_past_the_end_of_the_file_is_refused() {
    assert_refused(
        &[Entry::new("a", &[16], F32, 32)],
        95,
        "tensor `a`: 64 bytes from 32 on, but the file has 95",
    );
    assert_refused(&[Entry::new("a", &[1 << 40], F32, 0)], 64, "4398046511104 bytes from 0 on");
    assert_refused(&[Entry::new("a", &[1], F32, 1 << 40)], 64, "from 1099511627776 on");
    assert_refused(&[Entry::new("a", &[1], F32, u64::MAX - 31)], 64, "bytes from 18446744073709551584 on");
    assert!(Gguf::parse(&File::of(&[Entry::new("a", &[16], F32, 32)], 96)).is_ok());
}

#[test]
fn sizes_whose_sum_or_product_wraps_are_refused() {
    // 2^62 numbers of 4 bytes.
    assert_refused(&[Entry::new("a", &[1 << 31, 1 << 31], F32, 0)], 64, "more bytes than can be counted");
    // Each is countable, and both together are 2^64 and 32 bytes.
    let half = [Entry::new("a", &[1 << 60, 1], F32, 0), Entry::new("b", &[1 << 60, 1, 1, 1], F32, 1 << 62)];
    assert_refused(&half, 32, "4611686018427387904 bytes from 0 on");
    // 2^64 - 16 bytes, which become 0 when they are rounded up.
    assert_refused(&[Entry::new("a", &[4, (1 << 30) - 1, (1 << 30) + 1], F32, 0)], 64, "more bytes");
}

#[test]
fn a_dimension_that_makes_strides_wrap_is_refused() {
    assert_refused(&[Entry::new("a", &[4, (1 << 42) + 1, 1 << 22, 1], F32, 0)], 64, "more elements than can");
    assert_refused(&[Entry::new("a", &[1 << 40, 1 << 40], F32, 0)], 64, "more elements than can be counted");
    assert_refused(&[Entry::new("a", &[u64::MAX, 2], F32, 0)], 64, "a dimension of 18446744073709551615");
    // Nothing is stored, and still a row would start where no number reaches.
    assert_refused(
        &[Entry::new("a", &[1 << 40, 0, 1 << 40], F32, 0)],
        0,
        "more elements than can be counted",
    );
}

#[test]
fn scores_of_bytes_are_refused() {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut file = File::new(0, 3);
    file.value("tokenizer.ggml.model", 8, &text("llama"));
    file.text(b"tokenizer.ggml.tokens");
    [9u32, 8].into_iter().for_each(|kind| file.u32(kind));
    file.length(3);
    ["<unk>", "<s>", "</s>"].into_iter().for_each(|token| file.text(token.as_bytes()));
    file.text(b"tokenizer.ggml.scores");
    [9u32, 0].into_iter().for_each(|kind| file.u32(kind));
    file.length(3);
    file.raw(&[1, 2, 3]);
    assert!(Gguf::parse(&file.bytes).is_ok());
    let problem = Tokenizer::from_gguf(&file.bytes).unwrap_err().to_string();
    assert!(
        problem.contains("`tokenizer.ggml.scores` is an array of U8, but should be an array of [F32"),
        "{problem}"
    );
}

/// Numbers of any size are only numbers here; who reads a model must bound them.
#[test]
fn counts_of_any_size_are_read_and_negative_ones_refused() {
    for n in [0u32, 513, 1 << 31, u32::MAX] {
        let mut file = Vec::new();
        write(&mut file, &[("llama.block_count".to_owned(), n.into())], &[], |_, _| Ok(())).unwrap();
        let gguf = Gguf::parse(&file).unwrap();
        assert_eq!(gguf.header().count("llama.block_count").unwrap(), Some(n.into()));
    }
    let mut file = Vec::new();
    write(&mut file, &[("llama.block_count".to_owned(), (-1i32).into())], &[], |_, _| Ok(())).unwrap();
    let problem = Gguf::parse(&file).unwrap().header().count("llama.block_count").unwrap_err();
    assert!(problem.to_string().contains("`llama.block_count` is -1, which is no count"), "{problem}");
}

/// A small file with values of every kind and two tensors.
fn valid() -> File {
    let mut file = File::new(2, 5);
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    file.value("general.architecture", 8, &text("llama"));
    file.value("a.number", 10, &7u64.to_le_bytes());
    file.value("general.alignment", 4, &32u32.to_le_bytes());
    file.text(b"an.array");
    [9u32, 5].into_iter().for_each(|kind| file.u32(kind));
    file.length(2);
    file.raw(&[0; 8]);
    file.text(b"texts");
    [9u32, 8].into_iter().for_each(|kind| file.u32(kind));
    file.length(2);
    ["one", "two"].into_iter().for_each(|word| file.text(word.as_bytes()));
    file.entry(&Entry::new("a", &[4, 2], F32, 0));
    file.entry(&Entry::new("b", &[32], 8, 32));
    file.pad(32);
    file.bytes.resize(file.bytes.len() + 66, 0);
    file
}

#[test]
fn no_length_is_believed() {
    let valid = valid();
    assert!(Gguf::parse(&valid.bytes).is_ok());
    assert_eq!(valid.lengths.len(), 18);
    for &(at, n_bytes) in &valid.lengths {
        for lie in
            [u32::MAX.into(), 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, u64::MAX - 7, u64::MAX]
        {
            let mut file = valid.bytes.clone();
            file[at..at + n_bytes].copy_from_slice(&lie.to_le_bytes()[..n_bytes]);
            // Lies of 64 bits are 0 in the lower 32, or not different.
            if n_bytes == 4 && lie as u32 <= 4 {
                continue;
            }
            assert!(!refused(&file).is_empty(), "{lie} at {at}");
        }
    }
    // 43 bytes.
    let mut short = File::new(0, 1);
    short.value("keys", 9, &[8, 0, 0, 0]);
    short.u64(1 << 63);
    assert!(refused(&short.bytes).contains("9223372036854775808 elements"));
}

#[test]
fn arrays_of_arrays_are_refused_at_any_depth() {
    for depth in [2, 100_000] {
        let mut file = File::new(0, 1);
        file.text(b"nested");
        file.u32(9);
        for _ in 1..depth {
            file.u32(9);
            file.u64(1);
        }
        file.u32(0);
        file.u64(1);
        file.raw(&[0]);
        assert!(refused(&file.bytes).contains("an array of arrays"));
    }
}

#[test]
fn numbers_of_dimensions_that_ggml_has_not_are_refused() {
    for n_dims in [0, 5, 6, 1 << 31, u32::MAX] {
        let entry = Entry { n_dims, ..Entry::new("a", &[1; 6], F32, 0) };
        assert_refused(&[entry], 32, &format!("tensor `a`: {n_dims} dimensions, but 1 to 4 are possible"));
    }
    for n_dims in 1..=4 {
        assert!(Gguf::parse(&File::of(&[Entry::new("a", &vec![1; n_dims], F32, 0)], 4)).is_ok());
    }
}

#[test]
fn alignments_that_are_no_power_of_two_in_32_bits_are_refused() {
    for (kind, bytes, expected) in [
        (5u32, &32i32.to_le_bytes()[..], "`general.alignment` is I32, but should be one of [U32]"),
        (10, &32u64.to_le_bytes(), "`general.alignment` is U64"),
        (4, &0u32.to_le_bytes(), "is 0, which is no power of two"),
        (4, &13u32.to_le_bytes(), "is 13, which is no power of two"),
        (4, &u32::MAX.to_le_bytes(), "is 4294967295, which is no power of two"),
    ] {
        let mut file = File::new(0, 1);
        file.value("general.alignment", kind, bytes);
        let message = refused(&file.bytes);
        assert!(message.contains(expected), "{message}");
    }
    // The largest one is legal, though data would begin 2 GiB later.
    let mut file = File::new(1, 1);
    file.value("general.alignment", 4, &(1u32 << 31).to_le_bytes());
    file.entry(&Entry::new("a", &[1], F32, 0));
    file.pad(4096);
    assert!(
        refused(&file.bytes).contains("the data of tensors begins at byte 2147483648, but the file has 4096")
    );
}

#[test]
fn tensors_that_share_bytes_are_refused() {
    let entries = |second: u64| [Entry::new("a", &[16], F32, 0), Entry::new("b", &[8], F32, second)];
    for second in [0, 32] {
        assert_refused(&entries(second), 128, "overlaps that of `");
    }
    assert!(Gguf::parse(&File::of(&entries(64), 128)).is_ok());
    // The order of the data need not be that of the table, and nothing may stand anywhere.
    let [first, second] = entries(64);
    assert!(Gguf::parse(&File::of(&[second, first], 128)).is_ok());
    let empty = Entry::new("c", &[8, 0], F32, 32);
    let [first, second] = entries(64);
    assert!(Gguf::parse(&File::of(&[first, second, empty], 128)).is_ok());
    assert_refused(&[Entry::new("a", &[8], F32, 8)], 128, "its data is at 8, which is no multiple of 32");
}

#[test]
fn types_that_are_not_read_are_named() {
    for (number, name) in
        [(16, "IQ2_XXS (16)"), (24, "I8 (24)"), (39, "MXFP4 (39)"), (4, "4"), (31, "31"), (1000, "1000")]
    {
        let message = refused(&File::of(&[Entry::new("a\n\u{1b}", &[256], number, 0)], 1024));
        let expected = format!("tensor `a\\n\\u{{1b}}` is of type {name}, which is not read");
        assert!(message.contains(&expected), "{message}");
        assert!(message.contains("Q4_K, Q5_K"), "{message}");
    }
}

#[test]
fn rows_are_whole_blocks() {
    let half = Entry::new("a", &[48, 2], Format::Q4_0.number(), 0);
    assert_refused(&[half], 128, "rows of 48 are no multiple of 32, a block of Q4_0");
}

#[test]
fn names_are_bounded_and_single() {
    assert!(Gguf::parse(&File::of(&[Entry::new(&"n".repeat(63), &[1], F32, 0)], 32)).is_ok());
    assert_refused(
        &[Entry::new(&"n".repeat(64), &[1], F32, 0)],
        32,
        "the name has 64 bytes, but may have 63",
    );
    let twice = [Entry::new("a", &[1], F32, 0), Entry::new("a", &[1], F32, 32)];
    assert_refused(&twice, 64, "tensor `a`: the name stands twice");
}

#[test]
fn other_versions_and_other_ends_are_refused_by_name() {
    for (version, expected) in [
        ([1, 0, 0, 0], "version 1 is not supported (supported: versions 2 and 3, little-endian)"),
        ([0, 0, 0, 3], "big-endian (version 3) is not supported"),
        ([0, 0, 0, 2], "big-endian (version 2)"),
        ([9, 0, 0, 0], "version 9 is not supported"),
    ] {
        let mut file = valid().bytes;
        file[4..8].copy_from_slice(&version);
        let message = refused(&file);
        assert!(message.contains(expected), "{message}");
    }
    let mut second = valid().bytes;
    second[4] = 2;
    assert_eq!(Gguf::parse(&second).unwrap().header().version(), 2);
}

/// A file of about 4 KiB whose header is most of it.
fn four_kib() -> Vec<u8> {
    let mut values: Vec<(String, Value)> = vec![
        ("general.architecture".to_owned(), "llama".into()),
        ("llama.block_count".to_owned(), 2u32.into()),
        ("tokenizer.ggml.scores".to_owned(), Value::Array(Array::F32(vec![-1.0; 100]))),
        ("flags".to_owned(), Value::Array(Array::Bool(vec![true; 9]))),
    ];
    let tokens = (0..170).map(|idx| format!("token {idx}")).collect();
    values.push(("tokenizer.ggml.tokens".to_owned(), Value::Array(Array::String(tokens))));
    let small = Format::ALL.iter().filter(|format| format.block_len() < 256);
    let tensors: Vec<NewTensor> = small
        .map(|&format| NewTensor { name: format!("blk.{format}"), shape: vec![format.block_len()], format })
        .collect();
    let mut file = Vec::new();
    write(&mut file, &values, &tensors, |idx, bytes| {
        bytes.resize(tensors[idx].format.block_bytes(), 0x3c);
        Ok(())
    })
    .unwrap();
    assert!((3700..4500).contains(&file.len()), "{}", file.len());
    file
}

/// Goes through all that there is.
fn walk(gguf: &Gguf<'_>) -> usize {
    let shown: usize = gguf.header().entries().map(|(key, entry)| format!("{key} {entry}").len()).sum();
    let numbers: usize = gguf.tensors().map(|tensor| tensor.to_vec().len()).sum();
    let found = gguf.tensors().filter(|tensor| gguf.tensor(tensor.name).as_ref() == Some(tensor)).count();
    assert_eq!(found, gguf.n_tensors());
    shown + numbers
}

#[test]
fn every_truncation_is_an_error_or_the_same() {
    let file = four_kib();
    let whole = Gguf::parse(&file).unwrap();
    let tensors: Vec<_> = whole.tensors().collect();
    let end = tensors.iter().map(|tensor| tensor.data.as_ptr_range().end as usize).max().unwrap();
    let end = end - file.as_ptr() as usize;
    for len in 0..file.len() {
        match Gguf::parse(&file[..len]) {
            Ok(gguf) => {
                assert!(len >= end, "{len}");
                assert_eq!(gguf.tensors().collect::<Vec<_>>(), tensors);
            }
            Err(_) => assert!(len < end, "{len}"),
        }
    }
}

#[test]
fn every_flip_of_a_byte_is_an_error_or_readable() {
    let file = four_kib();
    let first = Gguf::parse(&file).unwrap().tensors().next().unwrap();
    let n_header = first.data.as_ptr() as usize - file.as_ptr() as usize;
    assert!(n_header > 3000, "{n_header}");
    let (mut n_read, mut n_refused) = (0, 0);
    for idx in 0..n_header {
        for flip in [1u8, 2, 4, 8, 16, 32, 64, 128, 255] {
            let mut broken = file.clone();
            broken[idx] ^= flip;
            match Gguf::parse(&broken) {
                Ok(gguf) => {
                    assert!(walk(&gguf) > 0);
                    n_read += 1;
                }
                Err(problem) => {
                    assert!(!problem.to_string().is_empty());
                    n_refused += 1;
                }
            }
        }
    }
    // Letters of names and texts may be others; lengths and types may not.
    assert!(n_read > 1000 && n_refused > 1000, "{n_read} read, {n_refused} refused");
}
