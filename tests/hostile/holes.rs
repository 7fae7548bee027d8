//! Known holes of other servers.

use std::fs;
use std::time::Instant;

use serde_json::{Value, json};
use sha2::Digest;

use super::server::{Server, chat, trained};
use super::{SOON, completion, fails, hole, hole_for, is_well_formed, lives, refused, with, write};

/// Models whose templates mean harm. The first does what the message says.
pub fn templates() -> Vec<(&'static str, String)> {
    let cases: [(&str, &str); 11] = [
        ("mro", "{{ ''.__class__.__mro__ }}"),
        ("globals", "{{ cycler.__init__.__globals__.os.popen('touch owned').read() }}"),
        ("getattr", "{{ ''|attr('__class__')|attr('__base__') }}"),
        ("range", "{% for i in range(10**9) %}x{% endfor %}"),
        ("loops", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
        ("macro", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        ("repeat", "{{ 'a' * 10**10 }}"),
        ("indent", "{{ 'x'|indent(10**10) }}"),
        (
            "double",
            "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        ),
        (
            "nest",
            "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l|tojson }}",
        ),
        (
            "fan",
            "{% macro f(n) %}{% for i in range(9) %}{{ f(n+1) if n < 50 }}{% endfor %}{% endmacro %}{{ f(0) }}",
        ),
    ];
    let mut harmful = "{% set c = messages[0].content %}".to_owned();
    for (i, (name, body)) in cases.iter().enumerate() {
        let branch = if i == 0 { "if" } else { "elif" };
        harmful += &format!("{{% {branch} c == '{name}' %}}{body}");
    }
    harmful += "{% else %}{{ c }}{% endif %}";
    vec![
        ("harmful", harmful),
        ("includes", "{% include '/etc/passwd' %}{{ messages[0].content }}".into()),
        ("imports", "{% import '/etc/passwd' as p %}{{ p }}".into()),
        ("deep", format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000))),
    ]
}

fn said_to(model: &str, content: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": content }] })
}

/// Attributes of Python, and files, through a template (CVE-2024-34359, CVE-2026-5760).
#[test]
fn hole_12_templates_reach_nothing() {
    hole(|server| {
        for (model, content, param) in [
            ("harmful", "mro", "messages"),
            ("harmful", "globals", "messages"),
            ("harmful", "getattr", "messages"),
            ("includes", "x", "model"),
            ("imports", "x", "model"),
        ] {
            for path in ["/apply-template", "/v1/chat/completions"] {
                refused(server, path, &said_to(model, content), 400, param);
                let answer = server.post(path, &said_to(model, content));
                assert!(!answer.body.contains("root:"), "{}", answer.body);
            }
        }
        assert!(!server.dir.path().join("owned").exists());
        let answer = server.post("/apply-template", &said_to("harmful", "plain")).json();
        assert_eq!(answer["prompt"], "plain", "the template works otherwise");
        // Without a conversation these models are as good as any.
        assert_eq!(server.post("/v1/completions", &with(completion(2), "model", json!("deep"))).status, 200);
    });
}

/// Templates that never end, or take all memory: recursion, brackets, repetition, `indent` (minijinja's fuel counts steps).
#[test]
fn hole_13_bar_54_templates_end_soon_in_bounded_memory() {
    hole(|server| {
        for content in ["range", "loops", "macro", "repeat", "indent", "double", "nest", "fan"] {
            refused(server, "/v1/chat/completions", &said_to("harmful", content), 400, "messages");
        }
        refused(server, "/v1/chat/completions", &said_to("deep", "x"), 400, "model");
    });
}

/// A template, or its settings, from the client (CVE-2025-62426).
#[test]
fn hole_14_no_template_comes_from_a_client() {
    hole(|server| {
        let kwargs = json!({ "tokenize": true, "chat_template": "{{ 1 }}" });
        for (name, value) in [("chat_template_kwargs", kwargs), ("chat_template", json!("{{ 'x' * 10**9 }}"))]
        {
            refused(server, "/v1/chat/completions", &with(chat(4, 1), name, value.clone()), 400, name);
            refused(server, "/apply-template", &with(said_to("tiny", "x"), name, value), 400, name);
        }
    });
}

fn tool(parameters: Value) -> Value {
    json!([{ "type": "function", "function": { "name": "f", "parameters": parameters } }])
}

/// Patterns and types in schemas of tools that crash the compiler (CVE-2025-48944).
#[test]
fn hole_15_schemas_of_tools_are_refused_or_followed() {
    hole(|server| {
        let pattern = |pattern: &str| json!({ "properties": { "x": { "type": "string", "pattern": pattern } }, "required": ["x"] });
        let cases = [
            pattern("(("),
            pattern("["),
            pattern("a{2,1}"),
            pattern("(?<x"),
            json!({ "properties": { "x": { "type": "hiccup" } } }),
            json!({ "type": "hiccup" }),
            json!({ "properties": { "x": { "type": ["string", 3] } } }),
            json!({ "properties": 3 }),
        ];
        for parameters in cases {
            let body = with(chat(4, 1), "tools", tool(parameters));
            refused(server, "/v1/chat/completions", &body, 400, "tools[0].function.parameters");
        }
        // What repeats a repetition is odd, and means something.
        let body = with(chat(900, 1), "tools", tool(pattern("foo**")));
        let answer = server.post("/v1/chat/completions", &with(body, "tool_choice", json!("required")));
        assert!([200, 400].contains(&answer.status), "{}", answer.body);
    });
}

/// Counts without bound (CVE-2026-34756), and ids that are in no vocabulary.
#[test]
fn hole_16_counts_are_bounded() {
    hole(|server| {
        for n in [json!(1_000_000_000u64), json!(5_000_000), json!(u64::MAX), json!(1e300)] {
            for (path, body) in [("/v1/chat/completions", chat(4, 1)), ("/v1/completions", completion(4))] {
                refused(server, path, &with(body, "n", n.clone()), 400, "n");
            }
            refused(server, "/v1/completions", &with(completion(4), "best_of", n.clone()), 400, "best_of");
            refused(server, "/v1/completions", &with(completion(4), "logprobs", n.clone()), 400, "logprobs");
            let body = with(with(chat(4, 1), "logprobs", json!(true)), "top_logprobs", n.clone());
            refused(server, "/v1/chat/completions", &body, 400, "top_logprobs");
            refused(server, "/v1/completions", &with(completion(4), "max_tokens", n), 400, "max_tokens");
        }
        for id in [json!(1u64 << 31), json!(u32::MAX), json!(1u64 << 63), json!(-1), json!(300), json!(1.5)] {
            refused(server, "/v1/completions", &with(completion(4), "prompt", json!([5, id])), 400, "prompt");
            refused(server, "/detokenize", &json!({ "model": "tiny", "tokens": [id] }), 400, "tokens");
        }
        let many = json!(vec!["a"; 100_000]);
        refused(server, "/v1/completions", &with(completion(4), "prompt", many), 400, "prompt");
    });
}

/// Lists without bound: 500,000 stop strings, ids outside the vocabulary, 2,000 allowed ids.
#[test]
fn hole_17_lists_are_bounded() {
    hole(|server| {
        let cases = [
            ("stop", json!(vec!["x"; 100_000])),
            ("stop", json!(["x".repeat(1_000_000)])),
            ("stop_token_ids", json!([1_000_000_000u64])),
            ("stop_token_ids", json!(vec![1; 100_000])),
            ("logit_bias", json!({ "1000000000": 1 })),
            ("logit_bias", json!({ "-1": 1 })),
            (
                "logit_bias",
                (0..100_000).map(|i| (i.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into(),
            ),
            ("allowed_token_ids", json!((0..2000).collect::<Vec<_>>())),
            ("prompt_logprobs", json!(-1)),
            ("bad_words", json!(vec!["x"; 100_000])),
            ("dry_sequence_breakers", json!(vec!["x"; 100_000])),
        ];
        for (name, value) in cases {
            for (path, body) in [("/v1/chat/completions", chat(4, 1)), ("/v1/completions", completion(4))] {
                refused(server, path, &with(body, name, value.clone()), 400, name);
            }
        }
        // More than any request needs is not even read: it would take many times its size.
        for values in
            [json!(vec!["x"; 500_000]), json!(vec![0; 1_000_000]), json!(vec![json!([]); 1_000_000])]
        {
            for name in ["stop", "prompt", "odd"] {
                refused(server, "/v1/completions", &with(completion(4), name, values.clone()), 400, "");
            }
        }
        let tools: Vec<Value> = (0..5000)
            .map(|i| json!({ "type": "function", "function": { "name": format!("f{i}") } }))
            .collect();
        refused(server, "/v1/chat/completions", &with(chat(4, 1), "tools", json!(tools)), 400, "tools");
    });
}

/// Large headers and bodies, in small pieces too (CVE-2025-48956, CVE-2025-23310, CVE-2025-33201).
#[test]
fn hole_18_heads_and_bodies_are_bounded() {
    hole(|server| {
        let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n";
        let header = format!("X-Long: {}\r\n", "x".repeat(300_000));
        assert_eq!(server.send("GET", "/v1/models", &header, "").status, 431);
        let many: String = (0..5000).map(|i| format!("X-{i}: y\r\n")).collect();
        assert_eq!(server.send("GET", "/v1/models", &many, "").status, 431);
        let begin = Instant::now();
        // 3 MB on the wire, of which each byte comes alone.
        let pieces = "1\r\n \r\n".repeat(500_000);
        let answer = server.raw(format!("{head}Transfer-Encoding: chunked\r\n\r\n{pieces}0\r\n\r\n"));
        assert_eq!(answer.status, 400, "{}", answer.body);
        is_well_formed(&answer);
        let large = " ".repeat(64 << 20);
        let answer = server.raw(format!("{head}Content-Length: {}\r\n\r\n{large}", large.len()));
        assert!([413, 0].contains(&answer.status), "{}", answer.status);
        let answer = server.raw(format!("{head}Content-Length: {}\r\n\r\n", large.len()));
        assert_eq!(answer.error().0, 413);
        let answer = server.raw(format!(
            "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
            large.len()
        ));
        assert!([413, 0].contains(&answer.status), "{}", answer.status);
        for n in ["18446744073709551616", "-1", "1e3", "0x10", "5, 6"] {
            let answer = server.raw(format!("{head}Content-Length: {n}\r\n\r\n{{}}"));
            assert!((400..500).contains(&answer.status), "{n}: {}", answer.status);
        }
        let answer = server.raw(format!("{head}Content-Length: 1125899906842624\r\n\r\n{{}}"));
        assert_eq!(answer.error().0, 413);
        assert!(begin.elapsed() < 3 * SOON);
    });
}

/// Integers below zero (CVE-2026-21869), in every field that has one.
#[test]
fn hole_19_no_integer_is_negative() {
    hole(|server| {
        let both = ["n", "max_tokens", "top_k", "mirostat", "dry_allowed_length"];
        let own = [
            "n_discard",
            "n_keep",
            "n_predict",
            "min_tokens",
            "truncate_prompt_tokens",
            "priority",
            "id_slot",
        ];
        for value in [json!(-1), json!(i64::MIN), json!(-1.0)] {
            for name in both.into_iter().chain(own) {
                for (path, body) in [("/v1/chat/completions", chat(4, 1)), ("/v1/completions", completion(4))]
                {
                    refused(server, path, &with(body, name, value.clone()), 400, name);
                }
            }
            for name in ["logprobs", "best_of"] {
                refused(server, "/v1/completions", &with(completion(4), name, value.clone()), 400, name);
            }
            let body = with(with(chat(4, 1), "logprobs", json!(true)), "top_logprobs", value.clone());
            refused(server, "/v1/chat/completions", &body, 400, "top_logprobs");
            let name = "max_completion_tokens";
            refused(server, "/v1/chat/completions", &with(chat(4, 1), name, value.clone()), 400, name);
            let body = json!({ "model": "tiny", "input": "x", "max_output_tokens": value });
            refused(server, "/v1/responses", &body, 400, "max_output_tokens");
        }
        // Of this one -1 means all.
        let body = with(completion(4), "dry_penalty_last_n", json!(-2));
        refused(server, "/v1/completions", &body, 400, "dry_penalty_last_n");
    });
}

/// Ways around a key through the form of the path or of the headers (CVE-2026-48746, CVE-2026-24207): also bar 13, whose
/// other half, that comparing takes the same time whatever differs, follows from how `src/serve/accounts.rs` compares:
/// hashes, all of them, in full.
#[test]
fn hole_20_bar_13_no_request_gets_around_the_key() {
    let dir = trained();
    let hash: String = sha2::Sha256::digest(b"secret").iter().map(|byte| format!("{byte:02x}")).collect();
    write(dir.path(), "keys", &format!("alice {hash}\n"));
    let server = Server::over(dir, &["--keys", "keys"], "Authorization: Bearer secret\r\n");
    let body = completion(1).to_string();
    let ask = |line: &str, headers: &str| {
        let n = body.len();
        let request = format!(
            "{line} HTTP/1.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {n}\r\n{headers}\r\n{body}"
        );
        server.raw(request)
    };
    let host = "Host: localhost\r\n";
    for line in [
        "POST /v1/completions",
        "POST //v1/completions",
        "POST /v1/../v1/completions",
        "POST /health/live/../../v1/completions",
        "POST /v1%2fcompletions",
        "POST /%76%31/completions",
        "POST /v1/completions/",
        "POST /v1/completions?key=secret",
        "POST /v1/completions#/health/live",
        "POST http://localhost/v1/completions",
        "POST http://localhost/health/live/../../v1/completions",
        "POST /V1/Completions",
        "POST /health/live;/v1/completions",
        "OPTIONS /v1/completions",
        "HEAD /v1/models",
    ] {
        let answer = ask(line, host);
        assert!([400, 401, 404, 405].contains(&answer.status), "{line}: {}", answer.status);
        assert!(!answer.body.contains("choices"), "{line}: {}", answer.body);
    }
    for headers in [
        "Host: localhost\r\nAuthorization: Bearer secret\r\nAuthorization: Bearer x\r\n",
        "Host: localhost\r\nAuthorization: Bearer x\r\nAuthorization: Bearer secret\r\n",
        "Host: localhost\r\nAuthorization: Bearer secret, Bearer secret\r\n",
        "Host: localhost\r\nAuthorization: Bearer secret\u{e9}\r\n",
        "Host: localhost\r\nAuthorization: Bearer\r\n",
        "Host: localhost\r\nAuthorization: Bearersecret\r\n",
        "Host: localhost\r\nAuthorization : Bearer secret\r\n",
        "Host: localhost\r\nX-Api-Key: secret\r\n",
        "Host: localhost\r\nProxy-Authorization: Bearer secret\r\n",
        "Host: localhost\r\nX-Original-Url: /health/live\r\nX-Forwarded-For: 127.0.0.1\r\n",
        "Host: localhost\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n",
        "Authorization: Bearer secret\r\n",
    ] {
        let answer = ask("POST /v1/completions", headers);
        assert!([400, 401, 403].contains(&answer.status), "{headers}: {}", answer.status);
        assert!(!answer.body.contains("choices"), "{headers}: {}", answer.body);
    }
    assert_eq!(
        ask("POST /v1/completions", "Host: localhost\r\nAuthorization: Bearer secret\r\n").status,
        200
    );
}

/// Weights that are programs (CVE-2025-62164, CVE-2024-50050): nothing is unpickled.
#[test]
fn hole_21_pickles_are_not_read() {
    let dir = trained();
    let model = dir.path().join("pickled");
    fs::create_dir(&model).expect("made");
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(dir.path().join("run/model").join(file), model.join(file)).expect("copied");
    }
    // The beginning of a pickle that would run a command: `os.system("touch owned")`.
    let pickle = b"\x80\x02cposix\nsystem\nq\x00X\x0b\x00\x00\x00touch ownedq\x01\x85q\x02Rq\x03.";
    for file in ["pytorch_model.bin", "consolidated.pt"] {
        fs::write(model.join(file), pickle).expect("written");
        fails(dir.path(), &["serve", "x=pickled", "--port", "0"], &["pickled", "safetensors"]);
        let path = format!("pickled/{file}");
        fails(dir.path(), &["generate", &path, "-p", "a", "-n", "1"], &[file]);
        fs::remove_file(model.join(file)).expect("removed");
    }
    let owned = [dir.path().join("owned"), model.join("owned")];
    assert!(owned.iter().all(|path| !path.exists()));
}

/// Names that are paths (CVE-2024-37032), and hosts that are not this one (CVE-2024-28224).
#[test]
fn hole_22_names_are_no_paths_and_hosts_are_ours() {
    hole(|server| {
        for id in [
            "../x",
            "/etc/passwd",
            "a%00b",
            "..%2f..%2fetc%2fpasswd",
            "..%5cx",
            "%2e%2e%2fx",
            "run",
            "./run/model",
        ] {
            let answer = server.get(&format!("/v1/models/{id}"));
            assert_eq!(answer.status, 404, "{id}: {}", answer.body);
            is_well_formed(&answer);
            assert!(!answer.body.contains("root:"), "{}", answer.body);
        }
        for id in ["../x", "/etc/passwd", "a\0b", "..\\x", "run", "./run/model", "", &"x".repeat(100_000)] {
            for (path, body) in
                [("/v1/chat/completions", chat(4, 1)), ("/tokenize", json!({ "prompt": "x" }))]
            {
                refused(server, path, &with(body, "model", json!(id)), 404, "model");
            }
        }
        for host in ["evil.example.com", "localhost.evil.example.com", "127.0.0.1.evil.com", "[::2]", ""] {
            let answer =
                server.raw(format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
            assert!([403, 400].contains(&answer.status), "{host}: {}", answer.status);
        }
    });
}

/// Pages of other sites in a browser on the same machine: also bar 14, with `keys_are_asked_for_everywhere_but_whether_it_lives`
/// for a server that others can reach.
#[test]
fn hole_23_bar_14_pages_of_other_sites_may_not_ask() {
    hole(|server| {
        let body = completion(1).to_string();
        for origin in [
            "http://evil.example.com",
            "https://localhost.evil.com",
            "null",
            "file://",
            "http://[::2]:80",
            "x",
        ] {
            for method in ["GET", "POST", "OPTIONS"] {
                let path = if method == "GET" { "/v1/models" } else { "/v1/completions" };
                let headers = format!(
                    "Origin: {origin}\r\nContent-Type: application/json\r\nAccess-Control-Request-Method: POST\r\n"
                );
                let answer = server.send(method, path, &headers, &body);
                assert_eq!(answer.status, 403, "{method}, {origin}: {}", answer.body);
                assert!(!answer.head.to_ascii_lowercase().contains("access-control-"), "{}", answer.head);
            }
        }
        // What a page may send without being asked whether it may.
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
        {
            let answer = server.send("POST", "/v1/completions", &format!("Content-Type: {kind}\r\n"), &body);
            assert_eq!(answer.error().0, 415, "{kind}");
        }
        assert_eq!(server.send("POST", "/v1/completions", "", &body).error().0, 415);
        lives(server);
    });
}

/// Grammars that grow without bound when they are compiled.
#[test]
fn hole_24_forms_are_bounded() {
    hole(|server| {
        let deep = "{\"properties\":{\"x\":".repeat(2000) + "{}" + &"}}".repeat(2000);
        let cycle = json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } });
        let words: Vec<String> = (0..100_000).map(|i| format!("word {i}")).collect();
        let cases = [
            ("guided_json", json!(deep)),
            ("guided_regex", json!("((a{1,900}){1,900}){1,900}")),
            ("guided_regex", json!("(".repeat(10_000))),
            ("guided_json", json!({ "type": "string", "minLength": 1_000_000_000 })),
            (
                "guided_json",
                json!({ "type": "array", "minItems": 1_000_000_000, "items": { "type": "null" } }),
            ),
            ("guided_json", json!({ "$ref": "#" })),
            ("guided_json", cycle),
            ("guided_json", json!({ "$ref": "file:///etc/passwd" })),
            ("guided_json", json!({ "$ref": "http://localhost:1/x.json" })),
            ("guided_json", json!({ "enum": words })),
            ("guided_choice", json!(words)),
            ("guided_grammar", json!("start: start")),
            ("guided_grammar", json!(format!("start: {}\"a\"{}", "(".repeat(5000), ")".repeat(5000)))),
        ];
        for (name, value) in cases {
            refused(server, "/v1/completions", &with(completion(40), name, value), 400, name);
        }
        // The same where a body nests deeper than JSON is read.
        let body = completion(4).to_string().replacen('{', &format!("{{\"guided_json\":{deep},"), 1);
        let answer = server.send("POST", "/v1/completions", "Content-Type: application/json\r\n", &body);
        assert_eq!(answer.error().0, 400);
        // What is large and ends at once is taken, or not.
        let large = with(completion(4), "guided_regex", json!("(a|b){0,100000}c"));
        let begin = Instant::now();
        assert!([200, 400].contains(&server.post("/v1/completions", &large).status));
        assert!(begin.elapsed() < SOON);
        // A schema may refer to itself where a text can end.
        let tree = json!({ "type": "object", "properties": { "x": { "$ref": "#" } }, "additionalProperties": false });
        assert_eq!(server.post("/v1/completions", &with(completion(40), "guided_json", tree)).status, 200);
    });
}

/// Many of them at once: as many are compiled at a time as there are threads, and others are answered meanwhile.
#[test]
fn hole_24_many_forms_at_once_hold_up_nobody_else() {
    let n_at_once = std::thread::available_parallelism().map_or(1, |n| n.get()).max(2);
    hole_for(n_at_once as u64, |server| {
        let harmful = |i: usize| {
            let regex = format!("((a{{1,{}}}){{1,900}}){{1,900}}", 800 + i);
            with(completion(4), "guided_regex", json!(regex))
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..40)
                .map(|i| scope.spawn(move || server.post("/v1/completions", &harmful(i)).status))
                .collect();
            for _ in 0..5 {
                let begin = Instant::now();
                lives(server);
                assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
            }
            assert!(all.into_iter().all(|one| one.join().expect("no panic") == 400));
        });
    });
}
