//! The tokens of a vocabulary: their spellings in the file, and the bytes that each stands for.
//!
//! Ids may have holes: published vocabularies leave room for special tokens that never came.

use rayon::prelude::*;

use crate::Error;
use crate::pieces::PieceMap;

/// Marks an id without a token.
const HOLE: u32 = u32::MAX;

/// Most ids without a token: a file whose ids are wild would cost memory for nothing.
pub(crate) const MAX_HOLES: usize = 1 << 16;

/// Tokens by id and by spelling.
pub(crate) struct Vocab {
    /// Ids by spelling.
    ids: PieceMap<u32>,
    /// The place of each id's spelling in `ids`, or [`HOLE`].
    places: Vec<u32>,
}

impl Vocab {
    /// Takes tokens with their ids, in any order.
    ///
    /// # Errors
    /// [`Error::DuplicateToken`], [`Error::DuplicateId`], and [`Error::IdOutOfRange`] for an id far beyond the number of
    /// tokens.
    pub(crate) fn new<'a>(tokens: impl ExactSizeIterator<Item = (&'a str, u32)>) -> Result<Self, Error> {
        let n_tokens = tokens.len();
        let mut vocab = Self { ids: PieceMap::new(), places: Vec::with_capacity(n_tokens) };
        for (token, id) in tokens {
            let id_idx = id as usize;
            if id_idx >= n_tokens + MAX_HOLES {
                return Err(Error::IdOutOfRange { token: token.to_owned(), id, n_tokens });
            }
            if id_idx >= vocab.places.len() {
                vocab.places.resize(id_idx + 1, HOLE);
            }
            if let Some(first) = vocab.token(id).filter(|&first| first != token) {
                return Err(Error::DuplicateId { id, first: first.to_owned(), second: token.to_owned() });
            }
            let place = vocab.ids.len() as u32;
            let first = *vocab.ids.entry(token.as_bytes(), id);
            if (vocab.ids.len() as u32) == place {
                return Err(Error::DuplicateToken { token: token.to_owned(), first, second: id });
            }
            vocab.places[id_idx] = place;
        }
        Ok(vocab)
    }

    /// One more than the largest id.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The id of a token, by its spelling in the file.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token.as_bytes())
    }

    /// The spelling of a token in the file.
    pub(crate) fn token(&self, id: u32) -> Option<&str> {
        let place = *self.places.get(id as usize)?;
        self.ids.key(place as usize).and_then(|key| std::str::from_utf8(key).ok())
    }

    /// All spellings with their ids, in order of id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        (0..self.len() as u32).filter_map(|id| Some((self.token(id)?, id)))
    }
}

/// The bytes of each token, end to end.
pub(crate) struct TokenBytes {
    /// Ends in [`TokenBytes::SPARE`] zeros.
    bytes: Vec<u8>,
    /// Start and length of each token; [`HOLE`] is the length of none.
    spans: Vec<(u32, u32)>,
}

impl TokenBytes {
    /// Bytes that may be read behind every token.
    const SPARE: usize = 16;

    /// Takes the bytes of each id, and nothing for an id without a token.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for 4 GiB or more: a file is smaller, but a decoder may make its tokens longer.
    pub(crate) fn new(tokens: impl Iterator<Item = Option<Vec<u8>>>) -> Result<Self, Error> {
        let mut all = Self { bytes: Vec::new(), spans: Vec::new() };
        let mut start = 0;
        for token in tokens {
            all.bytes.extend(token.as_deref().unwrap_or_default());
            let too_large = |_| Error::TooLarge { len: all.bytes.len() as u64, limit: u32::MAX.into() };
            let end = u32::try_from(all.bytes.len()).map_err(too_large)?;
            all.spans.push((start, if token.is_some() { end - start } else { HOLE }));
            start = end;
        }
        all.bytes.extend([0; Self::SPARE]);
        Ok(all)
    }

    /// One more than the largest id.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// The bytes that `id` stands for.
    #[inline]
    pub(crate) fn get(&self, id: u32) -> Result<&[u8], Error> {
        match self.spans.get(id as usize) {
            Some(&(start, len)) if len != HOLE => Ok(&self.bytes[start as usize..][..len as usize]),
            _ => Err(Error::UnknownId { id, vocab_size: self.spans.len() }),
        }
    }

    /// Appends the bytes of all `ids`.
    pub(crate) fn decode(&self, ids: &[u32], out: &mut Vec<u8>) -> Result<(), Error> {
        let mut at = out.len();
        for &id in ids {
            let token = self.get(id)?;
            if at + token.len() + Self::SPARE > out.len() {
                out.resize(out.len() + out.len().max(1024) + token.len() + Self::SPARE, 0);
            }
            if token.len() <= Self::SPARE {
                // A copy of a fixed number of bytes is a few instructions; what is too much is overwritten.
                let start = self.spans[id as usize].0 as usize;
                out[at..at + Self::SPARE].copy_from_slice(&self.bytes[start..start + Self::SPARE]);
            } else {
                out[at..at + token.len()].copy_from_slice(token);
            }
            at += token.len();
        }
        out.truncate(at);
        Ok(())
    }

    /// Number of bytes of each id, 0 for an id without a token.
    pub(crate) fn lens(&self) -> impl Iterator<Item = u32> {
        self.spans.iter().map(|&(_, len)| if len == HOLE { 0 } else { len })
    }

    /// The bytes of all tokens with their ids, in order of id, on all threads of the current rayon pool.
    pub(crate) fn par_iter(&self) -> impl ParallelIterator<Item = (&[u8], u32)> + Clone {
        (0..self.spans.len() as u32).into_par_iter().filter_map(|id| Some((self.get(id).ok()?, id)))
    }
}
