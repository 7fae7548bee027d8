//! `flint serve` with several models: vectors, names, adapters, and a budget that not all of them fit.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::measure::encoder;
use super::server::{Server, completion, trained};
use super::{fails, json as parsed, succeeds, write};

/// Memory in MiB that one tiny model and its cache fit, and two do not: each counts 64 for what is packed and freed.
const FOR_ONE: &str = "100";

fn embeddings(server: &Server, more: &Value) -> Value {
    let mut body = json!({ "model": "m", "input": ["abc", "the cat"] });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    server.post("/v1/embeddings", &body).json()
}

/// Its numbers, which have as many digits as an f32 needs.
fn vector(entry: &Value) -> Vec<f64> {
    let numbers = entry["embedding"].as_array().expect("numbers").iter();
    numbers.filter_map(Value::as_f64).map(|x| f64::from(x as f32)).collect()
}

#[test]
fn vectors_are_those_of_embed_in_every_form() {
    let dir = encoder();
    let expected = parsed(&succeeds(dir.path(), &["embed", "m", "abc", "--json"]));
    let server = Server::of(dir, &["--embed", "m", "--alias", "text-embedding-3-small=m"], "");
    let plain = embeddings(&server, &json!({}));
    assert_eq!((&plain["object"], &plain["data"][1]["index"]), (&json!("list"), &json!(1)));
    let vector_of = vector(&plain["data"][0]);
    assert_eq!(plain["data"][0]["embedding"], expected["embedding"]);
    // [CLS] a b c [SEP], and seven letters between them.
    assert_eq!(plain["usage"], json!({ "prompt_tokens": 5 + 8, "total_tokens": 13 }));

    let ids = server.post("/tokenize", &json!({ "model": "m", "prompt": "abc" })).json();
    let by_ids = embeddings(&server, &json!({ "input": ids["tokens"], "model": "text-embedding-3-small" }));
    assert_eq!(by_ids["data"][0]["embedding"], expected["embedding"]);
    let bytes = embeddings(&server, &json!({ "encoding_format": "base64", "input": "abc" }));
    assert_eq!(floats(bytes["data"][0]["embedding"].as_str().expect("text")), vector_of);
    let cut = vector(&embeddings(&server, &json!({ "dimensions": 2, "user": "x" }))["data"][0]);
    let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert_eq!(cut.len(), 2);
    assert!((length(&cut) - length(&vector_of)).abs() < 1e-5);
    assert!((cut[0] * vector_of[1] - cut[1] * vector_of[0]).abs() < 1e-6, "the same direction");

    let listed = server.get("/v1/models/text-embedding-3-small").json();
    assert_eq!(
        (&listed["id"], &listed["root"], &listed["kind"], &listed["state"]),
        (&json!("text-embedding-3-small"), &json!("m"), &json!("embedding"), &json!("loaded"))
    );
    let all = server.get("/v1/models").json();
    let ids: Vec<&Value> = all["data"].as_array().expect("a list").iter().map(|model| &model["id"]).collect();
    assert!(ids.contains(&&json!("m")) && ids.contains(&&json!("text-embedding-3-small")), "{all}");
    assert!(server.get("/metrics").body.contains("flint_embedding_tokens_total{model=\"m\"} "));
}

/// Little-endian numbers in base64.
fn floats(text: &str) -> Vec<f64> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bits: Vec<bool> = text
        .bytes()
        .filter(|&c| c != b'=')
        .flat_map(|c| (0..6).rev().map(move |i| digit(c) >> i & 1 == 1))
        .collect();
    let bytes: Vec<u8> =
        bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |n, &bit| n << 1 | u8::from(bit))).collect();
    bytes.chunks_exact(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().expect("four")))).collect()
}

#[test]
fn vectors_that_cannot_be_are_errors_that_name_the_field() {
    let server = Server::of(encoder(), &["--embed", "m"], "");
    for (field, value) in [
        ("input", json!([])),
        ("input", json!("")),
        ("input", json!([1, -2])),
        ("input", json!([99_999])),
        ("input", json!(vec!["a"; 3000])),
        ("dimensions", json!(0)),
        ("dimensions", json!(4096)),
        ("encoding_format", json!("hex")),
        ("odd", json!(1)),
    ] {
        let mut body = json!({ "model": "m", "input": "a" });
        body[field] = value.clone();
        let (status, param, _) = server.post("/v1/embeddings", &body).error();
        assert_eq!((status, param), (400, json!(field)), "{value}");
    }
    let long = json!({ "model": "m", "input": ["a", "b ".repeat(5000)] });
    let answer = server.post("/v1/embeddings", &long);
    assert_eq!(answer.error(), (400, json!("input"), json!("context_length_exceeded")));
    assert!(answer.body.contains("text 1 has 5002 tokens"), "{}", answer.body);
    assert_eq!(server.post("/v1/completions", &json!({ "model": "m", "prompt": "a" })).error().1, "model");
}

/// An adapter of the tiny model that changes its queries a lot.
fn write_adapter(dir: &Path) {
    fs::create_dir(dir).expect("created");
    write(
        dir,
        "adapter_config.json",
        r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 4, "target_modules": ["down_proj"], "bias": "none"}"#,
    );
    let name = |factor: &str| format!("base_model.model.model.layers.0.mlp.down_proj.lora_{factor}.weight");
    let header = json!({
        name("A"): { "dtype": "F32", "shape": [1, 64], "data_offsets": [0, 256] },
        name("B"): { "dtype": "F32", "shape": [16, 1], "data_offsets": [256, 320] },
    })
    .to_string();
    let numbers = (0..80).map(|i| if i % 3 == 0 { 2.0f32 } else { -1.0 });
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(numbers.flat_map(f32::to_le_bytes));
    fs::write(dir.join("adapter_model.safetensors"), bytes).expect("written");
}

fn text(server: &Server, model: &str) -> String {
    let mut body = completion(24);
    body["model"] = json!(model);
    let answer = server.post("/v1/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["choices"][0]["text"].as_str().expect("text").to_owned()
}

fn state(server: &Server, model: &str) -> Value {
    server.get(&format!("/v1/models/{model}")).json()["state"].clone()
}

#[test]
fn an_adapter_is_a_model_of_its_own() {
    let dir = trained();
    write_adapter(&dir.path().join("adapter"));
    let args = ["generate", "run", "-p", "the cat", "-n", "24", "--temperature", "0", "--json"];
    let plain = parsed(&succeeds(dir.path(), &args));
    let with = parsed(&succeeds(dir.path(), &[&args[..], &["--lora", "adapter"]].concat()));
    assert_ne!(plain["text"], with["text"]);
    let lora = ["--lora", "other=adapter", "--lora", "again@tiny=adapter"];
    let server = Server::over(dir, &lora, "");
    assert_eq!(text(&server, "tiny"), plain["text"]);
    assert_eq!(text(&server, "other"), with["text"]);
    assert_eq!(text(&server, "again"), with["text"]);
    let listed = server.get("/v1/models").json();
    let ids: Vec<&Value> =
        listed["data"].as_array().expect("a list").iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["tiny", "other", "again"]);
}

#[test]
fn models_come_when_asked_for_and_go_when_their_room_is_needed() {
    let dir = trained();
    let args = ["a=run", "b=run", "--alias", "gpt=b", "--cache-memory", "1", "--memory", FOR_ONE];
    let server = Server::of(dir, &args, "");
    assert_eq!((state(&server, "a"), state(&server, "gpt")), (json!("loaded"), json!("unloaded")));
    let expected = text(&server, "a");
    assert_eq!(text(&server, "gpt"), expected);
    assert_eq!((state(&server, "a"), state(&server, "b")), (json!("unloaded"), json!("loaded")));
    assert_eq!(server.get("/health/ready").status, 200, "one model fewer is no fault");
    // Requests for both at once are all answered, by one model after the other.
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..12)
            .map(|i| {
                let (server, model) = (&server, if i % 2 == 0 { "a" } else { "gpt" });
                scope.spawn(move || text(server, model))
            })
            .collect();
        all.into_iter().for_each(|one| assert_eq!(one.join().expect("no panic"), expected));
    });
    assert!(server.is_idle_within(Duration::from_secs(5)));
}

#[test]
fn a_stream_keeps_its_model_until_it_ends() {
    let args = ["a=run", "b=run", "--cache-memory", "1", "--memory", FOR_ONE];
    let server = Server::of(trained(), &args, "");
    let mut body = completion(140);
    (body["model"], body["stream"]) = (json!("a"), json!(true));
    let (mut stream, body) = (server.connect(), body.to_string());
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close";
    let n = body.len();
    write!(stream, "{head}\r\nContent-Type: application/json\r\nContent-Length: {n}\r\n\r\n{body}")
        .expect("sent");
    // As soon as something has come, the other model is asked for.
    let mut answer = vec![0; 1024];
    let n = stream.read(&mut answer).expect("it answers");
    answer.truncate(n);
    assert!(!text(&server, "b").is_empty());
    stream.read_to_end(&mut answer).expect("the rest");
    let answer = String::from_utf8(answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("data: [DONE]"), "{answer}");
    assert!(!answer.contains("\"error\""), "{answer}");
}

#[test]
fn what_cannot_be_served_is_refused_before_anything_is_loaded() {
    let dir = trained();
    write_adapter(&dir.path().join("adapter"));
    let refuses = |more: &[&str], words: &[&str]| {
        fails(dir.path(), &[&["serve", "--port", "0"], more].concat(), words);
    };
    refuses(&[], &["no model"]);
    refuses(&["a=run", "--memory", "20", "--cache-memory", "1"], &["`a` takes", "20.0 MiB", "--memory"]);
    refuses(&["a=run", "a=run"], &["two models are named `a`"]);
    refuses(&["a=run", "--alias", "b=c"], &["no model `c`"]);
    refuses(&["a=run", "--alias", "a=a"], &["another model's name"]);
    refuses(&["a=run", "--lora", "b@c=adapter"], &["no such model"]);
    refuses(&["a=run", "--lora", "b=nowhere"], &["nowhere"]);
    refuses(&["a=run", "--embed", "e=run"], &["in the model `e`"]);
    write(dir.path(), "bad.ron", "(models: [\"run\"], prot: 1)");
    refuses(&["--config", "bad.ron"], &["bad.ron:1", "prot", "`port`"]);
    write(dir.path(), "both.ron", "(models: [\"run\"], keys: \"k\", no_keys: true)");
    refuses(&["--config", "both.ron"], &["`no_keys`"]);
}

#[test]
fn a_config_says_what_flags_say_and_flags_win() {
    let dir = trained();
    write(
        dir.path(),
        "serve.ron",
        "(models: [\"one=run\"], alias: [\"gpt=one\"], cache_memory: 1, max_body: 1, host_name: [\"box.lan\"])",
    );
    let server = Server::of(dir, &["--config", "serve.ron", "--alias", "other=one"], "");
    assert_eq!(
        server.get("/v1/models/one").json()["aliases"],
        json!(["other"]),
        "a list replaces the file's"
    );
    let large = completion(4).to_string() + &" ".repeat(2000);
    let kind = "Content-Type: application/json\r\n";
    assert_eq!(server.send("POST", "/v1/completions", kind, &large).status, 413);
    let other = "GET /v1/models HTTP/1.1\r\nHost: box.lan\r\nConnection: close\r\n\r\n";
    assert_eq!(server.raw(other).status, 200);
}

#[test]
fn the_example_config_can_be_read() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/serve.ron");
    let text = fs::read_to_string(&config).expect("there");
    let dir = trained();
    // All its models are the tiny one here, its adapter and its encoder are left out.
    let args = ["serve", "--config", "serve.ron", "quickstart=run", "--port", "0", "--memory", "1"];
    write(dir.path(), "serve.ron", &text);
    fails(dir.path(), &args, &["the model `quickstart` takes"]);
}
