//! Tools: what a request offers, what the model may write then, and what becomes of it.
//!
//! While tools are offered, a grammar holds the answer: where the model must call, to calls alone; where it may, to text
//! until a call begins, and from there to its form. So names are those offered, and arguments are as their schema says.

use infer::constrain::{self, Source};
use infer::engine::Finished;
use infer::{FinishReason, Grammar};
use serde_json::{Value, json};
use tokenizer::Tokenizer;
use tokenizer::chat::json::Json;
use tokenizer::chat::{CallForm, CallPiece, CallReader, Message, Spelling};

use super::answer::Whole;
use super::constraint::{Wanted, is_name};
use super::error::{ApiError, shortened};
use super::fields::{Fields, Shape};
use super::models::Served;
use super::state::State;

/// Tools of a request.
const MAX_TOOLS: usize = 128;

/// Lines of why a schema cannot be: a pattern that is wrong is shown in the second.
const MAX_WHY_LINES: usize = 5;

/// What a tool may have.
const TOOL: Shape = Shape { names: &["type", "function"], ignored: &[], within: &[("function", &FUNCTION)] };
const FUNCTION: Shape =
    Shape { names: &["name", "description", "parameters", "strict"], ignored: &[], within: &[] };

/// What a request offers.
#[derive(Clone, Debug, Default)]
pub struct Tools {
    tools: Vec<Tool>,
    choice: Choice,
    parallel: bool,
}

#[derive(Clone, Debug)]
struct Tool {
    name: String,
    /// As the request has it, for the template.
    json: Json,
    /// Schema of the arguments.
    parameters: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Choice {
    None,
    #[default]
    Auto,
    Required,
    Named(String),
}

/// How an answer with calls is read.
#[derive(Clone, Debug)]
pub struct Reading {
    form: CallForm,
    /// A special token that begins calls, which is no text by itself.
    tag_id: Option<u32>,
    /// Whether the prompt ends with it.
    has_begun: bool,
}

impl Tools {
    /// Takes `tools`, `tool_choice` and `parallel_tool_calls`.
    ///
    /// # Errors
    /// The first field with a value that cannot be.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        // Of which type it is decides of the rest.
        for (i, tool) in fields.get("tools").and_then(Value::as_array).into_iter().flatten().enumerate() {
            let Some(tool) = tool.as_object() else { continue };
            let param = format!("tools[{i}].type");
            match tool.get("type") {
                Some(kind) if kind == "function" => {}
                None | Some(Value::Null) => return Err(ApiError::missing(&param)),
                Some(_) => return Err(ApiError::invalid(param, "the `type` of a tool must be `function`")),
            }
        }
        let list: Vec<Json> = fields.take_shaped("tools", &TOOL)?.unwrap_or_default();
        if list.len() > MAX_TOOLS {
            let message = format!("`tools` has {} entries: at most {MAX_TOOLS}", list.len());
            return Err(ApiError::invalid("tools", message));
        }
        let tools =
            list.into_iter().enumerate().map(|(i, json)| Tool::of(i, json)).collect::<Result<Vec<_>, _>>()?;
        for (i, tool) in tools.iter().enumerate() {
            if tools[..i].iter().any(|other| other.name == tool.name) {
                let param = format!("tools[{i}].function.name");
                return Err(ApiError::invalid(param, format!("two tools are named `{}`", tool.name)));
            }
        }
        let choice = choice(fields.take("tool_choice")?, &tools)?;
        let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
        Ok(Self { tools, choice, parallel })
    }

    /// Whether the model may call.
    pub fn are_offered(&self) -> bool {
        !self.tools.is_empty() && self.choice != Choice::None
    }

    /// What the template is given: the messages, and the tools if it knows such.
    pub fn rendered(&self, form: CallForm, messages: &[Message]) -> (Vec<Message>, Vec<Json>) {
        let tools: Vec<Json> = match self.are_offered() {
            true => self.tools.iter().map(|tool| tool.json.clone()).collect(),
            false => Vec::new(),
        };
        let messages = form.as_messages(messages, &tools);
        (messages, if form == CallForm::Told { Vec::new() } else { tools })
    }

    /// What the model may write: `answer`, or any text, or calls. The prompt's ids are added to where the first call's
    /// tag is a token that must come.
    ///
    /// # Errors
    /// If a schema cannot be enforced.
    pub fn grammar(
        &self,
        served: &Served,
        form: CallForm,
        answer: &Wanted,
        ids: &mut Vec<u32>,
    ) -> Result<(Grammar, Reading), ApiError> {
        let tag_id = form.spelling().tag.and_then(|tag| served.tokenizer.special_id(tag));
        let must_call = matches!(self.choice, Choice::Required | Choice::Named(_));
        let has_begun = must_call && tag_id.is_some();
        if has_begun {
            ids.extend(tag_id);
        }
        let lark = self.lark(form.spelling(), &served.tokenizer, must_call, answer)?;
        let grammar = served.compiled(&Source::Lark(lark.clone())).map_err(|why| self.wrong(&lark, &why))?;
        Ok((grammar, Reading { form, tag_id, has_begun }))
    }

    /// Why the grammar cannot be, by the tool whose schema it is. An error that is of one line of the grammar begins with
    /// `at LINE(COLUMN): `, and each schema has a line.
    fn wrong(&self, lark: &str, why: &str) -> ApiError {
        let found = why.strip_prefix("at ").and_then(|why| {
            let (place, why) = why.split_once("): ")?;
            let line: usize = place.split_once('(')?.0.parse().ok()?;
            let rule = lark.lines().nth(line.checked_sub(1)?)?.strip_prefix("tool_")?;
            let i: usize = rule.split_once(':')?.0.parse().ok()?;
            let lines = why.lines().map(str::trim).filter(|line| !line.is_empty());
            Some((i, lines.take(MAX_WHY_LINES).collect::<Vec<_>>().join(" ")))
        });
        let (param, why) = match found {
            Some((i, why)) => (format!("tools[{i}].function.parameters"), why),
            None => ("tools".to_owned(), why.to_owned()),
        };
        ApiError::invalid(param.clone(), format!("`{param}`: {why}"))
    }

    /// The grammar in Lark's notation.
    fn lark(
        &self,
        spelling: Spelling,
        tokenizer: &Tokenizer,
        must_call: bool,
        answer: &Wanted,
    ) -> Result<String, ApiError> {
        let Spelling { tag, open, key, close, end_tag, between, each_has_tag, last } = spelling;
        // A special token by its id, text as it is.
        let token = |text: &str| match tokenizer.special_id(text) {
            Some(id) => format!("<[{id}]>"),
            None => quoted(text),
        };
        let tag_id = tag.and_then(|tag| tokenizer.special_id(tag));
        let tag_rule = tag.map(token).unwrap_or_default();
        let named = |(_, tool): &(usize, &Tool)| match &self.choice {
            Choice::Named(name) => tool.name == *name,
            _ => true,
        };
        let (names, tools): (Vec<String>, Vec<&Tool>) =
            self.tools.iter().enumerate().filter(named).map(|(i, tool)| (format!("tool_{i}"), tool)).unzip();
        let mut lark = String::new();
        // The way to an end that is always known is text. So where the tag that ends a call is a token, the answer ends
        // with the object of the first call.
        let ends_early = end_tag.is_some_and(|tag| tokenizer.special_id(tag).is_some());
        let end = match end_tag {
            _ if ends_early => quoted(""),
            Some(tag) => quoted(&format!("{close}{tag}")),
            None => quoted(close),
        };
        lark.push_str(&format!(
            "call: {} ({}) {end}\n",
            quoted(if each_has_tag { open } else { "" }),
            names.join(" | ")
        ));
        let next = match between
            .filter(|_| self.parallel && !ends_early && !matches!(self.choice, Choice::Named(_)))
        {
            Some(between) if each_has_tag => format!(" ({} {tag_rule} call)*", quoted(between)),
            Some(between) => format!(" ({} call)*", quoted(between)),
            None => String::new(),
        };
        let first = if each_has_tag { "" } else { open };
        lark.push_str(&format!("calls: {} call{next} {}\n", quoted(first), quoted(last)));
        for (name, tool) in names.iter().zip(&tools) {
            let head = format!("{{\"name\": \"{}\", \"{key}\": ", tool.name);
            let schema = constrain::schema(&tool.parameters)
                .map_err(|error| ApiError::invalid("tools", error.to_string()))?;
            lark.push_str(&format!("{name}: {} %json {schema} \"}}\"\n", quoted(&head)));
        }
        if must_call {
            let tag = if tag_id.is_some() { "" } else { &tag_rule };
            return Ok(format!("start: {tag} calls\n{lark}"));
        }
        match answer {
            Some((source, field)) => {
                let schema = source.as_schema().map_err(|error| error.to_string());
                let only_json = || "with `tools`, an answer can be held to JSON alone".to_owned();
                let schema = schema.and_then(|schema| schema.ok_or_else(only_json));
                let schema = schema.map_err(|why| ApiError::invalid(*field, why))?;
                lark.push_str(&format!("answer: %json {schema}\n"));
                Ok(format!("start: answer | {tag_rule} calls\n{lark}"))
            }
            None => {
                lark.push_str("TEXT: /(.|\\n)+/\n");
                Ok(match (tag, tag_id) {
                    (None, _) => {
                        format!("start: other | calls | \"\"\nother: OTHER\nOTHER: /[^{{](.|\\n)*/\n{lark}")
                    }
                    (Some(_), Some(_)) => {
                        format!(
                            "start: \"\" | text | {tag_rule} calls | text {tag_rule} calls\ntext: TEXT\n{lark}"
                        )
                    }
                    (Some(_), None) => {
                        format!(
                            "start: \"\" | text | begin calls\ntext: TEXT\nbegin[lazy]: /(.|\\n)*/ {tag_rule}\n{lark}"
                        )
                    }
                })
            }
        }
    }
}

impl Tool {
    fn of(i: usize, json: Json) -> Result<Self, ApiError> {
        let place = |path: &str| format!("tools[{i}]{path}");
        let wrong = |path: &str, why: String| Err(ApiError::invalid(place(path), why));
        let wrong_type = |path: &str, what: &str| {
            let why = format!("`{}` must be {what}", place(path));
            Err(ApiError::invalid(place(path), why).coded("invalid_type"))
        };
        if !matches!(json, Json::Dict(_)) {
            return wrong_type("", "an object");
        }
        let function = match json.get("function") {
            Some(function @ Json::Dict(_)) => function,
            None => return Err(ApiError::missing(&place(".function"))),
            Some(_) => return wrong_type(".function", "an object"),
        };
        let name = match function.get("name") {
            Some(Json::Str(name)) => name,
            None => return Err(ApiError::missing(&place(".function.name"))),
            Some(_) => return wrong_type(".function.name", "a string"),
        };
        if !is_name(name) {
            return wrong(
                ".function.name",
                format!(
                    "the name `{}` must be 1 to 64 of the characters a-z, A-Z, 0-9, _ and -",
                    shortened(name)
                ),
            );
        }
        if !matches!(function.get("description"), None | Some(Json::Null | Json::Str(_))) {
            return wrong_type(".function.description", "a string");
        }
        if !matches!(function.get("strict"), None | Some(Json::Null | Json::Bool(_))) {
            return wrong_type(".function.strict", "true or false");
        }
        let parameters = match function.get("parameters") {
            // Whoever names none takes none.
            None | Some(Json::Null) => {
                json!({ "type": "object", "properties": {}, "additionalProperties": false })
            }
            Some(object @ Json::Dict(_)) => serde_json::to_value(object)
                .map_err(|error| ApiError::invalid(place(".function.parameters"), error.to_string()))?,
            Some(_) => return wrong_type(".function.parameters", "a JSON schema, which is an object"),
        };
        let parameters = match parameters.get("type").cloned() {
            Some(kind) if kind == "object" => parameters,
            None => {
                let mut parameters = parameters;
                parameters["type"] = json!("object");
                parameters
            }
            Some(kind) => {
                let kind = shortened(&kind.to_string());
                return wrong(
                    ".function.parameters",
                    format!("the `type` of `parameters` is {kind}: must be `object`"),
                );
            }
        };
        Ok(Self { name: name.to_owned(), parameters: parameters.to_string(), json })
    }
}

fn choice(value: Option<Value>, tools: &[Tool]) -> Result<Choice, ApiError> {
    let wrong = |why: String| Err(ApiError::invalid("tool_choice", why));
    let choice = match &value {
        None => return Ok(Choice::Auto),
        Some(Value::String(name)) => match &**name {
            "none" => Choice::None,
            "auto" => Choice::Auto,
            "required" => Choice::Required,
            _ => {
                return wrong(format!(
                    "`tool_choice` is `{}`: must be `none`, `auto`, `required` or a function",
                    shortened(name)
                ));
            }
        },
        Some(object) => {
            let name = object["function"]["name"].as_str();
            match name.filter(|_| object["type"] == "function") {
                Some(name) if tools.iter().any(|tool| tool.name == name) => Choice::Named(name.to_owned()),
                Some(name) => {
                    return wrong(format!(
                        "`tool_choice` names `{}`, which is none of the `tools`",
                        shortened(name)
                    ));
                }
                None => {
                    return wrong(
                        "`tool_choice` must be a string or {\"type\": \"function\", \"function\": {\"name\": …}}".into(),
                    );
                }
            }
        }
    };
    match (tools.is_empty(), &choice) {
        (true, Choice::Required | Choice::Named(_)) => wrong("`tool_choice` needs `tools`".into()),
        _ => Ok(choice),
    }
}

/// A string of Lark's notation.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Reads the answer of one choice.
#[derive(Debug)]
pub struct Calls {
    reader: CallReader,
    tag_id: Option<u32>,
    ids: Vec<String>,
}

impl Reading {
    /// A reader at the beginning of an answer.
    pub fn begin(&self) -> Calls {
        let mut reader = CallReader::new(self.form, self.tag_id.is_some());
        if self.has_begun {
            reader.begin_call();
        }
        Calls { reader, tag_id: self.tag_id, ids: Vec::new() }
    }
}

impl Calls {
    /// Takes a token and its text, and returns the deltas of the message that it makes; `id` names new calls.
    pub fn push(&mut self, token: u32, text: &str, id: impl FnMut() -> String) -> Vec<Value> {
        // Text of tokens before it may have become certain by it.
        let pieces = self.reader.push(text);
        if self.tag_id == Some(token) {
            self.reader.begin_call();
        }
        self.deltas(pieces, id)
    }

    /// Takes the last text.
    pub fn finish(&mut self, text: &str, mut id: impl FnMut() -> String) -> Vec<Value> {
        let mut pieces = self.reader.push(text);
        pieces.extend(self.reader.finish());
        self.deltas(pieces, &mut id)
    }

    /// Why the answer ended, if it ended for `reason`. Calls that had to be brief are calls.
    pub fn reason(&self, reason: FinishReason) -> &'static str {
        match reason {
            FinishReason::Stop | FinishReason::Cut if self.reader.has_whole_calls() => "tool_calls",
            reason => reason.name(),
        }
    }

    fn deltas(&mut self, pieces: Vec<CallPiece>, mut id: impl FnMut() -> String) -> Vec<Value> {
        let delta = |piece| match piece {
            CallPiece::Text(text) => json!({ "content": text }),
            CallPiece::Begin { name } => {
                let (index, id) = (self.ids.len(), id());
                self.ids.push(id.clone());
                let function = json!({ "name": name, "arguments": "" });
                json!({ "tool_calls": [{ "index": index, "id": id, "type": "function", "function": function }] })
            }
            CallPiece::Arguments(text) => {
                let index = self.ids.len().saturating_sub(1);
                json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] })
            }
        };
        pieces.into_iter().map(delta).collect()
    }
}

/// A name of a call, like no other.
pub fn call_id(state: &State) -> String {
    state.unique("call_")
}

/// The message of one choice, and why it ended.
pub fn message(
    choice: &Whole,
    finished: &Finished,
    reading: Option<&Reading>,
    state: &State,
) -> (Value, &'static str) {
    let reason = finished.reason;
    let Some(reading) = reading else {
        return (json!({ "role": "assistant", "content": choice.text, "refusal": null }), reason.name());
    };
    let (mut calls, mut deltas, mut at) = (reading.begin(), Vec::new(), 0);
    for &(id, end) in &choice.ids {
        deltas.extend(calls.push(id, &choice.text[at..end], || call_id(state)));
        at = end;
    }
    deltas.extend(calls.finish(&choice.text[at..], || call_id(state)));
    (sum(&deltas), calls.reason(reason))
}

/// The message that deltas add up to.
fn sum(deltas: &[Value]) -> Value {
    let (mut content, mut calls) = (String::new(), Vec::<Value>::new());
    for delta in deltas {
        content.push_str(delta["content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let more = call["function"]["arguments"].as_str().unwrap_or_default();
            if call.get("id").is_some() {
                let mut call = call.clone();
                call.as_object_mut().expect("an object").remove("index");
                calls.push(call);
            } else if let Some(last) = calls.last_mut() {
                let arguments = last["function"]["arguments"].as_str().unwrap_or_default().to_owned() + more;
                last["function"]["arguments"] = Value::from(arguments);
            }
        }
    }
    let content = if content.is_empty() && !calls.is_empty() { Value::Null } else { Value::from(content) };
    let mut message = json!({ "role": "assistant", "content": content, "refusal": null });
    if !calls.is_empty() {
        message["tool_calls"] = Value::from(calls);
    }
    message
}

#[cfg(test)]
mod tests {
    use infer::Vocabulary;
    use tokenizer::train::Trainer;
    use tokenizer::{END_OF_TEXT, Kind};

    use super::*;

    /// Bytes, and as special tokens what some families have.
    fn tokenizer() -> Tokenizer {
        let special = [END_OF_TEXT, "[TOOL_CALLS]"];
        Trainer::new(Kind::Bpe, 258).with_special_tokens(special).train(["a"]).expect("trained")
    }

    fn tools(body: Value) -> Tools {
        Tools::take(&mut Fields::read(body.to_string().as_bytes()).expect("an object")).expect("tools")
    }

    fn offered(more: Value) -> Tools {
        let city = json!({
            "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"],
            "additionalProperties": false,
        });
        let mut body = json!({ "tools": [
            { "type": "function", "function": { "name": "get", "parameters": city } },
            { "type": "function", "function": { "name": "now" } },
        ] });
        for (key, value) in more.as_object().expect("fields") {
            body[key] = value.clone();
        }
        tools(body)
    }

    #[test]
    fn a_schema_that_cannot_be_is_named_by_its_tool() {
        let tokenizer = tokenizer();
        let vocabulary = Vocabulary::new(&tokenizer, tokenizer.vocab_size()).expect("a vocabulary");
        let bad = json!({ "type": "object", "properties": { "x": { "type": "no" } } });
        let offered = |choice: Value| {
            tools(json!({ "tool_choice": choice, "tools": [
                { "type": "function", "function": { "name": "now" } },
                { "type": "function", "function": { "name": "get", "parameters": bad } },
            ] }))
        };
        let named = json!({ "type": "function", "function": { "name": "get" } });
        for choice in [json!("auto"), json!("required"), named] {
            for form in [CallForm::Hermes, CallForm::Llama, CallForm::Mistral] {
                let tools = offered(choice.clone());
                let must_call = choice != "auto";
                let lark = tools.lark(form.spelling(), &tokenizer, must_call, &None).expect("a grammar");
                let why = vocabulary.grammar(&Source::Lark(lark.clone())).expect_err("no type").to_string();
                let error = tools.wrong(&lark, &why).body()["error"].clone();
                assert_eq!(error["param"], "tools[1].function.parameters", "{why}");
                let message = error["message"].as_str().expect("words");
                assert!(message.contains("no") && !message.contains("at "), "{message}");
            }
        }
        let other = offered(json!("auto")).wrong("start: x", "too large").body();
        assert_eq!(
            (&other["error"]["param"], &other["error"]["message"]),
            (&json!("tools"), &json!("`tools`: too large"))
        );
    }

    /// How many bytes of a text can follow each other, and whether it may end after them. Special tokens count as text.
    fn follow(tools: &Tools, form: CallForm, answer: &Wanted, text: &str) -> (usize, bool) {
        let tokenizer = tokenizer();
        let must_call = matches!(tools.choice, Choice::Required | Choice::Named(_));
        let lark = tools.lark(form.spelling(), &tokenizer, must_call, answer).expect("a grammar");
        let vocabulary = Vocabulary::new(&tokenizer, tokenizer.vocab_size()).expect("a vocabulary");
        let grammar =
            vocabulary.grammar(&Source::Lark(lark.clone())).unwrap_or_else(|error| panic!("{error}: {lark}"));
        let mut constraint = grammar.begin();
        let mut n = 0;
        for id in tokenizer.encode_with_special(text) {
            if !constraint.accept(id, 1000).expect("not broken") {
                break;
            }
            n += tokenizer.decode(&[id]).map_or(1, |text| text.len());
        }
        if constraint.is_over() {
            return (n, true);
        }
        let stop = tokenizer.eos_id().expect("an end");
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        constraint.mask(&mut logits, &[stop]).expect("a mask");
        (n, logits[stop as usize] == 0.0)
    }

    #[test]
    fn from_its_tag_on_a_call_is_forced() {
        let all = |text: &str| (text.len(), true);
        let get = r#"{"name": "get", "arguments": {"city": "Bonn"}}"#;
        let now = r#"{"name": "now", "arguments": {}}"#;
        let one = format!("<tool_call>\n{get}\n</tool_call>");
        let two = format!("{one}\n<tool_call>\n{now}\n</tool_call>");
        let (auto, single) = (offered(json!({})), offered(json!({ "parallel_tool_calls": false })));
        let hermes = |tools: &Tools, text: &str| follow(tools, CallForm::Hermes, &None, text);
        for text in ["", "1 < 2 <tool_calls>\n<tool", &one, &two, &format!("It is 5\" or {{\n{two}")] {
            assert_eq!(hermes(&auto, text), all(text), "{text}");
        }
        assert_eq!(hermes(&single, &one), all(&one));
        assert_eq!(hermes(&single, &two), (one.len(), true));
        assert_eq!(hermes(&auto, "So <tool_call>\nno"), (15, false));
        assert_eq!(
            hermes(
                &auto,
                r#"<tool_call>
{"name": "got"#
            ),
            (23, false)
        );
        assert_eq!(
            hermes(&auto, &one.replace("\"Bonn\"", "3")),
            (one.find("Bonn").expect("there") - 1, false)
        );
        assert_eq!(hermes(&auto, &format!("{one} And so")), (one.len(), true));

        let required = offered(json!({ "tool_choice": "required" }));
        assert_eq!(hermes(&required, "Well"), (0, false));
        assert_eq!(hermes(&required, &two), all(&two));
        let named = offered(json!({ "tool_choice": { "type": "function", "function": { "name": "now" } } }));
        assert_eq!(hermes(&named, &one), ("<tool_call>\n{\"name\": \"".len(), false));
        let only = format!("<tool_call>\n{now}\n</tool_call>");
        assert_eq!(hermes(&named, &only), all(&only));

        let format = Some((Source::JsonSchema(json!({ "type": "integer" }).to_string()), "response_format"));
        assert_eq!(follow(&auto, CallForm::Hermes, &format, "1234"), all("1234"));
        assert_eq!(follow(&auto, CallForm::Hermes, &format, "So"), (0, false));
        assert_eq!(follow(&auto, CallForm::Hermes, &format, &one), all(&one));
    }

    #[test]
    fn llama_and_mistral_have_forms_of_their_own() {
        let auto = offered(json!({}));
        let llama = |text: &str| follow(&auto, CallForm::Llama, &None, text);
        let call = r#"{"name": "get", "parameters": {"city": "Bonn"}}"#;
        assert_eq!(llama(call), (call.len(), true));
        assert_eq!(llama("So {\"x\": 1}"), (11, true));
        assert_eq!(llama("{\"x\": 1}"), (2, false));
        assert_eq!(llama(&format!("{call}; {call}")), (call.len(), true));

        let mistral = |tools: &Tools, text: &str| follow(tools, CallForm::Mistral, &None, text);
        let calls = r#"[{"name": "now", "arguments": {}}, {"name": "get", "arguments": {"city": ""}}]"#;
        for text in
            [format!("[TOOL_CALLS]{calls}"), format!("Well.[TOOL_CALLS]{calls}"), "Well. [TOOL".to_owned()]
        {
            assert_eq!(mistral(&auto, &text), (text.len(), true), "{text}");
        }
        assert_eq!(mistral(&auto, "[TOOL_CALLS]no"), (12, false));
        // The prompt ends with the tag then.
        let required = offered(json!({ "tool_choice": "required" }));
        assert_eq!(mistral(&required, calls), (calls.len(), true));
    }

    #[test]
    fn deltas_add_up_to_the_message() {
        let reading = Reading { form: CallForm::Mistral, tag_id: Some(7), has_begun: false };
        let mut n = 0;
        let mut id = || {
            n += 1;
            format!("call_{n}")
        };
        let mut calls = reading.begin();
        let mut deltas = calls.push(1, "Well. ", &mut id);
        deltas.extend(calls.push(7, "", &mut id));
        for part in [
            "[{\"name\": \"get\", \"argum",
            "ents\": {\"city\"",
            ": \"\"}}, {\"name\": \"now\", \"arguments\": {}}",
        ] {
            deltas.extend(calls.push(1, part, &mut id));
        }
        deltas.extend(calls.finish("]", &mut id));
        let reason = |reason| calls.reason(reason);
        assert_eq!((reason(FinishReason::Stop), reason(FinishReason::Length)), ("tool_calls", "length"));
        assert_eq!(reason(FinishReason::Cut), "tool_calls");
        let call = |id: &str, name: &str, arguments: &str| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
        assert_eq!(
            sum(&deltas),
            json!({
                "role": "assistant", "content": "Well.", "refusal": null,
                "tool_calls": [call("call_1", "get", "{\"city\": \"\"}"), call("call_2", "now", "{}")],
            })
        );
    }
}
