//! BPE by score, as sentencepiece merges, in the parts of a `tokenizer.json`, which ranks pairs.
//!
//! By score, any two neighbours merge that spell a token together, best score first and leftmost among equals. By rank,
//! so do the pairs of a list. Hugging Face lists every way to cut every token in two, in order of the token's score, and
//! so does this. Why it is the same, though one token's pairs have different ranks there: what happens inside a stretch
//! of text that becomes one token does not depend on what stands around it, since nothing merges across its ends. So a
//! token is always made of the same two parts, its other cuts never stand side by side, and which of them ranks first is
//! all one. What remains are tokens of one score, of which the leftmost is made first while one of two ranks is better.
//! Those that are never made do not count; the others are refused, but for a character's runs of 2, 3, 4 and so on, as
//! LLaMA has them of spaces: by score the leftmost run grows until it is as long as can be, and it does so by rank where
//! longer runs rank first.
//!
//! Ids depend on four more things that Hugging Face does otherwise. A character without a token is spelled in bytes before
//! merging, not after, so none may be part of what merges. Unused tokens are given out whole. User-defined tokens are
//! found by the list of added tokens alone. And spaces are treated by a normalizer that knows no map of characters. What
//! these parts cannot say is refused by name. Two things are let go of a `.model`: sentencepiece leaves control tokens out
//! of text and has a sign for the unknown one, where Hugging Face spells them unless told to skip them; and offsets are
//! Hugging Face's for the space put before a text and for user-defined tokens.

use serde::Deserialize;
use serde_json::Value;

use super::unsupported;
use crate::alphabet;
use crate::build::SENTENCEPIECE;
use crate::char_bpe::CharBpe;
use crate::definition::{AddedTokenDef, BpeDef, PieceKind};
use crate::file::gguf::{space_decoder, space_normalizer};
use crate::model::{Model, Scratch};
use crate::sentencepiece_normalizer::{SentencePieceDecoder, SentencePieceJson};
use crate::tokenizer::Inner;
use crate::trie::Trie;
use crate::{Error, vocab::Vocab};

/// Stands for a space in the vocabulary.
const SPACE: char = '\u{2581}';

/// What the file has in place of scores.
pub(super) struct Ranked<'a> {
    pub unk_token: &'a str,
    /// In order of rank.
    pub merges: Vec<(u32, u32)>,
}

/// What stands around the model.
pub(super) struct Parts {
    pub added: Vec<AddedTokenDef>,
    pub normalizer: Option<Value>,
    pub decoder: Option<Value>,
}

/// The parts by which Hugging Face treats text as this model's own do.
pub(super) fn parts(inner: &Inner, def: &BpeDef) -> Result<Parts, Error> {
    let added: Vec<AddedTokenDef> = inner.pipeline.added.by_id().cloned().collect();
    let is_foreign = |part: &Option<Value>| part.as_ref().is_some_and(|part| part["type"] == SENTENCEPIECE);
    let (normalizer, decoder) = (&inner.def.normalizer, &inner.def.decoder);
    let (Some(normalizer), Some(decoder), true) = (normalizer, decoder, is_foreign(normalizer)) else {
        user_defined_are_added(inner, def)?;
        return Ok(Parts { added, normalizer: normalizer.clone(), decoder: decoder.clone() });
    };
    let refused = || unsupported("the normalizer of a sentencepiece model");
    let part = SentencePieceJson::deserialize(normalizer).map_err(|_| refused())?;
    let is_identity = part.precompiled_charsmap.is_empty() && !part.remove_extra_whitespaces;
    if !is_identity || !part.escape_whitespaces || part.treat_whitespace_as_suffix {
        return Err(refused());
    }
    let surface = SentencePieceDecoder::deserialize(decoder).map_err(|_| refused())?.unk_surface;
    if !def.byte_fallback {
        return Err(unsupported(format!("`{surface}`, which unknown characters decode to")));
    }
    Ok(Parts {
        added: with_user_defined(inner, def, added, part.add_dummy_prefix)?,
        normalizer: Some(space_normalizer(part.add_dummy_prefix)),
        decoder: Some(space_decoder(part.add_dummy_prefix)),
    })
}

/// Tokens of one kind, with their ids.
fn of_kind<'a>(
    vocab: &'a Vocab,
    def: &'a BpeDef,
    kind: PieceKind,
) -> impl Iterator<Item = (&'a str, u32)> + Clone {
    let ids = (0u32..).zip(&def.kinds).filter(move |(_, found)| **found == kind);
    ids.filter_map(|(id, _)| Some((vocab.token(id)?, id)))
}

/// Checks that user-defined tokens, which this model finds in normalized text, too, stand nowhere but where the list of
/// added tokens finds them in raw text.
fn user_defined_are_added(inner: &Inner, def: &BpeDef) -> Result<(), Error> {
    let tokens = of_kind(&inner.vocab, def, PieceKind::UserDefined);
    if let Some((token, _)) = tokens.clone().find(|(token, _)| token.contains(SPACE)) {
        return Err(unsupported(format!("the user-defined token `{token}`, which spaces in a text spell")));
    }
    // No normalized text has a space.
    let tokens = Trie::new(tokens.filter(|(token, _)| !token.contains(' ')))?;
    for special in inner.pipeline.added.tokens().iter().filter(|token| token.special) {
        // Where a special token is read as plain text, the search for added tokens goes on behind it.
        let content = special.content.as_bytes();
        let begins =
            |rest: &[u8]| tokens.longest(rest).is_some() || tokens.descend(Trie::ROOT, rest).is_some();
        if (0..content.len()).any(|start| begins(&content[start..])) {
            let found = format!("a user-defined token that begins inside the special `{}`", special.content);
            return Err(unsupported(found));
        }
    }
    Ok(())
}

/// Adds user-defined tokens as such that are found in normalized text, where sentencepiece finds them.
fn with_user_defined(
    inner: &Inner,
    def: &BpeDef,
    mut added: Vec<AddedTokenDef>,
    add_prefix: bool,
) -> Result<Vec<AddedTokenDef>, Error> {
    for (token, id) in of_kind(&inner.vocab, def, PieceKind::UserDefined) {
        // A prefix would go before the content, too.
        if add_prefix || token.contains(' ') {
            return Err(unsupported(format!("the user-defined token `{token}` in normalized text")));
        }
        added.push(AddedTokenDef { id, content: token.to_owned(), normalized: true, ..Default::default() });
    }
    added.sort_by_key(|token| token.id);
    Ok(added)
}

/// The pairs in an order by which they merge as by score.
pub(super) fn ranked<'a>(inner: &'a Inner, def: &BpeDef, scores: &[f32]) -> Result<Ranked<'a>, Error> {
    let vocab = &inner.vocab;
    if let Some((token, _)) = of_kind(vocab, def, PieceKind::Unused).next() {
        return Err(unsupported(format!("the unused token `{token}`, which is given out as its parts")));
    }
    let is_no_byte = |(token, _): &(&str, u32)| alphabet::parse_fallback(token).is_none();
    if let Some((token, _)) = of_kind(vocab, def, PieceKind::Byte).find(is_no_byte) {
        return Err(unsupported(format!("the token `{token}` of a byte, which is not spelled as one")));
    }
    let Model::Chars(model) = &inner.pipeline.model else {
        return Err(unsupported("scores without BPE over characters"));
    };
    Ok(Ranked { unk_token: unk_token(inner, def)?, merges: by_score(model, inner, def, scores)? })
}

/// The token for what is unknown, which no text may give otherwise.
fn unk_token<'a>(inner: &'a Inner, def: &BpeDef) -> Result<&'a str, Error> {
    let named = def.unk_token.as_deref().and_then(|token| inner.vocab.id(token));
    let id = named.or_else(|| of_kind(&inner.vocab, def, PieceKind::Unknown).map(|(_, id)| id).next());
    let token = id.and_then(|id| Some((inner.vocab.token(id)?, def.kinds.get(id as usize)?)));
    match token {
        None => Err(unsupported("no token for what is unknown")),
        Some((token, PieceKind::Unknown | PieceKind::Control)) if token.chars().nth(1).is_some() => Ok(token),
        Some((token, _)) => Err(unsupported(format!("the unknown token `{token}`, which text may spell"))),
    }
}

fn by_score(model: &CharBpe, inner: &Inner, def: &BpeDef, scores: &[f32]) -> Result<Vec<(u32, u32)>, Error> {
    let vocab = &inner.vocab;
    let spell = |id: u32| vocab.token(id).unwrap_or_default();
    let is_user_defined = |id: u32| def.kinds.get(id as usize) == Some(&PieceKind::UserDefined);
    // User-defined tokens are cut out before anything merges.
    let mut pairs: Vec<(u32, u32, u32)> = model
        .pairs()
        .filter(|&(left, right, id)| ![left, right, id].into_iter().any(is_user_defined))
        .collect();
    if let Some((.., id)) = pairs.iter().find(|(left, right, _)| (*left).max(*right) as usize >= vocab.len())
    {
        let found = format!("the token `{}`, of which a character merges that is no token", spell(*id));
        return Err(unsupported(found));
    }
    // Adding zero makes the two zeros one.
    let score = |id: u32| scores.get(id as usize).copied().unwrap_or_default() + 0.0;
    pairs.sort_by(|&(left, right, id), &(other_left, other_right, other)| {
        let longest_first = spell(other).len().cmp(&spell(id).len());
        let by_score = score(other).total_cmp(&score(id)).then(longest_first).then(id.cmp(&other));
        by_score.then((left, right).cmp(&(other_left, other_right)))
    });
    let mut made: Vec<u32> = pairs.iter().map(|&(.., id)| id).collect();
    made.dedup();
    let mut scratch = Scratch::new();
    for tied in made.chunk_by(|&a, &b| score(a) == score(b)).filter(|tied| tied.len() > 1) {
        let mut is_made = |id: u32| {
            let mut ids = Vec::new();
            inner.pipeline.model.encode(spell(id), &mut scratch, &mut ids);
            ids == [id]
        };
        let tokens: Vec<&str> = tied.iter().filter(|&&id| is_made(id)).map(|&id| spell(id)).collect();
        if let [first, second, ..] = tokens[..]
            && !are_runs(&tokens)
        {
            return Err(unsupported(format!("`{first}` and `{second}`, which merge at the same score")));
        }
    }
    Ok(pairs.into_iter().map(|(left, right, _)| (left, right)).collect())
}

/// Whether these are all runs of one character from some length down to two.
fn are_runs(tokens: &[&str]) -> bool {
    let first = tokens.first().and_then(|token| token.chars().next());
    tokens
        .iter()
        .rev()
        .zip(2..)
        .all(|(token, n)| token.chars().count() == n && token.chars().all(|c| Some(c) == first))
}
