//! Pre-tokenizers: how text is cut into the pieces that a model sees one by one.
//!
//! [`PreTokenizerSpec`] is the part of a `tokenizer.json` word for word; [`PreTokenizer`] is the same checked and ready
//! to use. Pieces are ranges of the text, in order; what no piece covers is dropped. `Metaspace`, and `ByteLevel` with
//! `add_prefix_space`, change the text on the way. The alphabet of bytes is applied only where a later step cuts what is
//! spelled in it ([`PreTokenizer::is_spelled`]), as in Falcon's files: models of bytes take bytes as they are, and
//! [`PreTokenizer::is_byte_level`] says that the model is one.

mod cut;
pub(crate) mod pattern;
mod scripts;
mod translate;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use cut::{Behavior, Cuts};
use pattern::{Pattern, PatternSpec};

use crate::normalizer::Normalized;
use crate::normalizer::properties::Props;
use crate::{Error, Split, alphabet};

/// The field of the file, for messages.
const PART: &str = "pre_tokenizer";

/// A pre-tokenizer as `tokenizer.json` spells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(crate) enum PreTokenizerSpec {
    /// Several, each of which cuts the pieces of the one before.
    Sequence {
        /// The steps.
        pretokenizers: Vec<PreTokenizerSpec>,
    },
    /// Byte-level models, with GPT-2's pattern or after another step.
    ByteLevel(ByteLevelSpec),
    /// Cuts around matches of a pattern.
    Split {
        /// What matches.
        pattern: PatternSpec,
        /// What becomes of matches.
        behavior: Behavior,
        /// Takes what does not match for matches, and the other way round.
        invert: bool,
    },
    /// Cuts around numbers.
    Digits {
        /// One by one, or run by run.
        individual_digits: bool,
    },
    /// SentencePiece's visible spaces.
    Metaspace(MetaspaceSpec),
    /// Words, and runs of other visible characters.
    Whitespace {},
    /// What stands between white space.
    WhitespaceSplit {},
    /// Cuts around punctuation.
    Punctuation {
        /// What becomes of it.
        #[serde(default)]
        behavior: Behavior,
    },
    /// What BERT does: cuts at white space and around punctuation.
    BertPreTokenizer {},
    /// What stands between occurrences of a character.
    CharDelimiterSplit {
        /// The character.
        delimiter: char,
    },
    /// Cuts between scripts.
    UnicodeScripts {},
    /// Pieces of so many characters.
    FixedLength {
        /// Characters in a piece.
        #[serde(default = "five")]
        length: usize,
    },
}

/// The options of `ByteLevel`, which stands as pre-tokenizer, decoder and post-processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByteLevelSpec {
    /// Puts a space before text that has none.
    #[serde(default = "yes")]
    pub add_prefix_space: bool,
    /// Leaves white space out of offsets.
    #[serde(default = "yes")]
    pub trim_offsets: bool,
    /// Cuts by GPT-2's pattern.
    #[serde(default = "yes")]
    pub use_regex: bool,
}

/// The options of `Metaspace`, which stands as pre-tokenizer and decoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MetaspaceSpec {
    /// The visible space.
    pub replacement: char,
    /// The older spelling of `prepend_scheme`.
    #[serde(default, skip_serializing)]
    add_prefix_space: Option<bool>,
    /// `replacement` once more, in older files.
    #[serde(default, rename = "str_rep", skip_serializing)]
    _str_rep: Option<String>,
    /// When to put a space before text that has none.
    #[serde(default)]
    pub prepend_scheme: PrependScheme,
    /// Whether to cut before each space.
    #[serde(default = "yes")]
    pub split: bool,
}

/// When `Metaspace` puts a space before text that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PrependScheme {
    /// Only at the start of the whole text.
    First,
    /// Never.
    Never,
    /// Before each part between added tokens.
    #[default]
    Always,
}

const fn yes() -> bool {
    true
}

const fn five() -> usize {
    5
}

impl MetaspaceSpec {
    /// Refuses what Hugging Face refuses: an older field that contradicts the newer one.
    pub(crate) fn check(&self, part: &'static str) -> Result<(), Error> {
        if self.add_prefix_space == Some(false) && self.prepend_scheme != PrependScheme::Never {
            return Err(Error::Unsupported {
                part,
                found: "`Metaspace` with add_prefix_space false and a prepend_scheme that says otherwise"
                    .to_owned(),
                supported: "add_prefix_space false with prepend_scheme `never`",
            });
        }
        Ok(())
    }
}

/// A pre-tokenizer ready to use.
#[derive(Clone, Debug)]
pub(crate) struct PreTokenizer {
    steps: Vec<Step>,
    is_byte_level: bool,
    is_spelled: bool,
}

#[derive(Clone, Debug)]
enum Step {
    /// Spells the bytes of the text as characters, for the steps behind `ByteLevel`.
    Alphabet,
    Cut(Cuts),
    PrefixSpace,
    Metaspace {
        replacement: char,
        scheme: PrependScheme,
        split: bool,
    },
}

impl PreTokenizerSpec {
    /// Checks the part and makes it ready.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a pattern that cannot be searched for, for pieces of no characters, and for steps
    /// after `ByteLevel` that would write into the alphabet of bytes.
    pub(crate) fn compile(&self) -> Result<PreTokenizer, Error> {
        let mut compiled = PreTokenizer { steps: Vec::new(), is_byte_level: false, is_spelled: false };
        self.compile_into(&mut compiled, self.n_patterns())?;
        Ok(compiled)
    }

    /// How many patterns there are to compile.
    fn n_patterns(&self) -> usize {
        match self {
            Self::Sequence { pretokenizers } => pretokenizers.iter().map(Self::n_patterns).sum(),
            Self::Split { pattern, .. } => pattern.n_patterns(),
            _ => 0,
        }
    }

    fn compile_into(&self, compiled: &mut PreTokenizer, n_patterns: usize) -> Result<(), Error> {
        if let Self::Sequence { pretokenizers } = self {
            return pretokenizers.iter().try_for_each(|step| step.compile_into(compiled, n_patterns));
        }
        if compiled.is_byte_level {
            if matches!(self, Self::ByteLevel(_) | Self::Metaspace(_)) {
                let found = "a step after `ByteLevel` that changes the text";
                return Err(unsupported(found, "steps after `ByteLevel` that only cut"));
            }
            if !compiled.is_spelled {
                compiled.steps.push(Step::Alphabet);
                compiled.is_spelled = true;
            }
        }
        let cuts = match self {
            Self::Sequence { .. } => return Ok(()),
            Self::ByteLevel(spec) => {
                compiled.is_byte_level = true;
                if spec.add_prefix_space {
                    compiled.steps.push(Step::PrefixSpace);
                }
                if !spec.use_regex {
                    return Ok(());
                }
                Cuts::Pattern {
                    pattern: Pattern::Known(Split::Gpt2),
                    behavior: Behavior::Isolated,
                    invert: false,
                }
            }
            Self::Metaspace(spec) => {
                spec.check(PART)?;
                let MetaspaceSpec { replacement, prepend_scheme: scheme, split, .. } = *spec;
                compiled.steps.push(Step::Metaspace { replacement, scheme, split });
                return Ok(());
            }
            // To remove what lies between matches of a pattern that matches everything removes nothing.
            Self::Split { pattern, behavior, invert }
                if *behavior == Behavior::Isolated
                    || *behavior == Behavior::Removed && *invert && pattern.matches_all() =>
            {
                Cuts::Pattern {
                    pattern: Pattern::compile_cuts(pattern, PART, n_patterns)?,
                    behavior: Behavior::Isolated,
                    invert: false,
                }
            }
            Self::Split { pattern, behavior, invert } => Cuts::Pattern {
                pattern: Pattern::compile(pattern, PART, n_patterns)?,
                behavior: *behavior,
                invert: *invert,
            },
            Self::Digits { individual_digits } => Cuts::Class {
                class: Props::NUMERIC,
                behavior: if *individual_digits { Behavior::Isolated } else { Behavior::Contiguous },
            },
            Self::Punctuation { behavior } => Cuts::Class { class: Props::PUNCTUATION, behavior: *behavior },
            Self::WhitespaceSplit {} => Cuts::Class { class: Props::SPACE, behavior: Behavior::Removed },
            Self::Whitespace {} => Cuts::Words,
            Self::BertPreTokenizer {} => Cuts::Bert,
            Self::CharDelimiterSplit { delimiter } => Cuts::Delimiter(*delimiter),
            Self::UnicodeScripts {} => Cuts::Scripts,
            Self::FixedLength { length: 0 } => {
                return Err(unsupported("`FixedLength` with length 0", "a length of at least 1"));
            }
            Self::FixedLength { length } => Cuts::FixedLength(*length),
        };
        compiled.steps.push(Step::Cut(cuts));
        Ok(())
    }
}

fn unsupported(found: &str, supported: &'static str) -> Error {
    Error::Unsupported { part: PART, found: found.to_owned(), supported }
}

impl PreTokenizer {
    /// Whether the model works on bytes.
    pub(crate) fn is_byte_level(&self) -> bool {
        self.is_byte_level
    }

    /// Whether pieces come spelled in the alphabet of bytes.
    pub(crate) fn is_spelled(&self) -> bool {
        self.is_spelled
    }

    /// The published pattern that is all this does, if it is.
    pub(crate) fn known_split(&self) -> Option<Split> {
        match self.steps[..] {
            [Step::Cut(Cuts::Pattern { pattern: Pattern::Known(split), .. })] => Some(split),
            _ => None,
        }
    }

    /// Cuts a text, and changes it if a step asks for that. `pieces` is overwritten; no piece is empty.
    ///
    /// `is_first` says whether the text begins at the start of all text, no added token before it.
    pub(crate) fn pre_tokenize(
        &self,
        text: &mut Normalized<'_>,
        is_first: bool,
        pieces: &mut Vec<Range<usize>>,
    ) {
        pieces.clear();
        if !text.text().is_empty() {
            pieces.push(0..text.text().len());
        }
        for step in &self.steps {
            match step {
                Step::Cut(cuts) => cuts.cut(text.text(), pieces),
                Step::Alphabet => respell(text, pieces, |piece, _, out| spell(piece, out)),
                Step::PrefixSpace => {
                    respell(text, pieces, |piece, _, out| {
                        if !piece.starts_with(' ') {
                            out.rewrite.replace(' ', 0);
                        }
                        out.rewrite.keep(piece.len());
                        out.end_piece();
                    });
                }
                Step::Metaspace { replacement, scheme, split } => {
                    let starts = is_first && text.is_at_start();
                    respell(text, pieces, |piece, start, out| {
                        let prepend = match scheme {
                            PrependScheme::Always => true,
                            PrependScheme::First => starts && start == 0,
                            PrependScheme::Never => false,
                        };
                        metaspace(piece, *replacement, prepend, *split, out);
                    });
                }
            }
        }
    }
}

/// Pieces that are written anew.
struct Respelled<'r, 't> {
    rewrite: &'r mut crate::normalizer::normalized::Rewrite<'t>,
    pieces: Vec<Range<usize>>,
    /// Where the piece that is being written began.
    start: usize,
}

impl Respelled<'_, '_> {
    /// What was written since the last end is a piece.
    fn end_piece(&mut self) {
        let end = self.rewrite.len();
        if self.start < end {
            self.pieces.push(self.start..end);
        }
        self.start = end;
    }
}

/// Writes all pieces anew; `write` gets each with its start.
fn respell(
    text: &mut Normalized<'_>,
    pieces: &mut Vec<Range<usize>>,
    mut write: impl FnMut(&str, usize, &mut Respelled<'_, '_>),
) {
    let mut respelled = Vec::with_capacity(pieces.len());
    text.rewrite(|rewrite| {
        let old = rewrite.rest();
        let mut out = Respelled { rewrite, pieces: std::mem::take(&mut respelled), start: 0 };
        let mut end = 0;
        for piece in pieces.iter() {
            out.rewrite.skip(piece.start - end);
            write(&old[piece.clone()], piece.start, &mut out);
            end = piece.end;
        }
        respelled = out.pieces;
    });
    *pieces = respelled;
}

/// Writes the bytes of a piece as characters.
fn spell(piece: &str, out: &mut Respelled<'_, '_>) {
    for c in piece.chars() {
        let mut utf8 = [0; 4];
        for (idx, &byte) in c.encode_utf8(&mut utf8).as_bytes().iter().enumerate() {
            let spelled = alphabet::byte_to_char(byte);
            if idx == 0 { out.rewrite.replace(spelled, c.len_utf8()) } else { out.rewrite.insert(spelled) }
        }
    }
    out.end_piece();
}

/// Writes one piece with visible spaces, cut before each of them.
fn metaspace(piece: &str, replacement: char, prepend: bool, split: bool, out: &mut Respelled<'_, '_>) {
    if prepend && !piece.starts_with([' ', replacement]) {
        out.rewrite.replace(replacement, 0);
    }
    let mut spelled = [0; 4];
    let spelled = replacement.encode_utf8(&mut spelled).as_bytes();
    let bytes = piece.as_bytes();
    let mut done = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let len = match byte {
            b' ' => 1,
            _ if byte == spelled[0] && bytes[at..].starts_with(spelled) => spelled.len(),
            _ => continue,
        };
        out.rewrite.keep(at - done);
        if split {
            out.end_piece();
        }
        out.rewrite.replace(replacement, len);
        done = at + len;
    }
    out.rewrite.keep(piece.len() - done);
    out.end_piece();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> PreTokenizerSpec {
        serde_json::from_str(json).expect(json)
    }

    fn pieces(json: &str, text: &str, is_first: bool) -> Vec<String> {
        let mut normalized = Normalized::new(text);
        let mut pieces = Vec::new();
        spec(json).compile().unwrap().pre_tokenize(&mut normalized, is_first, &mut pieces);
        pieces.into_iter().map(|piece| normalized.text()[piece].to_owned()).collect()
    }

    const BYTES: &str =
        r#"{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}"#;

    #[test]
    fn a_space_goes_only_before_the_very_first_text() {
        let json = r#"{"type":"Metaspace","replacement":"_","prepend_scheme":"first","split":true}"#;
        assert_eq!(pieces(json, "a  b", true), ["_a", "_", "_b"]);
        assert_eq!(pieces(json, "a", false), ["a"]);
        assert_eq!(pieces(json, " a", true), ["_a"]);
        assert_eq!(pieces(json, "", true), [""; 0]);
    }

    #[test]
    fn older_spellings_are_read_and_newer_ones_written() {
        let old = r#"{"type":"Metaspace","replacement":"_","str_rep":"_","add_prefix_space":true}"#;
        let new = r#"{"type":"Metaspace","replacement":"_","prepend_scheme":"always","split":true}"#;
        assert_eq!(serde_json::to_string(&spec(old)).unwrap(), new);
        assert_eq!(
            spec(r#"{"type":"Punctuation"}"#),
            spec(r#"{"type":"Punctuation","behavior":"Isolated"}"#)
        );
        assert_eq!(spec(r#"{"type":"FixedLength"}"#), spec(r#"{"type":"FixedLength","length":5}"#));
        let contradiction = r#"{"type":"Metaspace","replacement":"_","add_prefix_space":false}"#;
        assert!(spec(contradiction).compile().unwrap_err().to_string().contains("add_prefix_space"));
    }

    #[test]
    fn byte_level_models_are_recognised() {
        let bytes = spec(BYTES).compile().unwrap();
        assert_eq!((bytes.is_byte_level(), bytes.known_split()), (true, Some(Split::Gpt2)));
        let split = |split: Split, behavior: &str, invert: bool| {
            let pattern = serde_json::json!({"Regex": split.regex()});
            let split = serde_json::json!({"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert});
            spec(&split.to_string()).compile().unwrap().known_split()
        };
        assert_eq!(split(Split::O200k, "Isolated", false), Some(Split::O200k));
        assert_eq!(split(Split::O200k, "Removed", true), Some(Split::O200k));
        assert_eq!(split(Split::O200k, "Removed", false), None);
        assert_eq!(split(Split::Deepseek, "Isolated", true), Some(Split::Deepseek));
        assert_eq!(split(Split::Deepseek, "Removed", true), None, "numbers are removed");
        let sequence = format!(
            r#"{{"type":"Sequence","pretokenizers":[{{"type":"Digits","individual_digits":true}},{BYTES}]}}"#
        );
        let sequence = spec(&sequence).compile().unwrap();
        assert_eq!((sequence.is_byte_level(), sequence.known_split()), (true, None));
        let after =
            |step: &str| format!(r#"{{"type":"Sequence","pretokenizers":[{BYTES},{{"type":{step}}}]}}"#);
        for step in [r#""Metaspace","replacement":"_""#, r#""ByteLevel""#] {
            let error = spec(&after(step)).compile().unwrap_err().to_string();
            assert!(error.contains("after `ByteLevel`"), "{error}");
        }
        let digits = after(r#""Digits","individual_digits":false"#);
        assert!(spec(&digits).compile().unwrap().is_spelled());
        // U+00B3 stands for the byte B3 and is a number, so characters are cut in the middle.
        assert_eq!(pieces(&digits, "a1 \u{433}b", true), ["a", "1", "ĠÐ", "³", "b"]);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        for (json, named) in [
            (r#"{"type":"Jieba"}"#, "Jieba"),
            (r#"{"type":"Whitespace","more":1}"#, "`more`"),
            (r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"x":1}"#, "`x`"),
            (r#"{"type":"Digits"}"#, "`individual_digits`"),
            (r#"{"type":"Split","pattern":{"String":"a"},"behavior":"isolated","invert":false}"#, "isolated"),
        ] {
            let error = serde_json::from_str::<PreTokenizerSpec>(json).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
        assert!(spec(r#"{"type":"FixedLength","length":0}"#).compile().is_err());
        let look_behind =
            r#"{"type":"Split","pattern":{"Regex":"(?<=a)b"},"behavior":"Isolated","invert":false}"#;
        let error = spec(look_behind).compile().unwrap_err().to_string();
        assert!(error.contains("`(?<=a)b`") && error.contains("pre_tokenizer"), "{error}");
    }
}
