//! Files are hostile: each of these is an error that names the place or the part, and none is a panic.

use std::time::{Duration, Instant};

use rayon::prelude::*;
use serde_json::{Value, json};
use tokenizer::{EncodeOptions, Error, Tokenizer};

use crate::small::{self, Format};
use crate::{fixture, trained};

fn file(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

/// Changes one value of a good file and gives the message.
fn refused(name: &str, pointer: &str, value: Value) -> String {
    let mut file = file(name);
    *file.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is in {name}")) = value;
    message(file.to_string().as_bytes())
}

fn message(json: &[u8]) -> String {
    Tokenizer::from_json(json).expect_err("the file is bad").to_string()
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let unknown = "unknown variant `Magic`";
    for (name, pointer, value, expected) in [
        ("flint-gpt2.json", "/version", json!("2.0"), "version: `2.0`"),
        ("flint-gpt2.json", "/truncation", json!({"max_length": 8}), "missing field `strategy`"),
        ("flint-gpt2.json", "/normalizer", json!({"type": "Magic"}), unknown),
        ("flint-gpt2.json", "/normalizer", json!({"type": "NFC", "form": 1}), "unknown field `form`"),
        ("flint-gpt2.json", "/pre_tokenizer", json!({"type": "Magic"}), unknown),
        ("flint-gpt2.json", "/post_processor", json!({"type": "Magic"}), unknown),
        (
            "flint-gpt2.json",
            "/post_processor",
            json!({"type": "TemplateProcessing"}),
            "missing field `single`",
        ),
        ("flint-gpt2.json", "/decoder", json!({"type": "Magic"}), unknown),
        ("flint-gpt2.json", "/model", json!({"type": "Magic"}), "model: `Magic`"),
        (
            "flint-gpt4.json",
            "/pre_tokenizer/pretokenizers/0/pattern/Regex",
            json!(r"(a)\1"),
            "pre_tokenizer: ",
        ),
        ("flint-gpt4.json", "/pre_tokenizer/pretokenizers/0/pattern/Regex", json!("("), "pre_tokenizer: "),
        (
            "flint-gpt4.json",
            "/pre_tokenizer/pretokenizers/0/pattern/Regex",
            json!("(a{1000}){1000}"),
            "pre_tokenizer: ",
        ),
        (
            "flint-gpt2.json",
            "/model",
            json!({"type": "Unigram", "vocab": [["a", 0.5]]}),
            "`ByteLevel` before a model that is not BPE",
        ),
        ("flint-gpt2.json", "/model/dropout", json!(0.1), "model: dropout 0.1"),
        ("flint-gpt2.json", "/model/end_of_word_suffix", json!("</w>"), "model: end_of_word_suffix `</w>`"),
        ("flint-gpt2.json", "/model/byte_fallback", json!(true), "model: byte_fallback true"),
    ] {
        let message = refused(name, pointer, value);
        assert!(message.contains(expected), "{pointer}: {message}");
    }
}

#[test]
fn bad_vocabularies_are_refused_with_the_token() {
    for (name, pointer, value, expected) in [
        ("flint-gpt2.json", "/model/vocab/!", json!(6), "both have id 6"),
        ("flint-gpt2.json", "/model/vocab/!", json!(u32::MAX), "token `!` has id 4294967295, but 600 tokens"),
        ("flint-gpt2.json", "/model/vocab/!", json!(u64::MAX), "invalid value"),
        ("flint-gpt2.json", "/model/vocab/!", json!(-1), "invalid value"),
        ("flint-gpt2.json", "/model/vocab/<|user|>", json!(2), "stands twice, with ids 2 and 1"),
        ("flint-gpt2.json", "/added_tokens/0/id", json!(7), "stands twice, with ids 0 and 7"),
        ("flint-gpt2.json", "/added_tokens/0/content", json!(""), "both have id 0"),
        ("flint-char.json", "/added_tokens/0/content", json!("<|user|>"), "stands twice, with ids 1 and 0"),
        ("flint-gpt2.json", "/model/merges/3", json!("Ġ nowhere"), "merge 3, `Ġ` + `nowhere`: one of them"),
        ("flint-gpt2.json", "/model/merges/3", json!("! z"), "merge 3, `!` + `z`: what they spell together"),
        ("flint-gpt2.json", "/model/merges/3", json!("!!"), "two tokens, as"),
        ("flint-gpt2.json", "/model/merges/3", json!(["!"]), "invalid length 1"),
        ("flint-gpt2.json", "/model/merges/3", json!(["!", "!", "!"]), "invalid length 3"),
        ("flint-gpt2.json", "/model/merges/3", json!(7), "invalid type"),
        ("flint-gpt2.json", "/model/vocab", json!({}), "one of them is not in the vocabulary"),
        ("flint-gpt2.json", "/model/vocab", json!([]), "invalid type"),
    ] {
        let message = refused(name, pointer, value);
        assert!(message.contains(expected), "{pointer}: {message}");
    }
}

#[test]
fn a_missing_byte_is_named() {
    let mut gpt2 = file("flint-gpt2.json");
    let id = gpt2["model"]["vocab"]["Ā"].clone();
    gpt2["added_tokens"][0] = json!({"id": id, "content": "Ā", "special": true});
    assert_eq!(message(gpt2.to_string().as_bytes()), "no token stands for byte 0x00");
    let text = file("flint-char.json").to_string().replace("<0xFE>", "<0xfe>");
    assert!(message(text.as_bytes()).contains("token `<0xfe>`"), "{}", message(text.as_bytes()));
}

#[test]
fn a_special_token_that_text_would_produce_is_refused() {
    let mut gpt2 = file("flint-gpt2.json");
    let merged = gpt2["model"]["merges"][0].as_str().unwrap().replace(' ', "");
    let id = gpt2["model"]["vocab"][&merged].clone();
    gpt2["added_tokens"][0] = json!({"id": id, "content": merged, "special": true});
    assert!(message(gpt2.to_string().as_bytes()).contains("special tokens do not take part in merges"));
    let mut char_level = file("flint-char.json");
    let id = char_level["model"]["vocab"]["e"].clone();
    char_level["added_tokens"][0] = json!({"id": id, "content": "e", "special": true});
    assert!(message(char_level.to_string().as_bytes()).contains("special token `e` is a single character"));
}

#[test]
fn entries_that_stand_twice_are_refused() {
    let text = std::fs::read_to_string(fixture("flint-gpt2.json")).unwrap();
    let twice = text.replacen("\"!\": 5,", "\"!\": 5, \"!\": 5,", 1);
    assert!(message(twice.as_bytes()).starts_with("token `!` stands twice"));
    let merges = file("flint-gpt2.json");
    let first = merges["model"]["merges"][0].clone();
    let message_of_merge = refused("flint-gpt2.json", "/model/merges/1", first);
    assert!(message_of_merge.contains("the pair stands twice"), "{message_of_merge}");
    let field = text.replacen("\"version\"", "\"model\": {}, \"version\"", 1);
    assert!(message(field.as_bytes()).contains("duplicate field"));
}

#[test]
fn broken_text_is_refused_with_its_place() {
    let text = std::fs::read_to_string(fixture("flint-gpt4.json")).unwrap();
    let line_of = |needle: &str| 1 + text[..text.find(needle).unwrap()].matches('\n').count();
    let bad_id = text.replacen("\"!\": 5,", "\"!\": true,", 1);
    let place = format!("line {}, column ", line_of("\"!\": 5,"));
    assert!(message(bad_id.as_bytes()).starts_with(&place), "{}", message(bad_id.as_bytes()));
    let unknown = text.replacen("\"fuse_unk\"", "\"fuse\"", 1);
    assert!(message(unknown.as_bytes()).contains("unknown field `fuse`"));
    let mut bytes = text.clone().into_bytes();
    bytes[0] = 0xff;
    assert_eq!(message(&bytes), "line 1, column 1: the text is not UTF-8");
    for junk in [&b""[..], b"null", b"[]", b"{}", b"{\"model\": 3}", b"\"x\""] {
        assert!(matches!(Tokenizer::from_json(junk), Err(Error::Json { .. })), "{junk:?}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let text = std::fs::read(fixture("flint-char.json")).unwrap();
    let end = text.iter().rposition(|&byte| byte == b'}').unwrap();
    for len in (0..=end).step_by(7).chain([end]) {
        assert!(Tokenizer::from_json(&text[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn deep_nesting_is_an_error() {
    for field in ["normalizer", "pre_tokenizer", "decoder", "model", "added_tokens", "version"] {
        for open in ["[", "{\"a\":"] {
            let json = format!("{{\"{field}\": {}", open.repeat(200_000));
            assert!(Tokenizer::from_json(json.as_bytes()).is_err());
            let mut closed = json;
            closed.push('1');
            closed.push_str(&if open == "[" { "]" } else { "}" }.repeat(200_000));
            closed.push('}');
            assert!(Tokenizer::from_json(closed.as_bytes()).is_err());
        }
    }
}

#[test]
fn an_error_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let missing = Tokenizer::load(&path).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read `") && missing.contains("tokenizer.json"), "{missing}");
    std::fs::write(&path, "{").unwrap();
    let broken = Tokenizer::load(&path).unwrap_err().to_string();
    assert!(broken.contains("tokenizer.json`: line 1, column "), "{broken}");
}

#[test]
fn an_error_in_the_merges_names_their_file() {
    let (vocab, merges) = small::gpt2();
    for (more, expected) in [("a\n", "byte "), ("Ġ nowhere\n", "merge 5"), ("t t\n", "merge 5")] {
        let error =
            small::read_gpt2(&vocab, &[&merges[..], more.as_bytes()].concat()).unwrap_err().to_string();
        assert!(error.contains("merges.txt`: ") && error.contains(expected), "{error}");
    }
    let error = small::read_gpt2(b"{\"a\": true}", &merges).unwrap_err().to_string();
    assert!(error.contains("vocab.json`: line 1, column ") && !error.contains("at line"), "{error}");
}

#[test]
fn a_folder_has_the_tokenizer_with_a_known_name_or_a_single_one() {
    let dir = tempfile::tempdir().unwrap();
    let error = || Tokenizer::load(dir.path()).unwrap_err().to_string();
    std::fs::write(dir.path().join("notes.txt"), "no tokenizer").unwrap();
    for sought in ["`tokenizer.json`", "`vocab.json`", "`*.gguf`", "`*.tiktoken`"] {
        assert!(error().contains(sought), "{}", error());
    }
    let write = |name: &str, format: Format| {
        let (_, file) = small::files().into_iter().find(|(other, _)| *other == format).unwrap();
        std::fs::write(dir.path().join(name), &file).unwrap();
        format.read(&file).unwrap().hash()
    };
    let gguf = write("b.gguf", Format::Gguf);
    assert_eq!(Tokenizer::load(dir.path()).unwrap().hash(), gguf);
    let model = write("a.model", Format::SentencePiece);
    assert!(error().contains("`a.model`, `b.gguf`"), "{}", error());
    std::fs::remove_file(dir.path().join("b.gguf")).unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().hash(), model);
    let json = write("tokenizer.json", Format::Json);
    assert_eq!(Tokenizer::load(dir.path()).unwrap().hash(), json);
}

#[test]
fn many_keys_take_no_quadratic_time() {
    let n_keys = 300_000u64;
    let mut file = [&b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0"[..], &n_keys.to_le_bytes()].concat();
    for n in 0..n_keys {
        let key = format!("tokenizer.{n:06}");
        file.extend([&16u64.to_le_bytes()[..], key.as_bytes(), &0u32.to_le_bytes(), &[1]].concat());
    }
    let start = Instant::now();
    assert!(Tokenizer::from_gguf(&file).unwrap_err().to_string().contains("is missing"));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn saving_replaces_the_file_and_leaves_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    for (_, tokenizer) in trained() {
        tokenizer.save(&path).unwrap();
        assert_eq!(Tokenizer::load(&path).unwrap().hash(), tokenizer.hash());
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(matches!(
        trained()[0].1.save(dir.path().join("no/such/dir")),
        Err(Error::Io { action: "write", .. })
    ));
}

#[test]
fn files_as_hugging_face_spells_them_are_read() {
    let expected = trained()[1].1.hash();
    let mut gpt2 = file("hf-gpt2.json");
    gpt2["post_processor"] = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false});
    gpt2["model"]["unk_token"] = json!("<|endoftext|>");
    gpt2["model"]["continuing_subword_prefix"] = json!("");
    let pairs = gpt2["model"]["merges"].as_array().unwrap().clone();
    let as_strings: Vec<Value> = pairs
        .iter()
        .map(|pair| match pair {
            Value::Array(both) => {
                json!(format!("{} {}", both[0].as_str().unwrap(), both[1].as_str().unwrap()))
            }
            other => other.clone(),
        })
        .collect();
    gpt2["model"]["merges"] = Value::Array(as_strings);
    let model = gpt2["model"].as_object_mut().unwrap();
    model.remove("type");
    model.remove("ignore_merges");
    assert_eq!(Tokenizer::from_json(gpt2.to_string().as_bytes()).unwrap().hash(), expected);
    // Special tokens that are listed only as added tokens: they follow the others.
    let vocab = gpt2["model"]["vocab"].as_object_mut().unwrap();
    vocab.retain(|token, _| !token.starts_with("<|"));
    assert!(message(gpt2.to_string().as_bytes()).contains("both have id 595"));
    let vocab = gpt2["model"]["vocab"].as_object_mut().unwrap();
    vocab.values_mut().for_each(|id| *id = json!(id.as_u64().unwrap() - 5));
    let listed = Tokenizer::from_json(gpt2.to_string().as_bytes()).unwrap();
    assert_eq!(listed.special_id("<|endoftext|>"), Some(595));
    let expected = listed.hash();
    // Whole tokens win over merges, but special tokens do not.
    gpt2["model"]["ignore_merges"] = json!(true);
    gpt2["model"]["merges"] = json!([]);
    let whole = Tokenizer::from_json(gpt2.to_string().as_bytes()).unwrap();
    assert_ne!(whole.hash(), expected);
    assert_eq!(whole.encode(" the").len(), 1);
    assert_eq!(whole.encode(" thez").len(), 5);
    let again = Tokenizer::from_json(whole.to_json().unwrap().as_bytes()).unwrap();
    assert_eq!(again.hash(), whole.hash());
}

/// A release build breaks small files in every place, a debug build in every thirteenth.
const STEP: usize = if cfg!(debug_assertions) { 13 } else { 1 };

/// Uses a tokenizer as anybody would: it may say anything but must not panic.
fn use_it(tokenizer: &Tokenizer) {
    for text in ["", "a b<s>", "the  é日\u{1f600}\u{301} <|endoftext|>12\n", "\u{2581}##a\u{0}\u{fffd}zz"] {
        for (parse_special, add_special) in [(false, false), (true, true)] {
            let options = EncodeOptions { parse_special, add_special };
            let ids = tokenizer.encode_with(text, options);
            tokenizer.decode(&ids).expect("its own ids");
            let placed = tokenizer.encode_offsets(text, options);
            assert!(placed.iter().map(|&(id, _)| id).eq(ids.iter().copied()), "{text:?}");
            assert!(placed.iter().all(|(_, range)| range.start <= range.end && range.end <= text.len()));
            let mut stream = tokenizer.decode_stream();
            ids.iter().for_each(|&id| drop(stream.push(id).expect("its own ids")));
            stream.finish();
        }
    }
    tokenizer.encode_bytes(b"a\xff\xe2\x82");
    tokenizer.hash();
    let _ = tokenizer.to_json();
}

/// Reads and uses a file that may be broken, in less than a second: once of three times, as another program may take the
/// processor at any moment.
fn try_it(format: Format, bytes: &[u8], what: impl std::fmt::Display) {
    let time = || {
        let start = Instant::now();
        if let Ok(tokenizer) = format.read(bytes) {
            use_it(&tokenizer);
        }
        start.elapsed()
    };
    assert!((0..3).any(|_| time() < Duration::from_secs(1)), "{format:?}, {what}: {:?}", time());
}

#[test]
fn every_prefix_of_every_format_is_an_error_or_usable() {
    for (format, file) in small::files() {
        assert!(file.len() <= 4096, "{format:?}: {} bytes", file.len());
        use_it(&format.read(&file).unwrap_or_else(|error| panic!("{format:?}: {error}")));
        (0..file.len()).into_par_iter().step_by(STEP).for_each(|len| try_it(format, &file[..len], len));
    }
}

#[test]
fn every_flipped_byte_of_every_format_is_an_error_or_usable() {
    // A debug build tries fewer values.
    let flips: &[u8] =
        if cfg!(debug_assertions) { &[0x01, 0xff] } else { &[0x01, 0x02, 0x10, 0x20, 0x40, 0x80, 0xff] };
    for (format, file) in small::files() {
        (0..file.len()).into_par_iter().step_by(STEP).for_each(|at| {
            for flip in flips {
                let mut broken = file.clone();
                broken[at] ^= flip;
                try_it(format, &broken, format_args!("byte {at} ^ {flip:#x}"));
            }
            // Numbers grow and shrink by whole digits.
            for digit in [b'9', b'0', b'-'] {
                let mut broken = file.clone();
                broken[at] = digit;
                try_it(format, &broken, format_args!("byte {at} = {digit}"));
            }
        });
    }
}

/// A GGUF of a header that announces `n_values`, and then these bytes.
fn gguf(n_values: u64, rest: &[&[u8]]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend(0u64.to_le_bytes());
    file.extend(n_values.to_le_bytes());
    rest.iter().for_each(|part| file.extend_from_slice(part));
    file
}

#[test]
fn announced_numbers_are_checked_against_the_bytes_that_are_left() {
    let key = |name: &str| [&(name.len() as u64).to_le_bytes()[..], name.as_bytes()].concat();
    let array = |kind: u32, n: u64| [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &n.to_le_bytes()].concat();
    for n in [1_000_000_000, 1 << 32, 1 << 63, u64::MAX] {
        for kind in [0u32, 4, 6, 8, 10, 12] {
            for name in ["tokenizer.ggml.merges", "tokenizer.ggml.scores", "general.name"] {
                let file = gguf(1, &[&key(name), &array(kind, n), b"abc"]);
                let message = Tokenizer::from_gguf(&file).unwrap_err().to_string();
                assert!(message.contains(&n.to_string()) && message.contains("left"), "{message}");
            }
        }
        let message = Tokenizer::from_gguf(&gguf(n, &[])).unwrap_err().to_string();
        assert!(message.contains("byte 16 of GGUF") && message.contains("0 bytes are left"), "{message}");
        let message = Tokenizer::from_gguf(&gguf(1, &[&n.to_le_bytes(), b"abcdef"])).unwrap_err().to_string();
        assert!(message.contains("6 bytes are left"), "{message}");
    }
    // An array of arrays of arrays, 100,000 deep.
    let deep = [key("a"), array(9, 1).repeat(100_000)].concat();
    assert!(Tokenizer::from_gguf(&gguf(1, &[&deep])).unwrap_err().to_string().contains("array of arrays"));
}

/// Hole 4 of the list in RELIABILITY: llama.cpp read these arrays without a look at the type of their elements.
#[test]
fn arrays_of_another_type_than_they_should_be_are_refused_by_name() {
    for (name, element) in [("scores", 0u32), ("scores", 12), ("token_type", 6), ("tokens", 0), ("merges", 5)]
    {
        let name = format!("tokenizer.ggml.{name}");
        let file = small::gguf_with(&name, element);
        let message = Tokenizer::from_gguf(&file).unwrap_err().to_string();
        assert!(message.contains(&format!("`{name}` is an array of")), "{message}");
    }
}

/// llama.cpp finds out when the byte is needed.
#[test]
fn a_gguf_with_some_bytes_only_is_refused_by_the_missing_one() {
    let message = Tokenizer::from_gguf(&small::gguf_with_one_byte()).unwrap_err().to_string();
    assert_eq!(message, "no token stands for byte 0x00");
}

#[test]
fn merges_that_lead_nowhere_or_in_circles_are_refused_or_end() {
    let gpt2 = file("flint-gpt2.json");
    let with = |merges: Value, extra: &[&str]| {
        let mut file = gpt2.clone();
        for (idx, token) in extra.iter().enumerate() {
            file["model"]["vocab"][*token] = json!(600 + idx);
        }
        file["model"]["merges"] = merges;
        Tokenizer::from_json(file.to_string().as_bytes())
    };
    // A token of two is made before its parts are; such a merge just never happens, or happens late.
    let circular = with(json!([["xy", "x"], ["xyx", "y"], ["x", "y"]]), &["xy", "xyx", "xyxy"]).unwrap();
    assert_eq!(circular.decode(&circular.encode("xyxyxyx")).unwrap(), "xyxyxyx");
    let missing = with(json!([["x", "y"], ["xy", "z"]]), &["xy"]).unwrap_err().to_string();
    assert!(missing.contains("merge 1, `xy` + `z`: what they spell together"), "{missing}");
    let missing = with(json!([["x", "yy"]]), &[]).unwrap_err().to_string();
    assert!(missing.contains("merge 0, `x` + `yy`: one of them is not in the vocabulary"), "{missing}");
    let empty = with(json!([["", "x"]]), &[""]).unwrap();
    assert_eq!(empty.decode(&empty.encode("xx")).unwrap(), "xx", "nothing is no neighbour");
}

#[test]
fn wild_ids_are_refused_in_every_format() {
    let huge = u32::MAX.to_string();
    let rank = |id: &str| {
        let mut file = small::tiktoken();
        file.extend_from_slice(format!("YWJjZA== {id}\n").as_bytes());
        Format::Tiktoken.read(&file).unwrap_err().to_string()
    };
    assert!(rank(&huge).contains("the rank is not a number"), "{}", rank(&huge));
    assert!(rank("4294967294").contains("has id 4294967294, but 257 tokens"), "{}", rank("4294967294"));
    assert!(rank("18446744073709551616").contains("the rank is not a number"));
    assert!(rank("7").contains("both have id 7"), "{}", rank("7"));
    let (vocab, merges) = small::gpt2();
    let wild = String::from_utf8(vocab).unwrap().replacen("\"!\":0", "\"!\":4294967295", 1);
    let refused = small::read_gpt2(wild.as_bytes(), &merges).unwrap_err().to_string();
    assert!(refused.contains("token `!` has id 4294967295, but 262 tokens"), "{refused}");
    for id in [u32::MAX, 1 << 20] {
        let mut added = file("flint-gpt2.json");
        added["added_tokens"][0] = json!({"id": id, "content": "<new>", "special": true});
        let message = message(added.to_string().as_bytes());
        assert!(message.contains(&format!("token `<new>` has id {id}")), "{message}");
    }
}

/// Hole 10: patterns that other engines need ages for are linear here or refused.
#[test]
fn patterns_that_explode_elsewhere_end_in_time() {
    let text = "a".repeat(50_000) + "!";
    for pattern in [
        "(a+)+$",
        "(a|a)*b",
        "(a|aa)+$",
        "(.*a){20}",
        "(x+x+)+y",
        r"(?:a?){200}a{200}",
        r"^(([a-z])+.)+[A-Z]([a-z])+$",
        r"(?=(a+))a*b\1",
        "(?<!a)(a+)+$",
        r"\s+(?!\S)(a*)*b",
        "((((((a*)*)*)*)*)*)*$",
    ] {
        let start = Instant::now();
        for part in ["pre_tokenizer", "normalizer", "decoder"] {
            let mut file = file("hf-gpt2.json");
            file[part] = match part {
                "pre_tokenizer" => json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
                    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]}),
                _ => json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": "b"}),
            };
            match Tokenizer::from_json(file.to_string().as_bytes()) {
                Ok(tokenizer) => {
                    let decoded = tokenizer.decode(&tokenizer.encode(&text)).unwrap();
                    // Cutting loses nothing; what a replacement leaves is no other letter.
                    assert!(part != "pre_tokenizer" || decoded == text, "{pattern}");
                    assert!(decoded.chars().all(|c| matches!(c, 'a' | 'b' | '!')), "{pattern}: {decoded}");
                }
                Err(error) => {
                    let expected = format!("{part}: the regular expression `{pattern}`: ");
                    assert!(error.to_string().starts_with(&expected), "{error}");
                }
            }
        }
        let spent = start.elapsed();
        assert!(
            spent < Duration::from_secs(if cfg!(debug_assertions) { 20 } else { 3 }),
            "{pattern}: {spent:?}"
        );
    }
    for open in ["(", "(?:", "[a", "(a|"] {
        let pattern = open.repeat(100_000);
        let message =
            refused("flint-gpt4.json", "/pre_tokenizer/pretokenizers/0/pattern/Regex", json!(pattern));
        assert!(message.len() < 2000, "{} bytes of message", message.len());
        let closed = format!("{pattern}b{}", if open == "[a" { "]" } else { ")" }.repeat(100_000));
        let mut file = file("flint-gpt4.json");
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(closed);
        let _ = Tokenizer::from_json(file.to_string().as_bytes());
    }
}

/// Hole 9: llama.cpp counted in 32 bits with a sign. Seven megabytes in one piece, in time that grows with the length.
#[test]
fn seven_megabytes_in_one_piece_are_encoded_in_linear_time() {
    // A debug build takes a fiftieth.
    let n_bytes = if cfg!(debug_assertions) { 140_000 } else { 7_000_000 };
    for name in small::SHAPES {
        let tokenizer = Tokenizer::load(fixture(&format!("exactness/{name}.json"))).unwrap();
        for unit in ["a", "ab", "\u{1f600}", "\u{301}"] {
            let text = unit.repeat(n_bytes / unit.len());
            let time = |text: &str| {
                let start = Instant::now();
                let ids = tokenizer.encode(text);
                (start.elapsed(), ids.len())
            };
            // Eight times the text; twice that again for the caches, and a floor for what is too short to measure. Another
            // program may take the processor at any moment, so the best of a few tries counts.
            let mut tries = Vec::new();
            let is_linear = (0..4).any(|_| {
                let (short, n_short) = time(&text[..unit.len() * (text.len() / unit.len() / 8)]);
                let (long, n_ids) = time(&text);
                assert!(n_ids >= n_short && n_ids <= text.len() + 1, "{name}, {unit:?}: {n_ids} ids");
                tries.push((short, long));
                long < short * 24 + Duration::from_millis(300)
            });
            assert!(is_linear, "{name}, {unit:?}: an eighth of the text, and all of it, took {tries:?}");
        }
    }
}

/// Writes the small files as seeds of the fuzz targets.
#[test]
fn seeds_of_the_fuzz_targets_are_written_on_request() {
    let Some(folder) = std::env::var_os("FLINT_SEEDS").map(std::path::PathBuf::from) else { return };
    for (idx, (format, file)) in small::files().into_iter().enumerate() {
        let folder = folder.join(format.target());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{idx:02}")), file).unwrap();
    }
}
