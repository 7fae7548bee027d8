//! BPE by score as a `tokenizer.json`, which ranks merges: the same ids, or an error that names what differs.

use serde_json::{Value as Json, json};
use tokenizer::gguf::{Value, write_head};
use tokenizer::{EncodeOptions, Tokenizer};

use crate::exactness::Strings;
use crate::{assets, fixture};

const OPTIONS: [EncodeOptions; 3] = [
    EncodeOptions { parse_special: false, add_special: false },
    EncodeOptions { parse_special: true, add_special: false },
    EncodeOptions { parse_special: true, add_special: true },
];

fn written(name: &str, tokenizer: &Tokenizer) -> Tokenizer {
    let json = tokenizer.to_json().unwrap_or_else(|error| panic!("{name}: {error}"));
    let back = Tokenizer::from_json(json.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(back.to_json().unwrap(), json, "{name}");
    assert_eq!(back.vocab_size(), tokenizer.vocab_size(), "{name}");
    assert_eq!(back.around(), tokenizer.around(), "{name}");
    back
}

/// The same ids, the same text of them, and from the same places.
fn assert_same(name: &str, tokenizer: &Tokenizer, back: &Tokenizer, text: &str) {
    assert_same_ids(name, tokenizer, back, text);
    for options in OPTIONS {
        let placed = tokenizer.encode_offsets(text, options);
        assert_eq!(back.encode_offsets(text, options), placed, "{name}: {text:?} {options:?}");
    }
}

/// The same ids and text: sentencepiece's own normalizer has a space that is put before a text come from nothing, Hugging
/// Face's from the first character.
fn assert_same_ids(name: &str, tokenizer: &Tokenizer, back: &Tokenizer, text: &str) {
    for options in OPTIONS {
        let ids = tokenizer.encode_with(text, options);
        assert_eq!(back.encode_with(text, options), ids, "{name}: {text:?} {options:?}");
        // sentencepiece leaves control tokens out of text and has a sign for the unknown one.
        let is_respelled = |&id: &u32| {
            tokenizer.is_special(id) && tokenizer.id_to_token(id) != Some(&tokenizer.decode(&[id]).unwrap())
        };
        if !ids.iter().any(is_respelled) {
            assert_eq!(back.decode(&ids).unwrap(), tokenizer.decode(&ids).unwrap(), "{name}: {text:?}");
        }
    }
}

/// Numbers that look like chance.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (((self.0 >> 33) * n as u64) >> 31) as usize
    }

    fn text(&mut self, parts: &[&str], most: usize) -> String {
        (0..self.below(most + 1)).map(|_| parts[self.below(parts.len())]).collect()
    }
}

const N_TEXTS: usize = if cfg!(debug_assertions) { 1000 } else { 20_000 };

fn assert_comes_back(name: &str, tokenizer: &Tokenizer, same: fn(&str, &Tokenizer, &Tokenizer, &str)) {
    let back = written(name, tokenizer);
    let strings = Strings::new();
    for index in 0..N_TEXTS {
        same(name, tokenizer, &back, &strings.string(index));
    }
    let parts = [" ", "  ", "a", "the", "\u{2581}", "\n", "<s>", "</s>", "<0x41>", "é", "\u{1F980}"];
    let mut random = Random(1);
    for _ in 0..N_TEXTS {
        same(name, tokenizer, &back, &random.text(&parts, 40));
    }
}

#[test]
fn published_vocabularies_come_back() {
    let Some(assets) = assets() else { return };
    for name in ["models/stories260k/stories260K-f16.gguf", "tokenizers/vocab-suites/ggml-vocab-phi-3.gguf"] {
        assert_comes_back(name, &Tokenizer::load(assets.join(name)).unwrap(), assert_same);
    }
}

#[test]
fn sentencepiece_models_come_back_or_are_refused_by_name() {
    let normalizer = "the normalizer of a sentencepiece model";
    for (name, refused) in [
        ("bpe", normalizer),
        ("bpe-bytes", ""),
        ("bpe-phrases", normalizer),
        ("bpe-suffix", normalizer),
        ("bpe-symbols", normalizer),
        ("bpe-unused", normalizer),
        ("unigram", normalizer),
    ] {
        let tokenizer = Tokenizer::load(fixture(&format!("models/{name}.model"))).unwrap();
        match tokenizer.to_json() {
            Ok(_) => {
                assert_eq!(refused, "", "{name}");
                assert_comes_back(name, &tokenizer, assert_same_ids);
            }
            Err(error) => {
                assert!(!refused.is_empty() && error.to_string().contains(refused), "{name}: {error}");
            }
        }
    }
}

/// A GGUF of kind `llama` with bytes, these tokens, and what else its keys say.
fn gguf(tokens: &[(&str, f32, i32)], more: &[(&str, Value)]) -> Tokenizer {
    let mut all: Vec<(String, f32, i32)> =
        vec![("<unk>".into(), 0.0, 2), ("<s>".into(), 0.0, 3), ("</s>".into(), 0.0, 3)];
    all.extend((0..256).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    all.extend(tokens.iter().map(|&(token, score, kind)| (token.to_owned(), score, kind)));
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let mut values = vec![
        (key("model"), Value::from("llama")),
        (key("tokens"), all.iter().map(|token| token.0.clone()).collect::<Vec<_>>().into()),
        (key("scores"), all.iter().map(|token| token.1).collect::<Vec<_>>().into()),
        (key("token_type"), all.iter().map(|token| token.2).collect::<Vec<_>>().into()),
    ];
    values.extend(more.iter().map(|(name, value)| (key(name), value.clone())));
    Tokenizer::from_gguf(&write_head(0, &values).unwrap()).unwrap()
}

/// Tokens of a few characters in random order of score, as no training makes them: better than their parts, made in
/// several ways, never made. Those whose scores are equal are refused unless nothing depends on it.
#[test]
fn random_vocabularies_come_back_or_are_refused_for_equal_scores() {
    let mut random = Random(7);
    let letters = ["a", "b", "\u{2581}"];
    let (mut n_written, mut n_refused) = (0, 0);
    for round in 0..if cfg!(debug_assertions) { 200 } else { 4000 } {
        let n_letters = 1 + random.below(3);
        let letters = &letters[3 - n_letters..];
        let mut spelled: Vec<String> = letters.iter().map(|&letter| letter.to_owned()).collect();
        for _ in 0..4 + random.below(24) {
            let mut token = random.text(letters, 5);
            token.push_str(letters[random.below(n_letters)]);
            if !spelled.contains(&token) {
                spelled.push(token);
            }
        }
        // One in four has as many scores as tokens, or half as many.
        let n_scores = spelled.len() << 10 >> (11 * usize::from(round % 4 == 0));
        let mut scores: Vec<f32> = Vec::new();
        while scores.len() < spelled.len() {
            let score = -(random.below(n_scores) as f32);
            if round % 4 == 0 || !scores.contains(&score) {
                scores.push(score);
            }
        }
        let tokens: Vec<(&str, f32, i32)> =
            spelled.iter().zip(&scores).map(|(token, &score)| (token.as_str(), score, 1)).collect();
        let tokenizer = gguf(&tokens, &[("add_space_prefix", (round % 2 == 0).into())]);
        match tokenizer.to_json() {
            Ok(_) => n_written += 1,
            Err(error) => {
                assert!(error.to_string().contains("merge at the same score"), "{error}");
                assert_eq!(round % 4, 0, "{tokens:?}: {error}");
                n_refused += 1;
                continue;
            }
        }
        let name = format!("{tokens:?}");
        let back = written(&name, &tokenizer);
        for _ in 0..20 {
            let text = random.text(&["a", "b", " ", "aa", "ab", "c"], 30);
            assert_same(&name, &tokenizer, &back, &text);
        }
    }
    assert!(n_written > 3 * n_refused && n_refused > 0, "{n_written} and {n_refused}");
}

#[test]
fn runs_of_one_score_grow_from_the_left() {
    let runs: Vec<String> = (1..=6).map(|n| "\u{2581}".repeat(n)).collect();
    let mut tokens: Vec<(&str, f32, i32)> = runs.iter().map(|run| (run.as_str(), -9.0, 1)).collect();
    tokens.extend([("a", -1.0, 1), ("\u{2581}a", -2.0, 1), ("\u{2581}\u{2581}\u{2581}a", -3.0, 1)]);
    // Longer ones of other scores change nothing, whether better or worse.
    let [seven, eight] = [7, 8].map(|n| "\u{2581}".repeat(n));
    for more in [&[][..], &[(seven.as_str(), -8.0, 1)], &[(eight.as_str(), -10.0, 1)]] {
        let tokenizer = gguf(&[&tokens[..], more].concat(), &[]);
        let back = written("runs", &tokenizer);
        for n in 0..40 {
            for text in [" ".repeat(n), " ".repeat(n) + "a", "a".to_owned() + &" ".repeat(n) + "a  a"] {
                assert_same("runs", &tokenizer, &back, &text);
            }
        }
    }
    let spelled = |ids: &[u32]| ids.iter().map(|&id| id - 258).collect::<Vec<_>>();
    let tokenizer = written("runs", &gguf(&tokens, &[]));
    assert_eq!(spelled(&tokenizer.encode(&" ".repeat(9))), [6, 4]);
    tokens.remove(3);
    let error = gguf(&tokens, &[]).to_json().unwrap_err().to_string();
    assert!(error.contains("which merge at the same score"), "{error}");
}

#[test]
fn what_ranks_cannot_say_is_refused_by_name() {
    let plain = [("\u{2581}", -9.0, 1), ("a", -9.0, 1), ("b", -9.0, 1), ("ab", -1.0, 1), ("aa", -2.0, 1)];
    let with = |more: &[(&str, f32, i32)]| gguf(&[&plain[..], more].concat(), &[]);
    for (more, refused) in [
        // Never made, so that its score, which `ab` has, is all one.
        (&[("abba", -1.0, 1)][..], ""),
        (&[("ba", -2.0, 1)], "`aa` and `ba`, which merge at the same score"),
        (&[("ac", -3.0, 1)], "the token `ac`, of which a character merges that is no token"),
        (&[("<x>", 0.0, 4)], ""),
        (&[("  ", 0.0, 4)], ""),
        (&[("\u{2581}\u{2581}", 0.0, 4)], "the user-defined token `\u{2581}\u{2581}`, which spaces"),
        (&[("s>a", 0.0, 4)], "a user-defined token that begins inside the special `<s>`"),
        (&[("/", 0.0, 4)], "a user-defined token that begins inside the special `</s>`"),
        (&[("no byte", 0.0, 6)], "the token `no byte` of a byte"),
    ] {
        let tokenizer = with(more);
        if refused.is_empty() {
            let back = written("plain", &tokenizer);
            let mut random = Random(3);
            for _ in 0..2000 {
                let text =
                    random.text(&["a", "b", " ", "  ", "<x>", "<s>", "</s>", "\u{2581}", "\0", "é"], 20);
                assert_same(&format!("{more:?}"), &tokenizer, &back, &text);
            }
        } else {
            let error = tokenizer.to_json().unwrap_err().to_string();
            assert!(error.contains(refused), "{more:?}: {error}");
        }
    }
    let unknown = gguf(&plain, &[("unknown_token_id", 262u32.into())]).to_json().unwrap_err().to_string();
    assert!(unknown.contains("the unknown token `ab`, which text may spell"), "{unknown}");
}

#[test]
fn what_goes_around_a_text_becomes_a_template() {
    let tokenizer = gguf(&[("a", 0.0, 1)], &[("add_eos_token", true.into())]);
    let json: Json = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
    let special = |id: &str, type_id: u32| json!({"SpecialToken": {"id": id, "type_id": type_id}});
    let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    let [first, second] =
        [("A", 0), ("B", 1)].map(|(id, n)| [special("<s>", n), text(id, n), special("</s>", n)]);
    assert_eq!(json["post_processor"]["single"], json!(first));
    assert_eq!(json["post_processor"]["pair"], json!([first, second].concat()));
    assert_eq!(
        json["post_processor"]["special_tokens"]["</s>"],
        json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]})
    );
    let none = gguf(&[("a", 0.0, 1)], &[("add_bos_token", false.into())]).to_json().unwrap();
    assert_eq!(serde_json::from_str::<Json>(&none).unwrap()["post_processor"], Json::Null);
}

/// A field of a protocol buffer: a message or a text, a number, or a float.
fn message(number: u8, body: &[u8]) -> Vec<u8> {
    let n_bytes = u8::try_from(body.len()).unwrap();
    assert!(number < 16 && n_bytes < 128);
    [&[number << 3 | 2, n_bytes], body].concat()
}

/// A `.model` of BPE by score with bytes; the normalizer only puts a space before a text, if that is said.
fn model(tokens: &[(&str, f32, u8)], [byte_fallback, add_prefix, merge_spaces]: [bool; 3]) -> Tokenizer {
    let mut pieces =
        vec![("<unk>".to_owned(), 0.0, 2), ("<s>".to_owned(), 0.0, 3), ("</s>".to_owned(), 0.0, 3)];
    pieces.extend((0..256).filter(|_| byte_fallback).map(|byte| (format!("<0x{byte:02X}>"), 0.0f32, 6)));
    pieces.extend(tokens.iter().map(|&(token, score, kind)| (token.to_owned(), score, kind)));
    let piece = |(text, score, kind): &(String, f32, u8)| {
        message(
            1,
            &[&message(1, text.as_bytes())[..], &[2 << 3 | 5], &score.to_le_bytes(), &[3 << 3, *kind]]
                .concat(),
        )
    };
    let mut file: Vec<u8> = pieces.iter().flat_map(piece).collect();
    // The numbers 3 and 35, and 3 to 5.
    file.extend(message(2, &[3 << 3, 2, 0x98, 0x02, byte_fallback.into()]));
    file.extend(message(3, &[3 << 3, add_prefix.into(), 4 << 3, merge_spaces.into(), 5 << 3, 1]));
    Tokenizer::from_sentencepiece(&file).unwrap()
}

#[test]
fn user_defined_tokens_of_a_model_are_added_tokens_of_normalized_text() {
    let plain =
        [("\u{2581}", -9.0, 1), ("a", -9.0, 1), ("b", -9.0, 1), ("\u{2581}a", -1.0, 1), ("aa", -2.0, 1)];
    let defined =
        [("\u{2581}\u{2581}", 0.0, 4), ("\u{2581}\u{2581}\u{2581}", 0.0, 4), ("\n", 0.0, 4), ("<h>", 0.0, 4)];
    let all = [&plain[..], &defined].concat();
    let tokenizer = model(&all, [true, false, false]);
    let back = written("model", &tokenizer);
    let parts = ["a", "b", " ", " ", "  ", "\u{2581}", "\n", "<h>", "<s>", "</s>", "<h", "é", "aa"];
    let mut random = Random(11);
    for _ in 0..N_TEXTS {
        assert_same_ids("model", &tokenizer, &back, &random.text(&parts, 24));
    }
    for (tokens, flags, refused) in [
        (&all[..], [true, true, false], "the user-defined token `\u{2581}\u{2581}` in normalized text"),
        (&plain, [true, true, true], "the normalizer of a sentencepiece model"),
        (&plain, [false, true, false], "` \u{2047} `, which unknown characters decode to"),
        (&[&plain[..], &[("ab", -3.0, 5)]].concat(), [true, true, false], "the unused token `ab`"),
        (&[&plain[..], &[("a b", 0.0, 4)]].concat(), [true, false, false], "the user-defined token `a b`"),
    ] {
        let error = model(tokens, flags).to_json().unwrap_err().to_string();
        assert!(error.contains(refused), "{error}");
    }
}
