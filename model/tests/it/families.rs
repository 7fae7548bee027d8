//! Tiny models of every family, whose logits are those that transformers computes (`tools/model_fixtures.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use model::weights;
use model::{Cache, FusedOps, Transformer};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::cases::Ids;
use crate::numbers::{bits, values};

on_cpu!(
    logits_are_those_of_transformers,
    what_is_saved_is_the_same_model,
    shards_are_one_model,
    stacked_experts_are_read,
);

/// The largest difference of logits whose deviation is 0.3 to 3. Of random models, whose logits may be large, it is five
/// times that of the largest: transformers' own are as far from those it computes in f64.
const TOLERANCE: f32 = 2e-5;
const ENV: &str = "FLINT_FAMILIES";

/// The fixtures, or the models in `FLINT_FAMILIES`.
fn folders() -> Vec<PathBuf> {
    let fixtures = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let all = std::env::var_os(ENV).map_or_else(fixtures, PathBuf::from);
    let mut folders: Vec<_> =
        fs::read_dir(all).expect("fixtures").map(|entry| entry.expect("an entry").path()).collect();
    folders.sort();
    assert!(folders.len() >= 22, "{folders:?}");
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

/// Runs a check on every folder, and then says which failed it.
fn on_each_folder(check: impl Fn(&Path) -> Result<(), String>) {
    let failed = |folder: &PathBuf| check(folder).err().map(|why| format!("{folder:?}: {why}"));
    let failures: Vec<String> = folders().iter().filter_map(failed).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn largest_difference(got: &[f32], want: &[f32]) -> f32 {
    // Written so that NaN is one.
    let pairs = got.iter().zip(want).map(|(got, want)| (got - want).abs());
    pairs.fold(0.0, |largest, x| if x <= largest { largest } else { x })
}

fn logits_are_those_of_transformers<B: FusedOps>() {
    on_each_folder(|folder| {
        let model: Transformer<B> =
            weights::load(folder, &Default::default()).map_err(|error| error.to_string())?;
        let (ids, want) = expected(folder);
        let got = model.forward(ids.tensor());
        let largest = want.iter().fold(1.0, |largest: f32, x| largest.max(x.abs()));
        let unit = if std::env::var_os(ENV).is_some() { 5.0 * largest } else { 1.0 };
        let worst = largest_difference(&values(got.clone()), &want) / unit;
        let mut cache = Cache::new(model.config(), 1, ids.seq_len, &Default::default());
        let n = ids.seq_len;
        let pieces = [0..5, 5..6, 6..40, 40..41, 41..n];
        let parts = pieces.map(|range| model.forward_cached(ids.positions(range).tensor(), &mut cache));
        match bits(Tensor::cat(parts.to_vec(), 0)) == bits(got) {
            true if worst <= TOLERANCE => Ok(()),
            true => Err(format!("{worst:e}")),
            false => Err("cached differs".into()),
        }
    });
}

/// With `FLINT_SAVED` the models are left in that folder, for `tools/model_fixtures.py --check` to open.
fn what_is_saved_is_the_same_model<B: FusedOps>() {
    on_each_folder(|folder| {
        let model: Transformer<B> =
            weights::load(folder, &Default::default()).map_err(|error| error.to_string())?;
        let (ids, _) = expected(folder);
        if let Some(kept) = std::env::var_os("FLINT_SAVED") {
            let kept = Path::new(&kept).join(folder.file_name().expect("a name"));
            fs::create_dir_all(&kept).expect("created");
            weights::save(&model, &kept, &BTreeMap::new()).expect("saved");
        }
        let saved = tempfile::tempdir().expect("a temporary folder");
        weights::save(&model, saved.path(), &BTreeMap::new()).expect("saved");
        let again = load::<B>(saved.path());
        let [got, want] = [again, model].map(|model| values(model.forward(ids.tensor())));
        let config = fs::read_to_string(saved.path().join("config.json")).expect("written");
        // Gemma's files have gains less one, which rounds.
        match largest_difference(&got, &want) {
            worst if worst > 1e-5 => Err(format!("{worst:e}")),
            _ if config.contains("FlintForCausalLM") => Err(format!("no family can say {config}")),
            _ => Ok(()),
        }
    });
}

/// A model with experts as transformers saves it where it is not asked to split them: one tensor for all.
fn stacked_experts_are_read<B: FusedOps>() {
    for name in ["mixtral", "qwen3_moe"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(name);
        let bytes = fs::read(folder.join("model.safetensors")).expect("read");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let mut tensors = file.tensors();
        // By expert, and of each the gate before the other factor: w1 before w3, gate_proj before up_proj.
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let mut stacks: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
        for (name, view) in &tensors {
            let name = name.replace("block_sparse_moe", "mlp");
            let (key, is_first) = match name.split_once(".experts.") {
                None => (name, true),
                Some((layer, part)) if part.contains("w2") || part.contains("down") => {
                    (format!("{layer}.experts.down_proj"), true)
                }
                Some((layer, part)) => {
                    (format!("{layer}.experts.gate_up_proj"), part.contains("w1") || part.contains("gate"))
                }
            };
            let is_expert = key.contains(".experts.");
            let shape = if is_expert { [&[0], view.shape()].concat() } else { view.shape().to_vec() };
            let stack = stacks.entry(key.clone()).or_insert((shape, Vec::new()));
            if is_expert {
                // One more expert, with twice the rows where the gate is among them.
                stack.0[0] += usize::from(is_first);
                stack.0[1] = view.shape()[0] * if key.ends_with("gate_up_proj") { 2 } else { 1 };
            }
            stack.1.extend(view.data());
        }
        let views = stacks.iter().map(|(name, (shape, data))| {
            (name.clone(), TensorView::new(Dtype::F16, shape.clone(), data).expect("a tensor"))
        });
        let dir = tempfile::tempdir().expect("a temporary folder");
        let bytes = safetensors::serialize(views, None).expect("serialized");
        fs::write(dir.path().join("model.safetensors"), bytes).expect("written");
        fs::copy(folder.join("config.json"), dir.path().join("config.json")).expect("copied");
        let (ids, _) = expected(&folder);
        let [got, want] = [dir.path(), &folder].map(|dir| bits(load::<B>(dir).forward(ids.tensor())));
        assert!(got == want, "{name}");
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
