//! Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use infer::encoding;
use infer::engine::Refused;
use serde_json::{Value, json};

/// Why a request is not answered.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which a client may try again.
    retry_after: u32,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: 1 }
    }

    /// A value of a request that cannot be.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// A field that must be there.
    pub fn missing(name: &str) -> Self {
        Self::invalid(name, format!("`{name}` is missing")).coded("missing_required_parameter")
    }

    /// The same with a code that programs can tell it by: OpenAI's, where there is one.
    pub fn coded(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
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

    /// A prompt or a text that is longer than the model takes.
    pub fn too_long(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
    }

    /// A key that has used what it may, until so many seconds have passed.
    pub fn limited(message: impl Into<String>, retry_after: u32) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, message);
        Self { code: Some("rate_limit_exceeded"), retry_after, ..error }
    }

    /// Seconds after which a client may try again.
    #[cfg(test)]
    pub fn retry_after(&self) -> u32 {
        self.retry_after
    }

    /// A body that is too long.
    pub fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {limit} bytes"))
    }

    /// A body that does not come.
    pub fn timeout(seconds: u64) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {seconds} s"))
    }

    /// A request that an engine does not take; `prompt` is the field of its prompt, `n_new` that of its most new tokens, if
    /// there is one.
    pub fn refused(why: &Refused, prompt: &str, n_new: Option<&str>) -> Self {
        let message = why.to_string();
        match why {
            // Of a prompt that fits, it is the number that is too large, if there is one.
            Refused::TooLong { prompt: n, context, .. } if n <= context => {
                Self::too_long(n_new.unwrap_or(prompt), message)
            }
            Refused::TooLong { .. } => Self::too_long(prompt, message),
            Refused::NoMemory { .. } => Self::too_long(n_new.unwrap_or(prompt), message),
            Refused::NoRoom { .. } => Self::invalid(n_new.unwrap_or(prompt), message),
            Refused::Sampling(error) => Self::invalid(error.key, message),
            Refused::EmptyPrompt | Refused::UnknownId { .. } => Self::invalid(prompt, message),
        }
    }

    /// A queue in which so many wait already.
    pub fn full(n: usize) -> Self {
        let message = format!("{n} requests wait already: try again later");
        Self { code: Some("queue_full"), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// An engine that is gone.
    pub fn stopped(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// A model that is not there yet, or no longer.
    pub fn unavailable(why: &str) -> Self {
        Self { code: Some("unavailable"), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, why) }
    }

    /// A fault of the server's own. What it was stands in its log.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed: its log says why")
    }

    /// The same of another field: what a part of the request was made of.
    pub fn of(self, param: &str) -> Self {
        Self { param: self.param.map(|_| param.to_owned()), ..self }
    }

    /// The same where a part of a field's name is another: the first that there is.
    pub fn renamed(self, old: &str, new: &str) -> Self {
        Self {
            param: self.param.map(|param| param.replacen(old, new, 1)),
            message: self.message.replace(old, new),
            ..self
        }
    }

    /// The error as the body has it.
    pub fn body(&self) -> Value {
        let kind = match self.status.as_u16() {
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
        if [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&self.status) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(self.retry_after));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<encoding::Error> for ApiError {
    fn from(error: encoding::Error) -> Self {
        match error {
            encoding::Error::Full(n) => Self::full(n),
            encoding::Error::Stopped => Self::stopped(error.to_string()),
        }
    }
}
