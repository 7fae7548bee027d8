//! The vocabulary inside a GGUF, as llama.cpp reads it.
//!
//! `tokenizer.ggml.model` names the kind: `gpt2` (byte-level BPE, whose split `tokenizer.ggml.pre` names), `llama`
//! (sentencepiece's BPE), `bert` (WordPiece) and `t5` (Unigram). Kinds and splits that are not known are refused by name.
//! Where llama.cpp leaves out what the original tokenizer does (a normalizer in front of byte-level BPE), so does this:
//! the file does not say it. Bytes without a token are left out before merging, as everywhere in this crate; llama.cpp
//! leaves them out after it, so that what stands on both sides never merges there.

mod splits;
mod write;

use serde_json::{Value, json};

use super::gpt2::{ids, pairs};
use crate::Error;
use crate::base64;
use crate::charsmap::CharsMap;
use crate::definition::{
    AddedTokenDef, BpeDef, Definition, Merges, ModelDef, PieceKind, SpecialIds, UnigramDef, UnigramRule,
    WordPieceDef, byte_level,
};
use crate::gguf::Header;
use crate::sentencepiece_normalizer::{PartName, SentencePieceJson};

pub(super) use write::vocabulary;

/// What spells a space in `llama`, `t5` and `bert` vocabularies.
const SPACE: &str = "\u{2581}";

/// Reads the key/value part of a GGUF; what follows it is not looked at.
pub(crate) fn parse(bytes: &[u8]) -> Result<Definition, Error> {
    let header = Header::parse(bytes)?;
    let vocab = Vocab::new(&header)?;
    let (model, parts) = match header.text("tokenizer.ggml.model")?.unwrap_or("no model") {
        "gpt2" => vocab.byte_level(&header)?,
        "llama" => vocab.llama(&header)?,
        "bert" => vocab.bert(&header)?,
        "t5" => vocab.t5(&header)?,
        other => {
            return Err(Error::Unsupported {
                part: "tokenizer.ggml.model",
                found: format!("`{other}`"),
                supported: "`gpt2`, `llama`, `bert` and `t5`",
            });
        }
    };
    Ok(Definition {
        added: vocab.added(),
        normalizer: parts.normalizer,
        pre_tokenizer: parts.pre_tokenizer,
        post_processor: None,
        decoder: Some(parts.decoder),
        special: vocab.special(&header, parts.defaults)?,
        chat_template: header.text("tokenizer.chat_template")?.map(str::to_owned),
        truncation: None,
        padding: None,
        vocab: vocab.tokens,
        model,
    })
}

/// What stands around a model, and what it holds for special if the file does not say.
struct Parts {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Value,
    defaults: SpecialIds,
}

/// Tokens with their types and scores.
struct Vocab {
    tokens: Vec<(String, u32)>,
    kinds: Vec<PieceKind>,
    scores: Vec<f32>,
    unk: Option<u32>,
}

impl Vocab {
    fn new(header: &Header<'_>) -> Result<Self, Error> {
        let key = "tokenizer.ggml.tokens";
        let texts = header.texts(key)?.ok_or_else(|| header.missing(key))?;
        // llama.cpp gives empty tokens, which some files have, a name of their own.
        let name = |(text, id): (&str, u32)| {
            (if text.is_empty() { format!("[EMPTY_{id}]") } else { text.to_owned() }, id)
        };
        let tokens: Vec<(String, u32)> = texts.into_iter().zip(0..).map(name).collect();
        ids(&tokens)?;
        // 0 is "undefined", which llama.cpp treats as a normal token.
        let kind = |(number, id): (i64, usize)| {
            let kind = if number == 0 { Some(PieceKind::Normal) } else { PieceKind::from_number(number) };
            kind.ok_or_else(|| {
                let token = tokens.get(id).map_or("", |(token, _)| token.as_str());
                let found = format!("type {number} of token `{token}` (id {id})");
                unsupported("tokenizer.ggml.token_type", &found, "0 to 6")
            })
        };
        let kinds = match header.numbers("tokenizer.ggml.token_type")? {
            Some(numbers) => numbers.into_iter().zip(0..).map(kind).collect::<Result<Vec<_>, _>>()?,
            None => vec![PieceKind::Normal; tokens.len()],
        };
        let scores = header.floats("tokenizer.ggml.scores")?.unwrap_or_else(|| vec![0.0; tokens.len()]);
        for (part, n) in [("tokenizer.ggml.token_type", kinds.len()), ("tokenizer.ggml.scores", scores.len())]
        {
            if n != tokens.len() {
                let found = format!("{n} entries for {} tokens", tokens.len());
                return Err(unsupported(part, &found, "an entry for each token"));
            }
        }
        let unk = header.id("tokenizer.ggml.unknown_token_id")?;
        Ok(Self { tokens, kinds, scores, unk })
    }

    /// Control tokens are special; user-defined ones are found in any text.
    fn added(&self) -> Vec<AddedTokenDef> {
        let def = |((content, id), kind): (&(String, u32), &PieceKind)| match kind {
            PieceKind::Control | PieceKind::Unknown => Some(AddedTokenDef::special(*id, content.as_str())),
            PieceKind::UserDefined => {
                Some(AddedTokenDef { special: false, ..AddedTokenDef::special(*id, content.as_str()) })
            }
            _ => None,
        };
        self.tokens.iter().zip(&self.kinds).filter_map(def).collect()
    }

    fn special(&self, header: &Header<'_>, defaults: SpecialIds) -> Result<SpecialIds, Error> {
        let id = |key: &str, default: Option<u32>| {
            let id = header.id(key)?;
            if let Some(id) = id.filter(|&id| id as usize >= self.tokens.len()) {
                return Err(Error::UnknownId { id, vocab_size: self.tokens.len() });
            }
            Ok(id.or(default.filter(|&id| (id as usize) < self.tokens.len())))
        };
        Ok(SpecialIds {
            bos: id("tokenizer.ggml.bos_token_id", defaults.bos)?,
            eos: id("tokenizer.ggml.eos_token_id", defaults.eos)?,
            unk: id("tokenizer.ggml.unknown_token_id", defaults.unk)?,
            pad: id("tokenizer.ggml.padding_token_id", defaults.pad)?,
            // The format's own spelling.
            sep: id("tokenizer.ggml.seperator_token_id", defaults.sep)?,
            cls: id("tokenizer.ggml.cls_token_id", defaults.cls)?,
            add_bos: header.flag("tokenizer.ggml.add_bos_token")?.or(defaults.add_bos),
            add_eos: header
                .flag("tokenizer.ggml.add_eos_token")?
                .or(header.flag("tokenizer.ggml.add_sep_token")?)
                .or(defaults.add_eos),
        })
    }

    fn byte_level(&self, header: &Header<'_>) -> Result<(ModelDef, Parts), Error> {
        let name = header.text("tokenizer.ggml.pre")?.unwrap_or("default");
        let split = splits::find(name).ok_or_else(|| {
            unsupported("tokenizer.ggml.pre", &format!("`{name}`"), "the splits of this version")
        })?;
        let key = "tokenizer.ggml.merges";
        let merges = header.texts(key)?.ok_or_else(|| header.missing(key))?;
        let mut both = Vec::with_capacity(merges.len());
        for (merge_idx, merge) in merges.into_iter().enumerate() {
            // A left token may start with a space.
            let first_len = merge.chars().next().map_or(0, char::len_utf8);
            let space = merge[first_len..].find(' ').map(|idx| idx + first_len);
            let pair = space.map(|idx| (&merge[..idx], &merge[idx + 1..]));
            both.push(pair.ok_or_else(|| Error::BadMerge {
                merge_idx,
                left: merge.to_owned(),
                right: String::new(),
                reason: "it is not two tokens with a space between",
            })?);
        }
        let def = BpeDef {
            merges: Merges::Ranked(pairs(both, &ids(&self.tokens)?)?),
            byte_level: true,
            ignore_merges: split.ignore_merges,
            ..BpeDef::default()
        };
        let parts = Parts {
            normalizer: None,
            pre_tokenizer: Some(split.pre_tokenizer()),
            decoder: byte_level(true),
            defaults: SpecialIds { add_bos: split.add_bos.then_some(true), ..SpecialIds::default() },
        };
        Ok((ModelDef::Bpe(def), parts))
    }

    fn llama(&self, header: &Header<'_>) -> Result<(ModelDef, Parts), Error> {
        let defaults = SpecialIds {
            bos: Some(1),
            eos: Some(2),
            unk: Some(0),
            add_bos: Some(true),
            add_eos: Some(false),
            ..SpecialIds::default()
        };
        let add_prefix = header.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let unk = self.unk.or(defaults.unk).and_then(|id| self.tokens.get(id as usize));
        let unk = unk.ok_or_else(|| header.missing("tokenizer.ggml.unknown_token_id"))?;
        let def = BpeDef {
            merges: Merges::Scored(self.scores.clone()),
            byte_fallback: self.kinds.contains(&PieceKind::Byte),
            unk_token: Some(unk.0.clone()),
            fuse_unk: true,
            // llama.cpp gives out unused tokens as they are.
            kinds: self
                .kinds
                .iter()
                .map(|&kind| if kind == PieceKind::Unused { PieceKind::Normal } else { kind })
                .collect(),
            ..BpeDef::default()
        };
        let parts = Parts {
            normalizer: Some(space_normalizer(add_prefix)),
            pre_tokenizer: None,
            decoder: space_decoder(add_prefix),
            defaults,
        };
        Ok((ModelDef::Bpe(def), parts))
    }

    fn bert(&self, header: &Header<'_>) -> Result<(ModelDef, Parts), Error> {
        let defaults = SpecialIds {
            bos: Some(101),
            unk: Some(100),
            sep: Some(102),
            cls: Some(101),
            pad: Some(0),
            add_bos: Some(true),
            add_eos: Some(true),
            ..SpecialIds::default()
        };
        let unk = self.unk.or(defaults.unk).and_then(|id| self.tokens.get(id as usize));
        let unk = unk.ok_or_else(|| header.missing("tokenizer.ggml.unknown_token_id"))?;
        let flag = |key: &str| Ok(header.flag(key)?.unwrap_or(true));
        let lowercase = flag("tokenizer.ggml.normalizer.lowercase")?;
        let strip_accents = flag("tokenizer.ggml.normalizer.strip_accents")?;
        let def = WordPieceDef {
            unk_token: unk.0.clone(),
            continuing_subword_prefix: String::new(),
            word_start: SPACE.to_owned(),
            max_input_chars_per_word: usize::MAX,
        };
        let normalizer = json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": true,
            "strip_accents": strip_accents,
            "lowercase": lowercase,
        });
        let parts = Parts {
            normalizer: Some(normalizer),
            pre_tokenizer: Some(json!({"type": "BertPreTokenizer"})),
            decoder: space_decoder(true),
            defaults,
        };
        Ok((ModelDef::WordPiece(def), parts))
    }

    fn t5(&self, header: &Header<'_>) -> Result<(ModelDef, Parts), Error> {
        let defaults = SpecialIds {
            eos: Some(1),
            unk: Some(2),
            pad: Some(0),
            add_bos: Some(false),
            add_eos: Some(true),
            ..SpecialIds::default()
        };
        let flag = |key: &str| Ok(header.flag(key)?.unwrap_or(false));
        let add_prefix = flag("tokenizer.ggml.add_space_prefix")?;
        let charsmap = header.raw_bytes("tokenizer.ggml.precompiled_charsmap")?.unwrap_or_default();
        CharsMap::parse(charsmap)?;
        let user_defined = self.tokens.iter().zip(&self.kinds);
        let user_defined = user_defined.filter(|(_, kind)| **kind == PieceKind::UserDefined);
        let part = SentencePieceJson {
            name: PartName::SentencePiece,
            precompiled_charsmap: base64::encode(charsmap),
            add_dummy_prefix: add_prefix,
            remove_extra_whitespaces: flag("tokenizer.ggml.remove_extra_whitespaces")?,
            escape_whitespaces: true,
            treat_whitespace_as_suffix: false,
            user_defined_symbols: user_defined.map(|((token, _), _)| token.clone()).collect(),
        };
        let def = UnigramDef {
            scores: self.scores.iter().map(|&score| f64::from(score)).collect(),
            unk_id: self.unk.or(defaults.unk),
            byte_fallback: false,
            rule: UnigramRule::LlamaCpp,
            kinds: self.kinds.clone(),
        };
        let parts = Parts {
            normalizer: Some(serde_json::to_value(part).map_err(|error| {
                unsupported("tokenizer.ggml.tokens", &error.to_string(), "tokens that JSON can spell")
            })?),
            pre_tokenizer: None,
            decoder: space_decoder(add_prefix),
            defaults,
        };
        Ok((ModelDef::Unigram(def), parts))
    }
}

/// Spaces to U+2581, and one more before the text if `add_prefix`.
pub(super) fn space_normalizer(add_prefix: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prepend = json!({"type": "Prepend", "prepend": SPACE});
    let normalizers = if add_prefix { vec![prepend, replace] } else { vec![replace] };
    json!({"type": "Sequence", "normalizers": normalizers})
}

/// U+2581 to spaces, bytes to characters, and without the space that was put before the text.
pub(super) fn space_decoder(strip: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strip {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}

fn unsupported(part: &'static str, found: &str, supported: &'static str) -> Error {
    Error::Unsupported { part, found: found.to_owned(), supported }
}

#[cfg(test)]
mod tests;
