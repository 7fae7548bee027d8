//! Training vocabularies: count what a corpus consists of, then choose tokens.
//!
//! A [`Trainer`] is the configuration; [`Trainer::train`] reads documents and gives a [`Tokenizer`]. Ids are in this
//! order: special tokens, then single characters and bytes, then merges. The result depends on the corpus and the
//! configuration only, not on the order of documents or the number of threads, and for BPE it is what Hugging Face's
//! `BpeTrainer` gives for the same corpus.

mod count;
mod merge;

use serde::{Deserialize, Serialize};

use crate::bpe::Pair;
use crate::chat::CHAT_TOKENS;
use crate::special::{END_OF_TEXT, SpecialToken};
use crate::tokenizer::{ModelParts, Parts};
use crate::vocab::Vocab;
use crate::{Error, Kind, Split, Tokenizer, alphabet};

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
}

impl Default for Trainer {
    fn default() -> Self {
        Self::new(Kind::default(), 8192)
    }
}

impl Trainer {
    /// A trainer of `kind` for at most `vocab_size` tokens, with the defaults for the rest.
    pub fn new(kind: Kind, vocab_size: usize) -> Self {
        Self { kind, vocab_size, split: None, min_frequency: 2, special_tokens: vec![END_OF_TEXT.to_owned()] }
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

    /// Adds the special tokens of the chat format that are not there yet.
    pub fn with_chat_tokens(mut self) -> Self {
        for token in CHAT_TOKENS {
            if !self.special_tokens.iter().any(|present| present == token) {
                self.special_tokens.push(token.to_owned());
            }
        }
        self
    }

    /// Trains on documents, in parallel on the current rayon pool. Documents are read as plain text: special tokens
    /// that they spell count for nothing.
    ///
    /// # Errors
    /// [`Error::VocabSize`], [`Error::BadSpecial`] or [`Error::UselessOption`] if the configuration is impossible,
    /// [`Error::CorpusTooLarge`] beyond 4 GB of distinct pre-tokens.
    pub fn train<S: AsRef<str> + Send + Sync>(
        &self,
        documents: impl IntoIterator<Item = S>,
    ) -> Result<Tokenizer, Error> {
        self.check()?;
        let (tokens, model) = match self.kind {
            Kind::Char => (self.char_tokens(&count::chars(documents)), ModelParts::Char),
            Kind::Bpe => {
                let split = self.split.unwrap_or_default();
                let (tokens, merges) = self.bpe_tokens(&count::pieces(split, documents))?;
                (tokens, ModelParts::Bpe { split, merges, ignore_merges: false })
            }
        };
        Tokenizer::from_parts(Parts { vocab: Vocab::new(tokens)?, special: self.special(), model })
    }

    fn check(&self) -> Result<(), Error> {
        if self.kind == Kind::Char && self.split.is_some() {
            return Err(Error::UselessOption { option: "split", kind: "char" });
        }
        for (idx, token) in self.special_tokens.iter().enumerate() {
            let reason = if self.special_tokens[..idx].contains(token) {
                "is asked for twice"
            } else if token.chars().nth(1).is_none() {
                "has fewer than two characters, so plain text would produce it"
            } else if self.kind == Kind::Char && alphabet::parse_fallback(token).is_some() {
                "is spelled like a byte"
            } else {
                continue;
            };
            return Err(Error::BadSpecial { token: token.clone(), reason });
        }
        let least = 256 + self.special_tokens.len();
        if (least..=MAX_VOCAB_SIZE).contains(&self.vocab_size) {
            Ok(())
        } else {
            Err(Error::VocabSize { asked: self.vocab_size, least, most: MAX_VOCAB_SIZE })
        }
    }

    fn special(&self) -> Vec<SpecialToken> {
        let token =
            |(id, content): (u32, &String)| SpecialToken { id, content: content.clone(), normalized: false };
        (0..).zip(&self.special_tokens).map(token).collect()
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
    fn bpe_tokens(&self, counts: &count::PieceCounts) -> Result<(Vec<String>, Vec<Pair>), Error> {
        let n_special = self.special_tokens.len() as u32;
        let mut tokens: Vec<Vec<u8>> = alphabet::bytes_by_char().map(|byte| vec![byte]).collect();
        let mut byte_ids = [0; 256];
        for (id, token) in (n_special..).zip(&tokens) {
            byte_ids[usize::from(token[0])] = id;
        }
        let limits = merge::Limits {
            n_tokens: self.vocab_size - self.special_tokens.len(),
            min_frequency: self.min_frequency,
            first_id: n_special,
            // A merge that spelled a special token would let plain text produce it.
            forbidden: self.special_tokens.iter().filter_map(|token| alphabet::unspell(token)).collect(),
        };
        let merges = merge::train(counts, &byte_ids, &limits, &mut tokens)?;
        let spelled = tokens.iter().map(|token| alphabet::spell(token));
        Ok((self.special_tokens.iter().cloned().chain(spelled).collect(), merges))
    }
}
