//! `flint serve` from outside, over HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::Digest;
use tempfile::TempDir;

use super::{command, fails, json as parsed, succeeds, train, workplace, write};

/// A server over a model that was trained for a moment. Ends with the test.
struct Server {
    dir: TempDir,
    child: Child,
    port: u16,
}

/// An answer, whole.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Status, `param` and `code` of an error, which must have a message.
    fn error(&self) -> (u16, Value, Value) {
        let error = self.json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", self.body);
        (self.status, error["param"].clone(), error["code"].clone())
    }

    /// The data of server-sent events, `[DONE]` being the last.
    fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|data| serde_json::from_str(data).expect("JSON")).collect()
    }
}

fn trained() -> TempDir {
    let dir = workplace();
    let sets = [
        "tokenizer.kind=bpe",
        "tokenizer.vocab_size=300",
        "train.steps=4",
        "model.context=160",
        "data.valid_fraction=0",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    succeeds(dir.path(), &train(&sets));
    dir
}

impl Server {
    fn start(more: &[&str]) -> Self {
        Self::over(trained(), more, "")
    }

    /// A server that is asked whether it is ready with these headers.
    fn over(dir: TempDir, more: &[&str], headers: &str) -> Self {
        let args = [&["serve", "tiny=run", "--port", "0", "--cache-memory", "1"][..], more].concat();
        let mut child = command(dir.path(), &args).spawn().expect("flint starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("listening at http://").map(str::to_owned));
        let address = address.expect("it says where it listens");
        let port = address.trim_end_matches("/v1").rsplit(':').next().and_then(|port| port.parse().ok());
        // What it says later is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        let server = Self { dir, child, port: port.expect("a port") };
        let begin = Instant::now();
        while server.send("GET", "/health/ready", headers, "").status != 200 {
            assert!(begin.elapsed() < Duration::from_secs(60), "it gets ready");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
        stream
    }

    /// Sends bytes and reads until the end.
    fn raw(&self, request: &str) -> Answer {
        let mut stream = self.connect();
        // It may answer, and hang up, before it has read everything.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).expect("text");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let body = match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            true => unchunked(body),
            false => body.to_owned(),
        };
        Answer { status, head: head.to_owned(), body }
    }

    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let n = body.len();
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {n}\r\n{headers}\r\n{body}"
        ))
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "Content-Type: application/json\r\n", &body.to_string())
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", "")
    }

    /// A number of `/metrics`.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("a metric")
    }

    /// Waits until nothing runs any more.
    fn is_idle_within(&self, time: Duration) -> bool {
        let begin = Instant::now();
        loop {
            if self.metric("flint_requests_running") == 0.0 && self.metric("flint_kv_blocks_used") == 0.0 {
                return true;
            }
            if begin.elapsed() > time {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self) {
        let kill = std::process::Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(kill.expect("kill runs").success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(n) = usize::from_str_radix(size, 16) else { break };
        whole.push_str(&rest[..n.min(rest.len())]);
        body = rest.get(n + 2..).unwrap_or_default();
    }
    whole
}

fn completion(n: usize) -> Value {
    json!({ "model": "tiny", "prompt": "the cat", "max_tokens": n, "temperature": 0 })
}

fn chat(n: usize, seed: i64) -> Value {
    let messages = json!([{ "role": "user", "content": "line 3" }]);
    json!({ "model": "tiny", "messages": messages, "max_tokens": n, "seed": seed })
}

#[test]
fn answers_are_those_of_generate_whole_and_in_pieces() {
    let server = Server::start(&[]);
    let args = ["generate", "run", "-p", "the cat", "-n", "24", "--temperature", "0", "--json"];
    let expected = parsed(&succeeds(server.dir.path(), &args));
    let whole = server.post("/v1/completions", &completion(24)).json();
    assert_eq!(whole["choices"][0]["text"], expected["text"]);
    assert_eq!(whole["usage"]["completion_tokens"], expected["completion_tokens"]);
    assert_eq!(whole["usage"]["prompt_tokens"], expected["prompt_tokens"]);

    let mut streamed = completion(24);
    (streamed["stream"], streamed["stream_options"]) = (json!(true), json!({ "include_usage": true }));
    let events = server.post("/v1/completions", &streamed).events();
    let text: String = events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, expected["text"]);
    let last = events.last().expect("usage");
    assert_eq!(
        (&last["choices"], &last["usage"]["completion_tokens"]),
        (&json!([]), &expected["completion_tokens"])
    );
}

#[test]
fn a_chat_is_the_same_whole_in_pieces_and_among_others() {
    let server = Server::start(&[]);
    let alone = server.post("/v1/chat/completions", &chat(40, 5)).json();
    let text = alone["choices"][0]["message"]["content"].as_str().expect("text").to_owned();
    assert_eq!(alone["object"], "chat.completion");
    assert!(!text.is_empty());

    let mut streamed = chat(40, 5);
    streamed["stream"] = json!(true);
    let events = server.post("/v1/chat/completions", &streamed).events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(
        events.iter().all(|event| event["object"] == "chat.completion.chunk" && event.get("usage").is_none())
    );
    let pieces = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
    assert_eq!(pieces.collect::<String>(), text);
    assert_eq!(
        events.last().expect("an end")["choices"][0]["finish_reason"],
        alone["choices"][0]["finish_reason"]
    );

    // Choice i has seed + i, as requests of their own would have.
    let mut many = chat(40, 4);
    many["n"] = json!(3);
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..6)
            .map(|i| {
                scope.spawn({
                    let server = &server;
                    move || server.post("/v1/chat/completions", &chat(60, 100 + i)).status
                })
            })
            .collect();
        let many = server.post("/v1/chat/completions", &many).json();
        assert_eq!(many["choices"].as_array().map(Vec::len), Some(3));
        assert_eq!(many["choices"][1]["message"]["content"], text.as_str());
        assert!(others.into_iter().all(|other| other.join().expect("no panic") == 200));
    });
    assert!(server.is_idle_within(Duration::from_secs(5)));
}

#[test]
fn probabilities_of_prompt_and_answer_add_up() {
    let server = Server::start(&[]);
    let mut request = completion(3);
    (request["echo"], request["logprobs"]) = (json!(true), json!(2));
    let choice = server.post("/v1/completions", &request).json()["choices"][0].clone();
    let text = choice["text"].as_str().expect("text");
    assert!(text.starts_with("the cat"), "{text}");
    let lists = &choice["logprobs"];
    let tokens: Vec<&str> =
        lists["tokens"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(tokens.concat(), text);
    assert!(lists["token_logprobs"][0].is_null());
    for i in 1..tokens.len() {
        let (own, top) = (lists["token_logprobs"][i].as_f64().expect("a number"), &lists["top_logprobs"][i]);
        let largest =
            top.as_object().expect("an object").values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
        assert!(own <= 0.0 && own <= largest, "{own}, {largest}");
    }
    let mut request = chat(4, 1);
    (request["logprobs"], request["top_logprobs"], request["temperature"]) =
        (json!(true), json!(3), json!(0));
    let choice = server.post("/v1/chat/completions", &request).json()["choices"][0].clone();
    for token in choice["logprobs"]["content"].as_array().expect("a list") {
        assert_eq!(token["logprob"], token["top_logprobs"][0]["logprob"], "greedy takes the most probable");
        assert_eq!(token["top_logprobs"].as_array().map(Vec::len), Some(3));
    }
}

#[test]
fn models_and_tokens_can_be_asked_for() {
    let server = Server::start(&[]);
    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    assert_eq!(server.get("/v1/models/tiny").json()["object"], "model");
    assert_eq!(server.get("/v1/models/other").error(), (404, json!("model"), json!("model_not_found")));
    let tokens = server.post("/tokenize", &json!({ "model": "tiny", "prompt": "the cat" })).json();
    let text = server.post("/detokenize", &json!({ "model": "tiny", "tokens": tokens["tokens"] })).json();
    assert_eq!(text["prompt"], "the cat");
    let template = json!({ "model": "tiny", "messages": [{ "role": "user", "content": "hi" }] });
    let rendered = server.post("/apply-template", &template).json();
    assert!(rendered["prompt"].as_str().is_some_and(|prompt| prompt.contains("hi")), "{rendered}");
}

#[test]
fn what_cannot_be_answered_is_an_error_that_names_the_field() {
    let server = Server::start(&["--max-body", "4"]);
    let with = |path: &str, change: &dyn Fn(&mut Value)| {
        let mut body = if path.ends_with("chat/completions") { chat(4, 1) } else { completion(4) };
        change(&mut body);
        server.post(path, &body).error()
    };
    let cases: [(&str, Value); 16] = [
        ("temprature", json!(1)),
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("n", json!(1_000_000_000)),
        ("n", json!(-1)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1.5)),
        ("stop", json!([""])),
        ("stop", json!(vec!["x"; 100])),
        ("stop", json!(3)),
        ("seed", json!("x")),
        ("stream", json!("yes")),
        ("stream_options", json!({ "include_usage": true })),
        ("logit_bias", json!({ "5": 1 })),
        ("presence_penalty", json!(0.5)),
    ];
    for path in ["/v1/completions", "/v1/chat/completions"] {
        for (name, value) in &cases {
            let (status, param, _) = with(path, &|body| body[*name] = value.clone());
            assert_eq!((status, param), (400, json!(name)), "{path}, {name}: {value}");
        }
        let (status, _, code) = with(path, &|body| body["max_tokens"] = json!(1000));
        assert_eq!((status, code), (400, json!("context_length_exceeded")));
        let (status, _, code) = with(path, &|body| body["model"] = json!("gpt"));
        assert_eq!((status, code), (404, json!("model_not_found")));
    }
    for (name, value) in
        [("top_logprobs", json!(1_000_000_000)), ("messages", json!([])), ("tools", json!([1]))]
    {
        let (status, param, _) = with("/v1/chat/completions", &|body| body[name] = value.clone());
        assert_eq!((status, param), (400, json!(name)));
    }
    for value in [json!([2_147_483_648u64]), json!([300]), json!([]), json!({}), json!([[1], "x", 3])] {
        let (status, param, _) = with("/v1/completions", &|body| body["prompt"] = value.clone());
        assert_eq!((status, param), (400, json!("prompt")), "{value}");
    }
    assert_eq!(
        server.send("POST", "/v1/completions", "Content-Type: application/json\r\n", "{").error().0,
        400
    );
    assert_eq!(server.send("POST", "/v1/completions", "Content-Type: text/plain\r\n", "{}").error().0, 415);
    assert_eq!(server.get("/v1/completions").error().0, 405);
    assert_eq!(server.get("/v1/nothing").error().0, 404);
    let large = completion(4).to_string() + &" ".repeat(5000);
    assert_eq!(
        server.send("POST", "/v1/completions", "Content-Type: application/json\r\n", &large).error().0,
        413
    );
    // The same without saying so before.
    let chunked = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
        "1\r\n \r\n".repeat(5000)
    );
    assert_eq!(server.raw(&chunked).status, 413);
    let header = format!("X-Long: {}\r\n", "x".repeat(300_000));
    assert_eq!(server.send("GET", "/v1/models", &header, "").status, 431);
    assert_eq!(server.post("/v1/completions", &completion(2)).status, 200, "it still answers");
}

#[test]
fn other_hosts_and_origins_may_not_ask() {
    let server = Server::start(&["--host-name", "box.lan"]);
    let from = |host: &str, headers: &str| {
        let answer = server
            .raw(&format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"));
        assert!(!answer.head.to_ascii_lowercase().contains("access-control-allow-origin"));
        answer.status
    };
    assert_eq!(from("localhost", ""), 200);
    assert_eq!(from("127.0.0.1:99", ""), 200);
    assert_eq!(from("BOX.lan", ""), 200);
    assert_eq!(from("[::1]:8080", "Origin: http://localhost:3000\r\n"), 200);
    assert_eq!(from("evil.example.com", ""), 403);
    assert_eq!(from("localhost.evil.example.com", ""), 403);
    assert_eq!(from("localhost", "Origin: http://evil.example.com\r\n"), 403);
    assert_eq!(from("localhost", "Origin: null\r\n"), 403);
}

#[test]
fn keys_are_asked_for_everywhere_but_whether_it_lives() {
    let dir = trained();
    let hash: String = sha2::Sha256::digest(b"secret").iter().map(|byte| format!("{byte:02x}")).collect();
    write(dir.path(), "keys", &format!("# who\nalice {hash}\n"));
    write(dir.path(), "bad", "alice secret\n");
    fails(dir.path(), &["serve", "run", "--keys", "bad"], &["bad, line 1", "SHA-256"]);
    fails(dir.path(), &["serve", "run", "--host", "0.0.0.0"], &["0.0.0.0", "--keys"]);
    let server = Server::over(dir, &["--keys", "keys"], "Authorization: Bearer secret\r\n");
    let status = |server: &Server, headers: &str| server.send("GET", "/v1/models", headers, "").status;
    assert_eq!(status(&server, "Authorization: Bearer secret\r\n"), 200);
    assert_eq!(status(&server, "authorization: bearer secret\r\n"), 200);
    for headers in [
        "",
        "Authorization: Bearer other\r\n",
        "Authorization: Bearer secret2\r\n",
        "Authorization: Basic secret\r\n",
        "Authorization: secret\r\n",
        "Authorization: Bearer secret\r\nAuthorization: Bearer secret\r\n",
    ] {
        assert_eq!(status(&server, headers), 401, "{headers}");
    }
    for path in [
        "/metrics",
        "/health/ready",
        "/v1/models/tiny",
        "//v1/models",
        "/v1/../v1/models",
        "/v1%2fmodels",
        "/nothing",
    ] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    assert_eq!(
        server
            .raw("GET http://localhost/v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .status,
        401
    );
    assert_eq!(server.get("/health/live").status, 200);
}

#[test]
fn who_hangs_up_is_forgotten_and_who_waits_is_told_when_it_is_full() {
    let server = Server::start(&["--parallel", "1", "--queue", "2"]);
    let body = |n: usize| {
        let mut body = completion(n);
        body["stream"] = json!(true);
        body.to_string()
    };
    for _ in 0..20 {
        let mut stream = server.connect();
        let body = body(150);
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).expect("sent");
        let _ = stream.read(&mut [0; 16]);
    }
    assert!(server.is_idle_within(Duration::from_secs(2)), "nobody listens any more");

    let statuses: Vec<(u16, String)> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..24)
            .map(|_| {
                scope.spawn(|| {
                    let answer = server.post("/v1/completions", &completion(100));
                    (answer.status, answer.head)
                })
            })
            .collect();
        all.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    assert!(statuses.iter().all(|(status, _)| [200, 429].contains(status)), "{statuses:?}");
    assert!(statuses.iter().any(|(status, _)| *status == 200));
    for (_, head) in statuses.iter().filter(|(status, _)| *status == 429) {
        assert!(head.to_ascii_lowercase().contains("retry-after: 1"), "{head}");
    }
}

#[test]
fn a_signal_lets_answers_end_and_no_more_begin() {
    let mut server = Server::start(&[]);
    let mut streamed = completion(140);
    streamed["stream"] = json!(true);
    let body = streamed.to_string();
    let mut stream = server.connect();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).expect("sent");
    let mut begin = [0; 64];
    stream.read_exact(&mut begin).expect("it begins");
    server.signal();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("it ends by itself");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    let begin = Instant::now();
    let status = loop {
        match server.child.try_wait().expect("a child") {
            Some(status) => break status,
            None if begin.elapsed() > Duration::from_secs(31) => panic!("it does not end"),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(status.success(), "{status:?}");
    assert!(TcpStream::connect(("127.0.0.1", server.port)).is_err());
}

#[test]
fn metrics_move() {
    let server = Server::start(&[]);
    let before = server.metric("flint_generation_tokens_total");
    let long = json!({ "model": "tiny", "prompt": vec![5; 140], "max_tokens": 7, "temperature": 0 });
    for _ in 0..2 {
        assert_eq!(server.post("/v1/completions", &long).status, 200);
    }
    assert!(server.metric("flint_generation_tokens_total") > before);
    assert_eq!(
        server.metric("flint_cached_tokens_total"),
        128.0,
        "two pages of the second prompt were known"
    );
    assert_eq!(server.metric("flint_prompt_tokens_total"), 152.0);
    let text = server.get("/metrics").body;
    let bucket = "flint_time_to_first_token_seconds_bucket{le=\"+Inf\"} 2";
    assert!(text.contains(bucket) && text.contains("flint_time_to_first_token_seconds_count 2"), "{text}");
}
