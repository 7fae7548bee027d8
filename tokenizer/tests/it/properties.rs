//! What holds of every tokenizer, on random files and random texts: a saved file is the same tokenizer, nothing of a text
//! is lost where a model has all bytes, and a stream gives what decoding gives at every cut.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizer::{EncodeOptions, Tokenizer};

use crate::fixture;

type Named = (&'static str, Tokenizer);

fn load(names: &'static [&'static str]) -> Vec<Named> {
    let open =
        |&name: &&'static str| (name, Tokenizer::load(fixture(&format!("exactness/{name}.json"))).unwrap());
    names.iter().map(open).collect()
}

/// Byte-level models whose normalizers change nothing.
static BYTES: LazyLock<Vec<Named>> = LazyLock::new(|| {
    load(&["gpt2", "llama3", "deepseek3", "o200k", "tekken", "starcoder", "falcon", "bloom"])
});

/// Models with byte fallback.
static FALLBACK: LazyLock<Vec<Named>> = LazyLock::new(|| load(&["llama2", "mistral", "gemma"]));

/// Those with decoders of other kinds.
static OTHERS: LazyLock<Vec<Named>> =
    LazyLock::new(|| load(&["bert", "t5", "xlm-roberta", "roberta", "phi3", "qwen2", "gpt-neox"]));

/// Texts with special tokens, whole and broken, and whatever else there is.
fn text() -> impl Strategy<Value = String> {
    let parts = [
        "<|endoftext|>",
        "<s>",
        "</s>",
        "<bos>",
        "<unk>",
        "[INST]",
        "<|begin_of_text|>",
        "<\u{ff5c}User\u{ff5c}>",
        "<0x41>",
        "<|",
        " ",
        "  ",
        "\n",
        "\n\n",
        "the",
        " the",
        "é",
        "e\u{301}",
        "日本",
        "\u{1f468}\u{200d}\u{1f469}",
        "123",
        "'s",
        "\u{a0}",
    ];
    let part = prop_oneof![
        3 => proptest::sample::select(parts.to_vec()).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
        1 => "[a-z ]{1,8}",
    ];
    proptest::collection::vec(part, 0..10).prop_map(|parts| parts.concat())
}

fn special(parse_special: bool) -> EncodeOptions {
    EncodeOptions { parse_special, add_special: false }
}

proptest! {
    /// The ids of a text that is cut are those of its parts, whatever the tokenizer.
    #[test]
    fn texts_are_cut_where_it_changes_nothing(
        parts in proptest::collection::vec(prop_oneof![text(), "[a-zé\u{fb1d}\u{1100}\u{1161}] ?\n?\u{301}?"], 1..5),
        from: proptest::sample::Index,
        parse_special: bool,
    ) {
        let text = parts.concat();
        let from = from.index(text.len() + 1);
        for (name, tokenizer) in BYTES.iter().chain(FALLBACK.iter()).chain(OTHERS.iter()) {
            let options = special(parse_special);
            let Some(at) = tokenizer.safe_cut(&text, from, options) else { continue };
            prop_assert!(from <= at && at < text.len());
            let [mut ids, after] = [&text[..at], &text[at..]].map(|part| tokenizer.encode_with(part, options));
            ids.extend(after);
            prop_assert_eq!(ids, tokenizer.encode_with(&text, options), "{} cut at {}: {:?}", name, at, &text);
        }
    }
}

#[test]
fn most_byte_level_tokenizers_know_where_to_cut() {
    let (text, options) = ("One word, two Wörter\n", special(false));
    let cuts = |all: &[Named]| all.iter().map(|(_, t)| t.safe_cut(text, 4, options)).collect::<Vec<_>>();
    assert_eq!(cuts(&FALLBACK), [None; 3]);
    // The others cut numbers, punctuation or parts of their own before.
    let known = |all: &[Named]| {
        cuts(all)
            .iter()
            .zip(all)
            .filter(|(cut, _)| **cut == Some(13))
            .map(|(_, (name, _))| *name)
            .collect::<Vec<_>>()
    };
    assert_eq!(known(&BYTES), ["gpt2", "llama3", "o200k", "tekken"]);
    assert_eq!(known(&OTHERS), ["qwen2"]);
}

/// Short words, all different.
fn words() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::btree_set("[a-dé\u{2581}]{1,4}", 1..24)
        .prop_map(|words| words.into_iter().collect())
}

/// Saves and loads, and compares hash and ids.
fn is_same_once_saved(file: &Value, texts: &[String]) -> Result<(), TestCaseError> {
    let tokenizer = Tokenizer::from_json(file.to_string().as_bytes()).unwrap();
    let saved = tokenizer.to_json().unwrap();
    let again = Tokenizer::from_json(saved.as_bytes()).unwrap();
    prop_assert_eq!(again.hash(), tokenizer.hash());
    prop_assert_eq!(again.to_json().unwrap(), saved);
    for text in texts {
        for parse_special in [false, true] {
            let ids = tokenizer.encode_with(text, special(parse_special));
            prop_assert_eq!(again.encode_with(text, special(parse_special)), &ids[..]);
            prop_assert_eq!(again.decode(&ids).unwrap(), tokenizer.decode(&ids).unwrap());
        }
    }
    Ok(())
}

fn file(model: Value, pre_tokenizer: Value, unk: &str) -> Value {
    let added = json!([{"id": 0, "content": unk, "special": true, "lstrip": true}]);
    json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": pre_tokenizer, "model": model})
}

/// Ids from 1 on; 0 is `unk`.
fn vocab(unk: &str, words: &[String]) -> Value {
    let ids = std::iter::once(unk.to_owned()).chain(words.iter().cloned()).zip(0..);
    Value::Object(ids.map(|(word, id)| (word, json!(id))).collect())
}

/// Each word as a merge of its first characters and its last, as far as these are words.
fn merges(words: &[String]) -> Vec<Value> {
    let halves = words.iter().filter_map(|word| Some(word.split_at(word.char_indices().next_back()?.0)));
    let known = |part: &str| words.iter().any(|word| word == part);
    halves
        .filter(|(left, right)| known(left) && known(right))
        .map(|(left, right)| json!([left, right]))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn bpe_files_are_the_same_once_saved(words in words(), texts in proptest::collection::vec("[a-dé\u{2581} x<?>]{0,12}", 4), flags: [bool; 3]) {
        let [fuse_unk, byte_fallback, ignore_merges] = flags;
        let model = json!({"type": "BPE", "vocab": vocab("<?>", &words), "merges": merges(&words), "unk_token": "<?>",
            "fuse_unk": fuse_unk, "byte_fallback": byte_fallback, "ignore_merges": ignore_merges});
        is_same_once_saved(&file(model, json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first"}), "<?>"), &texts)?;
    }

    #[test]
    fn unigram_files_are_the_same_once_saved(words in words(), scores in proptest::collection::vec(-20.0..0.0f64, 24), texts in proptest::collection::vec("[a-dé\u{2581} x<?>]{0,12}", 4)) {
        let entries = std::iter::once("<?>").chain(words.iter().map(String::as_str)).zip(scores.into_iter().cycle());
        let model = json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": entries.map(|(word, score)| json!([word, score])).collect::<Vec<_>>()});
        is_same_once_saved(&file(model, json!({"type": "WhitespaceSplit"}), "<?>"), &texts)?;
    }

    #[test]
    fn word_files_are_the_same_once_saved(words in words(), texts in proptest::collection::vec("[a-dé\u{2581} x<?>]{0,12}", 4), length in 1usize..9) {
        let model = json!({"type": "WordLevel", "unk_token": "<?>", "vocab": vocab("<?>", &words)});
        is_same_once_saved(&file(model, json!({"type": "Whitespace"}), "<?>"), &texts)?;
        let model = json!({"type": "WordPiece", "unk_token": "<?>", "vocab": vocab("<?>", &words),
            "continuing_subword_prefix": "b", "max_input_chars_per_word": length});
        is_same_once_saved(&file(model, json!({"type": "BertPreTokenizer"}), "<?>"), &texts)?;
    }

    #[test]
    fn published_shapes_are_the_same_once_saved(text in text()) {
        static SAVED: LazyLock<Vec<(&Tokenizer, Tokenizer)>> = LazyLock::new(|| {
            let all = BYTES.iter().chain(FALLBACK.iter()).chain(OTHERS.iter());
            all.map(|(_, tokenizer)| (tokenizer, Tokenizer::from_json(tokenizer.to_json().unwrap().as_bytes()).unwrap())).collect()
        });
        for (tokenizer, saved) in SAVED.iter() {
            prop_assert_eq!(tokenizer.hash(), saved.hash());
            prop_assert_eq!(tokenizer.encode(&text), saved.encode(&text));
        }
    }

    #[test]
    fn every_text_comes_back_where_there_are_all_bytes(text in text()) {
        // U+2581 is how these models spell a space.
        let spaced = text.replace('\u{2581}', " ");
        let cases = BYTES.iter().map(|case| (case, &text)).chain(FALLBACK.iter().map(|case| (case, &spaced)));
        for ((name, tokenizer), text) in cases {
            // This scheme puts no space before one, and decoding takes the first away.
            if *name == "mistral" && text.starts_with(' ') {
                continue;
            }
            // Llama 2 puts a space before all text, also behind a special token, and takes only the first away.
            if *name != "llama2" {
                let ids = tokenizer.encode_with(text, special(true));
                prop_assert_eq!(&tokenizer.decode(&ids).unwrap(), text, "{} with special tokens", name);
            }
            prop_assert_eq!(&tokenizer.decode(&tokenizer.encode(text)).unwrap(), text, "{}", name);
        }
    }

    #[test]
    fn a_stream_gives_what_decoding_gives_at_every_cut_of_every_shape(text in text(), from in 0usize..4) {
        for (name, tokenizer) in BYTES.iter().chain(FALLBACK.iter()).chain(OTHERS.iter()) {
            let ids = tokenizer.encode_with(&text, EncodeOptions { parse_special: true, add_special: true });
            let ids = &ids[from.min(ids.len())..];
            let mut stream = tokenizer.decode_stream();
            let mut streamed = String::new();
            for (idx, &id) in ids.iter().enumerate() {
                streamed.extend(stream.push(id).unwrap());
                let mut ended = streamed.clone();
                ended.extend(stream.clone().finish());
                prop_assert_eq!(&ended, &tokenizer.decode(&ids[..=idx]).unwrap(), "{} {:?}", name, ids);
            }
        }
    }
}
