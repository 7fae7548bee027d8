//! Conversations as token ids, with a mask of what the assistant said.
//!
//! One renderer serves training, chat, server and agents: a [`ChatFormat`] is a chat template and the special tokens of
//! one tokenizer. Our own layout is one special token for the speaker, the content, and [`END_OF_TURN`]:
//! `<|user|>Hello<|end|><|assistant|>Hi!<|end|>`; [`JINJA`] is that layout for other programs. Models that come with a
//! template of their own are rendered by it, by an interpreter of ours that prints what Python's prints and whose work
//! and memory are bounded ([`template`]).
//!
//! Whatever the layout, what a message says can neither start nor end a turn: the caller's text is told from the
//! template's character by character, and only the template's spells special tokens.

mod calls;
mod config;
mod jinja;
pub mod json;
mod message;
mod render;
mod special;
pub mod template;

pub use calls::{CallForm, CallPiece, CallReader, Spelling};
pub use message::{FunctionCall, Message, Role, ToolCall, ToolKind};
pub use render::{ChatFormat, Rendered, Request};

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

/// [`JINJA`] with what the assistant says marked, which not every program that renders [`JINJA`] understands.
const MARKED_JINJA: &str = "\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
";
