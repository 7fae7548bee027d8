//! Vocabularies as the keys and values of a GGUF, and back: the same ids, or an error that names what cannot be said.

use std::fs;

use serde_json::{Value as Json, json};
use tokenizer::gguf::{Array, Header, Value, write_head};
use tokenizer::{EncodeOptions, Error, Tokenizer};

use crate::{assets, corpus, fixture, trained};

/// Prose in many scripts, strings of every kind, and lines of the corpus.
fn texts() -> Vec<String> {
    let json: Json =
        serde_json::from_str(&fs::read_to_string(fixture("exactness/pool.json")).unwrap()).unwrap();
    let mut texts = Vec::new();
    for key in ["prose", "specials", "emoji", "fixed"] {
        texts.extend(json[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()));
    }
    let words = texts.concat();
    texts.push(words);
    texts.extend(corpus().lines().take(300).map(str::to_owned));
    texts.extend(["", " ", "  a", "a  b ", "\n\n", "\u{2581}a", "<0x41>", "e\u{301}"].map(str::to_owned));
    texts
}

fn file_of(tokenizer: &Tokenizer) -> Result<Vec<u8>, Error> {
    write_head(0, &tokenizer.to_gguf()?.values)
}

/// Writes, reads, and compares all ids.
fn assert_comes_back(name: &str, tokenizer: &Tokenizer) {
    assert_eq!(tokenizer.to_gguf().map(|written| written.left_out).unwrap_or_default(), [""; 0], "{name}");
    assert_texts_come_back(name, tokenizer, &texts());
}

/// As [`assert_comes_back`], for these texts alone.
fn assert_texts_come_back(name: &str, tokenizer: &Tokenizer, texts: &[String]) {
    let file = file_of(tokenizer).unwrap_or_else(|error| panic!("{name}: {error}"));
    let back = Tokenizer::from_gguf(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(back.vocab_size(), tokenizer.vocab_size(), "{name}");
    assert_eq!(back.kind(), tokenizer.kind(), "{name}");
    assert_eq!(back.around(), tokenizer.around(), "{name}");
    assert_eq!(back.chat_template(), tokenizer.chat_template(), "{name}");
    assert!(tokenizer.eos_id().is_none_or(|id| back.eos_id() == Some(id)), "{name}");
    for text in texts {
        for (parse_special, add_special) in [(false, false), (true, true)] {
            let options = EncodeOptions { parse_special, add_special };
            let expected = tokenizer.encode_with(text, options);
            assert_eq!(back.encode_with(text, options), expected, "{name}: {text:?} {options:?}");
        }
    }
    // What the format leaves out has defaults once it was read; from then on all is the same.
    let second = file_of(&back).unwrap();
    assert_eq!(file_of(&Tokenizer::from_gguf(&second).unwrap()).unwrap(), second, "{name}");
}

/// Each comes back if nothing is said, or else is refused with this in the message.
fn assert_written_or_refused(name: &str, tokenizer: &Tokenizer, refused: &str) {
    if refused.is_empty() {
        return assert_comes_back(name, tokenizer);
    }
    let message = tokenizer.to_gguf().unwrap_err().to_string();
    assert!(message.contains(refused), "{name}: {message}");
}

#[test]
fn published_tokenizers_come_back_or_are_refused_by_name() {
    for (name, refused) in [
        ("bert", ""),
        ("bloom", "the split by ` ?[^(\\s|"),
        ("deepseek3", ""),
        ("falcon", "the pre_tokenizer `Sequence`"),
        // Trained by Hugging Face on few merges: unlike sentencepiece's, not all that the tokens allow.
        ("gemma", "which do not merge to token"),
        ("gpt-neox", "`normalized` of the added token `    "),
        ("gpt2", ""),
        ("llama2", "which do not merge to token"),
        ("llama3", ""),
        ("mistral", "the pre_tokenizer `Metaspace`"),
        ("o200k", ""),
        ("phi3", "`rstrip` of the added token `</s>`"),
        ("roberta", "`lstrip` of the added token `<mask>`"),
        ("starcoder", ""),
        ("t5", "the pre_tokenizer `Metaspace`"),
        ("tekken", ""),
        ("xlm-roberta", "`lstrip` of the added token `<mask>`"),
    ] {
        let tokenizer = Tokenizer::load(fixture(&format!("exactness/{name}.json"))).unwrap();
        assert_written_or_refused(name, &tokenizer, refused);
    }
}

#[test]
fn nfc_before_bytes_is_left_out_and_said() {
    let mut json: Json =
        serde_json::from_str(&fs::read_to_string(fixture("exactness/qwen2.json")).unwrap()).unwrap();
    let read = |json: &Json| Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    for normalizer in [json!({"type": "NFC"}), json!({"type": "Sequence", "normalizers": [{"type": "NFC"}]})]
    {
        json["normalizer"] = normalizer;
        let tokenizer = read(&json);
        let left_out = tokenizer.to_gguf().unwrap().left_out;
        assert_eq!(left_out, ["the normalizer `NFC`: text that is not composed gets other ids"]);
        // Text comes back composed, so what comes back as it was is composed.
        let is_composed = |text: &String| tokenizer.decode(&tokenizer.encode(text)).unwrap() == *text;
        let (composed, others): (Vec<String>, Vec<String>) = texts().into_iter().partition(is_composed);
        assert!(composed.len() > 300 && others.contains(&"e\u{301}".to_owned()));
        assert_texts_come_back("qwen2", &tokenizer, &composed);
        let back = Tokenizer::from_gguf(&file_of(&tokenizer).unwrap()).unwrap();
        assert_ne!(back.encode("e\u{301}"), tokenizer.encode("e\u{301}"));
    }
    for (normalizer, refused) in [
        (json!({"type": "NFKC"}), "the normalizer `NFKC`"),
        (
            json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
            "the normalizer `Sequence`",
        ),
    ] {
        json["normalizer"] = normalizer;
        assert_written_or_refused("qwen2", &read(&json), refused);
    }
}

#[test]
fn trained_tokenizers_come_back_or_are_refused_by_name() {
    for (name, tokenizer) in trained() {
        let refused = if *name == "flint-char" { "a vocabulary of characters" } else { "" };
        assert_written_or_refused(name, tokenizer, refused);
    }
}

#[test]
fn sentencepiece_models_come_back_or_are_refused_by_name() {
    let not_identity = "BPE after sentencepiece's normalizer, other than the identity";
    let spaces = "spaces after words, or as they are, in sentencepiece's normalizer";
    for (name, refused) in [
        ("bpe", not_identity),
        ("bpe-bytes", ""),
        ("bpe-phrases", not_identity),
        ("bpe-suffix", spaces),
        ("bpe-symbols", not_identity),
        ("bpe-unused", "unused tokens of BPE"),
        ("unigram", ""),
        ("unigram-bytes", "Unigram with byte fallback"),
        ("unigram-suffix", spaces),
        ("unigram-symbols", "user-defined or unused tokens of Unigram"),
        ("unigram-unused", "user-defined or unused tokens of Unigram"),
    ] {
        let tokenizer = Tokenizer::load(fixture(&format!("models/{name}.model"))).unwrap();
        assert_written_or_refused(name, &tokenizer, refused);
    }
}

/// As LLaMA's: sentencepiece's merges in the parts of a `tokenizer.json`.
fn llama_like() -> Json {
    let mut tokens = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["\u{2581}", "a", "b", "c", "\u{2581}a", "ab", "\u{2581}ab", "abc"].map(str::to_owned));
    let vocab: serde_json::Map<String, Json> =
        tokens.into_iter().zip(0..).map(|(token, id): (String, u32)| (token, id.into())).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": ["\u{2581} a", "a b", "\u{2581}a b", "\u{2581} ab", "ab c"]},
    })
}

#[test]
fn ranks_become_scores_where_these_say_the_same() {
    let written = |json: &Json| Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    let tokenizer = written(&llama_like());
    assert_comes_back("llama-like", &tokenizer);
    let back = Tokenizer::from_gguf(&file_of(&tokenizer).unwrap()).unwrap();
    for text in ["abc", "ab ab cab", " abcabc", "xaby", "bbaabcc a\u{e9}"] {
        assert_eq!(back.encode(text), tokenizer.encode(text), "{text:?}");
        assert_eq!(back.decode(&back.encode(text)).unwrap(), text);
    }
    for (merges, refused) in [
        (
            json!(["\u{2581} a", "a b", "\u{2581}a b", "ab c"]),
            "`\u{2581}` and `ab`, which do not merge to token 265",
        ),
        (
            json!(["\u{2581} a", "a b", "\u{2581}a b", "ab c", "\u{2581} ab"]),
            "merges into `\u{2581}ab` with others between them",
        ),
    ] {
        let mut json = llama_like();
        json["model"]["merges"] = merges;
        assert_written_or_refused("llama-like", &written(&json), refused);
    }
    for (part, value, refused) in [
        ("normalizer", Json::Null, "spaces that do not become U+2581"),
        ("normalizer", json!({"type": "NFC"}), "the normalizer `NFC`"),
        ("pre_tokenizer", json!({"type": "Whitespace"}), "the pre_tokenizer `Whitespace`"),
    ] {
        let mut json = llama_like();
        json[part] = value;
        assert_written_or_refused("llama-like", &written(&json), refused);
    }
    for (setting, value, refused) in [
        ("ignore_merges", json!(true), "`ignore_merges`"),
        ("unk_token", Json::Null, "no token for what is unknown"),
    ] {
        let mut json = llama_like();
        json["model"][setting] = value;
        assert_written_or_refused("llama-like", &written(&json), refused);
    }
}

#[test]
fn real_vocabularies_come_back() {
    let Some(assets) = assets() else { return };
    for (name, refused) in [
        ("tokenizers/vocab-suites/ggml-vocab-gpt-2.gguf", ""),
        ("tokenizers/vocab-suites/ggml-vocab-qwen2.gguf", ""),
        ("tokenizers/vocab-suites/ggml-vocab-bert-bge.gguf", ""),
        ("tokenizers/vocab-suites/ggml-vocab-phi-3.gguf", ""),
        ("tokenizers/gpt2/encoder.json", ""),
        ("tokenizers/tiktoken/cl100k_base.tiktoken", ""),
        // llama.cpp always merges behind this split.
        ("tokenizers/tiktoken/o200k_base.tiktoken", "with pieces that are tokens kept whole"),
        ("models/stories260k/stories260K-f32.gguf", ""),
        ("models/stories260k/hf/tokenizer.json", ""),
        ("models/stories260k/hf/tokenizer.model", ""),
    ] {
        assert_written_or_refused(name, &Tokenizer::load(assets.join(name)).unwrap(), refused);
    }
}

#[test]
fn values_of_every_type_come_back() {
    let values: Vec<(String, Value)> = [
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-100)),
        ("u16", Value::U16(60_000)),
        ("i16", Value::I16(-30_000)),
        ("u32", Value::U32(4_000_000_000)),
        ("i32", Value::I32(-2_000_000_000)),
        ("u64", Value::U64(u64::MAX)),
        ("i64", Value::I64(i64::MIN)),
        ("f32", Value::F32(0.1)),
        ("f64", Value::F64(0.1)),
        ("bool", Value::Bool(true)),
        ("text", "line\n\u{1b}[2J".into()),
        ("long", "\u{e9}".repeat(1000).into()),
        ("empty", Value::Array(Array::String(Vec::new()))),
        ("u8s", vec![1u8, 2].into()),
        ("i8s", vec![-1i8, 2].into()),
        ("u16s", vec![1u16].into()),
        ("i16s", vec![-1i16].into()),
        ("u32s", vec![1u32, u32::MAX].into()),
        ("i32s", vec![-1i32, 7].into()),
        ("u64s", vec![u64::MAX].into()),
        ("i64s", vec![i64::MIN].into()),
        ("f32s", (0..9).map(|n| n as f32 / 2.0).collect::<Vec<_>>().into()),
        ("f64s", vec![0.5f64].into()),
        ("bools", vec![true, false].into()),
        ("texts", vec!["a".to_owned(), "\"".to_owned()].into()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec();
    let mut file = write_head(7, &values).unwrap();
    let end = file.len();
    file.extend(b"what follows");
    let header = Header::parse(&file).unwrap();
    assert_eq!((header.version(), header.n_tensors(), header.end()), (3, 7, end));
    let found: Vec<(String, Value)> =
        header.entries().map(|(key, entry)| (key.to_owned(), entry.to_value().unwrap())).collect();
    assert_eq!(found, values);
    for (key, shown) in [
        ("u64", "18446744073709551615"),
        ("f32", "0.1"),
        ("bool", "true"),
        ("text", r#""line\n\u{1b}[2J""#),
        ("empty", "[]"),
        ("i8s", "[-1, 2]"),
        ("f32s", "[0, 0.5, 1, 1.5, 2, 2.5, ...] (9 in all)"),
        ("texts", r#"["a", "\""]"#),
    ] {
        let entry = header.entries().find(|(other, _)| *other == key).unwrap().1;
        assert_eq!(entry.to_string(), shown, "{key}");
    }
    let long = header.entries().find(|(key, _)| *key == "long").unwrap().1.to_string();
    assert_eq!(long, format!("\"{}\"...", "\u{e9}".repeat(72)));
}

#[test]
fn values_are_read_as_what_they_are() {
    let values: Vec<(String, Value)> = [
        ("u64", Value::U64(u64::MAX)),
        ("i32", Value::I32(-3)),
        ("u16", Value::U16(9)),
        ("f32", Value::F32(0.1)),
        ("f64", Value::F64(0.1)),
        ("bools", vec![true, false].into()),
        ("u32s", vec![u32::MAX].into()),
        ("i32s", vec![-1i32].into()),
        ("f32s", vec![0.5f32].into()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec();
    let file = write_head(0, &values).unwrap();
    let header = Header::parse(&file).unwrap();
    assert_eq!(header.count("u64").unwrap(), Some(u64::MAX));
    assert_eq!(header.count("u16").unwrap(), Some(9));
    assert_eq!(header.count("none").unwrap(), None);
    assert!(header.count("i32").unwrap_err().to_string().contains("`i32` is -3, which is no count"));
    assert!(header.count("f32").unwrap_err().to_string().contains("`f32` is F32"));
    assert_eq!(header.float("f32").unwrap().map(|value| value as f32), Some(0.1));
    assert_eq!(header.float("f64").unwrap(), Some(0.1));
    assert!(header.float("u16").is_err());
    assert_eq!(header.flags("bools").unwrap(), Some(vec![true, false]));
    assert_eq!(header.numbers("u32s").unwrap(), Some(vec![i64::from(u32::MAX)]));
    assert_eq!(header.numbers("i32s").unwrap(), Some(vec![-1]));
    assert_eq!(header.floats("f32s").unwrap(), Some(vec![0.5]));
    assert_eq!(header.floats("i32s").unwrap(), Some(vec![-1.0]));
    assert!(header.is_array("f32s").unwrap() && !header.is_array("f32").unwrap());
    assert!(!header.is_array("none").unwrap());
    assert_eq!(header.alignment().unwrap(), 32);
    for (value, refused) in [
        (Value::U32(0), "is 0, which is no power of two"),
        (Value::U32(13), "is 13, which is no power of two"),
        (Value::I32(32), "is I32, but should be one of [U32]"),
    ] {
        // Such a file is not written either, so the key is put in afterwards.
        let key = ("general.alignmenT".to_owned(), value.clone());
        let mut file = write_head(0, &[key]).unwrap();
        let at = file.iter().position(|&byte| byte == b'T').unwrap();
        file[at] = b't';
        let problem = Header::parse(&file).unwrap().alignment().unwrap_err().to_string();
        assert!(problem.contains(refused), "{problem}");
        let written = write_head(0, &[("general.alignment".to_owned(), value)]).unwrap_err().to_string();
        assert!(written.contains("no power of two"), "{written}");
    }
    assert!(
        write_head(0, &[(String::new(), 1u8.into())]).unwrap_err().to_string().contains("a key is empty")
    );
}
