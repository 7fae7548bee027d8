//! SentencePiece's map of replacements, applied in the way of Hugging Face, which is not SentencePiece's own.
//!
//! A grapheme of at most five bytes is replaced as a whole by the shortest entry that it starts with; other text is
//! looked up character by character. ASCII characters that the map does not touch are copied: between two of them there
//! is always a border of graphemes, except within a line end of two characters.

use unicode_segmentation::UnicodeSegmentation;

use super::normalized::{Normalized, Rewrite};
use crate::charsmap::CharsMap;

/// Longest grapheme in bytes that is looked up as a whole.
const LOOKED_UP: usize = 5;

/// A map ready to be applied.
#[derive(Clone, Debug)]
pub(super) struct Precompiled {
    map: CharsMap,
    /// ASCII characters that the map does not touch wherever they stand.
    is_kept: [bool; 128],
}

impl Precompiled {
    pub(super) fn new(map: CharsMap) -> Self {
        let mut precompiled = Self { map, is_kept: [false; 128] };
        for byte in 0..128 {
            let text = char::from(byte).to_string();
            // A carriage return may be one grapheme with a line feed.
            precompiled.is_kept[usize::from(byte)] = byte != b'\r' && precompiled.entry(&text).is_none();
        }
        precompiled
    }

    /// How many times as long, at most, a text becomes.
    pub(super) fn growth(&self) -> usize {
        self.map.growth(LOOKED_UP)
    }

    /// The shortest entry that `part` starts with, or that its first five bytes start with.
    fn entry(&self, part: &str) -> Option<&str> {
        // No more is ever replaced, and a damaged map could ask for any number of bytes.
        let key = &part.as_bytes()[..part.len().min(LOOKED_UP)];
        self.map.matches(key).next().map(|(_, replacement)| replacement)
    }

    /// Number of bytes at the start of `text` that are ASCII and stay.
    fn n_kept(&self, text: &str) -> usize {
        let stays = |byte: u8| self.is_kept.get(usize::from(byte)).copied().unwrap_or(false);
        text.bytes().position(|byte| !stays(byte)).unwrap_or(text.len())
    }

    /// Normalizes a text.
    pub(super) fn apply(&self, text: &mut Normalized<'_>) {
        if self.map.is_empty() || self.n_kept(text.text()) == text.text().len() {
            return;
        }
        let at_start = text.is_at_start();
        text.rewrite(|out| {
            while !out.rest().is_empty() {
                let rest = out.rest();
                let n_kept = self.n_kept(rest);
                if n_kept == rest.len() {
                    return out.keep(n_kept);
                }
                // The last character before others may be in one grapheme with them.
                let start = n_kept.saturating_sub(1);
                out.keep(start);
                let rest = &rest[start..];
                let is_border = |pair: &[u8]| pair[0].is_ascii() && pair[1].is_ascii() && pair[0] != b'\r';
                let len = rest.as_bytes().windows(2).skip(n_kept - start).position(is_border);
                self.apply_to(&rest[..len.map_or(rest.len(), |at| n_kept - start + at + 1)], out);
            }
        });
        // Hugging Face counts characters that this step removes at the start as still there.
        text.set_at_start(at_start);
    }

    /// Writes what `part` becomes, which is the start of what is left to read and ends with a grapheme.
    fn apply_to(&self, part: &str, out: &mut Rewrite<'_>) {
        // Graphemes are slow to find, and do not matter where no entry stands.
        if part.char_indices().all(|(at, _)| self.entry(&part[at..]).is_none()) {
            return out.keep(part.len());
        }
        for grapheme in part.graphemes(true) {
            if grapheme.len() <= LOOKED_UP
                && let Some(replacement) = self.entry(grapheme)
            {
                write(replacement, grapheme.len(), out);
                continue;
            }
            for c in grapheme.chars() {
                match self.entry(c.encode_utf8(&mut [0; 4])) {
                    Some(replacement) => write(replacement, c.len_utf8(), out),
                    None => out.keep(c.len_utf8()),
                }
            }
        }
    }
}

fn write(replacement: &str, n_bytes: usize, out: &mut Rewrite<'_>) {
    for c in replacement.chars() {
        out.replace(c, 0);
    }
    out.skip(n_bytes);
}
