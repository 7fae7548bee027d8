//! Models in GGUF files: the families that the format has, there and back, and models that others made.

use std::fs;
use std::path::{Path, PathBuf};

use model::config::{Experts, QkNorm};
use model::position::RopeScaling;
use model::weights::{self, Error, gguf};
use model::{Config, FusedOps, Transformer};
use quant::Format;
use tokenizer::gguf::Value;

use crate::cases::{self, Ids};
use crate::numbers::{bits, values};

on_cpu!(
    what_is_written_is_the_same_model,
    what_is_streamed_is_what_a_model_is_saved_as,
    experts_are_one_tensor,
    blocks_are_close,
    models_without_an_architecture_are_refused,
    keys_that_are_not_understood_are_named,
    parts_are_one_model,
    longrope_is_read_as_converters_write_it,
);

fn ids(config: &Config) -> Ids {
    let values = (0..40).map(|i| (i * 7 % config.vocab_size) as i32).collect();
    Ids { batch: 1, seq_len: 40, values }
}

fn fixtures() -> Vec<PathBuf> {
    let all = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    fs::read_dir(all).expect("fixtures").map(|entry| entry.expect("an entry").path()).collect()
}

fn logits<B: FusedOps>(path: &Path, ids: &Ids) -> Vec<f32> {
    let model = weights::load::<B>(path, &Default::default()).unwrap_or_else(|error| panic!("{error}"));
    values(model.forward(ids.tensor()))
}

fn what_is_written_is_the_same_model<B: FusedOps>() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let mut n_written = 0;
    for folder in fixtures() {
        let model = weights::load::<B>(&folder, &Default::default()).expect("loaded");
        let more = [("general.name".to_owned(), Value::String("a name".into()))];
        match gguf::save(&model, Format::F32, &more, &path) {
            Ok(()) => n_written += 1,
            // Windows, scales and activations that no file of these architectures can have.
            Err(error @ Error::Config { .. }) => {
                assert!(error.to_string().contains("no architecture"), "{folder:?}: {error}");
                continue;
            }
            Err(error) => panic!("{folder:?}: {error}"),
        }
        let ids = ids(model.config());
        let again = weights::load::<B>(&path, &Default::default()).expect("loaded");
        let got = again.forward(ids.tensor());
        assert!(bits(got) == bits(model.forward(ids.tensor())), "{folder:?}");
    }
    assert!(n_written >= 10, "{n_written}");
}

/// From either layout, and a tensor that goes in several pieces.
fn what_is_streamed_is_what_a_model_is_saved_as<B: FusedOps>() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (saved, streamed, large) =
        (dir.path().join("saved.gguf"), dir.path().join("streamed.gguf"), dir.path().join("large"));
    let config = Config { vocab_size: 140_000, ..cases::llama_like() };
    let model: Transformer<B> = cases::lively(&config, 5);
    fs::create_dir(&large).expect("made");
    weights::save(&model, &large, &Default::default()).expect("saved");
    let mut n_checked = 0;
    for folder in fixtures().into_iter().chain([large]) {
        let model = weights::load::<B>(&folder, &Default::default()).expect("loaded");
        let more = [("general.name".to_owned(), Value::String("a name".into()))];
        let opened = weights::open(&folder).expect("opened");
        if let Err(error) = gguf::save(&model, Format::Q8_0, &more, &saved) {
            let same = opened.contents::<B>(&Default::default()).err().expect("refused too").to_string();
            assert_eq!(same.split(": ").last(), error.to_string().split(": ").last(), "{folder:?}");
            continue;
        }
        let want = fs::read(&saved).expect("read");
        // The other way round the blocks of the saved file are the source; from F32 they would be made again.
        gguf::save(&model, Format::F32, &more, &saved).expect("saved");
        for source in [&folder, &saved] {
            let opened = weights::open(source).expect("opened");
            let contents = opened.contents::<B>(&Default::default()).expect("a GGUF can have it");
            let format = |tensor: &gguf::stream::Tensor| match tensor.shape[..] {
                [_, .., width] if width.is_multiple_of(32) => Format::Q8_0,
                [_, _, ..] => Format::F16,
                _ => Format::F32,
            };
            let formats: Vec<Format> = contents.tensors().iter().map(format).collect();
            let quantize = |slab: gguf::stream::Slab<'_>| {
                let mut bytes = Vec::new();
                formats[slab.tensor_idx].quantize(slab.values, &mut bytes);
                bytes
            };
            contents.write(&streamed, &contents.pairs(7, &more), &formats, quantize).expect("written");
            assert!(fs::read(&streamed).expect("read") == want, "{source:?}");
            n_checked += 1;
        }
    }
    assert!(n_checked >= 22, "{n_checked}");
}

/// Rows that are no whole number of blocks are kept in F16.
fn blocks_are_close<B: FusedOps>() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let model: Transformer<B> = cases::lively(&cases::llama_like(), 1);
    let ids = ids(model.config());
    let want = values(model.forward(ids.tensor()));
    let size = want.iter().map(|logit| logit.powi(2)).sum::<f32>();
    let mut last = 0.0;
    for (format, most) in [
        (Format::F32, 0.0),
        (Format::F16, 1e-6),
        (Format::BF16, 1e-4),
        (Format::Q8_0, 1e-3),
        (Format::Q5_1, 1e-2),
        (Format::Q4_0, 1e-1),
    ] {
        gguf::save(&model, format, &[], &path).expect("saved");
        let got = logits::<B>(&path, &ids);
        let error = got.iter().zip(&want).map(|(got, want)| (got - want).powi(2)).sum::<f32>() / size;
        assert!(error <= most && error >= last, "{format}: {error:e} after {last:e}");
        last = error;
    }
}

fn models_without_an_architecture_are_refused<B: FusedOps>() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let model: Transformer<B> = cases::lively(&cases::multi_query(), 1);
    let error = gguf::save(&model, Format::F32, &[], &path).expect_err("no architecture has its parts");
    assert!(error.to_string().contains("write it as safetensors"), "{error}");
    let model: Transformer<B> = cases::lively(&cases::llama_like(), 1);
    let twice = [("a.b".to_owned(), Value::U32(1)), ("a.b".to_owned(), Value::U32(2))];
    let error = gguf::save(&model, Format::F32, &twice, &path).expect_err("a key that stands twice");
    assert!(error.to_string().contains("a.b"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 0, "nothing is left behind");
}

/// Those of a layer lie in three tensors of three dimensions, in blocks as other matrices.
fn experts_are_one_tensor<B: FusedOps>() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let experts = Experts { n: 4, n_active: 2, n_ff: None, normalise: true, dense_layers: Vec::new() };
    let mixtral = Config { experts: Some(experts), ..cases::llama_like() };
    let qwen = Config { qk_norm: Some(QkNorm::Head), ..mixtral.clone() };
    for config in [mixtral, qwen] {
        let model: Transformer<B> = cases::lively(&config, 3);
        let ids = ids(&config);
        gguf::save(&model, Format::F32, &[], &path).expect("saved");
        let again = weights::load::<B>(&path, &Default::default()).expect("loaded");
        assert!(bits(again.forward(ids.tensor())) == bits(model.forward(ids.tensor())), "{config:?}");
        gguf::save(&model, Format::Q8_0, &[], &path).expect("saved");
        let opened = weights::open(&path).expect("opened");
        let stored = |name: &str| opened.archive().get(name).map(|s| (s.encoding.name(), s.shape.clone()));
        assert_eq!(stored("blk.1.ffn_up_exps.weight"), Some(("Q8_0".to_owned(), vec![4, 40, 32])));
        // Rows of 40 are no whole number of blocks.
        assert_eq!(stored("blk.0.ffn_down_exps.weight"), Some(("F16".to_owned(), vec![4, 32, 40])));
    }
}

fn keys_that_are_not_understood_are_named<B: FusedOps>() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    let model: Transformer<B> = cases::lively(&cases::llama_like(), 1);
    let opened = |key: &str, value: Value| {
        gguf::save(&model, Format::F32, &[(key.to_owned(), value)], &path).expect("saved");
        weights::open(&path).map(|_| ()).map_err(|error| error.to_string())
    };
    for (key, value) in [
        ("llama.expert_used_count", Value::U32(0)),
        ("llama.attention.causal", Value::Bool(true)),
        ("llama.pooling_type", Value::U32(3)),
        ("llama.rope.scaling.attn_factor", Value::F32(1.0)),
        ("other.key", Value::U32(7)),
    ] {
        assert_eq!(opened(key, value), Ok(()), "{key}");
    }
    for (key, value, words) in [
        ("llama.unheard_of", Value::U32(1), "llama.unheard_of"),
        ("llama.attention.causal", Value::Bool(false), "attention.causal"),
        ("llama.logit_scale", Value::F32(2.0), "logit_scale"),
        ("llama.rope.scaling.attn_factor", Value::F32(1.5), "with yarn and longrope only"),
        ("llama.rope.scaling.type", Value::String("longrope".into()), "longrope"),
        ("llama.expert_count", Value::String("many".into()), "expert_count"),
        ("llama.\u{1b}[2Jevil", Value::U32(1), "llama.\\u{1b}[2Jevil"),
        ("llama.long", Value::String("x".repeat(1 << 17)), "more than any model needs"),
        ("split.count", Value::U16(3), "must end with `-00001-of-00003.gguf`"),
    ] {
        let error = opened(key, value).expect_err(words);
        assert!(error.contains(words) && error.len() < 400, "{error}");
    }
}

fn write(path: &Path, keys: &[(String, Value)], tensors: &[quant::Tensor<'_>]) {
    let entry = |tensor: &quant::Tensor<'_>| quant::NewTensor {
        name: tensor.name.to_owned(),
        shape: tensor.shape.clone(),
        format: tensor.format,
    };
    let table: Vec<_> = tensors.iter().map(entry).collect();
    let data = |idx: usize, out: &mut Vec<u8>| {
        out.extend_from_slice(tensors[idx].data);
        Ok(())
    };
    quant::write(&mut fs::File::create(path).expect("created"), keys, &table, data).expect("written");
}

fn keys(gguf: &quant::Gguf<'_>) -> Vec<(String, Value)> {
    let entries = gguf.header().entries();
    entries.map(|(key, value)| (key.to_owned(), value.to_value().expect("a value"))).collect()
}

/// Cuts a GGUF as `llama-gguf-split` does: the first part has the keys.
fn cut(path: &Path, n: usize) -> Vec<PathBuf> {
    let bytes = fs::read(path).expect("read");
    let gguf = quant::Gguf::parse(&bytes).expect("a GGUF");
    let tensors: Vec<_> = gguf.tensors().collect();
    let part = |i: usize| {
        let mut keys = if i == 0 { keys(&gguf) } else { Vec::new() };
        keys.push(("split.no".to_owned(), Value::U16(i as u16)));
        keys.push(("split.count".to_owned(), Value::U16(n as u16)));
        keys.push(("split.tensors.count".to_owned(), Value::I32(tensors.len() as i32)));
        let path = path.with_file_name(format!("cut-{:05}-of-{n:05}.gguf", i + 1));
        write(&path, &keys, &tensors[tensors.len() * i / n..tensors.len() * (i + 1) / n]);
        path
    };
    (0..n).map(part).collect()
}

/// llama.cpp's converter neither names the scaling nor has Flint's own keys.
fn longrope_is_read_as_converters_write_it<B: FusedOps>() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (saved, path) = (dir.path().join("saved.gguf"), dir.path().join("model.gguf"));
    let folders = fixtures().into_iter().filter(|folder| folder.to_string_lossy().contains("longrope"));
    let mut n_checked = 0;
    for folder in folders {
        let read = weights::open(&folder).expect("opened");
        // llama.cpp ignores the window of Phi-3.
        let config = Config { window: None, layers: Vec::new(), ..read.config().clone() };
        let model: Transformer<B> = cases::lively(&config, 9);
        gguf::save(&model, Format::F32, &[], &saved).expect("saved");
        assert_eq!(weights::open(&saved).expect("opened").config().rope_scaling, config.rope_scaling);
        let bytes = fs::read(&saved).expect("read");
        let gguf = quant::Gguf::parse(&bytes).expect("a GGUF");
        let (keys, tensors): (Vec<_>, Vec<_>) = (keys(&gguf), gguf.tensors().collect());
        let keys: Vec<_> = keys
            .into_iter()
            .filter(|(key, _)| !key.contains("flint.") && !key.contains("scaling.type"))
            .collect();
        write(&path, &keys, &tensors);
        let ids = ids(model.config());
        let (found, expected) = (logits::<B>(&path, &ids), values(model.forward(ids.tensor())));
        let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let error = found.iter().zip(&expected).fold(0.0f32, |error, (a, b)| error.max((a - b).abs()));
        assert!(error < 1e-5 * largest, "{folder:?}: {error} of {largest}");
        let error = |keys: &[(String, Value)], tensors: &[quant::Tensor<'_>]| {
            write(&path, keys, tensors);
            weights::open(&path).expect_err("refused").to_string()
        };
        let without: Vec<_> =
            tensors.iter().filter(|t| t.name != "rope_factors_short.weight").cloned().collect();
        assert!(error(&keys, &without).contains("one of `rope_factors_short.weight`"));
        let mut yarn = keys.clone();
        let (_, architecture) = &keys[0];
        yarn.push((format!("{architecture}.rope.scaling.type"), Value::String("yarn".into())));
        assert!(error(&yarn, &tensors).contains("of type yarn"));
        let usual = config.rope_scaling.clone().map(|scaling| match scaling {
            RopeScaling::LongRope { short_factor, long_factor, original_context, .. } => {
                let times = config.context as f64 / original_context as f64;
                let attention_factor = Some((1.0 + times.ln() / (original_context as f64).ln()).sqrt());
                RopeScaling::LongRope { short_factor, long_factor, original_context, attention_factor }
            }
            other => other,
        });
        let same: Transformer<B> = cases::lively(&Config { rope_scaling: usual, ..config.clone() }, 9);
        gguf::save(&same, Format::F32, &[], &dir.path().join("usual.gguf"))
            .expect("the default, spelled out");
        let mut wide = tensors.clone();
        let long = wide.iter_mut().find(|t| t.name == "rope_factors_long.weight").expect("there");
        (long.shape, long.data) = (vec![1], &long.data[..4]);
        assert!(error(&keys, &wide).contains("pairs turn"), "{}", error(&keys, &wide));
        n_checked += 1;
    }
    assert_eq!(n_checked, 2);
}

fn parts_are_one_model<B: FusedOps>() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("model.gguf");
    // The head, and what rotary frequencies are divided by, are in the last part.
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 8192,
    };
    let config = Config { rope_scaling: Some(scaling), tie_embeddings: false, ..cases::llama_like() };
    let model: Transformer<B> = cases::lively(&config, 1);
    gguf::save(&model, Format::F16, &[], &path).expect("saved");
    let parts = cut(&path, 3);
    let ids = ids(&config);
    assert_eq!(logits::<B>(&parts[0], &ids), logits::<B>(&path, &ids));
    let error = |path: &Path| weights::open(path).expect_err("refused").to_string();
    assert!(error(&parts[1]).contains("open the first, cut-00001-of-00003.gguf"), "{}", error(&parts[1]));
    let other = dir.path().join("other");
    fs::rename(&parts[1], &other).expect("renamed");
    assert!(error(&parts[0]).contains("cut-00002-of-00003.gguf"), "{}", error(&parts[0]));
    fs::copy(&parts[2], &parts[1]).expect("copied");
    assert!(error(&parts[0]).contains("it says that it is part 3 of 3, not 2"), "{}", error(&parts[0]));
    fs::copy(&other, &parts[1]).expect("copied");
    fs::copy(&path, &parts[2]).expect("copied");
    assert!(error(&parts[0]).contains("it says that it is part 1 of 1, not 3"), "{}", error(&parts[0]));
    for (no, count) in [(u64::MAX, 2), (2, 2), (0, u64::MAX), (0, 100_000)] {
        let keys = [("split.no".to_owned(), Value::U64(no)), ("split.count".to_owned(), Value::U64(count))];
        let path = dir.path().join("cut-00001-of-100000.gguf");
        write(&path, &keys, &[]);
        assert!(error(&path).contains("no such part"), "{no} of {count}: {}", error(&path));
    }
    fs::rename(&parts[0], &path).expect("renamed");
    assert!(error(&path).contains("must end with `-00001-of-00003.gguf`"), "{}", error(&path));
}
