//! Files: written and read back, real ones read.

use std::io::Write;
use std::path::PathBuf;

use quant::{Format, Gguf, NewTensor, write};
use tokenizer::gguf::{Array, Value};

/// A file with tensors of several formats, and their numbers.
fn small() -> (Vec<u8>, Vec<(NewTensor, Vec<f32>)>) {
    let values: Vec<(String, Value)> = vec![
        ("general.architecture".to_owned(), "llama".into()),
        ("llama.block_count".to_owned(), 2u32.into()),
        ("llama.rope.freq_base".to_owned(), 10_000f32.into()),
        ("an.array".to_owned(), Value::Array(Array::I32(vec![-1, 2]))),
    ];
    let tensors: Vec<(NewTensor, Vec<f32>)> = [
        ("token_embd.weight", vec![3, 64], Format::Q8_0),
        ("output_norm.weight", vec![5], Format::F32),
        ("blk.0.attn_q.weight", vec![2, 3, 32], Format::Q4_0),
        ("scalar", vec![1, 1, 1, 1], Format::F16),
    ]
    .into_iter()
    .map(|(name, shape, format)| {
        let n: usize = shape.iter().product();
        let numbers = (0..n).map(|idx| (idx * 37 % 101) as f32 / 50.0 - 1.0).collect();
        (NewTensor { name: name.to_owned(), shape, format }, numbers)
    })
    .collect();
    let described: Vec<NewTensor> = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
    let mut file = Vec::new();
    write(&mut file, &values, &described, |idx, bytes| {
        tensors[idx].0.format.quantize(&tensors[idx].1, bytes);
        Ok(())
    })
    .unwrap();
    (file, tensors)
}

#[test]
fn what_was_written_is_read() {
    let (file, tensors) = small();
    let gguf = Gguf::parse(&file).unwrap();
    assert_eq!(gguf.header().text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(gguf.header().count("llama.block_count").unwrap(), Some(2));
    assert_eq!(gguf.header().float("llama.rope.freq_base").unwrap(), Some(10_000.0));
    assert_eq!(gguf.header().numbers("an.array").unwrap(), Some(vec![-1, 2]));
    assert_eq!(gguf.n_tensors(), 4);
    for ((written, numbers), read) in tensors.iter().zip(gguf.tensors()) {
        assert_eq!((read.name, &read.shape, read.format), (&*written.name, &written.shape, written.format));
        assert_eq!(gguf.tensor(&written.name), Some(read.clone()));
        assert_eq!(read.n_elements(), numbers.len());
        let back = read.to_vec();
        let far = back.iter().zip(numbers).find(|(back, number)| (**back - **number).abs() > 0.126);
        assert_eq!(far, None, "{}", written.name);
    }
    assert_eq!(gguf.tensor("blk.0.attn_q"), None);
    assert_eq!(small().0, file);
}

#[test]
fn data_is_laid_out_as_the_format_has_it() {
    let (file, _) = small();
    assert_eq!(&file[..8], b"GGUF\x03\0\0\0");
    assert_eq!(file.len() % 32, 0);
    let gguf = Gguf::parse(&file).unwrap();
    let first = gguf.tensor("token_embd.weight").unwrap();
    // Three rows of two blocks of 34 bytes.
    assert_eq!(first.data.len(), 204);
    // The fastest dimension stands first: 64, then 3.
    let name = b"token_embd.weight\x02\0\0\0\x40\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x08\0\0\0";
    assert!(file.windows(name.len()).any(|window| window == name));
}

#[test]
fn what_no_reader_would_take_is_not_written() {
    let tensor = |name: &str, shape: &[usize], format| NewTensor {
        name: name.to_owned(),
        shape: shape.to_vec(),
        format,
    };
    let message = |tensors: &[NewTensor], n_bytes: usize| {
        let written = write(&mut Vec::new(), &[], tensors, |_, bytes| {
            bytes.resize(n_bytes, 0);
            Ok(())
        });
        written.unwrap_err().to_string()
    };
    let f32 = Format::F32;
    for (tensors, expected) in [
        (vec![tensor("a", &[], f32)], "tensor `a`: 0 dimensions"),
        (vec![tensor("a", &[1; 5], f32)], "tensor `a`: 5 dimensions"),
        (vec![tensor("a", &[1 << 40, 1 << 40], f32)], "more elements than can be counted"),
        (vec![tensor("a", &[2, 33], Format::Q8_0)], "rows of 33 are no multiple of 32, a block of Q8_0"),
        (vec![tensor("a", &[1], f32), tensor("a", &[1], f32)], "tensor `a`: the name stands twice"),
        (vec![tensor(&"n".repeat(64), &[1], f32)], "the name has 64 bytes, but may have 63"),
        (vec![tensor("a", &[3], f32)], "tensor `a`: 12 bytes are needed for its shape, but 4 were given"),
    ] {
        let message = message(&tensors, 4);
        assert!(message.contains(expected), "{message}");
    }
    let values: [(String, Value); 2] = [("a".to_owned(), 1u8.into()), ("a".to_owned(), 2u8.into())];
    let twice = write(&mut Vec::new(), &values, &[], |_, _| Ok(())).unwrap_err();
    assert!(twice.to_string().contains("the key `a` stands twice"), "{twice}");
}

#[test]
fn an_alignment_of_ones_own_is_kept() {
    for alignment in [1u32, 8, 64, 4096] {
        let values = [("general.alignment".to_owned(), alignment.into())];
        let tensors =
            ["a", "b"].map(|name| NewTensor { name: name.to_owned(), shape: vec![3], format: Format::F32 });
        let mut file = Vec::new();
        write(&mut file, &values, &tensors, |_, bytes| {
            Format::F32.quantize(&[1.0, 2.0, 3.0], bytes);
            Ok(())
        })
        .unwrap();
        let gguf = Gguf::parse(&file).unwrap();
        for tensor in gguf.tensors() {
            assert_eq!(tensor.to_vec(), [1.0, 2.0, 3.0]);
            let start = tensor.data.as_ptr() as usize - file.as_ptr() as usize;
            assert_eq!(start % alignment as usize, 0, "{alignment}");
        }
    }
}

/// The same weights as F32, F16, Q8_0 and Q4_0, as others made them.
#[test]
fn real_files_hold_the_same_weights_in_each_format() {
    let Some(assets) = std::env::var_os("FLINT_ASSETS").map(PathBuf::from) else {
        let _ = writeln!(std::io::stderr(), "skipped: FLINT_ASSETS is not set");
        return;
    };
    let file = |name: &str| std::fs::read(assets.join("models/stories260k").join(name)).unwrap();
    let original = file("stories260K-f32.gguf");
    let original = Gguf::parse(&original).unwrap();
    assert!(original.n_tensors() > 40);
    for (name, format) in [("f16", Format::F16), ("q8_0", Format::Q8_0), ("q4_0", Format::Q4_0)] {
        let bytes = file(&format!("stories260K-{name}.gguf"));
        let other = Gguf::parse(&bytes).unwrap();
        assert_eq!(other.n_tensors(), original.n_tensors());
        let mut n_same = 0;
        for tensor in other.tensors() {
            let exact = original.tensor(tensor.name).unwrap();
            assert_eq!(tensor.shape, exact.shape);
            if tensor.format == format {
                let mut expected = Vec::new();
                format.quantize(&exact.to_vec(), &mut expected);
                assert_eq!(tensor.data, expected, "{}", tensor.name);
                n_same += 1;
            }
        }
        assert!(n_same > 30, "{name}: {n_same}");
    }
}
