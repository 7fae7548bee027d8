//! Requests of every kind, and what becomes of them when they are broken: bytes changed, parts left out, sent twice, cut
//! short. Whatever comes, the answer is HTTP, its errors have their form, and the server lives.
//!
//! `tools/serve_load.py fuzz` does the same by chance, and for as long as one likes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

use model::rng::Rng;
use serde_json::{Value, json};

use super::server::{Server, chat, completion, trained};
use super::{is_well_formed, with};

/// Requests that are answered.
fn seeds() -> Vec<String> {
    let post = |path: &str, body: &Value| {
        let body = body.to_string();
        let n = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {n}\r\n\r\n{body}"
        )
    };
    let chunked = |body: &str| {
        let pieces: String = body
            .as_bytes()
            .chunks(9)
            .map(|b| format!("{:x}\r\n{}\r\n", b.len(), String::from_utf8_lossy(b)))
            .collect();
        format!(
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{pieces}0\r\n\r\n"
        )
    };
    let tool = json!([{ "type": "function", "function": { "name": "f" } }]);
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": { "type": "boolean" } } });
    let messages = json!([
        { "role": "system", "content": "a" },
        { "role": "user", "content": [{ "type": "text", "text": "b\u{e9}\u{1f600}" }] },
    ]);
    vec![
        "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".into(),
        "GET http://localhost/v1/models/tiny HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n\r\n".into(),
        "GET /metrics HTTP/1.1\r\nHost: [::1]:80\r\nOrigin: http://localhost\r\nConnection: close\r\n\r\n".into(),
        post("/v1/completions", &completion(2)),
        post("/v1/completions", &with(with(completion(2), "logprobs", json!(2)), "echo", json!(true))),
        post("/v1/completions", &with(completion(2), "prompt", json!([[5, 6], [7]]))),
        post("/v1/completions", &with(completion(4), "guided_regex", json!("a+b"))),
        post("/v1/completions", &with(completion(2), "stream", json!(true))),
        chunked(&completion(2).to_string()),
        post("/v1/chat/completions", &with(chat(2, 1), "messages", messages)),
        post("/v1/chat/completions", &with(chat(8, 1), "response_format", format)),
        post("/v1/chat/completions", &with(with(chat(2, 1), "tools", tool), "tool_choice", json!("none"))),
        post("/v1/responses", &json!({ "model": "tiny", "input": "x", "max_output_tokens": 2, "stream": true })),
        post("/tokenize", &json!({ "model": "tiny", "prompt": "the cat" })),
        post("/detokenize", &json!({ "model": "tiny", "tokens": [5, 6, 7] })),
    ]
}

/// What a mutated request is, and whether nothing comes after it.
fn broken(seed: &[u8], rng: &mut Rng) -> (Vec<u8>, bool) {
    let mut below = |n: usize| rng.below(n as u64) as usize;
    let mut bytes = seed.to_vec();
    let mut is_cut = false;
    for _ in 0..1 + below(3) {
        if bytes.is_empty() {
            break;
        }
        let at = below(bytes.len());
        match below(6) {
            0 => bytes[at] ^= 1 << below(8),
            1 => bytes[at] = b"\0\r\n\t \"{}[]:,\\\xff\x80%/9-"[below(19)],
            2 => drop(bytes.remove(at)),
            3 => {
                let end = (at + 1 + below(20)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => bytes.insert(at, below(256) as u8),
            _ => {
                bytes.truncate(at);
                is_cut = true;
            }
        }
    }
    (bytes, is_cut)
}

/// Sends bytes, and checks what comes back.
fn holds(server: &Server, bytes: &[u8], is_cut: bool) {
    let mut stream = server.connect();
    let _ = stream.write_all(bytes);
    if is_cut {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer);
    let shown = String::from_utf8_lossy(bytes);
    if text.is_empty() {
        return;
    }
    let status: u16 =
        text.strip_prefix("HTTP/1.").and_then(|text| text.get(2..5)?.parse().ok()).unwrap_or_default();
    assert!((200..500).contains(&status) || status == 503, "{shown:?}: {text}");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    // What hyper refuses before it is a request has no body.
    if status >= 400 && head.contains("application/json") && !body.is_empty() {
        // Where it is no longer said that the connection ends, what follows is answered as another request.
        let lower = head.to_ascii_lowercase();
        let n = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let body = body.get(..n.unwrap_or(body.len())).unwrap_or(body).to_owned();
        let (status, head) = (status, head.to_owned());
        is_well_formed(&super::Answer { status, head, body });
    }
}

#[test]
fn bar_48_requests_broken_in_many_places_are_answered_or_hung_up_on() {
    let server = Server::over(trained(), &["--max-body", "64"], "");
    let seeds = seeds();
    for seed in &seeds {
        let answer = server.raw(seed);
        assert_eq!(answer.status, 200, "{seed}: {}", answer.body);
    }
    thread::scope(|scope| {
        // Many at a time: some wait until the server does not any more.
        for worker in 0..32u64 {
            let (server, seeds) = (&server, &seeds);
            scope.spawn(move || {
                let mut rng = Rng::stream(48, worker);
                for _ in 0..20 {
                    let seed = &seeds[rng.below(seeds.len() as u64) as usize];
                    let (bytes, is_cut) = broken(seed.as_bytes(), &mut rng);
                    holds(server, &bytes, is_cut);
                }
            });
        }
    });
    for seed in &seeds {
        assert_eq!(server.raw(seed).status, 200, "it lives");
    }
}
