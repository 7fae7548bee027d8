//! Ids to text as they arrive: characters are given out as soon as their last byte is there.
//!
//! A token may end in the middle of a character, so at most three bytes wait for the next token. All that a stream
//! gives out, put together, is what [`crate::Tokenizer::decode`] gives for all ids at once.
//!
//! A few decoders look at all tokens together (a replacement in the joined text, the suffixes of `BPEDecoder`), so that
//! any text may still change. Their streams give everything at the end.

use crate::decoding::Begun;
use crate::{Error, Tokenizer};

/// Decodes one sequence of ids, piece by piece. Made by [`Tokenizer::decode_stream`].
#[derive(Clone, Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    begun: Begun,
    /// All ids, if only all together tell the text.
    ids: Vec<u32>,
    /// The start of a character that is not complete yet.
    waiting: Vec<u8>,
}

impl DecodeStream {
    pub(crate) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, begun: Begun::default(), ids: Vec::new(), waiting: Vec::new() }
    }

    /// Takes the next id and returns the text that it completes, or nothing if it completes no character. With a
    /// decoder that looks at all tokens together, that is always nothing: [`DecodeStream::finish`] gives the text.
    ///
    /// # Errors
    /// [`Error::UnknownId`]; the stream is then as before the call.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, Error> {
        let bytes = self.tokenizer.token_bytes(id)?;
        if self.begun.is_over {
            self.waiting.extend_from_slice(bytes);
        } else if self.tokenizer.decodes_by_table() {
            self.tokenizer.begin_decoding(&mut self.begun, id, &mut self.waiting)?;
        } else {
            self.ids.push(id);
        }
        let n_waiting = incomplete_len(&self.waiting);
        let complete = &self.waiting[..self.waiting.len() - n_waiting];
        let text = String::from_utf8_lossy(complete).into_owned();
        self.waiting.drain(..complete.len());
        Ok(if text.is_empty() { None } else { Some(text) })
    }

    /// Ends the sequence: a character that was never completed becomes U+FFFD. The stream is then ready for another.
    pub fn finish(&mut self) -> Option<String> {
        let Self { ids, waiting, .. } = std::mem::replace(self, Self::new(self.tokenizer.clone()));
        let mut text = String::from_utf8_lossy(&waiting).into_owned();
        // Every id was known when it came.
        text.push_str(&self.tokenizer.decode(&ids).unwrap_or_default());
        if text.is_empty() { None } else { Some(text) }
    }
}

/// Number of bytes at the end of `bytes` that begin a character and do not finish it.
fn incomplete_len(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    loop {
        match std::str::from_utf8(rest) {
            Ok(_) => return 0,
            Err(error) => match error.error_len() {
                Some(len) => rest = &rest[error.valid_up_to() + len..],
                None => return rest.len() - error.valid_up_to(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_start_of_a_character_waits() {
        for (bytes, len) in [
            (&b""[..], 0),
            (b"a", 0),
            (b"a\xe2", 1),
            (b"a\xe2\x82", 2),
            ("€".as_bytes(), 0),
            (b"\xff", 0),
            (b"\xff\xf0\x9f\x98", 3),
            (b"\xe2\x82a", 0),
            (b"\xc0", 0),
            (b"\xed\xa0", 0),
        ] {
            assert_eq!(incomplete_len(bytes), len, "{bytes:?}");
        }
    }
}
