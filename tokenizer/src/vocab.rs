//! The tokens of a vocabulary: their spellings in the file, and the bytes that each stands for.

use rayon::prelude::*;

use crate::Error;
use crate::pieces::PieceMap;

/// Tokens by id and by spelling.
pub(crate) struct Vocab {
    /// Ids by spelling; a spelling's place in the map is its id as well.
    ids: PieceMap<u32>,
}

impl Vocab {
    /// Numbers the tokens in their order.
    pub(crate) fn new<S: AsRef<str>>(tokens: impl IntoIterator<Item = S>) -> Result<Self, Error> {
        let mut ids = PieceMap::new();
        for (id, token) in (0u32..).zip(tokens) {
            let first = *ids.entry(token.as_ref().as_bytes(), id);
            if first != id {
                return Err(Error::DuplicateToken { token: token.as_ref().to_owned(), first, second: id });
            }
        }
        Ok(Self { ids })
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The id of a token, by its spelling in the file.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token.as_bytes())
    }

    /// The spelling of a token in the file.
    pub(crate) fn token(&self, id: u32) -> Option<&str> {
        self.ids.key(id as usize).and_then(|key| std::str::from_utf8(key).ok())
    }

    /// All spellings with their ids, in order of id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        (0..self.len() as u32).filter_map(|id| Some((self.token(id)?, id)))
    }
}

/// The bytes of each token, end to end.
pub(crate) struct TokenBytes {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl TokenBytes {
    /// No tokens yet.
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new(), ends: Vec::new() }
    }

    /// Adds the bytes of the next id.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
    }

    /// The bytes of all tokens with their ids, in order of id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], u32)> {
        (0..self.ends.len() as u32).filter_map(|id| Some((self.get(id).ok()?, id)))
    }

    /// As [`TokenBytes::iter`], on all threads of the current rayon pool and in the same order.
    pub(crate) fn par_iter(&self) -> impl IndexedParallelIterator<Item = (&[u8], u32)> {
        (0..self.ends.len())
            .into_par_iter()
            .map(|idx| (&self.bytes[self.start(idx)..self.ends[idx]], idx as u32))
    }

    fn start(&self, id_idx: usize) -> usize {
        id_idx.checked_sub(1).map_or(0, |prev| self.ends[prev])
    }

    /// The bytes that `id` stands for.
    #[inline]
    pub(crate) fn get(&self, id: u32) -> Result<&[u8], Error> {
        let id_idx = id as usize;
        let Some(&end) = self.ends.get(id_idx) else {
            return Err(Error::UnknownId { id, vocab_size: self.ends.len() });
        };
        Ok(&self.bytes[self.start(id_idx)..end])
    }
}
