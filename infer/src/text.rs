//! From ids to text as it becomes certain, ending at a stop string.
//!
//! Text is held back while it could still turn out to be the beginning of a stop string, also across
//! tokens; characters are held back until all their bytes are there.

use tokenizer::{DecodeStream, Error, Tokenizer};

/// The text of a growing sequence of ids.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    decoder: DecodeStream,
    stop: Vec<String>,
    held: String,
    stopped: bool,
}

impl TextStream {
    /// A stream that ends before the first of the `stop` strings; empty ones are ignored.
    pub fn new(tokenizer: &Tokenizer, stop: &[String]) -> Self {
        let stop = stop.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self {
            tokenizer: tokenizer.clone(),
            decoder: tokenizer.decode_stream(),
            stop,
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes one id and returns the text that is now certain, possibly none. Special tokens are no text.
    ///
    /// # Errors
    /// If the tokenizer has no such id.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        if self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        let text = self.decoder.push(id)?;
        Ok(self.take(&text.unwrap_or_default()))
    }

    /// The rest, when no more ids come.
    pub fn finish(&mut self) -> String {
        let text = self.decoder.finish().unwrap_or_default();
        let certain = self.take(&text);
        if self.stopped { certain } else { certain + &std::mem::take(&mut self.held) }
    }

    /// Whether a stop string has been met; nothing comes after it.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    fn take(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        let first = self.stop.iter().filter_map(|s| self.held.find(s.as_str())).min();
        if let Some(end) = first {
            self.stopped = true;
            self.held.truncate(end);
            return std::mem::take(&mut self.held);
        }
        let waiting = self.stop.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - waiting);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(i, _)| i).skip(1);
    ends.filter(|&i| text.ends_with(&stop[..i])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_the_longest_possible_beginning() {
        assert_eq!(overlap("abcab", "abd"), 2);
        assert_eq!(overlap("aaa", "aab"), 2);
        assert_eq!(overlap("xyz", "abc"), 0);
        assert_eq!(overlap("caf\u{e9}", "\u{e9}t\u{e9}"), 2);
        assert_eq!(overlap("", "a"), 0);
    }
}
