//! `--profile`: what is counted, and that the times add up.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::{fails, json, stderr, succeeds, train, workplace};

const N_LAYER: u64 = 3;

/// `flint train` of a model with three layers.
const THREE: [&str; 4] = ["--set", "model.n_layer=3", "--set", "model.context=48"];

fn trained() -> TempDir {
    let dir = workplace();
    succeeds(dir.path(), &train(&[&THREE[..], &["--set", "train.steps=4"]].concat()));
    dir
}

fn read_trace(dir: &Path, name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(dir.join(name)).expect("written")).expect("JSON")
}

fn phases(trace: &Value) -> &[Value] {
    trace["otherData"]["phases"].as_array().expect("a list")
}

fn phase<'a>(trace: &'a Value, name: &str) -> &'a Value {
    let found = phases(trace).iter().find(|phase| phase["phase"] == name);
    found.unwrap_or_else(|| panic!("no phase {name}: {}", trace["otherData"]))
}

fn calls(phase: &Value, kind: &str) -> u64 {
    phase["operations"][kind]["calls"].as_u64().unwrap_or_else(|| panic!("no {kind}: {phase}"))
}

fn float(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// The whole, and how much of it the operations, what is left of the phases, and recording take.
fn sums(trace: &Value) -> (f64, f64) {
    let of = |phase: &Value| {
        let kinds = phase["operations"].as_object().expect("an object").values();
        float(&phase["rest_us"]) + kinds.map(|totals| float(&totals["own_us"])).sum::<f64>()
    };
    let parts: f64 = phases(trace).iter().map(of).sum();
    (float(&trace["otherData"]["wall_us"]), parts + float(&trace["otherData"]["recording_us"]))
}

/// Every event lies inside those that have begun before it and not ended, and in the layer that is one of these. Returns
/// how many there are of each category and name.
fn check_nesting(trace: &Value, category: &str, name: &str) -> u64 {
    let mut n = 0;
    let mut open: Vec<(u64, f64, Option<u64>)> = Vec::new();
    let events = trace["traceEvents"].as_array().expect("a list").iter().filter(|event| event["ph"] == "X");
    for event in events {
        let (tid, begin) = (event["tid"].as_u64().expect("a thread"), float(&event["ts"]));
        let (end, layer) = (begin + float(&event["dur"]), event["args"]["layer"].as_u64());
        // Nanoseconds, in microseconds.
        while open.last().is_some_and(|(of, until, _)| *of != tid || *until < begin + 1e-4) {
            open.pop();
        }
        if let Some((_, until, around)) = open.last() {
            assert!(end < until + 1e-3, "{event} ends after {until}");
            assert!(around.is_none() || *around == layer, "{event} in layer {around:?}");
        }
        open.push((tid, end, layer));
        n += u64::from(event["cat"] == category && event["name"] == name);
    }
    n
}

#[test]
fn generating_is_told_by_operation_and_layer() {
    let dir = trained();
    let args = ["generate", "run", "-p", "the ", "-n", "20", "--temperature", "0"];
    let plain = succeeds(dir.path(), &args);
    let told = succeeds(dir.path(), &[&args[..], &["--profile"]].concat());
    assert_eq!(told.stdout, plain.stdout);
    let text = stderr(&told);
    for word in ["token: 19 x ", "attention out", "mlp down", "sampling", "GFLOP/s", "layer, ms"] {
        assert!(text.contains(word), "no `{word}` in {text}");
    }
    assert!(!stderr(&plain).contains("token:"));

    let trace = read_trace(dir.path(), "flint-profile.json");
    let (prompt, token) = (phase(&trace, "prompt"), phase(&trace, "token"));
    assert_eq!((&prompt["times"], &token["times"]), (&1.into(), &19.into()));
    for kind in ["qkv", "attention", "attention out", "mlp up", "activation", "mlp down", "layer"] {
        assert_eq!((calls(prompt, kind), calls(token, kind)), (N_LAYER, 19 * N_LAYER), "{kind}");
    }
    for kind in ["embedding", "head", "sampling"] {
        assert_eq!(calls(token, kind), 19, "{kind}");
    }
    // 2 rows · in · out, each token.
    assert_eq!(token["operations"]["qkv"]["flops"], 19 * N_LAYER * 2 * 16 * 48);
    assert_eq!(token["layers_us"].as_array().map(Vec::len), Some(N_LAYER as usize));
    assert_eq!(check_nesting(&trace, "op", "attention"), 20 * N_LAYER);
    assert_eq!(check_nesting(&trace, "phase", "token"), 19);
    assert_eq!(trace["otherData"]["spans_cut"], 0);
}

#[test]
fn all_times_of_a_bench_add_up_to_the_whole() {
    let dir = trained();
    let args = ["bench", "run", "-p", "8", "-n", "30", "-r", "3", "--json", "--profile=t.json"];
    assert!(json(&succeeds(dir.path(), &args))["generate_tokens_per_s"].as_f64() > Some(0.0));
    let trace = read_trace(dir.path(), "t.json");
    let (wall, parts) = sums(&trace);
    assert!(parts <= wall && parts > 0.95 * wall, "{parts} of {wall} µs");
    assert_eq!(calls(phase(&trace, "token 0 to 30 of 1"), "attention"), 3 * 30 * N_LAYER);
    assert_eq!(calls(phase(&trace, "prompt 0 to 8 of 1"), "attention"), 3 * N_LAYER);
    fails(dir.path(), &["bench", "run", "--profile=absent/t.json"], &["absent", "no folder"]);
    fails(dir.path(), &["bench", "run", "--profile=run"], &["run", "not a folder"]);
}

#[test]
fn training_is_told_forward_and_backward() {
    let dir = workplace();
    let args = [&THREE[..], &["--set", "train.steps=5", "--profile=t.json"]].concat();
    let text = stderr(&succeeds(dir.path(), &train(&args)));
    assert!(text.contains("qkv backward dw") && text.contains("trace: t.json"), "{text}");
    let trace = read_trace(dir.path(), "t.json");
    let (forward, backward) = (phase(&trace, "forward"), phase(&trace, "backward"));
    for (kind, passes) in [("mlp up", vec!["dx", "dw"]), ("qkv", vec!["dx", "dw"]), ("attention", vec![""])] {
        assert_eq!(calls(forward, kind), 5 * N_LAYER, "{kind}");
        for pass in passes {
            let kind = format!("{kind} backward {pass}");
            assert_eq!(calls(backward, kind.trim_end()), 5 * N_LAYER, "{kind}");
        }
    }
    // Two norms a layer and the last.
    assert_eq!(calls(backward, "norm backward"), 5 * (2 * N_LAYER + 1));
    let (rate, same) = (&forward["operations"]["qkv"], &backward["operations"]["qkv backward dw"]);
    assert!(rate["flops"].as_u64() > Some(0) && rate["flops"] == same["flops"]);
    for part in [forward, backward, phase(&trace, "optimizer")] {
        assert_eq!(part["times"], 5);
        assert_eq!(part["layers_us"].as_array().map(Vec::len), Some(N_LAYER as usize), "{part}");
    }
    // The last wait finds that there is no more.
    assert_eq!(phase(&trace, "data")["times"], 6);
    for name in ["evaluation", "checkpoint", "prepare data", "tokenizer", "weights"] {
        assert!(float(&phase(&trace, name)["total_us"]) > 0.0, "{name}");
    }
    check_nesting(&trace, "op", "");
    let short = ["bench", "train", "c.ron", "--steps", "2", "--json", "--profile=b.json"];
    assert!(json(&succeeds(dir.path(), &short))["tokens_per_s"].as_f64() > Some(0.0));
    assert_eq!(phase(&read_trace(dir.path(), "b.json"), "forward")["times"], 4);
}

#[cfg(unix)]
#[test]
fn a_run_that_is_stopped_tells_what_it_did() {
    let dir = workplace();
    let dir = dir.path();
    let mut run = super::Running::start(dir, &train(&["-q", "--set", super::ENDLESS, "--profile=t.json"]));
    assert!(run.wait_for_checkpoint_after(dir, 0));
    assert_eq!(run.end_by("-INT"), Some(130));
    let trace = read_trace(dir, "t.json");
    assert_eq!(phase(&trace, "optimizer")["times"], super::newest(dir) as u64);
}
