//! Model folders: what is written reads back, and whatever is wrong with a folder is an error.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use ::safetensors::tensor::{Dtype, SafeTensors, TensorView};
use burn::prelude::*;
use burn::tensor::{bf16, f16};
use model::weights::{self, Error};
use model::{Config, FusedOps, Transformer};
use tempfile::TempDir;

use crate::cases;
use crate::parameters::{self, Named};

on_cpu!(
    what_is_saved_reads_back,
    half_precision_is_read,
    missing_extra_and_misshapen_tensors_are_named,
    a_file_cut_anywhere_is_an_error,
    a_file_that_shrinks_while_it_is_read_is_an_error,
    a_name_that_stands_twice_is_an_error,
    a_header_with_a_flipped_bit_is_an_error,
    sizes_that_no_file_has_are_an_error,
    a_folder_without_the_files_is_an_error,
);

fn tiny() -> Config {
    Config { n_ff: Some(6), n_kv_head: Some(1), ..Config::new(7, 1, 8, 2, 5) }
}

fn saved<B: Backend>(config: &Config) -> (TempDir, Transformer<B>) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = cases::lively::<B>(config, 1);
    weights::save(&model, dir.path(), &BTreeMap::new()).expect("saved");
    (dir, model)
}

fn load<B: FusedOps>(dir: &Path) -> Result<Vec<Named>, Error> {
    weights::load::<B>(dir, &Default::default()).map(|model| parameters::values(&model))
}

/// One tensor of a file.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn read_tensors(dir: &Path) -> BTreeMap<String, Stored> {
    let bytes = fs::read(dir.join("model.safetensors")).expect("there");
    let file = SafeTensors::deserialize(&bytes).expect("well-formed");
    let stored = |t: TensorView| Stored { dtype: t.dtype(), shape: t.shape().into(), bytes: t.data().into() };
    file.tensors().into_iter().map(|(name, t)| (name, stored(t))).collect()
}

fn write_tensors(dir: &Path, tensors: &BTreeMap<String, Stored>) {
    let view =
        |t: &Stored| TensorView::new(t.dtype, t.shape.clone(), t.bytes.clone().leak()).expect("sizes fit");
    let views = tensors.iter().map(|(name, t)| (name, view(t)));
    fs::write(dir.join("model.safetensors"), ::safetensors::serialize(views, None).expect("bytes"))
        .expect("written");
}

fn what_is_saved_reads_back<B: FusedOps>() {
    for config in cases::all() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let model = cases::lively::<B>(&config, 2);
        let metadata = BTreeMap::from([("step".into(), "12".into()), ("note".into(), "ü \"quoted\"".into())]);
        weights::save(&model, dir.path(), &metadata).expect("saved");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 2, "nothing else is left");

        let loaded = weights::load::<B>(dir.path(), &Default::default()).expect("loaded");
        assert_eq!(parameters::values(&loaded), parameters::values(&model));
        // LLaMA's form of the config has no place for defaults.
        let explicit =
            Config { n_ff: Some(config.n_ff()), n_kv_head: Some(config.n_kv_head()), ..config.clone() };
        let same = |c: &Config| Config { n_ff: Some(c.n_ff()), n_kv_head: Some(c.n_kv_head()), ..c.clone() };
        assert_eq!(same(loaded.config()), explicit);

        let bytes = fs::read(dir.path().join("model.safetensors")).expect("there");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("well-formed");
        let mut expected: HashMap<_, _> = metadata.into_iter().collect();
        expected.insert("format".into(), "pt".into());
        assert_eq!(header.metadata().as_ref(), Some(&expected));

        // Writing over an older model.
        weights::save(&cases::lively::<B>(&config, 3), dir.path(), &BTreeMap::new()).expect("saved again");
        assert_ne!(load::<B>(dir.path()).expect("loaded"), parameters::values(&model));
    }
}

fn half_precision_is_read<B: FusedOps>() {
    let (dir, model) = saved::<B>(&tiny());
    let original = read_tensors(dir.path());
    let to_f16: fn(f32) -> [u8; 2] = |x| f16::from_f32(x).to_le_bytes();
    let to_bf16: fn(f32) -> [u8; 2] = |x| bf16::from_f32(x).to_le_bytes();
    let types = [(Dtype::F16, to_f16, 1.0 / 2048.0), (Dtype::BF16, to_bf16, 1.0 / 256.0)];
    for (dtype, convert, precision) in types {
        let mut tensors = original.clone();
        for t in tensors.values_mut() {
            let floats = t.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
            (t.dtype, t.bytes) = (dtype, floats.flat_map(convert).collect());
        }
        write_tensors(dir.path(), &tensors);
        let loaded = load::<B>(dir.path()).expect("loaded");
        for ((name, got), (_, want)) in loaded.iter().zip(&parameters::values(&model)) {
            let close = got.iter().zip(want).all(|(a, b)| (a - b).abs() <= precision * b.abs() + 1e-7);
            assert!(close, "{name} as {dtype:?}");
        }
    }
}

fn missing_extra_and_misshapen_tensors_are_named<B: FusedOps>() {
    let (dir, _) = saved::<B>(&tiny());
    let original = read_tensors(dir.path());
    for (name, stored) in &original {
        let with = |other: Stored| {
            let mut tensors = original.clone();
            tensors.insert(name.clone(), other);
            write_tensors(dir.path(), &tensors);
            load::<B>(dir.path()).expect_err(name)
        };
        let error = with(Stored { dtype: Dtype::I32, ..stored.clone() });
        assert!(
            matches!(&error, Error::Dtype { name: n, dtype, .. } if n == name && dtype == "I32"),
            "{error}"
        );

        // As many elements, but in one dimension more.
        let error = with(Stored { shape: [vec![1], stored.shape.clone()].concat(), ..stored.clone() });
        assert!(matches!(&error, Error::Shape { name: n, .. } if n == name), "{error}");

        let doubled = [stored.bytes.clone(), stored.bytes.clone()].concat();
        let shape = [&[2 * stored.shape[0]], &stored.shape[1..]].concat();
        let error = with(Stored { shape, bytes: doubled, ..stored.clone() });
        assert!(matches!(&error, Error::Shape { name: n, .. } if n == name), "{error}");

        let mut tensors = original.clone();
        tensors.remove(name);
        write_tensors(dir.path(), &tensors);
        let error = load::<B>(dir.path()).expect_err(name);
        assert!(matches!(&error, Error::Missing { name: n, .. } if n == name), "{error}");
    }
    let mut tensors = original.clone();
    tensors.insert("model.extra".into(), original["model.norm.weight"].clone());
    write_tensors(dir.path(), &tensors);
    let error = load::<B>(dir.path()).expect_err("one too many");
    assert!(matches!(&error, Error::Unused { name, .. } if name == "model.extra"), "{error}");
}

fn a_file_cut_anywhere_is_an_error<B: FusedOps>() {
    let (dir, _) = saved::<B>(&tiny());
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).expect("there");
    for n in 0..bytes.len() {
        fs::write(&path, &bytes[..n]).expect("written");
        assert!(load::<B>(dir.path()).is_err(), "the first {n} of {} bytes", bytes.len());
    }
    fs::write(&path, [&bytes[..], &[0]].concat()).expect("written");
    assert!(load::<B>(dir.path()).is_err(), "one byte too many");
    fs::write(&path, &bytes).expect("written");
    assert!(load::<B>(dir.path()).is_ok());
}

fn a_header_with_a_flipped_bit_is_an_error<B: FusedOps>() {
    let (dir, model) = saved::<B>(&tiny());
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).expect("there");
    let header_len = 8 + u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
    let expected = parameters::values(&model);
    let mut n_accepted = 0;
    for i in 0..header_len {
        for bit in [0, 1 + i % 7] {
            let mut bad = bytes.clone();
            bad[i] ^= 1 << bit;
            fs::write(&path, &bad).expect("written");
            if let Ok(loaded) = load::<B>(dir.path()) {
                // What is left: other text in the metadata, other white space after the header.
                assert_eq!(loaded, expected, "bit {bit} of byte {i}");
                n_accepted += 1;
            }
        }
    }
    assert!(n_accepted < 80, "{n_accepted} of {} flips pass", 2 * header_len);
}

fn sizes_that_no_file_has_are_an_error<B: FusedOps>() {
    let (dir, _) = saved::<B>(&tiny());
    let path = dir.path().join("config.json");
    let text = fs::read_to_string(&path).expect("there");
    let good: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let sizes = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"];
    let max = 1u64 << 24;
    for keys in [&sizes[..], &sizes[..1], &sizes[1..2], &sizes[2..3], &sizes[3..]] {
        for value in [0, max, max + 1, u64::from(u32::MAX), u64::MAX / 2, u64::MAX] {
            let mut bad = good.clone();
            bad.as_object_mut().expect("an object").remove("head_dim");
            keys.iter().for_each(|&key| bad[key] = value.into());
            fs::write(&path, bad.to_string()).expect("written");
            assert!(load::<B>(dir.path()).is_err(), "{keys:?} are {value}");
        }
    }
}

fn a_folder_without_the_files_is_an_error<B: FusedOps>() {
    let (dir, _) = saved::<B>(&tiny());
    let config = dir.path().join("config.json");
    let text = fs::read(&config).expect("there");
    for n in 0..text.len() - 2 {
        fs::write(&config, &text[..n]).expect("written");
        assert!(
            matches!(load::<B>(dir.path()), Err(Error::Config { .. })),
            "the first {n} bytes of config.json"
        );
    }
    fs::remove_file(&config).expect("removed");
    assert!(matches!(load::<B>(dir.path()), Err(Error::Io { path, .. }) if path == config));
    fs::write(&config, text).expect("written");
    let weights = dir.path().join("model.safetensors");
    fs::remove_file(&weights).expect("removed");
    assert!(matches!(load::<B>(dir.path()), Err(Error::Io { path, .. }) if path == weights));
}

/// Between reading the header and reading the numbers: no signal ends the process.
fn a_file_that_shrinks_while_it_is_read_is_an_error<B: FusedOps>() {
    let (dir, model) = saved::<B>(&tiny());
    let gguf = dir.path().join("model.gguf");
    weights::gguf::save(&model, quant::Format::F32, &[], &gguf).expect("saved");
    for (path, file) in [(dir.path().to_owned(), dir.path().join("model.safetensors")), (gguf.clone(), gguf)]
    {
        let opened = weights::open(&path).expect("whole as yet");
        let file = fs::OpenOptions::new().write(true).open(&file).expect("opened");
        let len = file.metadata().expect("known").len();
        for keep in [len - 1, len / 2, 0] {
            file.set_len(keep).expect("cut");
            let error = opened.load::<B>(&Default::default()).expect_err("cut short");
            assert!(matches!(error, Error::Io { .. }), "{error}");
        }
    }
}

fn a_name_that_stands_twice_is_an_error<B: FusedOps>() {
    let (dir, _) = saved::<B>(&tiny());
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).expect("there");
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + header_len]).expect("JSON");
    for (from, to, words) in [
        ("model.norm.weight", "model.layers.0.input_layernorm.weight", "stands twice"),
        ("model.norm.weight", "model.norm\\u0000.weight", "zero character"),
    ] {
        let header = header.replace(from, to);
        let bytes =
            [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + header_len..]].concat();
        fs::write(&path, bytes).expect("written");
        let error = load::<B>(dir.path()).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
}
