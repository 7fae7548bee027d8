//! Post-processors: the tokens that go around a text.
//!
//! [`PostProcessorSpec`] is the part of a `tokenizer.json` word for word; [`Around`] is what it says about one text, as
//! plain lists of ids that are checked against the vocabulary. Pairs of texts and types of tokens are not made here.

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

/// What goes around a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Around {
    pub prefix: Vec<u32>,
    pub suffix: Vec<u32>,
}

/// A part of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Text(SequenceId),
    Token(u32),
}

impl PostProcessorSpec {
    /// Checks the part against the vocabulary and makes it ready. `id_of` looks a token up.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a template without exactly one text, for a name that is not explained, and for two
    /// templates in a sequence; [`Error::BadToken`] for a token with another id than the vocabulary gives it.
    pub(crate) fn compile(&self, id_of: impl Fn(&str) -> Option<u32>) -> Result<Around, Error> {
        let mut templates = Vec::new();
        self.compile_into(&id_of, &mut templates)?;
        if templates.len() > 1 {
            return Err(unsupported(format!("a sequence of {} templates", templates.len()), "one"));
        }
        Ok(templates.pop().unwrap_or_default())
    }

    fn compile_into(
        &self,
        id_of: &impl Fn(&str) -> Option<u32>,
        templates: &mut Vec<Around>,
    ) -> Result<(), Error> {
        match self {
            Self::Sequence { processors } => {
                return processors.iter().try_for_each(|processor| processor.compile_into(id_of, templates));
            }
            // It concerns offsets alone, and ours leave no white space out.
            Self::ByteLevel(_) => {}
            Self::TemplateProcessing { single, pair, special_tokens } => {
                // Pairs are not made here, but a name that nothing explains is a broken file.
                expand(pair, special_tokens, id_of)?;
                templates.push(around(&expand(single, special_tokens, id_of)?)?);
            }
            Self::BertProcessing { sep, cls } | Self::RobertaProcessing { sep, cls, .. } => {
                let (sep, cls) = (checked(&sep.0, sep.1, id_of)?, checked(&cls.0, cls.1, id_of)?);
                templates.push(Around { prefix: vec![cls], suffix: vec![sep] });
            }
        }
        Ok(())
    }
}

/// A template with ids for names.
fn expand(
    pieces: &[PieceSpec],
    special_tokens: &BTreeMap<String, SpecialSpec>,
    id_of: &impl Fn(&str) -> Option<u32>,
) -> Result<Vec<Part>, Error> {
    let mut parts = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let name = match piece {
            PieceSpec::Sequence { id, .. } => {
                parts.push(Part::Text(*id));
                continue;
            }
            PieceSpec::SpecialToken { id, .. } => id,
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
            parts.push(Part::Token(checked(token, id, id_of)?));
        }
    }
    Ok(parts)
}

/// What the template for one text puts around it.
fn around(parts: &[Part]) -> Result<Around, Error> {
    let ids = |parts: &[Part]| -> Option<Vec<u32>> {
        parts.iter().map(|part| if let Part::Token(id) = part { Some(*id) } else { None }).collect()
    };
    let text = parts.iter().position(|&part| part == Part::Text(SequenceId::A));
    let both = text.and_then(|text| Some((ids(&parts[..text])?, ids(&parts[text + 1..])?)));
    let Some((prefix, suffix)) = both else {
        return Err(unsupported(
            "another `single` template".to_owned(),
            "one with the text `A` once and no `B`",
        ));
    };
    Ok(Around { prefix, suffix })
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

    fn compile(json: &str) -> Result<Around, Error> {
        serde_json::from_str::<PostProcessorSpec>(json).unwrap().compile(id_of)
    }

    #[test]
    fn a_template_says_what_the_processors_of_models_say() {
        let around = Around { prefix: vec![7], suffix: vec![8] };
        let roberta = r#"{"type":"RobertaProcessing","sep":["[SEP]",8],"cls":["[CLS]",7],"trim_offsets":true,
            "add_prefix_space":false}"#;
        for json in [CLS_SEP, r#"{"type":"BertProcessing","sep":["[SEP]",8],"cls":["[CLS]",7]}"#, roberta] {
            assert_eq!(compile(json).unwrap(), around, "{json}");
        }
    }

    #[test]
    fn a_sequence_has_one_template() {
        let bytes = r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}"#;
        let both = compile(&format!(r#"{{"type":"Sequence","processors":[{bytes},{CLS_SEP}]}}"#)).unwrap();
        assert_eq!(both, compile(CLS_SEP).unwrap());
        assert_eq!(compile(bytes).unwrap(), Around::default());
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
