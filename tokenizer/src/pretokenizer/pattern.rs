//! Patterns of `Split` and `Replace`: a fixed string or a regular expression, and where they match.
//!
//! Published patterns go to the hand-written splitters of [`crate::Split`]. Other regular expressions are translated
//! for an engine whose time is linear in the text, with a bound on the size of the compiled pattern; see
//! [`translate`](super::translate).

use std::ops::Range;

use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use super::translate::{GIVE_BACK, translate};
use crate::{Error, Split};

/// Largest size in bytes of all compiled patterns of a part. The longest published patterns need a tenth of it.
const MAX_COMPILED: usize = 10 << 20;

/// What the engine keeps of the states it has seen, in bytes, at most; the engine's own default.
const MAX_STATES: usize = 2 << 20;

/// A pattern as files spell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PatternSpec {
    /// A fixed string.
    String(String),
    /// A regular expression in Oniguruma's syntax.
    Regex(String),
}

/// Bytes of text from which on it is worth looking at many at once.
const LONG: usize = 256;

/// A pattern that can be searched for.
#[derive(Clone, Debug)]
pub(crate) enum Pattern {
    /// Matches between all characters, as the empty string does.
    Empty,
    /// Matches itself.
    Literal(String),
    /// A published pattern, which matches everything, piece after piece.
    Known(Split),
    /// A regular expression.
    Regex(Regex),
    /// A regular expression with a group whose matches end before their last character.
    GivesBack(Regex),
}

/// Refuses a part of which all steps together may make text more than `limit` times as long: a small file could ask for
/// any number.
pub(crate) fn check_growth(growth: usize, limit: usize, part: &'static str) -> Result<(), Error> {
    if growth <= limit {
        return Ok(());
    }
    Err(Error::Unsupported {
        part,
        found: format!("replacements that may make text {growth} times as long"),
        supported: "replacements of text by text of about the same length",
    })
}

impl PatternSpec {
    /// 1 if it must be compiled.
    pub(crate) fn n_patterns(&self) -> usize {
        usize::from(matches!(self, Self::Regex(_)))
    }

    /// Whether it is a published pattern of which nothing lies between matches.
    pub(super) fn matches_all(&self) -> bool {
        match self {
            Self::Regex(regex) => Split::from_regex(regex).is_some_and(Split::matches_all),
            Self::String(_) => false,
        }
    }
}

impl Pattern {
    /// Compiles a pattern of which every match counts. The `n_patterns` of its part share the memory that there is.
    pub(crate) fn compile(spec: &PatternSpec, part: &'static str, n_patterns: usize) -> Result<Self, Error> {
        let pattern = match spec {
            PatternSpec::String(text) if text.is_empty() => return Ok(Self::Empty),
            PatternSpec::String(text) => return Ok(Self::Literal(text.clone())),
            PatternSpec::Regex(pattern) => pattern,
        };
        let refuse = |reason: String| Error::Unsupported {
            part,
            found: format!("the regular expression `{}`: {reason},", shortened(pattern)),
            supported: r"no look-around but `\s+(?!\S)`, no back-references, options or atomic groups",
        };
        let translation = translate(pattern).map_err(refuse)?;
        let limit = MAX_COMPILED / n_patterns.max(1);
        let regex = RegexBuilder::new(&translation.regex)
            .size_limit(limit)
            .dfa_size_limit(limit.min(MAX_STATES))
            .build();
        let regex = regex.map_err(|error| refuse(without_pattern(&error)))?;
        Ok(if translation.gives_back { Self::GivesBack(regex) } else { Self::Regex(regex) })
    }

    /// Compiles a pattern that only cuts text where matches begin and end.
    pub(crate) fn compile_cuts(
        spec: &PatternSpec,
        part: &'static str,
        n_patterns: usize,
    ) -> Result<Self, Error> {
        match spec {
            PatternSpec::Regex(regex) => Split::from_regex(regex).map(Self::Known),
            PatternSpec::String(_) => None,
        }
        .map_or_else(|| Self::compile(spec, part, n_patterns), Ok)
    }

    /// How many times as long, at most, a text becomes if all matches are replaced by `content`.
    pub(crate) fn growth(&self, content: &str) -> usize {
        match self {
            Self::Literal(literal) => content.len().div_ceil(literal.len()).max(1),
            _ => content.len() + 1,
        }
    }

    /// Calls `each` with the matches in `text` and what lies between, in order, and whether it is a match. Matches may
    /// be empty; an empty text has none.
    pub(crate) fn for_each(&self, text: &str, mut each: impl FnMut(Range<usize>, bool)) {
        let mut end = 0;
        let mut on_match = |range: Range<usize>| {
            if end < range.start {
                each(end..range.start, false);
            }
            end = range.end;
            each(range, true);
        };
        match self {
            _ if text.is_empty() => {}
            Self::Empty => {
                text.char_indices().for_each(|(at, _)| on_match(at..at));
                on_match(text.len()..text.len());
            }
            Self::Literal(literal) => {
                text.match_indices(literal.as_str()).for_each(|(at, found)| on_match(at..at + found.len()));
            }
            Self::Known(split) if text.len() >= LONG => {
                split.for_each_piece(text, |start, end| on_match(start..end));
            }
            Self::Known(split) => {
                let mut at = 0;
                for piece in split.pieces(text) {
                    on_match(at..at + piece.len());
                    at += piece.len();
                }
            }
            Self::Regex(regex) => regex.find_iter(text).for_each(|found| on_match(found.range())),
            Self::GivesBack(regex) => find_giving_back(regex, text, on_match),
        }
        if end < text.len() {
            each(end..text.len(), false);
        }
    }
}

/// Finds matches of which those in [`GIVE_BACK`] leave their last character to the next.
fn find_giving_back(regex: &Regex, text: &str, mut on_match: impl FnMut(Range<usize>)) {
    let mut locations = regex.capture_locations();
    let group = regex.capture_names().position(|name| name == Some(GIVE_BACK)).unwrap_or(0);
    let (mut at, mut last_end) = (0, None);
    while let Some(found) = regex.find_at(text, at) {
        let mut range = found.range();
        // Groups cost several times a plain search, so they are asked for only if white space ends the match.
        if found.as_str().ends_with(char::is_whitespace) && range.end < text.len() {
            regex.captures_read_at(&mut locations, text, range.start);
            if let Some((_, end)) = locations.get(group)
                && let Some(last) = text[range.start..end].chars().next_back()
            {
                range.end = end - last.len_utf8();
            }
        }
        at = range.end;
        if range.is_empty() {
            // An empty match right behind another one does not count, and the search goes on after a character.
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
        if !range.is_empty() || last_end != Some(range.end) {
            last_end = Some(range.end);
            on_match(range);
        }
        if at > text.len() {
            break;
        }
    }
}

/// The start of a pattern, enough to recognise it by.
fn shortened(pattern: &str) -> String {
    match pattern.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &pattern[..end]),
        None => pattern.to_owned(),
    }
}

/// The engine's complaint without the pattern, which it quotes in a drawing of several lines.
fn without_pattern(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => format!("compiled it is larger than {limit} bytes"),
        other => {
            other.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(spec: PatternSpec, text: &str) -> Vec<(&str, bool)> {
        let pattern = Pattern::compile(&spec, "test", 1).unwrap();
        let mut pieces = Vec::new();
        pattern.for_each(text, |range, is_match| pieces.push((&text[range], is_match)));
        pieces
    }

    #[test]
    fn matches_and_gaps_cover_the_text() {
        let literal = |text: &str| PatternSpec::String(text.to_owned());
        assert_eq!(pieces(literal("aa"), "baaac"), [("b", false), ("aa", true), ("ac", false)]);
        assert_eq!(pieces(literal(""), "é"), [("", true), ("é", false), ("", true)]);
        assert_eq!(pieces(literal(""), ""), []);
        let regex = |text: &str| PatternSpec::Regex(text.to_owned());
        assert_eq!(
            pieces(regex("a*"), "baac"),
            [("", true), ("b", false), ("aa", true), ("c", false), ("", true)]
        );
    }

    #[test]
    fn white_space_gives_its_last_character_back() {
        let spec = || PatternSpec::Regex(r" ?\w+|\s+(?!\S)|\s+".to_owned());
        let texts = |text| pieces(spec(), text).into_iter().map(|(piece, _)| piece).collect::<Vec<_>>();
        assert_eq!(texts("a  b \n"), ["a", " ", " b", " \n"]);
        assert_eq!(texts("\n\u{3000}x"), ["\n", "\u{3000}", "x"]);
        assert_eq!(texts("\u{3000}\u{3000}x "), ["\u{3000}", "\u{3000}", "x", " "]);
    }

    #[test]
    fn a_pattern_too_large_is_refused_at_once() {
        for pattern in ["(a{1000}){1000}", r"(?:\p{L}{999}x){999}"] {
            let error =
                Pattern::compile(&PatternSpec::Regex(pattern.to_owned()), "pre_tokenizer", 1).unwrap_err();
            assert!(error.to_string().contains("larger than 10485760 bytes"), "{error}");
            assert!(error.to_string().contains(pattern), "{error}");
        }
    }
}
