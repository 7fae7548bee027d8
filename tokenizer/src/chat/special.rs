//! Special tokens in text.
//!
//! They stand sorted, each with the longest other one that it begins with. The longest that a text begins with is the
//! last that is not after the text, or one of those that this begins with; so a search compares few of them, however
//! many begin alike.

use crate::Tokenizer;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Special {
    text: String,
    id: u32,
    /// The place of the longest other one that `text` begins with.
    shorter: Option<usize>,
}

/// The special tokens of a tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SpecialTokens {
    tokens: Vec<Special>,
    /// The characters that they begin with, sorted.
    firsts: Vec<char>,
}

impl SpecialTokens {
    pub fn of(tokenizer: &Tokenizer) -> Self {
        Self::new(tokenizer.special_tokens().map(|(text, id)| (text.to_owned(), id)).collect())
    }

    fn new(mut texts: Vec<(String, u32)>) -> Self {
        texts.sort_unstable();
        let mut special = Self::default();
        for (text, id) in texts {
            let Some(first) = text.chars().next() else { continue };
            if special.firsts.last() != Some(&first) {
                special.firsts.push(first);
            }
            let mut shorter = special.tokens.len().checked_sub(1);
            while let Some(at) = shorter.filter(|&at| !text.starts_with(&special.tokens[at].text)) {
                shorter = special.tokens[at].shorter;
            }
            special.tokens.push(Special { text, id, shorter });
        }
        special
    }

    pub fn firsts(&self) -> &[char] {
        &self.firsts
    }

    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.tokens.iter().map(|token| token.text.as_str())
    }

    /// The longest that `text` begins with, and its id.
    pub fn find(&self, text: &str) -> Option<(&str, u32)> {
        self.firsts.binary_search(&text.chars().next()?).ok()?;
        let mut at = self.tokens.partition_point(|token| token.text.as_str() <= text).checked_sub(1);
        while let Some(token) = at.and_then(|at| self.tokens.get(at)) {
            if text.starts_with(&token.text) {
                return Some((&token.text, token.id));
            }
            at = token.shorter;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_longest_is_found(
            texts in prop::collection::btree_set("[ab<é]{1,4}", 0..30),
            text in "[ab<é]{0,8}",
        ) {
            let texts: Vec<String> = texts.into_iter().collect();
            let ids = texts.iter().cloned().zip(0..).collect();
            let longest = texts.iter().filter(|token| text.starts_with(*token)).max_by_key(|token| token.len());
            let special = SpecialTokens::new(ids);
            let found = special.find(&text);
            prop_assert_eq!(found.map(|(token, _)| token), longest.map(String::as_str));
            prop_assert!(found.is_none_or(|(token, id)| texts[id as usize] == token));
        }
    }
}
