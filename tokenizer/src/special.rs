//! Special tokens: markers such as `<|endoftext|>` that carry structure and never come out of plain text.
//!
//! Finding them in text follows Hugging Face: the longest token at the leftmost place wins, and tokens marked
//! `normalized` are looked for only in what the others leave over.

use std::collections::HashMap;

/// Ends a document; every vocabulary we train has it, and [`crate::Tokenizer::eos_id`] gives its id.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// A special token as a file lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpecialToken {
    pub id: u32,
    pub content: String,
    /// Hugging Face's flag. No normalizer is supported, so it decides only which tokens are looked for first.
    pub normalized: bool,
}

/// A part of a text that may hold special tokens.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// Text without special tokens.
    Plain(&'a str),
    /// The id of a special token.
    Special(u32),
}

/// The special tokens of one vocabulary.
#[derive(Debug)]
pub(crate) struct SpecialTokens {
    /// In order of id.
    tokens: Vec<SpecialToken>,
    ids: HashMap<String, u32>,
    /// Tokens looked for first, and those looked for in the rest.
    finders: [Finder; 2],
}

impl SpecialTokens {
    /// Takes tokens with distinct, non-empty contents and distinct ids.
    pub(crate) fn new(mut tokens: Vec<SpecialToken>) -> Self {
        tokens.sort_by_key(|token| token.id);
        let ids = tokens.iter().map(|token| (token.content.clone(), token.id)).collect();
        let finders =
            [false, true].map(|normalized| Finder::new(tokens.iter().filter(|t| t.normalized == normalized)));
        Self { tokens, ids, finders }
    }

    /// All special tokens, in order of id.
    pub(crate) fn tokens(&self) -> &[SpecialToken] {
        &self.tokens
    }

    /// The id of a special token.
    pub(crate) fn id(&self, content: &str) -> Option<u32> {
        self.ids.get(content).copied()
    }

    /// Whether `id` is a special token.
    pub(crate) fn contains(&self, id: u32) -> bool {
        self.tokens.binary_search_by_key(&id, |token| token.id).is_ok()
    }

    /// Calls `each` with the parts of `text`, in order; no part is an empty text.
    pub(crate) fn split<'a>(&self, text: &'a str, mut each: impl FnMut(Part<'a>)) {
        self.finders[0].split(text, &mut |part| match part {
            Part::Plain(rest) => self.finders[1].split(rest, &mut each),
            special => each(special),
        });
    }
}

/// Finds the leftmost-longest of a few strings.
#[derive(Debug)]
struct Finder {
    /// Contents and ids by first byte, longest first.
    by_first_byte: HashMap<u8, Vec<(String, u32)>>,
    is_first_byte: [bool; 256],
}

impl Finder {
    fn new<'a>(tokens: impl Iterator<Item = &'a SpecialToken>) -> Self {
        let mut finder = Self { by_first_byte: HashMap::new(), is_first_byte: [false; 256] };
        for token in tokens {
            let first = token.content.as_bytes()[0];
            finder.is_first_byte[usize::from(first)] = true;
            finder.by_first_byte.entry(first).or_default().push((token.content.clone(), token.id));
        }
        for candidates in finder.by_first_byte.values_mut() {
            candidates.sort_by_key(|(content, _)| std::cmp::Reverse(content.len()));
        }
        finder
    }

    fn split<'a>(&self, text: &'a str, each: &mut impl FnMut(Part<'a>)) {
        let bytes = text.as_bytes();
        let mut plain_start = 0;
        let mut at = 0;
        while at < bytes.len() {
            let found =
                if self.is_first_byte[usize::from(bytes[at])] { self.longest_at(&bytes[at..]) } else { None };
            let Some((len, id)) = found else {
                at += 1;
                continue;
            };
            if plain_start < at {
                each(Part::Plain(&text[plain_start..at]));
            }
            each(Part::Special(id));
            at += len;
            plain_start = at;
        }
        if plain_start < text.len() {
            each(Part::Plain(&text[plain_start..]));
        }
    }

    fn longest_at(&self, bytes: &[u8]) -> Option<(usize, u32)> {
        let candidates = self.by_first_byte.get(&bytes[0])?;
        let (content, id) = candidates.iter().find(|(content, _)| bytes.starts_with(content.as_bytes()))?;
        Some((content.len(), *id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(contents: &[(&str, bool)]) -> SpecialTokens {
        let token = |(id, &(content, normalized)): (usize, &(&str, bool))| SpecialToken {
            id: id as u32,
            content: content.to_owned(),
            normalized,
        };
        SpecialTokens::new(contents.iter().enumerate().map(token).collect())
    }

    fn parts<'a>(special: &SpecialTokens, text: &'a str) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        special.split(text, |part| parts.push(part));
        parts
    }

    #[test]
    fn the_longest_at_the_leftmost_place_wins() {
        let special = tokens(&[("<a>", false), ("<a><b>", false), ("é", false)]);
        use Part::{Plain, Special};
        assert_eq!(
            parts(&special, "x<a><b><a>éy"),
            [Plain("x"), Special(1), Special(0), Special(2), Plain("y")]
        );
        assert_eq!(parts(&special, "<a"), [Plain("<a")]);
        assert_eq!(parts(&special, ""), []);
    }

    #[test]
    fn normalized_tokens_come_second() {
        let special = tokens(&[("ab", true), ("bc", false)]);
        assert_eq!(parts(&special, "abcab"), [Part::Plain("a"), Part::Special(1), Part::Special(0)]);
    }
}
