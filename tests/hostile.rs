//! What `flint serve` does with requests that mean harm, and how reliable it is under load: `cargo test --test hostile`.
//!
//! `holes` are known holes of other servers, each with the inputs that went through it. Their numbers are those of the list
//! that the project keeps. Holes 1 to 11 are of files, and tested where those are read: `quant/tests/it/hostile.rs` and
//! `handcrafted.rs` (1 to 8), `tokenizer/tests/it/hostile.rs` (4, 9, 10), `model/tests/it/weights.rs` (11). `bars` are
//! what a server that people rely on must hold; `seeds` are requests, broken in many places.

#[path = "hostile/bars.rs"]
mod bars;
#[path = "hostile/holes.rs"]
mod holes;
mod program;
#[path = "hostile/seeds.rs"]
mod seeds;
mod server;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use program::{fails, write};
use server::{Answer, Server, completion};

/// How long an answer may take, at most: it takes milliseconds, but tests run on machines that do much else.
const SOON: Duration = Duration::from_secs(20);

/// Bytes that a hole may cost the server, for as long as it lasts.
const MAX_GROWTH: u64 = 64 << 20;

/// One server for all holes: `tiny`, which has room for 1,600 tokens, and models whose templates mean harm.
static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let dir = server::trained_for(1600);
    let mut models = vec!["tiny=run".to_owned()];
    for (name, template) in holes::templates() {
        let (from, to) = (dir.path().join("run/model"), dir.path().join(name));
        fs::create_dir(&to).expect("made");
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::copy(from.join(file), to.join(file)).expect("copied");
        }
        let config = json!({ "chat_template": template, "eos_token": "<|endoftext|>" });
        write(&to, "tokenizer_config.json", &config.to_string());
        models.push(format!("{name}={name}"));
    }
    let mut args: Vec<&str> = models.iter().map(String::as_str).collect();
    args.extend(["--cache-memory", "2"]);
    let server = Server::of(dir, &args, "");
    end_with_us(server.child.id());
    server
});

/// Ends a process when this one has ended, however that happens: what is static is never dropped.
fn end_with_us(id: u32) {
    let script = format!("read line; kill -9 {id}");
    let watch = Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().expect("a shell");
    // Its pipe closes when nobody has it any more.
    static WATCH: OnceLock<Child> = OnceLock::new();
    assert!(WATCH.set(watch).is_ok(), "one process is watched");
}

/// Tries a hole, alone, and checks what it cost and that the server still answers.
fn hole(attempt: impl FnOnce(&Server)) {
    hole_for(1, attempt);
}

/// The same of so many requests that are worked on at once.
fn hole_for(n: u64, attempt: impl FnOnce(&Server)) {
    static TURN: Mutex<()> = Mutex::new(());
    let server = &*SERVER;
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(server.is_idle_within(SOON));
    // From now on, the peak is this hole's.
    let is_reset = fs::write(format!("/proc/{}/clear_refs", server.child.id()), "5").is_ok();
    let before = status_of(server, "VmRSS");
    attempt(server);
    lives(server);
    if let (Some(before), Some(peak), true) = (before, status_of(server, "VmHWM"), is_reset) {
        let growth = peak.saturating_sub(before);
        assert!(growth < n * MAX_GROWTH, "it took {} MiB", growth >> 20);
    }
}

/// Bytes that `/proc` says of a server, where there is such a thing.
fn status_of(server: &Server, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{}/status", server.child.id())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

/// It answers as always.
fn lives(server: &Server) {
    static SAID: Mutex<Option<Value>> = Mutex::new(None);
    let answer = server.post("/v1/completions", &completion(8));
    assert_eq!(answer.status, 200, "{}", answer.body);
    let text = answer.json()["choices"][0]["text"].clone();
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(*said.get_or_insert_with(|| text.clone()), text);
}

/// What an error must be like, whatever it is: in OpenAI's form, and without what is the server's own business.
fn is_well_formed(answer: &Answer) {
    let error = answer.json()["error"].clone();
    for key in ["message", "type", "param", "code"] {
        assert!(error.get(key).is_some(), "no `{key}`: {}", answer.body);
    }
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty() && message.len() < 2000));
    for word in ["panicked", ".rs:", "/root", "/home", "unwrap"] {
        assert!(!answer.body.contains(word), "{}", answer.body);
    }
}

/// Sends a body, which must be refused soon, with this status and the name of this field.
fn refused(server: &Server, path: &str, body: &Value, status: u16, param: &str) {
    let begin = Instant::now();
    let answer = server.post(path, body);
    let shown: String = body.to_string().chars().take(300).collect();
    assert!(begin.elapsed() < SOON, "{shown} took {:?}", begin.elapsed());
    assert_eq!(answer.status, status, "{shown}: {}", answer.body);
    is_well_formed(&answer);
    let found = answer.json()["error"]["param"].clone();
    assert!(found.as_str().unwrap_or_default().starts_with(param), "{shown}: {}", answer.body);
}

/// A body with another value of a field.
fn with(mut body: Value, name: &str, value: Value) -> Value {
    body[name] = value;
    body
}
