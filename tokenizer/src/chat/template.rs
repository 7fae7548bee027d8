//! Chat templates: Jinja programs that lay a conversation out as text.
//!
//! [`ChatTemplate`] renders what `apply_chat_template` of Hugging Face's `transformers` renders from the same inputs,
//! byte for byte, and fails where that fails. Whose turn is whose and which characters are special tokens is for
//! [`super::ChatFormat`]; here all is text.

use std::ops::Range;
use std::sync::Arc;

use super::jinja::{Fault, Globals, Marks, Output, Program};
use super::json::Json;
use crate::Error;

/// A chat template that has been read. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    program: Arc<Program>,
    source: Arc<str>,
}

/// What a template is given, under the names that templates expect.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// The conversation: a list of objects with `role`, `content` and more.
    pub messages: Json,
    /// The schemas of the tools that the model may call; [`Json::Null`] without.
    pub tools: Json,
    /// Documents to answer from; [`Json::Null`] without.
    pub documents: Json,
    /// Whether the text is to end where the assistant begins to speak.
    pub add_generation_prompt: bool,
    /// Special tokens by their names: `bos_token`, `eos_token` and the like.
    pub special: Vec<(String, String)>,
    /// Further variables, such as `enable_thinking`.
    pub kwargs: Vec<(String, Json)>,
    /// The moment that `strftime_now` tells, in seconds since 1970.
    pub now: i64,
}

/// A conversation as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RenderedText {
    /// The text.
    pub text: String,
    /// The bytes of `text` that the template marks as the assistant's, by `{% generation %}`.
    pub generated: Vec<Range<usize>>,
    /// The line of a `{% generation %}` inside a macro or a block of `set`, `call` or `filter`, if there is one:
    /// `generated` lacks what it prints, which may be changed or printed again on its way into the text.
    pub unmarkable: Option<usize>,
}

impl Default for Inputs {
    fn default() -> Self {
        Self {
            messages: Json::List(Vec::new()),
            tools: Json::Null,
            documents: Json::Null,
            add_generation_prompt: false,
            special: Vec::new(),
            kwargs: Vec::new(),
            now: 0,
        }
    }
}

impl ChatTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// [`Error::Template`] with the line that is malformed, nests too deep, or asks for what templates may not do.
    pub fn new(source: &str) -> Result<Self, Error> {
        let program = Program::read(source).map_err(error)?;
        Ok(Self { program: Arc::new(program), source: source.into() })
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template itself marks what the assistant says.
    pub fn marks_generation(&self) -> bool {
        self.program.marks_generation
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`Error::TemplateRefuses`] if the template raises an exception of its own, [`Error::Template`] where it fails or
    /// exceeds its bounds of work, memory and output.
    pub fn render(&self, inputs: &Inputs) -> Result<RenderedText, Error> {
        self.render_marked(inputs, None, None).map(|(rendered, _)| rendered)
    }

    /// Renders with the caller's text marked, so that it can be told from the template's. With `fuel` several renderings
    /// share one bound of their work; what this one leaves of it comes back.
    pub(super) fn render_marked(
        &self,
        inputs: &Inputs,
        marks: Option<Marks>,
        fuel: Option<u64>,
    ) -> Result<(RenderedText, u64), Error> {
        let prompt = Json::Bool(inputs.add_generation_prompt);
        let mut values: Vec<(&str, &Json)> = vec![
            ("messages", &inputs.messages),
            ("tools", &inputs.tools),
            ("documents", &inputs.documents),
            ("add_generation_prompt", &prompt),
        ];
        values.extend(inputs.kwargs.iter().map(|(name, value)| (name.as_str(), value)));
        let tokens = inputs.special.iter().map(|(name, token)| (name.as_str(), token.as_str())).collect();
        let globals = Globals { values, tokens, marks, now: inputs.now, fuel };
        let Output { text, generated, unmarkable, fuel_left } =
            self.program.render(&globals).map_err(error)?;
        Ok((RenderedText { text, generated, unmarkable }, fuel_left))
    }

    /// The literal text of the template: what stands between tags and in strings.
    pub(super) fn literals(&self) -> impl Iterator<Item = &str> {
        self.program.literals()
    }
}

impl PartialEq for ChatTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for ChatTemplate {}

fn error(Fault { line, reason, raised }: Fault) -> Error {
    if raised { Error::TemplateRefuses { message: reason } } else { Error::Template { line, reason } }
}
