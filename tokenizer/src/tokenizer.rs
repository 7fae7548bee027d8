//! The tokenizer: one type for both models, built from checked parts.
//!
//! Whether the parts come from a file or from training, [`Tokenizer::from_parts`] is the only way in, so whatever holds
//! of one tokenizer holds of all: every byte can be encoded, no special token comes out of plain text, ids run from 0.

use std::collections::HashSet;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::bpe::{self, Bpe, Cache, Merge, Pair};
use crate::char_level::CharLevel;
use crate::hash::Fnv;
use crate::special::{END_OF_TEXT, Part, SpecialToken, SpecialTokens};
use crate::stream::DecodeStream;
use crate::vocab::{TokenBytes, Vocab};
use crate::{Error, Split, alphabet};

/// The kind of a tokenizer's model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A token for each frequent character, bytes for the rest.
    Char,
    /// Byte-level byte-pair encoding.
    #[default]
    Bpe,
}

/// Text to token ids and back. Cloning is cheap: clones share the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    model: Model,
    vocab: Vocab,
    bytes: TokenBytes,
    special: SpecialTokens,
    hash: u64,
    /// Working memory and caches of past calls, one for each call that ran at the same time.
    scratch: Mutex<Vec<Cache>>,
}

/// What turns plain text into ids.
pub(crate) enum Model {
    Char(CharLevel),
    Bpe { split: Split, ignore_merges: bool, bpe: Bpe },
}

/// What a tokenizer is made of, before it is checked.
pub(crate) struct Parts {
    pub vocab: Vocab,
    /// Tokens of `vocab` that are special.
    pub special: Vec<SpecialToken>,
    pub model: ModelParts,
}

/// The part of [`Parts`] that differs between models.
pub(crate) enum ModelParts {
    Char,
    Bpe { split: Split, merges: Vec<Pair>, ignore_merges: bool },
}

/// Encoding and decoding.
impl Tokenizer {
    /// The ids of `text`. A special token that the text spells is encoded as the plain characters it consists of.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids);
        ids
    }

    /// Appends the ids of `text` to `ids`, as [`Tokenizer::encode`] gives them.
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        self.inner.model.encode(text, &mut self.scratch(), ids);
    }

    /// The ids of `text`, in which special tokens are recognised. Only for text that may carry structure: never for
    /// what a user or a document says.
    pub fn encode_with_special(&self, text: &str) -> Vec<u32> {
        let (mut ids, mut scratch) = (Vec::new(), self.scratch());
        self.inner.special.split(text, |part| match part {
            Part::Plain(text) => self.inner.model.encode(text, &mut scratch, &mut ids),
            Part::Special(id) => ids.push(id),
        });
        ids
    }

    /// The ids of any bytes. What is UTF-8 is encoded as text, each other byte for itself.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let (mut ids, mut scratch) = (Vec::new(), self.scratch());
        for chunk in bytes.utf8_chunks() {
            self.inner.model.encode(chunk.valid(), &mut scratch, &mut ids);
            self.inner.model.encode_invalid(chunk.invalid(), &mut ids);
        }
        ids
    }

    /// The ids of each text, as [`Tokenizer::encode`] gives them, on all threads of the current rayon pool.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Vec<Vec<u32>> {
        let encode = |scratch: &mut Borrowed<'_>, text: &S| {
            let mut ids = Vec::new();
            self.inner.model.encode(text.as_ref(), scratch, &mut ids);
            ids
        };
        texts.par_iter().map_init(|| self.scratch(), encode).collect()
    }

    /// The text of `ids`, special tokens as they are spelled. Bytes that are not UTF-8 become U+FFFD, and only those.
    ///
    /// # Errors
    /// [`Error::UnknownId`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        let bytes = self.decode_bytes(ids)?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// The bytes of `ids`: exactly what was encoded.
    ///
    /// # Errors
    /// [`Error::UnknownId`].
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            bytes.extend_from_slice(self.token_bytes(id)?);
        }
        Ok(bytes)
    }

    /// Decodes ids that arrive one by one.
    pub fn decode_stream(&self) -> DecodeStream {
        DecodeStream::new(self.clone())
    }

    /// Working memory from the pool, with the cache that past calls left in it.
    fn scratch(&self) -> Borrowed<'_> {
        let pool = &self.inner.scratch;
        let taken = lock(pool).pop();
        Borrowed { pool, scratch: Some(taken.unwrap_or_else(Cache::new)) }
    }
}

/// Working memory that goes back to its pool when dropped.
struct Borrowed<'a> {
    pool: &'a Mutex<Vec<Cache>>,
    /// Taken only by `drop`.
    scratch: Option<Cache>,
}

/// The vocabulary.
impl Tokenizer {
    /// The kind of the model.
    pub fn kind(&self) -> Kind {
        match self.inner.model {
            Model::Char(_) => Kind::Char,
            Model::Bpe { .. } => Kind::Bpe,
        }
    }

    /// Number of tokens; ids are smaller than this.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab.len()
    }

    /// The id of a token as the file spells it: `Ġthe` for ` the`, `<0x0A>` for a byte of byte fallback.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.vocab.id(token)
    }

    /// A token as the file spells it.
    pub fn id_to_token(&self, id: u32) -> Option<&str> {
        self.inner.vocab.token(id)
    }

    /// The bytes that a token stands for.
    ///
    /// # Errors
    /// [`Error::UnknownId`].
    pub fn token_bytes(&self, id: u32) -> Result<&[u8], Error> {
        self.inner.bytes.get(id)
    }

    /// The id of a special token such as [`END_OF_TEXT`]; nothing for any other token.
    pub fn special_id(&self, content: &str) -> Option<u32> {
        self.inner.special.id(content)
    }

    /// Whether `id` is a special token, which no plain text gives.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special.contains(id)
    }

    /// The special tokens with their ids, in order of id.
    pub fn special_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.inner.special.tokens().iter().map(|token| (token.content.as_str(), token.id))
    }

    /// The id that ends a document: that of [`END_OF_TEXT`], if it is a special token here.
    pub fn eos_id(&self) -> Option<u32> {
        self.special_id(END_OF_TEXT)
    }

    /// A hash of all that decides ids. It is the same on every machine and in every version, so token shards store it
    /// to tell which tokenizer made them.
    pub fn hash(&self) -> u64 {
        self.inner.hash
    }

    pub(crate) fn model(&self) -> &Model {
        &self.inner.model
    }

    pub(crate) fn vocab(&self) -> &Vocab {
        &self.inner.vocab
    }

    pub(crate) fn special(&self) -> &SpecialTokens {
        &self.inner.special
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("kind", &self.kind())
            .field("vocab_size", &self.vocab_size())
            .field("hash", &format_args!("{:016x}", self.hash()))
            .finish_non_exhaustive()
    }
}

impl Model {
    fn encode(&self, text: &str, scratch: &mut Cache, ids: &mut Vec<u32>) {
        match self {
            Self::Char(model) => model.encode(text, ids),
            Self::Bpe { split, bpe, .. } => bpe.encode(*split, text, scratch, ids),
        }
    }

    /// Appends one id for each byte.
    fn encode_invalid(&self, bytes: &[u8], ids: &mut Vec<u32>) {
        match self {
            Self::Char(model) => model.encode_bytes(bytes, ids),
            Self::Bpe { bpe, .. } => bpe.encode_bytes(bytes, ids),
        }
    }
}

impl Deref for Borrowed<'_> {
    type Target = Cache;

    fn deref(&self) -> &Cache {
        self.scratch.as_ref().expect("present until dropped")
    }
}

impl DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut Cache {
        self.scratch.as_mut().expect("present until dropped")
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        lock(self.pool).extend(self.scratch.take());
    }
}

/// A panic elsewhere leaves a pool as good as before: it only ever loses working memory.
fn lock(pool: &Mutex<Vec<Cache>>) -> MutexGuard<'_, Vec<Cache>> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Construction.
impl Tokenizer {
    /// Checks the parts and builds the tokenizer.
    pub(crate) fn from_parts(parts: Parts) -> Result<Self, Error> {
        let Parts { vocab, special, model } = parts;
        if let Some(token) = special.iter().find(|token| token.content.is_empty()) {
            return Err(Error::BadSpecial { token: token.content.clone(), reason: "is empty" });
        }
        let special = SpecialTokens::new(special);
        if let Some(pair) = special.tokens().windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(Error::BadSpecial { token: pair[1].content.clone(), reason: "is listed twice" });
        }
        let hash = content_hash(&vocab, &special, &model);
        let (model, bytes) = match model {
            ModelParts::Char => char_level(&vocab, &special)?,
            ModelParts::Bpe { split, merges, ignore_merges } => {
                let (mut bpe, bytes) = byte_level(&vocab, &special, &merges)?;
                if ignore_merges {
                    // Special tokens stay out, whatever Hugging Face does: text is no marker.
                    let plain = bytes.par_iter().filter(|&(_, id)| !special.contains(id));
                    bpe = bpe.with_whole(plain);
                }
                (Model::Bpe { split, ignore_merges, bpe }, bytes)
            }
        };
        let inner = Inner { model, vocab, bytes, special, hash, scratch: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }
}

/// Reads a character-level vocabulary: each token is one character, a byte token, or special.
fn char_level(vocab: &Vocab, special: &SpecialTokens) -> Result<(Model, TokenBytes), Error> {
    for token in special.tokens() {
        let reason = if token.content.chars().nth(1).is_none() {
            "is a single character, which plain text would produce"
        } else if alphabet::parse_fallback(&token.content).is_some() {
            "is spelled like a byte"
        } else {
            continue;
        };
        return Err(Error::BadSpecial { token: token.content.clone(), reason });
    }
    let (mut chars, mut fallback, mut token_bytes) = (Vec::new(), Vec::new(), TokenBytes::new());
    for (token, id) in vocab.iter() {
        let mut in_token = token.chars();
        if special.contains(id) {
            token_bytes.push(token.as_bytes());
        } else if let (Some(c), None) = (in_token.next(), in_token.next()) {
            chars.push((c, id));
            token_bytes.push(token.as_bytes());
        } else if let Some(byte) = alphabet::parse_fallback(token) {
            fallback.push((byte, id));
            token_bytes.push(&[byte]);
        } else {
            let reason = "is neither one character nor a byte such as <0x0A> nor special";
            return Err(Error::BadToken { token: token.to_owned(), id, reason });
        }
    }
    let model = CharLevel::new(chars.into_iter(), fallback.into_iter())?;
    Ok((Model::Char(model), token_bytes))
}

/// Reads a byte-level vocabulary and its merge rules.
fn byte_level(vocab: &Vocab, special: &SpecialTokens, pairs: &[Pair]) -> Result<(Bpe, TokenBytes), Error> {
    let mut by_byte = [None; 256];
    let mut token_bytes = TokenBytes::new();
    for (token, id) in vocab.iter() {
        if special.contains(id) {
            token_bytes.push(token.as_bytes());
            continue;
        }
        let Some(bytes) = alphabet::unspell(token).filter(|bytes| !bytes.is_empty()) else {
            let reason = "is not spelled in the characters that stand for bytes";
            return Err(Error::BadToken { token: token.to_owned(), id, reason });
        };
        if let [byte] = bytes[..] {
            by_byte[usize::from(byte)] = Some(id);
        }
        token_bytes.push(&bytes);
    }
    let mut byte_ids = [0; 256];
    for (byte, id) in (0..=255).zip(&mut byte_ids) {
        *id = by_byte[usize::from(byte)].ok_or(Error::MissingByte { byte })?;
    }
    let merges = merge_results(vocab, special, pairs)?;
    Ok((Bpe::new(byte_ids, &merges), token_bytes))
}

/// The id that each pair merges into: the token that both spell together.
fn merge_results(vocab: &Vocab, special: &SpecialTokens, pairs: &[Pair]) -> Result<Vec<Merge>, Error> {
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
        if [left, right, id].iter().any(|&id| special.contains(id)) {
            return Err(bad("special tokens do not take part in merges"));
        }
        if !seen.insert((left, right)) {
            return Err(bad("the pair stands twice"));
        }
        merges.push(Merge { pair: (left, right), id });
    }
    Ok(merges)
}

/// Hashes all that decides ids.
fn content_hash(vocab: &Vocab, special: &SpecialTokens, model: &ModelParts) -> u64 {
    let mut fnv = Fnv::new();
    match model {
        ModelParts::Char => fnv.string(b"char"),
        ModelParts::Bpe { split, merges, ignore_merges } => {
            fnv.string(b"bpe");
            fnv.string(split.regex().as_bytes());
            fnv.number(u64::from(*ignore_merges));
            fnv.number(merges.len() as u64);
            for &pair in merges {
                fnv.number(bpe::pack(pair));
            }
        }
    }
    fnv.number(vocab.len() as u64);
    for (token, id) in vocab.iter() {
        fnv.string(token.as_bytes());
        fnv.number(u64::from(special.contains(id)));
    }
    fnv.finish()
}
