//! A text on its way through normalizers and pre-tokenizers, with where each byte of it came from.
//!
//! The text stays borrowed until a step changes it. Origins, two positions for each byte, are kept only when the caller
//! asks for offsets; without them a step is as cheap as copying. Steps write through a [`Rewrite`], which does both.
//! The origins are those of Hugging Face: a character that replaces others has the origin of the first, and a character
//! that is put in has the origin of the one before it.

use std::borrow::Cow;
use std::ops::Range;

/// Where a byte came from: start and end in the original text.
type Origin = (usize, usize);

/// A text and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Normalized<'a> {
    text: Cow<'a, str>,
    /// One for each byte of `text`, if asked for.
    origins: Option<Vec<Origin>>,
    /// Whether the first character comes from behind the start of the original text.
    late_start: bool,
}

impl<'a> Normalized<'a> {
    /// A text of which no offsets will be asked.
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text: Cow::Borrowed(text), origins: None, late_start: false }
    }

    /// A text that keeps track of where its bytes came from.
    pub(crate) fn with_origins(text: &'a str) -> Self {
        let mut origins = Vec::with_capacity(text.len());
        for (start, c) in text.char_indices() {
            let end = start + c.len_utf8();
            origins.extend((start..end).map(|_| (start, end)));
        }
        Self { text: Cow::Borrowed(text), origins: Some(origins), late_start: false }
    }

    /// A text that another normalizer made, with where each byte came from.
    pub(crate) fn from_parts(text: String, origins: Option<Vec<Origin>>) -> Self {
        Self { text: Cow::Owned(text), origins, late_start: false }
    }

    /// Whether origins are kept.
    pub(crate) fn has_origins(&self) -> bool {
        self.origins.is_some()
    }

    /// The text as it is now.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The text as it is now, borrowed if no step has changed it.
    pub(crate) fn into_text(self) -> Cow<'a, str> {
        self.text
    }

    /// Whether the first character comes from the start of the original text.
    pub(crate) fn is_at_start(&self) -> bool {
        !self.late_start
    }

    /// The part of the original text that a part of this text came from, if origins were asked for.
    ///
    /// # Panics
    /// If `range` does not lie within the text.
    pub(crate) fn origin_of(&self, range: Range<usize>) -> Option<Range<usize>> {
        let origins = &self.origins.as_ref()?[range.clone()];
        match (origins.first(), origins.last()) {
            (Some(first), Some(last)) => Some(first.0..last.1),
            // Nothing came from nowhere: an empty range at the same place.
            _ => {
                let at =
                    self.origins.as_ref()?.get(range.start).map_or_else(|| self.end_of_origins(), |o| o.0);
                Some(at..at)
            }
        }
    }

    fn end_of_origins(&self) -> usize {
        self.origins.as_ref().and_then(|origins| origins.last()).map_or(0, |last| last.1)
    }

    /// Replaces the text by what `step` writes. What it leaves unread is dropped.
    pub(crate) fn rewrite(&mut self, step: impl FnOnce(&mut Rewrite<'_>)) {
        let mut rewrite = Rewrite {
            old: &self.text,
            old_origins: self.origins.as_deref(),
            at: 0,
            text: String::with_capacity(self.text.len() + self.text.len() / 8),
            origins: Vec::with_capacity(self.origins.as_ref().map_or(0, Vec::len)),
            first_from: None,
        };
        step(&mut rewrite);
        let Rewrite { text, origins, first_from, .. } = rewrite;
        let first_len = self.text.chars().next().map_or(0, char::len_utf8);
        self.late_start = match first_from {
            // Put in before everything: Hugging Face says that it comes from the very start.
            Some(0) => false,
            Some(from) if from <= first_len => self.late_start,
            _ => true,
        };
        self.origins = self.origins.as_ref().map(|_| origins);
        self.text = Cow::Owned(text);
    }

    /// Replaces the text by one that has the same number of bytes for each character.
    pub(crate) fn replace_text(&mut self, change: impl FnOnce(&mut String)) {
        let mut text = std::mem::take(&mut self.text).into_owned();
        let len = text.len();
        change(&mut text);
        assert_eq!(len, text.len(), "the bytes keep their places");
        self.text = Cow::Owned(text);
    }

    /// Keeps only a part, which must begin and end between characters.
    pub(crate) fn cut(&mut self, range: Range<usize>) {
        self.late_start |= range.start > 0;
        if let Some(origins) = &mut self.origins {
            origins.truncate(range.end);
            origins.drain(..range.start);
        }
        self.text = match std::mem::take(&mut self.text) {
            Cow::Borrowed(text) => Cow::Borrowed(&text[range]),
            Cow::Owned(text) => Cow::Owned(text[range].to_owned()),
        };
    }

    /// A part by itself, which must begin and end between characters.
    pub(crate) fn slice(&self, range: Range<usize>) -> Normalized<'_> {
        Normalized {
            text: Cow::Borrowed(&self.text[range.clone()]),
            origins: self.origins.as_ref().map(|origins| origins[range.clone()].to_vec()),
            late_start: self.late_start || range.start > 0,
        }
    }

    /// Says that the first character counts as coming from the start of the original text, or not.
    pub(crate) fn set_at_start(&mut self, at_start: bool) {
        self.late_start = !at_start;
    }
}

/// Writes a new text while reading an old one from start to end.
pub(crate) struct Rewrite<'t> {
    old: &'t str,
    old_origins: Option<&'t [Origin]>,
    /// How much of the old text is read.
    at: usize,
    text: String,
    origins: Vec<Origin>,
    /// What the first character comes from: 0 if from nothing, else the first byte behind it in the old text,
    /// at most, where only "the first character" and "a later one" matter.
    first_from: Option<usize>,
}

impl<'t> Rewrite<'t> {
    /// The part of the old text that is not read yet.
    pub(crate) fn rest(&self) -> &'t str {
        &self.old[self.at..]
    }

    /// How many bytes are written.
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// Copies the next `n_bytes` bytes.
    pub(crate) fn keep(&mut self, n_bytes: usize) {
        let end = self.at + n_bytes;
        if n_bytes > 0 {
            self.note_first(self.at + 1);
        }
        self.text.push_str(&self.old[self.at..end]);
        if let Some(origins) = self.old_origins {
            self.origins.extend_from_slice(&origins[self.at..end]);
        }
        self.at = end;
    }

    /// Leaves out the next `n_bytes` bytes.
    pub(crate) fn skip(&mut self, n_bytes: usize) {
        self.at += n_bytes;
    }

    /// Writes `c` in place of the next `n_bytes` bytes; with 0 bytes, before the next character, as a part of it.
    pub(crate) fn replace(&mut self, c: char, n_bytes: usize) {
        self.note_first(self.at + 1);
        let origin = self.old_origins.map(|origins| origins.get(self.at).copied());
        self.write(c, origin.map(|origin| origin.unwrap_or_else(|| self.last_origin())));
        self.at += n_bytes;
    }

    /// Writes a character that came from nowhere, as a part of what was read last.
    pub(crate) fn insert(&mut self, c: char) {
        self.note_first(self.at);
        let origin = self.old_origins.map(|_| self.last_origin());
        self.write(c, origin);
    }

    /// Writes a string that came from nowhere, as a part of what was read last.
    pub(crate) fn insert_str(&mut self, text: &str) {
        if !text.is_empty() {
            self.note_first(self.at);
        }
        self.text.push_str(text);
        if self.old_origins.is_some() {
            let origin = self.last_origin();
            self.origins.extend(text.bytes().map(|_| origin));
        }
    }

    /// The origin of the last byte read.
    fn last_origin(&self) -> Origin {
        let before = self.at.checked_sub(1).zip(self.old_origins);
        before.and_then(|(idx, origins)| origins.get(idx).copied()).unwrap_or((0, 0))
    }

    fn write(&mut self, c: char, origin: Option<Origin>) {
        self.text.push(c);
        if let Some(origin) = origin {
            self.origins.extend((0..c.len_utf8()).map(|_| origin));
        }
    }

    fn note_first(&mut self, from: usize) {
        self.first_from.get_or_insert(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_follow_the_text() {
        let mut text = Normalized::with_origins("aéb");
        text.rewrite(|out| {
            out.insert('<');
            out.keep(1);
            out.replace('E', 2);
            out.insert('\'');
            out.skip(1);
        });
        assert_eq!((text.text(), text.is_at_start()), ("<aE'", true));
        let origins: Vec<_> = (0..4).filter_map(|at| text.origin_of(at..at + 1)).collect();
        assert_eq!(origins, [0..0, 0..1, 1..3, 1..3]);
        assert_eq!(
            (text.origin_of(1..4), text.origin_of(2..2), text.origin_of(4..4)),
            (Some(0..3), Some(1..1), Some(3..3))
        );
    }

    #[test]
    fn the_start_is_lost_when_the_first_character_goes() {
        let mut text = Normalized::new("éab");
        text.rewrite(|out| out.keep(4));
        assert!(text.is_at_start());
        text.rewrite(|out| {
            out.skip(2);
            out.keep(2);
        });
        assert_eq!((text.text(), text.is_at_start()), ("ab", false));
        let mut cut = Normalized::with_origins("  ab");
        cut.cut(2..4);
        assert_eq!(
            (cut.is_at_start(), cut.origin_of(0..2), cut.into_text()),
            (false, Some(2..4), "ab".into())
        );
    }
}
