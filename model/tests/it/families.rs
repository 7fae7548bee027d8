//! Tiny models of every family, whose logits are those that transformers computes (`tools/model_fixtures.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use model::weights;
use model::{Cache, FusedOps, Transformer};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::cases::Ids;
use crate::numbers::{bits, values};

on_cpu!(logits_are_those_of_transformers, what_is_saved_is_the_same_model, shards_are_one_model);

/// The largest difference of logits whose deviation is 0.3 to 3.
const TOLERANCE: f32 = 2e-5;

fn folders() -> Vec<PathBuf> {
    let all = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let mut folders: Vec<_> =
        fs::read_dir(all).expect("fixtures").map(|entry| entry.expect("an entry").path()).collect();
    folders.sort();
    assert!(folders.len() >= 16, "{folders:?}");
    folders
}

fn expected(folder: &Path) -> (Ids, Vec<f32>) {
    let bytes = fs::read(folder.join("expected.safetensors")).expect("read");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let words = |name: &str| file.tensor(name).expect("there").data().as_chunks::<4>().0.to_vec();
    let values: Vec<i32> = words("ids").into_iter().map(i32::from_le_bytes).collect();
    let ids = Ids { batch: 1, seq_len: values.len(), values };
    (ids, words("logits").into_iter().map(f32::from_le_bytes).collect())
}

fn load<B: FusedOps>(folder: &Path) -> Transformer<B> {
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

/// With `FLINT_SAVED` the models are left in that folder, for `tools/model_fixtures.py --check` to open.
fn what_is_saved_is_the_same_model<B: FusedOps>() {
    for folder in folders() {
        let model = load::<B>(&folder);
        let (ids, _) = expected(&folder);
        if let Some(kept) = std::env::var_os("FLINT_SAVED") {
            let kept = Path::new(&kept).join(folder.file_name().expect("a name"));
            fs::create_dir_all(&kept).expect("created");
            weights::save(&model, &kept, &BTreeMap::new()).expect("saved");
        }
        let saved = tempfile::tempdir().expect("a temporary folder");
        weights::save(&model, saved.path(), &BTreeMap::new()).expect("saved");
        let again = load::<B>(saved.path());
        let [got, want] = [again, model].map(|model| values(model.forward(ids.tensor())));
        // Gemma's files have gains less one, which rounds.
        let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-5, "{folder:?}: {worst:e}");
        let config = fs::read_to_string(saved.path().join("config.json")).expect("written");
        assert!(!config.contains("FlintForCausalLM"), "{folder:?}: no family can say {config}");
    }
}

/// A model cut into two files with an index; then what can be wrong with these.
fn shards_are_one_model<B: FusedOps>() {
    let folder = &folders()[0];
    let dir = tempfile::tempdir().expect("a temporary folder");
    fs::copy(folder.join("config.json"), dir.path().join("config.json")).expect("copied");
    let bytes = fs::read(folder.join("model.safetensors")).expect("read");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let mut map = serde_json::Map::new();
    let mut shards = [("a.safetensors", Vec::new()), ("b.safetensors", Vec::new())];
    let mut tensors = file.tensors();
    tensors.sort_by_key(|(name, view)| (view.data().len(), name.clone()));
    for (i, (name, view)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), shards[i % 2].0.into());
        shards[i % 2].1.push((name, view));
    }
    let write_shard = |name: &str, tensors: &[(String, TensorView<'_>)]| {
        let bytes = safetensors::serialize(tensors.to_vec(), None).expect("serialized");
        fs::write(dir.path().join(name), bytes).expect("written");
    };
    shards.iter().for_each(|(name, tensors)| write_shard(name, tensors));
    let index = dir.path().join("model.safetensors.index.json");
    let write_index = |map: serde_json::Value| fs::write(&index, map.to_string()).expect("written");
    write_index(serde_json::json!({ "weight_map": map }));
    let (ids, _) = expected(folder);
    let [got, want] = [dir.path(), folder].map(|dir| bits(load::<B>(dir).forward(ids.tensor())));
    assert!(got == want);

    let refused = |why: &str| {
        let error = weights::load::<B>(dir.path(), &Default::default()).expect_err(why).to_string();
        assert!(error.contains(why), "{error}");
    };
    write_index(serde_json::json!({ "weight_map": { "x": "../a.safetensors" } }));
    refused("../a.safetensors");
    write_index(serde_json::json!({ "weight_map": {} }));
    refused("lists no tensor");
    write_index(serde_json::json!({ "weight_map": { "x": "a.safetensors", "y": "gone.safetensors" } }));
    refused("gone.safetensors");
    write_index(serde_json::json!({ "weight_map": map }));
    let twice = [shards[1].1.clone(), vec![shards[0].1[0].clone()]].concat();
    write_shard("b.safetensors", &twice);
    refused("is also in");
    write_shard("b.safetensors", &shards[1].1[1..]);
    refused(&format!("tensor `{}` is missing", shards[1].1[0].0));
}
