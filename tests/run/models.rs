//! Models in files: converted, inspected, streamed through; and what happens at the end of a context.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use super::{fails, json, stderr, succeeds, train, workplace, write};

/// A folder with a trained run whose vocabulary every format has.
fn trained() -> TempDir {
    let dir = workplace();
    let bytes = [
        "--set",
        "tokenizer.kind=bpe",
        "--set",
        "tokenizer.vocab_size=300",
        "--set",
        "train.steps=4",
        "--set",
        "model.context=48",
    ];
    succeeds(dir.path(), &train(&bytes));
    dir
}

const PROMPT: [&str; 9] = ["-p", "the cat", "-n", "12", "--temperature", "0", "--json", "--seed", "1"];

fn ids(dir: &TempDir, model: &str, more: &[&str]) -> Value {
    let output = succeeds(dir.path(), &[&["generate", model][..], &PROMPT, more].concat());
    json(&output)["ids"].clone()
}

#[test]
fn a_model_is_converted_there_and_back() {
    let dir = trained();
    let want = ids(&dir, "run", &[]);
    let convert = |from: &str, to: &str, more: &[&str]| {
        let args = [&["convert", from, "--to", to, "--json"][..], more].concat();
        json(&succeeds(dir.path(), &args))
    };
    let report = convert("run", "gguf", &["-o", "a.gguf"]);
    assert_eq!((&report["format"], &report["max_logit_difference"]), (&"F32".into(), &0.0.into()));
    assert_eq!(ids(&dir, "a.gguf", &[]), want);
    convert("a.gguf", "safetensors", &["-o", "back"]);
    assert_eq!(ids(&dir, "back", &[]), want);

    let half = convert("run", "safetensors", &["-o", "half", "--dtype", "f16"]);
    let difference = half["max_logit_difference"].as_f64().expect("a number");
    assert!(difference > 0.0 && difference < 0.05, "{difference}");
    // What was printed stands in the file, and a file of halves stays one.
    let header = fs::read(dir.path().join("half/model.safetensors")).expect("read");
    let header = String::from_utf8_lossy(&header[..4096]).into_owned();
    assert!(header.contains("flint.self_check.max_logit_difference\":\"") && !header.contains("pending"));
    assert_eq!(convert("half", "gguf", &["-o", "half.gguf"])["format"], "F16");
    let eight = convert("run", "gguf", &["-o", "eight.gguf", "--dtype", "bf16"]);
    assert!(eight["max_logit_difference"].as_f64() > Some(0.0));

    fails(dir.path(), &["convert", "run", "--to", "gguf", "-o", "a.gguf"], &["a.gguf", "already there"]);
    let blocks = ["convert", "run", "--to", "safetensors", "--dtype", "q8_0", "-o", "b"];
    fails(dir.path(), &blocks, &["Q8_0", "f32, f16 or bf16"]);
    fails(dir.path(), &["convert", "run", "--to", "gguf", "--dtype", "q9", "-o", "b"], &["q9", "q8_0"]);
    let left: Vec<_> =
        fs::read_dir(dir.path()).expect("listed").flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn a_model_is_inspected() {
    let dir = trained();
    succeeds(dir.path(), &["convert", "run", "--to", "gguf", "-o", "a.gguf"]);
    for (model, family) in [("run", "llama (safetensors)"), ("a.gguf", "llama (GGUF)")] {
        let args = ["inspect", model, "--tensors", "--measure", "--context", "40", "--json"];
        let report = json(&succeeds(dir.path(), &args));
        assert_eq!(report["family"], family);
        let parts = report["parameters_by_part"].as_object().expect("an object");
        let sum: u64 = parts.values().map(|n| n.as_u64().expect("a number")).sum();
        assert_eq!(report["parameters"], sum);
        assert_eq!(report["memory"]["weights_bytes"], 4 * sum);
        assert_eq!(report["memory"]["cache_bytes"], 4 * 2 * 16 * 40);
        assert!(report["memory"]["measured_bytes"].is_u64());
        let tensors = report["tensors"].as_array().expect("a list");
        assert_eq!(report["formats"]["F32"]["tensors"], tensors.len());
        assert!(report["tokenizer"]["tokens"].as_u64() > Some(256));
        let text = String::from_utf8(succeeds(dir.path(), &["inspect", model]).stdout).expect("UTF-8");
        assert!(text.contains("attention") && text.contains("memory on"), "{text}");
    }
    write(dir.path(), "no.gguf", "GGUF");
    fails(dir.path(), &["inspect", "no.gguf"], &["no.gguf"]);
    fails(dir.path(), &["inspect", "absent"], &["absent"]);
}

#[test]
fn a_model_is_timed() {
    let dir = trained();
    let args =
        ["bench", "run", "-p", "8,16", "-n", "4", "-d", "0,8", "-b", "1,2", "-r", "2", "-t", "1", "--json"];
    let report = json(&succeeds(dir.path(), &[&args[..], &["-o", "record.json"]].concat()));
    let tests = report["tests"].as_array().expect("a list");
    assert_eq!(tests.len(), 3 * 2 * 2);
    for test in tests {
        let rate = |key: &str| test[key].as_f64().expect("a number");
        assert!(rate("least_tokens_per_s") > 0.0 && rate("least_tokens_per_s") <= rate("tokens_per_s"));
        assert!(rate("tokens_per_s") <= rate("most_tokens_per_s"), "{test}");
        assert_eq!(test["seconds"].as_array().map(Vec::len), Some(2));
    }
    assert_eq!((&report["threads"], &report["cache"]), (&1.into(), &"f32".into()));
    assert!(report["limits"]["read_bytes_per_s"].as_f64() > Some(1e8));
    let record = fs::read_to_string(dir.path().join("record.json")).expect("written");
    assert_eq!(serde_json::from_str::<Value>(&record).expect("JSON"), report);

    let table =
        succeeds(dir.path(), &["bench", "run", "-p", "8", "-n", "0", "-r", "1", "--cache", "q8"]).stdout;
    let table = String::from_utf8(table).expect("UTF-8");
    assert!(table.contains("prompt 8") && !table.contains("gen "), "{table}");
    fails(dir.path(), &["bench", "run", "-p", "0", "-n", "0"], &["nothing to measure"]);
    fails(dir.path(), &["bench", "run", "-p", "40", "-d", "9", "-n", "0"], &["49", "context is 48"]);
    fails(dir.path(), &["bench", "absent"], &["absent"]);
    fails(dir.path(), &["bench"], &["MODEL"]);
}

/// What such a cache computes is tested in `model` and `infer`; here, that every kind is taken, and planned for.
#[test]
fn a_cache_is_stored_as_asked() {
    let dir = trained();
    for kind in ["f32", "f16", "q8"] {
        assert_eq!(ids(&dir, "run", &["--cache", kind]).as_array().map(Vec::len), Some(12), "{kind}");
        let args = ["inspect", "run", "--context", "40", "--json", "--cache", kind];
        let report = json(&succeeds(dir.path(), &args));
        // Keys and values of two heads of 8 numbers, in one layer.
        let row = match kind {
            "f32" => 4 * 16,
            "f16" => 2 * 16,
            _ => 2 * (8 + 4),
        };
        assert_eq!(
            (&report["memory"]["cache"], &report["memory"]["cache_bytes"]),
            (&kind.into(), &(2 * row * 40).into())
        );
    }
    fails(dir.path(), &["generate", "run", "-p", "x", "--cache", "q4"], &["q4", "q8"]);
}

#[test]
fn the_end_of_a_context_is_what_was_asked_for() {
    let dir = trained();
    let long = "the cat number 1 sat on mat 2. ".repeat(20);
    let generate = |more: &[&str]| {
        let args = ["generate", "run", "-p", &long, "-n", "40", "--temperature", "0", "--context", "24"];
        succeeds(dir.path(), &[&args[..], more].concat())
    };
    for when_full in ["slide", "evict"] {
        let report = json(&generate(&["--when-full", when_full, "--json"]));
        let forgotten = report["forgotten_tokens"].as_u64().expect("a number");
        assert!(forgotten > 100, "{when_full}: {report}");
        assert!(stderr(&generate(&["--when-full", when_full])).contains("out of sight"), "{when_full}");
    }
    let args = ["generate", "run", "-p", &long, "-n", "4", "--context", "24"];
    fails(dir.path(), &args, &["the context holds 24", "slide or evict"]);
    let args = ["generate", "run", "-p", "x", "--context", "8", "--when-full", "evict", "--sinks", "7"];
    fails(dir.path(), &args, &["8 positions with 7 sinks"]);
}

#[test]
fn a_long_text_is_streamed_and_drawn() {
    let dir = trained();
    let config = r#"(
        model: "run", text: ["text.txt"], out: "out",
        stream: (n_tokens: 3000, cache: 32, n_sink: 4, step: 8, bucket: 500, n_plain: 200),
    )"#;
    write(dir.path(), "stream.ron", config);
    let report = json(&succeeds(dir.path(), &["bench", "stream", "stream.ron", "--json"]));
    assert_eq!(report["summary"]["last"]["n_tokens"], 3000);
    let curve: Value =
        serde_json::from_slice(&fs::read(dir.path().join("out/perplexity.json")).expect("read"))
            .expect("JSON");
    assert_eq!(curve["evicting"].as_array().map(Vec::len), Some(6));
    assert!(curve["plain"].as_array().is_some_and(|points| points.len() == 25));
    let png = fs::read(dir.path().join("out/perplexity.png")).expect("read");
    assert!(png.starts_with(b"\x89PNG\r\n\x1a\n"));
    let stream = ["bench", "stream", "stream.ron", "--set"];
    for (change, words) in [
        ("stream.cache=64", ["`cache` is 64", "context is 48"]),
        ("stream.cache=10", ["`cache` is 10", "at least 20"]),
        ("stream.steps=10", ["steps", "`step`"]),
    ] {
        fails(dir.path(), &[&stream[..], &[change]].concat(), &words);
    }
}

#[test]
fn adapters_are_added_and_merged() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let fixture = |name: &str| format!("{}/model/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let (model, adapter) = (fixture("families/llama"), fixture("lora/llama"));
    let logits = |model: &str, lora: &[&str]| {
        let args = ["logits", model, "--ids", "1,5,9,2", "-o", "logits.npy"];
        succeeds(dir.path(), &[&args[..], lora].concat());
        fs::read(dir.path().join("logits.npy")).expect("written")
    };
    let plain = logits(&model, &[]);
    let with = logits(&model, &["--lora", &adapter]);
    assert_ne!(with, plain);
    assert_eq!(logits(&model, &["--lora", &format!("{adapter}=0")]), plain);
    // Without a tokenizer there is none in the result, and that is said.
    let args =
        ["convert", &model, "--lora", &adapter, "--to", "safetensors", "--dtype", "f32", "-o", "merged"];
    assert!(stderr(&succeeds(dir.path(), &args)).contains("has no tokenizer"));
    assert_eq!(logits("merged", &[]), with);
    let other = fixture("lora/gpt2");
    fails(
        dir.path(),
        &["logits", &model, "--ids", "1", "-o", "x.npy", "--lora", &other],
        &["c_attn", "no place"],
    );
    fails(dir.path(), &["logits", &model, "--ids", "1", "-o", "x.npy", "--lora", "a=much"], &["`much`"]);
}
