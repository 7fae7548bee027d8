//! Folders whose matrices are whole numbers with scales: those that compressed-tensors made, ours, and damaged ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::{Dtype, SafeTensors, TensorView};
use burn::prelude::*;
use kernels::packed::Kind;
use model::weights::archive::Encoding;
use model::weights::compressed::write::{Folder, is_quantized};
use model::weights::{self, Opened};
use model::{Config, FusedOps, Transformer};
use quant::{Format, Symmetric};
use serde_json::{Value, json};

use crate::cases;

on_cpu!(
    fixtures_are_read_as_compressed_tensors_reads_them,
    what_is_written_is_read,
    a_quantized_model_fills_another
);

const CASES: [(&str, &str); 4] =
    [("int8", "INT8"), ("int8_plain", "INT8"), ("int4_g32", "INT4-G32"), ("int4_g128", "INT4-G128")];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/compressed").join(name)
}

/// The FNV-1a hash of numbers.
fn fnv(values: &[f32]) -> String {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

fn numbers(opened: &Opened, name: &str) -> Vec<f32> {
    let stored = opened.archive().get(name).expect("there");
    let mut values = vec![f32::NAN; stored.n_elements()];
    opened.archive().read(name, 0, &mut values).expect("read");
    values
}

/// Logits of the last id.
fn last_logits<B: FusedOps>(model: &Transformer<B>, ids: &[i32]) -> Vec<f32> {
    let ids = TensorData::new(ids.to_vec(), [1, ids.len()]);
    let logits = weights::values(&model.forward(Tensor::from_data(ids, &Default::default())));
    logits[logits.len() - model.config().vocab_size..].to_vec()
}

fn fixtures_are_read_as_compressed_tensors_reads_them<B: FusedOps>() {
    let device = Default::default();
    for (name, format) in CASES {
        let text = fs::read_to_string(fixture(name).join("expected.json")).expect("read");
        let expected: Value = serde_json::from_str(&text).expect("JSON");
        let opened = weights::open(&fixture(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let matrices = expected["numbers"].as_object().expect("an object");
        assert_eq!(matrices.len(), 7, "{name}");
        for (tensor, hash) in matrices {
            let stored = opened.archive().get(tensor).expect("there");
            assert_eq!(stored.encoding.name(), format, "{name}");
            assert!(matches!(stored.packed(), Kind::Ints { .. }), "{name}");
            assert_eq!(Value::from(fnv(&numbers(&opened, tensor))), *hash, "{name}: {tensor}");
        }
        let ids: Vec<i32> = expected["ids"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(Value::as_i64)
            .map(|id| id as i32)
            .collect();
        let want: Vec<f64> =
            expected["logits"].as_array().into_iter().flatten().flat_map(Value::as_f64).collect();
        let size = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let off = |got: Vec<f32>| {
            assert_eq!(got.len(), want.len());
            got.iter().zip(&want).fold(0.0f64, |most, (a, b)| most.max((f64::from(*a) - b).abs())) / size
        };
        let dense = off(last_logits(&opened.load::<B>(&device).expect("loaded"), &ids));
        assert!(dense < 1e-5, "{name}: {dense}");
        // Here inputs are rounded to 8 bits.
        let packed = opened.load_packed::<B>(&device).expect("loaded");
        let rounded = off(last_logits(&packed, &ids));
        assert!(rounded < 0.03 && rounded > dense, "{name}: {rounded}");
        assert!(opened.weights_bytes(true) < opened.weights_bytes(false) * 2 / 3, "{name}");
    }
}

/// A model whose rows are whole numbers of groups of 64, but not all of 128.
fn config() -> Config {
    Config {
        n_ff: Some(128),
        n_kv_head: Some(1),
        ..Config { tie_embeddings: false, ..Config::new(40, 2, 64, 2, 16) }
    }
}

/// Writes a model's folder, and gives what each tensor was to become.
fn write<B: FusedOps>(model: &Transformer<B>, ints: Symmetric, dir: &Path) -> Vec<(String, Encoding)> {
    let source = tempfile::tempdir().expect("a temporary folder");
    weights::save(model, source.path(), &BTreeMap::new()).expect("saved");
    let opened = weights::open(source.path()).expect("opened");
    let contents = opened.folder_contents::<B>(&Default::default()).expect("its tensors");
    let encodings: Vec<Encoding> = contents
        .tensors()
        .iter()
        .map(|tensor| match ints.fitting(tensor.shape[tensor.shape.len() - 1]) {
            Some(ints) if is_quantized(&tensor.name, &tensor.shape) => {
                Encoding::Ints { ints, scales: Format::F16 }
            }
            _ => Encoding::Blocks(Format::BF16),
        })
        .collect();
    let folder = Folder::new(&contents, &encodings);
    opened.write_config(&folder, dir).expect("written");
    let quantize = |slab: model::weights::gguf::stream::Slab<'_>| {
        let (mut numbers, mut scales) = (Vec::new(), Vec::new());
        let shape = &contents.tensors()[slab.tensor_idx].shape;
        for row in slab.values.chunks(shape[shape.len() - 1]) {
            match encodings[slab.tensor_idx] {
                Encoding::Ints { ints, .. } => ints.quantize_row(row, None, &mut numbers, &mut scales),
                Encoding::Blocks(format) => format.quantize(row, &mut numbers),
            }
        }
        (numbers, scales)
    };
    let pending = BTreeMap::from([("error".to_owned(), "0".to_owned())]);
    folder.write_weights(dir, &pending, quantize).expect("written");
    let done = BTreeMap::from([("error".to_owned(), "0.012345678901234567".to_owned())]);
    folder.replace_metadata(dir, &done).expect("replaced");
    let too_long = BTreeMap::from([("error".to_owned(), "9".repeat(20_000))]);
    assert!(folder.replace_metadata(dir, &too_long).is_err());
    let names = contents.tensors().iter().map(|tensor| tensor.name.clone());
    names.zip(encodings.iter().copied()).collect()
}

fn what_is_written_is_read<B: FusedOps>() {
    let device = Default::default();
    let model = Transformer::<B>::init(&config(), 5, &device);
    let ids: Vec<i32> = (0..16).map(|i| i * 7 % 40).collect();
    let exact = last_logits(&model, &ids);
    for name in Symmetric::NAMES {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let ints = Symmetric::from_name(name).expect("known");
        let encodings = write(&model, ints, dir.path());
        let opened = weights::open(dir.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (tensor, encoding) in &encodings {
            assert_eq!(
                opened.archive().get(tensor).map(|stored| stored.encoding),
                Some(*encoding),
                "{tensor}"
            );
        }
        let n_quantized = encodings.iter().filter(|(_, e)| matches!(e, Encoding::Ints { .. })).count();
        assert_eq!(n_quantized, 2 * 7, "{name}");
        let bytes = fs::read(dir.path().join("model.safetensors")).expect("read");
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("well-formed");
        let metadata = header.metadata().clone().expect("there");
        assert_eq!((&*metadata["error"], &*metadata["format"]), ("0.012345678901234567", "pt"));
        // As aligned as readers that map files want them.
        let file = SafeTensors::deserialize(&bytes).expect("well-formed");
        for (name, tensor) in file.tensors() {
            let at = tensor.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(at % (tensor.dtype().bitsize() / 8), 0, "{name}");
        }
        let config: Value =
            serde_json::from_str(&fs::read_to_string(dir.path().join("config.json")).expect("read"))
                .expect("JSON");
        let said = &config["quantization_config"];
        assert_eq!(said["ignore"], json!(["lm_head"]));
        let sizes: Vec<_> = said["config_groups"]
            .as_object()
            .expect("groups")
            .values()
            .map(|g| g["weights"]["group_size"].clone())
            .collect();
        let expected = match name {
            "int8" => json!([null]),
            "int4-g32" => json!([32]),
            "int4-g64" => json!([64]),
            // Most rows are of 64.
            _ => json!([64, 128]),
        };
        assert_eq!(Value::from(sizes), expected, "{name}");
        let packed = opened.load_packed::<B>(&device).expect("loaded");
        let dense = opened.load::<B>(&device).expect("loaded");
        let size = exact.iter().map(|x| x * x).sum::<f32>().sqrt();
        let off = |got: Vec<f32>, want: &[f32]| {
            got.iter().zip(want).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt() / size
        };
        let rounded = last_logits(&dense, &ids);
        let most = if name == "int8" { 0.02 } else { 0.25 };
        let lost = off(rounded.clone(), &exact);
        assert!(lost > 1e-4 && lost < most, "{name}: {lost}");
        let by_inputs = off(last_logits(&packed, &ids), &rounded);
        assert!(by_inputs < 0.02, "{name}: {by_inputs}");
    }
}

/// As a model is filled whose training goes on from a folder.
fn a_quantized_model_fills_another<B: FusedOps>() {
    let device = Default::default();
    let opened = weights::open(&fixture("int4_g32")).expect("opened");
    let model =
        weights::fill(cases::lively::<B>(opened.config(), 1), &fixture("int4_g32"), &device).expect("filled");
    let ids = [1, 2, 3];
    assert_eq!(last_logits(&model, &ids), last_logits(&opened.load::<B>(&device).expect("loaded"), &ids));
}

/// One tensor of a file.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// What opening says of a fixture whose tensors were changed.
fn changed(name: &str, change: impl FnOnce(&mut BTreeMap<String, Stored>)) -> Result<Opened, String> {
    let bytes = fs::read(fixture(name).join("model.safetensors")).expect("there");
    let file = SafeTensors::deserialize(&bytes).expect("well-formed");
    let stored = |t: TensorView| Stored { dtype: t.dtype(), shape: t.shape().into(), bytes: t.data().into() };
    let mut tensors = file.tensors().into_iter().map(|(name, t)| (name, stored(t))).collect();
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).expect("sizes fit")));
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::copy(fixture(name).join("config.json"), dir.path().join("config.json")).expect("copied");
    let bytes = ::safetensors::serialize(views, None).expect("bytes");
    fs::write(dir.path().join("model.safetensors"), bytes).expect("written");
    weights::open(dir.path()).map_err(|error| error.to_string())
}

#[test]
fn damaged_matrices_are_named() {
    const Q: &str = "model.layers.0.self_attn.q_proj";
    let refused = |name: &str, words: &str, change: &dyn Fn(&mut BTreeMap<String, Stored>)| {
        let error = changed(name, change).expect_err(words);
        assert!(error.contains(words) && error.contains(Q), "{error}");
    };
    let part = |end: &str| format!("{Q}.{end}");
    let zero = Stored { dtype: Dtype::I8, shape: vec![64, 2], bytes: vec![0; 128] };
    // Older files have zero points, all of them zero.
    let with_zeros = zero.clone();
    assert!(changed("int4_g32", |all| drop(all.insert(part("weight_zero_point"), with_zeros))).is_ok());
    refused("int4_g32", "zero points other than 0", &|all| {
        let mut zero = zero.clone();
        zero.bytes[100] = 1;
        all.insert(part("weight_zero_point"), zero);
    });
    refused("int4_g32", "columns in another order", &|all| {
        let order = Stored { dtype: Dtype::I32, shape: vec![64], bytes: vec![0; 256] };
        all.insert(part("weight_g_idx"), order);
    });
    for end in ["weight_scale", "weight_shape"] {
        refused("int4_g32", &format!("{end}` is missing"), &|all| drop(all.remove(&part(end))));
    }
    refused("int8_plain", "weight_scale` is missing", &|all| drop(all.remove(&part("weight_scale"))));
    refused("int4_g32", "weight_scale` has no place", &|all| drop(all.remove(&part("weight_packed"))));
    for [rows, columns] in
        [[64, 63], [63, 64], [64, 0], [64, 1 << 62], [-64, 64], [64, 128], [i64::MAX, i64::MAX]]
    {
        refused("int4_g32", "are not as its config has them", &|all| {
            let shape = all.get_mut(&part("weight_shape")).expect("there");
            shape.bytes = [rows.to_le_bytes(), columns.to_le_bytes()].concat();
        });
    }
    for (end, name) in [("weight_packed", "int4_g32"), ("weight_scale", "int4_g32"), ("weight", "int8_plain")]
    {
        refused(name, "are not as its config has them", &|all| {
            let tensor = all.get_mut(&part(end)).expect("there");
            tensor.shape = [tensor.shape[0] / 2, tensor.shape[1] * 2].to_vec();
        });
    }
    // Floats are no numbers to be unpacked, and so their scales belong to nothing.
    refused("int4_g32", "weight_scale` has no place", &|all| {
        all.get_mut(&part("weight_packed")).expect("there").dtype = Dtype::F32;
    });
    refused("int4_g32", "is also in", &|all| {
        let dense = Stored { dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4] };
        all.insert(part("weight"), dense);
    });
    refused("int4_g32", "has no place in this model", &|all| {
        let scale = all[&part("weight_scale")].clone();
        all.insert(part("more.weight_scale"), scale);
    });
    refused("int4_g32", "type I8", &|all| drop(all.insert(part("input_zero"), zero.clone())));
}

#[test]
fn a_file_of_whole_numbers_needs_a_config_that_says_so() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = fs::read_to_string(fixture("int8_plain").join("config.json")).expect("read");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    let file = fixture("int8_plain").join("model.safetensors");
    fs::copy(file, dir.path().join("model.safetensors")).expect("copied");
    let mut open = |change: fn(&mut Value)| {
        change(&mut config);
        fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
        weights::open(dir.path()).expect_err("refused").to_string()
    };
    let gptq = open(|config| config["quantization_config"]["quant_method"] = json!("gptq"));
    assert!(
        gptq.contains("config.json") && gptq.contains("gptq") && gptq.contains("flint quantize"),
        "{gptq}"
    );
    let none = open(|config| config["quantization_config"] = json!(null));
    assert!(none.contains("type I8"), "{none}");
}

#[test]
fn a_file_cut_or_changed_anywhere_is_an_error_or_read() {
    for name in ["int4_g32", "int8_plain"] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::copy(fixture(name).join("config.json"), dir.path().join("config.json")).expect("copied");
        let bytes = fs::read(fixture(name).join("model.safetensors")).expect("read");
        let path = dir.path().join("model.safetensors");
        for len in (0..bytes.len()).step_by(97) {
            fs::write(&path, &bytes[..len]).expect("written");
            assert!(weights::open(dir.path()).is_err(), "{name}: {len} of {} bytes", bytes.len());
        }
        let header_len = u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
        for at in (0..8 + header_len).step_by(5) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << (at % 7);
            fs::write(&path, &bytes).expect("written");
            if let Ok(opened) = weights::open(dir.path()) {
                opened.archive().names().for_each(|name| drop(numbers(&opened, name)));
            }
        }
    }
}
