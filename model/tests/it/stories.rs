//! A model trained elsewhere: Karpathy's stories260K as converted to the Hugging Face layout and to GGUF, and the text
//! that llama2.c generates with it.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use model::{Cache, FusedOps, weights};

use crate::cases::Ids;

on_cpu!(stories260k_continues_as_in_llama2_c, blocks_of_stories260k_hardly_change_it);

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn assets() -> Option<PathBuf> {
    let assets = std::env::var_os("FLINT_ASSETS").map(PathBuf::from);
    if assets.is_none() {
        eprintln!("skipped: FLINT_ASSETS does not name the folder with models/stories260k");
    }
    assets
}

fn reference(assets: &Path) -> Vec<i32> {
    let text =
        std::fs::read_to_string(assets.join("refs/stories260k_greedy_tokens.json")).expect("the reference");
    let reference: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let tokens = reference["tokens"].as_array().expect("a list").iter();
    tokens.map(|id| id.as_i64().expect("an id") as i32).collect()
}

fn stories260k_continues_as_in_llama2_c<B: FusedOps>() {
    let Some(assets) = assets() else { return };
    let expected = reference(&assets);
    for file in ["hf", "stories260K-f32.gguf", "stories260K-f16.gguf"] {
        let path = assets.join("models/stories260k").join(file);
        let model = weights::load::<B>(&path, &Default::default()).expect("loaded");
        let mut cache = Cache::new(model.config(), 1, expected.len(), &Default::default());
        let mut found = vec![1]; // The beginning of a text.
        while found.len() < expected.len() {
            let last = Ids { batch: 1, seq_len: 1, values: found[found.len() - 1..].to_vec() };
            let logits = model.next_logits(last.tensor(), &mut cache);
            found.push(logits.argmax(1).into_scalar().elem());
        }
        assert_eq!(found, expected, "{file}");
    }
}

/// Other numbers give other texts sooner or later. How often the reference's next token is the most probable one tells
/// whether they are the right ones: with wrong scales or order it is as rare as chance.
fn blocks_of_stories260k_hardly_change_it<B: FusedOps>() {
    let Some(assets) = assets() else { return };
    let expected = reference(&assets);
    let ids = Ids { batch: 1, seq_len: expected.len(), values: expected.clone() };
    for (file, least) in [("stories260K-q8_0.gguf", 0.98), ("stories260K-q4_0.gguf", 0.85)] {
        let path = assets.join("models/stories260k").join(file);
        let model = weights::load::<B>(&path, &Default::default()).expect("loaded");
        let found: Vec<i32> =
            model.forward(ids.tensor()).argmax(1).into_data().convert::<i32>().into_vec().expect("ids");
        let same = found.iter().zip(&expected[1..]).filter(|(found, want)| found == want).count();
        let share = same as f64 / (expected.len() - 1) as f64;
        assert!(share >= least, "{file}: {share}");
    }
}
