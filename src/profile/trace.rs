//! What was recorded as a file in Chrome's trace event format (Duan et al., "Trace Event Format").
//!
//! Each span is a complete event (`ph` is `X`) whose `ts` and `dur` are microseconds. The sums stand in `otherData`, for
//! programs that want no more than these.

use std::io::{self, Write};
use std::path::Path;

use model::files;
use model::span::Work;
use serde_json::{Map, Value, json};

use super::recorder::{Level, Phase, Profile, Timed};

/// Writes the file, whole or not at all.
pub fn write(path: &Path, profile: &Profile) -> io::Result<()> {
    files::write_atomic(path, |out| {
        write!(out, "{{\"displayTimeUnit\":\"ms\",\n\"otherData\":{},\n\"traceEvents\":[\n", sums(profile))?;
        write!(out, "{}", json!({"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "flint"}}))?;
        for event in &profile.events {
            write!(out, ",\n{}", of(event, profile))?;
        }
        if profile.n_cut > 0 {
            let name = format!("the trace ends here: {} more spans are counted in otherData", profile.n_cut);
            let end = profile.events.iter().map(|event| event.begin + event.duration).max().unwrap_or(0);
            let cut = json!({"name": name, "ph": "i", "s": "g", "ts": microseconds(end), "pid": 1, "tid": 0});
            write!(out, ",\n{cut}")?;
        }
        writeln!(out, "\n]}}")
    })
}

fn of(event: &Timed, profile: &Profile) -> Value {
    let Work { rows, n_in, n_out, flops, bytes } = event.work;
    let known = [
        ("layer", event.layer),
        ("rows", rows),
        ("n_in", n_in),
        ("n_out", n_out),
        ("flops", flops),
        ("bytes", bytes),
    ];
    let args: Map<String, Value> =
        known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))).collect();
    let category = match event.level {
        Level::Phase => "phase",
        Level::Layer => "layer",
        Level::Op => "op",
    };
    json!({
        "name": profile.kinds[event.kind],
        "cat": category,
        "ph": "X",
        "ts": microseconds(event.begin),
        "dur": microseconds(event.duration),
        "pid": 1,
        "tid": event.thread,
        "args": args,
    })
}

fn sums(profile: &Profile) -> Value {
    let phase = |phase: &Phase| {
        let kinds: Map<String, Value> = profile
            .kinds
            .iter()
            .zip(&phase.kinds)
            .filter(|(_, totals)| totals.n > 0)
            .map(|(kind, totals)| {
                let value = json!({
                    "calls": totals.n,
                    "total_us": microseconds(totals.total),
                    "own_us": microseconds(totals.own),
                    "flops": totals.flops,
                    "bytes": totals.bytes,
                });
                (kind.clone(), value)
            })
            .collect();
        json!({
            "phase": phase.name,
            "times": phase.n,
            "total_us": microseconds(phase.total),
            "rest_us": microseconds(phase.rest),
            "operations": kinds,
            "layers_us": phase.layers.iter().copied().map(microseconds).collect::<Vec<_>>(),
        })
    };
    json!({
        "program": concat!("flint ", env!("CARGO_PKG_VERSION")),
        "wall_us": microseconds(profile.wall),
        "recording_us": microseconds(profile.recording),
        "spans_cut": profile.n_cut,
        "phases": profile.phases.iter().map(phase).collect::<Vec<_>>(),
    })
}

fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1e3
}
