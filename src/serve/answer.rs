//! From a request's settings to its events, and from events to an answer: whole, or as server-sent events.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use infer::engine::{Event, Finished, Request, Sink};
use infer::{Sampling, TextStream};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::Stream;

use super::error::ApiError;
use super::fields::Fields;
use super::state::{Served, State};

/// Events that may wait for a reader: its sequences then stop until it has read some.
const MAX_WAITING: usize = 256;

/// Stop strings of a request, and characters of each.
const MAX_STOPS: usize = 16;
const MAX_STOP_LEN: usize = 256;

/// The most probable tokens that may be asked for.
pub const MAX_TOP: u64 = 20;

/// The settings that chat and completions share.
#[derive(Debug)]
pub struct Settings {
    /// Most new tokens, if a number was given.
    pub n_new: Option<usize>,
    /// How many answers.
    pub n_choices: usize,
    /// Whether they come piece by piece.
    pub stream: bool,
    /// Whether a stream ends with the numbers of tokens.
    pub include_usage: bool,
    sampling: Sampling,
    stop: Vec<String>,
}

impl Settings {
    /// Takes them from a request.
    ///
    /// # Errors
    /// If one has a value that cannot be.
    pub fn take(fields: &mut Fields, n_new: Option<u64>, state: &State) -> Result<Self, ApiError> {
        let default = Sampling::default();
        let sampling = Sampling {
            temperature: fields.take("temperature")?.unwrap_or(default.temperature),
            top_p: fields.take("top_p")?.unwrap_or(default.top_p),
            top_k: fields.whole("top_k", 0..=u32::MAX.into())?.map_or(default.top_k, |k| k as usize),
            min_p: fields.take("min_p")?.unwrap_or(default.min_p),
            repetition_penalty: fields.take("repetition_penalty")?.unwrap_or(default.repetition_penalty),
            // Without a seed, answers differ.
            seed: match fields.take::<i64>("seed")? {
                Some(seed) => seed as u64,
                None => now_ns(),
            },
        };
        sampling.validate().map_err(|error| ApiError::invalid(error.key, error.to_string()))?;
        for name in ["presence_penalty", "frequency_penalty"] {
            fields.only(name, &[json!(0), json!(0.0)])?;
        }
        fields.only("logit_bias", &[json!({})])?;
        for name in ["user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"] {
            fields.ignore(name);
        }
        let stop = match fields.take::<Value>("stop")? {
            None => Vec::new(),
            Some(Value::String(stop)) => vec![stop],
            Some(list) => serde_json::from_value(list)
                .map_err(|_| ApiError::invalid("stop", "`stop` must be a string or a list of strings"))?,
        };
        if stop.len() > MAX_STOPS || stop.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_LEN) {
            return Err(ApiError::invalid(
                "stop",
                format!("`stop`: at most {MAX_STOPS} strings of 1 to {MAX_STOP_LEN} bytes"),
            ));
        }
        let stream = fields.take("stream")?.unwrap_or(false);
        let include_usage = match fields.take::<Value>("stream_options")? {
            None => false,
            Some(_) if !stream => {
                return Err(ApiError::invalid("stream_options", "`stream_options` needs `stream`: true"));
            }
            Some(options) => match options.as_object() {
                Some(options) if options.keys().all(|key| key == "include_usage") => {
                    options.get("include_usage").and_then(Value::as_bool).unwrap_or(false)
                }
                _ => {
                    return Err(ApiError::invalid(
                        "stream_options",
                        "`stream_options` has the one field `include_usage`",
                    ));
                }
            },
        };
        let n_choices = fields.whole("n", 1..=state.limits.choices)?.unwrap_or(1) as usize;
        Ok(Self { n_new: n_new.map(|n| n as usize), n_choices, stream, include_usage, sampling, stop })
    }

    /// Hands the request to the model's engine, once for each choice.
    ///
    /// # Errors
    /// If the engine does not take it.
    pub fn submit(&self, served: &Served, prompt: &Prompt) -> Result<Events, ApiError> {
        let (sender, receiver) = unbounded_channel();
        let n_waiting = Arc::new(AtomicUsize::new(0));
        let room = served.client.size().context.saturating_sub(prompt.ids.len());
        for choice in 0..self.n_choices {
            let sink = Channel { choice, sender: sender.clone(), n_waiting: n_waiting.clone() };
            let seed = self.sampling.seed.wrapping_add(choice as u64);
            let request = Request {
                prompt: prompt.ids.clone(),
                // What fits, if no number was given.
                n: self.n_new.unwrap_or(room.max(1)),
                sampling: Sampling { seed, ..self.sampling.clone() },
                stop_ids: prompt.stop_ids.clone(),
                text: TextStream::new(&served.tokenizer, &self.stop),
                vocab_size: served.tokenizer.vocab_size(),
                logprobs: prompt.logprobs,
                prompt_logprobs: prompt.prompt_logprobs,
                owner: prompt.owner,
            };
            served.client.submit(request, Box::new(sink))?;
        }
        Ok(Events { receiver, n_waiting })
    }
}

/// What is continued.
#[derive(Debug, Default)]
pub struct Prompt {
    /// Its ids.
    pub ids: Vec<u32>,
    /// Ids that end the answer.
    pub stop_ids: Vec<u32>,
    /// Probabilities of new tokens, and so many of the most probable.
    pub logprobs: Option<usize>,
    /// The same of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Whose key asked.
    pub owner: u64,
}

/// One choice's end of the channel.
struct Channel {
    choice: usize,
    sender: UnboundedSender<(usize, Event)>,
    n_waiting: Arc<AtomicUsize>,
}

impl Sink for Channel {
    fn send(&mut self, event: Event) {
        self.n_waiting.fetch_add(1, Ordering::AcqRel);
        // Whoever has gone is found out before the next step.
        let _ = self.sender.send((self.choice, event));
    }

    fn is_ready(&self) -> bool {
        self.n_waiting.load(Ordering::Acquire) < MAX_WAITING
    }

    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }
}

/// The events of all choices. When it is dropped, the engine stops working on them.
#[derive(Debug)]
pub struct Events {
    receiver: UnboundedReceiver<(usize, Event)>,
    n_waiting: Arc<AtomicUsize>,
}

impl Events {
    /// The next event and its choice; `None` after the last.
    pub async fn next(&mut self) -> Option<(usize, Event)> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Event)>> {
        let event = ready!(self.receiver.poll_recv(context));
        if event.is_some() {
            self.n_waiting.fetch_sub(1, Ordering::AcqRel);
        }
        Poll::Ready(event)
    }
}

/// Turns events into the data of server-sent events.
pub trait Chunks: Send + Unpin + 'static {
    /// What comes before everything.
    fn begin(&mut self) -> Vec<Value>;

    /// What an event becomes.
    fn event(&mut self, choice: usize, event: Event) -> Result<Vec<Value>, ApiError>;

    /// What comes after everything, before `[DONE]`.
    fn end(&mut self) -> Vec<Value>;
}

/// An answer as server-sent events.
pub fn stream(events: Events, n_choices: usize, chunks: impl Chunks) -> Response {
    let body = Body::from_stream(EventStream { events, n_open: n_choices, chunks, phase: Phase::Begin });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, body).into_response()
}

struct EventStream<C> {
    events: Events,
    /// Choices that go on.
    n_open: usize,
    chunks: C,
    phase: Phase,
}

enum Phase {
    Begin,
    Middle,
    Over,
}

impl<C: Chunks> Stream for EventStream<C> {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            let mut data = match this.phase {
                Phase::Over => return Poll::Ready(None),
                Phase::Begin => {
                    this.phase = Phase::Middle;
                    lines(this.chunks.begin())
                }
                Phase::Middle => {
                    let chunks = match ready!(this.events.poll(context)) {
                        Some((choice, event)) => {
                            this.n_open -= usize::from(matches!(event, Event::End(_)));
                            this.chunks.event(choice, event)
                        }
                        None => Err(ApiError::internal()),
                    };
                    match chunks {
                        Ok(chunks) => lines(chunks),
                        Err(error) => {
                            this.phase = Phase::Over;
                            lines(vec![error.body()])
                        }
                    }
                }
            };
            if this.n_open == 0 && !matches!(this.phase, Phase::Over) {
                this.phase = Phase::Over;
                data.push_str(&lines(this.chunks.end()));
                data.push_str("data: [DONE]\n\n");
            }
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(data.into())));
            }
        }
    }
}

fn lines(chunks: Vec<Value>) -> String {
    chunks.into_iter().map(|chunk| format!("data: {chunk}\n\n")).collect()
}

/// One choice, whole.
#[derive(Debug, Default)]
pub struct Whole {
    /// Its text.
    pub text: String,
    /// Its tokens, if their probabilities were wanted.
    pub logprobs: Vec<infer::engine::Logprob>,
    /// Those of the prompt.
    pub prompt: Vec<infer::engine::Logprob>,
    /// How it ended.
    pub finished: Option<Finished>,
}

/// All choices, when the last has ended.
///
/// # Errors
/// If one fails.
pub async fn whole(mut events: Events, n_choices: usize, state: &State) -> Result<Vec<Whole>, ApiError> {
    let mut choices: Vec<Whole> = (0..n_choices).map(|_| Whole::default()).collect();
    let mut n_open = n_choices;
    while n_open > 0 {
        let Some((choice, event)) = events.next().await else { return Err(ApiError::internal()) };
        let whole = &mut choices[choice];
        match event {
            Event::Prompt(prompt) => whole.prompt = prompt,
            Event::Token { text, logprob, .. } => {
                whole.text.push_str(&text);
                whole.logprobs.extend(logprob);
            }
            Event::End(finished) => {
                whole.text.push_str(&finished.text);
                state.metrics.finished(&finished);
                whole.finished = Some(finished);
                n_open -= 1;
            }
            Event::Failed(failure) => return Err(failed(&failure)),
        }
    }
    Ok(choices)
}

/// A failure in the middle, which is told without its details: those are for the log.
pub fn failed(failure: &infer::engine::Failure) -> ApiError {
    crate::output::note(&format!("a request failed: {failure}"));
    ApiError::internal()
}

/// Tokens of a request, as the interface counts them.
pub fn usage(finished: &[Finished]) -> Value {
    let n_prompt = finished.first().map_or(0, |finished| finished.n_prompt);
    let n_new: usize = finished.iter().map(|finished| finished.n_new).sum();
    json!({
        "prompt_tokens": n_prompt,
        "completion_tokens": n_new,
        "total_tokens": n_prompt + n_new,
        "prompt_tokens_details": { "cached_tokens": finished.first().map_or(0, |finished| finished.n_cached) },
    })
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    now_ns() / 1_000_000_000
}
