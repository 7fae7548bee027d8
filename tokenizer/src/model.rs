//! The models behind one type: what turns a piece of text into ids.

use crate::alphabet;
use crate::bpe::{self, Bpe};
use crate::char_bpe::{self, CharBpe};
use crate::char_level::CharLevel;
use crate::sink::Sink;
use crate::unigram::{self, Unigram};
use crate::vocab::TokenBytes;
use crate::wordlevel::WordLevel;
use crate::wordpiece::WordPiece;

/// A model of any kind.
#[derive(Debug)]
pub(crate) enum Model {
    /// Byte-level BPE.
    Bytes(Box<Bpe>),
    /// BPE over characters, with or without bytes for the rest.
    Chars(Box<CharBpe>),
    /// Characters, with bytes for the rest.
    Char(Box<CharLevel>),
    Unigram(Unigram),
    WordPiece(WordPiece),
    WordLevel(WordLevel),
}

/// Working memory and caches of one encoding thread.
pub(crate) struct Scratch {
    pub bytes: bpe::Cache,
    chars: char_bpe::Scratch,
    unigram: unigram::Scratch,
    tokens: Vec<(u32, usize)>,
    ids: Vec<u32>,
}

impl Scratch {
    /// Empty memory.
    pub(crate) fn new() -> Self {
        Self {
            bytes: bpe::Cache::new(),
            chars: char_bpe::Scratch::new(),
            unigram: unigram::Scratch::default(),
            tokens: Vec::new(),
            ids: Vec::new(),
        }
    }
}

impl Model {
    /// Gives the tokens of a piece, which is not empty. `bytes` are those of the vocabulary.
    pub(crate) fn encode<S: Sink>(
        &self,
        piece: &str,
        bytes: &TokenBytes,
        scratch: &mut Scratch,
        sink: &mut S,
    ) {
        match self {
            Self::Bytes(bpe) => {
                scratch.ids.clear();
                bpe.encode_piece(piece.as_bytes(), &mut scratch.bytes, &mut scratch.ids);
                give(&scratch.ids, bytes, sink);
            }
            Self::Char(model) => {
                scratch.ids.clear();
                model.encode(piece, &mut scratch.ids);
                give(&scratch.ids, bytes, sink);
            }
            Self::Chars(bpe) => bpe.encode(piece, &mut scratch.chars, sink),
            Self::Unigram(model) => model.encode(piece, &mut scratch.unigram, sink),
            Self::WordPiece(model) => model.encode(piece, &mut scratch.tokens, sink),
            Self::WordLevel(model) => model.encode(piece, sink),
        }
    }

    /// As [`Model::encode`], for a piece spelled in the alphabet of bytes.
    pub(crate) fn encode_spelled<S: Sink>(
        &self,
        piece: &str,
        bytes: &TokenBytes,
        scratch: &mut Scratch,
        sink: &mut S,
    ) {
        let (Self::Bytes(bpe), Some(unspelled)) = (self, alphabet::unspell(piece)) else {
            return self.encode(piece, bytes, scratch, sink);
        };
        scratch.ids.clear();
        bpe.encode_piece(&unspelled, &mut scratch.bytes, &mut scratch.ids);
        for &id in &scratch.ids {
            let token = bytes.get(id).unwrap_or_default();
            let n_bytes = token.iter().map(|&byte| alphabet::byte_to_char(byte).len_utf8()).sum();
            sink.token(id, n_bytes);
        }
    }

    /// Appends one id for each byte; whether the model has one for every byte.
    pub(crate) fn encode_bytes(&self, bytes: &[u8], ids: &mut Vec<u32>) -> bool {
        match self {
            Self::Bytes(bpe) => bpe.encode_bytes(bytes, ids),
            Self::Char(model) => model.encode_bytes(bytes, ids),
            _ => return false,
        }
        true
    }
}

/// Gives tokens that stand for exactly their bytes.
fn give<S: Sink>(ids: &[u32], bytes: &TokenBytes, sink: &mut S) {
    for &id in ids {
        sink.token(id, bytes.n_bytes(id));
    }
}
