//! Ids to text as they arrive: characters are given out as soon as their last byte is there.
//!
//! A token may end in the middle of a character, so at most three bytes wait for the next token. All that a stream
//! gives out, put together, is what [`crate::Tokenizer::decode`] gives for all ids at once.

use crate::{Error, Tokenizer};

/// Decodes one sequence of ids, piece by piece. Made by [`Tokenizer::decode_stream`].
#[derive(Clone, Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    /// Ids that are still needed: those of the start, as long as they gave no text, or all if only all together tell.
    ids: Vec<u32>,
    /// Bytes of the text of `ids` that were taken.
    n_taken: usize,
    /// Whether the table alone tells what the next token stands for.
    is_started: bool,
    /// The start of a character that is not complete yet.
    waiting: Vec<u8>,
}

impl DecodeStream {
    pub(crate) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), n_taken: 0, is_started: false, waiting: Vec::new() }
    }

    /// Takes the next id and returns the text that it completes, or nothing if it completes no character.
    ///
    /// # Errors
    /// [`Error::UnknownId`]; the stream is then as before the call.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, Error> {
        let bytes = self.tokenizer.token_bytes(id)?;
        if self.is_started {
            self.waiting.extend_from_slice(bytes);
        } else {
            self.ids.push(id);
            self.take_from_all(false)?;
        }
        let n_waiting = incomplete_len(&self.waiting);
        let complete = &self.waiting[..self.waiting.len() - n_waiting];
        let text = String::from_utf8_lossy(complete).into_owned();
        self.waiting.drain(..complete.len());
        Ok(if text.is_empty() { None } else { Some(text) })
    }

    /// Ends the sequence: a character that was never completed becomes U+FFFD. The stream is then ready for another.
    pub fn finish(&mut self) -> Option<String> {
        // Only for decoders without a table may something be left, and they were right about every id before.
        let _ = self.take_from_all(true);
        let rest = std::mem::take(&mut self.waiting);
        *self = Self::new(self.tokenizer.clone());
        if rest.is_empty() { None } else { Some(String::from_utf8_lossy(&rest).into_owned()) }
    }

    /// Decodes `ids` and takes what is new. Without a table, a character that ends the text in U+FFFD may become
    /// another with the next id, so it is left until the end.
    fn take_from_all(&mut self, is_end: bool) -> Result<(), Error> {
        if self.is_started || self.ids.is_empty() {
            return Ok(());
        }
        let text = self.tokenizer.decode_bytes(&self.ids)?;
        let is_table = self.tokenizer.decodes_by_table();
        let sure = match std::str::from_utf8(&text) {
            Ok(text) if !is_table && !is_end => text.trim_end_matches(char::REPLACEMENT_CHARACTER).len(),
            _ => text.len(),
        };
        self.waiting.extend(text.get(self.n_taken..sure).unwrap_or_default());
        self.n_taken = self.n_taken.max(sure);
        if is_table && self.n_taken > 0 {
            self.is_started = true;
            self.ids.clear();
        }
        Ok(())
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
