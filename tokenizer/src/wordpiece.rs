//! WordPiece: the longest token that a word starts with, then the longest that continues it, and so on.
//!
//! A word that cannot be covered in this way is one unknown token as a whole. Tokens inside a word are spelled with a
//! prefix (`##`), or, in a GGUF, tokens at its start are spelled with U+2581. Both are one trie: a walk starts below the
//! node of the prefix, so no spelling is ever put together.

use crate::Error;
use crate::definition::WordPieceDef;
use crate::model::{check_lens, unk_id};
use crate::sink::Sink;
use crate::trie::{Node, Trie};

/// A WordPiece model.
#[derive(Debug)]
pub(crate) struct WordPiece {
    trie: Trie,
    /// Where the first token of a word is sought, and the token that the spelling of a word's start is by itself.
    start: Option<Node>,
    start_id: Option<u32>,
    /// Where the other tokens are sought.
    inner: Option<Node>,
    unk_id: u32,
    max_chars: usize,
}

impl WordPiece {
    /// Takes the tokens in order of id, and what the file says about them.
    pub(crate) fn new(tokens: &[&str], def: &WordPieceDef) -> Result<Self, Error> {
        check_lens(tokens)?;
        let trie = Trie::new(tokens.iter().zip(0u32..))?;
        let unk_id = unk_id(tokens, &def.unk_token)?;
        let below = |spelled: &str| trie.descend(Trie::ROOT, spelled.as_bytes());
        Ok(Self {
            start: below(&def.word_start),
            start_id: trie.get(def.word_start.as_bytes()),
            inner: below(&def.continuing_subword_prefix),
            unk_id,
            max_chars: def.max_input_chars_per_word,
            trie,
        })
    }

    /// Gives the tokens of a word. `tokens` is working memory.
    pub(crate) fn encode<S: Sink>(&self, word: &str, tokens: &mut Vec<(u32, usize)>, sink: &mut S) {
        tokens.clear();
        // A word has no more characters than bytes, so most need no count.
        let is_long = word.len() > self.max_chars && word.chars().count() > self.max_chars;
        if word.is_empty() {
            return;
        }
        if is_long || !self.cover(word.as_bytes(), tokens) {
            return sink.token(self.unk_id, word.len());
        }
        for &(id, len) in tokens.iter() {
            sink.token(id, len);
        }
    }

    /// Appends the tokens of a word, if they cover it.
    fn cover(&self, word: &[u8], tokens: &mut Vec<(u32, usize)>) -> bool {
        let longest = |node: Option<Node>, rest: &[u8]| self.trie.longest_from(node?, rest);
        let first = longest(self.start, word).or(self.start_id.map(|id| (0, id)));
        let Some((mut pos, id)) = first else { return false };
        tokens.push((id, pos));
        while pos < word.len() {
            let Some((len, id)) = longest(self.inner, &word[pos..]) else { return false };
            tokens.push((id, len));
            pos += len;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(model: &WordPiece, word: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        model.encode(word, &mut Vec::new(), &mut ids);
        ids
    }

    fn def(prefix: &str, start: &str) -> WordPieceDef {
        WordPieceDef {
            unk_token: "[UNK]".to_owned(),
            continuing_subword_prefix: prefix.to_owned(),
            word_start: start.to_owned(),
            max_input_chars_per_word: 6,
        }
    }

    #[test]
    fn longest_tokens_first_and_whole_words_unknown() {
        let tokens = ["[UNK]", "un", "##aff", "##able", "##a", "##ff", "#", "###", "una", "é"];
        let model = WordPiece::new(&tokens, &def("##", "")).unwrap();
        assert_eq!(encode(&model, "unaff"), [8, 5]);
        assert_eq!(encode(&model, "unx"), [0]);
        assert_eq!(encode(&model, "##a"), [4]);
        assert_eq!(encode(&model, "un#"), [1, 7]);
        assert_eq!(encode(&model, "unaffab"), [0]);
        assert_eq!(encode(&model, "é"), [9]);
        assert_eq!(encode(&model, ""), [0u32; 0]);
        assert!(WordPiece::new(&tokens[1..], &def("##", "")).is_err());
    }

    #[test]
    fn tokens_at_the_start_of_a_word_may_be_marked() {
        let tokens = ["[UNK]", "\u{2581}un", "aff", "un", "\u{2581}", "\u{2581}una"];
        let model = WordPiece::new(&tokens, &def("", "\u{2581}")).unwrap();
        assert_eq!(encode(&model, "unaff"), [0]);
        assert_eq!(encode(&model, "unun"), [1, 3]);
        assert_eq!(encode(&model, "aff"), [4, 2]);
    }
}
