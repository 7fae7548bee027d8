//! A model trained elsewhere: Karpathy's stories260K as converted to the Hugging Face layout, and the
//! text that llama2.c generates with it.

use std::path::PathBuf;

use burn::prelude::*;
use model::{Cache, FusedOps, weights};

use crate::cases::Ids;

on_cpu!(stories260k_continues_as_in_llama2_c);

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn stories260k_continues_as_in_llama2_c<B: FusedOps>() {
    let Some(assets) = std::env::var_os("FLINT_ASSETS").map(PathBuf::from) else {
        return eprintln!("skipped: FLINT_ASSETS does not name the folder with models/stories260k");
    };
    let text =
        std::fs::read_to_string(assets.join("refs/stories260k_greedy_tokens.json")).expect("the reference");
    let reference: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let tokens = reference["tokens"].as_array().expect("a list").iter();
    let expected: Vec<i32> = tokens.map(|id| id.as_i64().expect("an id") as i32).collect();

    let model =
        weights::load::<B>(&assets.join("models/stories260k/hf"), &Default::default()).expect("loaded");
    let mut cache = Cache::new(model.config(), 1, expected.len(), &Default::default());
    let mut found = vec![1]; // The beginning of a text.
    while found.len() < expected.len() {
        let last = Ids { batch: 1, seq_len: 1, values: found[found.len() - 1..].to_vec() };
        let logits = model.next_logits(last.tensor(), &mut cache);
        found.push(logits.argmax(1).into_scalar().elem());
    }
    assert_eq!(found, expected);
}
