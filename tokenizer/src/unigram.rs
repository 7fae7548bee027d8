//! Unigram: of all ways to cut a text into tokens, the one whose scores add up to most.
//!
//! The best way to reach each position is found from left to right (Viterbi), with a trie walk from every character. At
//! a position that no token spans, all ways meet: what lies before is settled, its tokens are given out and the memory
//! is used again, so memory does not grow with the text and stays in the cache.
//!
//! The sums are rounded, and near ties the rounding decides. The references round differently, so the rule is a
//! parameter: Hugging Face adds in double precision, sentencepiece in single precision, llama.cpp single-precision scores
//! in double precision. Each is followed exactly.

use crate::Error;
use crate::alphabet::{NO_BYTE, fallback_ids};
use crate::definition::{PieceKind, UnigramDef, UnigramRule};
use crate::model::check_lens;
use crate::sink::Sink;
use crate::trie::Trie;

/// How far below the lowest score an unknown character lies. All three references use this figure.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The score of a user-defined token for each byte beyond its first, in sentencepiece: as log-probabilities are below
/// zero, such a token always wins. Found by trial: with it, all ids of `tools/tokenizer_models.py --fuzz` are equal.
const USER_BONUS: f32 = 0.1;

/// Bytes after which settled tokens are given out. With 16 bytes of state each, half of a first-level cache.
const CHUNK: usize = 1024;

/// A Unigram model.
#[derive(Debug)]
pub(crate) struct Unigram {
    trie: Trie,
    /// By id.
    scores: Vec<f64>,
    unk_id: u32,
    unk_score: f64,
    /// The token of each byte, [`NO_BYTE`] if it has none. Empty without byte fallback.
    byte_ids: Vec<u32>,
    max_token_len: usize,
    rule: UnigramRule,
}

/// The best way to reach a position.
#[derive(Clone, Copy, Debug)]
struct Best {
    score: f64,
    /// The last token and its length in bytes; no length if nothing leads here yet.
    id: u32,
    len: u32,
}

const UNREACHED: Best = Best { score: 0.0, id: 0, len: 0 };

/// Working memory of one encoding thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Unreached between searches: to fill all of it would take longer than to cut a line of text.
    best: Vec<Best>,
    path: Vec<(u32, u32)>,
}

impl Unigram {
    /// Takes the tokens in order of id, and what the file says about them.
    pub(crate) fn new(tokens: &[&str], def: &UnigramDef) -> Result<Self, Error> {
        let too_few =
            |found| Error::Unsupported { part: "model", found, supported: "a score for every token" };
        if tokens.len() != def.scores.len() {
            return Err(too_few(format!("{} scores for {} tokens", def.scores.len(), tokens.len())));
        }
        check_lens(tokens)?;
        let unk_id = def.unk_id.ok_or(Error::Unsupported {
            part: "model",
            found: "Unigram without `unk_id`".to_owned(),
            supported: "an `unk_id`",
        })?;
        if unk_id as usize >= tokens.len() {
            return Err(Error::UnknownId { id: unk_id, vocab_size: tokens.len() });
        }
        let kind = |id: usize| def.kinds.get(id).copied().unwrap_or(PieceKind::Normal);
        let scores = scores(tokens, def, kind);
        let takes_part = |id: usize| match def.rule {
            UnigramRule::HuggingFace => true,
            UnigramRule::SentencePiece => matches!(kind(id), PieceKind::Normal | PieceKind::UserDefined),
            UnigramRule::LlamaCpp => {
                matches!(kind(id), PieceKind::Normal | PieceKind::UserDefined | PieceKind::Unused)
            }
        };
        let keys = tokens.iter().zip(0u32..).filter(|&(_, id)| takes_part(id as usize));
        let byte_ids = if def.byte_fallback { fallback_ids(tokens) } else { Vec::new() };
        Ok(Self {
            trie: Trie::new(keys)?,
            unk_score: unk_score(def, kind),
            scores,
            unk_id,
            byte_ids,
            max_token_len: tokens.iter().map(|token| token.len()).max().unwrap_or(0).max(4),
            rule: def.rule,
        })
    }

    /// The token of each byte, if all have one.
    pub(crate) fn byte_ids(&self) -> Option<&[u32]> {
        Some(&self.byte_ids[..]).filter(|ids| !ids.is_empty() && !ids.contains(&NO_BYTE))
    }

    /// Gives the tokens of a text.
    pub(crate) fn encode<S: Sink>(&self, text: &str, scratch: &mut Scratch, sink: &mut S) {
        match self.rule {
            UnigramRule::SentencePiece => self.search::<true, S>(text.as_bytes(), scratch, sink),
            _ => self.search::<false, S>(text.as_bytes(), scratch, sink),
        }
    }

    /// `SINGLE`: sums are kept in single precision, as sentencepiece does.
    fn search<const SINGLE: bool, S: Sink>(&self, text: &[u8], scratch: &mut Scratch, sink: &mut S) {
        let mut out = Output { model: self, text, end: 0, unknown: None, sink };
        let Scratch { best, path } = scratch;
        best.resize(best.len().max(CHUNK + self.max_token_len + 1), UNREACHED);
        // `start` is where the chunk begins, `reach` the furthest position that any token ends at.
        let (mut start, mut pos, mut reach) = (0, 0, 0);
        while pos < text.len() {
            if pos == reach && pos - start >= CHUNK {
                settle(&best[..=pos - start], path, &mut out);
                best[0].score = best[pos - start].score;
                best[1..=pos - start].fill(UNREACHED);
                start = pos;
            }
            let from = pos - start;
            if best.len() <= from + self.max_token_len {
                best.resize(best.len() * 2, UNREACHED);
            }
            let furthest = self.extend::<SINGLE>(&text[pos..], &mut best[from..]);
            reach = reach.max(pos + furthest);
            pos += char_len(text[pos]);
        }
        settle(&best[..=pos - start], path, &mut out);
        best[..=pos - start].fill(UNREACHED);
        out.finish();
    }

    /// Tries all tokens that `text` starts with; `best[0]` is the way here. Gives the length of the longest.
    #[inline(always)]
    fn extend<const SINGLE: bool>(&self, text: &[u8], best: &mut [Best]) -> usize {
        let till_here = best[0].score;
        let n_char = char_len(text[0]);
        let mut has_char = false;
        let mut furthest = n_char;
        let mut node = Trie::ROOT;
        for (len, &byte) in (1..).zip(text) {
            match self.trie.child(node, byte) {
                Some(child) => node = child,
                None => break,
            }
            let Some(id) = self.trie.value(node) else { continue };
            let score = add::<SINGLE>(till_here, self.scores[id as usize]);
            let target = &mut best[len];
            if target.len == 0 || score > target.score {
                *target = Best { score, id, len: len as u32 };
            }
            has_char |= len == n_char;
            furthest = furthest.max(len);
        }
        if !has_char {
            let target = &mut best[n_char];
            let score = add::<SINGLE>(till_here, self.unk_score);
            if target.len == 0 || score > target.score {
                *target = Best { score, id: self.unk_id, len: n_char as u32 };
            }
        }
        furthest
    }
}

/// A sum, in single precision if asked: both are single then, and double precision holds their sum well enough that
/// rounding it gives the single-precision sum.
#[inline]
fn add<const SINGLE: bool>(sum: f64, score: f64) -> f64 {
    if SINGLE { f64::from((sum + score) as f32) } else { sum + score }
}

/// Gives out the tokens of the best way to the last position.
fn settle<S: Sink>(best: &[Best], path: &mut Vec<(u32, u32)>, out: &mut Output<'_, S>) {
    let mut end = best.len() - 1;
    path.clear();
    while end > 0 {
        let Best { id, len, .. } = best[end];
        path.push((id, len));
        end -= len as usize;
    }
    for &(id, len) in path.iter().rev() {
        out.token(id, len as usize);
    }
}

/// Gives out tokens, unknown characters in a row together.
struct Output<'a, S> {
    model: &'a Unigram,
    text: &'a [u8],
    /// End of what was taken in.
    end: usize,
    /// Where a run of unknown characters that is not given out yet started.
    unknown: Option<usize>,
    sink: &'a mut S,
}

impl<S: Sink> Output<'_, S> {
    #[inline]
    fn token(&mut self, id: u32, len: usize) {
        if id == self.model.unk_id {
            self.unknown.get_or_insert(self.end);
        } else {
            if self.unknown.is_some() {
                self.finish();
            }
            self.sink.token(id, len);
        }
        self.end += len;
    }

    /// Gives out the run of unknown characters that ends here.
    fn finish(&mut self) {
        let Some(start) = self.unknown.take() else { return };
        let run = &self.text[start..self.end];
        // Hugging Face looks the run up again, which matters for the spelling of the unknown token itself.
        if self.model.rule == UnigramRule::HuggingFace
            && run.len() <= self.model.max_token_len
            && let Some(id) = self.model.trie.get(run)
        {
            return self.sink.token(id, run.len());
        }
        let byte_id = |&byte: &u8| self.model.byte_ids.get(usize::from(byte)).copied().unwrap_or(NO_BYTE);
        if run.iter().any(|byte| byte_id(byte) == NO_BYTE) {
            return self.sink.token(self.model.unk_id, run.len());
        }
        for byte in run {
            self.sink.token(byte_id(byte), 1);
        }
    }
}

/// Length in bytes of the character that starts with this byte.
#[inline]
fn char_len(first: u8) -> usize {
    match first {
        0..0xc0 => 1,
        0xc0..0xe0 => 2,
        0xe0..0xf0 => 3,
        _ => 4,
    }
}

/// The scores as the search adds them.
fn scores(tokens: &[&str], def: &UnigramDef, kind: impl Fn(usize) -> PieceKind) -> Vec<f64> {
    let score = |(id, &score): (usize, &f64)| match (def.rule, kind(id)) {
        (UnigramRule::SentencePiece, PieceKind::UserDefined) => {
            f64::from(tokens[id].len() as f32 * USER_BONUS - USER_BONUS)
        }
        (UnigramRule::LlamaCpp, PieceKind::UserDefined) => 0.0,
        _ => score,
    };
    def.scores.iter().enumerate().map(score).collect()
}

/// The score of an unknown character.
fn unk_score(def: &UnigramDef, kind: impl Fn(usize) -> PieceKind) -> f64 {
    if def.rule == UnigramRule::HuggingFace {
        return def.scores.iter().copied().fold(f64::INFINITY, f64::min) - f64::from(UNKNOWN_PENALTY);
    }
    let normal = def.scores.iter().enumerate().filter(|&(id, _)| kind(id) == PieceKind::Normal);
    f64::from(normal.map(|(_, &score)| score as f32).fold(f32::MAX, f32::min) - UNKNOWN_PENALTY)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sink::Spans;

    fn model(pieces: &[(&str, f64)], byte_fallback: bool) -> Unigram {
        let tokens: Vec<&str> = pieces.iter().map(|&(token, _)| token).collect();
        let scores = pieces.iter().map(|&(_, score)| score).collect();
        let def = UnigramDef {
            scores,
            unk_id: Some(0),
            byte_fallback,
            rule: UnigramRule::HuggingFace,
            kinds: vec![],
        };
        Unigram::new(&tokens, &def).unwrap()
    }

    fn spans(model: &Unigram, text: &str) -> Spans {
        let mut spans = Spans::default();
        model.encode(text, &mut Scratch::default(), &mut spans);
        assert_eq!(spans.ends.last().copied().unwrap_or(0), text.len());
        spans
    }

    #[test]
    fn the_best_sum_wins_and_unknown_characters_stay_together() {
        let model = model(
            &[("<unk>", 0.0), ("a", 0.0), ("b", 0.0), ("c", 0.0), ("d", 0.0), ("cd", 1.0), ("ab", 2.0)],
            false,
        );
        assert_eq!(spans(&model, "abcdacdxéxb").ids, [6, 5, 1, 5, 0, 2]);
        assert_eq!(spans(&model, "x<unk>").ids, [0]);
        assert_eq!(spans(&model, "").ids, [0u32; 0]);
    }

    #[test]
    fn bytes_stand_for_unknown_characters_if_all_are_there() {
        let mut pieces = vec![("<unk>".to_owned(), 0.0), ("a".to_owned(), -1.0)];
        pieces.extend((0..=255).map(|byte| (crate::alphabet::fallback_spelling(byte), 0.0)));
        let all: Vec<(&str, f64)> = pieces.iter().map(|(token, score)| (&token[..], *score)).collect();
        let ids = [1].into_iter().chain("é".bytes().map(|byte| 2 + u32::from(byte))).collect::<Vec<_>>();
        assert_eq!(spans(&model(&all, true), "aé").ids, ids);
        // The spelling of the unknown token is that token, unless it is part of a longer run.
        assert_eq!(spans(&model(&all, true), "a<unk>").ids, [1, 0]);
        assert_eq!(spans(&model(&all[..180], true), "éa").ids, [0, 1]);
    }

    proptest! {
        /// Settling chunk by chunk changes nothing: the search over long texts equals one without chunks.
        #[test]
        fn long_texts_are_cut_as_short_ones(words in prop::collection::vec("[abcd]{1,9}|é|☃", 1..900)) {
            let pieces =
                [("<unk>", -9.0), ("a", -1.5), ("b", -1.25), ("c", -2.0), ("ab", -2.5), ("bc", -3.25), ("abc", -4.0), ("cd", -3.5), ("aaa", -4.5)];
            let model = model(&pieces, false);
            let text = words.concat();
            let expected = by_definition(&pieces, &text);
            // Twice, because the memory of a search is used again.
            let mut scratch = Scratch::default();
            for _ in 0..2 {
                let mut found = Vec::new();
                model.encode(&text, &mut scratch, &mut found);
                prop_assert_eq!(&found, &expected);
            }
        }
    }

    fn by_definition(pieces: &[(&str, f64)], text: &str) -> Vec<u32> {
        let mut best: Vec<Option<(f64, usize, u32)>> = vec![None; text.len() + 1];
        best[0] = Some((0.0, 0, 0));
        for (start, c) in text.char_indices() {
            let till = best[start].unwrap().0;
            let known = pieces.iter().zip(0u32..).filter(|((token, _), _)| text[start..].starts_with(token));
            let mut ways: Vec<(usize, f64, u32)> =
                known.map(|(&(token, score), id)| (token.len(), score, id)).collect();
            if !ways.iter().any(|way| way.0 == c.len_utf8()) {
                ways.push((c.len_utf8(), -19.0, 0));
            }
            for (len, score, id) in ways {
                let target = &mut best[start + len];
                if target.is_none_or(|(old, ..)| till + score > old) {
                    *target = Some((till + score, start, id));
                }
            }
        }
        let mut ids = Vec::new();
        let mut end = text.len();
        while end > 0 {
            let (_, start, id) = best[end].unwrap();
            ids.push(id);
            end = start;
        }
        ids.reverse();
        ids.dedup_by(|a, b| *a == 0 && *b == 0);
        ids
    }
}
