//! Writing `tokenizer.json`, in the field order and the defaults of Hugging Face's own files.

mod scored;

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, json};

use crate::build::SENTENCEPIECE;
use crate::definition::{AddedTokenDef, BpeDef, Merges, ModelDef, Truncation, UnigramRule};
use crate::tokenizer::Inner;
use crate::{Error, Tokenizer};
use scored::Parts;

/// The file's contents, indented as Hugging Face indents them.
pub(super) fn to_json(tokenizer: &Tokenizer) -> Result<String, Error> {
    let inner = tokenizer.inner();
    let def = &inner.def;
    let is_foreign = |part: &Option<Value>| part.as_ref().is_some_and(|part| part["type"] == SENTENCEPIECE);
    let parts = match &def.model {
        ModelDef::Bpe(bpe) if matches!(bpe.merges, Merges::Scored(_)) => scored::parts(inner, bpe)?,
        _ if is_foreign(&def.normalizer) || is_foreign(&def.decoder) => {
            return Err(unsupported("the normalizer of a sentencepiece model"));
        }
        _ => Parts {
            added: inner.pipeline.added.by_id().cloned().collect(),
            normalizer: def.normalizer.clone(),
            decoder: def.decoder.clone(),
        },
    };
    let mut post_processor = def.post_processor.clone().or_else(|| template(tokenizer));
    let mut parts = parts;
    for part in [&mut post_processor, &mut parts.normalizer, &mut parts.decoder] {
        part.iter_mut().for_each(Value::sort_all_objects);
    }
    let file = FileJson {
        version: "1.0",
        truncation: &def.truncation,
        padding: &def.padding,
        added_tokens: parts.added,
        normalizer: parts.normalizer,
        pre_tokenizer: &def.pre_tokenizer,
        post_processor,
        decoder: parts.decoder,
        model: model(inner)?,
    };
    let mut text = serde_json::to_string_pretty(&file).expect("strings and numbers always serialize");
    text.push('\n');
    Ok(text)
}

/// What goes around a text, where the file that it came from named ids in place of a post-processor.
fn template(tokenizer: &Tokenizer) -> Option<Value> {
    let (before, after) = tokenizer.around();
    let token = |id: &u32| tokenizer.id_to_token(*id).unwrap_or_default();
    let text = |name: &str, type_id: u32| -> Vec<Value> {
        let special = |id| json!({"SpecialToken": {"id": token(id), "type_id": type_id}});
        let text = json!({"Sequence": {"id": name, "type_id": type_id}});
        before.iter().map(special).chain([text]).chain(after.iter().map(special)).collect()
    };
    let ids = before.iter().chain(after);
    let named =
        ids.map(|id| (token(id).to_owned(), json!({"id": token(id), "ids": [id], "tokens": [token(id)]})));
    let named: serde_json::Map<String, Value> = named.collect();
    let pair = [text("A", 0), text("B", 1)].concat();
    (!named.is_empty()).then(|| {
        json!({
            "type": "TemplateProcessing",
            "single": text("A", 0),
            "pair": pair,
            "special_tokens": named,
        })
    })
}

/// What this format has no words for.
fn unsupported(found: impl Into<String>) -> Error {
    Error::Unsupported {
        part: "writing `tokenizer.json`",
        found: found.into(),
        supported: "what Hugging Face's parts express exactly",
    }
}

#[derive(serde::Serialize)]
struct FileJson<'a> {
    version: &'static str,
    truncation: &'a Option<Truncation>,
    padding: &'a Option<Value>,
    added_tokens: Vec<AddedTokenDef>,
    normalizer: Option<Value>,
    pre_tokenizer: &'a Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    model: ModelJson<'a>,
}

#[derive(serde::Serialize)]
#[serde(tag = "type")]
enum ModelJson<'a> {
    #[serde(rename = "BPE")]
    Bpe {
        dropout: Option<f32>,
        unk_token: Option<&'a str>,
        continuing_subword_prefix: Option<&'a str>,
        end_of_word_suffix: Option<&'a str>,
        fuse_unk: bool,
        byte_fallback: bool,
        ignore_merges: bool,
        vocab: VocabById<'a>,
        merges: Vec<MergeJson<'a>>,
    },
    Unigram {
        unk_id: Option<u32>,
        vocab: Vec<(&'a str, f64)>,
        byte_fallback: bool,
    },
    WordPiece {
        unk_token: &'a str,
        continuing_subword_prefix: &'a str,
        max_input_chars_per_word: usize,
        vocab: VocabById<'a>,
    },
    WordLevel {
        vocab: VocabById<'a>,
        unk_token: &'a str,
    },
}

/// The older of the two spellings, which every version reads, unless a token has a space in it.
#[derive(serde::Serialize)]
#[serde(untagged)]
enum MergeJson<'a> {
    Spaced(String),
    Pair(&'a str, &'a str),
}

/// Serializes as an object in order of id, as people expect to read it.
struct VocabById<'a>(&'a Inner);

impl VocabById<'_> {
    /// The tokens of the model: those that are not only added.
    fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        let inner = self.0;
        inner.vocab.iter().filter(|(_, id)| inner.added_only.binary_search(id).is_err())
    }
}

impl Serialize for VocabById<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.iter().count()))?;
        for (token, id) in self.iter() {
            map.serialize_entry(token, &id)?;
        }
        map.end()
    }
}

fn model(inner: &Inner) -> Result<ModelJson<'_>, Error> {
    let vocab = VocabById(inner);
    Ok(match &inner.def.model {
        ModelDef::Bpe(def) => bpe(inner, def)?,
        ModelDef::Char => ModelJson::Bpe {
            dropout: None,
            unk_token: None,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: false,
            byte_fallback: true,
            ignore_merges: false,
            vocab,
            merges: Vec::new(),
        },
        ModelDef::Unigram(def) if def.rule == UnigramRule::HuggingFace => ModelJson::Unigram {
            unk_id: def.unk_id,
            vocab: (0..)
                .zip(&def.scores)
                .map(|(id, &score)| (inner.vocab.token(id).unwrap_or_default(), score))
                .collect(),
            byte_fallback: def.byte_fallback,
        },
        ModelDef::Unigram(_) => return Err(unsupported("Unigram in single precision")),
        ModelDef::WordPiece(def) if def.word_start.is_empty() => ModelJson::WordPiece {
            unk_token: &def.unk_token,
            continuing_subword_prefix: &def.continuing_subword_prefix,
            max_input_chars_per_word: def.max_input_chars_per_word,
            vocab,
        },
        ModelDef::WordPiece(_) => return Err(unsupported("WordPiece with marked word starts")),
        ModelDef::WordLevel(def) => ModelJson::WordLevel { vocab, unk_token: &def.unk_token },
    })
}

fn bpe<'a>(inner: &'a Inner, def: &'a BpeDef) -> Result<ModelJson<'a>, Error> {
    let scored;
    let (unk_token, pairs) = match &def.merges {
        Merges::Ranked(pairs) => (def.unk_token.as_deref(), pairs),
        Merges::Scored(scores) => {
            scored = scored::ranked(inner, def, scores)?;
            (Some(scored.unk_token), &scored.merges)
        }
        Merges::ById => return Err(unsupported("merges by id")),
    };
    let spell = |id| inner.vocab.token(id).unwrap_or_default();
    // One spelling for all: Hugging Face reads no list of both.
    let has_space =
        pairs.iter().any(|&(left, right)| spell(left).contains(' ') || spell(right).contains(' '));
    let merge = |&(left, right): &(u32, u32)| match (spell(left), spell(right)) {
        (left, right) if has_space => MergeJson::Pair(left, right),
        (left, right) => MergeJson::Spaced(format!("{left} {right}")),
    };
    Ok(ModelJson::Bpe {
        dropout: None,
        unk_token,
        continuing_subword_prefix: def.continuing_subword_prefix.as_deref(),
        end_of_word_suffix: def.end_of_word_suffix.as_deref(),
        fuse_unk: def.fuse_unk,
        byte_fallback: def.byte_fallback,
        ignore_merges: def.ignore_merges,
        vocab: VocabById(inner),
        merges: pairs.iter().map(merge).collect(),
    })
}
