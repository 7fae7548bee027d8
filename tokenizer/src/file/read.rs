//! Reading `tokenizer.json`.
//!
//! The parts are first taken as raw text, so that an error has its place in the file, and a part of an unknown type is
//! refused by its name and not by the first field it happens to have. Unknown fields are errors everywhere. Memory stays
//! a small multiple of the file: nothing is sized by a number in it.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Error;
use crate::alphabet;
use crate::decoder::DecoderSpec;
use crate::definition::{
    AddedTokenDef, BpeDef, Definition, Merges, ModelDef, SpecialIds, Truncation, UnigramDef, UnigramRule,
    WordLevelDef, WordPieceDef,
};
use crate::hash::Seeded;
use crate::normalizer::NormalizerSpec;
use crate::pieces::PieceMap;
use crate::postprocessor::PostProcessorSpec;
use crate::pretokenizer::PreTokenizerSpec;
use crate::vocab::MAX_HOLES;

/// Most steps in a sequence of normalizers and the like; files in use have up to a dozen.
const MAX_STEPS: usize = 1000;

/// Parses a file and checks that it asks for nothing that we do not do.
pub(super) fn parse(json: &[u8]) -> Result<Definition, Error> {
    let text = std::str::from_utf8(json).map_err(|error| not_utf8(json, error.valid_up_to()))?;
    let source = Source { text };
    let file: FileJson<'_> = source.parse(text)?;
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(unsupported("version", format!("`{version}`"), "`1.0`"));
    }
    // Padding concerns batches, which are not padded here; truncation is told to whoever asks.
    let truncation = file.truncation.map(|raw| source.parse::<Truncation>(raw.get())).transpose()?;
    let pre_tokenizer = source.part::<PreTokenizerSpec>(file.pre_tokenizer)?;
    let is_byte_level = pre_tokenizer.as_ref().is_some_and(ends_in_bytes);
    let normalizer = source.part::<NormalizerSpec>(file.normalizer)?;
    let is_bare = normalizer.is_none() && pre_tokenizer.is_none();
    let (vocab, model) = source.model(file.model, is_byte_level)?;
    let mut added = file.added_tokens;
    number_added(&mut added, &vocab)?;
    let model = match model {
        ModelDef::Bpe(def) if is_bare && is_character_level(&def, &vocab) => ModelDef::Char,
        model => model,
    };
    Ok(Definition {
        vocab,
        added,
        normalizer,
        pre_tokenizer,
        post_processor: source.part::<PostProcessorSpec>(file.post_processor)?,
        decoder: source.part::<DecoderSpec>(file.decoder)?,
        model,
        special: SpecialIds::default(),
        chat_template: None,
        truncation,
        padding: file.padding.map(|raw| source.parse(raw.get())).transpose()?,
    })
}

/// Numbers the tokens that the model does not have as Hugging Face does, whatever the file says: in the order of the
/// file, on from the number of tokens in the model. A model was trained with the ids that it got in this way.
///
/// # Errors
/// [`Error::IdOutOfRange`] for an id far beyond the number of tokens, as in the model.
fn number_added(added: &mut [AddedTokenDef], vocab: &[(String, u32)]) -> Result<(), Error> {
    let n_tokens = vocab.len() + added.len();
    if let Some(wild) = added.iter().find(|token| token.id as usize >= n_tokens + MAX_HOLES) {
        return Err(Error::IdOutOfRange { token: wild.content.clone(), id: wild.id, n_tokens });
    }
    let in_model: HashSet<&str, Seeded> = vocab.iter().map(|(token, _)| token.as_str()).collect();
    let is_new =
        |token: &&mut AddedTokenDef| !token.content.is_empty() && !in_model.contains(token.content.as_str());
    for (id, token) in (in_model.len() as u32..).zip(added.iter_mut().filter(is_new)) {
        token.id = id;
    }
    Ok(())
}

/// Whether a pre-tokenizer gives bytes to the model.
fn ends_in_bytes(pre_tokenizer: &Value) -> bool {
    match pre_tokenizer.get("pretokenizers").and_then(Value::as_array) {
        Some(steps) => steps.iter().any(ends_in_bytes),
        None => pre_tokenizer.get("type").and_then(Value::as_str) == Some("ByteLevel"),
    }
}

/// Whether nothing merges and each token is a character or a byte.
fn is_character_level(def: &BpeDef, vocab: &[(String, u32)]) -> bool {
    let is_plain = |token: &str| token.chars().nth(1).is_none() || alphabet::parse_fallback(token).is_some();
    // Special tokens are longer, but most tokens are not.
    let n_plain = vocab.iter().filter(|(token, _)| is_plain(token)).count();
    // With no merges, affixes would still change which characters are tokens, and whole pieces could be tokens.
    let affixes = [&def.continuing_subword_prefix, &def.end_of_word_suffix];
    let is_bare = affixes.iter().all(|affix| affix.as_deref().unwrap_or("").is_empty()) && !def.ignore_merges;
    is_bare && def.byte_fallback && def.merges == Merges::default() && n_plain * 2 > vocab.len()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileJson<'a> {
    version: Option<String>,
    #[serde(borrow)]
    truncation: Option<&'a RawValue>,
    #[serde(borrow)]
    padding: Option<&'a RawValue>,
    #[serde(default)]
    added_tokens: Vec<AddedTokenDef>,
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    model: &'a RawValue,
}

/// The type of a part, whatever else it has.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "type")]
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BpeJson {
    #[serde(rename = "type")]
    _name: Option<String>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: VocabJson,
    merges: Vec<MergeJson>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UnigramJson {
    #[serde(rename = "type")]
    _name: String,
    unk_id: Option<u32>,
    vocab: Vec<(String, f64)>,
    #[serde(default)]
    byte_fallback: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WordPieceJson {
    #[serde(rename = "type")]
    _name: String,
    unk_token: String,
    continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
    vocab: VocabJson,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WordLevelJson {
    #[serde(rename = "type")]
    _name: String,
    vocab: VocabJson,
    unk_token: String,
}

/// The vocabulary in the order of the file.
pub(super) struct VocabJson(pub(super) Vec<(String, u32)>);

impl<'de> Deserialize<'de> for VocabJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = VocabJson;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tokens and their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<VocabJson, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(VocabJson(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A merge rule, as `"a b"` or as `["a", "b"]`.
struct MergeJson(String, String);

impl<'de> Deserialize<'de> for MergeJson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = MergeJson;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens, as \"a b\" or [\"a\", \"b\"]")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<MergeJson, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => {
                        Ok(MergeJson(left.to_owned(), right.to_owned()))
                    }
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<MergeJson, A::Error> {
                let missing = |len| de::Error::invalid_length(len, &self);
                let left = seq.next_element()?.ok_or_else(|| missing(0))?;
                let right = seq.next_element()?.ok_or_else(|| missing(1))?;
                match seq.next_element::<de::IgnoredAny>()? {
                    None => Ok(MergeJson(left, right)),
                    Some(_) => Err(missing(3)),
                }
            }
        }
        deserializer.deserialize_any(Pair)
    }
}

/// The whole text, to tell where in it a raw part stands.
#[derive(Clone, Copy)]
struct Source<'a> {
    text: &'a str,
}

impl<'a> Source<'a> {
    /// Parses `part`, which lies within the text.
    fn parse<T: Deserialize<'a>>(self, part: &'a str) -> Result<T, Error> {
        serde_json::from_str(part).map_err(|error| {
            let offset = part.as_ptr() as usize - self.text.as_ptr() as usize;
            let before = &self.text.as_bytes()[..offset];
            let (line, column) = end_of(before);
            Error::Json {
                line: line + error.line().saturating_sub(1),
                column: if error.line() <= 1 { column + error.column() } else { error.column() },
                reason: without_place(&error),
            }
        })
    }

    fn name_of(self, raw: &'a RawValue) -> Result<Option<String>, Error> {
        Ok(self.parse::<Named>(raw.get())?.name)
    }

    /// Reads a part, which is then spelled as we spell it.
    fn part<T: DeserializeOwned + Serialize>(
        self,
        raw: Option<&'a RawValue>,
    ) -> Result<Option<Value>, Error> {
        let Some(raw) = raw else { return Ok(None) };
        // A step of a few bytes takes some hundred once it is parsed.
        let n_steps = raw.get().matches("\"type\"").count();
        if n_steps > MAX_STEPS {
            return Err(unsupported(
                "a part",
                format!("a sequence of {n_steps} steps"),
                "at most 1,000 steps",
            ));
        }
        let spec: T = self.parse(raw.get())?;
        Ok(Some(serde_json::to_value(spec).expect("strings, numbers and flags always serialize")))
    }

    /// Older files leave the type of a BPE model out.
    fn model(self, raw: &'a RawValue, is_byte_level: bool) -> Result<(Vec<(String, u32)>, ModelDef), Error> {
        match self.name_of(raw)?.as_deref() {
            None | Some("BPE") => self.bpe(raw, is_byte_level),
            Some("Unigram") => {
                let model: UnigramJson = self.parse(raw.get())?;
                let (tokens, scores): (Vec<String>, Vec<f64>) = model.vocab.into_iter().unzip();
                let def = UnigramDef {
                    scores,
                    unk_id: model.unk_id,
                    byte_fallback: model.byte_fallback,
                    rule: UnigramRule::HuggingFace,
                    kinds: Vec::new(),
                };
                Ok((tokens.into_iter().zip(0..).collect(), ModelDef::Unigram(def)))
            }
            Some("WordPiece") => {
                let model: WordPieceJson = self.parse(raw.get())?;
                let def = WordPieceDef {
                    unk_token: model.unk_token,
                    continuing_subword_prefix: model.continuing_subword_prefix,
                    word_start: String::new(),
                    max_input_chars_per_word: model.max_input_chars_per_word,
                };
                Ok((model.vocab.0, ModelDef::WordPiece(def)))
            }
            Some("WordLevel") => {
                let model: WordLevelJson = self.parse(raw.get())?;
                Ok((model.vocab.0, ModelDef::WordLevel(WordLevelDef { unk_token: model.unk_token })))
            }
            Some(name) => Err(unsupported(
                "model",
                format!("`{name}`"),
                "`BPE`, `Unigram`, `WordPiece` and `WordLevel`",
            )),
        }
    }

    fn bpe(self, raw: &'a RawValue, byte_level: bool) -> Result<(Vec<(String, u32)>, ModelDef), Error> {
        let model: BpeJson = self.parse(raw.get())?;
        if let Some(dropout) = model.dropout.filter(|&dropout| dropout != 0.0) {
            return Err(unsupported("model", format!("dropout {dropout}"), "null"));
        }
        let mut ids = PieceMap::new();
        for (token, id) in &model.vocab.0 {
            let first = *ids.entry(token.as_bytes(), *id);
            if first != *id {
                return Err(Error::DuplicateToken { token: token.clone(), first, second: *id });
            }
        }
        // With a prefix for tokens inside words, the right token of a pair has it and their concatenation does not.
        let mut pairs = Vec::with_capacity(model.merges.len());
        for (merge_idx, MergeJson(left, right)) in model.merges.into_iter().enumerate() {
            let (Some(left_id), Some(right_id)) = (ids.get(left.as_bytes()), ids.get(right.as_bytes()))
            else {
                let reason = "one of them is not in the vocabulary";
                return Err(Error::BadMerge { merge_idx, left, right, reason });
            };
            pairs.push((left_id, right_id));
        }
        let def = BpeDef {
            merges: Merges::Ranked(pairs),
            byte_level,
            byte_fallback: model.byte_fallback,
            unk_token: model.unk_token,
            fuse_unk: model.fuse_unk,
            ignore_merges: model.ignore_merges,
            continuing_subword_prefix: model.continuing_subword_prefix,
            end_of_word_suffix: model.end_of_word_suffix,
            kinds: Vec::new(),
        };
        Ok((model.vocab.0, ModelDef::Bpe(def)))
    }
}

fn unsupported(part: &'static str, found: String, supported: &'static str) -> Error {
    Error::Unsupported { part, found, supported }
}

fn not_utf8(json: &[u8], valid_up_to: usize) -> Error {
    let (line, column) = end_of(&json[..valid_up_to]);
    Error::Json { line, column: column + 1, reason: "the text is not UTF-8".to_owned() }
}

/// Line of the end of `text`, counted from 1, and bytes after its last line break.
fn end_of(text: &[u8]) -> (usize, usize) {
    let line_start = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |idx| idx + 1);
    (1 + text.iter().filter(|&&byte| byte == b'\n').count(), text.len() - line_start)
}

/// The parser's message without the place within the part, which would contradict the place within the file.
pub(super) fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rsplit_once(" at line ") {
        Some((reason, _)) => reason.to_owned(),
        None => message,
    }
}
