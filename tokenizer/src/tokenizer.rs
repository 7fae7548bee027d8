//! The tokenizer: one type for every model and every file.

use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::bpe::{Becomes, Missing};
use crate::build;
use crate::decoding::{Begun, Decoding};
use crate::definition::{AddedTokenDef, Definition, Merges, ModelDef};
use crate::hash::Fnv;
use crate::model::{Model, Scratch};
use crate::pipeline::{Pipeline, Start};
use crate::postprocessor::Around;
use crate::stream::DecodeStream;
use crate::vocab::Vocab;

/// Ends a document; every vocabulary we train has it.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The kind of a tokenizer's model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A token for each frequent character, bytes for the rest.
    Char,
    /// Byte-pair encoding, over bytes or characters.
    #[default]
    Bpe,
    /// The most likely pieces.
    Unigram,
    /// The longest pieces of words, from the left.
    WordPiece,
    /// Whole words.
    WordLevel,
}

/// Text to token ids and back. Cloning is cheap: clones share the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

/// How a text is encoded. By default as plain text, and nothing around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EncodeOptions {
    /// Special tokens that the text spells count. Only for text that may carry structure: never for what a user or a
    /// document says.
    pub parse_special: bool,
    /// The ids that the file wants around a text (BOS, EOS, CLS, SEP) are added.
    pub add_special: bool,
}

/// Ids for which room may be left unused.
const KEPT: usize = 1024;

/// Bytes of a part of a long text, at least. Large enough that threads share them out seldom.
const PART: usize = 1 << 20;

/// A whole text that is nothing but text.
const PLAIN: Start = Start { is_first: true, parse_special: false };

pub(crate) struct Inner {
    /// What the file said, but for the vocabulary.
    pub def: Definition,
    pub vocab: Vocab,
    /// Ids of tokens that are only added tokens, in order.
    pub added_only: Vec<u32>,
    pub pipeline: Pipeline,
    decoding: Decoding,
    around: Around,
    hash: OnceLock<u64>,
    /// Working memory and caches of past calls, one for each call that ran at the same time.
    scratch: Mutex<Vec<Scratch>>,
}

/// Encoding and decoding.
impl Tokenizer {
    /// The ids of `text`. A special token that the text spells is encoded as the plain characters it consists of. What
    /// has no token becomes the unknown token, or is left out if there is none: see [`Tokenizer::missing_bytes`].
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_with(text, EncodeOptions::default())
    }

    /// Appends the ids of `text` to `ids`, as [`Tokenizer::encode`] gives them.
    pub fn encode_into(&self, text: &str, ids: &mut Vec<u32>) {
        self.inner.encode(text, PLAIN, &mut self.scratch(), ids);
    }

    /// The ids of `text`, in which special tokens are recognised. Only for text that may carry structure: never for
    /// what a user or a document says.
    pub fn encode_with_special(&self, text: &str) -> Vec<u32> {
        self.encode_with(text, EncodeOptions { parse_special: true, add_special: false })
    }

    /// The ids of `text`, as the options say.
    pub fn encode_with(&self, text: &str, options: EncodeOptions) -> Vec<u32> {
        let mut ids = Vec::new();
        if options.add_special {
            ids.extend_from_slice(&self.inner.around.prefix);
        }
        let start = Start { parse_special: options.parse_special, ..PLAIN };
        self.inner.encode(text, start, &mut self.scratch(), &mut ids);
        if options.add_special {
            ids.extend_from_slice(&self.inner.around.suffix);
        }
        // Room is made for what a text may at most need, a token for each byte. Of short texts it is not worth a copy.
        if ids.capacity() - ids.len() > ids.len().max(KEPT) {
            ids.shrink_to_fit();
        }
        ids
    }

    /// The ids of `text`, each with the bytes of `text` that it came from, in whole characters. Tokens may be parts of a
    /// character, and what a normalizer put in comes from its neighbours, so ranges may overlap or be empty. What was
    /// left out between tokens counts for a neighbour.
    pub fn encode_offsets(&self, text: &str, options: EncodeOptions) -> Vec<(u32, Range<usize>)> {
        let Inner { pipeline, around, .. } = &*self.inner;
        let none = |at: usize| move |&id: &u32| (id, at..at);
        let mut tokens = Vec::new();
        if options.add_special {
            tokens.extend(around.prefix.iter().map(none(0)));
        }
        let mut scratch = self.scratch();
        let start = Start { parse_special: options.parse_special, ..PLAIN };
        pipeline.encode_offsets(text, start, &mut scratch, &mut tokens);
        if options.add_special {
            tokens.extend(around.suffix.iter().map(none(text.len())));
        }
        tokens
    }

    /// The tokens of a part of a text, between special tokens; `is_first` if it starts the text.
    pub(crate) fn encode_section(&self, text: &str, is_first: bool) -> Vec<(u32, Range<usize>)> {
        let (mut tokens, mut scratch) = (Vec::new(), self.scratch());
        let start = Start { is_first, parse_special: false };
        self.inner.pipeline.encode_offsets(text, start, &mut scratch, &mut tokens);
        tokens
    }

    /// The ids of any bytes. What is UTF-8 is encoded as text, each other byte for itself; if the model has not a token
    /// for every byte, as U+FFFD.
    ///
    /// Between bytes that are no UTF-8, each stretch of text is normalized and cut by itself: a file that puts a space
    /// before all text (`Prepend`, `add_prefix_space`, sentencepiece's dummy prefix) puts one before each.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        if let Ok(text) = std::str::from_utf8(bytes) {
            return self.encode(text);
        }
        let model = &self.inner.pipeline.model;
        let (mut ids, mut scratch) = (Vec::new(), self.scratch());
        if !model.encode_bytes(&[], &mut ids) {
            return self.encode(&String::from_utf8_lossy(bytes));
        }
        let mut start = PLAIN;
        for chunk in bytes.utf8_chunks() {
            self.inner.encode(chunk.valid(), start, &mut scratch, &mut ids);
            model.encode_bytes(chunk.invalid(), &mut ids);
            start.is_first = false;
        }
        ids
    }

    /// The first place in bytes from `from` on where a long text may be cut: the ids of the part before it, and then those
    /// of the part after it, are those of the whole, whatever that goes on with. So a text that is larger than memory is
    /// encoded part by part, or on several threads. [`EncodeOptions::add_special`] is for whole texts only.
    ///
    /// Nothing if there is no such place, and none is known but for byte-level vocabularies with a published split.
    pub fn safe_cut(&self, text: &str, from: usize, options: EncodeOptions) -> Option<usize> {
        self.inner.pipeline.safe_cut(text, from, options.parse_special)
    }

    /// The ids of each text, as [`Tokenizer::encode`] gives them, on all threads of the current rayon pool. They share long
    /// texts, too, if [`Tokenizer::safe_cut`] tells where.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Vec<Vec<u32>> {
        let encode = |(scratch, ids): &mut (Borrowed<'_>, Vec<u32>), text: &str| {
            ids.clear();
            self.inner.encode(text, PLAIN, scratch, ids);
            // As large as it must be, however much the ids of a text may at most be.
            ids.as_slice().to_vec()
        };
        let begin = || (self.scratch(), Vec::new());
        let is_shared = rayon::current_num_threads() > 1;
        let encode_text = |memory: &mut _, text: &S| match text.as_ref() {
            text if is_shared && text.len() >= 2 * PART => {
                let parts = self.cut_long(text).into_par_iter();
                parts.map_init(begin, encode).collect::<Vec<_>>().concat()
            }
            text => encode(memory, text),
        };
        texts.par_iter().map_init(begin, encode_text).collect()
    }

    /// Cuts a text where no id changes.
    fn cut_long<'a>(&self, mut text: &'a str) -> Vec<&'a str> {
        let mut parts = Vec::new();
        while text.len() >= 2 * PART
            && let Some(at) = self.safe_cut(text, PART, EncodeOptions::default())
        {
            let (part, rest) = text.split_at(at);
            parts.push(part);
            text = rest;
        }
        parts.push(text);
        parts
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

    /// The bytes of `ids`: exactly what was encoded, if neither the file's normalizer nor its pre-tokenizer changes,
    /// adds or drops anything (`Metaspace`, `add_prefix_space`, `Whitespace`), no character is unknown and no byte
    /// is one of [`Tokenizer::missing_bytes`].
    ///
    /// # Errors
    /// [`Error::UnknownId`].
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.inner.decoding.decode(ids, &self.inner.vocab, &mut bytes)?;
        Ok(bytes)
    }

    /// Decodes ids that arrive one by one.
    pub fn decode_stream(&self) -> DecodeStream {
        DecodeStream::new(self.clone())
    }

    /// Appends the bytes of the next id of a text that has begun so far.
    pub(crate) fn begin_decoding(&self, begun: &mut Begun, id: u32, out: &mut Vec<u8>) -> Result<(), Error> {
        self.inner.decoding.begin(begun, id, &self.inner.vocab, out)
    }

    /// Whether a token's text depends on nothing but whether it is the first.
    pub(crate) fn decodes_by_table(&self) -> bool {
        self.inner.decoding.is_table()
    }

    /// Working memory from the pool, with the cache that past calls left in it.
    fn scratch(&self) -> Borrowed<'_> {
        let pool = &self.inner.scratch;
        let taken = lock(pool).pop();
        Borrowed { pool, scratch: Some(taken.unwrap_or_else(Scratch::new)) }
    }
}

/// Working memory that goes back to its pool when dropped.
struct Borrowed<'a> {
    pool: &'a Mutex<Vec<Scratch>>,
    /// Taken only by `drop`.
    scratch: Option<Scratch>,
}

/// The vocabulary.
impl Tokenizer {
    /// The kind of the model.
    pub fn kind(&self) -> Kind {
        match self.inner.pipeline.model {
            Model::Char(_) => Kind::Char,
            Model::Bytes(..) | Model::Chars(_) => Kind::Bpe,
            Model::Unigram(_) => Kind::Unigram,
            Model::WordPiece(_) => Kind::WordPiece,
            Model::WordLevel(_) => Kind::WordLevel,
        }
    }

    /// One more than the largest id. Published vocabularies may have ids without a token below it.
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

    /// The bytes of text, in order, that a byte-level vocabulary has no token for; published ones often lack control
    /// characters and bytes that begin no character. As in Hugging Face, they become the unknown token if the file
    /// names one. If not, **they are left out of every text**, before merging, and decoding does not give them back.
    ///
    /// Empty if every byte has a token, and for vocabularies of characters or words.
    pub fn missing_bytes(&self) -> &[u8] {
        self.inner.pipeline.model.missing().map_or(&[], Missing::bytes)
    }

    /// The bytes that a token stands for inside a text.
    ///
    /// # Errors
    /// [`Error::UnknownId`].
    pub fn token_bytes(&self, id: u32) -> Result<&[u8], Error> {
        self.inner.decoding.bytes.get(id)
    }

    /// The id of a special token such as [`END_OF_TEXT`]; nothing for any other token.
    pub fn special_id(&self, content: &str) -> Option<u32> {
        self.token_to_id(content).filter(|&id| self.is_special(id))
    }

    /// Whether `id` is a special token. No plain text gives one by spelling it; only the token for unknown characters or
    /// words, which may be special too (`[UNK]`), stands for what a text holds.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.pipeline.added.get(id).is_some_and(|token| token.special)
    }

    /// The special tokens with their ids, in order of id.
    pub fn special_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.inner
            .pipeline
            .added
            .by_id()
            .filter(|token| token.special)
            .map(|token| (&*token.content, token.id))
    }

    /// The id that ends a document: the one that the file names, or else that of [`END_OF_TEXT`].
    pub fn eos_id(&self) -> Option<u32> {
        self.inner.def.special.eos.or_else(|| self.special_id(END_OF_TEXT))
    }

    /// The id that starts a document, if the file names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.inner.def.special.bos
    }

    /// The ids that the file wants before and after a text: what [`EncodeOptions::add_special`] adds.
    pub fn around(&self) -> (&[u32], &[u32]) {
        (&self.inner.around.prefix, &self.inner.around.suffix)
    }

    /// The Jinja source of the chat template, if the file has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.inner.def.chat_template.as_deref()
    }

    /// A hash of all that decides ids. It is the same on every machine and in every version, so token shards store it
    /// to tell which tokenizer made them.
    pub fn hash(&self) -> u64 {
        *self.inner.hash.get_or_init(|| self.inner.content_hash())
    }

    /// Checks a definition and builds the tokenizer.
    pub(crate) fn from_definition(mut def: Definition) -> Result<Self, Error> {
        def.sort_keys();
        Ok(Self { inner: Arc::new(build::build(def)?) })
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
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

impl Inner {
    pub(crate) fn new(
        def: Definition,
        vocab: Vocab,
        added_only: Vec<u32>,
        pipeline: Pipeline,
        decoding: Decoding,
        around: Around,
    ) -> Self {
        let (hash, scratch) = (OnceLock::new(), Mutex::default());
        Self { def, vocab, added_only, pipeline, decoding, around, hash, scratch }
    }

    fn encode(&self, text: &str, start: Start, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        self.pipeline.encode(text, start, scratch, ids);
    }

    /// Hashes all that decides ids.
    fn content_hash(&self) -> u64 {
        let mut fnv = Fnv::new();
        let Definition { normalizer, pre_tokenizer, model, .. } = &self.def;
        for part in [normalizer, pre_tokenizer] {
            fnv.string(part.as_ref().map(ToString::to_string).unwrap_or_default().as_bytes());
        }
        match model {
            ModelDef::Bpe(def) => match &def.merges {
                Merges::Ranked(pairs) => {
                    fnv.number(pairs.len() as u64);
                    pairs.iter().for_each(|&pair| fnv.number(crate::bpe::pack(pair)));
                }
                Merges::Scored(scores) => scores.iter().for_each(|score| fnv.number(score.to_bits().into())),
                Merges::ById => {}
            },
            ModelDef::Unigram(def) => def.scores.iter().for_each(|score| fnv.number(score.to_bits())),
            ModelDef::WordPiece(_) | ModelDef::WordLevel(_) | ModelDef::Char => {}
        }
        // The rest of the model: names and flags.
        model.hash_settings(&mut fnv);
        fnv.number(self.vocab.len() as u64);
        for (token, id) in self.vocab.iter() {
            fnv.string(token.as_bytes());
            fnv.number(id.into());
            fnv.string(&self.pipeline.added.get(id).map(flags).unwrap_or_default());
        }
        // Where there is none of these, the hash is that of older versions: shards stay good.
        for token in self.pipeline.added.by_id().filter(|token| flags(token) == [0; 5]) {
            fnv.string(b"added");
            fnv.number(token.id.into());
        }
        for (side, ids) in [("prefix", &self.around.prefix), ("suffix", &self.around.suffix)] {
            if !ids.is_empty() {
                fnv.string(side.as_bytes());
                fnv.number(ids.len() as u64);
                ids.iter().for_each(|&id| fnv.number(id.into()));
            }
        }
        // Of a byte-level model, the settings are hashed without an unknown token: with all bytes it stands for nothing.
        if let Some(Becomes::Unknown { id, fuse }) = self.pipeline.model.missing().map(Missing::becomes) {
            fnv.string(b"unknown");
            fnv.number(id.into());
            fnv.number(fuse.into());
        }
        fnv.finish()
    }
}

/// What an added token's flags are in the hash.
fn flags(token: &AddedTokenDef) -> [u8; 5] {
    [token.special, token.normalized, token.lstrip, token.rstrip, token.single_word].map(u8::from)
}

impl Deref for Borrowed<'_> {
    type Target = Scratch;

    fn deref(&self) -> &Scratch {
        self.scratch.as_ref().expect("present until dropped")
    }
}

impl DerefMut for Borrowed<'_> {
    fn deref_mut(&mut self) -> &mut Scratch {
        self.scratch.as_mut().expect("present until dropped")
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        lock(self.pool).extend(self.scratch.take());
    }
}

/// A panic elsewhere leaves a pool as good as before: it only ever loses working memory.
fn lock(pool: &Mutex<Vec<Scratch>>) -> MutexGuard<'_, Vec<Scratch>> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}
