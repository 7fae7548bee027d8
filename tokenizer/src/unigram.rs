//! Unigram: of all ways to cut a text into tokens, the one whose scores add up to most.
//!
//! The best way to reach each position is found from left to right (Viterbi), with a trie walk from every character. At
//! a position that no token spans, all ways meet: what lies before is settled, its tokens are given out and the memory
//! is used again, so memory does not grow with the text and stays in the cache.
//!
//! The sums are rounded, and near ties the rounding decides. The references round differently, so the rule is a
//! parameter: Hugging Face adds in double precision, sentencepiece in single precision, from zero again where a sum has
//! become large, llama.cpp single-precision scores in double precision. Each is followed exactly.
//!
//! No token of most vocabularies lies in two words, so all ways meet between words, and most words have been seen before.
//! Yet what is best in a word may depend on how its sums are rounded, and so on the sum of all the text before it. A word is
//! therefore remembered only if its best way leads by more than rounding can take back. The sum itself is followed exactly,
//! for the words that are not.

use crate::Error;
use crate::alphabet::{NO_BYTE, fallback_ids};
use crate::cache::{Cache, Encoder};
use crate::definition::{PieceKind, UnigramDef, UnigramRule};
use crate::model::check_lens;
use crate::sink::Sink;
use crate::trie::Trie;
use crate::words::{SPACE_BYTES, Words, spans_words};

/// How far below the lowest score an unknown character lies. All three references use this figure.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The score of a user-defined token for each byte beyond its first, in sentencepiece 0.2.3: as log-probabilities are below
/// zero, such a token always wins.
const USER_BONUS: f64 = 0.1;

/// Bytes after which settled tokens are given out. With 16 bytes of state each, half of a first-level cache.
const CHUNK: usize = 1024;

/// Words that are looked up together. The fewer, the better is known what the sums may become before they are over.
const WORDS: usize = 64;

/// Longest word in bytes that is remembered.
const REMEMBERED: usize = 48;

/// The size of a sum beyond which sentencepiece 0.2.3 takes it off all sums and goes on from zero.
const RESET: f64 = 100_000.0;

/// The size of sums, in double precision, up to which words are remembered: enough for any text.
const LARGE: f64 = 1e12;

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
    /// Whether words are encoded by themselves.
    words: bool,
    /// The most that a byte of text adds to the size of a sum.
    most: f64,
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
    cache: Cache,
    memory: Memory,
}

/// What a search needs.
#[derive(Debug, Default)]
struct Memory {
    /// Unreached between searches: to fill all of it would take longer than to cut a line of text.
    best: Vec<Best>,
    path: Vec<(u32, u32)>,
    /// Sums of the two best ways to each position of a word.
    two_best: Vec<[f64; 2]>,
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
        let unk_score = unk_score(def, kind);
        let splits = !keys.clone().any(|(token, _)| spans_words(token));
        let trie = Trie::new(keys)?;
        Ok(Self {
            words: splits && trie.get(SPACE_BYTES).is_some_and(|id| id != unk_id),
            most: scores.iter().fold(unk_score.abs(), |most, score| most.max(score.abs())),
            trie,
            unk_score,
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
            UnigramRule::SentencePiece => self.encode_words::<true, S>(text, scratch, sink),
            _ => self.encode_words::<false, S>(text, scratch, sink),
        }
    }

    /// `SINGLE`: sums are kept in single precision, as sentencepiece does.
    fn encode_words<const SINGLE: bool, S: Sink>(&self, text: &str, scratch: &mut Scratch, sink: &mut S) {
        let Scratch { cache, memory } = scratch;
        let Some(ids) = sink.ids().filter(|_| self.words) else {
            self.search::<SINGLE, S>(text.as_bytes(), 0.0, memory, sink);
            return;
        };
        let mut search = Search::<SINGLE> { model: self, memory, sum: 0.0, n_summed: ids.len() };
        let mut rest = text;
        while !rest.is_empty() {
            let mut words = Words::new(rest);
            let cut = |ends: &mut [usize; _]| words.next_batch(&mut ends[..WORDS]);
            let mut done = cache.encode(rest.as_bytes(), cut, &mut search, ids);
            if done == 0 {
                let (mut ends, mut words) = ([0; WORDS], Words::new(rest));
                done = ends[words.next_batch(&mut ends) - 1];
                search.search(&rest.as_bytes()[..done], ids);
            }
            rest = &rest[done..];
        }
    }

    /// Finds the best way through a text before which the sum is `sum`. Gives the sum behind it, and whether all of it
    /// consists of tokens.
    fn search<const SINGLE: bool, S: Sink>(
        &self,
        text: &[u8],
        sum: f64,
        memory: &mut Memory,
        sink: &mut S,
    ) -> (f64, bool) {
        let mut out = Output { model: self, text, end: 0, unknown: None, is_known: true, sink };
        let Memory { best, path, .. } = memory;
        best.resize(best.len().max(CHUNK + self.max_token_len + 1), UNREACHED);
        best[0].score = sum;
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
            if SINGLE && best[from].score.abs() > RESET {
                let offset = std::mem::take(&mut best[from].score);
                for later in best[from + 1..=reach.max(pos) - start].iter_mut().filter(|best| best.len > 0) {
                    later.score = add::<SINGLE>(later.score, -offset);
                }
            }
            if best.len() <= from + self.max_token_len {
                best.resize(best.len() * 2, UNREACHED);
            }
            let furthest = self.extend::<SINGLE>(&text[pos..], &mut best[from..]);
            reach = reach.max(pos + furthest);
            pos += char_len(text[pos]);
        }
        settle(&best[..=pos - start], path, &mut out);
        let sum = best[pos - start].score;
        best[..=pos - start].fill(UNREACHED);
        out.finish();
        (sum, out.is_known)
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

    /// Calls `each` with start, length and score of every token of a word, and of characters that have none.
    fn tokens_in(&self, word: &[u8], mut each: impl FnMut(usize, usize, f64)) {
        let mut pos = 0;
        while pos < word.len() {
            let n_char = char_len(word[pos]);
            let (mut node, mut has_char) = (Trie::ROOT, false);
            for (len, &byte) in (1..).zip(&word[pos..]) {
                let Some(child) = self.trie.child(node, byte) else { break };
                node = child;
                if let Some(id) = self.trie.value(node) {
                    each(pos, len, self.scores[id as usize]);
                    has_char |= len == n_char;
                }
            }
            if !has_char {
                each(pos, n_char, self.unk_score);
            }
            pos += n_char;
        }
    }

    /// Whether no way through a word but that of `ids` is the best, if every sum is rounded by at most `error`.
    fn leads(&self, word: &[u8], ids: &[u32], error: f64, two_best: &mut Vec<[f64; 2]>) -> bool {
        two_best.clear();
        two_best.resize(word.len() + 1, [f64::NEG_INFINITY; 2]);
        two_best[0][0] = 0.0;
        self.tokens_in(word, |start, len, score| {
            // Every other way is taken for as good as it might come out.
            for sum in two_best[start].map(|sum| sum + score + error) {
                let [first, second] = &mut two_best[start + len];
                *second = second.max(sum.min(*first));
                *first = first.max(sum);
            }
        });
        // Double precision rounds here, too.
        let slack = 1e-12 * self.most * word.len() as f64;
        let least = ids.iter().map(|&id| self.scores[id as usize] - error).sum::<f64>() - slack;
        two_best[word.len()][1] < least
    }
}

/// Words that are not remembered are searched.
struct Search<'a, const SINGLE: bool> {
    model: &'a Unigram,
    memory: &'a mut Memory,
    /// The sum of the scores of this text, as the reference has it, up to this number of ids.
    sum: f64,
    n_summed: usize,
}

impl<const SINGLE: bool> Search<'_, SINGLE> {
    /// The size of sums up to which words are remembered.
    const LIMIT: f64 = if SINGLE { RESET } else { LARGE };

    /// Adds the scores of remembered words, which consist of tokens only.
    fn add_up(&mut self, ids: &[u32]) {
        for &id in &ids[self.n_summed..] {
            self.sum = add::<SINGLE>(self.sum, self.model.scores[id as usize]);
        }
        self.n_summed = ids.len();
    }

    /// Appends the ids of words, the sum being that before them. Whether all of them consist of tokens.
    fn search(&mut self, words: &[u8], ids: &mut Vec<u32>) -> bool {
        let n_before = ids.len();
        let (sum, is_known) = self.model.search::<SINGLE, _>(words, self.sum, self.memory, ids);
        self.sum = sum;
        self.n_summed += ids.len() - n_before;
        is_known
    }
}

impl<const SINGLE: bool> Encoder for Search<'_, SINGLE> {
    fn encode(&mut self, word: &[u8], before: &[u32], ids: &mut Vec<u32>) -> bool {
        self.add_up(before);
        let is_known = self.search(word, ids);
        // Half of the distance between two sums, where they are largest.
        let error = Self::LIMIT * if SINGLE { f64::from(f32::EPSILON) } else { f64::EPSILON } / 2.0;
        let two_best = &mut self.memory.two_best;
        word.len() <= REMEMBERED && is_known && self.model.leads(word, ids, error, two_best)
    }

    fn goes_on(&mut self, before: &[u32], n_bytes: usize) -> bool {
        self.add_up(before);
        self.sum.abs() + self.model.most * n_bytes as f64 <= Self::LIMIT
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
    /// Whether there was no unknown character so far.
    is_known: bool,
    sink: &'a mut S,
}

impl<S: Sink> Output<'_, S> {
    #[inline]
    fn token(&mut self, id: u32, len: usize) {
        if id == self.model.unk_id {
            self.unknown.get_or_insert(self.end);
            self.is_known = false;
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
            f64::from((USER_BONUS * (tokens[id].len() as f64 - 1.0)) as f32)
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

    /// A sentencepiece model in which many ways are as good as others, or nearly.
    fn close_model(scores: &[i32], scale: f64) -> Unigram {
        let words = ["▁", "a", "b", "c", "▁a", "▁ab", "ab", "ba", "bc", "abc", "▁c", "caa", "aa", "é"];
        let tokens: Vec<&str> = ["<unk>"].into_iter().chain(words).collect();
        let score = |(token, &steps): (&&str, &i32)| {
            -scale * (token.chars().count() as f64 + f64::from(steps) / 16384.0)
        };
        let scores = tokens.iter().zip(scores).map(score).map(|score| f64::from(score as f32)).collect();
        let rule = UnigramRule::SentencePiece;
        let def = UnigramDef { scores, unk_id: Some(0), byte_fallback: false, rule, kinds: vec![] };
        let model = Unigram::new(&tokens, &def).unwrap();
        assert!(model.words);
        model
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// Remembered words change nothing, however large the sums before them and however close the ways.
        #[test]
        fn remembered_words_are_those_that_a_search_finds(
            scores in prop::collection::vec(0..70i32, 15),
            scale in prop::sample::select(vec![4.0, 300.0, 20_000.0, 1e6]),
            words in prop::collection::vec("▁?[abcé]{1,7}|▁[ab]{9,30}|▁?☃{0,2}a", 1..40),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 1..9000),
        ) {
            let model = close_model(&scores, scale);
            let mut scratch = Scratch::default();
            let text: String = picks.iter().map(|pick| pick.get(&words).as_str()).collect();
            for _ in 0..2 {
                let mut ids = Vec::new();
                model.encode(&text, &mut scratch, &mut ids);
                prop_assert_eq!(&ids, &spans(&model, &text).ids);
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
