//! `flint serve`: models behind OpenAI's HTTP interface.
//!
//! ```text
//! connection -> guard (host, origin, key, size) -> handler -> Client -> engine thread
//!                                                     ^                      |
//!                                                     +------- events -------+
//! ```
//! A handler reads the request (`fields`), renders the prompt, and hands it to the engine of its model; what comes back
//! becomes one JSON answer or a stream of server-sent events (`answer`). A client that goes away drops its end of the
//! channel, which the engine sees before its next step.

mod answer;
mod chat;
mod completions;
mod connections;
mod error;
mod fields;
mod guard;
mod metrics;
mod state;
mod text;

use std::sync::Arc;

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use serde_json::json;

pub use answer::now;
pub use connections::serve;
pub use state::{Limits, Served, State};

use error::ApiError;

/// All endpoints.
pub fn router(state: Arc<State>) -> Router {
    let api = Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/tokenize", post(text::tokenize))
        .route("/detokenize", post(text::detokenize))
        .route("/apply-template", post(text::apply_template))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics::show))
        .fallback(|| async { ApiError::not_found("there is nothing at this path: see /v1/models") })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(middleware::from_fn_with_state(state.clone(), guard::key));
    // Whether the process lives may be asked without a key.
    Router::new()
        .route("/health/live", get(|| async { "alive\n" }))
        .merge(api)
        .layer(middleware::from_fn_with_state(state.clone(), guard::check))
        .with_state(state)
}

async fn ready(Shared(state): Shared<Arc<State>>) -> Response {
    match state.unready() {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

fn described(served: &Served) -> serde_json::Value {
    json!({
        "id": served.id,
        "object": "model",
        "created": served.created,
        "owned_by": "flint",
        "context_length": served.client.size().context,
    })
}

async fn models(Shared(state): Shared<Arc<State>>) -> Response {
    let data: Vec<_> = state.served().map(described).collect();
    Json(json!({ "object": "list", "data": data })).into_response()
}

async fn model(
    Shared(state): Shared<Arc<State>>,
    axum::extract::Path(id): axum::extract::Path<String>,
) -> Result<Response, ApiError> {
    Ok(Json(described(state.model(&id)?)).into_response())
}
