//! A request that has come in: its fields, its model, and whose it is.

use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};

use super::accounts::Owner;
use super::error::ApiError;
use super::fields::{Fields, Warnings};
use super::models::{Encoder, Loaded, Served};
use super::state::State;
use super::text::off_the_loop;

/// What every handler with a model begins with. The model is in memory.
#[derive(Debug)]
pub struct Asked {
    /// All but `model`.
    pub fields: Fields,
    /// As the request named it.
    pub model: String,
    /// Whose key asked.
    pub owner: Owner,
    loaded: Loaded,
}

impl FromRequest<Arc<State>> for Asked {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<State>) -> Result<Self, ApiError> {
        let owner = request.extensions().get().copied().unwrap_or_default();
        let warnings: Option<Warnings> = request.extensions().get().cloned();
        // The guard has read it, and limited it.
        let body = to_bytes(request.into_body(), usize::MAX).await;
        let body = body.map_err(|error| ApiError::malformed(error.to_string()))?;
        let (fields, model) = off_the_loop(move || {
            let mut fields = Fields::read(&body)?.lenient(warnings);
            let model: String = fields.need("model")?;
            Ok((fields, model))
        })
        .await?;
        super::traces::asked_for(&model);
        let loaded = state.models.get(&model, state.limits.load_time).await?;
        Ok(Self { fields, model, owner, loaded })
    }
}

impl Asked {
    /// The model, which is to continue a text.
    ///
    /// # Errors
    /// If it does something else.
    pub fn decoder(&self) -> Result<Arc<Served>, ApiError> {
        match &self.loaded {
            Loaded::Decoder(served) => Ok(served.clone()),
            Loaded::Encoder(_) => {
                let why = format!("`{}` makes vectors, not texts: ask /v1/embeddings for them", self.model);
                Err(ApiError::invalid("model", why))
            }
        }
    }

    /// The model, which is to make vectors.
    ///
    /// # Errors
    /// If it does something else.
    pub fn encoder(&self) -> Result<Arc<Encoder>, ApiError> {
        match &self.loaded {
            Loaded::Encoder(encoder) => Ok(encoder.clone()),
            Loaded::Decoder(_) => {
                let why = format!(
                    "`{}` continues texts: vectors are made by models given with --embed",
                    self.model
                );
                Err(ApiError::invalid("model", why))
            }
        }
    }

    /// The vocabulary of the model, and how many tokens it takes.
    pub fn vocabulary(&self) -> (tokenizer::Tokenizer, usize) {
        match &self.loaded {
            Loaded::Decoder(served) => (served.tokenizer.clone(), served.client.size().context),
            Loaded::Encoder(encoder) => (encoder.reader.tokenizer().clone(), encoder.reader.max_tokens()),
        }
    }
}
