//! Conversations as token ids, with a mask of what the assistant said.
//!
//! The layout is one special token for the speaker, the content, and [`END_OF_TURN`]:
//! `<|user|>Hello<|end|><|assistant|>Hi!<|end|>`. Contents are encoded as plain text, so nothing that a message says
//! can start or end a turn. [`JINJA`] is the same layout for programs that render templates as text; those cannot keep
//! that promise.

mod jinja;
pub mod json;
pub mod template;

use serde::{Deserialize, Serialize};

use crate::{Error, Tokenizer};

/// Ends each turn; generation stops at it.
pub const END_OF_TURN: &str = "<|end|>";

/// The special tokens of the chat format, to train vocabularies with.
pub const CHAT_TOKENS: [&str; 4] =
    [Role::User.token(), Role::Assistant.token(), Role::System.token(), END_OF_TURN];

/// The layout as a Hugging Face `chat_template`.
pub const JINJA: &str = "\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
";

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
}

impl Role {
    /// The role's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }

    /// The special token that starts the role's turns.
    pub const fn token(self) -> &'static str {
        match self {
            Self::System => "<|system|>",
            Self::User => "<|user|>",
            Self::Assistant => "<|assistant|>",
        }
    }
}

/// One turn of a conversation, spelled as in OpenAI's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// A conversation as ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The ids of the whole conversation.
    pub ids: Vec<u32>,
    /// For each id, whether a model is to learn to say it: the assistant's contents and the ends of its turns.
    pub loss_mask: Vec<bool>,
}

/// The chat format in the ids of one tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatFormat {
    system: u32,
    user: u32,
    assistant: u32,
    end: u32,
}

impl ChatFormat {
    /// Looks up the special tokens.
    ///
    /// # Errors
    /// [`Error::MissingSpecial`] names the first that `tokenizer` lacks.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, Error> {
        let id = |token| tokenizer.special_id(token).ok_or(Error::MissingSpecial { token });
        Ok(Self {
            system: id(Role::System.token())?,
            user: id(Role::User.token())?,
            assistant: id(Role::Assistant.token())?,
            end: id(END_OF_TURN)?,
        })
    }

    /// The id that ends a turn, at which generation stops.
    pub fn stop_id(&self) -> u32 {
        self.end
    }

    /// The ids of a conversation. With `add_generation_prompt` they end with the start of the assistant's next turn.
    /// `tokenizer` must be the one that the format was made from.
    ///
    /// # Errors
    /// [`Error::EmptyConversation`], and [`Error::MessageOrder`] where a role stands out of turn: system comes first or
    /// not at all, then user and assistant alternate, user first; a generation prompt answers a user.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Rendered, Error> {
        check_order(messages, add_generation_prompt)?;
        let mut rendered = Rendered::default();
        for Message { role, content } in messages {
            rendered.push(self.role_id(*role), false);
            tokenizer.encode_into(content, &mut rendered.ids);
            rendered.ids.push(self.end);
            rendered.loss_mask.resize(rendered.ids.len(), *role == Role::Assistant);
        }
        if add_generation_prompt {
            rendered.push(self.assistant, false);
        }
        Ok(rendered)
    }

    fn role_id(&self, role: Role) -> u32 {
        match role {
            Role::System => self.system,
            Role::User => self.user,
            Role::Assistant => self.assistant,
        }
    }
}

impl Rendered {
    fn push(&mut self, id: u32, learn: bool) {
        self.ids.push(id);
        self.loss_mask.push(learn);
    }
}

/// Checks that every message stands where its role may.
fn check_order(messages: &[Message], add_generation_prompt: bool) -> Result<(), Error> {
    let mut prev = None;
    for (message_idx, role) in messages.iter().map(|message| message.role).enumerate() {
        let reason = match (prev, role) {
            (Some(_), Role::System) => "`system` may only come first",
            (Some(Role::User), Role::User) => "after `user` it must be `assistant`",
            (None | Some(Role::System | Role::Assistant), Role::Assistant) => {
                "`assistant` must answer `user`"
            }
            _ => {
                prev = Some(role);
                continue;
            }
        };
        return Err(Error::MessageOrder { message_idx, role: role.name(), reason });
    }
    match prev {
        None => Err(Error::EmptyConversation),
        Some(role) if add_generation_prompt && role != Role::User => Err(Error::MessageOrder {
            message_idx: messages.len() - 1,
            role: role.name(),
            reason: "a generation prompt must follow `user`",
        }),
        Some(_) => Ok(()),
    }
}
