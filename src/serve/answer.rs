//! From a request's settings to its events, and from events to an answer: whole, or as server-sent events.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use infer::engine::{Event, Failure, Finished, Request, Sink};
use infer::sampler::NoToken;
use infer::{FinishReason, Grammar, Sampling, TextStream, worker};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio_stream::Stream;
use tracing::Span;

use super::accounts::{Accounts, Owner};
use super::error::{ApiError, shortened};
use super::fields::Fields;
use super::models::Served;
use super::state::State;
use super::traces;

/// Events that may wait for a reader: its sequences then stop until it has read some.
const MAX_WAITING: usize = 256;

/// Who has read nothing for so long, while so many events waited, has gone: the room of a sequence is others' too.
const MAX_STALL: Duration = Duration::from_secs(60);

/// Stop strings of a request, and characters of each.
const MAX_STOPS: usize = 16;
const MAX_STOP_LEN: usize = 256;

/// The most probable tokens that may be asked for.
pub const MAX_TOP: u64 = 20;

/// What `logit_bias` may say of an id at least, which forbids it.
const MIN_BIAS: f32 = -100.0;

/// The settings that chat and completions share.
#[derive(Debug)]
pub struct Settings {
    /// Most new tokens, if there is a number, and the field that says so.
    pub n_new: Option<(usize, &'static str)>,
    /// How many answers.
    pub n_choices: usize,
    /// Whether they come piece by piece.
    pub stream: bool,
    /// Whether a stream ends with the numbers of tokens.
    pub include_usage: bool,
    /// Whether choices are compared by the probabilities of their tokens.
    pub compares: bool,
    /// Whether an answer is as long as it may be: the ids that would end it are not picked.
    ignore_eos: bool,
    sampling: Sampling,
    stop: Vec<String>,
    accounts: Arc<Accounts>,
    is_cut: watch::Receiver<bool>,
}

impl Settings {
    /// Takes them from a request.
    ///
    /// # Errors
    /// If one has a value that cannot be.
    pub fn take(
        fields: &mut Fields,
        n_new: Option<(u64, &'static str)>,
        served: &Served,
        state: &State,
    ) -> Result<Self, ApiError> {
        let sampling = super::sampling::take(fields, &served.tokenizer)?;
        let ignore_eos = fields.take("ignore_eos")?.unwrap_or(false);
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
            Some(options) => stream_options(fields, &options)?,
        };
        let n_choices = fields.whole("n", 1..=state.limits.choices)?.unwrap_or(1) as usize;
        let n_new = n_new.map(|(n, field)| (n as usize, field));
        let (accounts, is_cut, compares) = (state.accounts.clone(), state.is_cut(), false);
        Ok(Self {
            n_new,
            n_choices,
            stream,
            include_usage,
            compares,
            ignore_eos,
            sampling,
            stop,
            accounts,
            is_cut,
        })
    }

    /// How tokens are picked.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Hands all prompts to the model's engine, each once for each choice.
    ///
    /// # Errors
    /// If the engine does not take one of them: then none is answered.
    pub fn submit(&self, served: &Served, prompts: &[Prompt]) -> Result<Vec<Events>, ApiError> {
        let (n, most) = (prompts.len() * self.n_choices, served.client.size().n_waiting);
        if n > most && n > 1 {
            // It would be full for ever.
            let param = if prompts.len() > 1 { "prompt" } else { "n" };
            let why = format!(
                "`{param}`: {n} texts are asked for, and the queue holds {most}: send fewer prompts, or a smaller `n`"
            );
            return Err(ApiError::invalid(param, why));
        }
        let all = prompts.iter().map(|prompt| self.submit_one(served, prompt)).collect::<Result<_, _>>()?;
        // Nobody pays for what was not taken.
        for prompt in prompts {
            self.accounts.charge(Owner(prompt.owner), prompt.ids.len());
        }
        Ok(all)
    }

    fn submit_one(&self, served: &Served, prompt: &Prompt) -> Result<Events, ApiError> {
        let (sender, receiver) = unbounded_channel();
        let n_waiting = Arc::new(AtomicUsize::new(0));
        let room = (served.client.size().context + 1).saturating_sub(prompt.ids.len());
        for choice in 0..self.n_choices {
            let (owner, accounts) = (Owner(prompt.owner), self.accounts.clone());
            let (sender, n_waiting) = (sender.clone(), n_waiting.clone());
            // A whole answer is read when it is there, and is no longer than the context.
            let most_waiting = if self.stream { MAX_WAITING } else { usize::MAX };
            let span = traces::choice(choice);
            let sink =
                Channel { choice, sender, n_waiting, most_waiting, full_since: None, owner, accounts, span };
            let mut sampling = self.sampling.clone();
            sampling.seed = sampling.seed.wrapping_add(choice as u64);
            // What has a form ends where that does.
            if self.ignore_eos && prompt.grammar.is_none() {
                sampling.logit_bias.extend(prompt.stop_ids.iter().map(|&id| (id, MIN_BIAS)));
            }
            let request = Request {
                prompt: prompt.ids.clone(),
                // What fits, if no number was given.
                n: self.n_new.map_or(room.max(1), |(n, _)| n),
                sampling,
                stop_ids: prompt.stop_ids.clone(),
                text: TextStream::new(&served.tokenizer, &self.stop),
                vocab_size: served.tokenizer.vocab_size(),
                constraint: prompt.grammar.as_ref().map(Grammar::begin),
                logprobs: prompt.logprobs.or(self.compares.then_some(0)),
                prompt_logprobs: prompt.prompt_logprobs,
                owner: prompt.owner,
            };
            served.client.submit(request, Box::new(sink)).map_err(|error| match error {
                worker::Error::Refused(why) => {
                    ApiError::refused(&why, prompt.field, self.n_new.map(|(_, field)| field))
                }
                worker::Error::Full(n) => ApiError::full(n),
                worker::Error::Stopped => ApiError::stopped(error.to_string()),
            })?;
        }
        let mut is_cut = self.is_cut.clone();
        let cut = Box::pin(async move {
            // Nobody can cut what is left of a server that is gone.
            if is_cut.wait_for(|is_cut| *is_cut).await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        Ok(Events { receiver, n_waiting, cut })
    }
}

/// Whether a stream ends with the numbers of tokens.
fn stream_options(fields: &Fields, options: &Value) -> Result<bool, ApiError> {
    let Some(options) = options.as_object() else {
        return Err(ApiError::invalid("stream_options", "`stream_options` must be an object"));
    };
    let mut include_usage = false;
    for (name, value) in options {
        let param = format!("stream_options.{}", shortened(name));
        match (&**name, value) {
            (_, Value::Null) | ("include_obfuscation", Value::Bool(false)) => {}
            ("include_usage", Value::Bool(wanted)) => include_usage = *wanted,
            ("include_obfuscation", Value::Bool(true)) => {
                fields
                    .refuse(&param, format!("`{param}`: this server does not pad its events: send false"))?;
            }
            ("include_usage" | "include_obfuscation", _) => {
                return Err(ApiError::invalid(param.clone(), format!("`{param}` must be true or false")));
            }
            _ => fields.unknown(&param, format!("`{param}` is no field of this request"))?,
        }
    }
    Ok(include_usage)
}

/// What is continued.
#[derive(Debug, Default)]
pub struct Prompt {
    /// Its ids.
    pub ids: Vec<u32>,
    /// The field that they come from.
    pub field: &'static str,
    /// Ids that end the answer.
    pub stop_ids: Vec<u32>,
    /// Probabilities of new tokens, and so many of the most probable.
    pub logprobs: Option<usize>,
    /// The same of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// What the answer must be.
    pub grammar: Option<Grammar>,
    /// Whose key asked.
    pub owner: u64,
}

/// One choice's end of the channel.
struct Channel {
    choice: usize,
    sender: UnboundedSender<(usize, Event)>,
    n_waiting: Arc<AtomicUsize>,
    most_waiting: usize,
    /// Since when nothing more may wait.
    full_since: Option<Instant>,
    owner: Owner,
    accounts: Arc<Accounts>,
    span: Span,
}

impl Sink for Channel {
    fn send(&mut self, event: Event) {
        // As they come: who hangs up has used them too.
        self.accounts.charge(self.owner, usize::from(matches!(event, Event::Token { .. })));
        if let Event::End(finished) = &event {
            traces::finished(&self.span, finished);
        }
        self.n_waiting.fetch_add(1, Ordering::AcqRel);
        // Whoever has gone is found out before the next step.
        let _ = self.sender.send((self.choice, event));
    }

    fn is_ready(&self) -> bool {
        self.n_waiting.load(Ordering::Acquire) < self.most_waiting
    }

    fn is_gone(&mut self) -> bool {
        let full_since = self.full_since.take().filter(|_| !self.is_ready());
        if !self.is_ready() {
            self.full_since = full_since.or_else(|| Some(Instant::now()));
        }
        self.sender.is_closed() || self.full_since.is_some_and(|since| since.elapsed() > MAX_STALL)
    }
}

/// The events of all choices. When it is dropped, the engine stops working on them.
pub struct Events {
    receiver: UnboundedReceiver<(usize, Event)>,
    n_waiting: Arc<AtomicUsize>,
    /// Ends when the server waits no longer for answers.
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Events {
    /// The next event and its choice.
    ///
    /// # Errors
    /// If none comes any more.
    pub async fn next(&mut self) -> Result<(usize, Event), ApiError> {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(usize, Event), ApiError>> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(ApiError::unavailable("the server stopped before the answer was whole")));
        }
        let event = ready!(self.receiver.poll_recv(context));
        self.n_waiting.fetch_sub(usize::from(event.is_some()), Ordering::AcqRel);
        Poll::Ready(event.ok_or_else(ApiError::internal))
    }
}

/// Turns events into the data of server-sent events.
pub trait Chunks: Send + Unpin + 'static {
    /// Whether the `type` of each is the event's name, and nothing is sent after the last.
    const IS_NAMED: bool = false;

    /// What comes before everything.
    fn begin(&mut self) -> Vec<Value>;

    /// What an event becomes.
    fn event(&mut self, choice: usize, event: Event) -> Result<Vec<Value>, ApiError>;

    /// What comes after everything, before `[DONE]`.
    fn end(&mut self) -> Vec<Value>;

    /// What comes instead of the rest when it cannot go on.
    fn failed(&mut self, error: &ApiError) -> Vec<Value> {
        vec![error.body()]
    }
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
                    lines::<C>(this.chunks.begin())
                }
                Phase::Middle => {
                    let chunks = ready!(this.events.poll(context)).and_then(|(choice, event)| {
                        this.n_open -= usize::from(matches!(event, Event::End(_)));
                        this.chunks.event(choice, event)
                    });
                    match chunks {
                        Ok(chunks) => lines::<C>(chunks),
                        Err(error) => {
                            this.phase = Phase::Over;
                            lines::<C>(this.chunks.failed(&error))
                        }
                    }
                }
            };
            if this.n_open == 0 && !matches!(this.phase, Phase::Over) {
                this.phase = Phase::Over;
                data.push_str(&lines::<C>(this.chunks.end()));
                if !C::IS_NAMED {
                    data.push_str("data: [DONE]\n\n");
                }
            }
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(data.into())));
            }
        }
    }
}

fn lines<C: Chunks>(chunks: Vec<Value>) -> String {
    let line = |chunk: Value| match chunk["type"].as_str() {
        Some(name) if C::IS_NAMED => format!("event: {name}\ndata: {chunk}\n\n"),
        _ => format!("data: {chunk}\n\n"),
    };
    chunks.into_iter().map(line).collect()
}

/// One choice, whole.
#[derive(Debug, Default)]
pub struct Whole {
    /// Its text.
    pub text: String,
    /// Its ids, each with where its text ends.
    pub ids: Vec<(u32, usize)>,
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
        let (choice, event) = events.next().await?;
        let whole = &mut choices[choice];
        match event {
            Event::Prompt(prompt) => whole.prompt = prompt,
            Event::Token { id, text, logprob } => {
                whole.text.push_str(&text);
                whole.ids.push((id, whole.text.len()));
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
pub fn failed(failure: &Failure) -> ApiError {
    match failure {
        // A grammar is the client's own.
        Failure::Constraint(broken) => ApiError::malformed(broken.to_string()),
        Failure::NoToken(NoToken::AllForbidden) => {
            ApiError::invalid("logit_bias", format!("`logit_bias`: {failure}"))
        }
        _ => {
            crate::output::note(&format!("a request failed: {failure}"));
            ApiError::internal()
        }
    }
}

/// Says of a choice or a response that is whole because there was no room for more that this is so, by a field of vLLM's.
pub fn note_cut(choice: &mut Value, reason: FinishReason) {
    if reason == FinishReason::Cut {
        choice["stop_reason"] = "length".into();
    }
}

/// Tokens of a request, as the interface counts them.
pub fn usage(finished: &[Finished]) -> Value {
    let n_prompt = finished.first().map_or(0, |finished| finished.n_prompt);
    let n_new: usize = finished.iter().map(|finished| finished.n_new).sum();
    usage_of(n_prompt, finished.first().map_or(0, |finished| finished.n_cached), n_new)
}

/// So many tokens of prompts, of which some were known, and of answers.
pub fn usage_of(n_prompt: usize, n_cached: usize, n_new: usize) -> Value {
    json!({
        "prompt_tokens": n_prompt,
        "completion_tokens": n_new,
        "total_tokens": n_prompt + n_new,
        "prompt_tokens_details": { "cached_tokens": n_cached, "audio_tokens": 0 },
        "completion_tokens_details": {
            "reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
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
