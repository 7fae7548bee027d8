//! The parsed content of a tokenizer, whatever file it came from.
//!
//! Every reader gives a [`Definition`], and one place builds a tokenizer from it, so a model behaves alike whichever file
//! described it. The parts around the model (normalizer and so on) are kept as the JSON that Hugging Face's
//! `tokenizer.json` has for them. One part has no name there: `{"type": "SentencePiece"}` is sentencepiece's own
//! normalizer (or decoder), whose rules Hugging Face's parts express only nearly.
//!
//! Readers check what concerns their format; that ids and merges make sense together is checked where models are built.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Split;
use crate::hash::Fnv;

/// A tokenizer as a file describes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Definition {
    /// Spellings and ids. Byte-level vocabularies are spelled in GPT-2's characters.
    pub vocab: Vec<(String, u32)>,
    /// Tokens that are found in the text before the model sees it.
    pub added: Vec<AddedTokenDef>,
    /// As in `tokenizer.json`.
    pub normalizer: Option<Value>,
    /// As in `tokenizer.json`.
    pub pre_tokenizer: Option<Value>,
    /// As in `tokenizer.json`.
    pub post_processor: Option<Value>,
    /// As in `tokenizer.json`.
    pub decoder: Option<Value>,
    /// What turns pieces into ids.
    pub model: ModelDef,
    /// What the file says about special tokens, for formats that have no post-processor.
    pub special: SpecialIds,
    /// The Jinja source of the chat template.
    pub chat_template: Option<String>,
    /// What the file asks of whoever makes batches; encoding does not cut.
    pub truncation: Option<Truncation>,
    /// As in `tokenizer.json`; batches are not padded here.
    pub padding: Option<Value>,
}

impl Definition {
    /// In which order a file has the keys of its parts decides nothing: neither the hash nor what is written.
    pub(crate) fn sort_keys(&mut self) {
        let Self { normalizer, pre_tokenizer, post_processor, decoder, padding, .. } = self;
        let parts = [normalizer, pre_tokenizer, post_processor, decoder, padding];
        parts.into_iter().flatten().for_each(Value::sort_all_objects);
    }
}

/// To which length a `tokenizer.json` wants texts cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Truncation {
    #[serde(default)]
    pub direction: Option<String>,
    pub max_length: usize,
    pub strategy: String,
    pub stride: usize,
}

/// The pre-tokenizer that is a published split and bytes.
pub(crate) fn pre_tokenizer(split: Split) -> Value {
    match split {
        Split::Gpt2 => byte_level(true),
        split => isolated(&[split.regex()]),
    }
}

/// A pre-tokenizer that isolates the matches of one pattern after another, and then gives bytes.
pub(crate) fn isolated(patterns: &[&str]) -> Value {
    let splits = patterns.iter().map(|pattern| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    });
    let parts: Vec<Value> = splits.chain([byte_level(false)]).collect();
    json!({"type": "Sequence", "pretokenizers": parts})
}

/// A byte-level pre-tokenizer or decoder.
pub(crate) fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// Ids that a file names, and whether it wants them around a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SpecialIds {
    /// Starts a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Stands for what has no token.
    pub unk: Option<u32>,
    /// Fills up a batch.
    pub pad: Option<u32>,
    /// Separates two texts (BERT).
    pub sep: Option<u32>,
    /// Starts a text to classify (BERT).
    pub cls: Option<u32>,
    /// Whether `bos` goes before a text; `None` if the file does not say.
    pub add_bos: Option<bool>,
    /// Whether `eos` goes after a text; `None` if the file does not say.
    pub add_eos: Option<bool>,
}

/// A token that is found in the text before the model sees it, as `tokenizer.json` lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddedTokenDef {
    pub id: u32,
    /// What it is in text.
    pub content: String,
    /// Only between characters that are no part of a word.
    #[serde(default)]
    pub single_word: bool,
    /// Takes the whitespace to its left.
    #[serde(default)]
    pub lstrip: bool,
    /// Takes the whitespace to its right.
    #[serde(default)]
    pub rstrip: bool,
    /// Sought in the normalized text.
    #[serde(default)]
    pub normalized: bool,
    /// Left out of decoded text on request, and never found in untrusted text.
    #[serde(default)]
    pub special: bool,
}

impl AddedTokenDef {
    /// A special token that stands for itself, wherever it stands.
    pub(crate) fn special(id: u32, content: impl Into<String>) -> Self {
        Self { id, content: content.into(), special: true, ..Self::default() }
    }
}

/// The model of a tokenizer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum ModelDef {
    Bpe(BpeDef),
    Unigram(UnigramDef),
    WordPiece(WordPieceDef),
    WordLevel(WordLevelDef),
    /// Characters with byte fallback, and nothing that merges.
    #[default]
    Char,
}

impl ModelDef {
    /// Hashes the names and flags: what a model has besides its vocabulary, merges and scores. Hashes are stored, so each
    /// field is named here and nothing may change that a file could have asked for before.
    pub(crate) fn hash_settings(&self, fnv: &mut Fnv) {
        let name = |fnv: &mut Fnv, name: &Option<String>| {
            fnv.number(name.is_some().into());
            fnv.string(name.as_deref().unwrap_or_default().as_bytes());
        };
        let kinds_of = |fnv: &mut Fnv, kinds: &[PieceKind]| {
            let kinds: Vec<u8> = kinds.iter().map(|&kind| kind as u8).collect();
            fnv.string(&kinds);
        };
        match self {
            // What stands for missing bytes is hashed where it is known that there are some.
            Self::Bpe(BpeDef { byte_level: true, ignore_merges, .. }) => {
                fnv.string(format!("bytes {ignore_merges}").as_bytes());
            }
            Self::Bpe(def) => {
                fnv.string(b"bpe");
                fnv.string(&[def.byte_fallback, def.fuse_unk, def.ignore_merges].map(u8::from));
                name(fnv, &def.unk_token);
                name(fnv, &def.continuing_subword_prefix);
                name(fnv, &def.end_of_word_suffix);
                kinds_of(fnv, &def.kinds);
            }
            Self::Unigram(def) => {
                fnv.string(b"unigram");
                fnv.number(def.unk_id.map_or(u64::MAX, u64::from));
                fnv.string(&[u8::from(def.byte_fallback), def.rule as u8]);
                kinds_of(fnv, &def.kinds);
            }
            Self::WordPiece(def) => {
                fnv.string(b"wordpiece");
                for name in [&def.unk_token, &def.continuing_subword_prefix, &def.word_start] {
                    fnv.string(name.as_bytes());
                }
                fnv.number(def.max_input_chars_per_word as u64);
            }
            Self::WordLevel(def) => {
                fnv.string(b"wordlevel");
                fnv.string(def.unk_token.as_bytes());
            }
            Self::Char => fnv.string(b"char"),
        }
    }
}

/// Byte-pair encoding over bytes or characters.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct BpeDef {
    pub merges: Merges,
    /// Whether it works on bytes, spelled in GPT-2's characters.
    pub byte_level: bool,
    /// Whether a character without a token becomes tokens of its bytes.
    pub byte_fallback: bool,
    pub unk_token: Option<String>,
    /// Whether unknown characters in a row are one token.
    pub fuse_unk: bool,
    /// Whether a piece that is a token as a whole is not merged.
    pub ignore_merges: bool,
    /// What spells a token that does not start a piece.
    pub continuing_subword_prefix: Option<String>,
    /// What spells a token that ends a piece.
    pub end_of_word_suffix: Option<String>,
    /// The type of each token by id, in formats that have types; empty elsewhere.
    pub kinds: Vec<PieceKind>,
}

/// Which neighbours merge, and in which order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Merges {
    /// Pairs of ids, in order of rank (`tokenizer.json`, `merges.txt`).
    Ranked(Vec<(u32, u32)>),
    /// Any two neighbours whose concatenation is a token, best score first; scores by id (sentencepiece).
    Scored(Vec<f32>),
    /// Any two neighbours whose concatenation is a token, lowest id first (tiktoken).
    ById,
}

impl Default for Merges {
    fn default() -> Self {
        Self::Ranked(Vec::new())
    }
}

/// A Unigram model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UnigramDef {
    /// By id.
    pub scores: Vec<f64>,
    pub unk_id: Option<u32>,
    pub byte_fallback: bool,
    /// Whose arithmetic it follows.
    pub rule: UnigramRule,
    /// The type of each token by id, in formats that have types; empty elsewhere.
    pub kinds: Vec<PieceKind>,
}

/// Whose arithmetic a Unigram model follows: they differ near ties and in the tokens that take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnigramRule {
    /// `tokenizer.json`: double precision; all tokens.
    HuggingFace = 0,
    /// A `.model`: single precision; normal and user-defined tokens, and these always win.
    SentencePiece = 1,
    /// A GGUF: double precision; unused tokens too.
    LlamaCpp = 2,
}

/// WordPiece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WordPieceDef {
    pub unk_token: String,
    /// What spells a token inside a word (`##`).
    pub continuing_subword_prefix: String,
    /// What spells a token at the start of a word (U+2581 in a GGUF, nothing elsewhere).
    pub word_start: String,
    /// Longer words are unknown.
    pub max_input_chars_per_word: usize,
}

/// Whole words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WordLevelDef {
    pub unk_token: String,
}

/// What a token is, in sentencepiece and GGUF files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceKind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl PieceKind {
    /// From the number that both formats give it.
    pub(crate) fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}
