//! What every request passes before its handler: host, origin, key, form and size of the body.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::error::{ApiError, shortened};
use super::state::State;

/// Whose key a request came with; 0 without keys.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owner(pub u64);

/// Checks where a request comes from, and what it brings.
pub async fn check(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let begin = Instant::now();
    let id = state.unique("req");
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match whole(&state, request).await {
        Ok(request) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    state.metrics.answered(response.status().as_u16());
    response.headers_mut().insert("x-request-id", HeaderValue::from_str(&id).expect("letters and digits"));
    if state.limits.log {
        crate::output::log(&serde_json::json!({
            "request": id,
            "method": method.as_str(),
            "path": shortened(&path),
            "status": response.status().as_u16(),
            "ms": begin.elapsed().as_millis() as u64,
        }));
    }
    response
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

/// Checks the key, if the server has any.
pub async fn key(Shared(state): Shared<Arc<State>>, mut request: Request, next: Next) -> Response {
    match owner(&state, &request) {
        Ok(owner) => {
            request.extensions_mut().insert(owner);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

fn owner(state: &State, request: &Request) -> Result<Owner, ApiError> {
    if state.keys.is_empty() {
        return Ok(Owner::default());
    }
    let mut given = request.headers().get_all(header::AUTHORIZATION).iter();
    let (Some(one), None) = (given.next(), given.next()) else { return Err(ApiError::unauthorized()) };
    let key = one.to_str().ok().and_then(|value| value.split_once(' '));
    let Some((_, key)) = key.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
        return Err(ApiError::unauthorized());
    };
    // Hashes are compared, all of them and in full, so that time tells nothing of a key.
    let hash: [u8; 32] = Sha256::digest(key.trim().as_bytes()).into();
    let differs = |other: &[u8; 32]| hash.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b));
    let found = state.keys.iter().enumerate().fold(None, |found, (i, (_, other))| match differs(other) {
        0 => Some(i),
        _ => found,
    });
    found.map(|i| Owner(1 + i as u64)).ok_or_else(ApiError::unauthorized)
}
