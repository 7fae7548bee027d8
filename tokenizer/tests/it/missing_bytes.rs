//! Byte-level vocabularies that have no token for some bytes, against Hugging Face's ids, offsets and texts.
//!
//! `tools/tokenizer_missing_bytes.py` makes the fixture. `FLINT_MISSING_BYTES` may name another one, with more strings, and
//! `FLINT_MISSING_BYTES_GGUF` the GGUF that it was made from.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};
use tokenizer::gguf::write_head;
use tokenizer::{EncodeOptions, Tokenizer};

use crate::fixture;
use crate::small::alphabet;

#[derive(Deserialize)]
struct Fixture {
    missing: Vec<u8>,
    texts: Vec<String>,
    cases: Vec<Case>,
}

/// What Hugging Face does with a `tokenizer.json`, for each text.
#[derive(Deserialize)]
struct Case {
    file: Value,
    ids: Vec<Vec<u32>>,
    decoded: Vec<String>,
    /// Where tokens came from; nothing if Hugging Face loses count.
    offsets: Option<Vec<Vec<(usize, usize)>>>,
}

fn read() -> Fixture {
    let path = std::env::var_os("FLINT_MISSING_BYTES").map(PathBuf::from);
    let text = std::fs::read(path.unwrap_or_else(|| fixture("missing-bytes.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The tokenizers of the fixture.
fn tokenizers(fixture: &Fixture) -> Vec<Tokenizer> {
    let gguf = std::env::var_os("FLINT_MISSING_BYTES_GGUF").map(PathBuf::from);
    let open = |case: &Case| match &gguf {
        Some(path) => Tokenizer::load(path).unwrap(),
        None => Tokenizer::from_json(case.file.to_string().as_bytes()).unwrap(),
    };
    fixture.cases.iter().map(open).collect()
}

const PLAIN: EncodeOptions = EncodeOptions { parse_special: false, add_special: false };

#[test]
fn ids_and_texts_are_those_of_hugging_face() {
    let fixture = read();
    for (idx, (tokenizer, case)) in tokenizers(&fixture).iter().zip(&fixture.cases).enumerate() {
        assert_eq!(tokenizer.missing_bytes(), fixture.missing, "case {idx}");
        // Twice: by merging, and from the cache.
        for _ in 0..2 {
            for (text, ids) in fixture.texts.iter().zip(&case.ids) {
                assert_eq!(&tokenizer.encode(text), ids, "case {idx}: {text:?}");
            }
        }
        assert_eq!(tokenizer.encode_batch(&fixture.texts), case.ids, "case {idx}");
        for (ids, text) in case.ids.iter().zip(&case.decoded) {
            assert_eq!(&tokenizer.decode(ids).unwrap(), text, "case {idx}");
            let mut stream = tokenizer.decode_stream();
            let mut streamed: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
            streamed.extend(stream.finish());
            assert_eq!(&streamed, text, "case {idx}");
        }
    }
}

#[test]
fn offsets_are_those_of_hugging_face_or_hold_what_was_left_out() {
    let fixture = read();
    for (idx, (tokenizer, case)) in tokenizers(&fixture).iter().zip(&fixture.cases).enumerate() {
        for (text_idx, text) in fixture.texts.iter().enumerate() {
            let (ids, ranges): (Vec<u32>, Vec<_>) = tokenizer.encode_offsets(text, PLAIN).into_iter().unzip();
            assert_eq!(ids, case.ids[text_idx], "case {idx}: {text:?}");
            if let Some(offsets) = &case.offsets {
                let found: Vec<_> = ranges.iter().map(|range| (range.start, range.end)).collect();
                assert_eq!(&found, &offsets[text_idx], "case {idx}: {text:?}");
            }
            for range in &ranges {
                assert!(text.get(range.clone()).is_some(), "case {idx}: {range:?} of {text:?}");
            }
            assert!(ranges.is_sorted_by_key(|range| range.start), "case {idx}: {ranges:?}");
            // The first case has nothing around its model, so tokens of ASCII are the bytes that are not missing.
            if idx == 0 && text.is_ascii() {
                for (id, range) in ids.into_iter().zip(ranges) {
                    let kept: Vec<u8> =
                        text[range].bytes().filter(|byte| !fixture.missing.contains(byte)).collect();
                    assert_eq!(tokenizer.token_bytes(id).unwrap(), kept, "case {idx}: {text:?}");
                }
            }
        }
    }
}

#[test]
fn what_is_written_is_the_same_tokenizer() {
    let fixture = read();
    for (idx, tokenizer) in tokenizers(&fixture).iter().enumerate() {
        let back = Tokenizer::from_json(tokenizer.to_json().unwrap().as_bytes()).unwrap();
        assert_eq!(back.hash(), tokenizer.hash(), "case {idx}");
        assert_eq!(back.missing_bytes(), fixture.missing, "case {idx}");
        assert_eq!(back.encode_batch(&fixture.texts), tokenizer.encode_batch(&fixture.texts), "case {idx}");
        match tokenizer.to_gguf() {
            // NFC, of the sixth, is left out.
            Ok(written) => {
                assert_eq!(written.left_out.is_empty(), idx != 5, "case {idx}");
                let back = Tokenizer::from_gguf(&write_head(0, &written.values).unwrap()).unwrap();
                assert_eq!(back.missing_bytes(), fixture.missing, "case {idx}");
                for text in fixture.texts.iter().filter(|text| idx != 5 || text.is_ascii()) {
                    assert_eq!(back.encode(text), tokenizer.encode(text), "case {idx}: {text:?}");
                }
            }
            // GPT-2's split is one that the format can say, with and without digits by themselves.
            Err(error) => assert!(idx > 1 && idx != 5, "case {idx}: {error}"),
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(tokenizer.save_tiktoken(dir.path().join("ranks")).is_err(), "case {idx}");
    }
}

/// A `tokenizer.json` with GPT-2's split, whose bytes are those of `has`.
fn file(has: impl Fn(u8) -> bool, merges: &[(&str, &str)]) -> Value {
    let spelled = Tokenizer::from_json(&std::fs::read(fixture("flint-gpt2.json")).unwrap()).unwrap();
    let is_kept = |c: &char| {
        let id = spelled.token_to_id(&c.to_string()).unwrap();
        has(spelled.token_bytes(id).unwrap()[0])
    };
    let mut tokens: Vec<String> = alphabet().into_iter().filter(is_kept).map(String::from).collect();
    tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let vocab: serde_json::Map<String, Value> =
        tokens.into_iter().zip(0..).map(|(token, id)| (token, json!(id))).collect();
    let merges: Vec<Value> = merges.iter().map(|(left, right)| json!([left, right])).collect();
    json!({"version": "1.0", "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges}})
}

fn load(file: &Value) -> Result<Tokenizer, String> {
    Tokenizer::from_json(file.to_string().as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn pieces_of_every_length_merge_across_what_is_left_out() {
    let merges = [("a", "b"), ("ab", "c"), ("c", "a"), ("abc", "abc"), ("b", "b"), ("abcabc", "abcabc")];
    let tokenizer = load(&file(|byte| byte != b'q', &merges)).unwrap();
    // In an array, in rounds, by the queue, and by tables once that is worth it.
    for len in [2, 5, 15, 16, 63, 64, 65, 128, 200, 256, 257, 1000, 400_000] {
        let text: String =
            (0..len).map(|i: u64| ['a', 'q', 'b', 'c', 'q'][(i * i * 31 % 97 % 5) as usize]).collect();
        for text in [&text[..], &"aqbqcqa".repeat(len as usize / 7), &"q".repeat(len as usize)] {
            let ids = tokenizer.encode(text);
            assert_eq!(ids, tokenizer.encode(&text.replace('q', "")), "{len} letters");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text.replace('q', ""), "{len} letters");
        }
    }
}

#[test]
fn bytes_that_are_no_text_need_all_tokens() {
    let all = load(&file(|_| true, &[])).unwrap();
    assert!(all.missing_bytes().is_empty());
    assert_eq!(all.decode_bytes(&all.encode_bytes(b"a\xffb")).unwrap(), b"a\xffb");
    let most = load(&file(|byte| byte != b'q', &[])).unwrap();
    assert_eq!(most.missing_bytes(), b"q");
    assert_eq!(most.decode_bytes(&most.encode_bytes(b"aq\xffb")).unwrap(), "a\u{fffd}b".as_bytes());
    assert_eq!(most.encode_bytes("aqb".as_bytes()), most.encode("ab"));
    let none = load(&file(|_| false, &[])).unwrap();
    assert_eq!((none.missing_bytes().len(), none.encode("any text").len()), (256, 0));
}

#[test]
fn an_unknown_token_decides_ids_only_where_bytes_are_missing() {
    let with_unk = |unk: &str, fuse: bool, has: fn(u8) -> bool| {
        let mut file = file(has, &[("a", "b")]);
        file["model"]["unk_token"] = json!(unk);
        file["model"]["fuse_unk"] = json!(fuse);
        file
    };
    let hash = |file: &Value| load(file).unwrap().hash();
    let all: fn(u8) -> bool = |_| true;
    let most: fn(u8) -> bool = |byte| byte != b'q';
    assert_eq!(hash(&with_unk("!", false, all)), hash(&file(all, &[("a", "b")])));
    assert_ne!(hash(&with_unk("!", false, most)), hash(&file(most, &[("a", "b")])));
    assert_ne!(hash(&with_unk("!", false, most)), hash(&with_unk("!", true, most)));
    assert_ne!(hash(&with_unk("!", false, most)), hash(&with_unk("?", false, most)));
    let refused = |file: &Value| load(file).unwrap_err();
    assert!(refused(&with_unk("a", false, most)).contains("merges with the `unk_token` `a`"));
    assert!(refused(&with_unk("ab", false, most)).contains("merges with the `unk_token` `ab`"));
    assert!(refused(&with_unk("none", false, most)).contains("`unk_token` `none`"));
    let written = load(&with_unk("!", false, most)).unwrap().to_gguf().unwrap_err().to_string();
    assert!(written.contains("the `unk_token` `!` for byte 0x71"), "{written}");
}

#[test]
fn a_byte_that_only_a_special_token_spells_is_refused() {
    let mut file = file(|_| true, &[]);
    let id = file["model"]["vocab"]["q"].clone();
    file["added_tokens"] = json!([{"id": id, "content": "q", "special": true}]);
    assert_eq!(load(&file).unwrap_err(), "no token stands for byte 0x71");
}
