//! Words of sentencepiece's normalized text, in which U+2581 stands for each space.
//!
//! A word begins at a U+2581 that stands after another character, so it begins with all of a run of them. Where no token
//! spells a U+2581 after another character, no token lies in two words, and each can be encoded by itself.

use wide::u8x16;

/// Stands for U+0020 in sentencepiece's vocabularies.
pub(crate) const SPACE: char = '\u{2581}';

/// The bytes of [`SPACE`].
pub(crate) const SPACE_BYTES: &[u8; 3] = b"\xe2\x96\x81";

/// Bytes looked at together.
const WINDOW: usize = 64;

/// Most words that begin in a window: a space symbol and at least one byte each, and one that began before.
const MOST: usize = WINDOW / 4 + 2;

/// Whether a token has a part of two words.
pub(crate) fn spans_words(token: &str) -> bool {
    let mut pairs = token.chars().zip(token.chars().skip(1));
    pairs.any(|(left, right)| left != SPACE && right == SPACE)
}

/// Finds the ends of the words of a text.
pub(crate) struct Words<'a> {
    text: &'a [u8],
    /// Where the next window begins.
    at: usize,
    /// The bits of places in the next window that are behind space symbols of this one.
    behind: u64,
    is_over: bool,
}

impl<'a> Words<'a> {
    /// Begins at the start of `text`.
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text: text.as_bytes(), at: 0, behind: 0, is_over: text.is_empty() }
    }

    /// Writes the ends of the next words, of some at least, and tells how many they are: none at the end of the text.
    pub(crate) fn next_batch(&mut self, ends: &mut [usize]) -> usize {
        debug_assert!(ends.len() > MOST, "room for a window");
        let mut n_ends = 0;
        while self.at < self.text.len() && n_ends + MOST < ends.len() {
            let spaces = match self.text[self.at..].first_chunk() {
                Some(window) => spaces(window),
                None => self.spaces_at_end(),
            };
            let mut starts = spaces & !(spaces << 3 | self.behind);
            self.behind = spaces >> (WINDOW - 3);
            while starts != 0 {
                let end = self.at + starts.trailing_zeros() as usize;
                ends[n_ends] = end;
                // The first word begins a text and ends none.
                n_ends += usize::from(end > 0);
                starts &= starts - 1;
            }
            self.at += WINDOW;
        }
        if self.at >= self.text.len() && !self.is_over {
            ends[n_ends] = self.text.len();
            n_ends += 1;
            self.is_over = true;
        }
        n_ends
    }

    #[cold]
    fn spaces_at_end(&self) -> u64 {
        let rest = &self.text[self.at..];
        let mut padded = [0; WINDOW + 2];
        padded[..rest.len()].copy_from_slice(rest);
        spaces(&padded)
    }
}

/// One bit for each of the first bytes that begins a space symbol.
#[inline(always)]
fn spaces(bytes: &[u8; WINDOW + 2]) -> u64 {
    let is = |part: usize, offset: usize| {
        let chunk = *bytes[16 * part + offset..].first_chunk().expect("66 bytes");
        u8x16::new(chunk).simd_eq(u8x16::splat(SPACE_BYTES[offset]))
    };
    (0..4).map(|i| u64::from((is(i, 0) & is(i, 1) & is(i, 2)).to_bitmask()) << (16 * i)).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(text: &str) -> Vec<&str> {
        let (mut words, mut ends, mut start) = (Words::new(text), [0; 40], 0);
        let mut found = Vec::new();
        loop {
            let n_ends = words.next_batch(&mut ends);
            if n_ends == 0 {
                return found;
            }
            for &end in &ends[..n_ends] {
                found.push(&text[start..end]);
                start = end;
            }
        }
    }

    fn by_definition(text: &str) -> Vec<&str> {
        let mut starts = vec![0];
        let pairs = text.char_indices().zip(text.char_indices().skip(1));
        starts.extend(
            pairs.filter(|&((_, left), (_, right))| left != SPACE && right == SPACE).map(|(_, (at, _))| at),
        );
        starts.push(text.len());
        starts.windows(2).map(|pair| &text[pair[0]..pair[1]]).filter(|word| !word.is_empty()).collect()
    }

    proptest! {
        #[test]
        fn words_begin_at_spaces_after_other_characters(parts in prop::collection::vec("▁{0,3}[a▂é]{0,9}|[a-z]{60,70}|▁{20,30}", 0..300)) {
            let text = parts.concat();
            prop_assert_eq!(words(&text), by_definition(&text));
        }
    }

    #[test]
    fn tokens_of_two_words() {
        assert!(["a▁", "▁a▁b", "é▁"].into_iter().all(spans_words));
        assert!(!["", "▁", "▁▁▁a", "ab"].into_iter().any(spans_words));
    }
}
