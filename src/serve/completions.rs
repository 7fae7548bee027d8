//! `/v1/completions`

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Json, Response};
use infer::engine::{Event, Finished, Logprob};
use serde_json::{Value, json};
use tokenizer::{EncodeOptions, Tokenizer};

use super::answer::{self, Chunks, Prompt, Settings, Whole};
use super::chat::Head;
use super::error::ApiError;
use super::fields::Fields;
use super::guard::Owner;
use super::state::State;

/// Tokens that are generated if a request says nothing.
const DEFAULT_NEW: u64 = 16;

/// The most probable tokens that may be asked for.
const MAX_TOP: u64 = 5;

/// Prompts of a request.
const MAX_PROMPTS: usize = 64;

/// Continues texts.
pub async fn create(
    Shared(state): Shared<Arc<State>>,
    Extension(owner): Extension<Owner>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let Prepared { settings, prompts, model, echo } = prepare(&state, owner, &body).await?;
    let served = state.model(&model)?;
    let head = Head { id: state.unique("cmpl"), created: answer::now(), model };
    if settings.stream {
        let events = settings.submit(served, &prompts[0])?;
        let (n_choices, tokenizer) = (settings.n_choices, served.tokenizer.clone());
        let finished = Vec::new();
        let offsets = vec![0; n_choices];
        let chunks = TextChunks { head, settings, tokenizer, state, offsets, finished };
        return Ok(answer::stream(events, n_choices, chunks));
    }
    // All are handed over before the first is waited for.
    let all: Result<Vec<_>, _> = prompts.iter().map(|prompt| settings.submit(served, prompt)).collect();
    let (mut choices, mut finished) = (Vec::new(), Vec::new());
    for (prompt, events) in prompts.iter().zip(all?) {
        let mut of_prompt = Vec::new();
        for whole in answer::whole(events, settings.n_choices, &state).await? {
            let index = choices.len();
            choices.push(choice(index, prompt, &whole, echo, &served.tokenizer));
            of_prompt.extend(whole.finished);
        }
        finished.push(of_prompt);
    }
    let mut answer = head.object("text_completion", choices);
    answer["usage"] = usage(&finished);
    Ok(Json(answer).into_response())
}

struct Prepared {
    settings: Settings,
    prompts: Vec<Prompt>,
    model: String,
    echo: bool,
}

async fn prepare(state: &Arc<State>, owner: Owner, body: &Bytes) -> Result<Prepared, ApiError> {
    let (state, body) = (state.clone(), body.clone());
    super::text::off_the_loop(move || {
        let mut fields = Fields::read(&body)?;
        let model: String = fields.need("model")?;
        let served = state.model(&model)?;
        let n_new = fields.whole("max_tokens", 0..=u32::MAX.into())?.unwrap_or(DEFAULT_NEW);
        let settings = Settings::take(&mut fields, Some(n_new), &state)?;
        let echo: bool = fields.take("echo")?.unwrap_or(false);
        let logprobs = fields.whole("logprobs", 0..=MAX_TOP)?.map(|n| n as usize);
        fields.only("best_of", &[json!(1)])?;
        fields.only("suffix", &[json!("")])?;
        let texts = prompts(&fields.need::<Value>("prompt")?, &served.tokenizer)?;
        fields.finish()?;
        if settings.stream && (echo || texts.len() > 1) {
            let why = if echo { "echo" } else { "prompt" };
            return Err(ApiError::invalid(why, "a stream continues one prompt, and does not echo it"));
        }
        let prompt = |ids| Prompt {
            ids,
            stop_ids: served.tokenizer.eos_id().into_iter().collect(),
            logprobs,
            prompt_logprobs: logprobs.filter(|_| echo),
            owner: owner.0,
        };
        Ok(Prepared { settings, prompts: texts.into_iter().map(prompt).collect(), model, echo })
    })
    .await
}

/// A text, ids, or a list of either, as ids.
fn prompts(value: &Value, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
    let wrong =
        || ApiError::invalid("prompt", "`prompt` must be a string, a list of token ids, or a list of either");
    let encode = |text: &str| {
        tokenizer.encode_with(text, EncodeOptions { add_special: true, ..EncodeOptions::default() })
    };
    let one = |value: &Value| match value {
        Value::String(text) => Ok(encode(text)),
        Value::Array(ids) => {
            ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)).collect()
        }
        _ => Err(wrong()),
    };
    match value {
        Value::Array(list) if list.first().is_some_and(|first| first.is_string() || first.is_array()) => {
            if list.len() > MAX_PROMPTS {
                let message = format!("`prompt` has {} entries: at most {MAX_PROMPTS}", list.len());
                return Err(ApiError::invalid("prompt", message));
            }
            list.iter().map(one).collect()
        }
        other => Ok(vec![one(other)?]),
    }
}

fn choice(index: usize, prompt: &Prompt, whole: &Whole, echo: bool, tokenizer: &Tokenizer) -> Value {
    let mut text = String::new();
    let mut tokens = Vec::new();
    if echo {
        // What the caller gave, without what the vocabulary puts around it.
        let own: Vec<u32> = prompt.ids.iter().copied().filter(|&id| !tokenizer.is_special(id)).collect();
        text = tokenizer.decode(&own).unwrap_or_default();
        if let Some(&first) = prompt.ids.first() {
            tokens.push((first, None));
        }
        tokens.extend(whole.prompt.iter().map(|logprob| (logprob.id, Some(logprob))));
    }
    text.push_str(&whole.text);
    tokens.extend(whole.logprobs.iter().map(|logprob| (logprob.id, Some(logprob))));
    json!({
        "index": index,
        "text": text,
        "logprobs": prompt.logprobs.map(|_| logprobs(&tokens, 0, tokenizer).0),
        "finish_reason": whole.finished.as_ref().map(|finished| finished.reason.name()),
    })
}

/// Four lists, as completions have them, and where the text ends. The first token of a text has no probability.
fn logprobs(tokens: &[(u32, Option<&Logprob>)], offset: usize, tokenizer: &Tokenizer) -> (Value, usize) {
    let text = |id: u32| String::from_utf8_lossy(tokenizer.token_bytes(id).unwrap_or_default()).into_owned();
    let (mut texts, mut found, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut at = offset;
    for &(id, logprob) in tokens {
        let text_of_it = text(id);
        offsets.push(at);
        at += if tokenizer.is_special(id) { 0 } else { text_of_it.chars().count() };
        texts.push(text_of_it);
        found.push(logprob.map(|logprob| logprob.logprob));
        tops.push(logprob.map(|logprob| {
            logprob.top.iter().map(|&(id, p)| (text(id), json!(p))).collect::<serde_json::Map<_, _>>()
        }));
    }
    let lists =
        json!({ "tokens": texts, "token_logprobs": found, "top_logprobs": tops, "text_offset": offsets });
    (lists, at)
}

/// Each prompt counts once.
fn usage(finished: &[Vec<Finished>]) -> Value {
    let n_prompt: usize = finished.iter().filter_map(|of| of.first()).map(|of| of.n_prompt).sum();
    let n_new: usize = finished.iter().flatten().map(|of| of.n_new).sum();
    json!({ "prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new })
}

struct TextChunks {
    head: Head,
    settings: Settings,
    tokenizer: Tokenizer,
    state: Arc<State>,
    /// Where the text of each choice ends.
    offsets: Vec<usize>,
    finished: Vec<Finished>,
}

impl TextChunks {
    fn chunk(&self, index: usize, text: &str, logprobs: Value, reason: Option<&str>) -> Value {
        let choice = json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason });
        self.whole(vec![choice], Value::Null)
    }

    fn whole(&self, choices: Vec<Value>, usage: Value) -> Value {
        let mut chunk = self.head.object("text_completion", choices);
        if self.settings.include_usage {
            chunk["usage"] = usage;
        }
        chunk
    }
}

impl Chunks for TextChunks {
    fn begin(&mut self) -> Vec<Value> {
        Vec::new()
    }

    fn event(&mut self, choice: usize, event: Event) -> Result<Vec<Value>, ApiError> {
        Ok(match event {
            Event::Prompt(_) => Vec::new(),
            Event::Token { text, logprob, .. } => {
                if text.is_empty() && logprob.is_none() {
                    return Ok(Vec::new());
                }
                let lists = logprob.map_or(Value::Null, |logprob| {
                    let tokens = [(logprob.id, Some(&logprob))];
                    let (lists, end) = logprobs(&tokens, self.offsets[choice], &self.tokenizer);
                    self.offsets[choice] = end;
                    lists
                });
                vec![self.chunk(choice, &text, lists, None)]
            }
            Event::End(finished) => {
                self.state.metrics.finished(&finished);
                let chunk = self.chunk(choice, &finished.text, Value::Null, Some(finished.reason.name()));
                self.finished.push(finished);
                vec![chunk]
            }
            Event::Failed(failure) => return Err(answer::failed(&failure)),
        })
    }

    fn end(&mut self) -> Vec<Value> {
        let usage = || self.whole(Vec::new(), answer::usage(&self.finished));
        self.settings.include_usage.then(usage).into_iter().collect()
    }
}
