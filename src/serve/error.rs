//! Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use infer::engine::Refused;
use infer::worker;
use serde_json::{Value, json};

/// Why a request is not answered.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

/// Seconds after which a client may try again when the queue was full.
const RETRY_AFTER: u32 = 1;

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// A value of a request that cannot be.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// A body that is no request at all.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A name of no model.
    pub fn unknown_model(id: &str) -> Self {
        Self {
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..Self::new(StatusCode::NOT_FOUND, format!("there is no model `{}`", shortened(id)))
        }
    }

    /// A path of nothing.
    pub fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// A path of something else.
    pub fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method")
    }

    /// A missing or wrong key.
    pub fn unauthorized() -> Self {
        Self {
            code: Some("invalid_api_key"),
            ..Self::new(
                StatusCode::UNAUTHORIZED,
                "a valid key is needed: `Authorization: Bearer KEY`, exactly once",
            )
        }
    }

    /// A host or an origin that is not the server's.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// A body in another form.
    pub fn unsupported_media_type() -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be `Content-Type: application/json`")
    }

    /// A body that is too long.
    pub fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {limit} bytes"))
    }

    /// A body that does not come.
    pub fn timeout(seconds: u64) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {seconds} s"))
    }

    /// A model that is not there yet, or no longer.
    pub fn unavailable(why: &str) -> Self {
        Self { code: Some("unavailable"), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, why) }
    }

    /// A fault of the server's own. What it was stands in its log.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed: its log says why")
    }

    /// The error as the body has it.
    pub fn body(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        } })
    }
}

/// A name as an error may repeat it.
pub fn shortened(text: &str) -> String {
    let mut short: String =
        text.chars().take(64).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(64).is_some() {
        short.push('\u{2026}');
    }
    short
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
        }
        response
    }
}

impl From<worker::Error> for ApiError {
    fn from(error: worker::Error) -> Self {
        let message = error.to_string();
        match error {
            worker::Error::Full(_) => {
                Self { code: Some("queue_full"), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
            }
            worker::Error::Stopped => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
            worker::Error::Refused(Refused::TooLong { .. } | Refused::NoMemory { .. }) => {
                Self { code: Some("context_length_exceeded"), ..Self::malformed(message) }
            }
            worker::Error::Refused(Refused::Sampling(error)) => Self::invalid(error.key, message),
            worker::Error::Refused(Refused::EmptyPrompt | Refused::UnknownId { .. }) => {
                Self::invalid("prompt", message)
            }
        }
    }
}
