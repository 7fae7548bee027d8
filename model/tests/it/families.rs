//! Tiny models of every family, whose logits are those that transformers computes (`tools/model_fixtures.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use burn::prelude::*;
use model::weights;
use model::{Cache, FusedOps, Transformer};
use safetensors::SafeTensors;

use crate::cases::Ids;
use crate::numbers::{bits, values};

on_cpu!(logits_are_those_of_transformers, what_is_saved_is_the_same_model);

/// The largest difference of logits whose deviation is 0.3 to 3.
const TOLERANCE: f32 = 1e-4;

fn folders() -> Vec<PathBuf> {
    let all = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let mut folders: Vec<_> =
        fs::read_dir(all).expect("fixtures").map(|entry| entry.expect("an entry").path()).collect();
    folders.sort();
    assert!(folders.len() >= 16, "{folders:?}");
    folders
}

fn expected(folder: &PathBuf) -> (Ids, Vec<f32>) {
    let bytes = fs::read(folder.join("expected.safetensors")).expect("read");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let words = |name: &str| file.tensor(name).expect("there").data().as_chunks::<4>().0.to_vec();
    let values: Vec<i32> = words("ids").into_iter().map(i32::from_le_bytes).collect();
    let ids = Ids { batch: 1, seq_len: values.len(), values };
    (ids, words("logits").into_iter().map(f32::from_le_bytes).collect())
}

fn load<B: FusedOps>(folder: &PathBuf) -> Transformer<B> {
    weights::load(folder, &Default::default()).unwrap_or_else(|error| panic!("{folder:?}: {error}"))
}

fn logits_are_those_of_transformers<B: FusedOps>() {
    for folder in folders() {
        let model = load::<B>(&folder);
        let (ids, want) = expected(&folder);
        let got = model.forward(ids.tensor());
        let pairs = values(got.clone()).into_iter().zip(&want);
        let worst = pairs.map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(worst <= TOLERANCE, "{folder:?}: {worst:e}");

        let mut cache = Cache::new(model.config(), 1, ids.seq_len, &Default::default());
        let n = ids.seq_len;
        let pieces = [0..5, 5..6, 6..40, 40..41, 41..n];
        let parts = pieces.map(|range| model.forward_cached(ids.positions(range).tensor(), &mut cache));
        assert!(bits(Tensor::cat(parts.to_vec(), 0)) == bits(got), "{folder:?}: cached differs");
    }
}

fn what_is_saved_is_the_same_model<B: FusedOps>() {
    for folder in folders() {
        let model = load::<B>(&folder);
        let (ids, _) = expected(&folder);
        let saved = tempfile::tempdir().expect("a temporary folder");
        weights::save(&model, saved.path(), &BTreeMap::new()).expect("saved");
        let again = load::<B>(&saved.path().to_path_buf());
        let [got, want] = [again, model].map(|model| values(model.forward(ids.tensor())));
        // Gemma's files have gains less one, which rounds.
        let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-5, "{folder:?}: {worst:e}");
        let config = fs::read_to_string(saved.path().join("config.json")).expect("written");
        assert!(!config.contains("FlintForCausalLM"), "{folder:?}: no family can say {config}");
    }
}
