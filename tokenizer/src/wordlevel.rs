//! Whole words: a piece is a token or unknown.

use crate::Error;
use crate::definition::WordLevelDef;
use crate::model::unk_id;
use crate::sink::Sink;
use crate::trie::Trie;

/// A vocabulary of words.
#[derive(Debug)]
pub(crate) struct WordLevel {
    trie: Trie,
    unk_id: u32,
}

impl WordLevel {
    /// Takes the words in order of id. Without a token for unknown words a text could not be encoded; Hugging Face
    /// fails at the first unknown word, this fails at once.
    pub(crate) fn new(tokens: &[&str], def: &WordLevelDef) -> Result<Self, Error> {
        let trie = Trie::new(tokens.iter().zip(0u32..))?;
        let unk_id = unk_id(tokens, &def.unk_token)?;
        Ok(Self { trie, unk_id })
    }

    /// Gives the token of a word.
    pub(crate) fn encode<S: Sink>(&self, word: &str, sink: &mut S) {
        if !word.is_empty() {
            sink.token(self.trie.get(word.as_bytes()).unwrap_or(self.unk_id), word.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_token_or_unknown() {
        let def = WordLevelDef { unk_token: "?".to_owned() };
        let model = WordLevel::new(&["a", "?", "word"], &def).unwrap();
        let mut ids = Vec::new();
        for word in ["word", "a", "wor", "words", "", "é"] {
            model.encode(word, &mut ids);
        }
        assert_eq!(ids, [2, 0, 1, 1, 1]);
        let message = WordLevel::new(&["a"], &def).unwrap_err().to_string();
        assert!(message.contains("`unk_token` `?`, which is not in the vocabulary"), "{message}");
    }
}
