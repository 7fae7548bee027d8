//! Messages, spelled as in OpenAI's interface.

use serde::{Deserialize, Serialize};

use super::json::Json;

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that hold for the whole conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool that the model called.
    Tool,
    /// Instructions of a program's author, which some templates tell from the system's.
    Developer,
}

impl Role {
    pub(crate) const ALL: [Self; 5] =
        [Self::System, Self::User, Self::Assistant, Self::Tool, Self::Developer];

    /// The role's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
            Self::Developer => "developer",
        }
    }

    /// The special token that starts the role's turns in our own format, which has none for tools and developers yet.
    pub const fn token(self) -> &'static str {
        match self {
            Self::System => "<|system|>",
            Self::User => "<|user|>",
            Self::Assistant => "<|assistant|>",
            Self::Tool => "<|tool|>",
            Self::Developer => "<|developer|>",
        }
    }
}

/// One turn of a conversation, spelled as in OpenAI's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "MessageJson")]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said. A list of parts of text is read as their concatenation.
    pub content: String,
    /// The tools that the assistant calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// The name of the speaker or of the tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the assistant thought before it answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            reasoning_content: None,
        }
    }

    /// The message as templates expect it: fields that are not set are absent, arguments are objects.
    pub(super) fn to_json(&self) -> Json {
        let mut fields = vec![
            ("role".to_owned(), Json::from(self.role.name())),
            ("content".to_owned(), Json::Str(self.content.clone())),
        ];
        let mut set =
            |name: &str, value: Option<Json>| fields.extend(value.map(|value| (name.to_owned(), value)));
        let text = |text: &Option<String>| text.clone().map(Json::Str);
        set("reasoning_content", text(&self.reasoning_content));
        let calls = || Json::List(self.tool_calls.iter().map(ToolCall::to_json).collect());
        set("tool_calls", (!self.tool_calls.is_empty()).then(calls));
        set("tool_call_id", text(&self.tool_call_id));
        set("name", text(&self.name));
        Json::Dict(fields)
    }
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolCall {
    /// What the tool's answer refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Always a function.
    #[serde(default, rename = "type")]
    pub kind: ToolKind,
    /// What is called.
    pub function: FunctionCall,
}

/// The kind of a tool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolKind {
    /// A function.
    #[default]
    Function,
}

/// A function with its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionCall {
    /// The function's name.
    pub name: String,
    /// An object, or JSON of one as text, which is how OpenAI's interface has it.
    pub arguments: Json,
}

impl ToolCall {
    fn to_json(&self) -> Json {
        // Templates walk the arguments; those that want text make it of them.
        let arguments = match &self.function.arguments {
            Json::Str(text) => match Json::parse(text) {
                Ok(object @ Json::Dict(_)) => object,
                _ => Json::Str(text.clone()),
            },
            arguments => arguments.clone(),
        };
        let function = vec![
            ("name".to_owned(), Json::Str(self.function.name.clone())),
            ("arguments".to_owned(), arguments),
        ];
        let mut fields: Vec<(String, Json)> =
            self.id.iter().map(|id| ("id".to_owned(), Json::Str(id.clone()))).collect();
        fields.push(("type".to_owned(), Json::from("function")));
        fields.push(("function".to_owned(), Json::Dict(function)));
        Json::Dict(fields)
    }
}

/// A message as it may be spelled.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageJson {
    role: Role,
    content: Option<Content>,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
    #[serde(default)]
    tool_call_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    /// What the assistant says instead of an answer.
    #[serde(default)]
    refusal: Option<String>,
    // An answer of OpenAI's interface has these, so they come back; only those that say nothing are understood.
    #[serde(default, rename = "annotations")]
    _annotations: Option<[(); 0]>,
    #[serde(default, rename = "audio")]
    _audio: Option<()>,
    #[serde(default, rename = "function_call")]
    _function_call: Option<()>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
enum Part {
    Text { text: String },
}

impl TryFrom<MessageJson> for Message {
    type Error = &'static str;

    fn try_from(json: MessageJson) -> Result<Self, &'static str> {
        let tool_calls = json.tool_calls.unwrap_or_default();
        let content = match json.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts.into_iter().map(|Part::Text { text }| text).collect(),
            None if !tool_calls.is_empty() => String::new(),
            None if json.refusal.is_some() => json.refusal.unwrap_or_default(),
            None => return Err("missing field `content`: only a message with `tool_calls` may lack it"),
        };
        if json.role != Role::Assistant && !tool_calls.is_empty() {
            return Err("only the assistant may have `tool_calls`");
        }
        let MessageJson { role, tool_call_id, name, reasoning_content, .. } = json;
        Ok(Self { role, content, tool_calls, tool_call_id, name, reasoning_content })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Message, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn an_answer_can_be_sent_back_as_it_came() {
        let nothing = r#""refusal":null,"annotations":[],"audio":null,"function_call":null"#;
        let call = r#"{"id":"call_1","type":"function","function":{"name":"f","arguments":"{}"}}"#;
        let message =
            read(&format!(r#"{{"role":"assistant","content":null,"tool_calls":[{call}],{nothing}}}"#));
        assert_eq!(message.expect("a message").tool_calls[0].function.name, "f");
        let message =
            read(&format!(r#"{{"role":"assistant","content":"Yes.","tool_calls":null,{nothing}}}"#));
        assert_eq!(message.expect("a message"), Message::new(Role::Assistant, "Yes."));
        let refused = read(r#"{"role":"assistant","content":null,"refusal":"No."}"#);
        assert_eq!(refused.expect("a message").content, "No.");
        for more in
            [r#""annotations":[1]"#, r#""audio":{"id":"x"}"#, r#""function_call":{}"#, r#""else":null"#]
        {
            assert!(read(&format!(r#"{{"role":"assistant","content":"a",{more}}}"#)).is_err(), "{more}");
        }
    }
}
