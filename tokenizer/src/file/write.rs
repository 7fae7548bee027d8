//! Writing `tokenizer.json`, in the field order and the defaults of Hugging Face's own files.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, json};

use crate::Tokenizer;
use crate::tokenizer::Model;
use crate::{Split, vocab::Vocab};

/// The file's contents, indented as Hugging Face indents them.
pub(super) fn to_json(tokenizer: &Tokenizer) -> String {
    let (pre_tokenizer, decoder) = match tokenizer.model() {
        Model::Char(_) => (
            Value::Null,
            json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}),
        ),
        Model::Bpe { split, .. } => (pre_tokenizer(*split), byte_level(true)),
    };
    let file = FileJson {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: added_tokens(tokenizer),
        normalizer: None,
        pre_tokenizer,
        post_processor: None,
        decoder,
        model: model(tokenizer),
    };
    let mut text = serde_json::to_string_pretty(&file).expect("strings and numbers always serialize");
    text.push('\n');
    text
}

#[derive(serde::Serialize)]
struct FileJson<'a> {
    version: &'static str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: Option<()>,
    pre_tokenizer: Value,
    post_processor: Option<()>,
    decoder: Value,
    model: ModelJson<'a>,
}

#[derive(serde::Serialize)]
struct AddedToken<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(serde::Serialize)]
struct ModelJson<'a> {
    r#type: &'static str,
    dropout: Option<f32>,
    unk_token: Option<&'static str>,
    continuing_subword_prefix: Option<&'static str>,
    end_of_word_suffix: Option<&'static str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: VocabById<'a>,
    merges: Vec<String>,
}

/// Serializes as an object in order of id, as people expect to read it.
struct VocabById<'a>(&'a Vocab);

impl Serialize for VocabById<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, id) in self.0.iter() {
            map.serialize_entry(token, &id)?;
        }
        map.end()
    }
}

fn added_tokens(tokenizer: &Tokenizer) -> Vec<AddedToken<'_>> {
    let tokens = tokenizer.special().tokens().iter();
    tokens
        .map(|token| AddedToken {
            id: token.id,
            content: &token.content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: token.normalized,
            special: true,
        })
        .collect()
}

fn model(tokenizer: &Tokenizer) -> ModelJson<'_> {
    let vocab = tokenizer.vocab();
    let spell = |id| vocab.token(id).unwrap_or_default();
    let (byte_fallback, ignore_merges, pairs) = match tokenizer.model() {
        Model::Char(_) => (true, false, &[][..]),
        Model::Bpe { ignore_merges, bpe, .. } => (false, *ignore_merges, &bpe.merges[..]),
    };
    ModelJson {
        r#type: "BPE",
        dropout: None,
        unk_token: None,
        continuing_subword_prefix: None,
        end_of_word_suffix: None,
        fuse_unk: false,
        byte_fallback,
        ignore_merges,
        vocab: VocabById(vocab),
        // The older of the two spellings, which every version reads: byte-level tokens have no space in them.
        merges: pairs.iter().map(|&(left, right)| format!("{} {}", spell(left), spell(right))).collect(),
    }
}

fn pre_tokenizer(split: Split) -> Value {
    match split {
        Split::Gpt2 => byte_level(true),
        split => json!({
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": split.regex()}, "behavior": "Isolated", "invert": false},
                byte_level(false),
            ],
        }),
    }
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}
