//! The feature `otlp`: spans go to a collector, in batches, on a thread of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use axum::body::Bytes;
use axum::http::{HeaderMap, Request, Response};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use super::traces::TARGET;

/// How long a collector may take for a batch, and for the last one when the server stops.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends spans while it lives.
#[derive(Debug)]
pub struct Collector {
    provider: SdkTracerProvider,
}

impl Collector {
    /// Sends all spans from now on to a collector at a URL: to `/v1/traces` under it, as the protocol has it.
    ///
    /// # Errors
    /// If the URL is none, or something else listens to spans already.
    pub fn new(url: &str) -> Result<Self> {
        let base = url.trim_end_matches('/');
        let endpoint = match base.ends_with("/v1/traces") {
            true => base.to_owned(),
            false => format!("{base}/v1/traces"),
        };
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .user_agent(concat!("flint/", env!("CARGO_PKG_VERSION")));
        let client = Client { agent: config.build().into(), is_told: Arc::default() };
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(endpoint)
            .with_timeout(PATIENCE)
            .build()
            .with_context(|| {
                format!("`otlp`: `{url}` is no URL of a collector, such as http://localhost:4318")
            })?;
        // What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say counts.
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("flint");
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_batch_exporter(exporter)
            .build();
        let layer = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("flint"))
            .with_filter(Targets::new().with_target(TARGET, Level::INFO));
        tracing_subscriber::registry()
            .with(layer)
            .try_init()
            .context("`otlp`: spans go elsewhere already")?;
        Ok(Self { provider })
    }

    /// Sends what is left.
    pub fn finish(self) {
        // What cannot be sent was told.
        let _ = self.provider.shutdown_with_timeout(PATIENCE);
    }
}

/// Makes a span part of the trace that a request's headers name
/// ([W3C Trace Context](https://www.w3.org/TR/trace-context/)), if they do.
pub fn join(span: &Span, headers: &HeaderMap) {
    let parent = TraceContextPropagator::new().extract(&HeaderExtractor(headers));
    // Without a collector there is nothing to be part of.
    let _ = span.set_parent(parent);
}

/// Sends batches, and tells of the first that is not taken.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
    is_told: Arc<AtomicBool>,
}

impl Client {
    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let answer = self.agent.run(Request::from_parts(parts, body.to_vec()))?;
        let (parts, mut body) = answer.into_parts();
        Ok(Response::from_parts(parts, body.read_to_vec()?.into()))
    }
}

#[async_trait]
impl HttpClient for Client {
    /// Blocks: batches have their own thread.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let url = request.uri().clone();
        let answer = self.send(request);
        let why = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        match why {
            Some(why) if !self.is_told.swap(true, Ordering::Relaxed) => {
                crate::output::note(&format!("`otlp`: {url} takes no spans: {why}"));
            }
            Some(_) => {}
            None => self.is_told.store(false, Ordering::Relaxed),
        }
        answer
    }
}
