//! A tokenizer as the keys and values of a GGUF: the way back from what `gguf.rs` reads.
//!
//! The format names a kind and, for byte-level BPE, a split; normalizers, pre-tokenizers and decoders it has none, since
//! they follow from the kind. So those of a tokenizer are compared with what reading would make, and whatever ids depend
//! on and no key can say is refused by name; only NFC before byte-level BPE is left out and reported, because every Qwen in
//! this format is without it. Four things are let go, as everyone who makes such files does: how ids become text follows
//! from the kind, too; words are unknown for WordPiece at no length; of merges with equal results the leftmost comes
//! first; and bytes without a token are left out, whether before merging or after.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::{SPACE, splits};
use crate::base64;
use crate::build::SENTENCEPIECE;
use crate::definition::{BpeDef, Merges, ModelDef, PieceKind, UnigramDef, UnigramRule, WordPieceDef};
use crate::gguf::{Value, Vocabulary};
use crate::normalizer::NormalizerSpec;
use crate::pretokenizer::pattern::PatternSpec;
use crate::sentencepiece_normalizer::SentencePieceJson;
use crate::tokenizer::Inner;
use crate::{Error, Split, Tokenizer, alphabet};

/// Scores are in single precision, which counts no further.
const MAX_RANK: usize = 1 << 24;

/// The keys and their values, in the order in which files have them, and what they leave out.
pub(crate) fn vocabulary(tokenizer: &Tokenizer) -> Result<Vocabulary, Error> {
    let inner = tokenizer.inner();
    let (values, left_out) = (Vec::new(), Vec::new());
    let mut file = Written { inner, tokens: Vec::new(), kinds: Vec::new(), values, left_out };
    file.take_tokens()?;
    match &inner.def.model {
        ModelDef::Bpe(def) if def.byte_level => file.byte_level(def)?,
        ModelDef::Bpe(def) => file.llama(def)?,
        ModelDef::WordPiece(def) => file.bert(def)?,
        ModelDef::Unigram(def) => file.t5(def)?,
        ModelDef::WordLevel(_) => return Err(unsupported("a vocabulary of whole words")),
        ModelDef::Char => return Err(unsupported("a vocabulary of characters")),
    }
    file.special(tokenizer)?;
    if let Some(template) = &inner.def.chat_template {
        file.values.push(("tokenizer.chat_template".to_owned(), template.as_str().into()));
    }
    Ok(Vocabulary { values: file.values, left_out: file.left_out })
}

/// What no key can say.
fn unsupported(found: impl Into<String>) -> Error {
    Error::Unsupported {
        part: "writing the vocabulary of a GGUF",
        found: found.into(),
        supported: "what its keys can say",
    }
}

/// A part of a `tokenizer.json` that no key can say, by its type.
fn unsupported_part(part: &str, json: &Json) -> Error {
    unsupported(format!("the {part} `{}`", json["type"].as_str().unwrap_or("without a type")))
}

/// The normalizer, if it does anything.
fn normalizer(inner: &Inner) -> Option<&Json> {
    let is_empty = |json: &Json| json["normalizers"].as_array().is_some_and(Vec::is_empty);
    inner.def.normalizer.as_ref().filter(|json| !is_empty(json))
}

struct Written<'a> {
    inner: &'a Inner,
    tokens: Vec<String>,
    kinds: Vec<PieceKind>,
    values: Vec<(String, Value)>,
    left_out: Vec<String>,
}

impl Written<'_> {
    fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.values.push((format!("tokenizer.ggml.{key}"), value.into()));
    }

    /// Tokens and kinds by id. An id without a token gets one that no text gives.
    fn take_tokens(&mut self) -> Result<(), Error> {
        let Inner { vocab, def, pipeline, .. } = self.inner;
        for id in 0..vocab.len() as u32 {
            let added = pipeline.added.get(id);
            if let Some(token) = added {
                let flags = [
                    ("lstrip", token.lstrip),
                    ("rstrip", token.rstrip),
                    ("single_word", token.single_word),
                    ("normalized", token.normalized && normalizer(self.inner).is_some()),
                ];
                if let Some((flag, _)) = flags.iter().find(|(_, is_set)| *is_set) {
                    return Err(unsupported(format!("`{flag}` of the added token `{}`", token.content)));
                }
            }
            let kind = match (def.model.kinds().get(id as usize), added, vocab.token(id)) {
                (_, _, None) => PieceKind::Unused,
                (Some(&kind), None, _) => kind,
                (Some(&PieceKind::Unknown), ..) => PieceKind::Unknown,
                (_, Some(added), _) if added.special => PieceKind::Control,
                (_, Some(_), _) => PieceKind::UserDefined,
                (None, None, _) => PieceKind::Normal,
            };
            let token = match vocab.token(id) {
                Some(token) => token.to_owned(),
                None => format!("[PAD{id}]"),
            };
            self.tokens.push(token);
            self.kinds.push(kind);
        }
        Ok(())
    }

    fn holes_are_refused(&self) -> Result<(), Error> {
        let hole = (0..self.tokens.len() as u32).find(|&id| self.inner.vocab.token(id).is_none());
        hole.map_or(Ok(()), |id| Err(unsupported(format!("id {id}, which has no token"))))
    }

    /// What all kinds have first.
    fn set_tokens(&mut self, model: &str, pre: &str) -> Result<(), Error> {
        let mut seen = HashSet::new();
        if let Some(twice) = self.tokens.iter().find(|token| !seen.insert(token.as_str())) {
            return Err(unsupported(format!("two tokens that are both spelled `{twice}` there")));
        }
        drop(seen);
        self.set("model", model);
        self.set("pre", pre);
        let tokens = std::mem::take(&mut self.tokens);
        self.set("tokens", tokens);
        let kinds: Vec<i32> = self.kinds.iter().map(|&kind| kind as i32).collect();
        self.set("token_type", kinds);
        Ok(())
    }

    fn byte_level(&mut self, def: &BpeDef) -> Result<(), Error> {
        if let Some(normalizer) = normalizer(self.inner) {
            if !NormalizerSpec::deserialize(normalizer).is_ok_and(|spec| is_nfc(&spec)) {
                return Err(unsupported_part("normalizer", normalizer));
            }
            self.left_out.push("the normalizer `NFC`: text that is not composed gets other ids".to_owned());
        }
        if let (Some(unk), Some(missing)) = (&def.unk_token, self.inner.pipeline.model.missing()) {
            let byte = missing.bytes()[0];
            return Err(unsupported(format!(
                "the `unk_token` `{unk}` for byte {byte:#04x}, which has no token and is left out there"
            )));
        }
        let pre_tokenizer = self.inner.def.pre_tokenizer.as_ref().unwrap_or(&Json::Null);
        let patterns =
            patterns(pre_tokenizer).ok_or_else(|| unsupported_part("pre_tokenizer", pre_tokenizer))?;
        let pre = splits::name(&patterns, def.ignore_merges).ok_or_else(|| {
            let whole = if def.ignore_merges { ", with pieces that are tokens kept whole" } else { "" };
            unsupported(format!("the split by `{}`{whole}", patterns.join("`, `")))
        })?;
        let Merges::Ranked(pairs) = &def.merges else { return Err(unsupported("merges without ranks")) };
        let spell = |id| self.inner.vocab.token(id).unwrap_or_default();
        let merge = |&(left, right): &(u32, u32)| match (spell(left), spell(right)) {
            (left, right) if left.contains(' ') || right.contains(' ') => {
                Err(unsupported(format!("the merge of `{left}` and `{right}`, which have a space")))
            }
            (left, right) => Ok(format!("{left} {right}")),
        };
        let merges = pairs.iter().map(merge).collect::<Result<Vec<_>, _>>()?;
        self.set_tokens("gpt2", pre)?;
        self.set("merges", merges);
        Ok(())
    }

    fn llama(&mut self, def: &BpeDef) -> Result<(), Error> {
        self.holes_are_refused()?;
        let is_empty = |affix: &Option<String>| affix.as_deref().is_none_or(str::is_empty);
        for (name, is_set) in [
            ("ignore_merges", def.ignore_merges),
            ("continuing_subword_prefix", !is_empty(&def.continuing_subword_prefix)),
            ("end_of_word_suffix", !is_empty(&def.end_of_word_suffix)),
        ] {
            if is_set {
                return Err(unsupported(format!("`{name}` of BPE over characters")));
            }
        }
        if self.kinds.contains(&PieceKind::Unused) {
            return Err(unsupported("unused tokens of BPE, which merge there"));
        }
        let unk = self.unknown(def.unk_token.as_deref())?;
        self.kinds[unk as usize] = PieceKind::Unknown;
        if def.byte_fallback {
            for (token, kind) in self.tokens.iter().zip(&mut self.kinds) {
                if *kind == PieceKind::Normal && alphabet::parse_fallback(token).is_some() {
                    *kind = PieceKind::Byte;
                }
            }
        }
        let n_bytes = self.kinds.iter().filter(|&&kind| kind == PieceKind::Byte).count();
        if !def.fuse_unk && n_bytes < 256 {
            return Err(unsupported("`fuse_unk` false: unknown characters in a row are one token there"));
        }
        let add_prefix = self.llama_prefix()?;
        let mut scores = match &def.merges {
            Merges::Scored(scores) => scores.clone(),
            Merges::Ranked(pairs) => self.scores(pairs)?,
            Merges::ById => return Err(unsupported("merges by id over characters")),
        };
        scores.resize(self.tokens.len(), 0.0);
        self.set_tokens("llama", "default")?;
        self.set("scores", scores);
        self.set("add_space_prefix", add_prefix);
        self.set("unknown_token_id", unk);
        Ok(())
    }

    /// Whether a space is put before a text whose spaces become U+2581, and nothing else happens to it.
    fn llama_prefix(&self) -> Result<bool, Error> {
        // Gemma cuts at spaces, of which its normalizer leaves none.
        let at_spaces = json!({
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false
        });
        if let Some(part) = self.inner.def.pre_tokenizer.as_ref().filter(|part| **part != at_spaces) {
            return Err(unsupported_part("pre_tokenizer", part));
        }
        let json = self.inner.def.normalizer.as_ref();
        let Some(json) = json else { return Err(unsupported("spaces that do not become U+2581")) };
        if json["type"] == SENTENCEPIECE {
            let part = self.sentencepiece(json)?;
            if !part.precompiled_charsmap.is_empty() || part.remove_extra_whitespaces {
                return Err(unsupported("BPE after sentencepiece's normalizer, other than the identity"));
            }
            return Ok(part.add_dummy_prefix);
        }
        let refused = || unsupported_part("normalizer", json);
        let steps = match NormalizerSpec::deserialize(json).map_err(|_| refused())? {
            NormalizerSpec::Sequence { normalizers } => normalizers,
            step => vec![step],
        };
        let is_space = |step: &NormalizerSpec| {
            matches!(step, NormalizerSpec::Replace { pattern: PatternSpec::String(pattern), content }
                if pattern == " " && content == SPACE)
        };
        match &steps[..] {
            [replace] if is_space(replace) => Ok(false),
            [NormalizerSpec::Prepend { prepend }, replace] if prepend == SPACE && is_space(replace) => {
                Ok(true)
            }
            _ => Err(refused()),
        }
    }

    /// What sentencepiece's own normalizer does, but for what no key can say.
    fn sentencepiece(&self, json: &Json) -> Result<SentencePieceJson, Error> {
        let part = SentencePieceJson::deserialize(json).map_err(|_| unsupported_part("normalizer", json))?;
        if part.treat_whitespace_as_suffix || !part.escape_whitespaces {
            return Err(unsupported("spaces after words, or as they are, in sentencepiece's normalizer"));
        }
        Ok(part)
    }

    /// Scores by which the same neighbours merge in the same order as by rank.
    ///
    /// By score, any two neighbours merge whose concatenation is a token. So every such pair must be ranked, and those
    /// with one result must stand together, as in vocabularies that came from sentencepiece.
    fn scores(&self, pairs: &[(u32, u32)]) -> Result<Vec<f32>, Error> {
        let vocab = &self.inner.vocab;
        let spell = |id: u32| vocab.token(id).unwrap_or_default();
        let mut order: HashMap<u32, usize> = HashMap::new();
        let mut last = None;
        for &(left, right) in pairs {
            let joined = [spell(left), spell(right)].concat();
            let id = vocab.id(&joined);
            if id != last {
                let rank = order.len();
                if let Some(id) = id
                    && order.insert(id, rank).is_some()
                {
                    return Err(unsupported(format!("merges into `{joined}` with others between them")));
                }
                last = id;
            }
        }
        if order.len() > MAX_RANK {
            return Err(unsupported(format!("{} merges (at most {MAX_RANK})", order.len())));
        }
        let ranked: HashSet<(u32, u32)> = pairs.iter().copied().collect();
        let is_normal = |&id: &u32| self.kinds[id as usize] == PieceKind::Normal;
        for (token, id) in vocab.iter().filter(|(_, id)| is_normal(id)) {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                let parts = [left, right].map(|part| vocab.id(part).filter(is_normal));
                if let [Some(left_id), Some(right_id)] = parts
                    && !ranked.contains(&(left_id, right_id))
                {
                    return Err(unsupported(format!(
                        "`{left}` and `{right}`, which do not merge to token {id}"
                    )));
                }
            }
        }
        let worst = order.len();
        let score = |id: u32| -(order.get(&id).copied().unwrap_or(worst) as f32);
        Ok((0..self.tokens.len() as u32).map(score).collect())
    }

    fn bert(&mut self, def: &WordPieceDef) -> Result<(), Error> {
        self.holes_are_refused()?;
        let unk = self.unknown(Some(&def.unk_token))?;
        let json = self.inner.def.normalizer.as_ref().unwrap_or(&Json::Null);
        let Ok(NormalizerSpec::BertNormalizer {
            clean_text: true,
            handle_chinese_chars: true,
            strip_accents,
            lowercase,
        }) = NormalizerSpec::deserialize(json)
        else {
            return Err(unsupported_part("normalizer (other than BERT's, with all it does)", json));
        };
        let pre_tokenizer = self.inner.def.pre_tokenizer.as_ref().unwrap_or(&Json::Null);
        if pre_tokenizer["type"] != "BertPreTokenizer" {
            return Err(unsupported_part("pre_tokenizer", pre_tokenizer));
        }
        let prefix = &def.continuing_subword_prefix;
        match (def.word_start.as_str(), prefix.is_empty()) {
            (SPACE, true) => {}
            ("", false) => {
                for (token, kind) in self.tokens.iter_mut().zip(&self.kinds) {
                    if *kind == PieceKind::Normal {
                        *token = match token.strip_prefix(prefix.as_str()) {
                            Some(rest) => rest.to_owned(),
                            None => format!("{SPACE}{token}"),
                        };
                    }
                }
            }
            _ => return Err(unsupported("WordPiece that marks neither starts nor continuations of words")),
        }
        self.set_tokens("bert", "default")?;
        self.set("normalizer.lowercase", lowercase);
        self.set("normalizer.strip_accents", strip_accents.unwrap_or(lowercase));
        self.set("unknown_token_id", unk);
        Ok(())
    }

    fn t5(&mut self, def: &UnigramDef) -> Result<(), Error> {
        self.holes_are_refused()?;
        if def.byte_fallback {
            return Err(unsupported("Unigram with byte fallback"));
        }
        if let Some(part) = &self.inner.def.pre_tokenizer {
            return Err(unsupported_part("pre_tokenizer", part));
        }
        let json = self.inner.def.normalizer.as_ref().unwrap_or(&Json::Null);
        if json["type"] != SENTENCEPIECE || def.rule == UnigramRule::HuggingFace {
            return Err(unsupported(
                "Unigram of a `tokenizer.json`, whose normalizer is not sentencepiece's (its `.model` can be written)",
            ));
        }
        let is_treated_otherwise = |kind| matches!(kind, &PieceKind::UserDefined | &PieceKind::Unused);
        if def.rule == UnigramRule::SentencePiece && self.kinds.iter().any(is_treated_otherwise) {
            return Err(unsupported("user-defined or unused tokens of Unigram as sentencepiece treats them"));
        }
        let part = self.sentencepiece(json)?;
        let unk = def.unk_id.ok_or_else(|| unsupported("Unigram without a token for what is unknown"))?;
        let charsmap = base64::decode(part.precompiled_charsmap.as_bytes())
            .ok_or_else(|| unsupported("a map of characters that is not base64"))?;
        let mut scores: Vec<f32> = def.scores.iter().map(|&score| score as f32).collect();
        let inexact = def.scores.iter().zip(&scores).position(|(&exact, &score)| f64::from(score) != exact);
        if let Some(id) = inexact {
            let found =
                format!("the score {} of token {id}, which single precision cannot hold", def.scores[id]);
            return Err(unsupported(found));
        }
        scores.resize(self.tokens.len(), 0.0);
        self.set_tokens("t5", "default")?;
        self.set("scores", scores);
        self.set("add_space_prefix", part.add_dummy_prefix);
        self.set("remove_extra_whitespaces", part.remove_extra_whitespaces);
        if !charsmap.is_empty() {
            self.set("precompiled_charsmap", charsmap);
        }
        self.set("unknown_token_id", unk);
        Ok(())
    }

    fn unknown(&self, token: Option<&str>) -> Result<u32, Error> {
        let by_kind = || self.kinds.iter().position(|&kind| kind == PieceKind::Unknown).map(|id| id as u32);
        let id = token.and_then(|token| self.inner.vocab.id(token)).or_else(by_kind);
        id.ok_or_else(|| unsupported("no token for what is unknown"))
    }

    /// What goes around a text, which may be one token at either side, and the other ids that have a name.
    fn special(&mut self, tokenizer: &Tokenizer) -> Result<(), Error> {
        let named = self.inner.def.special;
        let (before, after) = tokenizer.around();
        let one = |ids: &[u32], place: &str| match ids {
            [] => Ok(None),
            &[id] => Ok(Some(id)),
            _ => Err(unsupported(format!("{} tokens {place} a text", ids.len()))),
        };
        let (first, last) = (one(before, "before")?, one(after, "after")?);
        let is_bert = matches!(self.inner.def.model, ModelDef::WordPiece(_));
        let (cls, sep) = if is_bert { (first, last) } else { (None, None) };
        for (key, id) in [
            ("bos_token_id", first.or(named.bos)),
            ("eos_token_id", last.or_else(|| tokenizer.eos_id())),
            ("padding_token_id", named.pad),
            ("seperator_token_id", sep.or(named.sep)),
            ("cls_token_id", cls.or(named.cls)),
        ] {
            if let Some(id) = id {
                self.set(key, id);
            }
        }
        self.set("add_bos_token", first.is_some());
        self.set("add_eos_token", last.is_some());
        if is_bert {
            self.set("add_sep_token", last.is_some());
        }
        Ok(())
    }
}

/// Whether a normalizer composes characters and does nothing else.
fn is_nfc(spec: &NormalizerSpec) -> bool {
    match spec {
        NormalizerSpec::Nfc {} => true,
        NormalizerSpec::Sequence { normalizers } => normalizers.iter().all(is_nfc),
        _ => false,
    }
}

/// The patterns by which a byte-level pre-tokenizer cuts, one after the other; nothing if it does anything else.
fn patterns(json: &Json) -> Option<Vec<&str>> {
    let flag = |name: &str, default: bool| json.get(name).map_or(Some(default), Json::as_bool);
    match json.get("type")?.as_str()? {
        "Sequence" => {
            let steps = json.get("pretokenizers")?.as_array()?.iter();
            steps.map(patterns).collect::<Option<Vec<_>>>().map(|steps| steps.concat())
        }
        "ByteLevel" if flag("add_prefix_space", true)? => None,
        "ByteLevel" if flag("use_regex", true)? => Some(vec![Split::Gpt2.regex()]),
        "ByteLevel" => Some(Vec::new()),
        "Digits" if flag("individual_digits", false)? => Some(vec![r"\p{N}"]),
        "Split" => {
            let pattern = json.get("pattern")?.get("Regex")?.as_str()?;
            let keeps_all = match json.get("behavior")?.as_str()? {
                "Isolated" => !flag("invert", false)?,
                // What lies between matches goes: nothing, for the patterns that match all text.
                "Removed" => flag("invert", false)? && Split::from_regex(pattern).is_some(),
                _ => false,
            };
            keeps_all.then(|| vec![pattern])
        }
        _ => None,
    }
}
