//! The program as people use it: small models trained, stopped, killed, damaged and resumed.

mod program;
mod server;

#[path = "run/generate.rs"]
mod generate;
#[path = "run/integers.rs"]
mod integers;
#[path = "run/measure.rs"]
mod measure;
#[path = "run/models.rs"]
mod models;
#[path = "run/profile.rs"]
mod profile;
#[path = "run/pull.rs"]
mod pull;
#[path = "run/quantize.rs"]
mod quantize;
#[path = "run/serve.rs"]
mod serve;
#[path = "run/serve_access.rs"]
mod serve_access;
#[path = "run/serve_models.rs"]
mod serve_models;
#[path = "run/serve_openapi.rs"]
mod serve_openapi;
#[cfg(feature = "otlp")]
#[path = "run/serve_otlp.rs"]
mod serve_otlp;
#[path = "run/serve_responses.rs"]
mod serve_responses;
#[path = "run/tokenizer.rs"]
mod tokenizer;
#[path = "run/tools.rs"]
mod tools;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use program::{CONFIG, command, fails, flint, stderr, succeeds, train, workplace, write};

/// Longer than anyone waits: such a run ends only by a signal.
const ENDLESS: &str = "train.steps=1000000";

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON on stdout")
}

fn keys(value: &Value) -> Vec<String> {
    let mut keys: Vec<String> = value.as_object().expect("an object").keys().cloned().collect();
    keys.sort_unstable();
    keys
}

/// Steps of the checkpoints in the run's folder, in order.
fn checkpoints(dir: &Path) -> Vec<usize> {
    let entries = fs::read_dir(dir.join("run/checkpoints")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut steps: Vec<usize> =
        names.filter_map(|name| name.strip_prefix("step-").and_then(|step| step.parse().ok())).collect();
    steps.sort_unstable();
    steps
}

fn checkpoint(dir: &Path, step: usize) -> PathBuf {
    dir.join(format!("run/checkpoints/step-{step:08}"))
}

fn newest(dir: &Path) -> usize {
    checkpoints(dir).last().copied().unwrap_or(0)
}

fn metrics(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("run/metrics.jsonl")).expect("metrics");
    text.lines().map(|line| serde_json::from_str(line).expect("a whole line")).collect()
}

fn number(line: &Value, key: &str) -> usize {
    line[key].as_u64().expect("a whole number") as usize
}

/// What must not depend on how a run was interrupted: every logged loss, bit by bit. Each step and each
/// evaluation stands there once.
fn losses(dir: &Path) -> BTreeMap<(usize, &'static str), u64> {
    let mut losses = BTreeMap::new();
    for line in metrics(dir) {
        let kind = if line.get("valid_loss").is_some() { "valid_loss" } else { "loss" };
        let loss = line[kind].as_f64().expect("a number");
        let earlier = losses.insert((number(&line, "step"), kind), loss.to_bits());
        assert_eq!(earlier, None, "logged twice: {line}");
    }
    losses
}

/// The bytes of the final model and of all kept weights and moments, by path.
fn weights(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut paths = vec![dir.join("run/model/model.safetensors")];
    for step in checkpoints(dir) {
        paths.push(checkpoint(dir, step).join("model.safetensors"));
        paths.push(checkpoint(dir, step).join("optimizer.safetensors"));
    }
    let relative = |path: &Path| path.strip_prefix(dir).expect("inside").to_owned();
    paths.iter().map(|path| (relative(path), fs::read(path).expect("weights"))).collect()
}

fn assert_same_run(a: &Path, b: &Path, what: &str) {
    assert_eq!(losses(a), losses(b), "{what}: losses");
    let (a, b) = (weights(a), weights(b));
    assert!(a.keys().eq(b.keys()), "{what}: {:?} and {:?}", a.keys(), b.keys());
    for (path, bytes) in &a {
        assert!(bytes == &b[path], "{what}: {} differs", path.display());
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

/// A running `flint`, killed if a test fails.
struct Running(Child);

impl Running {
    fn start(dir: &Path, args: &[&str]) -> Self {
        // Nobody reads while it runs: a full pipe would stop it.
        let child = command(dir, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.expect("flint starts"))
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("waited").is_none()
    }

    /// Waits for a checkpoint of a step after this one; says whether it came while the program ran.
    fn wait_for_checkpoint_after(&mut self, dir: &Path, step: usize) -> bool {
        let begin = Instant::now();
        while newest(dir) <= step {
            if !self.is_running() {
                return false;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "no checkpoint after step {step}");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.is_running()
    }

    #[cfg(unix)]
    fn end_by(&mut self, signal: &str) -> Option<i32> {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
        assert!(sent.expect("kill starts").success());
        self.0.wait().expect("waited").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_run_leaves_its_log_its_checkpoints_and_a_model() {
    let dir = workplace();
    let dir = dir.path();
    let outcome = json(&succeeds(dir, &train(&["--json", "-q"])));
    assert_eq!((outcome["finished"].as_bool(), outcome["steps"].as_u64()), (Some(true), Some(12)));
    assert_eq!(outcome["tokens"].as_u64(), Some(12 * 2 * 16));
    assert_eq!(outcome["model"].as_str().map(Path::new), Some(Path::new("run").join("model").as_path()));

    for file in ["run.ron", "tokenizer.json", "metrics.jsonl", "samples.txt"] {
        assert!(dir.join("run").join(file).is_file(), "{file}");
    }
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(dir.join("run/model").join(file).is_file(), "model/{file}");
    }
    assert_eq!(checkpoints(dir), [9, 12]);
    for file in ["config.json", "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"] {
        assert!(checkpoint(dir, 12).join(file).is_file(), "checkpoint/{file}");
    }
    let samples = fs::read_to_string(dir.join("run/samples.txt")).expect("samples");
    for begin in ["--- step 6 ---\nthe ", "--- step 12 ---\nthe "] {
        assert_eq!(samples.matches(begin).count(), 1, "{samples}");
    }

    let (evaluations, steps): (Vec<Value>, Vec<Value>) =
        metrics(dir).into_iter().partition(|line| line.get("valid_loss").is_some());
    let numbers = |lines: &[Value]| lines.iter().map(|line| number(line, "step")).collect::<Vec<_>>();
    assert_eq!(numbers(&steps), (1..=12).collect::<Vec<_>>());
    assert_eq!(numbers(&evaluations), [4, 8, 12]);
    let known = ["elapsed_s", "epoch", "grad_norm", "loss", "lr", "phase", "step", "tokens", "tokens_per_s"];
    for line in &steps {
        assert_eq!(keys(line), known);
        assert_eq!(number(line, "tokens"), number(line, "step") * 32);
    }
}

#[test]
fn a_model_generates_and_answers_the_same_for_the_same_seed() {
    let dir = workplace();
    let dir = dir.path();
    succeeds(dir, &train(&["-q"]));
    let generate = |seed: &str| {
        let args = ["generate", "run", "-p", "the cat", "-n", "8", "--seed", seed, "--json", "-q"];
        json(&succeeds(dir, &args))
    };
    let first = generate("3");
    let known = [
        "completion_tokens",
        "finish_reason",
        "forgotten_tokens",
        "ids",
        "prompt_tokens",
        "text",
        "tokens_per_s",
        "ttft_ms",
    ];
    assert_eq!(keys(&first), known);
    assert_eq!(first["prompt_tokens"].as_u64(), Some(7));
    assert_eq!(first["ids"], generate("3")["ids"]);
    assert_eq!(first["text"], generate("3")["text"]);
    assert_ne!(first["ids"], generate("4")["ids"]);

    // A conversation is laid out by the folder's template, and without one by our own layout.
    let asked =
        || json(&succeeds(dir, &["generate", "run", "--chat", "-p", "the cat", "-n", "2", "--json", "-q"]));
    assert_eq!(asked()["prompt_tokens"].as_u64(), Some(10));
    let template = r#"{"chat_template": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
        "eos_token": "<|endoftext|>"}"#;
    write(dir, "run/model/tokenizer_config.json", template);
    assert_eq!(asked()["prompt_tokens"].as_u64(), Some(8));
    write(dir, "run/model/tokenizer_config.json", &template.replace("endfor", "end"));
    fails(dir, &["generate", "run", "--chat", "-p", "the cat"], &["tokenizer_config.json", "line 1"]);

    succeeds(dir, &["logits", "run", "--ids", "100,101,102", "-o", "logits.npy", "-q"]);
    let npy = fs::read(dir.join("logits.npy")).expect("written");
    assert_eq!(&npy[..8], b"\x93NUMPY\x01\x00");
    let header = 10 + usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    let config = fs::read(dir.join("run/model/config.json")).expect("config");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    assert_eq!(npy.len(), header + 3 * number(&config, "vocab_size") * 4);
    fails(dir, &["logits", "run", "--ids", "999999", "-o", "x.npy"], &["999999", "vocabulary"]);
}

#[test]
fn text_becomes_ids_and_text_again() {
    let dir = workplace();
    let dir = dir.path();
    succeeds(dir, &train(&["-q", "--set", "train.steps=1"]));
    let pipe = |verb: &str, input: &[u8]| {
        let mut child = command(dir, &["tokenizer", verb, "run", "--jsonl"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("flint starts");
        child.stdin.take().expect("a pipe").write_all(input).expect("written");
        let output = child.wait_with_output().expect("waited");
        assert!(output.status.success(), "{}", stderr(&output));
        output.stdout
    };
    let texts = "\"the cat\\n sat\"\n\"\"\n\"\u{e9}\u{1F600} <|im_end|>\"\n";
    let ids = pipe("encode", texts.as_bytes());
    assert_eq!(ids.iter().filter(|&&b| b == b'\n').count(), 3);
    let parse = |text: &str| -> Vec<String> {
        text.lines().map(|line| serde_json::from_str(line).expect("a string")).collect()
    };
    assert_eq!(parse(&String::from_utf8_lossy(&pipe("decode", &ids))), parse(texts));
}

#[test]
fn a_folder_with_a_run_is_not_overwritten_unasked() {
    let dir = workplace();
    let dir = dir.path();
    succeeds(dir, &train(&["-q"]));
    let before = weights(dir);
    fails(dir, &train(&[]), &["--resume", "--overwrite"]);
    assert!(weights(dir) == before, "the refused run changed something");
    succeeds(dir, &train(&["-q", "--overwrite", "--set", "seed=8"]));
    assert!(weights(dir) != before, "another seed, another model");
    fails(dir, &train(&["--resume"]), &["`seed`"]);
    // A finished run has nothing left to do.
    let outcome = json(&succeeds(dir, &train(&["-q", "--json", "--resume", "--set", "seed=8"])));
    assert_eq!(outcome["finished"].as_bool(), Some(true));
}

#[test]
fn impossible_configs_and_data_are_named() {
    let dir = workplace();
    let dir = dir.path();
    write(dir, "empty.txt", "");
    write(dir, "blank.txt", " \n\n");
    write(dir, "short.txt", "abc");
    let conversation = r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yo"}]}"#;
    write(dir, "chat.jsonl", conversation);
    write(dir, "broken.jsonl", &format!("{conversation}\n{{\"messages\": 3}}\n"));
    write(dir, "unknown.ron", &CONFIG.replace("lr: 1e-3", "lrr: 1e-3"));
    write(dir, "c.txt", CONFIG);
    fails(dir, &["train", "unknown.ron"], &["unknown.ron:9:", "`lrr`", "`lr`"]);
    fails(dir, &["train", "nothing.ron"], &["nothing.ron"]);
    fails(dir, &["train", "c.txt"], &["c.txt", ".ron"]);
    fails(dir, &train(&["--backend", "abacus"]), &["abacus", "ndarray"]);
    let cases: [(&[&str], &[&str]); 17] = [
        (&["train.lrr=3"], &["lrr", "`lr`", "`steps`"]),
        (&["nope=1"], &["nope", "`train`"]),
        (&["data.paths=[\"missing.txt\"]"], &["missing.txt"]),
        (&["data.paths=[\"empty.txt\"]"], &["empty.txt", "no text"]),
        (&["data.paths=[\"blank.txt\"]"], &["blank.txt", "no text"]),
        (&["data.paths=[\"short.txt\"]"], &["3 tokens", "needs 17"]),
        (&["data.paths=[\"text.txt\",\"chat.jsonl\"]"], &["chat.jsonl", "text.txt", "both"]),
        (&["data.paths=[\"broken.jsonl\"]"], &["broken.jsonl", "line 2"]),
        (&["data.paths=[\"chat.jsonl\"]", "model.context=4"], &["7 tokens", "model.context"]),
        (&["data.paths=[]"], &["data.paths"]),
        (&["model.context=100000"], &["2928 tokens", "100001"]),
        (&["model.vocab_size=5"], &["model.vocab_size", "261"]),
        (&["model.n_head=3"], &["model.n_head", "divide"]),
        (&["tokenizer.vocab_size=10"], &["10", "261"]),
        (&["train.lr=-1"], &["train.lr"]),
        (&["train.keep=0"], &["train.keep"]),
        (&["name=a/b"], &["`name`"]),
    ];
    for (idx, (sets, words)) in cases.into_iter().enumerate() {
        let out = format!("out=out-{idx}");
        let mut args = train(&["--set", &out]);
        for &set in sets {
            args.extend(["--set", set]);
        }
        fails(dir, &args, words);
    }
}

/// Ids that no text has are never drawn: a vocabulary rounded up for speed is allowed.
#[test]
fn a_vocabulary_larger_than_the_tokenizers_can_be_sampled() {
    let dir = workplace();
    let dir = dir.path();
    succeeds(dir, &train(&["-q", "--set", "model.vocab_size=4096"]));
    succeeds(dir, &["generate", "run", "-p", "the ", "-n", "8", "--temperature", "2", "-q"]);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_harms_nothing() {
    let dir = workplace();
    let dir = dir.path();
    let mut run = Running::start(dir, &train(&["-q", "--set", ENDLESS]));
    assert!(run.wait_for_checkpoint_after(dir, 0));
    drop(run);
    let wild = ["--resume", "--set", ENDLESS, "--set", "train.lr=1e30", "--set", "train.clip=0"];
    fails(dir, &train(&wild), &["the last checkpoint is whole", "train.lr"]);
    let steps = format!("train.steps={}", newest(dir) + 3);
    let outcome = json(&succeeds(dir, &train(&["-q", "--json", "--resume", "--set", &steps])));
    assert_eq!(outcome["finished"].as_bool(), Some(true));
    assert!(outcome["loss"].as_f64().is_some_and(f64::is_finite), "{outcome}");
}

/// What makes resuming hard, all at once.
const HARD: [&str; 10] = [
    "--set",
    "train.steps=90",
    "--set",
    "train.accumulation=2",
    "--set",
    "train.keep=100",
    "--set",
    "model.dropout=0.1",
    "--set",
    "then=[{\"data\":{\"paths\":[\"text.txt\"],\"documents\":\"lines\"},\
     \"train\":{\"steps\":30,\"batch_size\":3,\"lr\":5e-4,\"checkpoint_interval\":4,\"keep\":100}}]",
];

fn hard(more: &[&'static str]) -> Vec<&'static str> {
    let mut args = train(&HARD);
    args.push("-q");
    args.extend_from_slice(more);
    args
}

#[test]
fn threads_do_not_change_the_result() {
    let (one, two) = (workplace(), workplace());
    succeeds(one.path(), &hard(&["-t", "1"]));
    succeeds(two.path(), &hard(&["-t", "2"]));
    assert_same_run(one.path(), two.path(), "one and two threads");
}

#[test]
fn a_run_killed_again_and_again_ends_as_if_never_stopped() {
    let (straight, killed) = (workplace(), workplace());
    succeeds(straight.path(), &hard(&["-t", "1"]));
    let dir = killed.path();
    let mut n_killed = 0;
    for attempt in 0..8 {
        let resume: &[&'static str] = if attempt == 0 { &[] } else { &["--resume"] };
        let before = newest(dir);
        let mut run = Running::start(dir, &hard(resume));
        let came = run.wait_for_checkpoint_after(dir, before);
        assert!(came || newest(dir) > before || before == 120, "{resume:?} made no progress");
        // At another moment of the next steps each time.
        std::thread::sleep(Duration::from_micros(attempt * 700));
        n_killed += usize::from(run.is_running());
        drop(run);
    }
    assert!(n_killed > 0, "every attempt had finished before it could be killed");
    succeeds(dir, &hard(&["--resume"]));
    assert_same_run(straight.path(), dir, "killed");
}

/// Ruins a file.
type Damage = fn(&Path);

/// Ways to damage a file.
const DAMAGES: [(&str, Damage); 3] = [
    ("one bit", |path| {
        let mut bytes = fs::read(path).expect("read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).expect("written");
    }),
    ("cut", |path| {
        let bytes = fs::read(path).expect("read");
        fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
    }),
    ("gone", |path| fs::remove_file(path).expect("removed")),
];

#[test]
fn a_damaged_checkpoint_is_reported_and_the_one_before_is_used() {
    let straight = workplace();
    succeeds(straight.path(), &train(&["-q", "-t", "1"]));
    for file in ["config.json", "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"] {
        for (how, damage) in DAMAGES {
            let dir = tempfile::tempdir().expect("a temporary folder");
            copy(straight.path(), dir.path());
            damage(&checkpoint(dir.path(), 12).join(file));
            let text = stderr(&succeeds(dir.path(), &train(&["-t", "1", "--resume"])));
            assert!(text.contains("checkpoint not used: "), "{file}, {how}: {text}");
            assert!(text.contains("step-00000012"), "{file}, {how}: {text}");
            assert!(text.contains("going on from step 9"), "{file}, {how}: {text}");
            assert_same_run(straight.path(), dir.path(), &format!("{file}, {how}"));
        }
    }
}

#[test]
fn without_any_whole_checkpoint_a_run_begins_again() {
    let (straight, dir) = (workplace(), tempfile::tempdir().expect("a temporary folder"));
    succeeds(straight.path(), &train(&["-q", "-t", "1"]));
    copy(straight.path(), dir.path());
    for step in checkpoints(dir.path()) {
        fs::remove_file(checkpoint(dir.path(), step).join("manifest.json")).expect("removed");
    }
    let text = stderr(&succeeds(dir.path(), &train(&["-t", "1", "--resume"])));
    assert!(text.contains("beginning at the first step"), "{text}");
    assert_same_run(straight.path(), dir.path(), "from the first step");
}

/// A sample belongs to one step, however often the run was stopped.
#[test]
fn resuming_repeats_no_sample() {
    let dir = workplace();
    let dir = dir.path();
    succeeds(dir, &train(&["-q"]));
    let before = fs::read_to_string(dir.join("run/samples.txt")).expect("samples");
    fs::remove_dir_all(checkpoint(dir, 12)).expect("removed");
    succeeds(dir, &train(&["-q", "--resume"]));
    assert_eq!(fs::read_to_string(dir.join("run/samples.txt")).expect("samples"), before);
}

#[cfg(unix)]
#[test]
fn signals_stop_after_the_step_with_a_checkpoint() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let dir = workplace();
        let dir = dir.path();
        let mut run = Running::start(dir, &train(&["-q", "--set", ENDLESS]));
        assert!(run.wait_for_checkpoint_after(dir, 0));
        assert_eq!(run.end_by(signal), Some(code));
        let last = metrics(dir).last().map(|line| number(line, "step"));
        assert_eq!(last, Some(newest(dir)), "{signal}: the checkpoint is that of the last step");
        let steps = format!("train.steps={}", newest(dir) + 3);
        let outcome = json(&succeeds(dir, &train(&["-q", "--json", "--resume", "--set", &steps])));
        assert_eq!(outcome["steps"].as_u64(), Some(newest(dir) as u64));
        assert_eq!(outcome["finished"].as_bool(), Some(true));
    }
}

#[cfg(unix)]
#[test]
fn the_newest_checkpoints_and_the_best_are_kept() {
    let dir = workplace();
    let dir = dir.path();
    let mut run = Running::start(dir, &train(&["-q", "--set", ENDLESS]));
    assert!(run.wait_for_checkpoint_after(dir, 8));
    assert_eq!(run.end_by("-INT"), Some(130));
    // From here on the model only gets worse.
    let worse = ["-q", "--resume", "--set", ENDLESS, "--set", "train.lr=3"];
    let from = newest(dir);
    let mut run = Running::start(dir, &train(&worse));
    assert!(run.wait_for_checkpoint_after(dir, from + 20));
    assert_eq!(run.end_by("-INT"), Some(130));
    let state = fs::read(checkpoint(dir, newest(dir)).join("state.json")).expect("state");
    let state: Value = serde_json::from_slice(&state).expect("JSON");
    let best = state["best"][1].as_u64().expect("a best step") as usize;
    let kept = checkpoints(dir);
    assert!(best < kept[kept.len() - 2], "best {best}, kept {kept:?}");
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert_eq!(kept[0], best, "{kept:?}");
}

#[test]
fn two_processes_do_not_train_in_one_folder() {
    let dir = workplace();
    let dir = dir.path();
    let mut run = Running::start(dir, &train(&["-q", "--set", ENDLESS]));
    assert!(run.wait_for_checkpoint_after(dir, 0));
    for how in ["--resume", "--overwrite"] {
        fails(dir, &train(&[how, "--set", ENDLESS]), &["another process", "run"]);
    }
    fails(dir, &train(&["--set", ENDLESS]), &["another process"]);
    assert!(run.is_running());
}

/// Whether this machine's kernels multiply bfloat16.
fn has_bf16() -> bool {
    let doctor = json(&succeeds(workplace().path(), &["doctor", "--json"]));
    doctor["kernels"].as_str().is_some_and(|kernels| kernels.ends_with("+bf16"))
}

#[test]
fn products_of_bfloat16_are_there_where_the_cpu_has_them() {
    let dir = workplace();
    let rounded = train(&["--backend", "flex", "--set", "train.precision=bf16"]);
    if !has_bf16() {
        return fails(dir.path(), &rounded, &["train.precision", "bf16", "AVX-512 BF16"]);
    }
    succeeds(dir.path(), &rounded);
    let losses =
        |dir: &Path| metrics(dir).iter().filter_map(|line| line["loss"].as_f64()).collect::<Vec<f64>>();
    let other = workplace();
    succeeds(other.path(), &train(&["--backend", "flex"]));
    let (rounded, exact) = (losses(dir.path()), losses(other.path()));
    assert!(rounded != exact && rounded.len() == exact.len(), "{rounded:?}");
    for (rounded, exact) in rounded.iter().zip(&exact) {
        assert!((rounded - exact).abs() < 0.02 * exact, "{rounded} for {exact}");
    }
}

#[test]
fn each_phase_has_products_of_its_own() {
    let has_bf16 = has_bf16();
    // Losses of both phases, the first with the one and the second with the other.
    let trained = |first: &str, second: &str| {
        let dir = workplace();
        let then =
            r#"then: [(data: (paths: ["text.txt"]), train: (steps: 4, batch_size: 2, lr: 1e-3))], samples"#;
        write(dir.path(), "c.ron", &CONFIG.replacen("samples", then, 1));
        let [set_first, set_second] = [("train", first), ("then.0.train", second)]
            .map(|(key, value)| format!("{key}.precision={value}"));
        let args = train(&["--backend", "flex", "--set", &set_first, "--set", &set_second]);
        if !has_bf16 && [first, second].contains(&"bf16") {
            let key = if first == "bf16" { "train.precision" } else { "then.0.train.precision" };
            fails(dir.path(), &args, &[key, "bf16", "AVX-512 BF16"]);
            return None;
        }
        succeeds(dir.path(), &args);
        let of = |phase: u64| {
            let lines = metrics(dir.path()).into_iter().filter(move |line| line["phase"] == phase);
            lines.filter_map(|line| line["loss"].as_f64()).collect::<Vec<f64>>()
        };
        Some([of(0), of(1)])
    };
    let exact = trained("f32", "f32").expect("everywhere");
    assert!(exact.iter().all(|losses| !losses.is_empty()), "{exact:?}");
    let [Some(later), Some(earlier), Some(rounded)] =
        [("f32", "bf16"), ("bf16", "f32"), ("bf16", "bf16")].map(|(first, second)| trained(first, second))
    else {
        return;
    };
    assert!(later[0] == exact[0] && later[1] != exact[1], "{later:?}, exactly {exact:?}");
    // Rounding ends with its phase.
    assert!(earlier[0] == rounded[0] && earlier[1] != rounded[1], "{earlier:?}, rounded {rounded:?}");
    assert_ne!(earlier[0], exact[0]);
}

#[test]
fn plan_and_doctor_answer_in_json() {
    let dir = workplace();
    let dir = dir.path();
    let plan = json(&succeeds(dir, &["plan", "c.ron", "--json", "-q"]));
    let known = [
        "backend",
        "cache_bytes_per_token",
        "gflops",
        "memory_bytes",
        "name",
        "parameters",
        "phases",
        "vocab_size",
    ];
    assert_eq!(keys(&plan), known);
    assert_eq!(keys(&plan["phases"][0]), ["flops", "seconds", "steps", "tokens"]);
    assert_eq!(keys(&plan["memory_bytes"]), ["activations", "gradients", "optimizer", "total", "weights"]);
    assert!(!dir.join("run").exists(), "a plan writes nothing");
    let doctor = json(&succeeds(dir, &["doctor", "--json"]));
    let known = [
        "available_memory_bytes",
        "backends",
        "cpu_features",
        "default_backend",
        "kernels",
        "memory_bytes",
        "threads",
        "version",
    ];
    assert_eq!(keys(&doctor), known);
    for backend in doctor["backends"].as_array().expect("a list") {
        assert_eq!(keys(backend), ["compiled_in", "name", "reason", "usable"]);
    }
    fails(dir, &["plan", "c.ron", "--set", "model.n_heads=2"], &["n_heads", "`n_head`"]);
}
