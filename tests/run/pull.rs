//! `flint pull` against a server on loopback that speaks the hub's protocol.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::Digest;

use super::{command, json as parsed, stderr};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server has and does, and what it was asked.
#[derive(Default)]
struct State {
    /// Name and bytes of each file of `me/tiny`.
    files: BTreeMap<String, Vec<u8>>,
    /// Answers with weights end after so many bytes, so many times.
    cuts: (usize, usize),
    /// Whether ranges are overlooked.
    ignores_ranges: bool,
    /// Bytes put in the place of the weights' first.
    lie: Option<u8>,
    /// Path, range and authorization of each request.
    asked: Vec<(String, Option<String>, Option<String>)>,
}

struct Server {
    url: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// Serves until the test's process ends.
    fn start() -> Self {
        let weights: Vec<u8> = (0..300_000u32).flat_map(|i| (i * i).to_le_bytes()).collect();
        let files = [
            ("README.md", b"readme".to_vec()),
            ("config.json", br#"{"model_type": "llama"}"#.to_vec()),
            ("model.safetensors", weights),
            ("pytorch_model.bin", b"a program".to_vec()),
            ("tiny.Q4_0.gguf", b"GGUF and more".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
        ];
        let files = files.map(|(name, bytes)| (name.to_owned(), bytes)).into();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // One request a connection; what the other side does to it is its business.
                let _ = answer(stream, &mut shared.lock().expect("no panic"));
            }
        });
        Self { url, state }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    /// Runs `flint pull`; nothing may panic.
    fn pull(&self, dir: &Path, args: &[&str]) -> Output {
        let args = [&["pull"], args].concat();
        let mut command = command(dir, &args);
        let output =
            command.env("HF_ENDPOINT", &self.url).env_remove("HF_TOKEN").output().expect("flint starts");
        assert!(!stderr(&output).contains("panicked"), "{args:?}: {}", stderr(&output));
        output
    }

    /// How often the weights themselves were asked for, and from where.
    fn ranges(&self) -> Vec<String> {
        let state = self.state();
        let weights = state.asked.iter().filter(|(path, ..)| path == "/cdn/model.safetensors");
        weights.map(|(_, range, _)| range.clone().unwrap_or_default()).collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(mut stream: TcpStream, state: &mut State) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers: BTreeMap<String, String> = lines
        .map_while(|line| line.ok()?.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned())))
        .collect();
    let range = headers.get("range").cloned();
    state.asked.push((path.clone(), range.clone(), headers.get("authorization").cloned()));
    let mut send = |status: &str, more: &str, body: &[u8], announced: usize| {
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nConnection: close\r\n{more}\r\n"
        )?;
        stream.write_all(body)
    };
    if path == "/api/models/me/tiny/revision/main" {
        let siblings: Vec<_> = state.files.keys().map(|name| json!({"rfilename": name})).collect();
        let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return send("200 OK", "", body.as_bytes(), body.len());
    }
    let resolve = format!("/me/tiny/resolve/{COMMIT}/");
    let is_moved = path.contains("/me/old/");
    let place = path.strip_prefix(&resolve).or(path.strip_prefix("/cdn/"));
    let Some((name, bytes)) = place.and_then(|name| state.files.get_key_value(name)) else {
        let (status, more) = match is_moved {
            true => ("307 Temporary Redirect", format!("Location: {}\r\n", path.replace("old", "tiny"))),
            false => ("404 Not Found", String::new()),
        };
        return send(status, &more, b"", 0);
    };
    let is_large = name.ends_with(".safetensors");
    if is_large && !path.starts_with("/cdn/") {
        let hash = hex(&sha2::Sha256::digest(bytes));
        let more = format!(
            "Location: /cdn/{name}\r\nX-Linked-Etag: \"{hash}\"\r\nX-Linked-Size: {}\r\nX-Repo-Commit: {COMMIT}\r\n",
            bytes.len()
        );
        // Elsewhere, as the hub's storage is.
        let host = headers.get("host").cloned().unwrap_or_default();
        let more = more
            .replace("Location: /", &format!("Location: http://{}/", host.replace("127.0.0.1", "localhost")));
        return send("302 Found", &more, b"", 0);
    }
    let mut bytes = bytes.clone();
    if let (Some(lie), true) = (state.lie, is_large) {
        bytes[0] = lie;
    }
    let git = [format!("blob {}\0", bytes.len()).as_bytes(), &bytes].concat();
    let etag = format!("ETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\n", hex(&sha1::Sha1::digest(git)));
    let bounds = range.filter(|_| !(state.ignores_ranges && is_large));
    let (first, last) =
        match bounds.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) {
            Some((first, last)) => (first.parse().unwrap_or(0), last.parse().unwrap_or(bytes.len() - 1)),
            None => (0, bytes.len() - 1),
        };
    let part = &bytes[first..=last];
    let (status, more) = match bounds {
        Some(_) => {
            ("206 Partial Content", format!("{etag}Content-Range: bytes {first}-{last}/{}\r\n", bytes.len()))
        }
        None => ("200 OK", etag),
    };
    let mut sent = part;
    if is_large && state.cuts.1 > 0 {
        state.cuts.1 -= 1;
        sent = &part[..state.cuts.0.min(part.len())];
    }
    send(status, &more, sent, part.len())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// Ends with exit code 2 and an error that has all these words.
fn refused(output: &Output, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}

#[test]
fn a_models_files_arrive_whole_and_nothing_else() {
    let (server, dir) = (Server::start(), tempfile::tempdir().expect("a temporary folder"));
    let output = server.pull(dir.path(), &["me/tiny", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("pytorch_model.bin"), "{}", stderr(&output));
    let told = parsed(&output);
    assert_eq!((&told["commit"], &told["files"][1]["bytes"]), (&json!(COMMIT), &json!(1_200_000)));
    let model = dir.path().join("models/tiny");
    assert_eq!(names(&model), ["config.json", "model.safetensors", "tokenizer.json"]);
    for name in names(&model) {
        assert!(fs::read(model.join(&name)).expect("read") == server.state().files[&name], "{name}");
    }
    assert_eq!(names(&dir.path().join("models")), ["tiny"]);
    assert!(server.state().asked.iter().all(|(path, ..)| !path.contains(".bin") && !path.contains("README")));
    refused(&server.pull(dir.path(), &["me/tiny"]), &["exists already"]);
}

#[test]
fn a_cut_connection_goes_on_where_it_ended() {
    let (server, dir) = (Server::start(), tempfile::tempdir().expect("a temporary folder"));
    server.state().cuts = (400_000, 2);
    let output = server.pull(dir.path(), &["me/tiny", "-o", "m"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        fs::read(dir.path().join("m/model.safetensors")).expect("read")
            == server.state().files["model.safetensors"]
    );
    assert_eq!(server.ranges(), ["bytes=0-1199999", "bytes=400000-1199999", "bytes=800000-1199999"]);
}

#[test]
fn another_pull_goes_on_where_the_last_gave_up() {
    let (server, dir) = (Server::start(), tempfile::tempdir().expect("a temporary folder"));
    // Something at first, then nothing.
    server.state().cuts = (1000, 1);
    let first = server.pull(dir.path(), &["me/tiny", "-o", "m"]);
    assert!(first.status.success(), "{}", stderr(&first));
    fs::rename(dir.path().join("m"), dir.path().join(".m.pull")).expect("renamed");
    // As an interrupted one leaves it.
    let scratch = dir.path().join(".m.pull");
    fs::write(scratch.join(".commit"), COMMIT).expect("written");
    let weights = fs::read(scratch.join("model.safetensors")).expect("read");
    fs::write(scratch.join("model.safetensors.part"), &weights[..700_000]).expect("written");
    fs::remove_file(scratch.join("model.safetensors")).expect("removed");
    server.state().asked.clear();
    let output = server.pull(dir.path(), &["me/tiny", "-o", "m"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(fs::read(dir.path().join("m/model.safetensors")).expect("read") == weights);
    assert_eq!(server.ranges(), ["bytes=700000-1199999"]);
    // What is left of another commit is not used.
    fs::create_dir_all(dir.path().join(".n.pull")).expect("created");
    fs::write(dir.path().join(".n.pull/.commit"), "another").expect("written");
    fs::write(dir.path().join(".n.pull/config.json"), "old").expect("written");
    assert!(server.pull(dir.path(), &["me/tiny", "-o", "n"]).status.success());
    assert_ne!(fs::read(dir.path().join("n/config.json")).expect("read"), b"old");
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let (server, dir) = (Server::start(), tempfile::tempdir().expect("a temporary folder"));
    (server.state().cuts, server.state().ignores_ranges) = ((500_000, 1), true);
    let output = server.pull(dir.path(), &["me/tiny", "-o", "m"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        fs::read(dir.path().join("m/model.safetensors")).expect("read")
            == server.state().files["model.safetensors"]
    );
}

#[test]
fn a_wrong_checksum_is_refused_and_leaves_no_folder() {
    let (server, dir) = (Server::start(), tempfile::tempdir().expect("a temporary folder"));
    server.state().lie = Some(7);
    refused(&server.pull(dir.path(), &["me/tiny", "-o", "m"]), &["model.safetensors", "hash"]);
    assert!(!dir.path().join("m").exists());
    server.state().lie = None;
    assert!(server.pull(dir.path(), &["me/tiny", "-o", "m"]).status.success());
}

#[test]
fn a_server_that_gives_nothing_is_given_up() {
    let (server, dir) = (Server::start(), tempfile::tempdir().expect("a temporary folder"));
    server.state().cuts = (0, usize::MAX);
    refused(&server.pull(dir.path(), &["me/tiny", "-o", "m"]), &["model.safetensors", "goes on"]);
    assert!(!dir.path().join("m").exists());
}

#[test]
fn one_file_alone_and_what_is_not_there() {
    let (server, dir) = (Server::start(), tempfile::tempdir().expect("a temporary folder"));
    let output = server.pull(dir.path(), &["me/tiny", "--file", "tiny.Q4_0.gguf", "-o", "g", "-q"]);
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));
    assert_eq!(names(&dir.path().join("g")), ["tiny.Q4_0.gguf"]);
    // A repository that has a new name.
    let output = server.pull(dir.path(), &["me/old", "--file", "config.json", "-o", "o"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let refused = |args: &[&str], words: &[&str]| refused(&server.pull(dir.path(), args), words);
    refused(&["me/none"], &["no model `me/none`", "HF_TOKEN"]);
    refused(&["me/tiny", "--file", "x.gguf"], &["no file `x.gguf`", "tiny.Q4_0.gguf"]);
    refused(&["me/tiny", "--file", "pytorch_model.bin"], &["pytorch_model.bin", "run code"]);
    refused(&["../tiny"], &["OWNER/NAME"]);
    assert_eq!(names(dir.path()), ["g", "o"]);
}

#[test]
fn a_token_goes_to_the_hub_alone() {
    let (server, dir) = (Server::start(), tempfile::tempdir().expect("a temporary folder"));
    let mut command = command(dir.path(), &["pull", "me/tiny", "-o", "m"]);
    let output =
        command.env("HF_ENDPOINT", &server.url).env("HF_TOKEN", "made-up").output().expect("flint starts");
    assert!(output.status.success(), "{}", stderr(&output));
    for (path, _, authorization) in &server.state().asked {
        let want = (!path.starts_with("/cdn/")).then_some("Bearer made-up");
        assert_eq!(authorization.as_deref(), want, "{path}");
    }
}
