//! `flint serve` over a small model, and what it answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::program::{command, succeeds, train, workplace, write};

/// A server over a model that was trained for a moment. Ends with the test.
pub struct Server {
    pub dir: TempDir,
    pub child: Child,
    pub port: u16,
}

/// An answer, whole.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Status, `param` and `code` of an error, which must have a message.
    pub fn error(&self) -> (u16, Value, Value) {
        let error = self.json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", self.body);
        (self.status, error["param"].clone(), error["code"].clone())
    }

    /// The data of server-sent events, `[DONE]` being the last.
    pub fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|data| serde_json::from_str(data).expect("JSON")).collect()
    }
}

/// A folder with a model in `run` whose context is 160 tokens.
pub fn trained() -> TempDir {
    trained_for(160)
}

/// The same with another context.
pub fn trained_for(context: usize) -> TempDir {
    let dir = workplace();
    if context > 160 {
        let line = |i: usize| format!("line {i}: the cat sat on mat {}.\n", i * i % 97);
        write(dir.path(), "text.txt", &(0..2 * context / 5).map(line).collect::<String>());
    }
    let context = format!("model.context={context}");
    let sets = [
        "tokenizer.kind=bpe",
        "tokenizer.vocab_size=300",
        "train.steps=4",
        &context,
        "data.valid_fraction=0",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    succeeds(dir.path(), &train(&sets));
    dir
}

impl Server {
    pub fn start(more: &[&str]) -> Self {
        Self::over(trained(), more, "")
    }

    /// A server that is asked whether it is ready with these headers.
    pub fn over(dir: TempDir, more: &[&str], headers: &str) -> Self {
        Self::of(dir, &[&["tiny=run", "--cache-memory", "1"], more].concat(), headers)
    }

    /// A server of other models.
    pub fn of(dir: TempDir, more: &[&str], headers: &str) -> Self {
        let args = [&["serve", "--port", "0"], more].concat();
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

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
        stream
    }

    /// Sends bytes and reads until the end.
    pub fn raw(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut stream = self.connect();
        // It may answer, and hang up, before it has read everything.
        let _ = stream.write_all(request.as_ref());
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

    pub fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let n = body.len();
        self.raw(format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {n}\r\n{headers}\r\n{body}"
        ))
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "Content-Type: application/json\r\n", &body.to_string())
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", "")
    }

    /// A number of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("a metric")
    }

    /// Waits until nothing runs any more.
    pub fn is_idle_within(&self, time: Duration) -> bool {
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

    pub fn signal(&self) {
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

pub fn completion(n: usize) -> Value {
    json!({ "model": "tiny", "prompt": "the cat", "max_tokens": n, "temperature": 0 })
}

pub fn chat(n: usize, seed: i64) -> Value {
    let messages = json!([{ "role": "user", "content": "line 3" }]);
    json!({ "model": "tiny", "messages": messages, "max_tokens": n, "seed": seed })
}
