//! The same ids as the reference libraries on 100,000 strings, by digest.
//!
//! `tools/tokenizer_exactness.py` asks Hugging Face's `tokenizers`, sentencepiece and tiktoken and writes the digests of
//! what they say for each 1,000 strings; [`Strings`] makes the same strings here. Every script, emoji, marks, controls,
//! code, long runs and special tokens inside text are among them (`pool.json`). A debug build compares one block of every
//! third tokenizer, a different one for each; a release build, or `FLINT_EXACTNESS=all`, compares all. Tokenizers too large to
//! commit are read from `FLINT_ASSETS`, as are llama.cpp's own suites.
//!
//! Left out, because Flint differs on purpose: plain text never gives a special token here, while Hugging Face's Unigram
//! and WordLevel models find those of their vocabulary in any text; and an added token that is sought in normalized text
//! is decoded as the file spells it, while Hugging Face 0.23 gives what the normalizer makes of it (`[inst]` for
//! `[INST]`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use tokenizer::{EncodeOptions, Kind, Tokenizer};

use crate::{assets, corpus, fixture};

/// Strings in all, and those under one digest.
const N_STRINGS: usize = 100_000;
const BLOCK: usize = 1000;

const PLAIN: EncodeOptions = EncodeOptions { parse_special: false, add_special: false };
const SPECIAL: EncodeOptions = EncodeOptions { parse_special: true, add_special: false };
const TEMPLATE: EncodeOptions = EncodeOptions { parse_special: true, add_special: true };

/// What strings are made of.
#[derive(Deserialize)]
struct Pool {
    prose: Vec<String>,
    specials: Vec<String>,
    alphabets: Vec<String>,
    emoji: Vec<String>,
    ranges: Vec<(u32, u32)>,
    fixed: Vec<String>,
}

/// Makes each string from its number, as `Generator` of the script does.
pub(crate) struct Strings {
    pool: Pool,
    lines: Vec<Vec<char>>,
    words: Vec<String>,
    alphabets: Vec<Vec<char>>,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((((mixed ^ (mixed >> 31)) >> 32) * n as u64) >> 32) as usize
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A code point of a range; for a surrogate, the replacement character.
    fn code_point(&mut self, first: u32, last: u32) -> char {
        let code = first + self.below((last - first + 1) as usize) as u32;
        char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
    }
}

impl Strings {
    pub(crate) fn new() -> Self {
        let pool: Pool = serde_json::from_slice(&fs::read(fixture("exactness/pool.json")).unwrap()).unwrap();
        let corpus = corpus();
        let lines: Vec<&str> = pool.prose.iter().map(String::as_str).chain(corpus.split('\n')).collect();
        let words = lines.iter().flat_map(|line| line.split(' ')).filter(|word| !word.is_empty());
        Self {
            words: words.map(str::to_owned).collect(),
            lines: lines.iter().map(|line| line.chars().collect()).collect(),
            alphabets: pool.alphabets.iter().map(|alphabet| alphabet.chars().collect()).collect(),
            pool,
        }
    }

    pub(crate) fn string(&self, index: usize) -> String {
        if let Some(fixed) = self.pool.fixed.get(index) {
            return fixed.clone();
        }
        let mut random = Random(index as u64);
        let mut text = String::new();
        for _ in 0..1 + random.below(4) {
            self.segment(&mut random, &mut text);
        }
        text
    }

    fn segment(&self, random: &mut Random, text: &mut String) {
        match random.below(16) {
            0..4 => {
                let line = random.pick(&self.lines);
                let start = random.below(line.len() + 1);
                let len = 1 + random.below(40);
                text.extend(line.iter().skip(start).take(len));
            }
            4..6 => self.joined(&self.words, 5, &["", " ", " ", " ", "  ", "\n", "-"], random, text),
            6..8 => {
                let &(first, last) = random.pick(&self.pool.ranges);
                for _ in 0..1 + random.below(16) {
                    let is_space = random.below(8) == 0;
                    text.push(if is_space { ' ' } else { random.code_point(first, last) });
                }
            }
            8..11 => {
                let alphabet = random.pick(&self.alphabets);
                for _ in 0..1 + random.below(10) {
                    text.push(*random.pick(alphabet));
                }
            }
            11..13 => {
                let between = ["", "", " ", "  ", "\n", "a", "\u{3000}", "\u{301}"];
                self.joined(&self.pool.specials, 3, &between, random, text);
            }
            13 => {
                for _ in 0..1 + random.below(6) {
                    text.push_str(random.pick::<String>(&self.pool.emoji));
                }
            }
            14 => {
                for _ in 0..1 + random.below(6) {
                    text.push(random.code_point(0, 0x10_ffff));
                }
            }
            _ => {
                let limit = if random.below(60) == 0 { 2000 } else { 25 };
                let unit = self.run_unit(random);
                text.push_str(&unit.repeat(1 + random.below(limit)));
            }
        }
    }

    fn joined(
        &self,
        items: &[String],
        limit: usize,
        between: &[&str],
        random: &mut Random,
        text: &mut String,
    ) {
        for _ in 0..1 + random.below(limit) {
            text.push_str(random.pick::<String>(items));
            text.push_str(random.pick::<&str>(between));
        }
    }

    fn run_unit(&self, random: &mut Random) -> String {
        match random.below(4) {
            0 => random.pick(&self.words).clone(),
            1 => random.pick(&self.pool.emoji).clone(),
            2 => random.pick(&self.pool.specials).clone(),
            _ => {
                let alphabet = random.pick::<Vec<char>>(&self.alphabets);
                random.pick(alphabet).to_string()
            }
        }
    }
}

/// FNV-1a over numbers instead of bytes, which Python can do fast enough.
fn fnv(value: u64, words: impl IntoIterator<Item = u64>) -> u64 {
    words.into_iter().fold(value, |value, word| (value ^ word).wrapping_mul(0x100_0000_01b3))
}

const START: u64 = 0xcbf2_9ce4_8422_2325;

/// A tokenizer and the modes in which its reference was asked.
struct Case {
    tokenizer: Tokenizer,
    modes: &'static [(&'static str, EncodeOptions)],
    /// In plain mode, texts with these have no counterpart.
    not_plain: Vec<String>,
    /// Texts of ids with these have no counterpart.
    respelled: Vec<u32>,
}

impl Case {
    /// Opens what the fixture calls `name`, or nothing if it is among the assets and they are not there.
    fn open(name: &str) -> Option<Self> {
        const ALL: &[(&str, EncodeOptions)] =
            &[("plain", PLAIN), ("special", SPECIAL), ("template", TEMPLATE)];
        let mut respelled = Vec::new();
        let mut load = |path: PathBuf| {
            respelled = respelled_ids(&fs::read(&path).unwrap());
            Tokenizer::load(&path).unwrap_or_else(|error| panic!("{error}"))
        };
        let committed = [format!("{name}.json"), format!("exactness/{name}.json")];
        let (tokenizer, modes) =
            if let Some(path) = committed.iter().map(|name| fixture(name)).find(|p| p.exists()) {
                (load(path), ALL)
            } else if let Some(asset) = in_assets(name) {
                let modes = if name.ends_with(".tiktoken") {
                    &ALL[..2]
                } else if name.ends_with(".model") {
                    &ALL[..1]
                } else {
                    ALL
                };
                (load(asset?), modes)
            } else if name.ends_with(".hf") {
                (bare_model(&fixture(&format!("models/{name}"))), ALL)
            } else {
                (load(fixture(&format!("models/{name}"))), &ALL[..1])
            };
        let is_hugging_face = modes.len() == 3 && matches!(tokenizer.kind(), Kind::Unigram | Kind::WordLevel);
        let special = tokenizer.special_tokens().map(|(token, _)| token.to_owned());
        let not_plain = special.filter(|token| is_hugging_face && !token.is_empty()).collect();
        Some(Self { tokenizer, modes, not_plain, respelled })
    }

    fn ids(&self, text: &str, (name, options): (&str, EncodeOptions)) -> Option<Vec<u32>> {
        let is_left_out = name == "plain" && self.not_plain.iter().any(|token| text.contains(token));
        (!is_left_out).then(|| self.tokenizer.encode_with(text, options))
    }

    /// What the script calls `block_digests`.
    fn digests(&self, strings: &Strings, block: usize) -> String {
        let (mut ids, mut chars) = (START, START);
        for index in block * BLOCK..(block + 1) * BLOCK {
            let text = strings.string(index);
            for &mode in self.modes.iter().filter(|(name, _)| *name != "template" || index % 10 == 0) {
                if let Some(row) = self.ids(&text, mode) {
                    ids = fnv(fnv(ids, [row.len() as u64]), row.iter().copied().map(u64::from));
                }
            }
            let options = self.modes[1.min(self.modes.len() - 1)].1;
            let row = self.tokenizer.encode_with(&text, options);
            if row.iter().any(|id| self.respelled.contains(id)) {
                continue;
            }
            let decoded = self.tokenizer.decode(&row).unwrap();
            let n_chars = decoded.chars().count() as u64;
            chars = fnv(fnv(chars, [n_chars]), decoded.chars().map(|c| u64::from(u32::from(c))));
        }
        format!("{ids:016x} {chars:016x}")
    }
}

/// The ids of added tokens of a `tokenizer.json` that are sought in normalized text, if that is another text.
fn respelled_ids(file: &[u8]) -> Vec<u32> {
    let Ok(file) = serde_json::from_slice::<Value>(file) else { return Vec::new() };
    if matches!(file["normalizer"]["type"].as_str(), None | Some("NFC")) {
        return Vec::new();
    }
    let tokens = file["added_tokens"].as_array().into_iter().flatten();
    let ids = tokens.filter(|token| token["normalized"] == true).filter_map(|token| token["id"].as_u64());
    ids.map(|id| id as u32).collect()
}

/// A tokenizer among the assets: no such name, or not here.
fn in_assets(name: &str) -> Option<Option<PathBuf>> {
    let path = match name {
        "cl100k_base.tiktoken" | "o200k_base.tiktoken" => format!("tokenizers/tiktoken/{name}"),
        "encoder.json" => "tokenizers/gpt2/encoder.json".to_owned(),
        "stories260k.json" => "models/stories260k/hf/tokenizer.json".to_owned(),
        "stories260k.model" => "models/stories260k/hf/tokenizer.model".to_owned(),
        _ => return None,
    };
    Some(assets().map(|assets| assets.join(path)))
}

/// What the script calls so.
fn bare_model(path: &Path) -> Tokenizer {
    let case: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let (normalizer, pre_tokenizer) = if case["words"] == true {
        (Value::Null, json!({"type": "CharDelimiterSplit", "delimiter": " "}))
    } else {
        (json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}), Value::Null)
    };
    let file = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": case["model"],
    });
    Tokenizer::from_json(file.to_string().as_bytes())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn ids_and_texts_equal_the_references_by_digest() {
    let json = fs::read(fixture("exactness/digests.json")).unwrap();
    let expected: BTreeMap<String, Vec<String>> = serde_json::from_slice(&json).unwrap();
    let strings = Strings::new();
    let is_full = !cfg!(debug_assertions) || std::env::var_os("FLINT_EXACTNESS").is_some();
    let cases: Vec<(&str, Case)> =
        expected.keys().filter_map(|name| Some((name.as_str(), Case::open(name)?))).collect();
    let n_blocks = N_STRINGS / BLOCK;
    let blocks = |idx: usize| if is_full { 0..n_blocks } else { idx % n_blocks..idx % n_blocks + 1 };
    let every = if is_full { 1 } else { 3 };
    let all: Vec<_> =
        (0..cases.len()).step_by(every).flat_map(|idx| blocks(idx).map(move |block| (idx, block))).collect();
    let mut wrong: Vec<String> = all
        .into_par_iter()
        .filter_map(|(idx, block)| {
            let (name, case) = &cases[idx];
            let (found, expected) = (case.digests(&strings, block), &expected[*name][block]);
            (found != *expected).then(|| format!("{name} {block}: {found}, expected {expected}"))
        })
        .collect();
    let n_wrong = wrong.len();
    wrong.truncate(60);
    assert!(n_wrong == 0, "{n_wrong} blocks differ; the script's `show` tells more:\n{}", wrong.join("\n"));
}

/// Compares with a file that the script's `show` wrote, to find what differs in a block.
#[test]
fn shown_strings_are_equal() {
    #[derive(Deserialize)]
    struct Shown {
        name: String,
        text: String,
        ids: BTreeMap<String, Vec<u32>>,
        decoded: String,
    }
    let Some(path) = std::env::var_os("FLINT_EXACTNESS_SHOW") else { return };
    let mut wrong = Vec::new();
    let mut cases = BTreeMap::new();
    for line in fs::read_to_string(path).unwrap().lines() {
        let shown: Shown = serde_json::from_str(line).unwrap();
        let case = cases.entry(shown.name.clone()).or_insert_with(|| Case::open(&shown.name).unwrap());
        let name_of = |&id: &u32| case.tokenizer.id_to_token(id).unwrap_or("?").to_owned();
        for &(name, options) in case.modes {
            let ids = case.tokenizer.encode_with(&shown.text, options);
            if let Some(expected) = shown.ids.get(name).filter(|&expected| *expected != ids) {
                let spelled: [Vec<String>; 2] = [&ids, expected].map(|ids| ids.iter().map(name_of).collect());
                wrong.push(format!(
                    "{} {name} {:?}:\n  {:?}\n  {:?}",
                    shown.name, shown.text, spelled[0], spelled[1]
                ));
            }
        }
        let ids = &shown.ids[case.modes[1.min(case.modes.len() - 1)].0];
        let decoded = case.tokenizer.decode(ids).unwrap();
        if decoded != shown.decoded && !ids.iter().any(|id| case.respelled.contains(id)) {
            wrong.push(format!("{} decoded {ids:?}:\n  {decoded:?}\n  {:?}", shown.name, shown.decoded));
        }
    }
    let n_wrong = wrong.len();
    wrong.sort_by_key(String::len);
    wrong.truncate(12);
    assert!(n_wrong == 0, "{n_wrong} differ, ours first:\n{}", wrong.join("\n"));
}

#[test]
fn offsets_belong_to_the_same_ids_and_lie_in_order_in_the_text() {
    let json = fs::read(fixture("exactness/digests.json")).unwrap();
    let names: BTreeMap<String, Vec<String>> = serde_json::from_slice(&json).unwrap();
    let strings = Strings::new();
    let n = if cfg!(debug_assertions) { 40 } else { 5000 };
    let names: Vec<&String> = names.keys().collect();
    names.into_par_iter().enumerate().for_each(|(idx, name)| {
        let Some(Case { tokenizer, .. }) = Case::open(name) else { return };
        for index in idx * n..(idx + 1) * n {
            let text = strings.string(index);
            for options in [PLAIN, SPECIAL, TEMPLATE] {
                let placed = tokenizer.encode_offsets(&text, options);
                let ids: Vec<u32> = placed.iter().map(|&(id, _)| id).collect();
                assert_eq!(ids, tokenizer.encode_with(&text, options), "{name} {text:?}");
                let mut start = 0;
                for (_, range) in placed {
                    assert!(
                        range.start <= range.end && range.end <= text.len(),
                        "{name} {text:?}: {range:?}"
                    );
                    // A token that strips white space takes what the one before it has taken already.
                    assert!(
                        range.end >= start || range.is_empty(),
                        "{name} {text:?}: {range:?} after {start}"
                    );
                    start = range.start;
                }
            }
        }
    });
}

#[test]
fn streams_give_what_decoding_gives() {
    let json = fs::read(fixture("exactness/digests.json")).unwrap();
    let names: BTreeMap<String, Vec<String>> = serde_json::from_slice(&json).unwrap();
    let strings = Strings::new();
    let n = if cfg!(debug_assertions) { 40 } else { 2000 };
    let names: Vec<&String> = names.keys().collect();
    names.into_par_iter().enumerate().for_each(|(idx, name)| {
        let Some(Case { tokenizer, .. }) = Case::open(name) else { return };
        for index in (idx * n..(idx + 1) * n).chain(0..60) {
            let ids = tokenizer.encode_with(&strings.string(index), SPECIAL);
            if ids.len() > 500 {
                continue;
            }
            let mut stream = tokenizer.decode_stream();
            let mut streamed: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
            streamed.extend(stream.finish());
            assert_eq!(streamed, tokenizer.decode(&ids).unwrap(), "{name} {ids:?}");
        }
    });
}

/// llama.cpp's own suites: texts between marker lines, and a line of ids for each, without what goes around a text.
#[test]
fn llama_cpp_suites_are_equal() {
    let Some(assets) = assets() else { return };
    for name in ["gpt-2", "qwen2", "bert-bge", "phi-3"] {
        let path = assets.join(format!("tokenizers/vocab-suites/ggml-vocab-{name}.gguf"));
        let read = |suffix: &str| fs::read_to_string(format!("{}.{suffix}", path.display())).unwrap();
        let (texts, ids) = (read("inp"), read("out"));
        let tokenizer = Tokenizer::load(&path).unwrap();
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let lines: Vec<&str> = ids.split('\n').collect();
        assert_eq!(texts.len(), lines.len(), "{name}");
        for (text, line) in texts.iter().zip(lines) {
            let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode_with(text, PLAIN), expected, "{name}: {text:?}");
            let placed = tokenizer.encode_offsets(text, PLAIN);
            assert!(placed.iter().map(|&(id, _)| id).eq(expected), "{name}: {text:?}");
        }
    }
}

/// One model in three files: sentencepiece's, Hugging Face's conversion and llama.cpp's.
#[test]
fn a_gguf_gives_the_ids_of_the_model_it_was_made_from() {
    let Some(assets) = assets() else { return };
    let folder = assets.join("models/stories260k");
    let gguf = Tokenizer::load(folder.join("stories260K-q8_0.gguf")).unwrap();
    let model = Tokenizer::load(folder.join("hf/tokenizer.model")).unwrap();
    let strings = Strings::new();
    for index in 0..if cfg!(debug_assertions) { 1000 } else { 20_000 } {
        // llama.cpp puts a space before nothing at all, too, and knows no zero bytes.
        let text = strings.string(index);
        if !text.is_empty() {
            assert_eq!(gguf.encode(&text), model.encode(&text), "{text:?}");
        }
    }
}
