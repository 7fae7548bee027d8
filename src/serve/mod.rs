//! `flint serve`: models behind OpenAI's HTTP interface.
//!
//! ```text
//! connection -> guard (host, origin, key, size) -> handler -> Client -> engine thread
//!                                                     ^                      |
//!                                                     +------- events -------+
//! ```
//! A handler reads the request (`fields`), renders the prompt, and hands it to the engine of its model; what comes back
//! becomes one JSON answer or a stream of server-sent events (`answer`). What an answer must be (`constraint`, `tools`)
//! becomes a grammar, which the engine follows. A client that goes away drops its end of the
//! channel, which the engine sees before its next step.

mod accounts;
mod answer;
mod asked;
mod chat;
#[cfg(feature = "otlp")]
mod collector;
mod completions;
mod config;
mod connections;
mod constraint;
mod embeddings;
mod error;
mod fields;
mod guard;
mod messages;
mod metrics;
mod models;
mod openapi;
mod responses;
mod sampling;
mod state;
mod text;
mod tls;
mod tools;
mod traces;

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Router, middleware};
use serde_json::json;

pub use accounts::Accounts;
#[cfg(feature = "otlp")]
pub use collector::Collector;
pub use config::Config;
pub use connections::serve;
pub use constraint::Grammars;
pub use models::{Encoder, Loaded, Model, Models, Served};
pub use state::{Limits, State};
pub use text::n_threads;
pub use tls::acceptor;

use error::ApiError;

/// Method, path and handler of each endpoint. All but the first ask for a key, if there are any.
fn routes() -> Vec<(&'static str, &'static str, MethodRouter<Arc<State>>)> {
    vec![
        // Whether the process lives may be asked without a key.
        ("get", "/health/live", get(|| async { "alive\n" })),
        ("get", "/health/ready", get(ready)),
        ("get", "/metrics", get(metrics::show)),
        ("get", "/openapi.json", get(openapi::show)),
        ("get", "/v1/models", get(models)),
        ("get", "/v1/models/{*id}", get(model)),
        ("post", "/v1/chat/completions", post(chat::create)),
        ("post", "/v1/completions", post(completions::create)),
        ("post", "/v1/responses", post(responses::create)),
        ("post", "/v1/embeddings", post(embeddings::create)),
        ("post", "/tokenize", post(text::tokenize)),
        ("post", "/detokenize", post(text::detokenize)),
        ("post", "/apply-template", post(text::apply_template)),
    ]
}

/// All endpoints.
pub fn router(state: Arc<State>) -> Router {
    let mut routes = routes().into_iter();
    let add = |router: Router<Arc<State>>, (_, path, handler): (_, &str, _)| router.route(path, handler);
    let open = routes.by_ref().take(1).fold(Router::new(), add);
    let api = routes
        .fold(Router::new(), add)
        .fallback(|| async { ApiError::not_found("there is nothing at this path: see /openapi.json") })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(middleware::from_fn_with_state(state.clone(), guard::key));
    open.merge(api).layer(middleware::from_fn_with_state(state.clone(), guard::check)).with_state(state)
}

async fn ready(Shared(state): Shared<Arc<State>>) -> Response {
    match state.unready() {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// A model by one of its names.
fn described(state: &State, (model, memory): (&Model, &str), name: &str) -> serde_json::Value {
    json!({
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "flint",
        "root": model.id,
        "aliases": model.aliases,
        "kind": if model.is_encoder { "embedding" } else { "text" },
        "context_length": model.context,
        "state": memory,
        "memory_bytes": model.bytes,
    })
}

async fn models(Shared(state): Shared<Arc<State>>) -> Response {
    let mut data = Vec::new();
    for (model, memory) in state.models.all() {
        data.extend(model.names().map(|name| described(&state, (model, memory), name)));
    }
    Json(json!({ "object": "list", "data": data })).into_response()
}

async fn model(
    Shared(state): Shared<Arc<State>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // What is no text is no name.
    let Path(id) = id.map_err(|_| ApiError::unknown_model("\u{fffd}"))?;
    Ok(Json(described(&state, state.models.one(&id)?, &id)).into_response())
}
