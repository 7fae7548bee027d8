//! What a request says about the form of its answer: `response_format`, and vLLM's fields for more.
//!
//! `structured_outputs` holds one of `json`, `regex`, `choice` and `grammar`; `guided_json` and so on are the older names of
//! the same. Grammars are in Lark's notation.

use std::sync::OnceLock;

use infer::constrain::Source;
use infer::{Grammar, Vocabulary};
use serde_json::{Map, Value};

use super::error::{ApiError, shortened};
use super::fields::{Fields, Shape};
use super::models::Served;

/// A model's tokens as grammars see them, once somebody asks for a grammar, and those that were asked for.
#[derive(Debug, Default)]
pub struct Grammars(OnceLock<Result<Vocabulary, String>>);

impl Served {
    /// What an answer must be, compiled; `param` is the field that says it. May take some seconds.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn grammar(&self, source: &Source, param: &str) -> Result<Grammar, ApiError> {
        self.compiled(source).map_err(|why| ApiError::invalid(param, format!("`{param}`: {why}")))
    }

    /// The same, and if it cannot be, only why.
    ///
    /// # Errors
    /// If it cannot be.
    pub fn compiled(&self, source: &Source) -> Result<Grammar, String> {
        let vocabulary = self.grammars.0.get_or_init(|| {
            let vocabulary = Vocabulary::new(&self.tokenizer, self.client.size().vocab_size);
            vocabulary.map_err(|error| error.to_string())
        });
        let vocabulary = vocabulary.as_ref().map_err(Clone::clone)?;
        vocabulary.grammar(source).map_err(|error| error.to_string())
    }
}

/// The kinds that `structured_outputs` may hold, and their older names.
const KINDS: [(&str, &str); 4] = [
    ("json", "guided_json"),
    ("regex", "guided_regex"),
    ("choice", "guided_choice"),
    ("grammar", "guided_grammar"),
];

/// What `response_format` may have.
const FORMAT: Shape =
    Shape { names: &["type", "json_schema"], ignored: &[], within: &[("json_schema", &NAMED)] };
const NAMED: Shape = Shape { names: &["name", "description", "schema", "strict"], ignored: &[], within: &[] };

/// What an answer must be, and the field that says so.
pub type Wanted = Option<(Source, &'static str)>;

/// Whether a request may bring something to compile.
pub fn is_wanted(fields: &Fields) -> bool {
    let newer = ["response_format", "structured_outputs", "tools", "text"];
    newer.into_iter().chain(KINDS.map(|(_, older)| older)).any(|name| fields.has(name))
}

/// Takes the fields of chat and completions.
///
/// # Errors
/// If one has a value that cannot be, or two say something.
pub fn take(fields: &mut Fields) -> Result<Wanted, ApiError> {
    let mut wanted = response_format(fields)?.map(|source| (source, "response_format"));
    let mut set = |source: Source, field: &'static str| match wanted.replace((source, field)) {
        None => Ok(()),
        Some((_, other)) => {
            Err(ApiError::invalid(field, format!("`{field}` and `{other}` both say what the answer must be")))
        }
    };
    if let Some(object) = fields.take::<Map<String, Value>>("structured_outputs")? {
        let wrong = |why: String| ApiError::invalid("structured_outputs", why);
        let mut entries = object.into_iter().filter(|(_, value)| !value.is_null());
        let (kind, value) = entries.next().ok_or_else(|| wrong("`structured_outputs` is empty".into()))?;
        if entries.next().is_some() {
            return Err(wrong("`structured_outputs` has several fields: it can be but one of them".into()));
        }
        let source = source(&kind, value).map_err(|why| wrong(format!("`structured_outputs`: {why}")))?;
        set(source, "structured_outputs")?;
    }
    for (kind, field) in KINDS {
        if let Some(value) = fields.take::<Value>(field)? {
            let source =
                source(kind, value).map_err(|why| ApiError::invalid(field, format!("`{field}`: {why}")))?;
            set(source, field)?;
        }
    }
    Ok(wanted)
}

fn source(kind: &str, value: Value) -> Result<Source, String> {
    match (kind, value) {
        ("json", Value::String(schema)) => Ok(Source::JsonSchema(schema)),
        ("json", schema @ Value::Object(_)) => Ok(Source::JsonSchema(schema.to_string())),
        ("regex", Value::String(regex)) => Ok(Source::Regex(regex)),
        ("grammar", Value::String(lark)) => Ok(Source::Lark(lark)),
        ("choice", Value::Array(choices)) if !choices.is_empty() && choices.iter().all(Value::is_string) => {
            let choices: Vec<String> = choices.iter().map(Value::to_string).collect();
            Ok(Source::Lark(format!("start: {}", choices.join(" | "))))
        }
        ("json", _) => Err("`json` must be a schema".into()),
        ("regex" | "grammar", _) => Err(format!("`{kind}` must be a string")),
        ("choice", _) => Err("`choice` must be a list of strings".into()),
        (other, _) => Err(format!("`{}` is none of json, regex, choice and grammar", shortened(other))),
    }
}

/// Takes OpenAI's field for it.
///
/// # Errors
/// If it has a value that cannot be.
pub fn response_format(fields: &mut Fields) -> Result<Option<Source>, ApiError> {
    let format: Option<Map<String, Value>> = fields.take_shaped("response_format", &FORMAT)?;
    let Some(format) = format else { return Ok(None) };
    let wrong = |path: &str, why: String| ApiError::invalid(format!("response_format{path}"), why);
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Source::JsonObject)),
        Some("json_schema") => {
            let Some(Value::Object(object)) = format.get("json_schema") else {
                return Err(wrong(
                    ".json_schema",
                    "`json_schema` must be an object with `name` and `schema`".into(),
                ));
            };
            if !object.get("name").and_then(Value::as_str).is_some_and(is_name) {
                let why = "`name` must be 1 to 64 of the characters a-z, A-Z, 0-9, _ and -";
                return Err(wrong(".json_schema.name", why.into()));
            }
            match object.get("schema") {
                None | Some(Value::Null) => Ok(Some(Source::JsonObject)),
                Some(schema) => Ok(Some(Source::JsonSchema(schema.to_string()))),
            }
        }
        _ => Err(wrong(".type", "`type` must be `text`, `json_object` or `json_schema`".into())),
    }
}

/// Whether it may name a function or a schema.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(body: Value) -> Result<Wanted, Value> {
        let mut fields = Fields::read(body.to_string().as_bytes()).expect("an object");
        take(&mut fields).map_err(|error| error.body()["error"]["param"].clone())
    }

    #[test]
    fn each_field_says_one_thing() {
        let schema = json!({ "type": "integer" });
        let of_schema = Source::JsonSchema(schema.to_string());
        let format = |name: &str| json!({ "type": "json_schema", "json_schema": { "name": name, "schema": schema, "strict": true } });
        let cases = [
            (json!({}), None),
            (json!({ "response_format": { "type": "text" } }), None),
            (json!({ "response_format": { "type": "json_object" } }), Some(Source::JsonObject)),
            (json!({ "response_format": format("x-1_") }), Some(of_schema.clone())),
            (json!({ "guided_json": schema }), Some(of_schema.clone())),
            (json!({ "structured_outputs": { "json": schema, "regex": null } }), Some(of_schema)),
            (json!({ "guided_regex": "a+" }), Some(Source::Regex("a+".into()))),
            (
                json!({ "structured_outputs": { "grammar": "start: \"x\"" } }),
                Some(Source::Lark("start: \"x\"".into())),
            ),
            (json!({ "guided_choice": ["a\"", "b"] }), Some(Source::Lark(r#"start: "a\"" | "b""#.into()))),
        ];
        for (body, expected) in cases {
            let found = taken(body.clone()).expect("taken").map(|(source, _)| source);
            assert_eq!(found, expected, "{body}");
        }
        let wrong = [
            (json!({ "response_format": 1 }), "response_format"),
            (json!({ "response_format": { "type": "xml" } }), "response_format.type"),
            (json!({ "response_format": { "type": "text", "x": 1 } }), "response_format.x"),
            (json!({ "response_format": { "type": "json_schema" } }), "response_format.json_schema"),
            (json!({ "response_format": format("a b") }), "response_format.json_schema.name"),
            (
                json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "a", "x": 1 } } }),
                "response_format.json_schema.x",
            ),
            (json!({ "guided_regex": 3 }), "guided_regex"),
            (json!({ "guided_choice": [] }), "guided_choice"),
            (json!({ "structured_outputs": {} }), "structured_outputs"),
            (json!({ "structured_outputs": { "xml": "a" } }), "structured_outputs"),
            (json!({ "structured_outputs": { "regex": "a", "json": {} } }), "structured_outputs"),
            (json!({ "guided_regex": "a", "response_format": { "type": "json_object" } }), "guided_regex"),
        ];
        for (body, param) in wrong {
            assert_eq!(taken(body.clone()).expect_err("refused"), json!(param), "{body}");
        }
    }
}
