//! The character-level model: a token for each frequent character, bytes for all others.
//!
//! A character outside the vocabulary becomes the tokens of its UTF-8 bytes, and so does a byte that is not UTF-8, so
//! every byte string can be encoded. ASCII characters that have a token of their own need no byte token.

use std::collections::HashMap;

use crate::Error;
use crate::hash::Seeded;
use crate::sink::Sink;

/// The ids of characters and bytes.
#[derive(Debug)]
pub(crate) struct CharLevel {
    /// Id of each ASCII character, as a character or as a byte.
    ascii: [u32; 128],
    /// Ids of the other characters that have a token, by code point.
    chars: HashMap<u32, u32, Seeded>,
    /// Ids of the bytes from 128 on.
    high_bytes: [u32; 128],
}

impl CharLevel {
    /// Builds the model from the characters and the byte tokens with their ids; every byte must be covered.
    pub(crate) fn new(
        chars: impl Iterator<Item = (char, u32)>,
        bytes: impl Iterator<Item = (u8, u32)>,
    ) -> Result<Self, Error> {
        let mut by_byte: [Option<u32>; 256] = [None; 256];
        for (byte, id) in bytes {
            by_byte[usize::from(byte)] = Some(id);
        }
        let mut others = HashMap::with_hasher(Seeded::default());
        for (c, id) in chars {
            // A character wins over its byte, as in Hugging Face.
            match by_byte.get_mut(c as usize).filter(|_| c.is_ascii()) {
                Some(slot) => *slot = Some(id),
                None => drop(others.insert(c as u32, id)),
            }
        }
        let mut ids = [0; 256];
        for (byte, id) in (0..=255).zip(&mut ids) {
            *id = by_byte[usize::from(byte)].ok_or(Error::MissingByte { byte })?;
        }
        let (mut ascii, mut high_bytes) = ([0; 128], [0; 128]);
        ascii.copy_from_slice(&ids[..128]);
        high_bytes.copy_from_slice(&ids[128..]);
        Ok(Self { ascii, chars: others, high_bytes })
    }

    /// Gives the tokens of `text`.
    pub(crate) fn encode<S: Sink>(&self, text: &str, sink: &mut S) {
        for c in text.chars() {
            if c.is_ascii() {
                sink.token(self.ascii[c as usize], 1);
            } else if let Some(&id) = self.chars.get(&(c as u32)) {
                sink.token(id, c.len_utf8());
            } else {
                c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| sink.token(self.byte_id(byte), 1));
            }
        }
    }

    /// Appends one id for each byte.
    pub(crate) fn encode_bytes(&self, bytes: &[u8], ids: &mut Vec<u32>) {
        ids.extend(bytes.iter().map(|&byte| self.byte_id(byte)));
    }

    fn byte_id(&self, byte: u8) -> u32 {
        match self.ascii.get(usize::from(byte)) {
            Some(&id) => id,
            None => self.high_bytes[usize::from(byte) - 128],
        }
    }
}
