//! The models behind one type: what turns a piece of text into ids.

use crate::Error;
use crate::added::MAX_CONTENT;
use crate::alphabet;
use crate::bpe::{self, Bpe, Missing};
use crate::char_bpe::{self, CharBpe};
use crate::char_level::CharLevel;
use crate::sink::Sink;
use crate::unigram::{self, Unigram};
use crate::wordlevel::WordLevel;
use crate::wordpiece::WordPiece;

/// A model of any kind.
#[derive(Debug)]
pub(crate) enum Model {
    /// Byte-level BPE, and how many bytes of text each id stands for.
    Bytes(Box<Bpe>, TokenLens),
    /// BPE over characters, with or without bytes for the rest.
    Chars(Box<CharBpe>),
    /// Characters, with bytes for the rest.
    Char(Box<CharLevel>),
    Unigram(Unigram),
    WordPiece(WordPiece),
    WordLevel(WordLevel),
}

/// Number of bytes of text that each token of a byte-level vocabulary stands for, by id. What a decoder makes of a token
/// may be longer or shorter.
#[derive(Debug)]
pub(crate) struct TokenLens(pub Vec<u32>);

impl TokenLens {
    #[inline]
    pub(crate) fn get(&self, id: u32) -> usize {
        self.0.get(id as usize).map_or(0, |&len| len as usize)
    }
}

/// Working memory and caches of one encoding thread.
pub(crate) struct Scratch {
    pub bytes: bpe::Scratch,
    chars: char_bpe::Scratch,
    unigram: unigram::Scratch,
    tokens: Vec<(u32, usize)>,
    ids: Vec<u32>,
}

impl Scratch {
    /// Empty memory.
    pub(crate) fn new() -> Self {
        Self {
            bytes: bpe::Scratch::default(),
            chars: char_bpe::Scratch::default(),
            unigram: unigram::Scratch::default(),
            tokens: Vec::new(),
            ids: Vec::new(),
        }
    }
}

impl Model {
    /// Gives the tokens of a piece, which is not empty.
    pub(crate) fn encode<S: Sink>(&self, piece: &str, scratch: &mut Scratch, sink: &mut S) {
        match self {
            Self::Bytes(bpe, lens) => {
                scratch.ids.clear();
                bpe.encode_piece(piece.as_bytes(), &mut scratch.bytes, &mut scratch.ids);
                match bpe.missing() {
                    None => scratch.ids.iter().for_each(|&id| sink.token(id, lens.get(id))),
                    Some(missing) => missing.spans(piece.as_bytes(), &scratch.ids, lens, |id, token| {
                        sink.token(id, token.len());
                    }),
                }
            }
            Self::Char(model) => model.encode(piece, sink),
            Self::Chars(bpe) => bpe.encode(piece, &mut scratch.chars, sink),
            Self::Unigram(model) => model.encode(piece, &mut scratch.unigram, sink),
            Self::WordPiece(model) => model.encode(piece, &mut scratch.tokens, sink),
            Self::WordLevel(model) => model.encode(piece, sink),
        }
    }

    /// As [`Model::encode`], for a piece spelled in the alphabet of bytes.
    pub(crate) fn encode_spelled<S: Sink>(&self, piece: &str, scratch: &mut Scratch, sink: &mut S) {
        let (Self::Bytes(bpe, lens), Some(unspelled)) = (self, alphabet::unspell(piece)) else {
            return self.encode(piece, scratch, sink);
        };
        scratch.ids.clear();
        bpe.encode_piece(&unspelled, &mut scratch.bytes, &mut scratch.ids);
        let mut give = |id: u32, token: &[u8]| {
            sink.token(id, token.iter().map(|&byte| alphabet::byte_to_char(byte).len_utf8()).sum());
        };
        if let Some(missing) = bpe.missing() {
            return missing.spans(&unspelled, &scratch.ids, lens, give);
        }
        let mut rest = &unspelled[..];
        for &id in &scratch.ids {
            let (token, after) = rest.split_at(lens.get(id));
            give(id, token);
            rest = after;
        }
    }

    /// The bytes of text that a byte-level vocabulary has no token for.
    pub(crate) fn missing(&self) -> Option<&Missing> {
        match self {
            Self::Bytes(bpe, _) => bpe.missing(),
            _ => None,
        }
    }

    /// Appends one id for each byte; whether the model has one for every byte.
    pub(crate) fn encode_bytes(&self, bytes: &[u8], ids: &mut Vec<u32>) -> bool {
        let byte_ids = match self {
            Self::Bytes(bpe, _) => {
                if bpe.missing().is_some() {
                    return false;
                }
                bpe.encode_bytes(bytes, ids);
                return true;
            }
            Self::Char(model) => {
                model.encode_bytes(bytes, ids);
                return true;
            }
            Self::Chars(model) => model.byte_ids(),
            Self::Unigram(model) => model.byte_ids(),
            Self::WordPiece(_) | Self::WordLevel(_) => None,
        };
        let Some(byte_ids) = byte_ids else { return false };
        ids.extend(bytes.iter().map(|&byte| byte_ids[usize::from(byte)]));
        true
    }
}

/// The id of the token for what has none, which a file names by its spelling.
pub(crate) fn unk_id(tokens: &[&str], unk_token: &str) -> Result<u32, Error> {
    let is_it = |token: &&str| !token.is_empty() && *token == unk_token;
    let found = tokens.iter().position(is_it).map(|id| id as u32);
    found.ok_or_else(|| Error::Unsupported {
        part: "model",
        found: format!("`unk_token` `{unk_token}`, which is not in the vocabulary,"),
        supported: "a token of the vocabulary",
    })
}

/// Refuses a token that is longer than any added token may be: at every place of a text, so many bytes may be compared.
pub(crate) fn check_lens(tokens: &[&str]) -> Result<(), Error> {
    match tokens.iter().zip(0..).find(|(token, _)| token.len() > MAX_CONTENT) {
        None => Ok(()),
        Some((token, id)) => Err(Error::BadToken {
            token: token.chars().take(100).collect(),
            id,
            reason: "is longer than the 4096 bytes that a token of this model may have",
        }),
    }
}
