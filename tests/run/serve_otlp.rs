//! `flint serve --otlp`: spans of requests at a collector. Run with `cargo test --release --features otlp`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::json;

use super::serve::{Server, trained};

/// What a collector is sent, request by request: its first line and its body.
fn collector() -> (String, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.expect("a client"));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                assert!(reader.read_line(&mut head).expect("a head") > 0, "{head}");
            }
            let length = head.to_ascii_lowercase();
            let length = length.lines().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.expect("a length").trim().parse().expect("a number")];
            reader.read_exact(&mut body).expect("a body");
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            reader.get_mut().write_all(answer.as_bytes()).expect("it listens");
            let line = head.lines().next().unwrap_or_default().to_owned();
            if sender.send((line, body)).is_err() {
                return;
            }
        }
    });
    (url, receiver)
}

fn contains(body: &[u8], what: &[u8]) -> bool {
    body.windows(what.len()).any(|window| window == what)
}

#[test]
fn spans_of_requests_reach_the_collector_without_their_texts() {
    let (url, spans) = collector();
    let server = Server::over(trained(), &["--otlp", &url], "");
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let headers =
        format!("Content-Type: application/json\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\n");
    let body = json!({ "model": "tiny", "prompt": "a secret", "max_tokens": 3, "n": 2, "stream": true });
    assert_eq!(server.send("POST", "/v1/completions", &headers, &body.to_string()).status, 200);
    let mut all = Vec::new();
    // Batches are sent after some seconds.
    while !contains(&all, b"POST /v1/completions") {
        let (line, body) = spans.recv_timeout(Duration::from_secs(30)).expect("spans");
        assert_eq!(line, "POST /v1/traces HTTP/1.1");
        all.extend(body);
    }
    let bytes: Vec<u8> =
        (0..16).map(|i| u8::from_str_radix(&trace[2 * i..][..2], 16).expect("digits")).collect();
    for wanted in [
        &bytes[..],
        b"generate",
        b"gen_ai.request.model",
        b"tiny",
        b"gen_ai.usage.output_tokens",
        b"gen_ai.server.time_to_first_token",
        b"http.response.status_code",
    ] {
        assert!(contains(&all, wanted), "{}", String::from_utf8_lossy(wanted));
    }
    assert!(!contains(&all, b"secret"));
}
