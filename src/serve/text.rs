//! `/tokenize`, `/detokenize` and `/apply-template`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Json, Response};
use serde_json::json;
use tokenizer::EncodeOptions;

use super::chat;
use super::error::ApiError;
use super::fields::Fields;
use super::state::State;

/// Runs what may take longer than a network event may.
///
/// # Errors
/// Those of the work; if it panics, an internal error.
pub async fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(ApiError::internal()))
}

/// Ids of a text.
pub async fn tokenize(Shared(state): Shared<Arc<State>>, body: Bytes) -> Result<Response, ApiError> {
    off_the_loop(move || {
        let mut fields = Fields::read(&body)?;
        let model: String = fields.need("model")?;
        let served = state.model(&model)?;
        let text: String = fields.need("prompt")?;
        let options = EncodeOptions {
            add_special: fields.take("add_special_tokens")?.unwrap_or(true),
            parse_special: fields.take("parse_special")?.unwrap_or(false),
        };
        fields.finish()?;
        let ids = served.tokenizer.encode_with(&text, options);
        Ok(Json(json!({
            "tokens": ids, "count": ids.len(), "max_model_len": served.client.size().context,
        }))
        .into_response())
    })
    .await
}

/// The text of ids.
pub async fn detokenize(Shared(state): Shared<Arc<State>>, body: Bytes) -> Result<Response, ApiError> {
    off_the_loop(move || {
        let mut fields = Fields::read(&body)?;
        let model: String = fields.need("model")?;
        let served = state.model(&model)?;
        let ids: Vec<u32> = fields.need("tokens")?;
        fields.finish()?;
        let text = served.tokenizer.decode(&ids);
        let text = text.map_err(|error| ApiError::invalid("tokens", error.to_string()))?;
        Ok(Json(json!({ "prompt": text })).into_response())
    })
    .await
}

/// The prompt that a conversation becomes.
pub async fn apply_template(Shared(state): Shared<Arc<State>>, body: Bytes) -> Result<Response, ApiError> {
    off_the_loop(move || {
        let mut fields = Fields::read(&body)?;
        let model: String = fields.need("model")?;
        let served = state.model(&model)?;
        let conversation = chat::Conversation::take(served, &mut fields)?;
        fields.finish()?;
        Ok(Json(json!({ "prompt": conversation.text()?, "tokens": conversation.ids()? })).into_response())
    })
    .await
}
