//! The models against the libraries that they must agree with (test builds only).
//!
//! `tools/tokenizer_models.py` trains tiny models with sentencepiece and Hugging Face's `tokenizers` and writes what they
//! make of hard strings. The committed ones are read from `tests/fixtures/models`; a larger set, made with `--fuzz`, from
//! the folder in `FLINT_MODELS`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::char_bpe::{self, CharBpe};
use crate::definition::{
    BpeDef, Merges, ModelDef, PieceKind, UnigramDef, UnigramRule, WordLevelDef, WordPieceDef,
};
use crate::hash::Fnv;
use crate::sentencepiece_normalizer::{SentencePieceDecoder, SentencePieceNormalizer};
use crate::sink::Spans;
use crate::unigram::{self, Unigram};
use crate::wordlevel::WordLevel;
use crate::wordpiece::WordPiece;

/// Any of the models, with its working memory.
pub(super) enum Model {
    Bpe(Box<CharBpe>, char_bpe::Scratch),
    Unigram(Unigram, unigram::Scratch),
    WordPiece(WordPiece, Vec<(u32, usize)>),
    WordLevel(WordLevel),
}

impl Model {
    pub(super) fn new(tokens: &[&str], def: &ModelDef) -> Self {
        match def {
            ModelDef::Bpe(def) => {
                Self::Bpe(Box::new(CharBpe::new(tokens, def).unwrap()), char_bpe::Scratch::default())
            }
            ModelDef::Unigram(def) => {
                Self::Unigram(Unigram::new(tokens, def).unwrap(), unigram::Scratch::default())
            }
            ModelDef::WordPiece(def) => Self::WordPiece(WordPiece::new(tokens, def).unwrap(), Vec::new()),
            ModelDef::WordLevel(def) => Self::WordLevel(WordLevel::new(tokens, def).unwrap()),
            ModelDef::Char => panic!("no model to test"),
        }
    }

    pub(super) fn encode<S: crate::sink::Sink>(&mut self, text: &str, sink: &mut S) {
        match self {
            Self::Bpe(model, scratch) => model.encode(text, scratch, sink),
            Self::Unigram(model, scratch) => model.encode(text, scratch, sink),
            Self::WordPiece(model, tokens) => model.encode(text, tokens, sink),
            Self::WordLevel(model) => model.encode(text, sink),
        }
    }
}

/// A model with what stands around it.
struct Case {
    tokens: Vec<String>,
    kinds: Vec<PieceKind>,
    normalizer: Option<SentencePieceNormalizer>,
    decoder: Option<SentencePieceDecoder>,
    /// Whether texts are cut at spaces first.
    words: bool,
    model: Model,
}

#[derive(Deserialize)]
struct Expected {
    ids: String,
    texts: String,
    #[serde(default)]
    full: Vec<Vec<u32>>,
}

impl Case {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        if path.extension().unwrap() == "hf" {
            Self::hugging_face(&bytes)
        } else {
            Self::sentencepiece(&bytes)
        }
    }

    fn sentencepiece(bytes: &[u8]) -> Self {
        let def = super::sentencepiece::parse(bytes).unwrap();
        let tokens: Vec<String> = def.vocab.into_iter().map(|(token, _)| token).collect();
        let spelled: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let kinds = match &def.model {
            ModelDef::Bpe(def) => def.kinds.clone(),
            ModelDef::Unigram(def) => def.kinds.clone(),
            _ => Vec::new(),
        };
        Self {
            model: Model::new(&spelled, &def.model),
            normalizer: Some(SentencePieceNormalizer::from_json(&def.normalizer.unwrap()).unwrap()),
            decoder: Some(SentencePieceDecoder::deserialize(&def.decoder.unwrap()).unwrap()),
            words: false,
            tokens,
            kinds,
        }
    }

    /// The model of a `tokenizer.json`; only what the fixtures hold.
    fn hugging_face(bytes: &[u8]) -> Self {
        let json: Value = serde_json::from_slice(bytes).unwrap();
        let model = &json["model"];
        let vocab = &model["vocab"];
        let tokens: Vec<String> = match vocab {
            Value::Array(pairs) => pairs.iter().map(|pair| pair[0].as_str().unwrap().to_owned()).collect(),
            _ => {
                let mut pairs: Vec<_> = vocab.as_object().unwrap().iter().collect();
                pairs.sort_by_key(|(_, id)| id.as_u64());
                // Hugging Face's trainer of whole words leaves an id out.
                let last = pairs.last().and_then(|(_, id)| id.as_u64()).unwrap() as usize;
                let mut tokens: Vec<String> = (0..=last).map(|id| format!("no token {id}")).collect();
                for (token, id) in pairs {
                    tokens[id.as_u64().unwrap() as usize].clone_from(token);
                }
                tokens
            }
        };
        let spelled: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let def = hugging_face_model(model, &spelled);
        Self {
            model: Model::new(&spelled, &def),
            normalizer: None,
            decoder: None,
            words: json["words"] == true,
            kinds: Vec::new(),
            tokens,
        }
    }

    /// With lengths, and without, where words are remembered.
    fn encode(&mut self, text: &str) -> Vec<u32> {
        let (mut spans, mut ids) = (Spans::default(), Vec::new());
        let mut normalized = String::new();
        if self.words {
            for word in text.split(' ') {
                self.model.encode(word, &mut spans);
                self.model.encode(word, &mut ids);
                normalized.push_str(word);
            }
        } else {
            match &self.normalizer {
                Some(normalizer) => normalizer.normalize(text, &mut normalized, &mut ()),
                None => normalized = text.replace(' ', "\u{2581}"),
            }
            self.model.encode(&normalized, &mut spans);
            self.model.encode(&normalized, &mut ids);
        }
        assert!(ids == spans.ids, "remembered words of {text:?}");
        let end = spans.ends.last().copied().unwrap_or(0);
        assert!(end == normalized.len() || spans.ids.is_empty(), "{end} of {} bytes", normalized.len());
        spans.ids
    }

    fn decode(&self, ids: impl Iterator<Item = u32>) -> String {
        let mut text = String::new();
        let tokens = ids.map(|id| (self.tokens[id as usize].as_str(), self.kinds[id as usize]));
        self.decoder.as_ref().unwrap().decode(tokens, &mut text);
        text
    }
}

fn hugging_face_model(model: &Value, tokens: &[&str]) -> ModelDef {
    let text = |field: &str| model[field].as_str().map(str::to_owned);
    let id = |token: &Value| tokens.iter().position(|t| Some(*t) == token.as_str()).unwrap() as u32;
    let flag = |field: &str| model[field].as_bool().unwrap_or(false);
    match model["type"].as_str().unwrap() {
        "Unigram" => ModelDef::Unigram(UnigramDef {
            scores: model["vocab"].as_array().unwrap().iter().map(|pair| pair[1].as_f64().unwrap()).collect(),
            unk_id: model["unk_id"].as_u64().map(|id| id as u32),
            byte_fallback: flag("byte_fallback"),
            rule: UnigramRule::HuggingFace,
            kinds: Vec::new(),
        }),
        "BPE" => ModelDef::Bpe(BpeDef {
            merges: Merges::Ranked(
                model["merges"].as_array().unwrap().iter().map(|pair| (id(&pair[0]), id(&pair[1]))).collect(),
            ),
            byte_fallback: flag("byte_fallback"),
            unk_token: text("unk_token"),
            fuse_unk: flag("fuse_unk"),
            ignore_merges: flag("ignore_merges"),
            continuing_subword_prefix: text("continuing_subword_prefix"),
            end_of_word_suffix: text("end_of_word_suffix"),
            ..BpeDef::default()
        }),
        "WordPiece" => ModelDef::WordPiece(WordPieceDef {
            unk_token: text("unk_token").unwrap(),
            continuing_subword_prefix: text("continuing_subword_prefix").unwrap(),
            word_start: String::new(),
            max_input_chars_per_word: model["max_input_chars_per_word"].as_u64().unwrap() as usize,
        }),
        _ => ModelDef::WordLevel(WordLevelDef { unk_token: text("unk_token").unwrap() }),
    }
}

fn folders() -> Vec<PathBuf> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    std::env::var_os("FLINT_MODELS").map(PathBuf::from).into_iter().chain([committed]).collect()
}

fn models(folder: &Path) -> BTreeSet<PathBuf> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ext| ext == "model" || ext == "hf")).collect()
}

fn digest(fill: impl FnOnce(&mut Fnv)) -> String {
    let mut fnv = Fnv::new();
    fill(&mut fnv);
    format!("{:06x}", fnv.finish() & 0xff_ffff)
}

#[test]
fn models_equal_their_references() {
    for folder in folders() {
        let strings: Vec<String> =
            serde_json::from_slice(&std::fs::read(folder.join("strings.json")).unwrap()).unwrap();
        let paths = models(&folder);
        assert!(paths.len() >= 22, "{} models in {}", paths.len(), folder.display());
        let mut wrong = Vec::new();
        for path in paths {
            let expected: Expected =
                serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
            let mut case = Case::read(&path);
            for (idx, text) in strings.iter().enumerate() {
                let place = idx * 6..idx * 6 + 6;
                let ids = case.encode(text);
                let name = path.file_name().unwrap().display();
                if digest(|fnv| ids.iter().for_each(|&id| fnv.number(id.into())))
                    != expected.ids[place.clone()]
                {
                    let full = expected.full.get(idx);
                    wrong.push(format!("{name}, string {idx} {text:?}: {ids:?}, expected {full:?}"));
                } else if case.decoder.is_some() {
                    let back = idx % 2 == 1;
                    let decoded = case.decode(
                        ids.iter()
                            .rev()
                            .copied()
                            .filter(|_| back)
                            .chain(ids.iter().copied().filter(|_| !back)),
                    );
                    if digest(|fnv| fnv.raw(decoded.as_bytes())) != expected.texts[place] {
                        wrong.push(format!("{name}, string {idx} {text:?} decodes to {decoded:?}"));
                    }
                }
            }
        }
        let n_wrong = wrong.len();
        wrong.sort_by_key(|line| line.starts_with("hf-wordlevel"));
        wrong.truncate(30);
        assert!(n_wrong == 0, "{n_wrong} differ:\n{}", wrong.join("\n"));
    }
}

/// sentencepiece takes large sums of scores back to zero, which decides between ways that are nearly as good.
#[test]
fn long_texts_equal_their_references() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let text = std::fs::read_to_string(fixtures.join("corpus.txt")).unwrap().repeat(25);
    let digests = std::fs::read(fixtures.join("models/long.json")).unwrap();
    let digests: std::collections::BTreeMap<String, String> = serde_json::from_slice(&digests).unwrap();
    assert!(digests.len() >= 11, "{digests:?}");
    for (name, expected) in digests {
        let mut case = Case::read(&fixtures.join("models").join(&name).with_extension("model"));
        let ids = case.encode(&text);
        assert_eq!(digest(|fnv| ids.iter().for_each(|&id| fnv.number(id.into()))), expected, "{name}");
    }
}

/// Time that this thread has had a processor, as the machine may be shared; Linux tells it.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Rates on the text in `FLINT_TEXT` with the models in `FLINT_MODELS`, line by line as the references are timed, and on
/// bad cases. Prints only; run it with `--release -- --nocapture`.
#[test]
#[expect(clippy::print_stderr)]
fn rates() {
    let (Some(folder), Ok(text)) = (std::env::var_os("FLINT_MODELS"), std::env::var("FLINT_TEXT")) else {
        return;
    };
    let text = String::from_utf8_lossy(&std::fs::read(text).unwrap()).into_owned();
    let letters = "a".repeat(1 << 20);
    let spaces = " ".repeat(1 << 20);
    let emoji = "\u{1f600}".repeat(1 << 18);
    let mut state = 1u64;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(1 << 20)
    .collect();
    let random = String::from_utf8_lossy(&random).into_owned();
    let mixed: String = random.bytes().map(|byte| char::from(b'a' + byte % 26)).collect();
    for path in models(Path::new(&folder)) {
        let mut case = Case::read(&path);
        let mut line = format!("{:20}", path.file_stem().unwrap().display());
        for input in [&text, &letters, &spaces, &emoji, &random, &mixed] {
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let start = cpu_seconds();
                for part in input.lines() {
                    case.encode_only(part);
                }
                best = best.min(cpu_seconds() - start);
            }
            line += &format!(" {:8.1}", input.len() as f64 / best / 1e6);
        }
        eprintln!("{line} MB/s (text, letters, spaces, emoji, random bytes, random letters)");
    }
}

impl Case {
    /// As a caller would: reused buffers, ids alone.
    fn encode_only(&mut self, text: &str) -> usize {
        thread_local!(static BUFFERS: std::cell::RefCell<(String, Vec<u32>)> = const {
            std::cell::RefCell::new((String::new(), Vec::new()))
        });
        BUFFERS.with_borrow_mut(|(normalized, ids)| {
            normalized.clear();
            ids.clear();
            if self.words {
                text.split(' ').for_each(|word| self.model.encode(word, ids));
            } else {
                match &self.normalizer {
                    Some(normalizer) => normalizer.normalize(text, normalized, &mut ()),
                    None => text.split(' ').enumerate().for_each(|(idx, part)| {
                        normalized.push_str(if idx > 0 { "\u{2581}" } else { "" });
                        normalized.push_str(part);
                    }),
                }
                self.model.encode(normalized, ids);
            }
            ids.len()
        })
    }
}
