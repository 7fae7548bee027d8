//! Spans of requests and of their answers, and where they go: with the feature `otlp` and `--otlp URL` to a collector, in
//! [OpenTelemetry's protocol](https://opentelemetry.io/docs/specs/otlp/) over HTTP.
//!
//! ```text
//! POST /v1/chat/completions          from the request to the last byte of the answer; belongs to the client's trace, if any
//!   generate                         one for each choice, from its submission until the engine is done with it
//! ```
//! Attributes have the names of OpenTelemetry's conventions for HTTP and for generative models. Neither prompts nor answers
//! are in them. Without a collector a span costs nothing but the question whether there is one.

use axum::extract::Request;
use infer::engine::Finished;
use tracing::Span;
use tracing::field::Empty;

/// What all spans here are known by.
pub const TARGET: &str = "flint::serve";

/// The span of a request, with its id.
pub fn request(id: &str, request: &Request) -> Span {
    let (method, path) = (request.method().as_str(), request.uri().path());
    let path = super::error::shortened(path);
    let span = tracing::info_span!(
        target: TARGET,
        "request",
        otel.name = format!("{method} {path}"),
        otel.kind = "server",
        http.request.method = method,
        http.response.status_code = Empty,
        url.path = path.as_str(),
        gen_ai.request.model = Empty,
        request.id = id,
    );
    #[cfg(feature = "otlp")]
    super::collector::join(&span, request.headers());
    span
}

/// Notes the status of the answer.
pub fn answered(span: &Span, status: u16) {
    span.record("http.response.status_code", status);
}

/// Notes the model in the span of the request that is being handled.
pub fn asked_for(model: &str) {
    Span::current().record("gen_ai.request.model", model);
}

/// The span of a choice of the request that is being handled.
pub fn choice(idx: usize) -> Span {
    tracing::info_span!(
        target: TARGET,
        "generate",
        gen_ai.choice = idx,
        gen_ai.usage.input_tokens = Empty,
        gen_ai.usage.output_tokens = Empty,
        gen_ai.response.finish_reason = Empty,
        gen_ai.server.time_to_first_token = Empty,
        flint.cached_tokens = Empty,
    )
}

/// Notes how a choice ended; times are in seconds.
pub fn finished(span: &Span, finished: &Finished) {
    span.record("gen_ai.usage.input_tokens", finished.n_prompt);
    span.record("gen_ai.usage.output_tokens", finished.n_new);
    span.record("gen_ai.response.finish_reason", finished.reason.name());
    span.record("gen_ai.server.time_to_first_token", finished.time_to_first_token.as_secs_f64());
    span.record("flint.cached_tokens", finished.n_cached);
}
