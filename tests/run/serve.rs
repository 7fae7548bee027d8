//! `flint serve` from outside, over HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::Digest;

use super::server::{Server, chat, completion, trained};
use super::{fails, json as parsed, succeeds, write};

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
fn settings_of_the_sampler_are_those_of_generate() {
    let server = Server::start(&[]);
    let tokens = server.post("/tokenize", &json!({ "model": "tiny", "prompt": "z" })).json();
    let id = tokens["tokens"].as_array().and_then(|ids| ids.last()?.as_u64()).expect("an id");
    let mut biased = completion(5);
    biased["logit_bias"] = json!({ id.to_string(): 100 });
    assert_eq!(server.post("/v1/completions", &biased).json()["choices"][0]["text"], "zzzzz");
    let end = json!({ "model": "tiny", "prompt": "<|endoftext|>", "parse_special": true, "add_special_tokens": false });
    let id = server.post("/tokenize", &end).json()["tokens"][0].as_u64().expect("an id");
    biased["logit_bias"] = json!({ id.to_string(): 100 });
    let finish =
        |body: &Value| server.post("/v1/completions", body).json()["choices"][0]["finish_reason"].clone();
    assert_eq!(finish(&biased), "stop");
    biased["ignore_eos"] = json!(true);
    assert_eq!(finish(&biased), "length");

    let settings = [
        ("typical_p", json!(0.9), "--typical-p=0.9"),
        ("presence_penalty", json!(-0.5), "--presence-penalty=-0.5"),
        ("frequency_penalty", json!(0.25), "--frequency-penalty=0.25"),
        ("dry_multiplier", json!(0.8), "--dry-multiplier=0.8"),
        ("dry_sequence_breakers", json!(["e", "\n"]), "--dry-breaker=e"),
        ("dry_allowed_length", json!(1), "--dry-allowed-length=1"),
        ("mirostat", json!(1), "--mirostat=1"),
        ("mirostat_tau", json!(3), "--mirostat-tau=3"),
        ("xtc_probability", json!(0.5), "--xtc-probability=0.5"),
        ("xtc_threshold", json!(0.01), "--xtc-threshold=0.01"),
    ];
    let mut body =
        json!({ "model": "tiny", "prompt": "the cat", "max_tokens": 24, "temperature": 0.8, "seed": 3 });
    let mut args = vec!["generate", "run", "-p", "the cat", "-n", "24", "--seed", "3", "--json"];
    let plain = parsed(&succeeds(server.dir.path(), &args));
    assert_eq!(server.post("/v1/completions", &body).json()["choices"][0]["text"], plain["text"]);
    for (name, value, flag) in &settings {
        body[*name] = value.clone();
        args.push(flag);
    }
    args.push("--dry-breaker=\n");
    let set = parsed(&succeeds(server.dir.path(), &args));
    assert_eq!(server.post("/v1/completions", &body).json()["choices"][0]["text"], set["text"]);
    assert_ne!(set["text"], plain["text"]);
}

#[test]
fn the_best_of_several_is_the_one_with_the_most_probable_tokens() {
    let server = Server::start(&[]);
    let of = |seed: u64| json!({ "model": "tiny", "prompt": "the cat", "max_tokens": 8, "seed": seed, "logprobs": 0 });
    let mean = |choice: &Value| {
        let all: Vec<f64> = choice["logprobs"]["token_logprobs"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(Value::as_f64)
            .collect();
        all.iter().sum::<f64>() / all.len() as f64
    };
    let mut each: Vec<Value> =
        (5..9).map(|seed| server.post("/v1/completions", &of(seed)).json()["choices"][0].clone()).collect();
    each.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let mut best = of(5);
    (best["n"], best["best_of"]) = (json!(2), json!(4));
    best.as_object_mut().expect("an object").remove("logprobs");
    let answer = server.post("/v1/completions", &best).json();
    let choices = answer["choices"].as_array().expect("a list");
    assert_eq!(choices.len(), 2);
    for (i, (found, expected)) in choices.iter().zip(&each).enumerate() {
        assert_eq!((&found["text"], &found["index"]), (&expected["text"], &json!(i)));
        assert!(found["logprobs"].is_null());
    }
    // All that was generated counts.
    assert_eq!(answer["usage"]["completion_tokens"], json!(32));
    best["best_of"] = json!(1);
    assert_eq!(
        server.post("/v1/completions", &best).error(),
        (400, json!("best_of"), json!("integer_below_min_value"))
    );
}

#[test]
fn guesses_do_not_change_answers() {
    let plain = Server::start(&[]);
    let ask = |server: &Server, i: u64| {
        let mut body = completion(80);
        (body["temperature"], body["seed"]) = (json!(if i < 3 { 0.0 } else { 0.8 }), json!(i));
        body["prompt"] = json!(format!("line {}: the cat", i % 2));
        server.post("/v1/completions", &body).json()["choices"].clone()
    };
    let expected: Vec<Value> = (0..6).map(|i| ask(&plain, i)).collect();
    assert_eq!(plain.metric("flint_guessed_tokens_total"), 0.0);
    for guess in ["lookup", "run"] {
        let server = Server::start(&["--speculate", guess]);
        std::thread::scope(|scope| {
            let (server, ask) = (&server, &ask);
            let all: Vec<_> = (0..6).map(|i| scope.spawn(move || ask(server, i))).collect();
            for (answer, expected) in all.into_iter().zip(&expected) {
                assert_eq!(&answer.join().expect("no panic"), expected, "{guess}");
            }
        });
        assert!(server.metric("flint_accepted_tokens_total") <= server.metric("flint_guessed_tokens_total"));
        assert!(server.is_idle_within(Duration::from_secs(5)));
    }
}

#[test]
fn models_and_tokens_can_be_asked_for() {
    let server = Server::start(&[]);
    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("tiny")));
    assert_eq!(server.get("/v1/models/tiny").json()["object"], "model");
    assert_eq!(server.get("/v1/models/other").error(), (404, json!("model"), json!("model_not_found")));
    assert_eq!(server.get("/v1/models/%ff").error(), (404, json!("model"), json!("model_not_found")));
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
        ("logit_bias", json!({ "999999": 1 })),
        ("presence_penalty", json!(2.5)),
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
        [("top_logprobs", json!(1_000_000_000)), ("messages", json!([])), ("tools", json!(1))]
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
    assert_eq!(server.raw(chunked).status, 413);
    let header = format!("X-Long: {}\r\n", "x".repeat(300_000));
    assert_eq!(server.send("GET", "/v1/models", &header, "").status, 431);
    assert_eq!(server.post("/v1/completions", &completion(2)).status, 200, "it still answers");
}

#[test]
fn other_hosts_and_origins_may_not_ask() {
    let server = Server::start(&["--host-name", "box.lan"]);
    let from = |host: &str, headers: &str| {
        let answer = server
            .raw(format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n"));
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
