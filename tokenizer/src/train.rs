//! Training vocabularies: count what a corpus consists of, then choose tokens.
//!
//! A [`Trainer`] is the configuration. [`Trainer::counter`] gives a [`Counter`] that takes documents one by one and
//! keeps no text; [`Counter::finish`] makes the [`Tokenizer`]. [`Trainer::train`] does both for an iterator. An
//! [`Observer`] is told how far training has come and can stop it.
//!
//! Ids are in this order: special tokens, then single characters and bytes, then merges. The result depends on the
//! corpus and the configuration only, not on the order of documents, the number of threads or the memory limit, and
//! for BPE it is what Hugging Face's `BpeTrainer` gives for the same corpus. [`SentencePieceTrainer`] does the same over
//! characters.

mod counter;
mod merge;
mod progress;
mod sentencepiece;
mod unigram;

mod count;
mod share;
mod spill;
mod table;
mod team;
mod words;

use serde::{Deserialize, Serialize};
use serde_json::json;

use count::PieceCounts;
use counter::Tally;
use words::Words;

use crate::bpe::Pair;
use crate::chat::CHAT_TOKENS;
use crate::definition::{self, AddedTokenDef, BpeDef, Definition, Merges, ModelDef};
use crate::{END_OF_TEXT, Error, Kind, Split, Tokenizer, alphabet};

pub use counter::Counter;
pub use progress::{Observer, Progress, Stage};
pub use sentencepiece::SentencePieceTrainer;

/// Largest vocabulary that is trained; ids fit in 24 bits.
const MAX_VOCAB_SIZE: usize = 1 << 24;

/// How to train a vocabulary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trainer {
    /// The model.
    pub kind: Kind,
    /// Most tokens that the vocabulary may have, special tokens and bytes included. A small corpus gives fewer.
    pub vocab_size: usize,
    /// How BPE cuts text; [`Split::Gpt4`] if unset. Must be unset for [`Kind::Char`], which does not cut.
    pub split: Option<Split>,
    /// Fewest times that a pair or a character must occur to become a token. Default 2.
    pub min_frequency: u64,
    /// Special tokens, in order of id from 0. Default: [`END_OF_TEXT`] alone.
    pub special_tokens: Vec<String>,
    /// Bytes of memory that training may take, for BPE; no limit if unset. Counts that outgrow a quarter of it wait in a
    /// temporary file. Merging needs about 18 bytes for each byte of distinct pre-tokens (a pre-token counts once,
    /// however often it occurs), 4 more for each further thread, of which it takes fewer if they do not fit, and 200 for
    /// each token. If one thread's do not fit, training is refused with the number of bytes that would do. Some 30 MB for
    /// text and tables that do not grow come on top, and 5 MB for each further thread.
    pub memory_limit: Option<u64>,
}

impl Default for Trainer {
    fn default() -> Self {
        Self::new(Kind::default(), 8192)
    }
}

impl Trainer {
    /// A trainer of `kind` for at most `vocab_size` tokens, with the defaults for the rest.
    pub fn new(kind: Kind, vocab_size: usize) -> Self {
        Self {
            kind,
            vocab_size,
            split: None,
            min_frequency: 2,
            special_tokens: vec![END_OF_TEXT.to_owned()],
            memory_limit: None,
        }
    }

    /// Cuts text by `split`.
    pub fn with_split(mut self, split: Split) -> Self {
        self.split = Some(split);
        self
    }

    /// Takes in only what occurs at least `min_frequency` times.
    pub fn with_min_frequency(mut self, min_frequency: u64) -> Self {
        self.min_frequency = min_frequency;
        self
    }

    /// Uses these special tokens instead of the default.
    pub fn with_special_tokens<S: Into<String>>(mut self, tokens: impl IntoIterator<Item = S>) -> Self {
        self.special_tokens = tokens.into_iter().map(Into::into).collect();
        self
    }

    /// Bounds the memory of the counts; see [`Trainer::memory_limit`].
    pub fn with_memory_limit(mut self, n_bytes: u64) -> Self {
        self.memory_limit = Some(n_bytes);
        self
    }

    /// Adds the special tokens of the chat format that are not there yet.
    pub fn with_chat_tokens(mut self) -> Self {
        for token in CHAT_TOKENS {
            if !self.special_tokens.iter().any(|present| present == token) {
                self.special_tokens.push(token.to_owned());
            }
        }
        self
    }

    /// Starts to count a corpus, in parallel on the rayon pool that is current in each call.
    ///
    /// # Errors
    /// [`Error::VocabSize`], [`Error::BadSpecial`] or [`Error::UselessOption`] if the configuration is impossible.
    pub fn counter(&self) -> Result<Counter, Error> {
        self.check()?;
        Ok(Counter::new(self.clone()))
    }

    /// Trains on documents, in parallel on the current rayon pool. Documents are read as plain text: special tokens
    /// that they spell count for nothing.
    ///
    /// # Errors
    /// As [`Trainer::counter`], [`Counter::add`] and [`Counter::finish`].
    pub fn train<S: AsRef<str> + Send + Sync>(
        &self,
        documents: impl IntoIterator<Item = S>,
    ) -> Result<Tokenizer, Error> {
        let mut counter = self.counter()?;
        for document in documents {
            counter.add(document.as_ref(), &mut ())?;
        }
        counter.finish(&mut ())
    }

    /// Trains on what was counted.
    fn finish(&self, tally: Tally, observer: &mut dyn Observer) -> Result<Tokenizer, Error> {
        let split = self.split.unwrap_or_default();
        let (tokens, pre_tokenizer, decoder, model) = match tally {
            Tally::Chars(counts) => {
                let decoder =
                    json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]});
                (self.char_tokens(&counts.by_frequency()), None, decoder, ModelDef::Char)
            }
            Tally::Pieces(counts) => {
                let (tokens, merges) = self.bpe_tokens(counts, observer)?;
                let merges = Merges::Ranked(merges);
                let model = ModelDef::Bpe(BpeDef { merges, byte_level: true, ..BpeDef::default() });
                (tokens, Some(definition::pre_tokenizer(split)), definition::byte_level(true), model)
            }
        };
        let added = (0..).zip(&self.special_tokens).map(|(id, token)| AddedTokenDef::special(id, token));
        Tokenizer::from_definition(Definition {
            vocab: tokens.into_iter().zip(0..).collect(),
            added: added.collect(),
            pre_tokenizer,
            decoder: Some(decoder),
            model,
            ..Definition::default()
        })
    }

    fn check(&self) -> Result<(), Error> {
        if !matches!(self.kind, Kind::Char | Kind::Bpe) {
            return Err(Error::Unsupported {
                part: "trainer",
                found: format!("kind {:?}", self.kind),
                supported: "`char` and `bpe`; `SentencePieceTrainer` for Unigram",
            });
        }
        let unused = [("split", self.split.is_some()), ("memory_limit", self.memory_limit.is_some())];
        if let Some((option, _)) = unused.into_iter().find(|&(_, is_set)| is_set && self.kind == Kind::Char) {
            return Err(Error::UselessOption { option, kind: "char" });
        }
        check_special(&self.special_tokens, self.kind == Kind::Char)?;
        let least = 256 + self.special_tokens.len();
        if (least..=MAX_VOCAB_SIZE).contains(&self.vocab_size) {
            Ok(())
        } else {
            Err(Error::VocabSize { asked: self.vocab_size, least, most: MAX_VOCAB_SIZE })
        }
    }

    /// Special tokens, characters from the most frequent on, and the bytes that are not characters.
    ///
    /// An ASCII character takes the place of its byte, so it costs nothing; any other costs a token.
    fn char_tokens(&self, counts: &[(char, u64)]) -> Vec<String> {
        let mut n_free = self.vocab_size - self.special_tokens.len() - 256;
        let mut tokens = self.special_tokens.clone();
        let mut has_char = [false; 128];
        for &(c, _) in counts.iter().take_while(|&&(_, count)| count >= self.min_frequency) {
            match has_char.get_mut(c as usize) {
                Some(has) => *has = true,
                None if n_free > 0 => n_free -= 1,
                None => continue,
            }
            tokens.push(c.to_string());
        }
        let bytes = (0..=255u8).filter(|&byte| !has_char.get(usize::from(byte)).is_some_and(|&has| has));
        tokens.extend(bytes.map(alphabet::fallback_spelling));
        tokens
    }

    /// Special tokens, all bytes, and what the merges give; and the merges.
    fn bpe_tokens(
        &self,
        counts: PieceCounts,
        observer: &mut dyn Observer,
    ) -> Result<(Vec<String>, Vec<Pair>), Error> {
        let n_special = self.special_tokens.len() as u32;
        let mut byte_ids = [0; 256];
        let mut tokens = merge::Spellings::new(n_special);
        for (id, byte) in (n_special..).zip(alphabet::bytes_by_char()) {
            byte_ids[usize::from(byte)] = id;
            tokens.push(vec![byte]);
        }
        // A merge that spelled a special token would let plain text produce it.
        tokens.forbid(self.special_tokens.iter().filter_map(|token| alphabet::unspell(token)));
        let spell = |piece: &[u8], symbols: &mut Vec<u32>| {
            symbols.extend(piece.iter().map(|&byte| byte_ids[usize::from(byte)]));
        };
        let words = Words::deal(&counts, &spell, self.vocab_size, self.memory_limit, observer)?;
        drop(counts);
        let limits = merge::Limits { n_ids: self.vocab_size, min_frequency: self.min_frequency };
        let merges = merge::train(words, n_special + 256, &limits, &mut tokens, observer)?;
        let spelled = tokens.into_bytes().map(|token| alphabet::spell(&token));
        Ok((self.special_tokens.iter().cloned().chain(spelled).collect(), merges))
    }
}

/// Refuses special tokens that plain text could produce.
fn check_special(tokens: &[String], has_bytes: bool) -> Result<(), Error> {
    for (idx, token) in tokens.iter().enumerate() {
        let reason = if tokens[..idx].contains(token) {
            "is asked for twice"
        } else if token.chars().nth(1).is_none() {
            "has fewer than two characters, so plain text would produce it"
        } else if has_bytes && alphabet::parse_fallback(token).is_some() {
            "is spelled like a byte"
        } else {
            continue;
        };
        return Err(Error::BadSpecial { token: token.clone(), reason });
    }
    Ok(())
}
