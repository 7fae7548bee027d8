//! What a response is asked for: messages, calls and their results, tools and forms.

use serde_json::{Map, Value, json};
use tokenizer::chat::json::Json;
use tokenizer::chat::{FunctionCall, Message, Role, ToolCall, ToolKind};

use crate::serve::error::{ApiError, shortened};
use crate::serve::fields::Fields;
use crate::serve::messages::Called;

/// Gives the fields of tools and forms the names and the shapes that chat has for them: what chat has in `function` and in
/// `json_schema` lies one level higher here, and `response_format` is `text.format`.
///
/// # Errors
/// If `text` says more than the form, or the form stands where chat has it.
pub fn as_chat(fields: &mut Fields) -> Result<(), ApiError> {
    if fields.has("response_format") {
        let why = "`response_format` is no field of this request: the form is `text.format` here";
        fields.refuse("response_format", why.to_owned())?;
        fields.ignore("response_format");
    }
    fields.change("tools", |mut tools| {
        tools.as_array_mut().into_iter().flatten().for_each(|tool| deepen(tool, "function"));
        tools
    });
    fields.change("tool_choice", |mut choice| {
        deepen(&mut choice, "function");
        choice
    });
    let Some(mut text) = fields.take::<Map<String, Value>>("text")? else { return Ok(()) };
    if let Some(mut format) = text.remove("format") {
        deepen(&mut format, "json_schema");
        fields.put("response_format", format);
    }
    text.iter().filter(|(_, value)| !value.is_null()).try_for_each(|(name, _)| {
        let place = format!("text.{}", shortened(name));
        fields.refuse(&place, format!("`{place}`: this server takes `text.format` alone"))
    })
}

/// The names of the fields of chat in an error, as they are here.
pub fn as_responses(error: ApiError) -> ApiError {
    let error = error.renamed("response_format.json_schema", "text.format");
    error.renamed("response_format", "text.format").renamed(".function", "")
}

/// Of an object whose `type` is `kind`, what there is besides goes into a field of that name.
fn deepen(value: &mut Value, kind: &str) {
    if let Value::Object(object) = value
        && object.get("type").is_some_and(|found| found == kind)
    {
        object.remove("type");
        *value = json!({ "type": kind, kind: std::mem::take(object) });
    }
}

/// The field `input`: a text, or a list of messages.
pub fn messages(input: Value, fields: &Fields) -> Result<Vec<Message>, ApiError> {
    match input {
        Value::String(text) => Ok(vec![Message::new(Role::User, text)]),
        Value::Array(items) if !items.is_empty() => {
            let (mut messages, mut called) = (Vec::new(), Called::default());
            for (i, item) in items.into_iter().enumerate() {
                add(Place { i, fields }, item, &mut messages, &mut called)?;
            }
            Ok(messages)
        }
        _ => Err(ApiError::invalid("input", "`input` must be a string or a list of messages, not empty")),
    }
}

/// An item of the input, for errors.
#[derive(Clone, Copy)]
struct Place<'a> {
    i: usize,
    fields: &'a Fields,
}

impl Place<'_> {
    fn of(self, key: &str) -> String {
        format!("input[{}]{key}", self.i)
    }

    fn wrong(self, key: &str, why: &str) -> ApiError {
        let place = self.of(key);
        ApiError::invalid(place.clone(), format!("`{place}` {why}"))
    }

    fn string(self, item: &mut Map<String, Value>, key: &str) -> Result<String, ApiError> {
        match item.remove(key) {
            Some(Value::String(text)) => Ok(text),
            None => Err(ApiError::missing(&self.of(&format!(".{key}")))),
            Some(_) => Err(self.wrong(&format!(".{key}"), "must be a string").coded("invalid_type")),
        }
    }

    /// A text, or a list of its parts.
    fn text(self, item: &mut Map<String, Value>, key: &str) -> Result<String, ApiError> {
        match item.remove(key) {
            Some(Value::String(text)) => Ok(text),
            Some(Value::Array(parts)) => parts
                .into_iter()
                .enumerate()
                .map(|(k, part)| text_of(&self.of(&format!(".{key}[{k}]")), part))
                .collect(),
            None => Err(ApiError::missing(&self.of(&format!(".{key}")))),
            Some(_) => {
                let what = "must be a string or a list of parts of text";
                Err(self.wrong(&format!(".{key}"), what).coded("invalid_type"))
            }
        }
    }

    /// Refuses what is left, but for what items of answers come back with.
    fn finish(self, mut item: Map<String, Value>) -> Result<(), ApiError> {
        for key in ["id", "status", "phase"] {
            item.remove(key);
        }
        item.keys().try_for_each(|key| {
            let place = self.of(&format!(".{}", shortened(key)));
            self.fields.unknown(&place, format!("`{place}` is no field of such an item"))
        })
    }
}

/// Adds an item, as a client makes it or as an answer had it. A call belongs to the assistant's message before it, if there
/// is one.
fn add(place: Place, item: Value, messages: &mut Vec<Message>, called: &mut Called) -> Result<(), ApiError> {
    let Value::Object(mut item) = item else { return Err(place.wrong("", "must be an object")) };
    item.retain(|_, value| !value.is_null());
    let kind = item.remove("type").unwrap_or_else(|| "message".into());
    match kind.as_str() {
        Some("message") => {
            let role = item.remove("role").ok_or_else(|| ApiError::missing(&place.of(".role")))?;
            let role: Role = serde_json::from_value(role)
                .ok()
                .filter(|role| *role != Role::Tool)
                .ok_or_else(|| place.wrong(".role", "must be user, assistant, system or developer"))?;
            messages.push(Message::new(role, place.text(&mut item, "content")?));
        }
        Some("function_call") => {
            let id = place.string(&mut item, "call_id")?;
            called.note(&id);
            let function = FunctionCall {
                name: place.string(&mut item, "name")?,
                arguments: Json::Str(place.string(&mut item, "arguments")?),
            };
            if messages.last().is_none_or(|last| last.role != Role::Assistant) {
                messages.push(Message::new(Role::Assistant, ""));
            }
            let calls = messages.last_mut().map(|last| &mut last.tool_calls);
            calls.expect("just added").push(ToolCall { id: Some(id), kind: ToolKind::Function, function });
        }
        Some("function_call_output") => {
            let id = place.string(&mut item, "call_id")?;
            let text = place.text(&mut item, "output")?;
            called.check(&place.of(".call_id"), &id)?;
            messages.push(Message { tool_call_id: Some(id), ..Message::new(Role::Tool, text) });
        }
        _ => {
            let kind = shortened(&kind.to_string());
            let why = format!("is {kind}: must be message, function_call or function_call_output");
            return Err(place.wrong(".type", &why));
        }
    }
    place.finish(item)
}

fn text_of(place: &str, part: Value) -> Result<String, ApiError> {
    let kind = part["type"].as_str().unwrap_or_default();
    match part["text"].as_str() {
        Some(text) if ["input_text", "output_text", "text"].contains(&kind) => Ok(text.to_owned()),
        _ => {
            let why =
                format!("`{place}` must be a part of text: `type` input_text or output_text, and `text`");
            Err(ApiError::invalid(place, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_as_text_or_items_or_what_an_answer_had() {
        let fields = Fields::read(b"{}").expect("an object");
        let of = |input: Value| messages(input, &fields).expect("messages");
        assert_eq!(of(json!("hi")), [Message::new(Role::User, "hi")]);
        let items = json!([
            { "role": "developer", "content": "be brief" },
            { "type": "message", "role": "user", "content": [
                { "type": "input_text", "text": "a" }, { "type": "input_text", "text": "b" } ] },
            { "type": "message", "id": "msg-1", "status": "completed", "role": "assistant", "content": [
                { "type": "output_text", "text": "c", "annotations": [], "logprobs": [] } ] },
        ]);
        let expected = [
            Message::new(Role::Developer, "be brief"),
            Message::new(Role::User, "ab"),
            Message::new(Role::Assistant, "c"),
        ];
        assert_eq!(of(items), expected);
    }

    #[test]
    fn calls_belong_to_the_message_before_them_and_results_to_calls() {
        let fields = Fields::read(b"{}").expect("an object");
        let call = |id: &str| json!({ "type": "function_call", "id": "fc", "call_id": id, "name": "f", "arguments": "{}", "status": "completed" });
        let result = |id: &str| json!({ "type": "function_call_output", "call_id": id, "output": "3" });
        let items = json!([
            call("a"), call("b"), result("a"), result("b"), { "role": "assistant", "content": "so" }, call("c"),
        ]);
        let found = messages(items, &fields).expect("messages");
        let ids = |message: &Message| -> Vec<String> {
            message.tool_calls.iter().filter_map(|call| call.id.clone()).collect()
        };
        let all: Vec<_> = found
            .iter()
            .map(|message| {
                (message.role, message.content.as_str(), ids(message), message.tool_call_id.as_deref())
            })
            .collect();
        let calls = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let expected = [
            (Role::Assistant, "", calls(&["a", "b"]), None),
            (Role::Tool, "3", vec![], Some("a")),
            (Role::Tool, "3", vec![], Some("b")),
            (Role::Assistant, "so", calls(&["c"]), None),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn tools_and_forms_get_the_shapes_of_chat() {
        let body = json!({
            "tools": [{ "type": "function", "name": "f", "parameters": {} }, { "type": "web_search" }],
            "tool_choice": { "type": "function", "name": "f" },
            "text": { "format": { "type": "json_schema", "name": "x", "schema": {} }, "verbosity": null },
        });
        let mut fields = Fields::read(body.to_string().as_bytes()).expect("an object");
        as_chat(&mut fields).expect("shapes");
        let mut take = |name: &str| fields.take::<Value>(name).expect("a value").expect("there");
        let function = json!({ "name": "f", "parameters": {} });
        assert_eq!(
            take("tools"),
            json!([{ "type": "function", "function": function }, { "type": "web_search" }])
        );
        assert_eq!(take("tool_choice"), json!({ "type": "function", "function": { "name": "f" } }));
        let form = json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": {} } });
        assert_eq!(take("response_format"), form);
        let mut more = Fields::read(br#"{"text": {"verbosity": "low"}}"#).expect("an object");
        assert_eq!(as_chat(&mut more).expect_err("refused").body()["error"]["param"], "text.verbosity");
        let mut of_chat = Fields::read(br#"{"response_format": {"type": "text"}}"#).expect("an object");
        assert_eq!(as_chat(&mut of_chat).expect_err("refused").body()["error"]["param"], "response_format");
        let error = as_responses(ApiError::invalid("tools[0].function.function", "no"));
        assert_eq!(error.body()["error"]["param"], "tools[0].function");
        let error = as_responses(ApiError::invalid("tools[0].function.name", "`tools[0].function.name`: no"));
        let error = error.body()["error"].clone();
        assert_eq!(
            (&error["param"], &error["message"]),
            (&json!("tools[0].name"), &json!("`tools[0].name`: no"))
        );
    }

    #[test]
    fn what_is_no_message_is_named_by_its_place() {
        let fields = Fields::read(b"{}").expect("an object");
        let user = |content: Value| json!([{ "role": "user", "content": content }]);
        for (input, param) in [
            (json!([]), "input"),
            (json!(3), "input"),
            (json!([3]), "input[0]"),
            (json!([{ "content": "x" }]), "input[0].role"),
            (json!([{ "role": "tool", "content": "x" }]), "input[0].role"),
            (json!([{ "type": "computer_call" }]), "input[0].type"),
            (json!([{ "type": "function_call_output", "output": "x" }]), "input[0].call_id"),
            (json!([{ "type": "function_call_output", "call_id": "a" }]), "input[0].output"),
            (json!([{ "type": "function_call", "call_id": "a", "name": "f" }]), "input[0].arguments"),
            (json!([{ "role": "user" }]), "input[0].content"),
            (json!([{ "role": "user", "content": "x", "odd": 1 }]), "input[0].odd"),
            (user(json!([{ "type": "input_image", "image_url": "x" }])), "input[0].content[0]"),
        ] {
            let error = messages(input.clone(), &fields).expect_err("wrong").body();
            assert_eq!(error["error"]["param"], param, "{input}");
        }
    }
}
