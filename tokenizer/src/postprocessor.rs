//! Post-processors: the tokens that go around a text, or around two texts of a pair.
//!
//! [`PostProcessorSpec`] is the part of a `tokenizer.json` word for word; [`PostProcessor`] is the same as plain lists
//! of ids, checked against the vocabulary.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::pretokenizer::ByteLevelSpec;

/// The field of the file, for messages.
const PART: &str = "post_processor";

/// Most tokens and texts of a template; those in use have half a dozen. A name may stand for many tokens and stand many
/// times.
const MAX_PARTS: usize = 1000;

/// A post-processor as `tokenizer.json` spells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(crate) enum PostProcessorSpec {
    /// Several, one after the other.
    Sequence {
        /// The steps.
        processors: Vec<PostProcessorSpec>,
    },
    /// Leaves white space out of offsets.
    ByteLevel(ByteLevelSpec),
    /// Tokens and texts in a given order.
    TemplateProcessing {
        /// For one text.
        single: Vec<PieceSpec>,
        /// For two.
        pair: Vec<PieceSpec>,
        /// What the names in templates stand for.
        special_tokens: BTreeMap<String, SpecialSpec>,
    },
    /// BERT's: `[CLS]`, a text, `[SEP]`, another text, `[SEP]`.
    BertProcessing {
        /// The token after each text.
        sep: (String, u32),
        /// The token before all.
        cls: (String, u32),
    },
    /// RoBERTa's: the same with two separators between texts.
    RobertaProcessing {
        /// The token after each text.
        sep: (String, u32),
        /// The token before all.
        cls: (String, u32),
        /// Leaves white space out of offsets.
        #[serde(default = "yes")]
        trim_offsets: bool,
        /// Whether the pre-tokenizer puts a space before text that has none.
        #[serde(default = "yes")]
        add_prefix_space: bool,
    },
}

const fn yes() -> bool {
    true
}

/// One piece of a template as files spell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum PieceSpec {
    /// A text.
    Sequence {
        /// Which.
        id: SequenceId,
        /// The type of its tokens.
        type_id: u32,
    },
    /// Special tokens, by name.
    SpecialToken {
        /// The name.
        id: String,
        /// Their type.
        type_id: u32,
    },
}

/// A text of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SequenceId {
    /// The first.
    A,
    /// The second.
    B,
}

/// What a name in a template stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SpecialSpec {
    /// The name again.
    pub id: String,
    /// The ids.
    pub ids: Vec<u32>,
    /// The tokens of these ids.
    pub tokens: Vec<String>,
}

/// A post-processor ready to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PostProcessor {
    /// What goes around one text.
    pub single: Template,
    /// What goes around and between two texts; none if the file gives no order in which both stand once.
    pub pair: Option<Vec<Part>>,
    /// Whether offsets leave white space out; if so, whether the pre-tokenizer puts a space before the text.
    pub trim_offsets: Option<bool>,
}

/// What goes around a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Template {
    /// Ids before it, with their types.
    pub prefix: Vec<(u32, u32)>,
    /// Ids after it, with their types.
    pub suffix: Vec<(u32, u32)>,
    /// The type of its own tokens.
    pub type_id: u32,
}

/// A part of a pair, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A text and the type of its tokens.
    Text(SequenceId, u32),
    /// A special token and its type.
    Token(u32, u32),
}

impl PostProcessorSpec {
    /// Checks the part against the vocabulary and makes it ready. `id_of` looks a token up.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a template without exactly one text, for a name that is not explained, and for two
    /// templates in a sequence; [`Error::BadToken`] for a token with another id than the vocabulary gives it.
    pub(crate) fn compile(&self, id_of: impl Fn(&str) -> Option<u32>) -> Result<PostProcessor, Error> {
        let mut compiled = PostProcessor { pair: Some(plain_pair()), ..PostProcessor::default() };
        let mut n_templates = 0;
        self.compile_into(&id_of, &mut compiled, &mut n_templates)?;
        if n_templates > 1 {
            return Err(unsupported(format!("a sequence of {n_templates} templates"), "one"));
        }
        Ok(compiled)
    }

    fn compile_into(
        &self,
        id_of: &impl Fn(&str) -> Option<u32>,
        compiled: &mut PostProcessor,
        n_templates: &mut usize,
    ) -> Result<(), Error> {
        *n_templates += usize::from(!matches!(self, Self::Sequence { .. } | Self::ByteLevel(_)));
        match self {
            Self::Sequence { processors } => {
                for processor in processors {
                    processor.compile_into(id_of, compiled, n_templates)?;
                }
            }
            Self::ByteLevel(spec) => {
                compiled.trim_offsets =
                    spec.trim_offsets.then_some(spec.add_prefix_space).or(compiled.trim_offsets);
            }
            Self::TemplateProcessing { single, pair, special_tokens } => {
                let parts = |pieces: &[PieceSpec]| expand(pieces, special_tokens, id_of);
                compiled.single = template(&parts(single)?)?;
                let pair = parts(pair)?;
                let n_texts = |id| {
                    pair.iter().filter(|part| matches!(part, Part::Text(text, _) if *text == id)).count()
                };
                let is_pair = n_texts(SequenceId::A) == 1 && n_texts(SequenceId::B) == 1;
                compiled.pair = is_pair.then_some(pair);
            }
            Self::BertProcessing { sep, cls } => {
                let (sep, cls) = (checked(&sep.0, sep.1, id_of)?, checked(&cls.0, cls.1, id_of)?);
                compiled.single = Template { prefix: vec![(cls, 0)], suffix: vec![(sep, 0)], type_id: 0 };
                let [a, b] = [Part::Text(SequenceId::A, 0), Part::Text(SequenceId::B, 1)];
                compiled.pair =
                    Some(vec![Part::Token(cls, 0), a, Part::Token(sep, 0), b, Part::Token(sep, 1)]);
            }
            Self::RobertaProcessing { sep, cls, trim_offsets, add_prefix_space } => {
                let (sep, cls) = (checked(&sep.0, sep.1, id_of)?, checked(&cls.0, cls.1, id_of)?);
                compiled.trim_offsets = trim_offsets.then_some(*add_prefix_space).or(compiled.trim_offsets);
                compiled.single = Template { prefix: vec![(cls, 0)], suffix: vec![(sep, 0)], type_id: 0 };
                let [a, b] = [SequenceId::A, SequenceId::B].map(|id| Part::Text(id, 0));
                let sep = Part::Token(sep, 0);
                compiled.pair = Some(vec![Part::Token(cls, 0), a, sep, sep, b, sep]);
            }
        }
        Ok(())
    }
}

/// Without a template, the second text follows the first and has another type.
fn plain_pair() -> Vec<Part> {
    vec![Part::Text(SequenceId::A, 0), Part::Text(SequenceId::B, 1)]
}

/// A template with ids for names.
fn expand(
    pieces: &[PieceSpec],
    special_tokens: &BTreeMap<String, SpecialSpec>,
    id_of: &impl Fn(&str) -> Option<u32>,
) -> Result<Vec<Part>, Error> {
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let (name, type_id) = match piece {
            PieceSpec::Sequence { id, type_id } => {
                parts.push(Part::Text(*id, *type_id));
                continue;
            }
            PieceSpec::SpecialToken { id, type_id } => (id, *type_id),
        };
        let Some(special) = special_tokens.get(name) else {
            return Err(unsupported(format!("the name `{name}`"), "names that `special_tokens` explains"));
        };
        if special.ids.len() != special.tokens.len() {
            let found =
                format!("`{name}` with {} ids and {} tokens", special.ids.len(), special.tokens.len());
            return Err(unsupported(found, "as many of one as of the other"));
        }
        if parts.len() + special.ids.len() > MAX_PARTS {
            return Err(unsupported(format!("a template of more than {MAX_PARTS} tokens"), "shorter ones"));
        }
        for (&id, token) in special.ids.iter().zip(&special.tokens) {
            parts.push(Part::Token(checked(token, id, id_of)?, type_id));
        }
    }
    Ok(parts)
}

/// The template for one text.
fn template(parts: &[Part]) -> Result<Template, Error> {
    let mut template = Template::default();
    let mut n_texts = 0;
    for part in parts {
        match *part {
            Part::Token(id, type_id) if n_texts == 0 => template.prefix.push((id, type_id)),
            Part::Token(id, type_id) => template.suffix.push((id, type_id)),
            Part::Text(SequenceId::A, type_id) => {
                n_texts += 1;
                template.type_id = type_id;
            }
            Part::Text(SequenceId::B, _) => n_texts += 2,
        }
    }
    if n_texts != 1 {
        return Err(unsupported(
            "another `single` template".to_owned(),
            "one with the text `A` once and no `B`",
        ));
    }
    Ok(template)
}

/// The id of a token, which must be the vocabulary's.
fn checked(token: &str, id: u32, id_of: &impl Fn(&str) -> Option<u32>) -> Result<u32, Error> {
    let reason = match id_of(token) {
        Some(known) if known == id => return Ok(id),
        Some(_) => "of the post-processor has another id in the vocabulary",
        None => "of the post-processor is not in the vocabulary",
    };
    Err(Error::BadToken { token: token.to_owned(), id, reason })
}

fn unsupported(found: String, supported: &'static str) -> Error {
    Error::Unsupported { part: PART, found, supported }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLS_SEP: &str = r#"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"[CLS]","type_id":0}},
        {"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"[SEP]","type_id":0}}],"pair":[
        {"SpecialToken":{"id":"[CLS]","type_id":0}},{"Sequence":{"id":"A","type_id":0}},
        {"SpecialToken":{"id":"[SEP]","type_id":0}},{"Sequence":{"id":"B","type_id":1}},
        {"SpecialToken":{"id":"[SEP]","type_id":1}}],"special_tokens":{
        "[CLS]":{"id":"[CLS]","ids":[7],"tokens":["[CLS]"]},"[SEP]":{"id":"[SEP]","ids":[8],"tokens":["[SEP]"]}}}"#;

    fn id_of(token: &str) -> Option<u32> {
        [("[CLS]", 7), ("[SEP]", 8)].into_iter().find(|(name, _)| *name == token).map(|(_, id)| id)
    }

    fn compile(json: &str) -> Result<PostProcessor, Error> {
        serde_json::from_str::<PostProcessorSpec>(json).unwrap().compile(id_of)
    }

    #[test]
    fn a_template_says_what_berts_processor_says() {
        let template = compile(CLS_SEP).unwrap();
        assert_eq!(
            template,
            compile(r#"{"type":"BertProcessing","sep":["[SEP]",8],"cls":["[CLS]",7]}"#).unwrap()
        );
        assert_eq!(template.single, Template { prefix: vec![(7, 0)], suffix: vec![(8, 0)], type_id: 0 });
        assert_eq!(template.pair.unwrap()[3..], [Part::Text(SequenceId::B, 1), Part::Token(8, 1)]);
    }

    #[test]
    fn roberta_has_one_type_and_two_separators() {
        let json = r#"{"type":"RobertaProcessing","sep":["[SEP]",8],"cls":["[CLS]",7],"trim_offsets":true,
            "add_prefix_space":false}"#;
        let roberta = compile(json).unwrap();
        let sep = Part::Token(8, 0);
        assert_eq!(roberta.pair.unwrap()[2..], [sep, sep, Part::Text(SequenceId::B, 0), sep]);
        assert_eq!(roberta.trim_offsets, Some(false));
    }

    #[test]
    fn a_sequence_joins_offsets_and_one_template() {
        let bytes = r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}"#;
        let both = compile(&format!(r#"{{"type":"Sequence","processors":[{bytes},{CLS_SEP}]}}"#)).unwrap();
        assert_eq!((both.single.prefix, both.trim_offsets), (vec![(7, 0)], Some(true)));
        let plain = compile(bytes).unwrap();
        assert_eq!((plain.single, plain.pair), (Template::default(), Some(plain_pair())));
        let twice =
            compile(&format!(r#"{{"type":"Sequence","processors":[{CLS_SEP},{CLS_SEP}]}}"#)).unwrap_err();
        assert!(twice.to_string().contains("2 templates"), "{twice}");
    }

    #[test]
    fn what_does_not_fit_the_vocabulary_is_refused() {
        for (wrong, named) in [
            (CLS_SEP.replace("[7]", "[9]"), "`[CLS]` (id 9)"),
            (CLS_SEP.replace(r#"["[SEP]"]"#, r#"["[END]"]"#), "`[END]` (id 8)"),
            (CLS_SEP.replace(r#""id":"A""#, r#""id":"B""#), "`single`"),
            (CLS_SEP.replace("[8]", "[8,8]"), "2 ids and 1 tokens"),
            (
                CLS_SEP
                    .replace("[8]", &format!("[{}]", vec!["8"; 400].join(",")))
                    .replace(r#"["[SEP]"]"#, &format!("[{}]", vec![r#""[SEP]""#; 400].join(",")))
                    .replacen(
                        r#"{"Sequence""#,
                        &format!(
                            "{}{{\"Sequence\"",
                            r#"{"SpecialToken":{"id":"[SEP]","type_id":0}},"#.repeat(3)
                        ),
                        1,
                    ),
                "more than 1000 tokens",
            ),
            (CLS_SEP.replace(r#""id":"[CLS]","type_id""#, r#""id":"[cls]","type_id""#), "`[cls]`"),
        ] {
            let error = compile(&wrong).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
    }
}
