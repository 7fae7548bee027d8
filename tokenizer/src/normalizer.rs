//! Normalizers: what happens to text before it is cut into pieces.
//!
//! [`NormalizerSpec`] is the part of a `tokenizer.json` word for word; [`Normalizer`] is the same checked and ready to
//! use. Results equal Hugging Face's for every string. What characters are marks, controls or letters with a case is
//! decided by tables made from its answers, not by our libraries, which follow other Unicode versions.
//!
//! ASCII, and text that a step would not change, costs a look and no copy.

mod bert;
mod classes;
mod forms;
pub(crate) mod normalized;
mod precompiled;
pub(crate) mod properties;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use bert::BertNormalizer;
use forms::Form;
pub(crate) use normalized::Normalized;
use normalized::Rewrite;
use precompiled::Precompiled;
use properties::Props;

use crate::Error;
use crate::charsmap::CharsMap;
use crate::pretokenizer::pattern::{Pattern, PatternSpec, check_growth};

/// The field of the file, for messages.
const PART: &str = "normalizer";

/// How many times as long a text may become, all steps together. ALBERT's steps make it 242 times as long at most: 11
/// times by NFKD, as much by a map of NFKC, and twice by what puts one space for many.
const MAX_GROWTH: usize = 1 << 8;

/// A normalizer as `tokenizer.json` spells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(crate) enum NormalizerSpec {
    /// Several, one after the other.
    Sequence {
        /// The steps.
        normalizers: Vec<NormalizerSpec>,
    },
    /// Canonical composition.
    #[serde(rename = "NFC")]
    Nfc {},
    /// Canonical decomposition.
    #[serde(rename = "NFD")]
    Nfd {},
    /// Compatible decomposition, then composition.
    #[serde(rename = "NFKC")]
    Nfkc {},
    /// Compatible decomposition.
    #[serde(rename = "NFKD")]
    Nfkd {},
    /// Lower case, character by character.
    Lowercase {},
    /// Takes combining marks away.
    StripAccents {},
    /// Takes white space away at the ends.
    Strip {
        /// At the start.
        strip_left: bool,
        /// At the end.
        strip_right: bool,
    },
    /// Puts a string in front, unless the text is empty.
    Prepend {
        /// The string.
        prepend: String,
    },
    /// Replaces what matches.
    Replace {
        /// What is replaced.
        pattern: PatternSpec,
        /// What takes its place.
        content: String,
    },
    /// What BERT does to text.
    BertNormalizer {
        /// Removes controls and makes all white space spaces.
        clean_text: bool,
        /// Puts spaces around Chinese characters.
        handle_chinese_chars: bool,
        /// Removes accents; as `lowercase` if unset.
        strip_accents: Option<bool>,
        /// Lower case.
        lowercase: bool,
    },
    /// SentencePiece's map of replacements.
    Precompiled {
        /// The map, in base64.
        precompiled_charsmap: String,
    },
    /// SentencePiece's treatment of controls and rare spaces.
    Nmt {},
    /// Spells bytes as characters.
    ByteLevel {},
}

/// A normalizer ready to use.
#[derive(Clone, Debug)]
pub(crate) struct Normalizer {
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Form(Form),
    Lowercase,
    StripAccents,
    Strip { left: bool, right: bool },
    Prepend(String),
    Replace { pattern: Pattern, content: String },
    Bert(BertNormalizer),
    Precompiled(Precompiled),
    Nmt,
}

impl NormalizerSpec {
    /// Checks the part and makes it ready.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a pattern that cannot be searched for and for `ByteLevel`, [`Error::Malformed`] for a
    /// map that is none.
    pub(crate) fn compile(&self) -> Result<Normalizer, Error> {
        let mut steps = Vec::new();
        self.compile_into(&mut steps, self.n_patterns())?;
        check_growth(growth(&steps), MAX_GROWTH, PART)?;
        Ok(Normalizer { steps })
    }

    /// How many patterns there are to compile.
    fn n_patterns(&self) -> usize {
        match self {
            Self::Sequence { normalizers } => normalizers.iter().map(Self::n_patterns).sum(),
            Self::Replace { pattern, .. } => pattern.n_patterns(),
            _ => 0,
        }
    }

    fn compile_into(&self, steps: &mut Vec<Step>, n_patterns: usize) -> Result<(), Error> {
        steps.push(match self {
            Self::Sequence { normalizers } => {
                return normalizers
                    .iter()
                    .try_for_each(|normalizer| normalizer.compile_into(steps, n_patterns));
            }
            Self::Nfc {} => Step::Form(Form::Nfc),
            Self::Nfd {} => Step::Form(Form::Nfd),
            Self::Nfkc {} => Step::Form(Form::Nfkc),
            Self::Nfkd {} => Step::Form(Form::Nfkd),
            Self::Lowercase {} => Step::Lowercase,
            Self::StripAccents {} => Step::StripAccents,
            Self::Strip { strip_left, strip_right } => Step::Strip { left: *strip_left, right: *strip_right },
            Self::Prepend { prepend } => Step::Prepend(prepend.clone()),
            Self::Replace { pattern, content } => Step::Replace {
                pattern: Pattern::compile(pattern, PART, n_patterns)?,
                content: content.clone(),
            },
            Self::BertNormalizer { clean_text, handle_chinese_chars, strip_accents, lowercase } => {
                Step::Bert(BertNormalizer {
                    clean_text: *clean_text,
                    handle_chinese_chars: *handle_chinese_chars,
                    strip_accents: strip_accents.unwrap_or(*lowercase),
                    lowercase: *lowercase,
                })
            }
            Self::Precompiled { precompiled_charsmap } => {
                Step::Precompiled(Precompiled::new(CharsMap::from_base64(precompiled_charsmap)?))
            }
            Self::Nmt {} => Step::Nmt,
            Self::ByteLevel {} => {
                return Err(Error::Unsupported {
                    part: PART,
                    found: "`ByteLevel`".to_owned(),
                    supported: "the pre-tokenizer `ByteLevel` instead, which comes to the same",
                });
            }
        });
        Ok(())
    }
}

impl Normalizer {
    /// Whether all it does is Unicode's forms, in which no space joins what is before it.
    pub(crate) fn only_forms(&self) -> bool {
        self.steps.iter().all(|step| matches!(step, Step::Form(_)))
    }

    /// Normalizes a text.
    pub(crate) fn normalize(&self, text: &mut Normalized<'_>) {
        for step in &self.steps {
            step.apply(text);
        }
    }

    /// A text normalized by itself, without origins.
    pub(crate) fn normalized<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Normalized::new(text);
        self.normalize(&mut text);
        text.into_text()
    }
}

/// How many times as long, at most, a text becomes by all steps. Of Unicode's steps in a row the longest counts; behind a
/// step of the file's own choosing they may find something to do again.
fn growth(steps: &[Step]) -> usize {
    let runs = steps.chunk_by(|one, next| one.is_idempotent() && next.is_idempotent());
    runs.map(|run| run.iter().map(Step::growth).max().unwrap_or(1)).fold(1, usize::saturating_mul)
}

impl Step {
    /// How many times as long, at most, a text becomes.
    fn growth(&self) -> usize {
        match self {
            // U+FDFA, three bytes, becomes 18 characters of 33.
            Self::Form(Form::Nfkc | Form::Nfkd) => 11,
            // U+0390, two bytes, becomes three characters of two; the same within BERT's steps.
            Self::Form(Form::Nfc | Form::Nfd) | Self::Bert(_) => 3,
            // U+0130 becomes one more byte.
            Self::Lowercase => 2,
            Self::Prepend(prefix) => prefix.len() + 1,
            Self::Replace { pattern, content } => pattern.growth(content),
            Self::Precompiled(precompiled) => precompiled.growth(),
            Self::StripAccents | Self::Strip { .. } | Self::Nmt => 1,
        }
    }

    /// Whether what it does is Unicode's, so that doing it again changes nothing.
    fn is_idempotent(&self) -> bool {
        matches!(self, Self::Form(_) | Self::Lowercase | Self::StripAccents | Self::Strip { .. } | Self::Nmt)
    }

    fn apply(&self, text: &mut Normalized<'_>) {
        match self {
            Self::Form(form) => form.apply(text),
            Self::Lowercase => lowercase(text),
            Self::StripAccents => remove(text, Props::MARK),
            Self::Strip { left, right } => strip(text, *left, *right),
            Self::Prepend(prefix) if !text.text().is_empty() && !prefix.is_empty() => prepend(text, prefix),
            Self::Prepend(_) => {}
            Self::Replace { pattern, content } => replace(text, pattern, content),
            Self::Bert(bert) => bert.apply(text),
            Self::Precompiled(precompiled) => precompiled.apply(text),
            Self::Nmt => nmt(text),
        }
    }
}

/// Puts `prefix` in front of a text that is not empty.
pub(crate) fn prepend(text: &mut Normalized<'_>, prefix: &str) {
    text.rewrite(|out| {
        prefix.chars().for_each(|c| out.replace(c, 0));
        out.keep(out.rest().len());
    });
}

/// Replaces the matches of `pattern` by `content`.
fn replace(text: &mut Normalized<'_>, pattern: &Pattern, content: &str) {
    if let Pattern::Literal(literal) = pattern {
        return replace_literal(text, literal, content);
    }
    let mut matches = Vec::new();
    pattern.for_each(text.text(), |range, is_match| matches.push((range, is_match)));
    if !matches.iter().any(|&(_, is_match)| is_match) {
        return;
    }
    text.rewrite(|out| {
        for (range, is_match) in matches {
            if is_match {
                out.skip(range.len());
                out.insert_str(content);
            } else {
                out.keep(range.len());
            }
        }
    });
}

fn replace_literal(text: &mut Normalized<'_>, literal: &str, content: &str) {
    if !text.text().contains(literal) {
        return;
    }
    text.rewrite(|out| {
        let old = out.rest();
        let mut end = 0;
        let mut on_match = |at: usize| {
            out.keep(at - end);
            out.skip(literal.len());
            out.insert_str(content);
            end = at + literal.len();
        };
        let mut chars = literal.chars();
        match (chars.next(), chars.next()) {
            // The search for one character is several times faster.
            (Some(c), None) => old.match_indices(c).for_each(|(at, _)| on_match(at)),
            _ => old.match_indices(literal).for_each(|(at, _)| on_match(at)),
        }
        out.keep(old.len() - end);
    });
}

/// Replaces bytes of a text that is ASCII by others that are.
fn map_ascii(text: &mut Normalized<'_>, map: impl Fn(u8) -> u8) {
    text.replace_text(|text| {
        let mut bytes = std::mem::take(text).into_bytes();
        bytes.iter_mut().for_each(|byte| *byte = map(*byte));
        *text = String::from_utf8(bytes).expect("only ASCII was exchanged for ASCII");
    });
}

/// Lower case, one character at a time: a sigma at the end of a word is a sigma like any other.
fn lowercase(text: &mut Normalized<'_>) {
    if text.text().is_ascii() {
        if text.text().bytes().any(|byte| byte.is_ascii_uppercase()) {
            text.replace_text(|text| text.make_ascii_lowercase());
        }
        return;
    }
    edit(
        text,
        |c| Props::of(c).is(Props::UPPER),
        |c, out| {
            for (idx, lower) in c.to_lowercase().enumerate() {
                if idx == 0 { out.replace(lower, c.len_utf8()) } else { out.insert(lower) }
            }
        },
    );
}

/// Removes the characters that are in `sets`, none of which is ASCII.
fn remove(text: &mut Normalized<'_>, sets: Props) {
    if !text.text().is_ascii() {
        edit(text, |c| Props::of(c).is(sets), |c, out| out.skip(c.len_utf8()));
    }
}

/// Lets `write` deal with the characters that `changes` picks, and copies all between.
fn edit(
    text: &mut Normalized<'_>,
    changes: impl Fn(char) -> bool,
    mut write: impl FnMut(char, &mut Rewrite<'_>),
) {
    let Some(first) = text.text().find(&changes) else { return };
    text.rewrite(|out| {
        out.keep(first);
        while let Some(c) = out.rest().chars().next() {
            write(c, out);
            let rest = out.rest();
            out.keep(rest.find(&changes).unwrap_or(rest.len()));
        }
    });
}

fn strip(text: &mut Normalized<'_>, left: bool, right: bool) {
    let old = text.text();
    let stripped = if left { old.trim_start() } else { old };
    let start = old.len() - stripped.len();
    let stripped = if right { stripped.trim_end() } else { stripped };
    if stripped.len() < old.len() {
        let end = start + stripped.len();
        text.cut(start..end);
    }
}

/// SentencePiece's cleaning: controls go, and rare spaces become plain ones.
fn nmt(text: &mut Normalized<'_>) {
    let is_control =
        |c| matches!(c, '\x01'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f' | '\u{8f}' | '\u{9f}');
    let is_space = |c| {
        matches!(
            c,
            '\t' | '\n' | '\x0c' | '\r' | '\u{1680}' | '\u{200b}'
                ..='\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{2581}' | '\u{feff}' | '\u{fffd}'
        )
    };
    edit(
        text,
        |c| is_control(c) || is_space(c),
        |c, out| {
            if is_control(c) { out.skip(c.len_utf8()) } else { out.replace(' ', c.len_utf8()) }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalizer(json: &str) -> Normalizer {
        serde_json::from_str::<NormalizerSpec>(json).unwrap().compile().unwrap()
    }

    #[test]
    fn text_that_stays_as_it_is_stays_borrowed() {
        let bert = r#"{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,
            "lowercase":true}"#;
        let replace = r#"{"type":"Replace","pattern":{"String":"q"},"content":"y"}"#;
        let strip = r#"{"type":"Strip","strip_left":true,"strip_right":true}"#;
        for json in
            [bert, replace, strip, r#"{"type":"NFKC"}"#, r#"{"type":"Nmt"}"#, r#"{"type":"StripAccents"}"#]
        {
            assert!(matches!(normalizer(json).normalized("plain text, 1"), Cow::Borrowed(_)), "{json}");
        }
        assert!(matches!(normalizer(strip).normalized(" a "), Cow::Borrowed("a")));
    }

    #[test]
    fn what_is_dropped_at_the_start_counts() {
        for (json, text, at_start) in [
            (r#"{"type":"Strip","strip_left":true,"strip_right":false}"#, " a", false),
            (r#"{"type":"Nmt"}"#, "\u{1}a", false),
            (r#"{"type":"Replace","pattern":{"String":" "},"content":"\u2581"}"#, " a", true),
            (r#"{"type":"Prepend","prepend":"\u2581"}"#, "a", true),
            (r#"{"type":"NFD"}"#, "\u{e9}", true),
            (r#"{"type":"Lowercase"}"#, "\u{130}a", true),
        ] {
            let mut text = Normalized::new(text);
            normalizer(json).normalize(&mut text);
            assert_eq!(text.is_at_start(), at_start, "{json}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (json, named) in [
            (r#"{"type":"NFX"}"#, "NFX"),
            (r#"{"type":"NFC","form":1}"#, "`form`"),
            (r#"{"type":"Strip","strip_left":true}"#, "`strip_right`"),
            (r#"{"type":"Replace","pattern":{"Glob":"*"},"content":""}"#, "Glob"),
        ] {
            let error = serde_json::from_str::<NormalizerSpec>(json).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
        let double = r#"{"type":"Replace","pattern":{"String":"a"},"content":"aaaa"}"#;
        let many = format!(r#"{{"type":"Sequence","normalizers":[{}]}}"#, [double; 7].join(","));
        for (json, named) in [
            (r#"{"type":"ByteLevel"}"#, "`ByteLevel`"),
            (r#"{"type":"Replace","pattern":{"Regex":"(a)\\1"},"content":""}"#, r"`(a)\1`"),
            (r#"{"type":"Precompiled","precompiled_charsmap":"AA=A"}"#, "not base64"),
            (r#"{"type":"Precompiled","precompiled_charsmap":"AAAAA"}"#, "not base64"),
            (&many, "16384 times"),
        ] {
            let error = serde_json::from_str::<NormalizerSpec>(json).unwrap().compile().unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
        let map = |new: &str| {
            let map = crate::base64::encode(&crate::charsmap::tests::cyclic(new));
            format!(r#"{{"type":"Precompiled","precompiled_charsmap":"{map}"}}"#)
        };
        let alternating =
            [r#"{"type":"Replace","pattern":{"String":"\u0644"},"content":"\ufdfa"}"#, r#"{"type":"NFKC"}"#];
        let bert = r#"{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,
            "lowercase":true}"#;
        for (steps, named) in [
            (vec![map(&"a".repeat(20)); 3], "8000 times"),
            (vec![map(&"a".repeat(1000))], "1000 times"),
            ([alternating; 3].concat().into_iter().map(str::to_owned).collect(), "10648 times"),
            (vec![bert.to_owned(); 10], "59049 times"),
        ] {
            let json = format!(r#"{{"type":"Sequence","normalizers":[{}]}}"#, steps.join(","));
            let error = serde_json::from_str::<NormalizerSpec>(&json).unwrap().compile().unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
        let deep = "{\"type\":\"Sequence\",\"normalizers\":[".repeat(10_000);
        assert!(serde_json::from_str::<NormalizerSpec>(&deep).is_err());
    }
}
