//! `/metrics`, in Prometheus' text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State as Shared;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use infer::encoding;
use infer::engine::{Finished, Stats};

use super::models::{Loaded, Model};
use super::state::State;

/// Upper ends of the buckets, in seconds: those of vLLM.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];

/// What a server counts beside what its engines do.
#[derive(Debug)]
pub struct Metrics {
    first_token: Histogram,
    between_tokens: Histogram,
    /// Answers by the hundreds of their status.
    answers: [AtomicU64; 6],
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            first_token: Histogram::new(FIRST_TOKEN),
            between_tokens: Histogram::new(BETWEEN_TOKENS),
            answers: Default::default(),
        }
    }
}

#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    /// Of each bucket and of what is beyond, and the sum.
    counts: Mutex<(Vec<u64>, f64)>,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: Mutex::new((vec![0; bounds.len() + 1], 0.0)) }
    }

    fn note(&self, seconds: f64, n: u64) {
        let bucket = self.bounds.iter().position(|&bound| seconds <= bound).unwrap_or(self.bounds.len());
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.0[bucket] += n;
        counts.1 += seconds * n as f64;
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let (counts, sum) = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut total = 0;
        for (bound, count) in self.bounds.iter().zip(&counts) {
            total += count;
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        total += counts[self.bounds.len()];
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {total}\n{name}_sum {sum}\n{name}_count {total}");
    }
}

impl Metrics {
    /// Notes how long a request took.
    pub fn finished(&self, finished: &Finished) {
        self.first_token.note(finished.time_to_first_token.as_secs_f64(), 1);
        let n = finished.n_new.saturating_sub(1) as u64;
        if n > 0 {
            self.between_tokens.note(finished.decode_time.as_secs_f64() / n as f64, n);
        }
    }

    /// Notes the status of an answer.
    pub fn answered(&self, status: u16) {
        self.answers[usize::from(status / 100).min(5)].fetch_add(1, Ordering::Relaxed);
    }
}

/// All numbers.
pub async fn show(Shared(state): Shared<Arc<State>>) -> Response {
    let mut out = String::new();
    let ready = state.models.ready();
    let decoder = |(model, loaded): &(&Model, Loaded)| match loaded {
        Loaded::Decoder(served) => {
            Some((model.id.clone(), served.client.stats(), served.client.size().n_pages))
        }
        Loaded::Encoder(_) => None,
    };
    let all: Vec<(String, Stats, usize)> = ready.iter().filter_map(decoder).collect();
    let mut of_each = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Stats, usize) -> f64| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (id, stats, n_pages) in &all {
            let id = label(id);
            let _ = writeln!(out, "{name}{{model=\"{id}\"}} {}", value(stats, *n_pages));
        }
    };
    of_each("flint_requests_running", "gauge", "Sequences that have memory.", &|stats, _| {
        stats.n_running as f64
    });
    of_each("flint_requests_waiting", "gauge", "Sequences that wait.", &|stats, _| stats.n_waiting as f64);
    of_each("flint_kv_blocks_used", "gauge", "Pages of running sequences.", &|stats, _| {
        stats.pages_used as f64
    });
    of_each(
        "flint_kv_blocks_cached",
        "gauge",
        "Pages that hold a beginning that may come again.",
        &|stats, _| stats.pages_idle as f64,
    );
    // Names in `_total` are those of counters.
    of_each("flint_kv_blocks", "gauge", "Pages.", &|_, n_pages| n_pages as f64);
    of_each("flint_prompt_tokens_total", "counter", "Tokens of prompts that were computed.", &|stats, _| {
        stats.prompt_tokens as f64
    });
    let recomputed = "Tokens that were computed again, because their pages had been needed.";
    of_each("flint_recomputed_tokens_total", "counter", recomputed, &|stats, _| {
        stats.recomputed_tokens as f64
    });
    of_each("flint_cached_tokens_total", "counter", "Tokens of prompts that were known.", &|stats, _| {
        stats.cached_tokens as f64
    });
    of_each("flint_generation_tokens_total", "counter", "Tokens that were generated.", &|stats, _| {
        stats.new_tokens as f64
    });
    of_each("flint_guessed_tokens_total", "counter", "Tokens that were guessed and checked.", &|stats, _| {
        stats.guessed_tokens as f64
    });
    of_each("flint_accepted_tokens_total", "counter", "Guessed tokens that were right.", &|stats, _| {
        stats.accepted_tokens as f64
    });
    of_each("flint_preemptions_total", "counter", "Sequences that were sent back to wait.", &|stats, _| {
        stats.preempted as f64
    });
    of_each("flint_requests_aborted_total", "counter", "Sequences whose client went away.", &|stats, _| {
        stats.cancelled as f64
    });
    of_each("flint_steps_total", "counter", "Steps of the engine.", &|stats, _| stats.steps as f64);
    encoders(&mut out, &ready);
    let name = "flint_model_loaded";
    let _ = writeln!(out, "# HELP {name} Whether a model is in memory.\n# TYPE {name} gauge");
    for (model, state) in state.models.all() {
        let _ = writeln!(out, "{name}{{model=\"{}\"}} {}", label(&model.id), u8::from(state == "loaded"));
    }
    let name = "flint_http_answers_total";
    let _ = writeln!(out, "# HELP {name} Answers by status.\n# TYPE {name} counter");
    for (hundred, count) in state.metrics.answers.iter().enumerate().skip(2) {
        let _ = writeln!(out, "{name}{{status=\"{hundred}xx\"}} {}", count.load(Ordering::Relaxed));
    }
    let (first, between) = (&state.metrics.first_token, &state.metrics.between_tokens);
    first.write(&mut out, "flint_time_to_first_token_seconds", "From a request to its first token.");
    between.write(&mut out, "flint_time_between_tokens_seconds", "Mean time between a request's tokens.");
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], out).into_response()
}

/// A model's name as a label has it.
fn label(id: &str) -> String {
    id.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// What models do that make vectors.
fn encoders(out: &mut String, ready: &[(&Model, Loaded)]) {
    let stats = |(model, loaded): &(&Model, Loaded)| match loaded {
        Loaded::Encoder(encoder) => Some((label(&model.id), encoder.client.stats())),
        Loaded::Decoder(_) => None,
    };
    let all: Vec<_> = ready.iter().filter_map(stats).collect();
    type Value = fn(&encoding::Stats) -> u64;
    let rows: [(&str, &str, &str, Value); 3] = [
        ("flint_embedding_requests_waiting", "gauge", "Requests for vectors that wait.", |stats| {
            stats.n_waiting as u64
        }),
        ("flint_embedding_tokens_total", "counter", "Tokens of texts that got vectors.", |stats| {
            stats.tokens
        }),
        ("flint_embedding_steps_total", "counter", "Steps of encoders.", |stats| stats.steps),
    ];
    for (name, kind, help, value) in rows {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (id, stats) in &all {
            let _ = writeln!(out, "{name}{{model=\"{id}\"}} {}", value(stats));
        }
    }
}
