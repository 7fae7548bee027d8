//! Beam search against that of transformers, and at its limits.

use std::path::Path;

use burn::backend::Flex;
use model::cache::Kind;
use model::{Config, Pool, Transformer, weights};
use serde_json::Value;

use super::*;
use crate::sampler::{Sampler, Sampling};
use crate::session::Session;

fn decoder(model: &Transformer<Flex>, kind: Kind, n_pages: usize) -> Paged<'_, Flex> {
    let config = model.config();
    Paged::new(model, Pool::new(config, kind, n_pages, config.context, &Default::default()))
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).expect("ids")
}

#[test]
fn finds_what_transformers_finds() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("../../tests/fixtures/beams.json")).expect("JSON");
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/families");
    for name in ["llama", "gpt2"] {
        let opened = weights::open(&families.join(name)).expect("a model");
        let model = opened.load::<Flex>(&Default::default()).expect("a model");
        let of_model: Vec<&Value> = cases.iter().filter(|case| case["model"] == name).collect();
        assert!(of_model.len() > 20);
        for case in of_model {
            let (prompt, stop_ids) = (ids(&case["prompt"]), ids(&case["stop_ids"]));
            let n = case["n"].as_u64().expect("a number") as usize;
            let beams = Beams {
                n: case["beams"].as_u64().expect("a number") as usize,
                length_penalty: case["length_penalty"].as_f64().expect("a number") as f32,
                early_stopping: match &case["early_stopping"] {
                    Value::Bool(true) => EarlyStopping::Yes,
                    Value::Bool(false) => EarlyStopping::No,
                    _ => EarlyStopping::Never,
                },
            };
            let mut decoder = decoder(&model, Kind::F32, n_pages(beams.n, prompt.len() + n));
            let vocab_size = decoder.vocab_size();
            let request = Request { prompt: &prompt, n, stop_ids: &stop_ids, vocab_size };
            let found = search(&mut decoder, request, beams).expect("found");
            let expected = case["expected"].as_array().expect("a list");
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                let score = expected["score"].as_f64().expect("a number");
                assert_eq!(found.ids, ids(&expected["ids"]), "{case}");
                assert!((found.score - score).abs() < 1e-4 * score.abs().max(1.0), "{found:?}, {expected}");
            }
        }
    }
}

#[test]
fn one_beam_is_greedy_in_any_pages() {
    let model = Transformer::<Flex>::init(&Config::new(50, 2, 32, 4, 200), 1, &Default::default());
    let prompt: Vec<u32> = (0..40).collect();
    let beams = Beams { n: 1, length_penalty: 1.0, early_stopping: EarlyStopping::No };
    for kind in [Kind::F32, Kind::F16, Kind::Q8] {
        let mut decoder = decoder(&model, kind, 5);
        let request = Request { prompt: &prompt, n: 100, stop_ids: &[], vocab_size: 30 };
        let found = search(&mut decoder, request, beams).expect("found");
        let mut sampler = Sampler::new(Sampling::greedy()).expect("valid");
        let shown = |_| std::ops::ControlFlow::Continue(());
        let mut session = Session::new(&model, 200).with_cache(kind).with_vocabulary(30);
        let greedy = session.generate(&prompt, 100, &[], &mut sampler, shown).expect("generated");
        assert_eq!(found[0].ids, greedy.ids, "{kind:?}");
    }
}

#[test]
fn copied_pages_hold_what_was_copied_in_every_kind() {
    // A score is the sum of log-probabilities that the text has when it is read at once.
    let model = Transformer::<Flex>::init(&Config::new(50, 2, 32, 4, 200), 2, &Default::default());
    let prompt: Vec<u32> = (0..30).collect();
    let beams = Beams { n: 5, length_penalty: 0.0, early_stopping: EarlyStopping::Never };
    for kind in [Kind::F32, Kind::F16, Kind::Q8] {
        let mut searching = decoder(&model, kind, n_pages(5, 110));
        let request = Request { prompt: &prompt, n: 80, stop_ids: &[], vocab_size: 50 };
        for found in search(&mut searching, request, beams).expect("found") {
            let whole = [&prompt[..], &found.ids].concat();
            let part = Part { ids: &whole, start: 0, pages: &[1, 0], n_logits: whole.len() };
            let rows = decoder(&model, kind, 2).step(&[part]);
            let of = |(row, &id): (&[f32], &u32)| {
                let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
                f64::from(row[id as usize]) - total.ln()
            };
            let expected: f64 = rows.chunks(50).skip(29).zip(&found.ids).map(of).sum();
            assert!((found.score - expected).abs() < 1e-6, "{kind:?}: {} is not {expected}", found.score);
        }
    }
}

#[test]
fn what_cannot_be_searched_says_why() {
    let model = Transformer::<Flex>::init(&Config::new(50, 1, 16, 2, 100), 1, &Default::default());
    let mut decoder = decoder(&model, Kind::F32, 5);
    let mut error = |prompt: &[u32], new, n| {
        let beams = Beams { n, length_penalty: 1.0, early_stopping: EarlyStopping::No };
        let request = Request { prompt, n: new, stop_ids: &[], vocab_size: 50 };
        search(&mut decoder, request, beams).expect_err("refused")
    };
    assert_eq!(error(&[], 5, 2), Error::EmptyPrompt);
    assert_eq!(error(&[1], 5, 0), Error::Beams { n: 0, most: 25 });
    assert_eq!(error(&[1], 5, 26), Error::Beams { n: 26, most: 25 });
    assert_eq!(error(&[1], 100, 2), Error::TooLong { prompt: 1, new: 100, context: 100 });
    assert_eq!(error(&[1], 90, 3), Error::NoMemory { n: 3, pages: 9, available: 5 });
    assert_eq!(error(&[50], 5, 2), Error::UnknownId { id: 50, vocab_size: 50 });
}
