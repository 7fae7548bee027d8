//! What a server must hold that people rely on, whatever its clients do. The numbers are those of the project's list.
//!
//! Some bars are tested elsewhere, by the same names: 12 is `holes`, and 13, 14 and 54 are among them; 48 is `seeds`; 4
//! (nothing passes the pool), 5 (no step is longer than it may be), 57 (all orders of threads), 62, 63 (to the bit) and 65 are
//! in `infer/src` and `model/tests`; 7, of an engine that has broken down, in `src/serve/models.rs`. 15 is
//! `tools/openai_conformance.py`, driven by OpenAI's own client; 5 by the clock is `tools/serve_gaps.py`, and 16 for as long
//! as one likes `tools/serve_soak.py`.
//!
//! Times are those that a person would call a fault, not those that are wanted: these tests run beside others.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::server::{Server, chat, completion, trained, trained_for};
use super::{SOON, is_well_formed, lives, refused, status_of, with};

/// What is answered at once, however much the machine does: less than the ten seconds that slow clients have.
const PROMPT: Duration = Duration::from_secs(8);

/// A request as bytes, with the head that it needs.
fn request(path: &str, body: &Value) -> String {
    let body = body.to_string();
    let n = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {n}\r\n\r\n{body}"
    )
}

/// Sends a request and reads nothing of its answer.
fn sent(server: &Server, path: &str, body: &Value) -> TcpStream {
    let mut stream = server.connect();
    stream.write_all(request(path, body).as_bytes()).expect("sent");
    stream
}

fn text(server: &Server, body: &Value) -> String {
    let answer = server.post("/v1/completions", body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["choices"][0]["text"].as_str().expect("text").to_owned()
}

fn seeded(n: usize, seed: usize) -> Value {
    let prompt = format!("line {}: the cat", seed % 5);
    json!({ "model": "tiny", "prompt": prompt, "max_tokens": n, "seed": seed, "temperature": 1 })
}

#[test]
fn bar_01_who_hangs_up_leaves_nothing_behind_and_changes_nothing() {
    let server = Server::start(&["--queue", "200"]);
    let expected: Vec<String> = (0..10).map(|seed| text(&server, &seeded(40, seed))).collect();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..10)
            .map(|client| {
                let (server, expected) = (&server, &expected);
                scope.spawn(move || {
                    for i in 0..10 {
                        let seed = (client + i) % 10;
                        if i != client {
                            assert_eq!(text(server, &seeded(40, seed)), expected[seed]);
                            continue;
                        }
                        // One in ten goes, whole answers and streams, before anything has come and after.
                        let body = with(seeded(130, seed), "stream", json!(client % 2 == 0));
                        let mut stream = sent(server, "/v1/completions", &body);
                        if client % 4 == 0 {
                            let _ = stream.read(&mut [0; 32]);
                        }
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().expect("no fault"));
    });
    assert!(server.is_idle_within(SOON), "nobody listens any more");
    assert_eq!(text(&server, &seeded(40, 3)), expected[3]);
}

#[test]
fn bar_02_who_comes_after_many_that_hung_up_does_not_wait_for_them() {
    let server = Server::over(trained_for(1600), &[], "");
    for i in 0..20 {
        let is_stream = i % 2 == 0;
        let mut stream =
            sent(&server, "/v1/completions", &with(completion(1500), "stream", json!(is_stream)));
        if is_stream {
            stream.read_exact(&mut [0; 32]).expect("it begins");
        }
    }
    let begin = Instant::now();
    text(&server, &seeded(1, 7));
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert!(server.is_idle_within(SOON));
    // Who was sent away cost a few tokens, not all that they asked for.
    let n_new = server.metric("flint_generation_tokens_total");
    assert!(n_new < 20.0 * 1500.0 / 2.0, "{n_new} tokens were generated");
    assert!(server.metric("flint_requests_aborted_total") > 0.0);
}

#[test]
fn bar_03_a_full_queue_says_so_and_harms_nobody() {
    let server = Server::start(&["--parallel", "4", "--queue", "8"]);
    let expected: Vec<String> = (0..4).map(|seed| text(&server, &seeded(100, seed))).collect();
    let answers: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = (0..96)
            .map(|client| {
                let server = &server;
                scope.spawn(move || {
                    (0..2)
                        .map(|i| {
                            let seed = (client + i) % 4;
                            (seed, server.post("/v1/completions", &seeded(100, seed)))
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("no fault")).collect()
    });
    assert_eq!(answers.len(), 192);
    let mut n_full = 0;
    for (seed, answer) in answers {
        match answer.status {
            200 => assert_eq!(answer.json()["choices"][0]["text"], expected[seed]),
            429 => {
                n_full += 1;
                is_well_formed(&answer);
                assert_eq!(answer.error().2, "queue_full");
                let head = answer.head.to_ascii_lowercase();
                let seconds = head.lines().find_map(|line| line.strip_prefix("retry-after: "));
                assert!(seconds.is_some_and(|seconds| seconds.trim().parse::<u32>().is_ok()), "{head}");
            }
            status => panic!("{status}: {}", answer.body),
        }
    }
    assert!((1..192).contains(&n_full), "{n_full} were told that it is full");
    assert!(server.is_idle_within(SOON));
}

#[test]
fn bar_04_what_can_never_fit_is_refused_by_the_field_that_asked_for_it() {
    let server = Server::start(&[]);
    let long = json!(vec![5; 200]);
    let code = |path: &str, body: &Value, param: &str| {
        refused(&server, path, body, 400, param);
        let (_, found, code) = server.post(path, body).error();
        assert_eq!((found, code), (json!(param), json!("context_length_exceeded")));
    };
    code("/v1/completions", &completion(1000), "max_tokens");
    code("/v1/completions", &with(completion(1), "prompt", long), "prompt");
    let (chats, responses) = ("/v1/chat/completions", "/v1/responses");
    code(chats, &chat(1000, 1), "max_tokens");
    let mut newer = with(chat(1, 1), "max_completion_tokens", json!(1000));
    code(chats, &newer, "max_completion_tokens");
    newer.as_object_mut().expect("an object").remove("max_tokens");
    code(chats, &newer, "max_completion_tokens");
    let words = "cat ".repeat(400);
    code(chats, &with(chat(1, 1), "messages", json!([{ "role": "user", "content": words }])), "messages");
    code(
        responses,
        &json!({ "model": "tiny", "input": "x", "max_output_tokens": 1000 }),
        "max_output_tokens",
    );
    code(responses, &json!({ "model": "tiny", "input": words }), "input");
    // No room for what the form needs: the number is named by which it was asked for.
    let form = with(chat(1, 1), "guided_regex", json!("a{40}b{40}"));
    refused(&server, chats, &form, 400, "max_tokens");
    refused(&server, chats, &with(form, "max_completion_tokens", json!(3)), 400, "max_completion_tokens");
}

/// Tells threads that it is over, also where a test fails.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads a stream to its end.
fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits for a server to end, and says whether all was well.
fn ends(server: &mut Server, within: Duration) -> bool {
    let begin = Instant::now();
    loop {
        match server.child.try_wait().expect("a child") {
            Some(status) => return status.success(),
            None if begin.elapsed() > within => panic!("it does not end"),
            None => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A chat whose answer is some 50 MB of events: who does not read it keeps it going, as it fits neither into the buffers of
/// two sockets nor into those of the server.
fn flood() -> Value {
    json!({
        "model": "tiny", "messages": [{ "role": "user", "content": "x" }], "max_tokens": 1500, "n": 16, "stream": true,
        "logprobs": true, "top_logprobs": 20, "temperature": 0,
    })
}

/// A server that is busy until this is read or dropped: a flood of which the first tokens have come.
fn busy(server: &Server) -> TcpStream {
    let mut stream = sent(server, "/v1/chat/completions", &flood());
    stream.read_exact(&mut [0; 16 << 10]).expect("it begins");
    stream
}

#[test]
fn bar_06_a_signal_ends_it_in_order_and_a_second_one_at_once_with_a_last_word() {
    let mut server = Server::over(trained_for(1600), &["--drain", "600", "--queue", "1000"], "");
    let stream = busy(&server);
    // Whose places others want gives them up after a while, but not for all of these.
    let many = with(completion(1500), "n", json!(16));
    let waiting: Vec<TcpStream> = (0..40).map(|_| sent(&server, "/v1/completions", &many)).collect();
    // One connection that was there before, and is asked after.
    let mut kept = server.connect();
    let live = "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n";
    kept.write_all(live.as_bytes()).expect("sent");
    assert!(kept.read(&mut [0; 256]).expect("an answer") > 0);
    server.signal();
    let begin = Instant::now();
    while server.get("/health/ready").status != 503 {
        assert!(begin.elapsed() < SOON, "it stops");
        thread::sleep(Duration::from_millis(5));
    }
    let refused = server.post("/v1/completions", &completion(1));
    let head = refused.head.to_ascii_lowercase();
    assert!(
        refused.status == 503 && head.contains("connection: close") && head.contains("retry-after: "),
        "{head}"
    );
    is_well_formed(&refused);
    assert_eq!(server.get("/health/live").status, 200, "it lives until it is over");
    assert_eq!(kept.read(&mut [0; 256]).expect("its end"), 0, "who asks nothing is let go");
    server.signal();
    let stream = rest(stream);
    assert!(stream.contains("\"error\"") && !stream.contains("[DONE]"), "{}", &stream[stream.len() - 300..]);
    assert!(stream.contains("the server stopped before the answer was whole"));
    let waiting: Vec<String> = waiting.into_iter().map(rest).collect();
    // Who was read only after the signal is refused, others are told that it stopped or got their answer.
    let has = |answer: &str, status: u16| answer.starts_with(&format!("HTTP/1.1 {status}"));
    assert!(waiting.iter().all(|answer| has(answer, 200) || has(answer, 503)), "{waiting:?}");
    assert!(waiting.iter().any(|answer| has(answer, 503) && answer.contains("the server stopped")));
    assert!(ends(&mut server, SOON), "to be told to hurry is no fault");
    assert!(TcpStream::connect(("127.0.0.1", server.port)).is_err());
}

#[test]
fn bar_06_what_has_begun_is_finished_but_not_for_longer_than_is_allowed() {
    let mut server = Server::over(trained_for(1600), &["--drain", "1"], "");
    let short: Vec<TcpStream> =
        (0..10).map(|seed| sent(&server, "/v1/completions", &seeded(2, seed))).collect();
    let answers: Vec<String> = short
        .into_iter()
        .map(|stream| {
            let mut stream = stream;
            let mut begin = [0; 12];
            stream.read_exact(&mut begin).expect("an answer");
            String::from_utf8_lossy(&begin).into_owned()
        })
        .collect();
    assert!(answers.iter().all(|answer| answer == "HTTP/1.1 200"), "{answers:?}");
    // Some 200 MB of events that nobody reads before the signal: more than one second of work, even for this model.
    let streams: Vec<TcpStream> = (0..5).map(|_| busy(&server)).collect();
    server.signal();
    let streams: Vec<_> = streams.into_iter().map(|stream| thread::spawn(|| rest(stream))).collect();
    assert!(ends(&mut server, SOON + Duration::from_secs(1)));
    let ended: Vec<String> = streams.into_iter().map(|stream| stream.join().expect("no fault")).collect();
    for text in &ended {
        let is_whole = text.contains("[DONE]");
        assert_eq!(text.contains("the server stopped before the answer was whole"), !is_whole);
    }
    assert!(ended.iter().any(|text| !text.contains("[DONE]")), "a second is not enough for all");
}

#[test]
fn bar_07_whether_it_lives_is_told_under_full_load() {
    let server = Server::over(trained_for(1600), &["--queue", "100"], "");
    let streams: Vec<TcpStream> = (0..6).map(|_| busy(&server)).collect();
    for path in ["/health/live", "/health/ready", "/metrics", "/v1/models"] {
        for _ in 0..10 {
            let begin = Instant::now();
            assert_eq!(server.get(path).status, 200);
            assert!(begin.elapsed() < PROMPT, "{path}: {:?}", begin.elapsed());
        }
    }
    drop(streams);
    assert!(server.is_idle_within(SOON));
}

/// Numbers of a text in Prometheus' format by name and labels, after checking its form as `promtool check metrics` does.
fn metrics(text: &str) -> BTreeMap<String, f64> {
    let (mut all, mut kinds, mut helped) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    let is_name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
            && !name.as_bytes()[0].is_ascii_digit()
    };
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a name and help");
            assert!(is_name(name) && !help.is_empty() && !helped.contains(&name), "{line}");
            helped.push(name);
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(helped.last(), Some(&name), "help comes first");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a series and a number");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        assert!(is_name(name) && labels.ends_with('}'), "{line}");
        for label in labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()) {
            let (key, value) = label.split_once('=').expect("a label");
            assert!(
                is_name(key) && value.len() > 1 && value.starts_with('"') && value.ends_with('"'),
                "{line}"
            );
        }
        let of = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let kind = kinds.get(name).or_else(|| kinds.get(of?)).unwrap_or_else(|| panic!("no type: {line}"));
        assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        assert!(value >= 0.0 && all.insert(series.to_owned(), value).is_none(), "{line}");
    }
    for name in kinds.iter().filter(|(_, kind)| *kind == "histogram").map(|(name, _)| name) {
        let begin = format!("{name}_bucket{{le=\"");
        let mut buckets: Vec<(f64, f64)> = all
            .iter()
            .filter_map(|(series, n)| {
                let bound = series.strip_prefix(&begin)?.trim_end_matches("\"}");
                Some((bound.parse().unwrap_or(f64::INFINITY), *n))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.len() > 10 && buckets.is_sorted_by(|a, b| a.1 <= b.1), "{name}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, all[&format!("{name}_count")])));
    }
    all
}

#[test]
fn bar_08_metrics_can_be_read_and_move() {
    let server = Server::over(trained_for(1600), &[], "");
    let before = metrics(&server.get("/metrics").body);
    text(&server, &seeded(20, 1));
    let stream = busy(&server);
    let during = metrics(&server.get("/metrics").body);
    drop(stream);
    assert!(server.is_idle_within(SOON));
    let after = metrics(&server.get("/metrics").body);
    let of = |name: &str| {
        let series = format!("{name}{{model=\"tiny\"}}");
        (before[&series], during[&series], after[&series])
    };
    for name in ["flint_requests_running", "flint_kv_blocks_used"] {
        let (before, during, after) = of(name);
        assert!(before == 0.0 && during > 0.0 && after == 0.0, "{name}: {before}, {during}, {after}");
    }
    for name in ["flint_prompt_tokens_total", "flint_generation_tokens_total", "flint_steps_total"] {
        let (before, during, after) = of(name);
        assert!(before < during && during <= after, "{name}: {before}, {during}, {after}");
    }
    assert!(of("flint_requests_aborted_total").2 >= 16.0);
    assert!(of("flint_kv_blocks").0 > 0.0 && of("flint_requests_waiting").2 == 0.0);
    let count = |name: &str| after[&format!("{name}_count")];
    assert_eq!(
        (count("flint_time_to_first_token_seconds"), count("flint_time_between_tokens_seconds")),
        (1.0, 19.0)
    );
}

#[test]
fn bar_09_slow_sockets_hold_up_nobody_and_are_told_when_their_time_is_over() {
    let server = Server::start(&[]);
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let slow: Vec<TcpStream> = (0..200)
        .map(|i| {
            let mut stream = server.connect();
            // Nothing, the beginning of a head, and a head without its body.
            let begin = match i % 3 {
                0 => String::new(),
                1 => head[..20 + i % 40].to_owned(),
                _ => format!("{head}Content-Length: 500\r\n\r\n{{\"model\":"),
            };
            stream.write_all(begin.as_bytes()).expect("sent");
            stream
        })
        .collect();
    for _ in 0..10 {
        let begin = Instant::now();
        assert_eq!(server.post("/v1/completions", &completion(2)).status, 200);
        assert!(begin.elapsed() < PROMPT, "{:?}", begin.elapsed());
    }
    // After ten seconds, who sent a head is told, and the others' connections end.
    for (i, stream) in slow.into_iter().enumerate() {
        let answer = rest(stream);
        match i % 3 {
            2 => assert!(answer.starts_with("HTTP/1.1 408"), "{answer}"),
            _ => assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}"),
        }
    }
    assert_eq!(server.post("/v1/completions", &completion(2)).status, 200);
}

#[test]
fn bar_10_bodies_that_do_not_come_take_no_memory() {
    let server = Server::start(&[]);
    let Some(before) = status_of(&server, "VmRSS") else { return };
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let open = |rest: &str| {
        let mut stream = server.connect();
        let _ = stream.write_all(format!("{head}{rest}").as_bytes());
        stream
    };
    let waiting: Vec<TcpStream> = (0..20)
        .flat_map(|_| {
            [
                open("Content-Length: 4000000\r\n\r\n{"),
                open("Content-Length: 67108864\r\n\r\n{"),
                open("Content-Length: 1125899906842624\r\n\r\n{"),
                open("Transfer-Encoding: chunked\r\n\r\n3ffffff\r\n{"),
                open("Transfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n{"),
            ]
        })
        .collect();
    assert_eq!(server.post("/v1/completions", &completion(2)).status, 200);
    let during = status_of(&server, "VmRSS").expect("as before");
    assert!(during.saturating_sub(before) < 16 << 20, "{} KiB", during.saturating_sub(before) >> 10);
    drop(waiting);
}

#[test]
fn bar_11_errors_have_their_form_wherever_they_come_from() {
    let server = Server::start(&[]);
    let kind = "Content-Type: application/json\r\n";
    let post = |body: &Value| server.post("/v1/completions", body);
    for (answer, status, kind, code) in [
        (server.get("/v1/nothing"), 404, "invalid_request_error", Value::Null),
        (server.get("/v1/completions"), 405, "invalid_request_error", Value::Null),
        (server.get("/v1/models/x"), 404, "invalid_request_error", json!("model_not_found")),
        (server.send("POST", "/v1/completions", kind, "{"), 400, "invalid_request_error", Value::Null),
        (server.send("POST", "/v1/completions", "", "{}"), 415, "invalid_request_error", Value::Null),
        (server.send("GET", "/v1/models", "Origin: http://x\r\n", ""), 403, "permission_error", Value::Null),
        (
            post(&with(completion(1), "model", json!("x"))),
            404,
            "invalid_request_error",
            json!("model_not_found"),
        ),
        (post(&completion(1000)), 400, "invalid_request_error", json!("context_length_exceeded")),
        (
            post(&with(completion(1), "temperature", json!("x"))),
            400,
            "invalid_request_error",
            json!("invalid_type"),
        ),
        (
            server.send("POST", "/v1/completions", kind, &" ".repeat(5 << 20)),
            413,
            "invalid_request_error",
            Value::Null,
        ),
    ] {
        // Of a body that is too large, the answer may be lost with the connection.
        if status == 413 && answer.status == 0 {
            continue;
        }
        assert_eq!(answer.status, status, "{}", answer.body);
        is_well_formed(&answer);
        let error = &answer.json()["error"];
        assert_eq!((&error["type"], &error["code"]), (&json!(kind), &code), "{}", answer.body);
        assert!(
            answer.head.to_ascii_lowercase().contains("content-type: application/json"),
            "{}",
            answer.head
        );
    }
    // What stands deep in a request is named by its place.
    let deep = |value: Value| with(with(completion(1), "stream", json!(true)), "stream_options", value);
    assert_eq!(post(&deep(json!({ "include_obfuscation": false }))).status, 200);
    let padded = deep(json!({ "include_obfuscation": true }));
    refused(&server, "/v1/completions", &padded, 400, "stream_options.include_obfuscation");
    let odd = with(
        chat(1, 1),
        "messages",
        json!([{ "role": "user", "content": [{ "type": "text", "text": "x", "odd": 1 }] }]),
    );
    refused(&server, "/v1/chat/completions", &odd, 400, "messages[0].content[0].odd");
    // What goes wrong in the middle of a stream is its last event. Here nothing is left to pick from.
    let unknown = post(&with(completion(1), "logit_bias", json!({ "999999": 1 }))).body;
    let n: u64 = unknown
        .split("none of the ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .expect("a number");
    let all: serde_json::Map<String, Value> = (0..n).map(|id| (id.to_string(), json!(-100))).collect();
    let body = with(with(completion(4), "logit_bias", all.into()), "stream", json!(true));
    let answer = post(&body);
    let last = answer.body.trim_end().lines().last().expect("an event");
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").expect("data")).expect("JSON");
    assert_eq!(error["error"]["param"], "logit_bias", "{}", answer.body);
    assert!(!answer.body.contains("[DONE]"));
}

#[test]
fn bar_16_clients_that_come_and_go_leave_the_server_as_it_was() {
    let server = Server::start(&["--queue", "100"]);
    let expected: Vec<String> = (0..10).map(|seed| text(&server, &seeded(30, seed))).collect();
    let files = || fs::read_dir(format!("/proc/{}/fd", server.child.id())).map(Iterator::count).ok();
    let soak = || {
        thread::scope(|scope| {
            for client in 0..8 {
                let (server, expected) = (&server, &expected);
                scope.spawn(move || {
                    for i in 0..60 {
                        let seed = (client * 7 + i) % 10;
                        if (client + i) % 10 < 3 {
                            let body = with(seeded(130, seed), "stream", json!(i % 2 == 0));
                            drop(sent(server, "/v1/completions", &body));
                        } else {
                            assert_eq!(text(server, &seeded(30, seed)), expected[seed]);
                        }
                    }
                });
            }
        });
        assert!(server.is_idle_within(SOON));
    };
    soak();
    let before = (status_of(&server, "VmRSS"), files());
    (0..3).for_each(|_| soak());
    // What every answer left behind would be in it a thousand times; the allocator keeps some megabytes more or less.
    if let (Some(before), Some(after)) = (before.0, status_of(&server, "VmRSS")) {
        assert!(after < before + (16 << 20), "{before} bytes, then {after}");
    }
    // The last connections take a moment to close.
    let begin = Instant::now();
    while let (Some(before), Some(after)) = (before.1, files())
        && after > before + 8
    {
        assert!(begin.elapsed() < SOON, "{before} open files, then {after}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn bar_17_who_does_not_read_waits_alone_and_gives_its_place_to_others() {
    let server = Server::over(trained_for(1600), &["--parallel", "16"], "");
    let before = status_of(&server, "VmRSS");
    let stream = sent(&server, "/v1/chat/completions", &flood());
    let n_new = || server.metric("flint_generation_tokens_total");
    let (mut last, mut since, begin) = (n_new(), Instant::now(), Instant::now());
    while since.elapsed() < Duration::from_millis(700) || last == 0.0 {
        assert!(begin.elapsed() < 3 * SOON, "it waits for its reader");
        thread::sleep(Duration::from_millis(50));
        let now = n_new();
        if now > last {
            (last, since) = (now, Instant::now());
        }
    }
    assert!(server.metric("flint_requests_running") > 0.0, "all {last} tokens were generated for nobody");
    // All places are taken. Others get one within the patience of the engine, not after a minute.
    let begin = Instant::now();
    lives(&server);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert!(server.metric("flint_preemptions_total") > 0.0);
    if let (Some(before), Some(after)) = (before, status_of(&server, "VmRSS")) {
        assert!(after.saturating_sub(before) < 32 << 20, "{} MiB", after.saturating_sub(before) >> 20);
    }
    // Once it reads, it gets all of it.
    let text = rest_of_events(stream);
    assert_eq!(text.matches("\"finish_reason\":\"").count(), 16, "all choices end");
    assert!(text.contains("data: [DONE]"));
}

/// Reads events up to the last one.
fn rest_of_events(mut stream: TcpStream) -> String {
    let (mut text, mut piece) = (Vec::new(), vec![0; 1 << 16]);
    while !text.ends_with(b"data: [DONE]\n\n\r\n0\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(n) if n > 0 => text.extend_from_slice(&piece[..n]),
            _ => break,
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn bar_64_a_seed_gives_the_same_text_after_a_restart_and_with_any_number_of_threads() {
    let bodies: Vec<Value> = (0..6).map(|seed| seeded(60, seed)).collect();
    let mut said: Option<Vec<String>> = None;
    for threads in ["1", "2", "2"] {
        let server = Server::over(trained(), &["-t", threads], "");
        let alone: Vec<String> = bodies.iter().map(|body| text(&server, body)).collect();
        // And among others, whole or in pieces.
        let together: Vec<String> = thread::scope(|scope| {
            let all: Vec<_> = bodies
                .iter()
                .map(|body| {
                    let server = &server;
                    scope.spawn(move || {
                        let events = server
                            .post("/v1/completions", &with(body.clone(), "stream", json!(true)))
                            .events();
                        events
                            .iter()
                            .filter_map(|event| event["choices"][0]["text"].as_str())
                            .collect::<String>()
                    })
                })
                .collect();
            all.into_iter().map(|one| one.join().expect("no fault")).collect()
        });
        assert_eq!(together, alone);
        assert_eq!(said.get_or_insert_with(|| alone.clone()), &alone, "{threads} threads");
    }
}

#[test]
fn bar_63_log_probabilities_do_not_depend_on_who_else_is_there() {
    let server = Server::start(&["--queue", "100"]);
    let needle = with(with(seeded(24, 3), "logprobs", json!(5)), "echo", json!(true));
    let ask = || {
        let answer = server.post("/v1/completions", &needle);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()["choices"][0].clone()
    };
    let alone = ask();
    assert!(alone["logprobs"]["token_logprobs"].as_array().is_some_and(|all| all.len() > 24), "{alone}");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in 0..7 {
            let (server, is_over) = (&server, &is_over);
            scope.spawn(move || {
                for i in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    text(server, &seeded(1 + (client * 5 + i * 3) % 60, client + i));
                }
            });
        }
        let _over = AtEnd(&is_over);
        // All numbers to their last digit.
        (0..50).for_each(|_| assert_eq!(ask(), alone));
    });
}
