//! Training as SentencePiece does it, BPE or Unigram: over characters, with `▁` for the space, and bytes for rare characters.
//!
//! The merges are those that Hugging Face's `BpeTrainer` finds behind its `Metaspace` pre-tokenizer. One thing differs
//! where an alphabet is limited: there a character outside of it is dropped and its neighbours become a pair, although
//! encoding never sees them side by side; here it ends a word. Normalization (NFKC, runs of spaces) is the caller's.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::count::{CharCounts, PieceCounts, Source};
use super::counter::Counter;
use super::merge::{self, Spellings};
use super::progress::Observer;
use super::unigram::{self, UnigramParams};
use super::words::{END, Words};
use super::{MAX_VOCAB_SIZE, check_special};
use crate::definition::{AddedTokenDef, BpeDef, Definition, Merges, ModelDef, UnigramDef, UnigramRule};
use crate::{Error, Kind, Tokenizer, alphabet};

/// The characters in which bytes are spelled, as in `<0x0A>`.
const BYTE_SPELLING: &str = "0123456789<>ABCDEFx";

/// What SentencePiece and Hugging Face's `Metaspace` write for a space.
pub(super) const METASPACE: char = '▁';

/// How to train a SentencePiece-style vocabulary.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SentencePieceTrainer {
    /// [`Kind::Bpe`] or [`Kind::Unigram`].
    pub kind: Kind,
    /// Most tokens, special tokens, bytes and characters included.
    pub vocab_size: usize,
    /// Fewest times that a pair must occur. Default 2.
    pub min_frequency: u64,
    /// Special tokens, in order of id from 0. Default: `<unk>`, `<s>`, `</s>`.
    pub special_tokens: Vec<String>,
    /// Most characters that become tokens, the most frequent ones; no limit if unset. Unigram with bytes also has the
    /// characters that bytes are spelled with, or the text `<0x41>` would become the byte.
    pub limit_alphabet: Option<usize>,
    /// The part of the text that the characters must cover, from 0 to 1; rarer ones get no token. Default 0.9995.
    pub character_coverage: f64,
    /// Whether the 256 bytes become tokens, from which characters without a token are spelled. Default true.
    pub byte_fallback: bool,
    /// Whether a document that starts without a space is given one. Default true.
    pub add_prefix: bool,
    /// As [`super::Trainer::memory_limit`]. Unigram needs some 100 bytes for each distinct word, 50 to 200 for each of its
    /// characters and 800 for each byte of the longest word, and is refused likewise.
    pub memory_limit: Option<u64>,
}

impl Default for SentencePieceTrainer {
    fn default() -> Self {
        Self {
            kind: Kind::Bpe,
            vocab_size: 8192,
            min_frequency: 2,
            special_tokens: ["<unk>", "<s>", "</s>"].map(str::to_owned).into(),
            limit_alphabet: None,
            character_coverage: 0.9995,
            byte_fallback: true,
            add_prefix: true,
            memory_limit: None,
        }
    }
}

/// A trained BPE vocabulary.
struct SentencePieceVocab {
    /// Tokens in order of id: special tokens, bytes (`<0x00>` on), characters by code point, then what merges give.
    tokens: Vec<String>,
    /// Pairs of ids in order of rank.
    merges: Vec<(u32, u32)>,
}

impl SentencePieceTrainer {
    /// Starts to count a corpus, in parallel on the rayon pool that is current in each call.
    ///
    /// # Errors
    /// [`Error::VocabSize`], [`Error::BadSpecial`] or [`Error::Unsupported`] if the configuration is impossible.
    pub fn counter(&self) -> Result<Counter, Error> {
        self.check()?;
        Ok(Counter::of_sentencepiece(self.clone()))
    }

    /// Trains on documents, in parallel on the current rayon pool. One batch of text is held at a time.
    ///
    /// # Errors
    /// As [`SentencePieceTrainer::counter`], [`Counter::add`] and [`Counter::finish`].
    pub fn train<S: AsRef<str>>(
        &self,
        documents: impl IntoIterator<Item = S>,
        observer: &mut dyn Observer,
    ) -> Result<Tokenizer, Error> {
        let mut counter = self.counter()?;
        for document in documents {
            counter.add(document.as_ref(), observer)?;
        }
        counter.finish(observer)
    }

    fn check(&self) -> Result<(), Error> {
        if !matches!(self.kind, Kind::Bpe | Kind::Unigram) {
            let found = format!("kind {:?}", self.kind);
            return Err(Error::Unsupported { part: "trainer", found, supported: "`bpe` and `unigram`" });
        }
        check_special(&self.special_tokens, true)?;
        if self.kind == Kind::Unigram && self.special_tokens.is_empty() {
            let found = "Unigram without special tokens".to_owned();
            let supported = "a first special token, which stands for what has no other";
            return Err(Error::Unsupported { part: "trainer", found, supported });
        }
        // Any text has a character.
        self.check_size(self.reserved().len() + self.spelling_without(&[]).len().max(1))
    }

    fn check_size(&self, least: usize) -> Result<(), Error> {
        match (least..=MAX_VOCAB_SIZE).contains(&self.vocab_size) {
            true => Ok(()),
            false => Err(Error::VocabSize { asked: self.vocab_size, least, most: MAX_VOCAB_SIZE }),
        }
    }

    /// The tokens before those that are learned: special ones and bytes.
    fn reserved(&self) -> Vec<String> {
        let bytes = (0..=255u8).filter(|_| self.byte_fallback).map(alphabet::fallback_spelling);
        self.special_tokens.iter().cloned().chain(bytes).collect()
    }

    /// The characters that a Unigram vocabulary needs besides `chars`: were one of those that bytes are spelled with
    /// unknown, text that spells a byte would become it.
    fn spelling_without(&self, chars: &[char]) -> Vec<char> {
        let is_needed = self.kind == Kind::Unigram && self.byte_fallback;
        BYTE_SPELLING.chars().filter(|c| is_needed && chars.binary_search(c).is_err()).collect()
    }

    /// Trains on what was counted.
    pub(super) fn finish(
        &self,
        counts: PieceCounts,
        observer: &mut dyn Observer,
    ) -> Result<Tokenizer, Error> {
        let (vocab, model) = match self.kind {
            Kind::Unigram => self.unigram(counts, observer)?,
            _ => {
                let SentencePieceVocab { tokens, merges } = self.bpe(counts, observer)?;
                let merges = Merges::Ranked(merges);
                let def = BpeDef { merges, byte_fallback: self.byte_fallback, ..self.unknown() };
                (tokens, ModelDef::Bpe(def))
            }
        };
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.add_prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let added = (0..).zip(&self.special_tokens).map(|(id, token)| AddedTokenDef::special(id, token));
        Tokenizer::from_definition(Definition {
            vocab: vocab.into_iter().zip(0..).collect(),
            added: added.collect(),
            normalizer: Some(json!({"type": "Sequence", "normalizers": normalizers})),
            decoder: Some(json!({"type": "Sequence", "decoders": decoders})),
            model,
            ..Definition::default()
        })
    }

    /// What becomes of characters without a token: bytes if there are any, else the first special token.
    fn unknown(&self) -> BpeDef {
        BpeDef { unk_token: self.special_tokens.first().cloned(), fuse_unk: true, ..BpeDef::default() }
    }

    /// Special tokens, bytes and pieces, and their scores.
    fn unigram(
        &self,
        counts: PieceCounts,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<String>, ModelDef), Error> {
        let chars = self.alphabet(&counts)?;
        let (mut tokens, spelling) = (self.reserved(), self.spelling_without(&chars));
        let n_reserved = tokens.len();
        self.check_size(n_reserved + chars.len().max(1) + spelling.len())?;
        let params = UnigramParams::new(self.vocab_size - n_reserved - spelling.len());
        let words = self.words(counts, &chars, &params)?;
        let (mut pieces, mut scores): (Vec<String>, Vec<f64>) =
            unigram::train(&words, &params, observer)?.into_iter().unzip();
        let least = scores.iter().copied().fold(-1.0, f64::min);
        pieces.extend(spelling.iter().map(char::to_string));
        scores.extend(spelling.iter().map(|_| least));
        tokens.extend(pieces);
        // Text that spells the name of a byte must not become that byte: its characters are likelier.
        let scores = vec![least * 100.0; n_reserved].into_iter().chain(scores).collect();
        let def = UnigramDef {
            scores,
            unk_id: Some(0),
            byte_fallback: self.byte_fallback,
            rule: UnigramRule::HuggingFace,
            kinds: Vec::new(),
        };
        Ok((tokens, ModelDef::Unigram(def)))
    }

    /// The distinct words over `chars` with their counts. A character without a token ends a word.
    ///
    /// # Errors
    /// If training on them would take more memory than the limit.
    fn words(
        &self,
        counts: PieceCounts,
        chars: &[char],
        params: &UnigramParams,
    ) -> Result<Vec<(String, u64)>, Error> {
        let for_each_word = |each: &mut dyn FnMut(&str, u64)| {
            counts.for_each(&mut |piece, count| {
                let text: String = chars_of(piece).collect();
                let words = text.split(|c| chars.binary_search(&c).is_err());
                words.filter(|word| !word.is_empty()).for_each(|word| each(word, count));
            })
        };
        let mut sizes = unigram::Sizes::default();
        for_each_word(&mut |word, _| sizes.add(word))?;
        let needed = sizes.memory(params);
        if let Some(limit) = self.memory_limit.filter(|&limit| limit < needed) {
            return Err(Error::MemoryLimit { needed, limit });
        }
        let mut words = Vec::with_capacity(sizes.n_words as usize);
        for_each_word(&mut |word, count| words.push((word.to_owned(), count)))?;
        words.sort_unstable();
        words.dedup_by(|(word, count), (kept, sum)| {
            let is_same = word == kept;
            *sum += if is_same { *count } else { 0 };
            is_same
        });
        Ok(words)
    }

    fn bpe(&self, counts: PieceCounts, observer: &mut dyn Observer) -> Result<SentencePieceVocab, Error> {
        let chars = self.alphabet(&counts)?;
        let mut tokens = Spellings::new(0);
        let reserved = self.reserved();
        let least = reserved.len() + chars.len();
        self.check_size(least)?;
        reserved.iter().for_each(|token| tokens.push(token.clone().into_bytes()));
        chars.iter().for_each(|c| tokens.push(c.to_string().into_bytes()));
        // A merge that spelled one of these would let plain text produce it.
        tokens.forbid(reserved.iter().map(|token| token.clone().into_bytes()));
        let first_id = reserved.len() as u32;
        let spell = |piece: &[u8], symbols: &mut Vec<u32>| {
            symbols.extend(
                chars_of(piece).map(|c| chars.binary_search(&c).map_or(END, |i| first_id + i as u32)),
            );
        };
        let words = Words::deal(&counts, &spell, self.vocab_size, self.memory_limit, observer)?;
        drop(counts);
        let limits = merge::Limits { n_ids: self.vocab_size, min_frequency: self.min_frequency };
        let merges = merge::train(words, least as u32, &limits, &mut tokens, observer)?;
        let tokens = tokens.into_bytes().map(|token| String::from_utf8_lossy(&token).into_owned()).collect();
        Ok(SentencePieceVocab { tokens, merges })
    }

    /// The characters that become tokens, in order of code point.
    fn alphabet(&self, counts: &PieceCounts) -> Result<Vec<char>, Error> {
        let mut chars = CharCounts::default();
        counts.for_each(&mut |piece, count| chars_of(piece).for_each(|c| chars.add(c, count)))?;
        let by_frequency = chars.by_frequency();
        let total: u64 = by_frequency.iter().map(|&(_, count)| count).sum();
        let enough = self.character_coverage * total as f64;
        let mut covered = 0u64;
        let frequent = by_frequency.into_iter().take_while(|&(_, count)| {
            let is_needed = (covered as f64) < enough;
            covered += count;
            is_needed
        });
        let limit = self.limit_alphabet.unwrap_or(usize::MAX);
        let mut alphabet: Vec<char> = frequent.take(limit).map(|(c, _)| c).collect();
        alphabet.sort_unstable();
        Ok(alphabet)
    }
}

/// The characters of a piece, which is UTF-8, with `▁` for the space.
fn chars_of(piece: &[u8]) -> impl Iterator<Item = char> {
    let chars = std::str::from_utf8(piece).unwrap_or_default().chars();
    chars.map(|c| if c == ' ' { METASPACE } else { c })
}

#[cfg(test)]
mod tests {
    use super::super::count::Cut;
    use super::*;

    fn trainer(vocab_size: usize) -> SentencePieceTrainer {
        SentencePieceTrainer { vocab_size, character_coverage: 1.0, ..SentencePieceTrainer::default() }
    }

    fn bpe(trainer: &SentencePieceTrainer, text: &str) -> SentencePieceVocab {
        let mut counts = PieceCounts::new(Cut::Metaspace, None);
        counts.count(&[&format!(" {text}")]).unwrap();
        counts.flush();
        trainer.bpe(counts, &mut ()).unwrap()
    }

    #[test]
    fn tokens_come_in_order() {
        let vocab = bpe(&trainer(3 + 256 + 4 + 2), "ab ab abc");
        assert_eq!(vocab.tokens[..4], ["<unk>", "<s>", "</s>", "<0x00>"]);
        assert_eq!(vocab.tokens[259..], ["a", "b", "c", "▁", "ab", "▁ab"]);
        assert_eq!(vocab.merges, [(259, 260), (262, 263)]);
    }

    #[test]
    fn a_character_without_a_token_ends_a_word() {
        let limited = SentencePieceTrainer { limit_alphabet: Some(3), ..trainer(300) };
        let vocab = bpe(&limited, "axb axb ab ayb");
        assert_eq!(vocab.tokens[259..262], ["a", "b", "▁"]);
        assert_eq!(vocab.tokens[262..], ["▁a"], "`ab` occurs once, and `a` `b` around `x` are no pair");
        let uncovered = SentencePieceTrainer { character_coverage: 0.5, ..trainer(300) };
        let vocab = bpe(&uncovered, "aaab aaac");
        assert_eq!(vocab.tokens[259..260], ["a"]);
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let refused = trainer(260).train(["abc"], &mut ()).unwrap_err();
        assert!(matches!(refused, Error::VocabSize { asked: 260, least: 263, .. }), "{refused}");
        let special = SentencePieceTrainer { special_tokens: vec!["a".to_owned()], ..trainer(300) };
        assert!(matches!(special.train(["abc"], &mut ()), Err(Error::BadSpecial { .. })));
    }
}
