//! What every request passes before its handler: host, origin, key, form and size of the body.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use tracing::Instrument;

use super::accounts::Owner;
use super::error::{ApiError, shortened};
use super::fields::Warnings;
use super::state::State;
use super::traces;

/// Checks where a request comes from, and what it brings.
pub async fn check(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let id = state.unique("req-");
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let warnings = state.limits.is_lenient.then(Warnings::default);
    let span = traces::request(&id, &request);
    let mut response = match whole(&state, request).await {
        Ok(mut request) => {
            if let Some(warnings) = &warnings {
                request.extensions_mut().insert(warnings.clone());
            }
            next.run(request).instrument(span.clone()).await
        }
        Err(error) => error.into_response(),
    };
    traces::answered(&span, response.status().as_u16());
    state.metrics.answered(response.status().as_u16());
    if state.is_draining() {
        // A client that keeps its connection would ask the same server again.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.headers_mut().insert("x-request-id", HeaderValue::from_str(&id).expect("letters and digits"));
    let warnings = warnings.map(|warnings| warnings.take()).unwrap_or_default();
    for warning in &warnings {
        // 299 is a warning of any kind that stays with the answer (RFC 7234, 5.5.7).
        let text = format!("299 - \"{}\"", warning.escape_default());
        response.headers_mut().append(header::WARNING, HeaderValue::from_str(&text).expect("ASCII"));
    }
    if state.limits.log {
        let mut event = serde_json::json!({
            "request": id,
            "method": method.as_str(),
            "path": shortened(&path),
            "status": response.status().as_u16(),
            "ms": begin.elapsed().as_millis() as u64,
        });
        if !warnings.is_empty() {
            event["warnings"] = warnings.into();
        }
        crate::output::log(&event);
    }
    response.map(|body| Body::new(Held { body, _until_end: span }))
}

/// The request with its whole body, if it may come in.
async fn whole(state: &State, request: Request) -> Result<Request, ApiError> {
    let headers = request.headers();
    // A page of another site can make a browser send requests here, under a name of its own that it points to this
    // machine: such a request names that host, or says where it comes from.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).or_else(|| request.uri().host());
    let name = host.map(without_port).unwrap_or_default();
    if !state.hosts.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(name)) {
        return Err(ApiError::forbidden(format!(
            "`Host: {}` is not this server: `--host-name` allows more names",
            shortened(host.unwrap_or_default())
        )));
    }
    if headers.get_all(header::HOST).iter().count() > 1 {
        return Err(ApiError::malformed("`Host` is there more than once"));
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let name = origin.split_once("://").map_or("", |(_, rest)| without_port(rest));
        if !state.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)) {
            return Err(ApiError::forbidden(format!("`Origin: {}` may not ask here", shortened(origin))));
        }
    }
    if request.method() != Method::POST {
        return Ok(request);
    }
    if state.is_draining() {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::unsupported_media_type());
    }
    let limit = state.limits.body;
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::too_large(limit));
    }
    // Nobody without a key is listened to for long.
    owner(state, &request)?;
    let (parts, body) = request.into_parts();
    let time = state.limits.read_time;
    match tokio::time::timeout(time, to_bytes(body, limit)).await {
        Ok(Ok(bytes)) => Ok(Request::from_parts(parts, Body::from(bytes))),
        Ok(Err(_)) => Err(ApiError::too_large(limit)),
        Err(_) => Err(ApiError::timeout(time.as_secs())),
    }
}

fn without_port(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    }
}

/// Checks the key, if the server has any, and what it may still use.
pub async fn key(Shared(state): Shared<Arc<State>>, mut request: Request, next: Next) -> Response {
    let is_counted = request.method() == Method::POST;
    let entered = owner(&state, &request).and_then(|owner| {
        let open = is_counted.then(|| state.accounts.enter(owner)).transpose()?;
        Ok((owner, open))
    });
    match entered {
        Ok((owner, open)) => {
            request.extensions_mut().insert(owner);
            let response = next.run(request).await;
            match open {
                Some(open) => response.map(|body| Body::new(Held { body, _until_end: open })),
                None => response,
            }
        }
        Err(error) => error.into_response(),
    }
}

fn owner(state: &State, request: &Request) -> Result<Owner, ApiError> {
    if state.accounts.is_empty() {
        return Ok(Owner::default());
    }
    let mut given = request.headers().get_all(header::AUTHORIZATION).iter();
    let (Some(one), None) = (given.next(), given.next()) else { return Err(ApiError::unauthorized()) };
    let key = one.to_str().ok().and_then(|value| value.split_once(' '));
    let Some((_, key)) = key.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
        return Err(ApiError::unauthorized());
    };
    state.accounts.owner(key.trim()).ok_or_else(ApiError::unauthorized)
}

/// An answer's body, and what is dropped at its end: until then its request counts as open, and its span goes on.
struct Held<T> {
    body: Body,
    _until_end: T,
}

impl<T: Send + Unpin + 'static> HttpBody for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
