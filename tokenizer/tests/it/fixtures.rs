//! Agreement with Hugging Face: the same vocabularies from the same corpus, the same ids for hard strings.
//!
//! `tools/tokenizer_fixtures.py` makes the fixtures. Its `--check` opened the committed `flint-*.json` and agreed on
//! the ids; here Flint must still write these files byte for byte and give these ids.

use std::fs;
use std::io::Write;
use std::path::Path;

use tokenizer::Tokenizer;

use crate::{fixture, trained};

fn strings() -> Vec<String> {
    serde_json::from_slice(&fs::read(fixture("strings.json")).unwrap()).unwrap()
}

#[test]
fn training_gives_the_vocabulary_that_hugging_face_gives() {
    for (name, ours) in &trained()[1..] {
        let theirs = Tokenizer::load(fixture(&format!("{}.json", name.replace("flint", "hf")))).unwrap();
        assert_eq!(ours.vocab_size(), 600);
        for id in 0..600 {
            assert_eq!(ours.id_to_token(id), theirs.id_to_token(id), "{name}, id {id}");
        }
        // The hash covers the merges as well.
        assert_eq!(ours.hash(), theirs.hash(), "{name}");
    }
}

#[test]
fn ids_are_those_of_hugging_face() {
    let strings = strings();
    for (name, ours) in trained() {
        let json = fs::read(fixture(&format!("{name}.ids.json"))).unwrap();
        let expected: Vec<Vec<Vec<u32>>> = serde_json::from_slice(&json).unwrap();
        assert_eq!(strings.len(), expected.len());
        for (text, ids) in strings.iter().zip(&expected) {
            assert_eq!(ours.encode(text), ids[0], "{name} on {text:?}");
            assert_eq!(
                ours.encode_with_special(text),
                ids[ids.len() - 1],
                "{name} on {text:?} with special tokens"
            );
        }
    }
}

#[test]
fn files_are_written_as_hugging_face_opened_them() {
    for (name, ours) in trained() {
        let committed = fs::read_to_string(fixture(&format!("{name}.json"))).unwrap();
        assert!(
            ours.to_json().unwrap() == committed,
            "{name}.json is written differently now: run the tool's --check again"
        );
        assert_eq!(Tokenizer::from_json(committed.as_bytes()).unwrap().hash(), ours.hash());
    }
}

#[test]
fn leaves_files_for_the_check_with_hugging_face() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tokenizer");
    fs::create_dir_all(&dir).unwrap();
    let mut texts = strings();
    texts.extend((0..2000).map(random_text));
    for (name, ours) in trained() {
        let path = dir.join(format!("{name}.json"));
        ours.save(&path).unwrap();
        assert_eq!(Tokenizer::load(&path).unwrap().hash(), ours.hash());
        let mut lines = Vec::new();
        for text in &texts {
            let case = serde_json::json!({
                "text": text,
                "plain": ours.encode(text),
                "special": ours.encode_with_special(text),
            });
            writeln!(lines, "{case}").unwrap();
        }
        fs::write(dir.join(format!("{name}.ids.jsonl")), lines).unwrap();
    }
}

/// A text of one of three kinds: characters on which the patterns turn, words of the corpus, any code points.
fn random_text(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut below = move |n: usize| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % n as u64) as usize
    };
    let hot: Vec<char> =
        "  \t\n\r\u{a0}\u{3000}aAbBzéſsStTlLvVeErRmd'129٣½.,!-_=(日本한👍\u{301}".chars().collect();
    let words = [
        "the", " and", " thou", "'s", "'LL", "\n\n", "   ", "<|end|>", "<|user|>", "ßen", "東京", "1400",
        "!!", "<0x41>",
    ];
    let len = below(40);
    let mut text = String::new();
    for _ in 0..len {
        match seed % 3 {
            0 => text.push(hot[below(hot.len())]),
            1 => text.push_str(words[below(words.len())]),
            _ => text.extend(char::from_u32(below(0x11_0000) as u32)),
        }
    }
    text
}

/// Shards of tokens on disk have these hashes. Where one must change, all that were made with such a file are refused,
/// so say so where the change is announced.
#[test]
fn hashes_stay_the_same() {
    let found: Vec<String> =
        trained()
            .iter()
            .map(|(name, tokenizer)| (*name, tokenizer.hash()))
            .chain(["gpt2", "qwen2", "llama2", "bert", "xlm-roberta"].map(|name| {
                (name, Tokenizer::load(fixture(&format!("exactness/{name}.json"))).unwrap().hash())
            }))
            .map(|(name, hash)| format!("{name} {hash:016x}"))
            .collect();
    let expected = [
        "flint-char ac1cfbc3c9683c36",
        "flint-gpt2 68e219574be4d98a",
        "flint-gpt4 3b62b21ecd7d9219",
        "gpt2 4f1c11f57756e5c9",
        "qwen2 ba1b7b8bfc8501d6",
        "llama2 1d8d14e74105a7b8",
        "bert e93c08a1df596fbf",
        "xlm-roberta 6fd9ee54aa9ca2e0",
    ];
    assert_eq!(found, expected);
}

#[test]
fn all_that_decides_ids_is_in_the_hash() {
    let file: serde_json::Value =
        serde_json::from_slice(&fs::read(fixture("flint-gpt2.json")).unwrap()).unwrap();
    let hash = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut file = file.clone();
        change(&mut file);
        Tokenizer::from_json(file.to_string().as_bytes()).unwrap().hash()
    };
    let template = |before: &str, after: &str| {
        let special = |token: &str| serde_json::json!({"SpecialToken": {"id": token, "type_id": 0}});
        let sequence = serde_json::json!([{"Sequence": {"id": "A", "type_id": 0}}]);
        let single: Vec<_> = [special(before)]
            .into_iter()
            .filter(|_| !before.is_empty())
            .chain(sequence.as_array().unwrap().clone())
            .chain([special(after)].into_iter().filter(|_| !after.is_empty()))
            .collect();
        let end = "<|endoftext|>";
        serde_json::json!({"type": "TemplateProcessing", "single": single, "pair": [],
            "special_tokens": {end: {"id": end, "ids": [0], "tokens": [end]}}})
    };
    let add = |file: &mut serde_json::Value, flags: serde_json::Value| {
        let mut token = serde_json::json!({"id": 64 + 5, "content": "a"});
        token["id"] = file["model"]["vocab"]["a"].clone();
        token.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
        file["added_tokens"].as_array_mut().unwrap().push(token);
    };
    let hashes = [
        hash(&|_| {}),
        hash(&|file| add(file, serde_json::json!({}))),
        hash(&|file| add(file, serde_json::json!({"lstrip": true}))),
        hash(&|file| add(file, serde_json::json!({"single_word": true}))),
        hash(&|file| file["post_processor"] = template("<|endoftext|>", "")),
        hash(&|file| file["post_processor"] = template("", "<|endoftext|>")),
        hash(&|file| file["post_processor"] = template("<|endoftext|>", "<|endoftext|>")),
        hash(&|file| file["model"]["ignore_merges"] = true.into()),
    ];
    let distinct: std::collections::BTreeSet<u64> = hashes.into_iter().collect();
    assert_eq!(distinct.len(), hashes.len(), "{hashes:x?}");
}
