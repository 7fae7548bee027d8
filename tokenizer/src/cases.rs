//! The parts of the pipeline against Hugging Face's answers, which `tools/tokenizer_parts.py` writes into fixtures.
//!
//! `FLINT_PARTS_CASES` may name another file of cases, such as the random ones that the script makes by the thousand.

use std::borrow::Cow;
use std::ops::Range;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::added::{AddedTokens, Part};
use crate::decoder::DecoderSpec;
use crate::definition::AddedTokenDef;
use crate::normalizer::{Normalized, Normalizer, NormalizerSpec};
use crate::postprocessor::PostProcessorSpec;
use crate::pretokenizer::PreTokenizerSpec;
use crate::pretokenizer::pattern::{Pattern, PatternSpec};

#[derive(Deserialize)]
struct Block {
    what: String,
    part: Value,
    cases: Vec<(Value, Value)>,
}

/// A part read from its JSON, which must come out again as it went in.
fn spec<T: DeserializeOwned + serde::Serialize>(part: &Value) -> T {
    let spec: T = serde_json::from_str(&part.to_string()).expect("the part is known");
    assert_eq!(serde_json::to_value(&spec).expect("parts are plain data"), *part, "as it is written");
    spec
}

fn fixture(name: &str) -> String {
    let path = format!("{}/tests/fixtures/parts/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("the fixture is committed")
}

#[test]
fn every_part_does_what_hugging_face_does() {
    let (mut n_cases, mut n_differences) = (0, 0);
    let text = match std::env::var_os("FLINT_PARTS_CASES") {
        Some(path) => std::fs::read_to_string(path).expect("FLINT_PARTS_CASES names a file"),
        None => fixture("cases.jsonl"),
    };
    let mut differences = String::new();
    for line in text.lines() {
        let block: Block = serde_json::from_str(line).expect("a line is a block");
        let run = runner(&block);
        let mut n_in_block = 0;
        for (input, expected) in &block.cases {
            let ours = run(input);
            n_cases += 1;
            if ours != *expected {
                n_differences += 1;
                n_in_block += 1;
                if n_in_block <= 3 {
                    let part: String = block.part.to_string().chars().take(300).collect();
                    differences += &format!(
                        "{} {part}\n  input  {input}\n  theirs {expected}\n  ours   {ours}\n",
                        block.what
                    );
                }
            }
        }
    }
    assert!(n_differences == 0, "{n_differences} of {n_cases} cases differ:\n{differences}");
    assert!(n_cases > 1000, "only {n_cases} cases");
}

/// What a block's part makes of an input.
fn runner(block: &Block) -> Box<dyn Fn(&Value) -> Value> {
    match block.what.as_str() {
        "normalize" => {
            let normalizer = spec::<NormalizerSpec>(&block.part).compile().expect("supported");
            Box::new(move |input| {
                let text = string(input);
                let mut tracked = Normalized::with_origins(text);
                normalizer.normalize(&mut tracked);
                let plain = normalizer.normalized(text);
                assert_eq!(tracked.text(), plain, "with origins as without");
                json!(plain)
            })
        }
        "origins" => {
            let normalizer = spec::<NormalizerSpec>(&block.part).compile().expect("supported");
            Box::new(move |input| origins(&normalizer, string(input)))
        }
        "pre_tokenize" => {
            let pre_tokenizer = spec::<PreTokenizerSpec>(&block.part).compile().expect("supported");
            Box::new(move |input| {
                let mut text = Normalized::with_origins(string(input));
                let mut pieces = Vec::new();
                pre_tokenizer.pre_tokenize(&mut text, true, &mut pieces);
                pieces.into_iter().map(|piece| located(&text, piece)).collect()
            })
        }
        "decode" => {
            let decoder = spec::<DecoderSpec>(&block.part).compile().expect("supported");
            Box::new(move |input| {
                let tokens: Vec<&str> = input.as_array().expect("tokens").iter().map(string).collect();
                let decoded = decoder.decode(tokens.iter().copied());
                // Where bytes are not UTF-8, Hugging Face gives up the whole run, and the table does not.
                if let Some(table) = decoder.per_token().filter(|_| !decoded.contains('\u{fffd}')) {
                    assert_eq!(from_table(&table, &tokens), decoded.as_bytes(), "{tokens:?}");
                }
                json!(decoded)
            })
        }
        "added" => {
            let (added, normalizer, parse_special) = added_tokens(&block.part);
            Box::new(move |input| cut_out(&added, normalizer.as_ref(), parse_special, string(input)))
        }
        "post" => {
            let id_of = |token: &str| ["a", "[CLS]", "[SEP]", "b"].iter().position(|known| *known == token);
            let around = spec::<PostProcessorSpec>(&block.part)
                .compile(|token| id_of(token).map(|id| id as u32))
                .expect("supported");
            // The text `a`, which has id 0, and what goes around it.
            let ids = [&around.prefix[..], &[0], &around.suffix].concat();
            Box::new(move |_| json!(ids))
        }
        what => panic!("unknown kind of case `{what}`"),
    }
}

fn string(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn located(text: &Normalized<'_>, piece: Range<usize>) -> Value {
    let origin = text.origin_of(piece.clone()).expect("origins were asked for");
    json!([text.text()[piece], origin.start, origin.end])
}

fn origins(normalizer: &Normalizer, text: &str) -> Value {
    let mut text = Normalized::with_origins(text);
    normalizer.normalize(&mut text);
    let chars = text.text().char_indices().map(|(at, c)| at..at + c.len_utf8());
    let origins = chars.map(|range| text.origin_of(range).expect("origins were asked for"));
    origins.map(|origin| json!([origin.start, origin.end])).collect()
}

/// The text by the table.
fn from_table(table: &crate::decoder::PerToken<'_>, tokens: &[&str]) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for (idx, token) in tokens.iter().enumerate() {
        bytes.extend(table.bytes(token, idx == 0));
    }
    if let Some((byte, n)) = table.strip_start {
        let n_stripped = bytes.iter().take(n).take_while(|&&first| first == byte).count();
        bytes.drain(..n_stripped);
    }
    bytes
}

fn added_tokens(part: &Value) -> (AddedTokens, Option<Normalizer>, bool) {
    let normalizer = match &part["normalizer"] {
        Value::Null => None,
        json => Some(spec::<NormalizerSpec>(json).compile().expect("supported")),
    };
    let tokens = spec::<Vec<AddedTokenDef>>(&part["tokens"]);
    let added = AddedTokens::new(tokens, normalizer.as_ref()).expect("tokens are in order");
    (added, normalizer, part["parse_special"] == true)
}

/// Added tokens and what is between them, with id 0, as a model sees them that knows no word.
fn cut_out(added: &AddedTokens, normalizer: Option<&Normalizer>, parse_special: bool, text: &str) -> Value {
    let mut found = Vec::new();
    added.split_raw(text, parse_special, |part| match part {
        Part::Token { id, range } => found.push(json!([id, range.start, range.end])),
        Part::Text(range) => {
            let mut normalized = Normalized::with_origins(&text[range.clone()]);
            if let Some(normalizer) = normalizer {
                normalizer.normalize(&mut normalized);
            }
            added.split_normalized(normalized.text(), parse_special, |part| {
                let (id, inner) = match part {
                    Part::Token { id, range } => (id, range),
                    Part::Text(range) => (0, range),
                };
                let slice = normalized.slice(inner);
                let origin = slice.origin_of(0..slice.text().len()).expect("origins were asked for");
                found.push(json!([id, range.start + origin.start, range.start + origin.end]));
            });
        }
    });
    Value::Array(found)
}

/// FNV-1a over numbers.
fn fnv(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x0100_0000_01b3)
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// The planes in which anything is assigned but private use, which all parts treat alike.
fn assigned() -> impl Iterator<Item = char> {
    ('\0'..'\u{32400}').chain('\u{e0000}'..'\u{e0200}')
}

#[test]
fn every_code_point_is_normalized_as_hugging_face_does() {
    let hashes: Value = serde_json::from_str(&fixture("unicode.json")).expect("the fixture is JSON");
    for entry in hashes["normalizers"].as_array().expect("a list") {
        let normalizer = spec::<NormalizerSpec>(&entry[0]).compile().expect("supported");
        let mut hash = FNV_START;
        for c in assigned().filter(|&c| c != '\n') {
            // The marks on both sides show combining classes.
            for text in [c.to_string(), format!("a{c}\u{334}"), format!("\u{345}{c}")] {
                let became = normalizer.normalized(&text);
                if became != text {
                    hash = text.bytes().chain(became.bytes()).fold(hash, |hash, byte| fnv(hash, byte.into()));
                }
            }
        }
        assert_eq!(json!(hash), entry[1], "{}", entry[0]);
    }
}

#[test]
fn every_class_of_patterns_is_onigurumas() {
    let hashes: Value = serde_json::from_str(&fixture("unicode.json")).expect("the fixture is JSON");
    let all: String = assigned().collect();
    for entry in hashes["classes"].as_array().expect("a list") {
        let spec = PatternSpec::Regex(string(&entry[0]).to_owned());
        let pattern = Pattern::compile(&spec, "test", 1).expect("supported");
        let mut hash = FNV_START;
        pattern.for_each(&all, |range, is_match| {
            if is_match {
                hash = all[range].chars().fold(hash, |hash, c| fnv(hash, u64::from(c)));
            }
        });
        assert_eq!(json!(hash), entry[1], "{}", entry[0]);
    }
}

#[test]
fn unicodes_own_cases_come_out_as_they_should() {
    let Some(assets) = std::env::var_os("FLINT_ASSETS") else {
        #[expect(clippy::print_stderr, reason = "says why nothing was tested")]
        {
            eprintln!("skipped: FLINT_ASSETS is not set");
        }
        return;
    };
    let path = std::path::Path::new(&assets).join("suites/unicode/NormalizationTest.txt.bz2");
    let unpacked =
        std::process::Command::new("bzip2").arg("-dc").arg(path).output().expect("bzip2 is installed");
    assert!(unpacked.status.success(), "bzip2 could not unpack the suite");
    let text = String::from_utf8(unpacked.stdout).expect("the suite is text");
    let forms = ["NFC", "NFD", "NFKC", "NFKD"]
        .map(|name| spec::<NormalizerSpec>(&json!({ "type": name })).compile().expect("supported"));
    let mut n_cases = 0;
    for line in text.lines().filter(|line| !line.starts_with(['#', '@'])) {
        let columns: Vec<String> = line.split(';').take(5).map(code_points).collect();
        let [source, nfc, nfd, nfkc, nfkd] = &columns[..] else { continue };
        if [source, nfc, nfd, nfkc, nfkd].iter().any(|text| text.chars().any(is_newer)) {
            continue;
        }
        n_cases += 1;
        for (form, expected) in forms.iter().zip([nfc, nfd, nfkc, nfkd]) {
            assert_eq!(form.normalized(source), Cow::Borrowed(expected.as_str()), "{line}");
        }
    }
    assert!(n_cases > 15_000, "only {n_cases} cases");
}

/// Whether Hugging Face's normalization does not know the character.
fn is_newer(c: char) -> bool {
    use crate::normalizer::properties::Props;
    Props::of(c).is(Props::INERT)
}

fn code_points(column: &str) -> String {
    let code = |code| u32::from_str_radix(code, 16).ok().and_then(char::from_u32);
    column.split(' ').map(|text| code(text).expect("a code point")).collect()
}
