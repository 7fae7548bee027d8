//! LoRA adapters that PEFT made (`tools/lora_fixtures.py`): merged, the models give the logits that PEFT gives.

use std::fs;
use std::path::{Path, PathBuf};

use model::weights::{
    self,
    lora::{self, Adapter},
};
use model::{FusedOps, Transformer};
use safetensors::SafeTensors;

use crate::cases::Ids;
use crate::numbers::values;

on_cpu!(adapters_give_the_logits_of_peft, adapters_that_do_not_fit_are_refused);

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn read(path: &Path, name: &str) -> Vec<[u8; 4]> {
    let bytes = fs::read(path).expect("read");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    file.tensor(name).expect("there").data().as_chunks::<4>().0.to_vec()
}

/// The model of an adapter, and the ids that it was tried on.
fn base<B: FusedOps>(name: &str) -> (Transformer<B>, Ids) {
    let folder = fixtures().join("families").join(name.trim_end_matches("_rank_stabilised"));
    // Packed, which merging must undo.
    let opened = weights::open(&folder).expect("opened");
    let model = opened.load_packed::<B>(&Default::default()).expect("loaded");
    let words = read(&folder.join("expected.safetensors"), "ids");
    let values: Vec<i32> = words.into_iter().map(i32::from_le_bytes).collect();
    (model, Ids { batch: 1, seq_len: values.len(), values })
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// With `FLINT_SAVED` the adapters are left in that folder, for `tools/lora_fixtures.py --check` to open.
fn adapters_give_the_logits_of_peft<B: FusedOps>() {
    for name in ["llama", "llama_rank_stabilised", "gpt2", "gpt_neox", "phi3"] {
        let folder = fixtures().join("lora").join(name);
        let adapter = Adapter::load(&folder).unwrap_or_else(|error| panic!("{error}"));
        let (model, ids) = base::<B>(name);
        let before = values(model.forward(ids.tensor()));
        let words = read(&folder.join("expected.safetensors"), "logits");
        let want: Vec<f32> = words.into_iter().map(f32::from_le_bytes).collect();
        assert!(distance(&before, &want) > 0.01, "{name}: the adapter changes nothing");

        // Half of it twice is the whole.
        let halves = [(&adapter, 0.5), (&adapter, 0.5)];
        let merged = lora::merge(model, &halves).unwrap_or_else(|error| panic!("{error}"));
        let worst = distance(&values(merged.forward(ids.tensor())), &want);
        assert!(worst <= 2e-5, "{name}: {worst:e}");
        let unmerged = lora::unmerge(merged, &halves).expect("as before");
        let worst = distance(&values(unmerged.forward(ids.tensor())), &before);
        assert!(worst <= 2e-5, "{name}: {worst:e} after unmerging");

        let dir = tempfile::tempdir().expect("a temporary folder");
        let saved = match std::env::var_os("FLINT_SAVED") {
            Some(kept) => Path::new(&kept).join(name),
            None => dir.path().to_owned(),
        };
        fs::create_dir_all(&saved).expect("created");
        adapter.save(&saved).expect("saved");
        let again = Adapter::load(&saved).expect("loaded again");
        assert_eq!((again.alpha, &again.factors), (adapter.alpha, &adapter.factors), "{name}");
    }
}

fn adapters_that_do_not_fit_are_refused<B: FusedOps>() {
    let folder = fixtures().join("lora/llama");
    let adapter = Adapter::load(&folder).expect("loaded");
    let error = lora::merge(base::<B>("gpt2").0, &[(&adapter, 1.0)]).expect_err("names of another family");
    assert!(error.to_string().contains("has no place in this model"), "{error}");
    let mut wide = adapter.clone();
    wide.factors.values_mut().for_each(|factors| factors.a.extend_from_within(..));
    let error = lora::merge(base::<B>("llama").0, &[(&wide, 1.0)]).expect_err("twice as wide");
    assert!(error.to_string().contains("has shape"), "{error}");

    let dir = tempfile::tempdir().expect("a temporary folder");
    let refused = |from: &str, to: &str, named: &str| {
        let config = fs::read_to_string(folder.join("adapter_config.json")).expect("read");
        assert!(config.contains(from), "{from}");
        fs::copy(folder.join("adapter_model.safetensors"), dir.path().join("adapter_model.safetensors"))
            .expect("copied");
        fs::write(dir.path().join("adapter_config.json"), config.replace(from, to)).expect("written");
        let error = Adapter::load(dir.path()).expect_err(to).to_string();
        assert!(error.contains(named), "{error}");
    };
    refused("\"use_dora\": false", "\"use_dora\": true", "use_dora");
    refused("\"bias\": \"none\"", "\"bias\": \"all\"", "`bias` is \"all\"");
    refused("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "modules_to_save");
    refused("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"q_proj\": 3}", "alpha_pattern");
    refused("\"LORA\"", "\"IA3\"", "IA3");
    refused("\"lora_alpha\": 8", "\"lora_alpha\": \"eight\"", "lora_alpha");
}
