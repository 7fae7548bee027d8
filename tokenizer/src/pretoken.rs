//! Splitting text into pre-tokens, the pieces that BPE merges never cross.
//!
//! The patterns are regular expressions in every file that uses them. Here each is a hand-written [`scan::Pattern`]
//! that finds the end of the next piece, and the tests hold it to the regular expression on random and nasty strings.
//! No pattern looks back, so a piece depends only on the text from its start; that is what lets [`window`] find the
//! pieces of 64 bytes at once, and [`safe_cut`] divide a text.

mod classes;
mod scan;
mod window;

use serde::{Deserialize, Serialize};

use scan::{Classes, Deepseek, Gpt2, Gpt4, LETTER, O200k, Pattern, Scan};

/// How text is cut into pre-tokens. The name is the model or vocabulary that made the pattern known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// GPT-2: case-sensitive contractions and numbers of any length.
    Gpt2,
    /// GPT-4 (`cl100k_base`) and Llama 3: contractions in any case, numbers of at most three digits, newlines apart.
    #[default]
    Gpt4,
    /// As [`Split::Gpt4`], with numbers of at most two digits.
    Nanochat,
    /// As [`Split::Gpt4`], with every digit apart.
    Qwen2,
    /// GPT-4o (`o200k_base`): words also end where a capital follows a small letter; contractions stay with the word.
    O200k,
    /// Mistral's Tekken: as [`Split::O200k`], with every digit apart and no contractions.
    Tekken,
    /// The last of the three patterns of DeepSeek-V3; the first two cut out numbers and Chinese and Japanese runs.
    Deepseek,
}

/// All splits.
const ALL: [Split; 7] =
    [Split::Gpt2, Split::Gpt4, Split::Nanochat, Split::Qwen2, Split::O200k, Split::Tekken, Split::Deepseek];

impl Split {
    /// The regular expression, in the spelling that we write into files.
    pub const fn regex(self) -> &'static str {
        self.spellings()[0]
    }

    /// The split of this name, as configurations and the command line spell it.
    pub fn from_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|split| split.name() == name)
    }

    /// The name in configurations and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Gpt4 => "gpt4",
            Self::Nanochat => "nanochat",
            Self::Qwen2 => "qwen2",
            Self::O200k => "o200k",
            Self::Tekken => "tekken",
            Self::Deepseek => "deepseek",
        }
    }

    /// The names of all splits.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ALL.into_iter().map(Self::name)
    }

    /// The split that a file's regular expression means, if it is one of ours.
    pub(crate) fn from_regex(regex: &str) -> Option<Self> {
        ALL.into_iter().find(|split| split.spellings().contains(&regex))
    }

    /// Whether every piece is a match of the regular expression; else some lie between matches.
    pub(crate) fn matches_all(self) -> bool {
        // Numbers are cut out before.
        self != Self::Deepseek
    }

    /// The pieces of `text`, which together are `text`.
    pub fn pieces(self, text: &str) -> Pieces<'_> {
        Pieces { split: self, classes: Classes::get(), text, start: 0 }
    }

    /// Calls `each` with the start and the end of every piece of `text`, in order. Faster than [`Split::pieces`].
    #[inline]
    pub(crate) fn for_each_piece(self, text: &str, mut each: impl FnMut(usize, usize)) {
        let (mut ends, mut start) = (Ends::new(self, text), 0);
        let mut batch = [0; BATCH];
        loop {
            let n_ends = ends.next_batch(&mut batch);
            if n_ends == 0 {
                return;
            }
            for &end in &batch[..n_ends] {
                each(start, end);
                start = end;
            }
        }
    }

    /// The spellings of a pattern that are in use and cut every text alike; the tests hold each to the same pieces.
    /// Possessive quantifiers (`?+`, `++`) change no match here, because what follows never shares a character, and
    /// `\s*[\r\n]` ends at the last newline of a run just as `\s*[\r\n]+` does.
    const fn spellings(self) -> &'static [&'static str] {
        match self {
            Self::Gpt2 => &[r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"],
            Self::Gpt4 => &[
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            ],
            Self::Nanochat => &[
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            ],
            Self::Qwen2 => &[
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
            Self::O200k => &[
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
            Self::Tekken => &[
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ],
            Self::Deepseek => &[
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
            ],
        }
    }
}

/// Most ends that [`Ends::next_batch`] gives.
pub(crate) const BATCH: usize = 256;

/// The ends of the pieces of a text, many at a time: the caller's loop over them is then one that a compiler can do
/// something with.
pub(crate) struct Ends<'a> {
    split: Split,
    scan: Scan<'a>,
    at: usize,
}

impl<'a> Ends<'a> {
    /// Begins at the start of `text`.
    pub(crate) fn new(split: Split, text: &'a str) -> Self {
        Self { split, scan: Scan::new(text, Classes::get()), at: 0 }
    }

    /// Writes the ends of the next pieces, and tells how many; 0 at the end of the text.
    pub(crate) fn next_batch(&mut self, ends: &mut [usize; BATCH]) -> usize {
        let fill = match self.split {
            Split::Gpt2 => window::ends::<Gpt2>,
            Split::Gpt4 => window::ends::<Gpt4<3>>,
            Split::Nanochat => window::ends::<Gpt4<2>>,
            Split::Qwen2 => window::ends::<Gpt4<1>>,
            Split::O200k => window::ends::<O200k<3, true>>,
            Split::Tekken => window::ends::<O200k<1, false>>,
            Split::Deepseek => window::ends::<Deepseek>,
        };
        let n_ends = fill(&self.scan, self.at, ends);
        self.at = if n_ends > 0 { ends[n_ends - 1] } else { self.at };
        n_ends
    }
}

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

    fn next(&mut self) -> Option<&'a str> {
        if self.start == self.text.len() {
            return None;
        }
        let scan = Scan::new(self.text, self.classes);
        let end = match self.split {
            Split::Gpt2 => Gpt2::end(&scan, self.start),
            Split::Gpt4 => Gpt4::<3>::end(&scan, self.start),
            Split::Nanochat => Gpt4::<2>::end(&scan, self.start),
            Split::Qwen2 => Gpt4::<1>::end(&scan, self.start),
            Split::O200k => O200k::<3, true>::end(&scan, self.start),
            Split::Tekken => O200k::<1, false>::end(&scan, self.start),
            Split::Deepseek => Deepseek::end(&scan, self.start),
        };
        let piece = &self.text[self.start..end];
        self.start = end;
        Some(piece)
    }
}

/// The first place from `from` on where `text` can be cut and both parts keep their pieces, or the end of the text.
///
/// In all patterns a piece always ends between a letter and a space or newline, and nothing before it can see past it.
pub(crate) fn safe_cut(text: &str, from: usize) -> usize {
    let classes = Classes::get();
    let mut at = text.floor_char_boundary(from);
    let mut after_letter = false;
    for c in text[at..].chars() {
        if after_letter && matches!(c, ' ' | '\n') {
            return at;
        }
        after_letter = classes.of(c) & LETTER != 0;
        at += c.len_utf8();
    }
    text.len()
}

/// Whether the patterns take this for a letter.
pub(crate) fn is_letter(c: char) -> bool {
    Classes::get().of(c) & LETTER != 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a pattern matches, and what lies between matches.
    fn by_regex<'a>(regex: &fancy_regex::Regex, text: &'a str) -> Vec<&'a str> {
        let (mut pieces, mut end) = (Vec::new(), 0);
        for found in regex.find_iter(text) {
            let found = found.expect("no backtracking limit on short texts");
            pieces.extend([&text[end..found.start()], found.as_str()]);
            end = found.end();
        }
        pieces.push(&text[end..]);
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }

    fn oracles() -> Vec<(Split, fancy_regex::Regex)> {
        let spellings = ALL.into_iter().flat_map(|split| split.spellings().iter().map(move |s| (split, s)));
        spellings
            .map(|(split, regex)| (split, fancy_regex::Regex::new(regex).expect("our patterns are valid")))
            .collect()
    }

    fn pieces_by_windows(split: Split, text: &str) -> Vec<&str> {
        let mut pieces = Vec::new();
        split.for_each_piece(text, |start, end| pieces.push(&text[start..end]));
        pieces
    }

    fn assert_same(text: &str) {
        thread_local!(static ORACLES: Vec<(Split, fancy_regex::Regex)> = oracles());
        ORACLES.with(|oracles| {
            for (split, regex) in oracles {
                let expected = by_regex(regex, text);
                if split.matches_all() {
                    let matches = regex.find_iter(text).map(|found| found.expect("as above").as_str());
                    assert!(matches.eq(expected.iter().copied()), "{split:?} on {text:?}");
                }
                let pieces: Vec<&str> = split.pieces(text).collect();
                assert_eq!(pieces, expected, "{split:?} on {text:?}, {regex:?}");
                assert_eq!(pieces_by_windows(*split, text), expected, "{split:?} in windows on {text:?}");
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
            "don't's don't'll I'd've DON'T iPhone HTMLParser aB'sC 'sX",
            "'\u{17f}a '\u{17f}\u{17f} a'\u{17f}b",
            "1234567 ١٢٣٤ ⅧⅨ½²",
            "...!!!\n\n\r ?\n x",
            ";\n// a\n//\n///\n/b !\n/+\n/ /\n\n//",
            " ...\t\tx\u{a0}\u{a0}y\u{3000}",
            "\u{85}\u{2028}\u{2029}a\u{200b}b\u{feff}",
            "한국어 日本語テキスト मराठी ไทย",
            "日A日Ab ǅx xǅ ʰA ʰa \u{301}ABC \u{301}\u{301}a !\u{301}B",
            "👩‍👩‍👧‍👦 e\u{301} \u{1f1e9}\u{1f1ea}",
            "\0\u{1}\u{7f}",
            "\t\tif (x) {\n\t\t\treturn 1;\n\t\t}\n",
        ] {
            assert_same(text);
            // In the middle of a window and across its end.
            for pad in [40, 55, 60, 61, 62, 63, 64] {
                assert_same(&format!("{}{text}{}", &"ab cd, ".repeat(10)[..pad], " the end".repeat(9)));
            }
        }
    }

    #[test]
    fn every_code_point_has_the_regex_class() {
        let classes = Classes::get();
        let all: String = ('\0'..=char::MAX).collect();
        for (regex, class) in [
            (r"[\p{Lu}\p{Lt}]", scan::UPPER),
            (r"\p{Ll}", scan::LOWER),
            (r"\p{L}", LETTER),
            (r"\p{M}", scan::MARK),
            (r"\p{N}", scan::NUMBER),
            (r"[\p{P}\p{S}]", scan::PUNCTUATION),
            (r"\s", scan::SPACE),
        ] {
            let found = fancy_regex::Regex::new(regex).expect("a class is a valid pattern");
            let expected: String =
                found.find_iter(&all).map(|found| found.expect("no backtracking").as_str()).collect();
            let ours: String = all.chars().filter(|&c| classes.of(c) & class != 0).collect();
            assert!(ours == expected, "{regex}");
        }
    }

    /// Strings of the characters on which the patterns' alternatives meet.
    fn text() -> impl Strategy<Value = String> {
        let hot = || {
            proptest::sample::select(
                "  \t\n\r\u{a0}\u{3000}aZéÉſsStTlLvVeErRmd''1٣½.,!-//日ǅʰЖж𐐀𐐨𝟘👍…。\u{301}\u{93f}"
                    .chars()
                    .collect::<Vec<_>>(),
            )
        };
        // Nearly only letters, so that words fill windows.
        let letters = proptest::sample::select(
            "abcdeéèÉÀжЖшдЮ日本語हिनदी  '.\u{301}\u{93f}".chars().collect::<Vec<_>>(),
        );
        let ascii =
            proptest::sample::select("   \t\n\n\r''''//;.sStTlLvVeErRmdabAB123".chars().collect::<Vec<_>>());
        prop_oneof![
            proptest::collection::vec(hot(), 0..40).prop_map(String::from_iter),
            proptest::collection::vec(hot(), 40..160).prop_map(String::from_iter),
            proptest::collection::vec(letters, 40..160).prop_map(String::from_iter),
            proptest::collection::vec(any::<char>(), 0..20).prop_map(String::from_iter),
            proptest::collection::vec(ascii, 60..240).prop_map(String::from_iter),
            (
                proptest::collection::vec(hot(), 0..20),
                "[a-z ]{40,70}",
                proptest::collection::vec(hot(), 0..40)
            )
                .prop_map(|(a, b, c)| String::from_iter(a) + &b + &String::from_iter(c) + &b),
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
            for split in ALL {
                let whole: Vec<&str> = split.pieces(&text).collect();
                let parts: Vec<&str> = split.pieces(&text[..cut]).chain(split.pieces(&text[cut..])).collect();
                prop_assert_eq!(whole, parts);
            }
        }
    }
}
