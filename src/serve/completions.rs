//! `/v1/completions`

use std::sync::Arc;

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Json, Response};
use infer::FinishReason;
use infer::engine::{Event, Finished, Logprob};
use serde_json::{Value, json};
use tokenizer::{EncodeOptions, Tokenizer};

use super::answer::{self, Chunks, Prompt, Settings, Whole};
use super::asked::Asked;
use super::chat::Head;
use super::constraint;
use super::error::ApiError;
use super::models::Served;
use super::sampling;
use super::state::State;
use super::text::prepared;

/// Tokens that are generated if a request says nothing.
const DEFAULT_NEW: u64 = 16;

/// The most probable tokens that may be asked for.
const MAX_TOP: u64 = 5;

/// Prompts of a request.
const MAX_PROMPTS: usize = 64;

/// Continues texts.
pub async fn create(Shared(state): Shared<Arc<State>>, asked: Asked) -> Result<Response, ApiError> {
    let Prepared { settings, n_shown, prompts, model, served, echo } = prepare(&state, asked).await?;
    let head = Head { id: state.unique("cmpl-"), created: answer::now(), model };
    if settings.stream {
        let events = settings.submit(&served, &prompts[..1])?.remove(0);
        let (n_choices, tokenizer) = (settings.n_choices, served.tokenizer.clone());
        let finished = Vec::new();
        let offsets = vec![Offset::default(); n_choices];
        let chunks = TextChunks { head, settings, tokenizer, state, offsets, finished };
        return Ok(answer::stream(events, n_choices, chunks));
    }
    // All are handed over before the first is waited for.
    let all = settings.submit(&served, &prompts)?;
    let (mut choices, mut finished) = (Vec::new(), Vec::new());
    for (prompt, events) in prompts.iter().zip(all) {
        let mut of_prompt = Vec::new();
        let mut all = answer::whole(events, settings.n_choices, &state).await?;
        of_prompt.extend(all.iter().filter_map(|whole| whole.finished.clone()));
        if n_shown < all.len() {
            all.sort_by(|a, b| mean_logprob(b).total_cmp(&mean_logprob(a)));
            all.truncate(n_shown);
        }
        for whole in all {
            let index = choices.len();
            choices.push(choice(index, prompt, &whole, echo, &served.tokenizer));
        }
        finished.push(of_prompt);
    }
    let mut answer = head.object("text_completion", choices);
    answer["usage"] = usage(&finished);
    Ok(Json(answer).into_response())
}

struct Prepared {
    settings: Settings,
    /// Of the choices that are generated, how many are the answer: the best.
    n_shown: usize,
    prompts: Vec<Prompt>,
    model: String,
    served: Arc<Served>,
    echo: bool,
}

async fn prepare(state: &Arc<State>, asked: Asked) -> Result<Prepared, ApiError> {
    let state = state.clone();
    prepared(asked, move |asked| {
        let served = asked.decoder()?;
        let Asked { mut fields, model, owner, .. } = asked;
        let n_new = fields.whole("max_tokens", 0..=u32::MAX.into())?.unwrap_or(DEFAULT_NEW);
        let mut settings = Settings::take(&mut fields, Some((n_new, "max_tokens")), &served, &state)?;
        let echo: bool = fields.take("echo")?.unwrap_or(false);
        let logprobs = fields.whole("logprobs", 0..=MAX_TOP)?.map(|n| n as usize);
        let n_shown = settings.n_choices;
        settings.n_choices = sampling::best_of(&mut fields, n_shown, state.limits.choices, settings.stream)?;
        settings.compares = settings.n_choices > n_shown;
        fields.only("suffix", &[json!("")])?;
        let wanted = constraint::take(&mut fields)?;
        let texts = prompts(&fields.need::<Value>("prompt")?, &served.tokenizer)?;
        fields.finish()?;
        if settings.stream && (echo || texts.len() > 1) {
            let why = if echo { "echo" } else { "prompt" };
            return Err(ApiError::invalid(why, "a stream continues one prompt, and does not echo it"));
        }
        let grammar = wanted.map(|(source, field)| served.grammar(&source, field)).transpose()?;
        let prompt = |ids| Prompt {
            ids,
            field: "prompt",
            grammar: grammar.clone(),
            stop_ids: served.tokenizer.eos_id().into_iter().collect(),
            logprobs,
            prompt_logprobs: logprobs.filter(|_| echo),
            owner: owner.0,
        };
        let prompts = texts.into_iter().map(prompt).collect();
        Ok(Prepared { settings, n_shown, prompts, model, served, echo })
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
    let reason = whole.finished.as_ref().map(|finished| finished.reason);
    let mut choice = json!({
        "index": index,
        "text": text,
        "logprobs": prompt.logprobs.map(|_| logprobs(&tokens, &mut Offset::default(), tokenizer)),
        "finish_reason": reason.map(FinishReason::name),
    });
    reason.into_iter().for_each(|reason| answer::note_cut(&mut choice, reason));
    choice
}

/// By which the best choices are found (`best_of`).
fn mean_logprob(whole: &Whole) -> f32 {
    let sum: f32 = whole.logprobs.iter().map(|logprob| logprob.logprob).sum();
    if whole.logprobs.is_empty() { f32::NEG_INFINITY } else { sum / whole.logprobs.len() as f32 }
}

/// Where a token begins in a text that is told in pieces, in characters. A character belongs to the token that ends it.
#[derive(Clone, Debug, Default)]
struct Offset {
    n_chars: usize,
    /// The first bytes of a character that has not ended.
    open: Vec<u8>,
}

impl Offset {
    fn push(&mut self, bytes: &[u8]) {
        self.open.extend_from_slice(bytes);
        while !self.open.is_empty() {
            let (valid, wrong) = match std::str::from_utf8(&self.open) {
                Ok(text) => (text.len(), 0),
                Err(error) => (error.valid_up_to(), error.error_len().unwrap_or(0)),
            };
            self.n_chars +=
                String::from_utf8_lossy(&self.open[..valid]).chars().count() + usize::from(wrong > 0);
            self.open.drain(..valid + wrong);
            if wrong == 0 {
                break;
            }
        }
    }
}

/// A token as its text, or as its bytes where these are none.
fn spelled(id: u32, tokenizer: &Tokenizer) -> String {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}")),
    }
}

/// Four lists, as completions have them; `offset` is where the text is. The first token of a text has no probability.
fn logprobs(tokens: &[(u32, Option<&Logprob>)], offset: &mut Offset, tokenizer: &Tokenizer) -> Value {
    let (mut texts, mut found, mut tops, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for &(id, logprob) in tokens {
        offsets.push(offset.n_chars);
        if !tokenizer.is_special(id) {
            offset.push(tokenizer.token_bytes(id).unwrap_or_default());
        }
        texts.push(spelled(id, tokenizer));
        found.push(logprob.map(|logprob| logprob.logprob));
        tops.push(logprob.map(|logprob| {
            // The token itself is always there, whether it is one of the most probable or not.
            let own = (!logprob.top.is_empty()).then_some((id, logprob.logprob));
            let all = logprob.top.iter().copied().chain(own);
            all.map(|(id, p)| (spelled(id, tokenizer), json!(p))).collect::<serde_json::Map<_, _>>()
        }));
    }
    json!({ "tokens": texts, "token_logprobs": found, "top_logprobs": tops, "text_offset": offsets })
}

/// Each prompt counts once.
fn usage(finished: &[Vec<Finished>]) -> Value {
    let firsts = || finished.iter().filter_map(|of| of.first());
    let n_new: usize = finished.iter().flatten().map(|of| of.n_new).sum();
    answer::usage_of(firsts().map(|of| of.n_prompt).sum(), firsts().map(|of| of.n_cached).sum(), n_new)
}

struct TextChunks {
    head: Head,
    settings: Settings,
    tokenizer: Tokenizer,
    state: Arc<State>,
    /// Where the text of each choice ends.
    offsets: Vec<Offset>,
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
                    logprobs(&tokens, &mut self.offsets[choice], &self.tokenizer)
                });
                vec![self.chunk(choice, &text, lists, None)]
            }
            Event::End(finished) => {
                self.state.metrics.finished(&finished);
                let mut chunk = self.chunk(choice, &finished.text, Value::Null, Some(finished.reason.name()));
                answer::note_cut(&mut chunk["choices"][0], finished.reason);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_those_of_the_text_whatever_tokens_cut() {
        let text = "h\u{e9}llo \u{1f642}x";
        for size in 1..5 {
            let mut offset = Offset::default();
            for piece in text.as_bytes().chunks(size) {
                offset.push(piece);
            }
            assert_eq!((offset.n_chars, offset.open.len()), (text.chars().count(), 0));
        }
        let mut broken = Offset::default();
        [&b"a\xff"[..], b"\xe2\x82", b"b"].into_iter().for_each(|piece| broken.push(piece));
        assert_eq!(broken.n_chars, String::from_utf8_lossy(b"a\xff\xe2\x82b").chars().count());
    }
}
