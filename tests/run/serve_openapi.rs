//! `/openapi.json` beside what the server takes.

use serde_json::{Value, json};

use super::measure::encoder;
use super::server::{Server, trained};

/// The request of a path, smallest that is answered.
fn smallest(path: &str) -> Value {
    let messages = json!([{ "role": "user", "content": "hi" }]);
    match path {
        "/v1/chat/completions" => json!({ "model": "tiny", "messages": messages, "max_tokens": 1 }),
        "/v1/completions" => json!({ "model": "tiny", "prompt": "a", "max_tokens": 1 }),
        "/v1/responses" => json!({ "model": "tiny", "input": "a", "max_output_tokens": 1 }),
        "/v1/embeddings" => json!({ "model": "m", "input": "a" }),
        "/tokenize" => json!({ "model": "tiny", "prompt": "a" }),
        "/detokenize" => json!({ "model": "tiny", "tokens": [5] }),
        "/apply-template" => json!({ "model": "tiny", "messages": messages }),
        _ => panic!("{path} is new: say what asks it for the least"),
    }
}

#[test]
fn every_field_of_the_document_is_taken_and_every_answer_has_what_it_says() {
    let (dir, with_encoder) = (trained(), encoder());
    let encoder = with_encoder.path().join("m");
    let server = Server::over(dir, &["--embed", encoder.to_str().expect("text")], "");
    let document = server.get("/openapi.json").json();
    let follow = |schema: &Value| match schema["$ref"].as_str() {
        Some(pointer) => document.pointer(pointer.trim_start_matches('#')).expect("there").clone(),
        None => schema.clone(),
    };
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let Some(post) = methods.get("post") else {
            let path = path.replace("{id}", "tiny");
            assert_eq!(server.get(&path).status, 200, "{path}");
            continue;
        };
        let request = follow(&post["requestBody"]["content"]["application/json"]["schema"]);
        let fields = request["properties"].as_object().expect("fields");
        assert_eq!(request["additionalProperties"], json!(false));
        let body = smallest(path);
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let schema = follow(&post["responses"]["200"]["content"]["application/json"]["schema"]);
        for name in schema["required"].as_array().expect("names").iter().filter_map(Value::as_str) {
            assert!(answer.json().get(name).is_some(), "{path}: no `{name}` in {}", answer.body);
        }
        for name in request["required"].as_array().expect("names").iter().filter_map(Value::as_str) {
            let mut without = body.clone();
            without.as_object_mut().expect("an object").remove(name);
            let (status, param, _) = server.post(path, &without).error();
            assert_eq!((status, param), (400, json!(name)), "{path}");
        }
        for name in fields.keys() {
            let mut odd = body.clone();
            odd[name] = json!({ "odd": true });
            let answer = server.post(path, &odd);
            assert!(!answer.body.contains("is no field of this request"), "{path}: {}", answer.body);
        }
        let mut unknown = body;
        unknown["odd"] = json!(1);
        assert_eq!(server.post(path, &unknown).error().1, "odd", "{path}");
    }
}
