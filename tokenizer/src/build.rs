//! From a definition to a tokenizer: everything that must be checked before the parts may work together.
//!
//! Whether a definition comes from a file of any format or from training, this is the only way in, so whatever holds of
//! one tokenizer holds of all: no special token comes out of plain text, every id has one spelling, and it is
//! known which bytes a byte-level vocabulary has no token for.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::added::AddedTokens;
use crate::alphabet::NO_BYTE;
use crate::bpe::{Becomes, Bpe, MAX_IDS, Merge, Missing, Pair, merges_by_id};
use crate::char_bpe::CharBpe;
use crate::char_level::CharLevel;
use crate::decoder::{Decoder, DecoderSpec};
use crate::decoding::Decoding;
use crate::definition::{BpeDef, Definition, Merges, ModelDef, PieceKind, SpecialIds};
use crate::hash::Seeded;
use crate::model::{Model, TokenLens, unk_id};
use crate::normalizer::NormalizerSpec;
use crate::pipeline::{AnyNormalizer, Pipeline};
use crate::postprocessor::{Around, PostProcessorSpec};
use crate::pretokenizer::{PreTokenizer, PreTokenizerSpec};
use crate::sentencepiece_normalizer::{SentencePieceDecoder, SentencePieceNormalizer};
use crate::tokenizer::Inner;
use crate::unigram::Unigram;
use crate::vocab::{TokenBytes, Vocab};
use crate::wordlevel::WordLevel;
use crate::wordpiece::WordPiece;
use crate::{Error, alphabet};

/// The type of sentencepiece's own normalizer and decoder, which `tokenizer.json` does not know.
pub(crate) const SENTENCEPIECE: &str = "SentencePiece";

/// Checks a definition and makes it ready.
pub(crate) fn build(mut def: Definition) -> Result<Inner, Error> {
    let (vocab, added_only) = vocab(&def)?;
    let normalizer = normalizer(def.normalizer.as_ref())?;
    let added = added(&def, &normalizer)?;
    let pre_tokenizer = match &def.pre_tokenizer {
        Some(json) => Some(spec::<PreTokenizerSpec>(json, "pre_tokenizer")?.compile()?),
        None => None,
    };
    let template = match &def.post_processor {
        Some(json) => spec::<PostProcessorSpec>(json, "post_processor")?.compile(|token| vocab.id(token))?,
        None => Around::default(),
    };
    let around = around(template, &def.special, &vocab)?;
    check_bytes(&def.model, pre_tokenizer.as_ref())?;
    let decoding = decoding(&def, &vocab, &added)?;
    let model = model(&mut def, &vocab, &added)?;
    // The vocabulary has the spellings from here on.
    def.vocab = Vec::new();
    let pipeline = Pipeline { added, normalizer, pre_tokenizer, model };
    Ok(Inner::new(def, vocab, added_only, pipeline, decoding, around))
}

/// All tokens, and the ids of those that only the list of added tokens has.
fn vocab(def: &Definition) -> Result<(Vocab, Vec<u32>), Error> {
    let known: HashMap<&str, u32, Seeded> =
        def.vocab.iter().map(|(token, id)| (token.as_str(), *id)).collect();
    let mut tokens: Vec<(&str, u32)> = def.vocab.iter().map(|(token, id)| (token.as_str(), *id)).collect();
    let mut added_only = Vec::new();
    for token in &def.added {
        match known.get(token.content.as_str()) {
            Some(&id) if id == token.id => {}
            Some(&first) => {
                return Err(Error::DuplicateToken { token: token.content.clone(), first, second: token.id });
            }
            None => {
                tokens.push((&token.content, token.id));
                added_only.push(token.id);
            }
        }
    }
    added_only.sort_unstable();
    Ok((Vocab::new(tokens.into_iter())?, added_only))
}

/// Reads a part as `tokenizer.json` spells it.
fn spec<T: DeserializeOwned>(json: &Value, part: &'static str) -> Result<T, Error> {
    T::deserialize(json).map_err(|error| Error::Unsupported {
        part,
        found: error.to_string(),
        supported: "the parts of a `tokenizer.json`",
    })
}

fn is_sentencepiece(json: &Value) -> bool {
    json.get("type").and_then(Value::as_str) == Some(SENTENCEPIECE)
}

fn normalizer(json: Option<&Value>) -> Result<AnyNormalizer, Error> {
    Ok(match json {
        None => AnyNormalizer::None,
        Some(json) if is_sentencepiece(json) => {
            AnyNormalizer::SentencePiece(SentencePieceNormalizer::from_json(json)?)
        }
        Some(json) => AnyNormalizer::Parts(spec::<NormalizerSpec>(json, "normalizer")?.compile()?),
    })
}

fn added(def: &Definition, normalizer: &AnyNormalizer) -> Result<AddedTokens, Error> {
    if let Some(token) = def.added.iter().find(|token| token.special && token.content.is_empty()) {
        return Err(Error::BadSpecial { token: token.content.clone(), reason: "is empty" });
    }
    let normalizer = match normalizer {
        AnyNormalizer::Parts(normalizer) => Some(normalizer),
        _ => None,
    };
    AddedTokens::new(def.added.clone(), normalizer)
}

/// What goes around a text: what the post-processor says, or else the ids that the file names.
fn around(template: Around, special: &SpecialIds, vocab: &Vocab) -> Result<Around, Error> {
    for id in
        [special.bos, special.eos, special.unk, special.pad, special.sep, special.cls].into_iter().flatten()
    {
        if vocab.token(id).is_none() {
            return Err(Error::UnknownId { id, vocab_size: vocab.len() });
        }
    }
    let Around { mut prefix, mut suffix } = template;
    if special.add_bos == Some(true) && prefix.is_empty() {
        prefix.extend(special.bos.or(special.cls));
    }
    if special.add_eos == Some(true) && suffix.is_empty() {
        suffix.extend(special.eos.or(special.sep));
    }
    Ok(Around { prefix, suffix })
}

/// Byte-level models and pre-tokenizers go together.
fn check_bytes(model: &ModelDef, pre_tokenizer: Option<&PreTokenizer>) -> Result<(), Error> {
    let pieces_are_bytes = pre_tokenizer.is_some_and(PreTokenizer::is_byte_level);
    let model_has_bytes = matches!(model, ModelDef::Bpe(BpeDef { byte_level: true, .. }));
    match (pieces_are_bytes, model_has_bytes) {
        (true, false) => Err(Error::Unsupported {
            part: "pre_tokenizer",
            found: "`ByteLevel` before a model that is not BPE".to_owned(),
            supported: "`ByteLevel` with BPE",
        }),
        (false, true) => Err(Error::Unsupported {
            part: "pre_tokenizer",
            found: "a byte-level vocabulary without `ByteLevel`".to_owned(),
            supported: "`ByteLevel` as the last pre-tokenizer",
        }),
        _ => Ok(()),
    }
}

fn decoding(def: &Definition, vocab: &Vocab, added: &AddedTokens) -> Result<Decoding, Error> {
    let decoder = match &def.decoder {
        Some(json) if is_sentencepiece(json) => {
            let decoder = spec::<SentencePieceDecoder>(json, "decoder")?;
            return Decoding::sentencepiece(decoder, def.model.kinds().to_vec(), vocab);
        }
        Some(json) => spec::<DecoderSpec>(json, "decoder")?.compile()?,
        None => Decoder::spaces(),
    };
    Decoding::new(decoder, vocab, |id| added.get(id).is_some())
}

fn model(def: &mut Definition, vocab: &Vocab, added: &AddedTokens) -> Result<Model, Error> {
    let unk_token = def.model.unk_token().map(str::to_owned);
    // Special tokens take no part in a model: whatever text spells, it is no marker.
    let n_ids = def.vocab.iter().map(|&(_, id)| id as usize + 1).max().unwrap_or(0);
    let mut tokens = vec![""; n_ids];
    for (token, id) in &def.vocab {
        let is_special = added.get(*id).is_some_and(|token| token.special);
        if !is_special || unk_token.as_ref() == Some(token) {
            tokens[*id as usize] = token;
        }
    }
    Ok(match &mut def.model {
        ModelDef::Bpe(bpe) if bpe.byte_level => {
            let (bpe, lens) = byte_level(bpe, &tokens, vocab, added)?;
            Model::Bytes(Box::new(bpe), lens)
        }
        ModelDef::Bpe(bpe) => Model::Chars(Box::new(CharBpe::new(&tokens, bpe)?)),
        ModelDef::Char => Model::Char(Box::new(char_level(&tokens, added)?)),
        ModelDef::Unigram(unigram) => Model::Unigram(Unigram::new(&tokens, unigram)?),
        ModelDef::WordPiece(word_piece) => Model::WordPiece(WordPiece::new(&tokens, word_piece)?),
        ModelDef::WordLevel(word_level) => Model::WordLevel(WordLevel::new(&tokens, word_level)?),
    })
}

/// A character-level vocabulary: each token is one character, a byte token, or special.
fn char_level(tokens: &[&str], added: &AddedTokens) -> Result<CharLevel, Error> {
    for token in added.tokens() {
        let reason = if token.content.chars().nth(1).is_none() {
            "is a single character, which plain text would produce"
        } else if alphabet::parse_fallback(&token.content).is_some() {
            "is spelled like a byte"
        } else {
            continue;
        };
        return Err(Error::BadSpecial { token: token.content.clone(), reason });
    }
    let (mut chars, mut fallback) = (Vec::new(), Vec::new());
    for (&token, id) in tokens.iter().zip(0u32..).filter(|(token, _)| !token.is_empty()) {
        let mut in_token = token.chars();
        if let (Some(c), None) = (in_token.next(), in_token.next()) {
            chars.push((c, id));
        } else if let Some(byte) = alphabet::parse_fallback(token) {
            fallback.push((byte, id));
        } else {
            let reason = "is neither one character nor a byte such as <0x0A> nor special";
            return Err(Error::BadToken { token: token.to_owned(), id, reason });
        }
    }
    CharLevel::new(chars.into_iter(), fallback.into_iter())
}

/// A byte-level vocabulary and its merge rules. Rules by id become the list of pairs that they amount to.
fn byte_level(
    def: &mut BpeDef,
    tokens: &[&str],
    vocab: &Vocab,
    added: &AddedTokens,
) -> Result<(Bpe, TokenLens), Error> {
    for (field, affix) in [
        ("continuing_subword_prefix", &def.continuing_subword_prefix),
        ("end_of_word_suffix", &def.end_of_word_suffix),
    ] {
        if let Some(affix) = affix.as_deref().filter(|affix| !affix.is_empty()) {
            let found = format!("{field} `{affix}` with a `ByteLevel` pre-tokenizer");
            return Err(Error::Unsupported { part: "model", found, supported: "null" });
        }
    }
    if def.byte_fallback {
        let found = "byte_fallback true with a `ByteLevel` pre-tokenizer".to_owned();
        return Err(Error::Unsupported { part: "model", found, supported: "false" });
    }
    let n_merges = if let Merges::Ranked(pairs) = &def.merges { pairs.len() } else { 0 };
    if tokens.len().max(n_merges) > MAX_IDS {
        let found = format!("a byte-level vocabulary of {} tokens and {n_merges} merges", tokens.len());
        return Err(Error::Unsupported { part: "model", found, supported: "at most 2097152 of each" });
    }
    // What text becomes is decided by how tokens are spelled; a decoder may make anything of them.
    let spelled = |token: &&str| if token.is_empty() { None } else { alphabet::unspell(token) };
    let bytes = TokenBytes::new(tokens.iter().map(spelled))?;
    let mut by_byte = [None; 256];
    for (&token, id) in tokens.iter().zip(0u32..).filter(|(token, _)| !token.is_empty()) {
        match bytes.get(id) {
            Ok(&[byte]) => by_byte[usize::from(byte)] = Some(id),
            Err(_) if added.get(id).is_none() => {
                let reason = "is not spelled in the characters that stand for bytes";
                return Err(Error::BadToken { token: token.to_owned(), id, reason });
            }
            _ => {}
        }
    }
    let is_special = |id: u32| added.get(id).is_some_and(|token| token.special);
    let missing: Vec<u8> = (0..=255).filter(|&byte| by_byte[usize::from(byte)].is_none()).collect();
    let becomes = missing_become(&missing, def, tokens, vocab, is_special)?;
    let no_byte = match becomes {
        Becomes::Nothing => NO_BYTE,
        Becomes::Unknown { id, .. } => id,
    };
    let byte_ids = by_byte.map(|id| id.unwrap_or(no_byte));
    let plain = bytes.par_iter().filter(|&(_, id)| !is_special(id));
    let merges = match &def.merges {
        Merges::Ranked(pairs) => merge_results(vocab, is_special, pairs)?,
        Merges::ById => merges_by_id(byte_ids, plain.clone().collect::<Vec<_>>().into_iter()),
        Merges::Scored(_) => {
            let found = "scores in a byte-level vocabulary".to_owned();
            return Err(Error::Unsupported { part: "model", found, supported: "merges" });
        }
    };
    if let Becomes::Unknown { id, .. } = becomes {
        does_not_merge(id, &merges, vocab)?;
    }
    def.merges = Merges::Ranked(merges.iter().map(|merge| merge.pair).collect());
    let lens = TokenLens(bytes.lens().collect());
    let missing = (!missing.is_empty()).then(|| Missing::new(missing, becomes));
    let bpe = Bpe::new(byte_ids, &merges).with_missing(missing);
    Ok((if def.ignore_merges { bpe.with_whole(plain) } else { bpe }, lens))
}

/// What becomes of the bytes that no token stands for.
fn missing_become(
    missing: &[u8],
    def: &BpeDef,
    tokens: &[&str],
    vocab: &Vocab,
    is_special: impl Fn(u32) -> bool,
) -> Result<Becomes, Error> {
    // Ranks alone stand for all texts or none, and a special token is never what a text spells.
    let is_refused = |byte: &&u8| {
        let spelled = alphabet::byte_to_char(**byte);
        def.merges == Merges::ById || vocab.id(spelled.encode_utf8(&mut [0; 4])).is_some_and(&is_special)
    };
    if let Some(&byte) = missing.iter().find(is_refused) {
        return Err(Error::MissingByte { byte });
    }
    match &def.unk_token {
        Some(token) if !missing.is_empty() => {
            Ok(Becomes::Unknown { id: unk_id(tokens, token)?, fuse: def.fuse_unk })
        }
        _ => Ok(Becomes::Nothing),
    }
}

/// Refuses merges with the token that stands for missing bytes: pieces are merged by the bytes that they start with.
fn does_not_merge(unk: u32, merges: &[Merge], vocab: &Vocab) -> Result<(), Error> {
    if !merges.iter().any(|&Merge { pair: (left, right), id }| [left, right, id].contains(&unk)) {
        return Ok(());
    }
    Err(Error::Unsupported {
        part: "model",
        found: format!(
            "merges with the `unk_token` `{}`, which stands for bytes without a token,",
            vocab.token(unk).unwrap_or_default()
        ),
        supported: "an `unk_token` that takes part in no merge, or a token for each byte",
    })
}

/// The id that each pair merges into: the token that both spell together.
fn merge_results(
    vocab: &Vocab,
    is_special: impl Fn(u32) -> bool,
    pairs: &[Pair],
) -> Result<Vec<Merge>, Error> {
    let mut seen = HashSet::with_capacity(pairs.len());
    let mut joined = String::new();
    let mut merges = Vec::with_capacity(pairs.len());
    for (merge_idx, &(left, right)) in pairs.iter().enumerate() {
        let spell = |id| vocab.token(id).unwrap_or_default();
        joined.clear();
        joined.push_str(spell(left));
        joined.push_str(spell(right));
        let bad = |reason| Error::BadMerge {
            merge_idx,
            left: spell(left).to_owned(),
            right: spell(right).to_owned(),
            reason,
        };
        let Some(id) = vocab.id(&joined) else {
            return Err(bad("what they spell together is not in the vocabulary"));
        };
        if [left, right, id].iter().any(|&id| is_special(id)) {
            return Err(bad("special tokens do not take part in merges"));
        }
        if !seen.insert((left, right)) {
            return Err(bad("the pair stands twice"));
        }
        merges.push(Merge { pair: (left, right), id });
    }
    Ok(merges)
}

impl ModelDef {
    /// The type of each token, in formats that have types.
    pub(crate) fn kinds(&self) -> &[PieceKind] {
        match self {
            Self::Bpe(def) => &def.kinds,
            Self::Unigram(def) => &def.kinds,
            _ => &[],
        }
    }

    fn unk_token(&self) -> Option<&str> {
        match self {
            Self::Bpe(def) => def.unk_token.as_deref(),
            Self::WordPiece(def) => Some(&def.unk_token),
            Self::WordLevel(def) => Some(&def.unk_token),
            Self::Unigram(_) | Self::Char => None,
        }
    }
}
