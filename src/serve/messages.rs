//! The field `messages`: read with errors that name the place, before the conversation's own reader sees it.

use std::collections::HashSet;

use serde_json::Value;
use tokenizer::chat::{Message, Role};

use super::error::{ApiError, shortened};
use super::fields::{Fields, Shape};

/// What a message may have: what it says, what answers of OpenAI's interface repeat, and what models think.
const MESSAGE: Shape = Shape {
    names: &[
        "role",
        "content",
        "name",
        "tool_calls",
        "tool_call_id",
        "reasoning_content",
        "refusal",
        "annotations",
        "audio",
        "function_call",
    ],
    // What OpenAI's clients add to an answer that they have read.
    ignored: &["parsed"],
    within: &[("content", &PART), ("tool_calls", &CALL)],
};
/// Of these, text alone is read; what the others hold is refused as what it is.
const PART: Shape =
    Shape { names: &["type", "text", "image_url", "input_audio", "file"], ignored: &[], within: &[] };
const CALL: Shape =
    Shape { names: &["id", "type", "function"], ignored: &["index"], within: &[("function", &CALLED)] };
const CALLED: Shape = Shape { names: &["name", "arguments"], ignored: &["parsed_arguments"], within: &[] };

/// Takes the field.
///
/// # Errors
/// If there are none, if one is no message of text, or if a tool answers what nobody asked.
pub fn take(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    fields.change("messages", |mut messages| {
        messages.as_array_mut().into_iter().flatten().for_each(as_text);
        messages
    });
    if let Some(messages) = fields.get("messages") {
        check(messages)?;
    }
    let messages: Vec<Message> =
        fields.take_shaped("messages", &MESSAGE)?.ok_or_else(|| ApiError::missing("messages"))?;
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "`messages` is empty: a conversation has at least one"));
    }
    let mut called = Called::default();
    for (i, message) in messages.iter().enumerate() {
        message.tool_calls.iter().filter_map(|call| call.id.as_deref()).for_each(|id| called.note(id));
        if message.role == Role::Tool {
            let place = format!("messages[{i}].tool_call_id");
            let id = message.tool_call_id.as_deref().ok_or_else(|| ApiError::missing(&place))?;
            called.check(&place, id)?;
        }
    }
    Ok(messages)
}

/// Calls of a conversation, by which results of tools are known.
#[derive(Debug, Default)]
pub struct Called(HashSet<String>);

impl Called {
    /// Notes a call.
    pub fn note(&mut self, id: &str) {
        self.0.insert(id.to_owned());
    }

    /// Whether what stands at `place` names a call that was noted.
    ///
    /// # Errors
    /// If it does not.
    pub fn check(&self, place: &str, id: &str) -> Result<(), ApiError> {
        if self.0.contains(id) {
            return Ok(());
        }
        let why = format!("`{place}` is `{}`: there is no such call before it", shortened(id));
        Err(ApiError::invalid(place, why).coded("invalid_value"))
    }
}

/// A refusal that comes back, of its own or as a part, is what was said; who only thought said nothing.
fn as_text(message: &mut Value) {
    let Value::Object(message) = message else { return };
    let is_there = |value: Option<&Value>| value.is_some_and(|value| !value.is_null());
    if message.get("role").is_some_and(|role| role == "assistant") && !is_there(message.get("content")) {
        let said = match message.get("refusal") {
            Some(Value::String(refusal)) => Some(refusal.clone()),
            _ => is_there(message.get("reasoning_content")).then(String::new),
        };
        message.extend(said.map(|said| ("content".to_owned(), said.into())));
    }
    let parts = message.get_mut("content").and_then(Value::as_array_mut);
    for part in parts.into_iter().flatten().filter_map(Value::as_object_mut) {
        if part.get("type").is_some_and(|kind| kind == "refusal")
            && let Some(refusal) = part.remove("refusal")
        {
            part.insert("type".into(), "text".into());
            part.insert("text".into(), refusal);
        }
    }
}

fn check(messages: &Value) -> Result<(), ApiError> {
    let error = |place: String, what: &str, code: &'static str| {
        let why = format!("`{place}` {what}");
        Err(ApiError::invalid(place, why).coded(code))
    };
    let wrong = |place: String, what: &str| error(place, what, "invalid_value");
    let wrong_type = |place: String, what: &str| error(place, what, "invalid_type");
    let Value::Array(messages) = messages else { return wrong_type("messages".into(), "must be a list") };
    for (i, message) in messages.iter().enumerate() {
        let place = |key: &str| format!("messages[{i}]{key}");
        let Value::Object(message) = message else {
            return wrong_type(place(""), "must be an object");
        };
        let value = |key: &str| message.get(key).filter(|value| !value.is_null());
        let Some(role) = value("role") else { return Err(ApiError::missing(&place(".role"))) };
        if serde_json::from_value::<Role>(role.clone()).is_err() {
            let what = "must be system, developer, user, assistant or tool";
            return wrong(place(".role"), &format!("is {}: {what}", shortened(&role.to_string())));
        }
        match value("content") {
            None if role == "assistant" && value("tool_calls").is_some() => {}
            None => return Err(ApiError::missing(&place(".content"))),
            Some(Value::String(_)) => {}
            Some(Value::Array(parts)) => {
                for (k, part) in parts.iter().enumerate() {
                    let part_place = |key: &str| place(&format!(".content[{k}]{key}"));
                    match (part["type"].as_str(), &part["text"]) {
                        (Some("text"), Value::String(_)) => {}
                        (Some("text"), _) => return wrong_type(part_place(".text"), "must be a string"),
                        (Some(kind @ ("image_url" | "input_audio" | "file")), _) => {
                            let what = format!("is {kind}: this server reads text alone");
                            return wrong(part_place(".type"), &what);
                        }
                        _ => return wrong(part_place(".type"), "must be text"),
                    }
                }
            }
            Some(_) => return wrong_type(place(".content"), "must be a string or a list of parts of text"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn taken(messages: &Value) -> Result<Vec<Message>, ApiError> {
        take(&mut Fields::read(json!({ "messages": messages }).to_string().as_bytes()).expect("an object"))
    }

    #[test]
    fn what_a_client_made_of_an_answer_comes_back() {
        let function = json!({ "name": "f", "arguments": "{}", "parsed_arguments": {} });
        let call = json!({ "id": "call_1", "type": "function", "index": 0, "function": function });
        let found = taken(&json!([
            { "role": "user", "content": [{ "type": "text", "text": "a", "image_url": null }] },
            { "role": "assistant", "content": null, "parsed": { "a": 1 }, "tool_calls": [call], "odd": null },
            { "role": "tool", "tool_call_id": "call_1", "content": "3" },
            { "role": "assistant", "content": [{ "type": "refusal", "refusal": "No." }] },
            { "role": "assistant", "content": null, "reasoning_content": "So" },
            { "role": "assistant", "refusal": "Never." },
        ]))
        .expect("messages");
        assert_eq!((&*found[0].content, &*found[2].content, &*found[3].content), ("a", "3", "No."));
        assert_eq!((&*found[4].content, &*found[5].content), ("", "Never."));
        assert_eq!(found[1].tool_calls[0].function.name, "f");
    }

    #[test]
    fn wrong_messages_are_named_by_their_place() {
        let user = |content: Value| json!([{ "role": "user", "content": content }]);
        for (messages, param) in [
            (json!(null), "messages"),
            (json!("x"), "messages"),
            (json!([]), "messages"),
            (json!(["x"]), "messages[0]"),
            (json!([{ "role": "robot", "content": "x" }]), "messages[0].role"),
            (json!([{ "content": "x" }]), "messages[0].role"),
            (json!([{ "role": "user" }]), "messages[0].content"),
            (json!([{ "role": "user", "refusal": "no" }]), "messages[0].content"),
            (json!([{ "role": "assistant", "content": null, "tool_calls": null }]), "messages[0].content"),
            (user(json!(5)), "messages[0].content"),
            (user(json!([{ "type": "text" }])), "messages[0].content[0].text"),
            (user(json!(["x"])), "messages[0].content[0].type"),
            (user(json!([{ "type": "image_url", "image_url": {} }])), "messages[0].content[0].type"),
            (json!([{ "role": "user", "content": "x", "odd": 1 }]), "messages[0].odd"),
            (json!([{ "role": "tool", "content": "x" }]), "messages[0].tool_call_id"),
            (json!([{ "role": "tool", "content": "x", "tool_call_id": "y" }]), "messages[0].tool_call_id"),
        ] {
            let error = taken(&messages).expect_err("wrong").body();
            assert_eq!(error["error"]["param"], param, "{messages}");
        }
    }
}
