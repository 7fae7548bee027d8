//! Reading `tokenizer.json`.
//!
//! The parts that decide the kind of tokenizer (model, pre-tokenizer, decoder and so on) are first taken as raw text,
//! so that a part of an unknown type is refused by its name and not by the first field it happens to have. Unknown
//! fields are errors everywhere. Memory stays a small multiple of the file: nothing is sized by a number in it.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::special::SpecialToken;
use crate::tokenizer::{ModelParts, Parts};
use crate::vocab::Vocab;
use crate::{Error, Split};

/// Parses a file and checks that it asks for nothing that we do not do.
pub(super) fn parse(json: &[u8]) -> Result<Parts, Error> {
    let text = std::str::from_utf8(json).map_err(|error| not_utf8(json, error.valid_up_to()))?;
    let source = Source { text };
    let file: FileJson<'_> = source.parse(text)?;
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(unsupported("version", format!("`{version}`"), "`1.0`"));
    }
    source.check_model_type(file.model)?;
    for (part, raw) in
        [("truncation", file.truncation), ("padding", file.padding), ("normalizer", file.normalizer)]
    {
        if let Some(raw) = raw {
            return Err(unsupported(part, source.name_of(raw)?, "null"));
        }
    }
    source.check_post_processor(file.post_processor)?;
    let split = source.split(file.pre_tokenizer)?;
    source.check_decoder(file.decoder, split)?;
    let model = source.model(file.model, split)?;
    let special = file.added_tokens.into_iter().map(special_token).collect::<Result<Vec<_>, _>>()?;
    parts(model, special, split)
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
    added_tokens: Vec<AddedToken>,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

/// The type of a part, whatever else it has.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "type")]
    name: Option<String>,
}

/// A part that has a type and nothing else.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BareJson {
    #[serde(rename = "type")]
    _name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ByteLevelJson {
    #[serde(rename = "type")]
    _name: String,
    #[serde(default = "yes")]
    add_prefix_space: bool,
    #[serde(default, rename = "trim_offsets")]
    _trim_offsets: bool,
    #[serde(default = "yes")]
    use_regex: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SplitJson {
    #[serde(rename = "type")]
    _name: String,
    pattern: PatternJson,
    behavior: String,
    #[serde(default)]
    invert: bool,
}

#[derive(Deserialize)]
enum PatternJson {
    Regex(String),
    String(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SequenceJson<'a> {
    #[serde(rename = "type")]
    _name: String,
    #[serde(borrow, rename = "pretokenizers", alias = "decoders")]
    parts: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelJson {
    #[serde(rename = "type")]
    _name: Option<String>,
    dropout: Option<f32>,
    /// Never used, because every byte has a token.
    #[serde(rename = "unk_token")]
    _unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    /// Says what to do with unknown tokens, of which there are none.
    #[serde(default, rename = "fuse_unk")]
    _fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: VocabJson,
    merges: Vec<MergeJson>,
}

const fn yes() -> bool {
    true
}

/// The vocabulary in the order of the file.
struct VocabJson(Vec<(String, u32)>);

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

    fn type_of(self, raw: &'a RawValue) -> Result<Option<String>, Error> {
        Ok(self.parse::<Named>(raw.get())?.name)
    }

    /// How a part is called in a message: by its type, if it has one.
    fn name_of(self, raw: &'a RawValue) -> Result<String, Error> {
        Ok(self
            .type_of(raw)?
            .map_or_else(|| "an object without a type".to_owned(), |name| format!("`{name}`")))
    }

    fn sequence(self, raw: &'a RawValue) -> Result<Vec<&'a RawValue>, Error> {
        Ok(self.parse::<SequenceJson<'a>>(raw.get())?.parts)
    }

    /// What a pre-tokenizer cuts text into; nothing for the character-level model, which has none.
    fn split(self, raw: Option<&'a RawValue>) -> Result<Option<Split>, Error> {
        const SUPPORTED: &str = "null, `ByteLevel`, or a `Sequence` of `Split` and `ByteLevel`";
        let Some(raw) = raw else { return Ok(None) };
        let refuse = |found| Err(unsupported("pre_tokenizer", found, SUPPORTED));
        match self.type_of(raw)?.as_deref() {
            Some("ByteLevel") => {
                let split =
                    if self.byte_level(raw)? { Ok(Some(Split::Gpt2)) } else { Err("`use_regex` false") };
                split.or_else(|found| refuse(found.to_owned()))
            }
            Some("Sequence") => match self.sequence(raw)?[..] {
                [first, second] if self.is(first, "Split")? && self.is(second, "ByteLevel")? => {
                    if self.byte_level(second)? {
                        return refuse("`use_regex` true after a `Split`".to_owned());
                    }
                    self.split_regex(first).map(Some)
                }
                _ => refuse("another `Sequence`".to_owned()),
            },
            _ => refuse(self.name_of(raw)?),
        }
    }

    fn is(self, raw: &'a RawValue, name: &str) -> Result<bool, Error> {
        Ok(self.type_of(raw)?.as_deref() == Some(name))
    }

    /// Whether the part has this type; it may have nothing else.
    fn is_bare(self, raw: &'a RawValue, name: &str) -> Result<bool, Error> {
        Ok(self.is(raw, name)? && self.parse::<BareJson>(raw.get()).map(|_| true)?)
    }

    /// Whether a `ByteLevel` pre-tokenizer splits by GPT-2's pattern.
    fn byte_level(self, raw: &'a RawValue) -> Result<bool, Error> {
        let part: ByteLevelJson = self.parse(raw.get())?;
        if part.add_prefix_space {
            return Err(unsupported("pre_tokenizer", "`add_prefix_space` true".to_owned(), "false"));
        }
        Ok(part.use_regex)
    }

    fn split_regex(self, raw: &'a RawValue) -> Result<Split, Error> {
        const SUPPORTED: &str = "the patterns of GPT-2 and GPT-4, behavior `Isolated`, not inverted";
        let part: SplitJson = self.parse(raw.get())?;
        let refuse = |found| unsupported("pre_tokenizer", found, SUPPORTED);
        match (part.pattern, part.behavior.as_str(), part.invert) {
            (PatternJson::Regex(regex), "Isolated", false) => {
                Split::from_regex(&regex).ok_or_else(|| refuse(format!("the pattern `{regex}`")))
            }
            (PatternJson::Regex(_), behavior, invert) => {
                Err(refuse(format!("a split with behavior `{behavior}`, invert {invert}")))
            }
            (PatternJson::String(pattern), ..) => Err(refuse(format!("the fixed string `{pattern}`"))),
        }
    }

    /// A `ByteLevel` post-processor moves offsets and leaves ids alone; all others add tokens.
    fn check_post_processor(self, raw: Option<&'a RawValue>) -> Result<(), Error> {
        match raw {
            Some(raw) if self.is(raw, "ByteLevel")? => self.parse::<ByteLevelJson>(raw.get()).map(drop),
            Some(raw) => Err(unsupported("post_processor", self.name_of(raw)?, "null or `ByteLevel`")),
            None => Ok(()),
        }
    }

    fn check_decoder(self, raw: Option<&'a RawValue>, split: Option<Split>) -> Result<(), Error> {
        let supported = match split {
            Some(_) => "`ByteLevel` with this pre-tokenizer",
            None => "a `Sequence` of `ByteFallback` and `Fuse` without a pre-tokenizer",
        };
        let Some(raw) = raw else {
            return Err(unsupported("decoder", "null".to_owned(), supported));
        };
        let is_right = match split {
            Some(_) => self.is(raw, "ByteLevel")? && self.parse::<ByteLevelJson>(raw.get()).map(|_| true)?,
            None if self.is(raw, "Sequence")? => match self.sequence(raw)?[..] {
                [first, second] => self.is_bare(first, "ByteFallback")? && self.is_bare(second, "Fuse")?,
                _ => false,
            },
            None => false,
        };
        if is_right { Ok(()) } else { Err(unsupported("decoder", self.name_of(raw)?, supported)) }
    }

    /// Older files leave the type of a BPE model out.
    fn check_model_type(self, raw: &'a RawValue) -> Result<(), Error> {
        match self.type_of(raw)?.filter(|name| name != "BPE") {
            Some(name) => Err(unsupported("model", format!("`{name}`"), "`BPE`")),
            None => Ok(()),
        }
    }

    fn model(self, raw: &'a RawValue, split: Option<Split>) -> Result<ModelJson, Error> {
        let model: ModelJson = self.parse(raw.get())?;
        let refuse = |found: String, supported| Err(unsupported("model", found, supported));
        if let Some(dropout) = model.dropout.filter(|&dropout| dropout != 0.0) {
            return refuse(format!("dropout {dropout}"), "null");
        }
        for (field, affix) in [
            ("continuing_subword_prefix", &model.continuing_subword_prefix),
            ("end_of_word_suffix", &model.end_of_word_suffix),
        ] {
            if let Some(affix) = affix.as_deref().filter(|affix| !affix.is_empty()) {
                return refuse(format!("{field} `{affix}`"), "null");
            }
        }
        match split {
            Some(_) if model.byte_fallback => {
                refuse("byte_fallback true".to_owned(), "false with a `ByteLevel` pre-tokenizer")
            }
            None if !model.byte_fallback => {
                refuse("byte_fallback false".to_owned(), "true without a pre-tokenizer")
            }
            None if model.ignore_merges => {
                refuse("ignore_merges true".to_owned(), "false without a pre-tokenizer")
            }
            None if !model.merges.is_empty() => {
                refuse(format!("{} merges", model.merges.len()), "none without a pre-tokenizer")
            }
            _ => Ok(model),
        }
    }
}

/// Takes an added token if it is special and matched as it stands.
fn special_token(token: AddedToken) -> Result<SpecialToken, Error> {
    let AddedToken { id, content, single_word, lstrip, rstrip, normalized, special } = token;
    let reason = match (special, single_word, lstrip, rstrip) {
        (false, ..) => "is an added token that is not special, which is not supported",
        (_, true, ..) => "has `single_word` set, which is not supported",
        (_, _, true, _) => "has `lstrip` set, which is not supported",
        (.., true) => "has `rstrip` set, which is not supported",
        _ => {
            return Ok(SpecialToken { id, content, normalized });
        }
    };
    Err(Error::BadToken { token: content, id, reason })
}

fn parts(model: ModelJson, special: Vec<SpecialToken>, split: Option<Split>) -> Result<Parts, Error> {
    let ModelJson { vocab, merges, ignore_merges, .. } = model;
    let vocab = number_tokens(vocab.0, &special)?;
    let Some(split) = split else {
        return Ok(Parts { vocab, special, model: ModelParts::Char });
    };
    let mut pairs = Vec::with_capacity(merges.len());
    for (merge_idx, MergeJson(left, right)) in merges.into_iter().enumerate() {
        let (Some(left_id), Some(right_id)) = (vocab.id(&left), vocab.id(&right)) else {
            let reason = "one of them is not in the vocabulary";
            return Err(Error::BadMerge { merge_idx, left, right, reason });
        };
        pairs.push((left_id, right_id));
    }
    Ok(Parts { vocab, special, model: ModelParts::Bpe { split, merges: pairs, ignore_merges } })
}

/// Puts all tokens in order of id. Special tokens may stand in the vocabulary as well, with the same id.
fn number_tokens(entries: Vec<(String, u32)>, special: &[SpecialToken]) -> Result<Vocab, Error> {
    let in_vocab = entries.len();
    let mut tokens = entries;
    tokens.extend(special.iter().map(|token| (token.content.clone(), token.id)));
    // By id, then spelling; of a special token's two entries the one in the vocabulary goes.
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by(|&a, &b| (tokens[a].1, &tokens[a].0).cmp(&(tokens[b].1, &tokens[b].0)));
    order.dedup_by(|next, kept| {
        let same = tokens[*next] == tokens[*kept];
        same && (*next >= in_vocab) != (*kept >= in_vocab)
    });
    if let Some(pair) = order.windows(2).find(|pair| tokens[pair[0]].1 == tokens[pair[1]].1) {
        let [(first, id), (second, _)] = [&tokens[pair[0]], &tokens[pair[1]]];
        return Err(duplicate(*id, first.clone(), second.clone()));
    }
    // As many distinct ids as tokens: they are the numbers from 0 if none is too large.
    let n_tokens = order.len();
    if let Some(&idx) = order.last().filter(|&&idx| tokens[idx].1 as usize >= n_tokens) {
        let (token, id) = tokens[idx].clone();
        return Err(Error::IdOutOfRange { token, id, n_tokens });
    }
    Vocab::new(order.into_iter().map(|idx| &tokens[idx].0))
}

fn duplicate(id: u32, first: String, second: String) -> Error {
    if first == second {
        Error::DuplicateToken { token: first, first: id, second: id }
    } else {
        Error::DuplicateId { id, first, second }
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
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rsplit_once(" at line ") {
        Some((reason, _)) => reason.to_owned(),
        None => message,
    }
}
