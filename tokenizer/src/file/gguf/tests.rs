//! A GGUF made by hand and broken in every way, and llama.cpp's own vocabularies with the ids it gives.

use std::path::PathBuf;

use unicode_normalization::UnicodeNormalization;

use super::super::reference::Model;
use super::*;
use crate::{Split, alphabet};

/// Writes a header: keys with their type and bytes.
fn gguf(values: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend((values.len() as u64).to_le_bytes());
    for (key, kind, value) in values {
        bytes.extend(text(key));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
    }
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn array(kind: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(elements.len() as u64).to_le_bytes(), &elements.concat()].concat()
}

fn numbers(kind: u32, numbers: &[i32]) -> Vec<u8> {
    array(kind, &numbers.iter().map(|number| number.to_le_bytes().to_vec()).collect::<Vec<_>>())
}

fn small() -> Vec<(&'static str, u32, Vec<u8>)> {
    let tokens = ["<unk>", "<s>", "\u{2581}", "a", "\u{2581}a", "b"];
    let scores = [0.0f32, 0.0, -1.0, -2.0, -0.5, -3.0].map(|score| score.to_le_bytes().to_vec());
    vec![
        ("general.name", 8, text("small")),
        ("tokenizer.ggml.model", 8, text("llama")),
        ("tokenizer.ggml.tokens", 9, array(8, &tokens.map(text))),
        ("tokenizer.ggml.scores", 9, array(6, &scores)),
        ("tokenizer.ggml.token_type", 9, numbers(5, &[2, 3, 1, 1, 1, 4])),
        ("tokenizer.ggml.bos_token_id", 4, 1u32.to_le_bytes().to_vec()),
        ("tokenizer.ggml.add_bos_token", 7, vec![1]),
        ("tokenizer.chat_template", 8, text("{{ messages }}")),
    ]
}

fn model(def: &Definition) -> Model {
    let tokens: Vec<&str> = def.vocab.iter().map(|(token, _)| token.as_str()).collect();
    Model::new(&tokens, &def.model)
}

fn encode(model: &mut Model, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    model.encode(text, &mut ids);
    ids
}

#[test]
fn a_small_vocabulary_is_read() {
    let def = parse(&gguf(&small())).unwrap();
    assert_eq!(def.vocab[4], ("\u{2581}a".to_owned(), 4));
    assert_eq!(def.special.bos, Some(1));
    assert_eq!((def.special.eos, def.special.unk, def.special.add_bos), (Some(2), Some(0), Some(true)));
    assert_eq!(def.chat_template.as_deref(), Some("{{ messages }}"));
    let special: Vec<(u32, bool)> = def.added.iter().map(|added| (added.id, added.special)).collect();
    assert_eq!(special, [(0, true), (1, true), (5, false)]);
    assert_eq!(encode(&mut model(&def), "\u{2581}axxb"), [4, 0, 5]);
}

#[test]
fn wrong_types_and_counts_are_refused() {
    let with = |key: &str, kind: u32, value: Vec<u8>| {
        let mut values = small();
        values.retain(|(other, ..)| *other != key);
        values.push((Box::leak(key.to_owned().into_boxed_str()), kind, value));
        parse(&gguf(&values)).unwrap_err().to_string()
    };
    let huge = |kind: u32| [&kind.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    for (key, kind, value, expected) in [
        (
            "tokenizer.ggml.scores",
            9,
            array(0, &[vec![1], vec![2], vec![3], vec![4], vec![5], vec![6]]),
            "an array of U8, but",
        ),
        ("tokenizer.ggml.scores", 9, numbers(6, &[0]), "1 entries for 6 tokens"),
        ("tokenizer.ggml.scores", 6, vec![0; 4], "is F32, but should be an array"),
        ("tokenizer.ggml.token_type", 9, numbers(5, &[9; 6]), "type 9 of token `<unk>` (id 0)"),
        ("tokenizer.ggml.tokens", 9, huge(8), "18446744073709551615 elements"),
        ("tokenizer.ggml.tokens", 9, huge(9), "an array of arrays"),
        ("tokenizer.ggml.tokens", 9, array(8, &["a", "a"].map(text)), "token `a` stands twice"),
        ("tokenizer.ggml.scores", 9, huge(12), "of 8 bytes or more"),
        ("tokenizer.ggml.model", 8, text("rwkv"), "tokenizer.ggml.model: `rwkv`"),
        ("tokenizer.ggml.model", 8, (1u64 << 63).to_le_bytes().to_vec(), "9223372036854775808 elements"),
        ("tokenizer.ggml.bos_token_id", 4, 6u32.to_le_bytes().to_vec(), "id 6 is not in the vocabulary of 6"),
        ("tokenizer.ggml.bos_token_id", 5, (-7i32).to_le_bytes().to_vec(), "is -7, which is no id"),
        ("tokenizer.ggml.bos_token_id", 6, vec![0; 4], "should be one of [U8"),
        ("tokenizer.ggml.add_bos_token", 13, vec![0], "type 13"),
    ] {
        let message = with(key, kind, value);
        assert!(message.contains(expected), "{key}: {message}");
    }
    let mut twice = small();
    twice.push(("tokenizer.ggml.model", 8, text("gpt2")));
    assert!(parse(&gguf(&twice)).unwrap_err().to_string().contains("`tokenizer.ggml.model` stands twice"));
    let mut gpt2 = small();
    gpt2[1].2 = text("gpt2");
    gpt2.push(("tokenizer.ggml.pre", 8, text("no-such-split")));
    assert!(parse(&gguf(&gpt2)).unwrap_err().to_string().contains("tokenizer.ggml.pre: `no-such-split`"));
    assert!(parse(b"GGUF\x01\0\0\0").unwrap_err().to_string().contains("version 1"));
    assert!(parse(b"GGML").unwrap_err().to_string().contains("does not start with"));
}

#[test]
fn every_truncation_and_flip_is_an_error_or_usable() {
    let bytes = gguf(&small());
    for len in 0..bytes.len() {
        let needed = match parse(&bytes[..len]) {
            Err(Error::CutShort { needed, .. }) => needed as usize,
            other => panic!("{len} bytes: {:?}", other.err()),
        };
        assert!((len + 1..=bytes.len()).contains(&needed), "{len} bytes: {needed}");
    }
    for idx in 0..bytes.len() {
        for flip in [1u8, 2, 4, 8, 16, 32, 64, 128, 255] {
            let mut broken = bytes.clone();
            broken[idx] ^= flip;
            if let Ok(def) = parse(&broken)
                && let ModelDef::Bpe(bpe) = &def.model
            {
                let tokens: Vec<&str> = def.vocab.iter().map(|(token, _)| token.as_str()).collect();
                if let Ok(model) = crate::char_bpe::CharBpe::new(&tokens, bpe) {
                    model.encode("\u{2581}axxb", &mut crate::char_bpe::Scratch::default(), &mut Vec::new());
                }
            }
        }
    }
}

/// Texts and their ids.
type Cases = Vec<(String, Vec<u32>)>;

/// The texts and ids of one of llama.cpp's suites; nothing without the assets.
fn suite(name: &str) -> Option<(Definition, Cases)> {
    let folder = PathBuf::from(std::env::var_os("FLINT_ASSETS")?).join("tokenizers/vocab-suites");
    let path = |ending: &str| folder.join(format!("ggml-vocab-{name}.gguf{ending}"));
    let def = parse(&std::fs::read(path("")).unwrap()).unwrap();
    let texts = std::fs::read_to_string(path(".inp")).unwrap();
    let ids = std::fs::read_to_string(path(".out")).unwrap();
    // A text ends before the line break that precedes the separator.
    let texts = texts.split("\n__ggml_vocab_test__\n").map(str::to_owned);
    let ids = ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect());
    let cases: Cases = texts.zip(ids).collect();
    assert!(cases.len() >= 40, "{}", cases.len());
    Some((def, cases))
}

#[test]
fn phi_3_equals_llama_cpp() {
    let Some((def, cases)) = suite("phi-3") else { return };
    assert_eq!(def.vocab.len(), 32_064);
    let mut model = model(&def);
    for (text, expected) in cases {
        let normalized = if text.is_empty() {
            String::new()
        } else {
            format!("\u{2581}{}", text.replace(' ', "\u{2581}"))
        };
        assert_eq!(encode(&mut model, &normalized), expected, "{text:?}");
    }
}

#[test]
fn bert_bge_equals_llama_cpp() {
    let Some((def, cases)) = suite("bert-bge") else { return };
    let mut model = model(&def);
    for (text, expected) in cases {
        let mut ids = Vec::new();
        for word in bert_words(&text) {
            model.encode(&word, &mut ids);
        }
        assert_eq!(ids, expected, "{text:?}");
    }
}

/// BERT's normalizer and pre-tokenizer, as far as the suite needs them.
fn bert_words(text: &str) -> Vec<String> {
    let mark = regex::Regex::new(r"^\p{Mn}$").unwrap();
    let alone = regex::Regex::new(r"^[\p{P}\p{Han}$+<=>^`|~]$").unwrap();
    let dropped = regex::Regex::new(r"^[\p{C}\x{fffd}]$").unwrap();
    let mut spaced = String::new();
    for c in text.nfd().flat_map(char::to_lowercase) {
        let single = c.to_string();
        if c.is_whitespace() {
            spaced.push(' ');
        } else if mark.is_match(&single) || dropped.is_match(&single) {
        } else if alone.is_match(&single) {
            spaced += &format!(" {c} ");
        } else {
            spaced.push(c);
        }
    }
    spaced.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn byte_level_suites_equal_llama_cpp() {
    for name in ["gpt-2", "qwen2"] {
        let Some((def, cases)) = suite(name) else { return };
        let ModelDef::Bpe(BpeDef { merges: Merges::Ranked(pairs), .. }) = &def.model else {
            panic!("{name}")
        };
        let ranks: std::collections::HashMap<(u32, u32), usize> = pairs.iter().copied().zip(0..).collect();
        let ids = ids(&def.vocab).unwrap();
        let pattern = match name {
            "gpt-2" => Split::Gpt2.regex(),
            _ => {
                def.pre_tokenizer.as_ref().unwrap()["pretokenizers"][0]["pattern"]["Regex"].as_str().unwrap()
            }
        };
        let pattern = fancy_regex::Regex::new(pattern).unwrap();
        for (text, expected) in cases {
            let mut found = Vec::new();
            for piece in pattern.find_iter(&text) {
                let piece = alphabet::spell(piece.unwrap().as_str().as_bytes());
                let mut parts: Vec<u32> =
                    piece.chars().map(|c| ids.get(c.to_string().as_bytes()).unwrap()).collect();
                let best = |parts: &[u32]| {
                    let ranked = parts
                        .windows(2)
                        .zip(0..)
                        .filter_map(|(pair, idx)| Some((*ranks.get(&(pair[0], pair[1]))?, idx)));
                    ranked.min()
                };
                while let Some((_, idx)) = best(&parts) {
                    let (left, right): (u32, u32) = (parts[idx], parts[idx + 1]);
                    let spelled = format!("{}{}", def.vocab[left as usize].0, def.vocab[right as usize].0);
                    parts.splice(idx..idx + 2, [ids.get(spelled.as_bytes()).unwrap()]);
                }
                found.extend(parts);
            }
            assert_eq!(found, expected, "{name}: {text:?}");
        }
    }
}

#[test]
fn stories_equal_sentencepiece() {
    let Some(assets) = std::env::var_os("FLINT_ASSETS").map(PathBuf::from) else { return };
    let folder = assets.join("models/stories260k");
    let gguf = parse(&std::fs::read(folder.join("stories260K-f32.gguf")).unwrap()).unwrap();
    let original = std::fs::read(folder.join("hf/tokenizer.model")).unwrap();
    let original = super::super::sentencepiece::parse(&original).unwrap();
    assert_eq!(gguf.vocab, original.vocab);
    let (mut gguf, mut original) = (model(&gguf), model(&original));
    let stories = std::fs::read_to_string(assets.join("text/tinystories-sample-197k.txt")).unwrap();
    for line in stories.lines().take(200) {
        let text = format!("\u{2581}{}", line.replace(' ', "\u{2581}"));
        assert_eq!(encode(&mut gguf, &text), encode(&mut original, &text), "{line}");
    }
}
