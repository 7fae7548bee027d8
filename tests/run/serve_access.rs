//! Who may ask `flint serve`, how much, and over what: limits of keys, lenient fields, TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::Digest;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::server::{Answer, Server, chat, completion, trained};
use super::{command, fails, write};

fn retry_after(answer: &Answer) -> u64 {
    let head = answer.head.to_ascii_lowercase();
    let line = head.lines().find_map(|line| line.strip_prefix("retry-after: ")).expect("a time");
    line.trim().parse().expect("seconds")
}

#[test]
fn a_key_may_use_what_its_line_says() {
    let dir = trained();
    let line = |name: &str, limits: &str| {
        let hash: String =
            sha2::Sha256::digest(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{name} {hash} {limits}\n")
    };
    let keys = [
        line("free", ""),
        line("asks", "requests=3"),
        line("reads", "tokens=5"),
        line("waits", "concurrent=1"),
        line("batches", "tokens=5"),
    ];
    write(dir.path(), "keys", &keys.concat());
    let bad = line("x", "speed=3");
    write(dir.path(), "bad", &bad);
    fails(dir.path(), &["serve", "run", "--keys", "bad"], &["bad, line 1", "`speed=3`"]);
    let server = Server::over(dir, &["--keys", "keys"], "Authorization: Bearer free\r\n");
    let head = |key: &str| format!("Content-Type: application/json\r\nAuthorization: Bearer {key}\r\n");
    let ask =
        |key: &str, n: usize| server.send("POST", "/v1/completions", &head(key), &completion(n).to_string());
    let limited = |answer: &Answer| (answer.status, answer.error().2) == (429, json!("rate_limit_exceeded"));

    let statuses: Vec<u16> = (0..3).map(|_| ask("asks", 1).status).collect();
    assert_eq!(statuses, [200; 3]);
    let fourth = ask("asks", 1);
    assert!(limited(&fourth) && (1..=20).contains(&retry_after(&fourth)), "{}", fourth.head);
    let listed = server.send("GET", "/v1/models", "Authorization: Bearer asks\r\n", "");
    assert_eq!(listed.status, 200, "only questions count");

    assert_eq!(ask("reads", 100).status, 200);
    let second = ask("reads", 1);
    assert!(limited(&second) && retry_after(&second) >= 1, "{}", second.head);

    // Of a batch that is not taken, the prompts before the one that cannot be cost nothing.
    let batch = json!({ "model": "tiny", "prompt": ["the cat", [99_999]], "max_tokens": 0 }).to_string();
    for _ in 0..5 {
        assert_eq!(server.send("POST", "/v1/completions", &head("batches"), &batch).error().1, "prompt");
    }
    assert_eq!(ask("batches", 1).status, 200);

    let mut body = completion(140);
    (body["stream"], body["n"]) = (json!(true), json!(16));
    let body = body.to_string();
    let open = || {
        let mut stream = server.connect();
        let head = head("waits");
        let n = body.len();
        let request = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: {n}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut status = [0; 12];
        stream.read_exact(&mut status).expect("an answer");
        (String::from_utf8_lossy(&status[9..]).into_owned(), stream)
    };
    // Small as the model is, a stream may be over before the next request comes.
    let held = (0..50).find_map(|_| {
        let (status, stream) = open();
        let second = (status == "200").then(|| ask("waits", 1))?;
        (second.status == 429).then_some((second, stream))
    });
    let (second, stream) = held.expect("a stream that lasts for a request");
    assert!(limited(&second));
    drop(stream);
    let begin = Instant::now();
    while ask("waits", 1).status != 200 {
        assert!(begin.elapsed() < Duration::from_secs(10), "who hangs up asks no more");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(ask("free", 1).status, 200);
}

#[test]
fn a_lenient_server_answers_with_warnings() {
    let server = Server::start(&["--lenient"]);
    let mut body = completion(4);
    let plain = server.post("/v1/completions", &body);
    assert!(!plain.head.to_ascii_lowercase().contains("warning:"), "{}", plain.head);
    (body["odd\u{e9}"], body["suffix"]) = (json!(1), json!("x"));
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.json()["choices"], plain.json()["choices"]);
    let warnings: Vec<&str> =
        answer.head.lines().filter(|line| line.to_ascii_lowercase().starts_with("warning: 299 - ")).collect();
    assert_eq!(warnings.len(), 2, "{}", answer.head);
    assert!(
        warnings.iter().any(|line| line.contains("`odd\\u{e9}` is no field of this request")),
        "{warnings:?}"
    );
    assert!(warnings.iter().any(|line| line.contains("`suffix`")), "{warnings:?}");
    let mut within = chat(4, 1);
    (within["messages"][0]["odd"], within["stream"]) = (json!(1), json!(true));
    within["stream_options"] = json!({ "include_obfuscation": true });
    let answer = server.post("/v1/chat/completions", &within);
    assert_eq!(answer.status, 200, "{}", answer.body);
    for word in ["`odd` is no field of `messages[0]`", "`stream_options.include_obfuscation`"] {
        assert!(answer.head.contains(word), "no {word} in {}", answer.head);
    }
    body["temperature"] = json!("hot");
    assert_eq!(server.post("/v1/completions", &body).error().1, "temperature", "a wrong value stays wrong");
}

/// A client that trusts one certificate.
fn trusting(cert: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cert).expect("a certificate")).expect("trusted");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions");
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

#[test]
fn a_connection_by_tls_is_answered_and_any_other_is_not() {
    let dir = trained();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    write(dir.path(), "cert.pem", &made.cert.pem());
    write(dir.path(), "key.pem", &made.signing_key.serialize_pem());
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    write(dir.path(), "other.pem", &other.signing_key.serialize_pem());
    let serve = ["serve", "tiny=run", "--port", "0", "--cache-memory", "1", "--tls-cert", "cert.pem"];
    let with = |more: &[&'static str]| [&serve[..], more].concat();
    fails(dir.path(), &with(&[]), &["`tls_key`"]);
    fails(dir.path(), &with(&["--tls-key", "other.pem"]), &["cert.pem", "other.pem"]);
    fails(dir.path(), &with(&["--tls-key", "gone.pem"]), &["gone.pem"]);
    fails(dir.path(), &with(&["--tls-key", "cert.pem"]), &["private key", "cert.pem"]);

    let mut child = command(dir.path(), &with(&["--tls-key", "key.pem"])).spawn().expect("flint starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let address = lines.find_map(|line| line.strip_prefix("listening at https://").map(str::to_owned));
    let address = address.expect("it says that it speaks TLS").trim_end_matches("/v1").to_owned();
    let port: u16 = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    std::thread::spawn(move || lines.for_each(drop));
    let server = Server { dir, child, port };
    let config = trusting(&server.dir.path().join("cert.pem"));
    let ask = |request: &str| {
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(config.clone(), name).expect("a client");
        let mut stream = StreamOwned::new(connection, server.connect());
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        // Whoever hangs up without saying so is known by the length of the answer.
        let _ = stream.read_to_string(&mut answer);
        answer
    };
    let begin = Instant::now();
    while !ask("GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").contains(" 200 ")
    {
        assert!(begin.elapsed() < Duration::from_secs(60), "it gets ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    let body = completion(4).to_string();
    let answer = ask(&format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let answer: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(answer["object"], "text_completion");

    // Whoever speaks no TLS gets no answer in HTTP, and whoever says nothing holds nobody up.
    let _silent: Vec<TcpStream> = (0..50).map(|_| server.connect()).collect();
    assert_eq!(server.get("/health/live").status, 0);
    assert!(
        ask("GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ends_with("alive\n")
    );
}
