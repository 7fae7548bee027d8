//! Files are hostile: each of these is an error that names the place or the part, and none is a panic.

use serde_json::{Value, json};
use tokenizer::{Error, Tokenizer};

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
        ("flint-gpt2.json", "/model", json!({"type": "Unigram", "vocab": [["a", 0.5]]}), "both have id 0"),
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
    gpt2["model"]["merges"] = json!([]);
    gpt2["model"]["vocab"] = json!({"!": 5, "\"": 6});
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
    // Special tokens that are listed only as added tokens.
    let vocab = gpt2["model"]["vocab"].as_object_mut().unwrap();
    vocab.retain(|token, _| !token.starts_with("<|"));
    assert_eq!(Tokenizer::from_json(gpt2.to_string().as_bytes()).unwrap().hash(), expected);
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
