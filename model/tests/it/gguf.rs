//! Models in GGUF files: the families that the format has, there and back, and models that others made.

use std::fs;
use std::path::{Path, PathBuf};

use model::weights::{self, Error, gguf};
use model::{Config, FusedOps, Transformer};
use quant::Format;
use tokenizer::gguf::Value;

use crate::cases::{self, Ids};
use crate::numbers::{bits, values};

on_cpu!(what_is_written_is_the_same_model, blocks_are_close, models_without_an_architecture_are_refused);

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
