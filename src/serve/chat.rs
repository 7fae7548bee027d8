//! `/v1/chat/completions`

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Json, Response};
use infer::engine::{Event, Finished, Logprob};
use serde_json::{Value, json};
use tokenizer::Tokenizer;
use tokenizer::chat::{self, ChatFormat, Message};

use super::answer::{self, Chunks, MAX_TOP, Prompt, Settings};
use super::error::ApiError;
use super::fields::Fields;
use super::guard::Owner;
use super::state::{Served, State};

/// Answers a conversation.
pub async fn create(
    Shared(state): Shared<Arc<State>>,
    Extension(owner): Extension<Owner>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let Prepared { settings, prompt, model } = prepare(&state, owner, &body).await?;
    let served = state.model(&model)?;
    let events = settings.submit(served, &prompt)?;
    let head = Head { id: state.unique("chatcmpl"), created: answer::now(), model };
    if settings.stream {
        let (n_choices, tokenizer) = (settings.n_choices, served.tokenizer.clone());
        let chunks = ChatChunks { head, settings, tokenizer, state, finished: Vec::new() };
        return Ok(answer::stream(events, n_choices, chunks));
    }
    let choices = answer::whole(events, settings.n_choices, &state).await?;
    let finished: Vec<Finished> = choices.iter().filter_map(|choice| choice.finished.clone()).collect();
    let choices: Vec<Value> = choices
        .iter()
        .zip(&finished)
        .enumerate()
        .map(|(index, (choice, finished))| {
            json!({
                "index": index,
                "message": { "role": "assistant", "content": choice.text, "refusal": null },
                "logprobs": prompt.logprobs.map(|_| logprobs(&choice.logprobs, &served.tokenizer)),
                "finish_reason": finished.reason.name(),
            })
        })
        .collect();
    let mut answer = head.object("chat.completion", choices);
    answer["usage"] = answer::usage(&finished);
    Ok(Json(answer).into_response())
}

struct Prepared {
    settings: Settings,
    prompt: Prompt,
    model: String,
}

/// Reads the request and renders its conversation, which may take a while.
async fn prepare(state: &Arc<State>, owner: Owner, body: &Bytes) -> Result<Prepared, ApiError> {
    let (state, body) = (state.clone(), body.clone());
    super::text::off_the_loop(move || {
        let mut fields = Fields::read(&body)?;
        let model: String = fields.need("model")?;
        let served = state.model(&model)?;
        let n_new = fields.whole("max_completion_tokens", 1..=u32::MAX.into())?;
        let n_new = fields.whole("max_tokens", 1..=u32::MAX.into())?.or(n_new);
        let settings = Settings::take(&mut fields, n_new, &state)?;
        let logprobs: bool = fields.take("logprobs")?.unwrap_or(false);
        let n_top = fields.whole("top_logprobs", 0..=MAX_TOP)?;
        if n_top.is_some() && !logprobs {
            return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
        }
        fields.only("response_format", &[json!({ "type": "text" })])?;
        fields.only("tools", &[json!([])])?;
        fields.only("tool_choice", &[json!("none"), json!("auto")])?;
        fields.ignore("parallel_tool_calls");
        fields.only("store", &[json!(false)])?;
        fields.only("modalities", &[json!(["text"])])?;
        let conversation = Conversation::take(served, &mut fields)?;
        fields.finish()?;
        let ids = conversation.ids()?;
        let mut stop_ids: Vec<u32> = served.tokenizer.eos_id().into_iter().collect();
        stop_ids.extend(conversation.format.stop_ids());
        let logprobs = logprobs.then_some(n_top.unwrap_or(0) as usize);
        let prompt = Prompt { ids, stop_ids, logprobs, owner: owner.0, ..Prompt::default() };
        Ok(Prepared { settings, prompt, model })
    })
    .await
}

/// The messages of a request, and how its model has them.
pub struct Conversation<'a> {
    served: &'a Served,
    format: &'a ChatFormat,
    messages: Vec<Message>,
}

impl<'a> Conversation<'a> {
    /// Takes the field `messages`.
    ///
    /// # Errors
    /// If there are none, or the model has no conversations.
    pub fn take(served: &'a Served, fields: &mut Fields) -> Result<Self, ApiError> {
        let messages: Vec<Message> = fields.need("messages")?;
        if messages.is_empty() {
            return Err(ApiError::invalid(
                "messages",
                "`messages` is empty: a conversation has at least one",
            ));
        }
        let format = served.format.as_ref().map_err(|why| ApiError::invalid("model", why))?;
        Ok(Self { served, format, messages })
    }

    fn request(&self) -> chat::Request<'_> {
        chat::Request { messages: &self.messages, add_generation_prompt: true, ..chat::Request::default() }
    }

    /// As ids, up to where the answer begins.
    ///
    /// # Errors
    /// If the model's template refuses the messages.
    pub fn ids(&self) -> Result<Vec<u32>, ApiError> {
        let rendered = self.format.render_request(&self.served.tokenizer, &self.request());
        rendered.map(|rendered| rendered.ids).map_err(refused)
    }

    /// As text, up to where the answer begins.
    ///
    /// # Errors
    /// If the model's template refuses the messages.
    pub fn text(&self) -> Result<String, ApiError> {
        self.format.render_text(&self.request()).map(|rendered| rendered.text).map_err(refused)
    }
}

fn refused(error: tokenizer::Error) -> ApiError {
    ApiError::invalid("messages", error.to_string())
}

/// What all parts of an answer begin with.
pub struct Head {
    /// Of the answer.
    pub id: String,
    /// In seconds since 1970.
    pub created: u64,
    /// As the request named it.
    pub model: String,
}

impl Head {
    /// An answer or a part of one.
    pub fn object(&self, kind: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices,
        })
    }
}

struct ChatChunks {
    head: Head,
    settings: Settings,
    tokenizer: Tokenizer,
    state: Arc<State>,
    finished: Vec<Finished>,
}

impl ChatChunks {
    fn chunk(&self, index: usize, delta: Value, logprobs: Value, reason: Option<&str>) -> Value {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason });
        self.whole(vec![choice], Value::Null)
    }

    fn whole(&self, choices: Vec<Value>, usage: Value) -> Value {
        let mut chunk = self.head.object("chat.completion.chunk", choices);
        if self.settings.include_usage {
            chunk["usage"] = usage;
        }
        chunk
    }
}

impl Chunks for ChatChunks {
    fn begin(&mut self) -> Vec<Value> {
        let delta = json!({ "role": "assistant", "content": "" });
        (0..self.settings.n_choices).map(|i| self.chunk(i, delta.clone(), Value::Null, None)).collect()
    }

    fn event(&mut self, choice: usize, event: Event) -> Result<Vec<Value>, ApiError> {
        Ok(match event {
            Event::Prompt(_) => Vec::new(),
            Event::Token { text, logprob, .. } => {
                if text.is_empty() && logprob.is_none() {
                    return Ok(Vec::new());
                }
                let logprobs = logprob.map_or(Value::Null, |logprob| logprobs(&[logprob], &self.tokenizer));
                vec![self.chunk(choice, json!({ "content": text }), logprobs, None)]
            }
            Event::End(finished) => {
                self.state.metrics.finished(&finished);
                let mut chunks = Vec::new();
                if !finished.text.is_empty() {
                    chunks.push(self.chunk(choice, json!({ "content": finished.text }), Value::Null, None));
                }
                chunks.push(self.chunk(choice, json!({}), Value::Null, Some(finished.reason.name())));
                self.finished.push(finished);
                chunks
            }
            Event::Failed(failure) => return Err(answer::failed(&failure)),
        })
    }

    fn end(&mut self) -> Vec<Value> {
        let usage = || self.whole(Vec::new(), answer::usage(&self.finished));
        self.settings.include_usage.then(usage).into_iter().collect()
    }
}

/// Tokens and their probabilities, as chat has them.
fn logprobs(tokens: &[Logprob], tokenizer: &Tokenizer) -> Value {
    let one = |id: u32, logprob: f32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        json!({ "token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes })
    };
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let mut entry = one(token.id, token.logprob);
            entry["top_logprobs"] = token.top.iter().map(|&(id, logprob)| one(id, logprob)).collect();
            entry
        })
        .collect();
    json!({ "content": content, "refusal": null })
}
