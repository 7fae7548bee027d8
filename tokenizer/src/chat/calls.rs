//! How a model writes calls of tools, and how they are read back.
//!
//! Each family has a form of its own, which its chat template shows: [`CallForm::of`] looks there. A template that knows no
//! tools, or writes calls in a form that is not here, gets the tools as a message of the system instead, and calls and
//! results as text, in the form of Hermes and Qwen ([`CallForm::as_messages`]).
//!
//! What a model may write is forced by a grammar elsewhere; here are its fixed parts. [`CallReader`] takes text as it comes
//! apart into what is said and what is called.

use super::json::Json;
use super::{ChatFormat, FunctionCall, Message, Role, ToolCall};

/// The form of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallForm {
    /// `<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>`: Hermes, Qwen, Granite and more.
    Hermes,
    /// The same, with the tools told by a message: the template does not know them.
    Told,
    /// `{"name": "f", "parameters": {}}` as the whole answer: Llama 3.1 and later.
    Llama,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {}}]`: Mistral.
    Mistral,
}

/// The fixed text of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spelling {
    /// Tells the first call from what is said before it; none where a call is the whole answer.
    pub tag: Option<&'static str>,
    /// Between the tag and the object of a call.
    pub open: &'static str,
    /// The key of the arguments.
    pub key: &'static str,
    /// After the object of a call.
    pub close: &'static str,
    /// Ends a call, if it is a token of its own or text.
    pub end_tag: Option<&'static str>,
    /// Between calls, before the tag of the next if each has one; none if there is but one.
    pub between: Option<&'static str>,
    /// Whether each call has a tag, not only the first.
    pub each_has_tag: bool,
    /// After the last call.
    pub last: &'static str,
}

impl CallForm {
    /// The form of a model's calls, by its template.
    pub fn of(format: &ChatFormat) -> Self {
        let has = |text: &str| format.source().contains(text);
        match () {
            () if !has("tools") => Self::Told,
            // Calls whose arguments are elements of their own are another form.
            () if has("<tool_call>") && has("arguments") && !has("<function=") && !has("<arg_key>") => {
                Self::Hermes
            }
            () if has("[TOOL_CALLS]") && !has("[ARGS]") => Self::Mistral,
            () if has("ipython") && has("\"parameters\": ") => Self::Llama,
            () => Self::Told,
        }
    }

    /// Its fixed text.
    pub fn spelling(self) -> Spelling {
        let hermes = Spelling {
            tag: Some("<tool_call>"),
            open: "\n",
            key: "arguments",
            close: "\n",
            end_tag: Some("</tool_call>"),
            between: Some("\n"),
            each_has_tag: true,
            last: "",
        };
        match self {
            Self::Hermes | Self::Told => hermes,
            Self::Llama => Spelling {
                tag: None,
                open: "",
                key: "parameters",
                close: "",
                end_tag: None,
                between: None,
                each_has_tag: false,
                last: "",
            },
            Self::Mistral => Spelling {
                tag: Some("[TOOL_CALLS]"),
                open: "[",
                close: "",
                end_tag: None,
                between: Some(", "),
                each_has_tag: false,
                last: "]",
                ..hermes
            },
        }
    }

    /// The conversation as the template is to have it. With [`CallForm::Told`], tools, calls and results become text of
    /// the system, the assistant and the user; results that follow each other become one message.
    pub fn as_messages(self, messages: &[Message], tools: &[Json]) -> Vec<Message> {
        match self {
            Self::Hermes | Self::Llama => messages.to_vec(),
            Self::Mistral => short_ids(messages),
            Self::Told => told(messages, tools),
        }
    }
}

/// Mistral's templates take ids of nine letters and digits alone: each becomes its number.
fn short_ids(messages: &[Message]) -> Vec<Message> {
    let mut known: Vec<String> = Vec::new();
    let mut short = |id: &str| {
        let n = known.iter().position(|other| other == id).unwrap_or_else(|| {
            known.push(id.to_owned());
            known.len() - 1
        });
        format!("call{:05}", n % 100_000)
    };
    let mut messages = messages.to_vec();
    for message in &mut messages {
        for call in &mut message.tool_calls {
            call.id = Some(short(call.id.as_deref().unwrap_or_default()));
        }
        message.tool_call_id = message.tool_call_id.take().map(|id| short(&id));
    }
    messages
}

fn told(messages: &[Message], tools: &[Json]) -> Vec<Message> {
    let mut all: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    let mut follows_result = false;
    for message in messages {
        let is_result = message.role == Role::Tool;
        if is_result {
            let text = format!("<tool_response>\n{}\n</tool_response>", message.content);
            match all.last_mut().filter(|_| follows_result) {
                Some(last) => last.content = format!("{}\n{text}", last.content),
                None => all.push(Message::new(Role::User, text)),
            }
        } else {
            let mut text = message.clone();
            for call in std::mem::take(&mut text.tool_calls) {
                let between = if text.content.is_empty() { "" } else { "\n" };
                text.content = format!("{}{between}{}", text.content, written(&call));
            }
            all.push(text);
        }
        follows_result = is_result;
    }
    if tools.is_empty() {
        return all;
    }
    let list: Vec<String> = tools.iter().map(json_text).collect();
    let told = format!(
        "You may call functions to help with the request. These are their signatures:\n<tools>\n{}\n</tools>\n\n\
         To call one, answer with an object of its name and arguments between these tags:\n\
         <tool_call>\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>",
        list.join("\n")
    );
    match all.first_mut().filter(|first| first.role == Role::System) {
        Some(system) => system.content = format!("{}\n\n{told}", system.content),
        None => all.insert(0, Message::new(Role::System, told)),
    }
    all
}

fn written(call: &ToolCall) -> String {
    let FunctionCall { name, arguments } = &call.function;
    let arguments = match arguments {
        Json::Str(text) => text.clone(),
        arguments => json_text(arguments),
    };
    format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
}

fn json_text(json: &Json) -> String {
    serde_json::to_string(json).unwrap_or_default()
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallPiece {
    /// What is said.
    Text(String),
    /// A call begins.
    Begin {
        /// The function.
        name: String,
    },
    /// More of the arguments of the call that began last.
    Arguments(String),
}

/// Reads an answer as it comes. White space before a call is left out.
#[derive(Clone, Debug)]
pub struct CallReader {
    spelling: Spelling,
    /// Whether what stands before a call is told by [`begin_call`](Self::begin_call), and its spelling means nothing.
    tag_is_token: bool,
    held: String,
    state: State,
    /// Whether anything of the answer has been seen.
    has_begun: bool,
    depth: usize,
    in_string: bool,
    escaped: bool,
    n_calls: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    Head,
    Arguments,
    Between,
}

impl CallReader {
    /// A reader of answers in a form. Where the tag before calls is a token, text that spells it is text.
    pub fn new(form: CallForm, tag_is_token: bool) -> Self {
        Self {
            spelling: form.spelling(),
            tag_is_token,
            held: String::new(),
            state: State::Text,
            has_begun: false,
            depth: 0,
            in_string: false,
            escaped: false,
            n_calls: 0,
        }
    }

    /// Takes the token that stands before calls.
    pub fn begin_call(&mut self) {
        self.held.clear();
        self.state = State::Head;
    }

    /// Calls that have begun.
    pub fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// Whether there are calls, and all are whole.
    pub fn has_whole_calls(&self) -> bool {
        self.n_calls > 0 && self.state == State::Between
    }

    /// Takes more text and returns what is certain now.
    pub fn push(&mut self, text: &str) -> Vec<CallPiece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while let Some(piece) = self.step() {
            pieces.extend(piece);
        }
        pieces
    }

    /// The rest, when nothing more comes.
    pub fn finish(&mut self) -> Vec<CallPiece> {
        match self.state {
            State::Text if !self.held.is_empty() => vec![CallPiece::Text(std::mem::take(&mut self.held))],
            _ => Vec::new(),
        }
    }

    /// One step, and what is certain by it; `None` if it takes more text to go on.
    fn step(&mut self) -> Option<Option<CallPiece>> {
        if self.held.is_empty() {
            return None;
        }
        match self.state {
            State::Text => self.text(),
            State::Head => self.head(),
            State::Arguments => Some(Some(self.arguments())),
            State::Between => {
                // The object of the next call is the next brace that opens.
                let at = self.held.find('{').unwrap_or(self.held.len());
                self.held.drain(..at);
                (!self.held.is_empty()).then(|| {
                    self.state = State::Head;
                    None
                })
            }
        }
    }

    fn text(&mut self) -> Option<Option<CallPiece>> {
        let Some(tag) = self.spelling.tag else {
            if !self.has_begun && self.held.starts_with('{') {
                self.state = State::Head;
                return Some(None);
            }
            self.has_begun = true;
            return Some(Some(CallPiece::Text(std::mem::take(&mut self.held))));
        };
        if let Some(at) = self.held.find(tag).filter(|_| !self.tag_is_token) {
            let text = self.held[..at].trim_end().to_owned();
            self.held.drain(..at + tag.len());
            self.state = State::Head;
            return Some((!text.is_empty()).then_some(CallPiece::Text(text)));
        }
        let may_begin = |&n: &usize| !self.tag_is_token && self.held.ends_with(&tag[..n]);
        let begins = (1..tag.len()).rev().find(may_begin).unwrap_or(0);
        let certain = self.held[..self.held.len() - begins].trim_end().len();
        let rest = self.held.split_off(certain);
        let text = std::mem::replace(&mut self.held, rest);
        (!text.is_empty()).then_some(Some(CallPiece::Text(text)))
    }

    fn head(&mut self) -> Option<Option<CallPiece>> {
        const NAME: &str = "{\"name\": \"";
        let key = format!("\", \"{}\": ", self.spelling.key);
        let begin = self.held.find(NAME)? + NAME.len();
        let end = begin + self.held[begin..].find(&key)?;
        let name = self.held[begin..end].to_owned();
        self.held.drain(..end + key.len());
        self.state = State::Arguments;
        self.n_calls += 1;
        Some(Some(CallPiece::Begin { name }))
    }

    fn arguments(&mut self) -> CallPiece {
        let end = self.held.bytes().position(|byte| {
            let escaped = std::mem::replace(&mut self.escaped, false);
            match byte {
                b'\\' if self.in_string => self.escaped = !escaped,
                b'"' if !escaped => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    return self.depth == 0;
                }
                _ => {}
            }
            false
        });
        let rest = match end {
            Some(end) => {
                self.state = State::Between;
                self.held.split_off(end + 1)
            }
            None => String::new(),
        };
        CallPiece::Arguments(std::mem::replace(&mut self.held, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::ChatTemplate;
    use super::*;
    use crate::Tokenizer;

    fn format(source: &str) -> ChatFormat {
        let json = br#"{"version":"1.0","added_tokens":[{"id":1,"content":"</s>","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}],"model":{"type":"BPE","vocab":{"a":0,"</s>":1},"merges":[]}}"#;
        let tokenizer = Tokenizer::from_json(json).expect("a vocabulary");
        let names = vec![("eos_token".to_owned(), "</s>".to_owned())];
        ChatFormat::with_template(&tokenizer, ChatTemplate::new(source).expect("a template"), names)
            .expect("a format")
    }

    /// All pieces of an answer that comes `n` bytes at a time, those of the same kind joined.
    fn read(form: CallForm, answer: &str, n: usize) -> (Vec<CallPiece>, bool) {
        let mut reader = CallReader::new(form, false);
        let mut pieces = Vec::new();
        for chunk in answer.as_bytes().chunks(n) {
            pieces.extend(reader.push(std::str::from_utf8(chunk).expect("ASCII")));
        }
        pieces.extend(reader.finish());
        let mut joined: Vec<CallPiece> = Vec::new();
        for piece in pieces {
            match (joined.last_mut(), piece) {
                (Some(CallPiece::Text(last)), CallPiece::Text(more))
                | (Some(CallPiece::Arguments(last)), CallPiece::Arguments(more)) => last.push_str(&more),
                (_, piece) => joined.push(piece),
            }
        }
        (joined, reader.has_whole_calls())
    }

    #[test]
    fn where_the_tag_is_a_token_its_spelling_is_text() {
        let text = |text: &str| CallPiece::Text(text.to_owned());
        let mut reader = CallReader::new(CallForm::Mistral, true);
        assert_eq!(reader.push("[TOOL_CALLS] it says. "), [text("[TOOL_CALLS] it says.")]);
        reader.begin_call();
        let pieces = reader.push("[{\"name\": \"f\", \"arguments\": {}}]");
        assert_eq!(pieces, [CallPiece::Begin { name: "f".into() }, CallPiece::Arguments("{}".into())]);
        assert!(reader.has_whole_calls());
    }

    #[test]
    fn answers_come_apart_however_they_are_cut() {
        let text = |text: &str| CallPiece::Text(text.to_owned());
        let call = |name: &str, arguments: &str| {
            [CallPiece::Begin { name: name.to_owned() }, CallPiece::Arguments(arguments.to_owned())]
        };
        let f = r#"{"a": "}\"{", "b": [{}]}"#;
        let cases = [
            (CallForm::Hermes, "2 < 3 <tool".to_owned(), vec![text("2 < 3 <tool")], false),
            (
                CallForm::Hermes,
                format!(
                    "Let me.\n\n<tool_call>\n{{\"name\": \"f\", \"arguments\": {f}}}\n</tool_call>\n<tool_call>\n{{\"name\": \"g_1\", \"arguments\": {{}}}}\n</tool_call>"
                ),
                [vec![text("Let me.")], call("f", f).to_vec(), call("g_1", "{}").to_vec()].concat(),
                true,
            ),
            (
                CallForm::Told,
                "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a".to_owned(),
                call("f", "{\"a").to_vec(),
                false,
            ),
            (
                CallForm::Llama,
                format!("{{\"name\": \"f\", \"parameters\": {f}}}"),
                call("f", f).to_vec(),
                true,
            ),
            (CallForm::Llama, "So {\"name\": \"f\"}".to_owned(), vec![text("So {\"name\": \"f\"}")], false),
            (
                CallForm::Mistral,
                format!(
                    "[TOOL_CALLS][{{\"name\": \"f\", \"arguments\": {f}}}, {{\"name\": \"g\", \"arguments\": {{}}}}]"
                ),
                [call("f", f), call("g", "{}")].concat(),
                true,
            ),
        ];
        for (form, answer, expected, is_whole) in cases {
            for n in [1, 2, 3, 7, 1000] {
                assert_eq!(read(form, &answer, n), (expected.clone(), is_whole), "{form:?}, by {n}");
            }
        }
    }

    #[test]
    fn the_form_follows_from_the_template() {
        let cases = [
            ("{{ messages[0].content }}</s>", CallForm::Told),
            (
                "{{ messages[0].content }}</s>{% if tools %}<tool_call>{{ messages[0].arguments }}{% endif %}",
                CallForm::Hermes,
            ),
            (
                "{{ messages[0].content }}</s>{% if tools %}<tool_call><function={{ messages[0].arguments }}{% endif %}",
                CallForm::Told,
            ),
            ("{{ messages[0].content }}</s>{% if tools %}[TOOL_CALLS]{% endif %}", CallForm::Mistral),
            (
                "{{ messages[0].content }}</s>{% if tools %}ipython\"parameters\": {% endif %}",
                CallForm::Llama,
            ),
        ];
        for (template, form) in cases {
            assert_eq!(CallForm::of(&format(template)), form, "{template}");
        }
    }

    #[test]
    fn templates_without_tools_are_told_by_messages() {
        let json = |text: &str| Json::parse(text).expect("JSON");
        let call = ToolCall {
            id: Some("call_1".into()),
            kind: super::super::ToolKind::Function,
            function: FunctionCall { name: "f".into(), arguments: json(r#""{\"x\": 1}""#) },
        };
        let result = |id: &str, text: &str| Message {
            tool_call_id: Some(id.into()),
            ..Message::new(Role::Tool, text)
        };
        let messages = [
            Message::new(Role::User, "hi"),
            Message { tool_calls: vec![call.clone(), call], ..Message::new(Role::Assistant, "Well.") },
            result("call_1", "one"),
            result("call_2", "two"),
        ];
        let tools = [json(r#"{"type":"function","function":{"name":"f"}}"#)];
        let told = CallForm::Told.as_messages(&messages, &tools);
        let roles: Vec<Role> = told.iter().map(|message| message.role).collect();
        assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User]);
        assert!(told[0].content.contains(r#"{"type":"function","function":{"name":"f"}}"#));
        let written = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
        assert_eq!(told[2].content, format!("Well.\n{written}\n{written}"));
        assert!(told.iter().all(|message| message.tool_calls.is_empty()));
        let results = "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>";
        assert_eq!(told[3].content, results);
        let system = [Message::new(Role::System, "Be brief."), Message::new(Role::User, "hi")];
        let told = CallForm::Told.as_messages(&system, &tools);
        assert!(told.len() == 2 && told[0].content.starts_with("Be brief.\n\n"));
        let short = CallForm::Mistral.as_messages(&messages, &tools);
        assert_eq!(short[1].tool_calls[0].id.as_deref(), Some("call00000"));
        assert_eq!(
            (short[2].tool_call_id.as_deref(), short[3].tool_call_id.as_deref()),
            (Some("call00000"), Some("call00001"))
        );
    }
}
