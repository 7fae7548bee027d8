//! Small valid files: the seeds of the fuzz targets in `quant/fuzz`, and what becomes of them when they are broken.

use std::path::Path;

use quant::{Format, Gguf, Importance, NewTensor, write};
use tokenizer::gguf::{Array, Value};

/// The target and the file.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let mut files: Vec<(&str, Vec<u8>)> =
        Format::ALL.iter().map(|&format| ("gguf", file_of(format))).collect();
    for (idx, &format) in Format::ALL.iter().enumerate() {
        let mut blocks = vec![idx as u8, 0];
        format.quantize(&wave(format.block_len()), &mut blocks);
        files.push(("blocks", blocks));
        let numbers = wave(2 * format.block_len());
        let numbers = numbers.iter().flat_map(|x| x.to_le_bytes());
        files.push(("blocks", [idx as u8, 0].into_iter().chain(numbers).collect()));
    }
    let mut importance = Importance::default();
    importance.texts.push("a.txt".to_owned());
    importance.n_chunks = 2;
    importance.add("blk.0.attn_q.weight", wave(8).iter().map(|x| x * x).collect(), vec![2.0]);
    importance.add("blk.0.ffn_down_exps.weight", vec![1.0; 8], vec![2.0, 0.0]);
    let mut newer = Vec::new();
    importance.write(&mut newer).unwrap();
    files.push(("imatrix", newer));
    // One entry: a name, 2 calls, 2 values; then 3 chunks and a name.
    let mut older = Vec::new();
    older.extend(1u32.to_le_bytes());
    older.extend([&1u32.to_le_bytes()[..], b"a", &2u32.to_le_bytes(), &2u32.to_le_bytes()].concat());
    older.extend([1f32.to_le_bytes(), 4f32.to_le_bytes(), 3u32.to_le_bytes(), 1u32.to_le_bytes()].concat());
    older.push(b't');
    files.push(("imatrix", older));
    files
}

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.7).sin()).collect()
}

/// Values of several kinds and two rows of a format.
fn file_of(format: Format) -> Vec<u8> {
    let values: Vec<(String, Value)> = vec![
        ("general.architecture".to_owned(), "llama".into()),
        ("llama.block_count".to_owned(), 1u32.into()),
        ("scores".to_owned(), Value::Array(Array::F32(vec![-1.0, 0.5]))),
        ("tokens".to_owned(), Value::Array(Array::String(vec!["a".to_owned(), "b".to_owned()]))),
    ];
    let tensors = [NewTensor { name: "blk.0.a".to_owned(), shape: vec![2, format.block_len()], format }];
    let mut file = Vec::new();
    write(&mut file, &values, &tensors, |_, bytes| {
        format.quantize(&wave(2 * format.block_len()), bytes);
        Ok(())
    })
    .unwrap();
    file
}

#[test]
fn seeds_are_valid_and_when_broken_refused_or_read() {
    for (target, file) in files() {
        let read = |file: &[u8]| match target {
            "gguf" => Gguf::parse(file).map(|gguf| gguf.tensors().for_each(|tensor| drop(tensor.to_vec()))),
            "imatrix" => Importance::parse(file).map(drop),
            _ => Ok(()),
        };
        read(&file).unwrap();
        let mut broken = file.clone();
        for at in 0..file.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                broken[at] = byte;
                let _ = read(&broken);
            }
            broken[at] = file[at];
        }
    }
}

/// Writes them where `FLINT_SEEDS` says; those of the tree are these.
#[test]
fn seeds_of_the_fuzz_targets_are_these() {
    let on_request = std::env::var_os("FLINT_SEEDS").map(std::path::PathBuf::from);
    let there = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    for (idx, (target, file)) in files().into_iter().enumerate() {
        let name = format!("{target}/{idx:02}");
        if let Some(folder) = &on_request {
            std::fs::create_dir_all(folder.join(target)).unwrap();
            std::fs::write(folder.join(&name), &file).unwrap();
        }
        let seed = std::fs::read(there.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(seed == file, "{name}: write the seeds anew, as quant/fuzz/README.md says");
    }
}
