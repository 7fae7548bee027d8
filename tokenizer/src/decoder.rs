//! Decoders: how tokens, as they are spelled in the vocabulary, become text again.
//!
//! [`DecoderSpec`] is the part of a `tokenizer.json` word for word; [`Decoder`] is the same checked and ready to use,
//! and [`Decoder::decode`] gives what Hugging Face gives. Nearly all decoders in use are a table in disguise: each token
//! stands for the same bytes wherever it stands, but for the first. [`Decoder::per_token`] says so, and decoding is
//! then a look-up, and streaming is possible.
//!
//! One difference remains between the two ways. Where tokens of single bytes are not UTF-8, Hugging Face gives a
//! U+FFFD for each byte of the whole run; the table gives the bytes as they are, and what is not UTF-8 is replaced at
//! the end, if at all.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::pretokenizer::pattern::{Pattern, PatternSpec, check_growth};
use crate::pretokenizer::{ByteLevelSpec, MetaspaceSpec, PrependScheme};
use crate::{Error, alphabet};

/// The field of the file, for messages.
const PART: &str = "decoder";

/// How many times as long replacements may make a token, all steps together: every token of a vocabulary is kept
/// decoded. Files in use shorten them, from U+2581 to a space.
const MAX_GROWTH: usize = 16;

/// A decoder as `tokenizer.json` spells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(crate) enum DecoderSpec {
    /// Several, one after the other.
    Sequence {
        /// The steps.
        decoders: Vec<DecoderSpec>,
    },
    /// The alphabet of bytes.
    ByteLevel(ByteLevelSpec),
    /// Tokens such as `<0x41>` are bytes.
    ByteFallback {},
    /// Makes one token of all.
    Fuse {},
    /// Takes a character away at the ends of each token.
    Strip {
        /// The character.
        content: char,
        /// How many at the start, at most.
        start: usize,
        /// How many at the end, at most.
        stop: usize,
    },
    /// Replaces what matches in each token.
    Replace {
        /// What is replaced.
        pattern: PatternSpec,
        /// What takes its place.
        content: String,
    },
    /// SentencePiece's visible spaces.
    Metaspace(MetaspaceSpec),
    /// Tokens are words unless they have a prefix.
    WordPiece {
        /// The prefix of tokens that continue a word.
        prefix: String,
        /// Takes away spaces that English does not put.
        cleanup: bool,
    },
    /// Words end in a suffix.
    BPEDecoder {
        /// The suffix.
        suffix: String,
    },
    /// Speech models; refused when compiled.
    #[serde(rename = "CTC")]
    Ctc {
        /// The token that separates equal ones.
        pad_token: String,
        /// The token between words.
        word_delimiter_token: String,
        /// Takes away spaces that English does not put.
        cleanup: bool,
    },
}

/// A decoder ready to use.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    ByteLevel,
    ByteFallback,
    Fuse,
    Strip {
        content: char,
        start: usize,
        stop: usize,
    },
    Replace {
        pattern: Pattern,
        content: String,
    },
    Metaspace {
        replacement: char,
        drops_first: bool,
    },
    WordPiece {
        prefix: String,
        cleanup: bool,
    },
    BpeSuffix(String),
    /// Without a decoder, tokens stand with a space between.
    Spaces,
}

impl DecoderSpec {
    /// Checks the part and makes it ready.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a pattern that cannot be searched for, for replacements that only grow and for `CTC`.
    pub(crate) fn compile(&self) -> Result<Decoder, Error> {
        let mut steps = Vec::new();
        self.compile_into(&mut steps, self.n_patterns())?;
        let growth = steps.iter().map(Step::growth).fold(1, usize::saturating_mul);
        check_growth(growth, MAX_GROWTH, PART)?;
        Ok(Decoder { steps })
    }

    /// How many patterns there are to compile.
    fn n_patterns(&self) -> usize {
        match self {
            Self::Sequence { decoders } => decoders.iter().map(Self::n_patterns).sum(),
            Self::Replace { pattern, .. } => pattern.n_patterns(),
            _ => 0,
        }
    }

    fn compile_into(&self, steps: &mut Vec<Step>, n_patterns: usize) -> Result<(), Error> {
        steps.push(match self {
            Self::Sequence { decoders } => {
                return decoders.iter().try_for_each(|decoder| decoder.compile_into(steps, n_patterns));
            }
            Self::ByteLevel(_) => Step::ByteLevel,
            Self::ByteFallback {} => Step::ByteFallback,
            Self::Fuse {} => Step::Fuse,
            Self::Strip { content, start, stop } => {
                Step::Strip { content: *content, start: *start, stop: *stop }
            }
            Self::Replace { pattern, content } => Step::Replace {
                pattern: Pattern::compile(pattern, PART, n_patterns)?,
                content: content.clone(),
            },
            Self::Metaspace(spec) => {
                spec.check(PART)?;
                let drops_first = spec.prepend_scheme != PrependScheme::Never;
                Step::Metaspace { replacement: spec.replacement, drops_first }
            }
            Self::WordPiece { prefix, cleanup } => {
                Step::WordPiece { prefix: prefix.clone(), cleanup: *cleanup }
            }
            Self::BPEDecoder { suffix } => Step::BpeSuffix(suffix.clone()),
            Self::Ctc { .. } => {
                let found = "`CTC`, of speech models,".to_owned();
                return Err(Error::Unsupported {
                    part: PART,
                    found,
                    supported: "the decoders of text models",
                });
            }
        });
        Ok(())
    }
}

impl Decoder {
    /// What is done without a decoder: a space between tokens.
    pub(crate) fn spaces() -> Self {
        Self { steps: vec![Step::Spaces] }
    }

    /// The text of tokens, as Hugging Face gives it.
    pub(crate) fn decode<'a>(&self, tokens: impl IntoIterator<Item = &'a str>) -> String {
        let mut tokens: Vec<Cow<'a, str>> = tokens.into_iter().map(Cow::Borrowed).collect();
        for step in &self.steps {
            tokens = step.apply(tokens);
        }
        tokens.concat()
    }

    /// The decoder as a table, if each token stands for the same bytes wherever it stands, but for the first.
    pub(crate) fn per_token(&self) -> Option<PerToken<'_>> {
        let fused = self
            .steps
            .iter()
            .position(|step| matches!(step, Step::Fuse | Step::ByteLevel | Step::ByteFallback));
        let (each, rest) = self.steps.split_at(fused.unwrap_or(self.steps.len()));
        if each.iter().any(|step| matches!(step, Step::BpeSuffix(_))) {
            return None;
        }
        let (spelling, rest) = match rest {
            [Step::ByteLevel, rest @ ..] => (Spelling::Alphabet, rest),
            [Step::ByteFallback, Step::Fuse, rest @ ..] => (Spelling::Fallback, rest),
            [Step::ByteFallback] => (Spelling::Fallback, &[][..]),
            [Step::Fuse, rest @ ..] => (Spelling::Text, rest),
            [] => (Spelling::Text, rest),
            _ => return None,
        };
        let strip_start = match rest {
            [] | [Step::Fuse] => None,
            // A replacement character of invalid bytes could be stripped too, so only ASCII is safe.
            [Step::Strip { content, start, stop: 0 }] => Some((u8::try_from(*content).ok()?, *start)),
            _ => return None,
        };
        let strip_start = strip_start.filter(|&(_, n)| n > 0);
        if strip_start.is_some_and(|(byte, _)| !byte.is_ascii()) {
            return None;
        }
        Some(PerToken { each, spelling, strip_start })
    }
}

/// A decoder as a table: the text is the bytes of the tokens, end to end.
#[derive(Clone, Debug)]
pub(crate) struct PerToken<'d> {
    each: &'d [Step],
    spelling: Spelling,
    /// A byte that is taken away at the start of the whole, and how many of it at most.
    pub strip_start: Option<(u8, usize)>,
}

/// How the bytes of a token are spelled in the end.
#[derive(Clone, Copy, Debug)]
enum Spelling {
    Text,
    Alphabet,
    Fallback,
}

impl PerToken<'_> {
    /// Whether [`PerToken::bytes`] may differ for the first token.
    pub(crate) fn first_differs(&self) -> bool {
        let depends = |step: &Step| {
            matches!(step, Step::WordPiece { .. } | Step::Metaspace { drops_first: true, .. } | Step::Spaces)
        };
        self.each.iter().any(depends)
    }

    /// Whether tokens are spelled in the alphabet of bytes.
    pub(crate) fn is_alphabet(&self) -> bool {
        matches!(self.spelling, Spelling::Alphabet)
    }

    /// The bytes that a token stands for at the start of a text, or anywhere else.
    pub(crate) fn bytes(&self, token: &str, is_first: bool) -> Vec<u8> {
        let mut token = Cow::Borrowed(token);
        for step in self.each {
            token = step.apply_to(token, is_first);
        }
        match self.spelling {
            Spelling::Text => None,
            Spelling::Alphabet => alphabet::unspell(&token),
            Spelling::Fallback => fallback_byte(&token).map(|byte| vec![byte]),
        }
        .unwrap_or_else(|| token.into_owned().into_bytes())
    }
}

impl Step {
    /// How many times as long, at most, a token becomes by what the file says.
    fn growth(&self) -> usize {
        match self {
            Self::Replace { pattern, content } => pattern.growth(content),
            _ => 1,
        }
    }

    fn apply<'a>(&self, tokens: Vec<Cow<'a, str>>) -> Vec<Cow<'a, str>> {
        match self {
            Self::ByteLevel => {
                let bytes = |token: Cow<'a, str>| {
                    alphabet::unspell(&token).unwrap_or_else(|| token.into_owned().into_bytes())
                };
                let bytes: Vec<u8> = tokens.into_iter().flat_map(bytes).collect();
                vec![Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())]
            }
            Self::ByteFallback => fall_back(tokens),
            Self::Fuse => vec![Cow::Owned(tokens.concat())],
            Self::BpeSuffix(suffix) => {
                let last_idx = tokens.len().saturating_sub(1);
                let replaced = |(idx, token): (usize, Cow<'a, str>)| {
                    Cow::Owned(token.replace(suffix.as_str(), if idx == last_idx { "" } else { " " }))
                };
                tokens.into_iter().enumerate().map(replaced).collect()
            }
            _ => tokens.into_iter().enumerate().map(|(idx, token)| self.apply_to(token, idx == 0)).collect(),
        }
    }

    /// A step that looks at one token at a time.
    fn apply_to<'a>(&self, token: Cow<'a, str>, is_first: bool) -> Cow<'a, str> {
        match self {
            Self::Strip { content, start, stop } => strip(token, *content, *start, *stop),
            Self::Replace { pattern, content } => {
                let mut replaced = String::with_capacity(token.len());
                pattern.for_each(&token, |range, is_match| {
                    replaced.push_str(if is_match { content } else { &token[range] });
                });
                Cow::Owned(replaced)
            }
            Self::Metaspace { replacement, drops_first } => {
                let space = if is_first && *drops_first { "" } else { " " };
                if token.contains(*replacement) {
                    Cow::Owned(token.replace(*replacement, space))
                } else {
                    token
                }
            }
            Self::Spaces if !is_first => Cow::Owned(format!(" {token}")),
            Self::WordPiece { prefix, cleanup } => {
                let token = if is_first {
                    token
                } else if let Some(rest) = token.strip_prefix(prefix.as_str()) {
                    Cow::Owned(rest.to_owned())
                } else {
                    Cow::Owned(format!(" {token}"))
                };
                if *cleanup { Cow::Owned(clean_up(&token)) } else { token }
            }
            _ => token,
        }
    }
}

/// Joins runs of tokens that spell bytes. A run that is not UTF-8 becomes a U+FFFD for each byte.
fn fall_back(tokens: Vec<Cow<'_, str>>) -> Vec<Cow<'_, str>> {
    let mut joined = Vec::with_capacity(tokens.len());
    let mut run = Vec::new();
    for token in tokens {
        match fallback_byte(&token) {
            Some(byte) => run.push(byte),
            None => {
                end_run(&mut run, &mut joined);
                joined.push(token);
            }
        }
    }
    end_run(&mut run, &mut joined);
    joined
}

fn end_run(run: &mut Vec<u8>, joined: &mut Vec<Cow<'_, str>>) {
    if !run.is_empty() {
        let n_bytes = run.len();
        let text = String::from_utf8(std::mem::take(run)).unwrap_or_else(|_| "\u{fffd}".repeat(n_bytes));
        joined.push(Cow::Owned(text));
    }
}

/// The byte that a token spells, read as loosely as Hugging Face reads it: small digits count, and a sign.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Takes away up to `start` and `stop` characters that are `content` at the ends.
fn strip(token: Cow<'_, str>, content: char, start: usize, stop: usize) -> Cow<'_, str> {
    let n_first = token.chars().take(start).take_while(|&c| c == content).count();
    let rest = &token[n_first * content.len_utf8()..];
    let n_last = rest.chars().rev().take(stop).take_while(|&c| c == content).count();
    if n_first + n_last == 0 {
        return token;
    }
    Cow::Owned(rest[..rest.len() - n_last * content.len_utf8()].to_owned())
}

/// Takes away spaces that English does not put, in this order.
fn clean_up(token: &str) -> String {
    const REPLACEMENTS: [(&str, &str); 11] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REPLACEMENTS.iter().fold(token.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(json: &str) -> Decoder {
        serde_json::from_str::<DecoderSpec>(json).unwrap().compile().unwrap()
    }

    const LLAMA: &str = r#"{"type":"Sequence","decoders":[
        {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},
        {"type":"Strip","content":" ","start":1,"stop":0}]}"#;

    /// What the table gives, with the start stripped.
    fn by_table(decoder: &Decoder, tokens: &[&str]) -> Vec<u8> {
        let table = decoder.per_token().expect("a table");
        let bytes = tokens.iter().enumerate().flat_map(|(idx, token)| table.bytes(token, idx == 0));
        let mut bytes: Vec<u8> = bytes.collect();
        if let Some((byte, n)) = table.strip_start {
            let n_stripped = bytes.iter().take(n).take_while(|&&first| first == byte).count();
            bytes.drain(..n_stripped);
        }
        bytes
    }

    #[test]
    fn tables_give_what_decoding_gives() {
        let bert = r###"{"type":"WordPiece","prefix":"##","cleanup":true}"###;
        let bytes = r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}"#;
        let t5 = r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}"#;
        for (json, tokens) in [
            (LLAMA, &["", "▁▁a▁", "<0xE4>", "<0xBD>", "<0xa0>", "▁b", "<0x+1>"][..]),
            (LLAMA, &["▁", "▁", "<0xg0>"]),
            (bert, &["##a", "##b", ".", "n't", "c"]),
            (bytes, &["ĠÃ", "©", "é\u{ad}", "<|x|>"]),
            (t5, &["▁a▁b", "▁c", "<0x41>"]),
            ("", &["", "a", "", "b"]),
        ] {
            let decoder = if json.is_empty() { Decoder::spaces() } else { decoder(json) };
            let decoded = decoder.decode(tokens.iter().copied());
            assert_eq!(String::from_utf8_lossy(&by_table(&decoder, tokens)), decoded, "{json}");
        }
    }

    #[test]
    fn decoders_that_look_further_are_no_tables() {
        let fuse_first = r#"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteFallback"}]}"#;
        let replace_last = r#"{"type":"Sequence","decoders":[
            {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Replace","pattern":{"String":"ab"},"content":"c"}]}"#;
        for json in [fuse_first, replace_last, r#"{"type":"BPEDecoder","suffix":"</w>"}"#] {
            assert!(decoder(json).per_token().is_none(), "{json}");
        }
        assert!(!decoder(LLAMA).per_token().unwrap().first_differs());
        assert_eq!(Decoder::spaces().decode(["a", "b"]), "a b");
    }

    #[test]
    fn bytes_that_are_no_utf8_stay_bytes_in_tables() {
        let decoder = decoder(LLAMA);
        let tokens = ["<0xE4>", "<0xBD>", "a"];
        assert_eq!(decoder.decode(tokens), "\u{fffd}\u{fffd}a");
        assert_eq!(by_table(&decoder, &tokens), b"\xe4\xbda");
    }

    #[test]
    fn speech_decoders_are_refused_by_name() {
        let json = r#"{"type":"CTC","pad_token":"<pad>","word_delimiter_token":"|","cleanup":true}"#;
        let error = serde_json::from_str::<DecoderSpec>(json).unwrap().compile().unwrap_err();
        assert!(error.to_string().contains("`CTC`"), "{error}");
    }
}
