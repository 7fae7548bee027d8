//! Splitting text into pre-tokens, the pieces that BPE merges never cross.
//!
//! The patterns are regular expressions in every file that uses them. Here each is a hand-written function that finds
//! the end of the next piece, and the tests hold it to the regular expression on random and nasty strings. None of
//! the patterns looks back, so a piece depends only on the text from its start, and every character falls into some
//! piece.

mod classes;

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// How text is cut into pre-tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// GPT-2's pattern, case-sensitive contractions and numbers of any length:
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
    Gpt2,
    /// The pattern of GPT-4 (`cl100k_base`) and Llama 3, with numbers of at most three digits:
    /// [`Split::regex`] gives it.
    #[default]
    Gpt4,
}

impl Split {
    /// The regular expression, in the spelling that we write into files.
    pub const fn regex(self) -> &'static str {
        match self {
            Self::Gpt2 => r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
            Self::Gpt4 => GPT4_SPELLINGS[0],
        }
    }

    /// The split that a file's regular expression means, if it is one of ours.
    ///
    /// Several spellings of one pattern are in use; those accepted here cut every text alike.
    pub(crate) fn from_regex(regex: &str) -> Option<Self> {
        if GPT4_SPELLINGS.contains(&regex) {
            Some(Self::Gpt4)
        } else if regex == Self::Gpt2.regex() {
            Some(Self::Gpt2)
        } else {
            None
        }
    }

    /// The pieces of `text`, which together are `text`.
    pub fn pieces(self, text: &str) -> Pieces<'_> {
        Pieces { split: self, classes: Classes::get(), text, start: 0 }
    }
}

/// Spellings of GPT-4's pattern. The first is the one that Hugging Face files use, the second an older one of tiktoken:
/// its possessive quantifiers change no match, because the class that follows never shares a character, and its
/// `\s*[\r\n]` ends at the last newline as well. The tests hold both to the same pieces.
const GPT4_SPELLINGS: [&str; 2] = [
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
];

/// Iterator over the pre-tokens of a text.
#[derive(Clone, Debug)]
pub struct Pieces<'a> {
    split: Split,
    classes: &'static Classes,
    text: &'a str,
    start: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    #[inline]
    fn next(&mut self) -> Option<&'a str> {
        if self.start == self.text.len() {
            return None;
        }
        let scan = Scan { text: self.text, bytes: self.text.as_bytes(), classes: self.classes };
        let end = match self.split {
            Split::Gpt2 => scan.gpt2(self.start),
            Split::Gpt4 => scan.gpt4(self.start),
        };
        let piece = &self.text[self.start..end];
        self.start = end;
        Some(piece)
    }
}

/// The first place from `from` on where `text` can be cut and both parts keep their pieces, or the end of the text.
///
/// In both patterns a piece always ends between a letter and a character that is no letter, and nothing before it can
/// see past it.
pub(crate) fn safe_cut(text: &str, from: usize) -> usize {
    let classes = Classes::get();
    let mut at = text.floor_char_boundary(from);
    let mut after_letter = false;
    for c in text[at..].chars() {
        let is_letter = classes.of(c) == Class::Letter;
        if after_letter && !is_letter {
            return at;
        }
        after_letter = is_letter;
        at += c.len_utf8();
    }
    text.len()
}

/// What the patterns can tell apart: `\p{L}`, `\p{N}`, `\s`, and all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Class {
    Other,
    Letter,
    Number,
    Space,
}

/// The class of every code point: ASCII directly, the rest through a table of shared blocks.
#[derive(Debug)]
struct Classes {
    ascii: [Class; 128],
    /// Block of a code point, by its upper bits.
    block_of: Vec<u8>,
    blocks: Vec<[Class; BLOCK]>,
}

/// Code points in a block. With 256 the distinct blocks are few enough to be numbered by a byte.
const BLOCK: usize = 256;

impl Classes {
    fn get() -> &'static Self {
        static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::build);
        &CLASSES
    }

    fn build() -> Self {
        let mut flat = vec![Class::Other; char::MAX as usize + 1];
        for (bounds, class) in
            [(&classes::LETTERS[..], Class::Letter), (&classes::NUMBERS[..], Class::Number)]
        {
            for range in bounds.chunks_exact(2) {
                flat[range[0] as usize..range[1] as usize].fill(class);
            }
        }
        for (code, class) in flat.iter_mut().enumerate() {
            // `\s` is the property White_Space, which is what the standard library tests.
            if char::from_u32(code as u32).is_some_and(char::is_whitespace) {
                *class = Class::Space;
            }
        }
        let mut ascii = [Class::Other; 128];
        ascii.copy_from_slice(&flat[..128]);
        let mut blocks: Vec<[Class; BLOCK]> = Vec::new();
        let mut block_of = Vec::with_capacity(flat.len() / BLOCK);
        for block in flat.chunks_exact(BLOCK) {
            let block: [Class; BLOCK] = block.try_into().expect("chunks are one block long");
            let idx = blocks.iter().position(|seen| *seen == block).unwrap_or_else(|| {
                blocks.push(block);
                blocks.len() - 1
            });
            block_of.push(u8::try_from(idx).expect("at most 256 distinct blocks"));
        }
        Self { ascii, block_of, blocks }
    }

    #[inline]
    fn of(&self, c: char) -> Class {
        let code = c as usize;
        match self.ascii.get(code) {
            Some(&class) => class,
            None => self.blocks[usize::from(self.block_of[code / BLOCK])][code % BLOCK],
        }
    }
}

/// A text with what is needed to look at it.
struct Scan<'a> {
    text: &'a str,
    bytes: &'a [u8],
    classes: &'static Classes,
}

impl Scan<'_> {
    /// The end of GPT-2's piece that starts at `start`.
    #[inline]
    fn gpt2(&self, start: usize) -> usize {
        if let Some(end) = self.contraction(start, false) {
            return end;
        }
        // An optional space goes with whatever run follows it.
        let run_start = start + usize::from(self.bytes[start] == b' ');
        match self.peek(run_start) {
            Some((class, end)) if class != Class::Space => self.run(class, end),
            _ => self.whitespace(start),
        }
    }

    /// The end of GPT-4's piece that starts at `start`.
    #[inline]
    fn gpt4(&self, start: usize) -> usize {
        if let Some(end) = self.contraction(start, true) {
            return end;
        }
        let Some((class, end)) = self.peek(start) else {
            return start;
        };
        match class {
            Class::Letter => return self.run(Class::Letter, end),
            Class::Number => return self.number(end),
            Class::Other | Class::Space => {}
        }
        let first = self.bytes[start];
        // `[^\r\n\p{L}\p{N}]?\p{L}+`: one character of nearly any kind goes with the letters after it.
        if !is_newline(first)
            && let Some((Class::Letter, letter_end)) = self.peek(end)
        {
            return self.run(Class::Letter, letter_end);
        }
        // ` ?[^\s\p{L}\p{N}]+[\r\n]*`.
        if class == Class::Other {
            return self.newlines(self.run(Class::Other, end));
        }
        if first == b' '
            && let Some((Class::Other, other_end)) = self.peek(end)
        {
            return self.newlines(self.run(Class::Other, other_end));
        }
        // `\s*[\r\n]+`: up to the last newline of the run of white space.
        let run = &self.bytes[start..self.run(Class::Space, end)];
        match run.iter().rposition(|&byte| is_newline(byte)) {
            Some(newline_idx) => start + newline_idx + 1,
            None => self.whitespace(start),
        }
    }

    /// `\s+(?!\S)|\s+`: white space up to the end of the text; otherwise all but its last character, which goes with
    /// what follows, unless it is the only one.
    fn whitespace(&self, start: usize) -> usize {
        let end = self.run(Class::Space, start);
        if end == self.text.len() {
            return end;
        }
        let last_len = self.text[start..end].chars().next_back().map_or(0, char::len_utf8);
        if start + last_len < end { end - last_len } else { end }
    }

    /// The end of the English contraction at `start`, such as `'re`.
    #[inline]
    fn contraction(&self, start: usize, any_case: bool) -> Option<usize> {
        if self.bytes[start] != b'\'' {
            return None;
        }
        let fold = |idx: usize| {
            let byte = self.bytes.get(start + idx).copied().unwrap_or(0);
            if any_case { byte.to_ascii_lowercase() } else { byte }
        };
        match (fold(1), fold(2)) {
            (b's' | b't' | b'm' | b'd', _) => Some(start + 2),
            (b'r' | b'v', b'e') | (b'l', b'l') => Some(start + 3),
            // The long s (U+017F) folds to s.
            (0xc5, 0xbf) if any_case => Some(start + 3),
            _ => None,
        }
    }

    /// The end of up to three numeric characters, of which the first ends at `end`.
    fn number(&self, mut end: usize) -> usize {
        for _ in 0..2 {
            match self.peek(end) {
                Some((Class::Number, next)) => end = next,
                _ => break,
            }
        }
        end
    }

    /// The end of the run of `class` that goes on at `at`.
    #[inline]
    fn run(&self, class: Class, mut at: usize) -> usize {
        while let Some((next_class, end)) = self.peek(at) {
            if next_class != class {
                break;
            }
            at = end;
        }
        at
    }

    /// The end of the carriage returns and line feeds at `at`.
    fn newlines(&self, at: usize) -> usize {
        at + self.bytes[at..].iter().take_while(|&&byte| is_newline(byte)).count()
    }

    /// The class of the character at `at` and the position after it; nothing at the end of the text.
    #[inline]
    fn peek(&self, at: usize) -> Option<(Class, usize)> {
        let byte = *self.bytes.get(at)?;
        if byte < 128 {
            return Some((self.classes.ascii[usize::from(byte)], at + 1));
        }
        let c = self.text[at..].chars().next()?;
        Some((self.classes.of(c), at + c.len_utf8()))
    }
}

const fn is_newline(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_regex<'a>(regex: &fancy_regex::Regex, text: &'a str) -> Vec<&'a str> {
        regex
            .find_iter(text)
            .map(|found| found.expect("no backtracking limit on short texts").as_str())
            .collect()
    }

    fn oracles() -> Vec<(Split, fancy_regex::Regex)> {
        let spellings = GPT4_SPELLINGS.iter().map(|&spelling| (Split::Gpt4, spelling));
        std::iter::once((Split::Gpt2, Split::Gpt2.regex()))
            .chain(spellings)
            .map(|(split, regex)| (split, fancy_regex::Regex::new(regex).expect("our patterns are valid")))
            .collect()
    }

    fn assert_same(text: &str) {
        thread_local!(static ORACLES: Vec<(Split, fancy_regex::Regex)> = oracles());
        ORACLES.with(|oracles| {
            for (split, regex) in oracles {
                let pieces: Vec<&str> = split.pieces(text).collect();
                assert_eq!(pieces, by_regex(regex, text), "{split:?} on {text:?}, {regex:?}");
            }
        });
    }

    #[test]
    fn nasty_strings_split_as_the_regex_does() {
        for text in [
            "",
            " ",
            "  ",
            "a  b",
            "a \n b",
            " \n\n  x",
            "\r\n\r\n",
            "x \r\n",
            "it's IT'S we'LL 'RE'Ve 'll 'l 'v",
            "'\u{17f}a '\u{17f}\u{17f}",
            "1234567 ١٢٣٤ ⅧⅨ½²",
            "...!!!\n\n\r ?\n x",
            " ...\t\tx\u{a0}\u{a0}y\u{3000}",
            "\u{85}\u{2028}\u{2029}a\u{200b}b\u{feff}",
            "한국어 日本語テキスト मराठी ไทย",
            "👩‍👩‍👧‍👦 e\u{301} \u{1f1e9}\u{1f1ea}",
            "\0\u{1}\u{7f}",
            "\t\tif (x) {\n\t\t\treturn 1;\n\t\t}\n",
        ] {
            assert_same(text);
        }
    }

    #[test]
    fn every_code_point_has_the_regex_class() {
        let classes = Classes::get();
        let all: String = ('\0'..=char::MAX).collect();
        for (regex, class) in [(r"\p{L}", Class::Letter), (r"\p{N}", Class::Number), (r"\s", Class::Space)] {
            let regex = fancy_regex::Regex::new(regex).expect("a class is a valid pattern");
            let expected = by_regex(&regex, &all).concat();
            let ours: String = all.chars().filter(|&c| classes.of(c) == class).collect();
            assert!(ours == expected, "{class:?}");
        }
    }

    /// Strings of the characters on which the patterns' alternatives meet.
    fn text() -> impl Strategy<Value = String> {
        let hot = proptest::sample::select(
            "  \t\n\r\u{a0}\u{3000}aZéſsStTlLvVeErRmd'1٣½.,!-é日👍\u{301}".chars().collect::<Vec<_>>(),
        );
        prop_oneof![
            proptest::collection::vec(hot, 0..40).prop_map(String::from_iter),
            proptest::collection::vec(any::<char>(), 0..20).prop_map(String::from_iter),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn random_strings_split_as_the_regex_does(text in text()) {
            assert_same(&text);
        }

        #[test]
        fn a_safe_cut_changes_no_piece(text in text(), from in 0usize..40) {
            let cut = safe_cut(&text, from.min(text.len()));
            for split in [Split::Gpt2, Split::Gpt4] {
                let whole: Vec<&str> = split.pieces(&text).collect();
                let parts: Vec<&str> = split.pieces(&text[..cut]).chain(split.pieces(&text[cut..])).collect();
                prop_assert_eq!(whole, parts);
            }
        }
    }
}
