//! `/v1/chat/completions`

use std::sync::Arc;

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Json, Response};
use infer::Grammar;
use infer::engine::{Event, Finished, Logprob};
use serde_json::{Value, json};
use tokenizer::Tokenizer;
use tokenizer::chat::{self, CallForm, ChatFormat, Message};

use super::answer::{self, Chunks, MAX_TOP, Prompt, Settings};
use super::asked::Asked;
use super::constraint::{self, Wanted};
use super::error::ApiError;
use super::fields::Fields;
use super::messages;
use super::models::Served;
use super::state::State;
use super::text::prepared;
use super::tools::{self, Calls, Reading, Tools};

/// Answers a conversation.
pub async fn create(Shared(state): Shared<Arc<State>>, asked: Asked) -> Result<Response, ApiError> {
    let Prepared { settings, prompt, model, served, reading } = prepare(&state, asked).await?;
    let events = settings.submit(&served, std::slice::from_ref(&prompt))?.remove(0);
    let head = Head { id: state.unique("chatcmpl-"), created: answer::now(), model };
    if settings.stream {
        let (n_choices, tokenizer) = (settings.n_choices, served.tokenizer.clone());
        let calls = reading.iter().flat_map(|reading| vec![reading; n_choices]).map(Reading::begin).collect();
        let chunks = ChatChunks { head, settings, tokenizer, state, calls, finished: Vec::new() };
        return Ok(answer::stream(events, n_choices, chunks));
    }
    let choices = answer::whole(events, settings.n_choices, &state).await?;
    let finished: Vec<Finished> = choices.iter().filter_map(|choice| choice.finished.clone()).collect();
    let choices: Vec<Value> = choices
        .iter()
        .zip(&finished)
        .enumerate()
        .map(|(index, (choice, finished))| {
            let (message, reason) = tools::message(choice, finished, reading.as_ref(), &state);
            let mut choice = json!({
                "index": index,
                "message": message,
                "logprobs": prompt.logprobs.map(|_| logprobs(&choice.logprobs, &served.tokenizer)),
                "finish_reason": reason,
            });
            answer::note_cut(&mut choice, finished.reason);
            choice
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
    served: Arc<Served>,
    /// How calls of tools are read, if there can be any.
    reading: Option<Reading>,
}

/// Reads the request and renders its conversation, which may take a while.
async fn prepare(state: &Arc<State>, asked: Asked) -> Result<Prepared, ApiError> {
    let state = state.clone();
    prepared(asked, move |asked| {
        let served = asked.decoder()?;
        let Asked { mut fields, model, owner, .. } = asked;
        let [older, newer] = ["max_tokens", "max_completion_tokens"]
            .map(|name| fields.whole(name, 1..=u32::MAX.into()).map(|n| n.map(|n| (n, name))));
        let n_new = older.and_then(|older| Ok(newer?.or(older)))?;
        let settings = Settings::take(&mut fields, n_new, &served, &state)?;
        let logprobs: bool = fields.take("logprobs")?.unwrap_or(false);
        let n_top = fields.whole("top_logprobs", 0..=MAX_TOP)?;
        if n_top.is_some() && !logprobs {
            return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
        }
        let wanted = constraint::take(&mut fields)?;
        fields.only("store", &[json!(false)])?;
        fields.only("modalities", &[json!(["text"])])?;
        let conversation = Conversation::take(&served, &mut fields)?;
        fields.finish()?;
        let mut ids = conversation.ids()?;
        let (grammar, reading) = conversation.grammar(wanted, &mut ids)?.unzip();
        let reading = reading.flatten();
        let mut stop_ids: Vec<u32> = served.tokenizer.eos_id().into_iter().collect();
        stop_ids.extend(conversation.format.stop_ids());
        let logprobs = logprobs.then_some(n_top.unwrap_or(0) as usize);
        let (field, owner, prompt_logprobs) = ("messages", owner.0, None);
        let prompt = Prompt { ids, field, stop_ids, logprobs, prompt_logprobs, grammar, owner };
        Ok(Prepared { settings, prompt, model, served, reading })
    })
    .await
}

/// The messages of a request, and how its model has them.
pub struct Conversation<'a> {
    served: &'a Served,
    format: &'a ChatFormat,
    form: CallForm,
    tools: Tools,
    messages: Vec<Message>,
    /// What the template is told of the tools.
    shown: Vec<chat::json::Json>,
}

impl<'a> Conversation<'a> {
    /// Takes the field `messages`, and those about tools.
    ///
    /// # Errors
    /// If there are none, or the model has no conversations.
    pub fn take(served: &'a Served, fields: &mut Fields) -> Result<Self, ApiError> {
        let messages = messages::take(fields)?;
        Self::of(served, messages, Tools::take(fields)?)
    }

    /// A conversation that came in another form.
    ///
    /// # Errors
    /// If the model has no conversations.
    pub fn of(served: &'a Served, messages: Vec<Message>, tools: Tools) -> Result<Self, ApiError> {
        let format = served.format.as_ref().map_err(|why| ApiError::invalid("model", why))?;
        let form = CallForm::of(format);
        let (messages, shown) = tools.rendered(form, &messages);
        Ok(Self { served, format, form, tools, messages, shown })
    }

    fn request(&self) -> chat::Request<'_> {
        let (messages, tools) = (&self.messages[..], &self.shown[..]);
        chat::Request { messages, tools, add_generation_prompt: true, ..chat::Request::default() }
    }

    /// What the answer must be, if anything, and how calls in it are read; `ids` are those of the prompt.
    ///
    /// # Errors
    /// If it cannot be enforced.
    pub fn grammar(
        &self,
        wanted: Wanted,
        ids: &mut Vec<u32>,
    ) -> Result<Option<(Grammar, Option<Reading>)>, ApiError> {
        if self.tools.are_offered() {
            let (grammar, reading) = self.tools.grammar(self.served, self.form, &wanted, ids)?;
            return Ok(Some((grammar, Some(reading))));
        }
        let of = |(source, field): (_, &str)| Ok((self.served.grammar(&source, field)?, None));
        wanted.map(of).transpose()
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
            "system_fingerprint": concat!("flint-", env!("CARGO_PKG_VERSION")), "service_tier": "default",
        })
    }
}

struct ChatChunks {
    head: Head,
    settings: Settings,
    tokenizer: Tokenizer,
    state: Arc<State>,
    /// Of each choice, if calls can come.
    calls: Vec<Calls>,
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
            Event::Token { id, text, logprob } => {
                let mut deltas = match self.calls.get_mut(choice) {
                    Some(calls) => calls.push(id, &text, || tools::call_id(&self.state)),
                    None if text.is_empty() => Vec::new(),
                    None => vec![json!({ "content": text })],
                };
                if deltas.is_empty() && logprob.is_some() {
                    deltas.push(json!({ "content": "" }));
                }
                // What a token's text makes certain, it makes certain at once: its probability stands with the first.
                let mut logprobs = logprob.map(|logprob| logprobs(&[logprob], &self.tokenizer));
                let mut chunk = |delta| self.chunk(choice, delta, logprobs.take().unwrap_or_default(), None);
                deltas.into_iter().map(&mut chunk).collect()
            }
            Event::End(finished) => {
                self.state.metrics.finished(&finished);
                let mut reason = finished.reason.name();
                let deltas = match self.calls.get_mut(choice) {
                    Some(calls) => {
                        let deltas = calls.finish(&finished.text, || tools::call_id(&self.state));
                        reason = calls.reason(finished.reason);
                        deltas
                    }
                    None if finished.text.is_empty() => Vec::new(),
                    None => vec![json!({ "content": finished.text })],
                };
                let deltas = deltas.into_iter().map(|delta| self.chunk(choice, delta, Value::Null, None));
                let mut chunks: Vec<Value> = deltas.collect();
                let mut last = self.chunk(choice, json!({}), Value::Null, Some(reason));
                answer::note_cut(&mut last["choices"][0], finished.reason);
                chunks.push(last);
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
