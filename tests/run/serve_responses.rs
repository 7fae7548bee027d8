//! `/v1/responses` from outside.

use serde_json::{Value, json};

use super::server::{Server, chat};

fn request(more: &Value) -> Value {
    let mut body = json!({ "model": "tiny", "input": "line 3", "max_output_tokens": 40, "seed": 5 });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

#[test]
fn a_response_says_what_a_chat_says_whole_and_in_events() {
    let server = Server::start(&[]);
    let chat = server.post("/v1/chat/completions", &chat(40, 5)).json();
    let whole =
        server.post("/v1/responses", &request(&json!({ "metadata": { "a": "b" }, "store": false }))).json();
    let part = &whole["output"][0]["content"][0];
    assert_eq!((&whole["object"], &part["type"]), (&json!("response"), &json!("output_text")));
    assert_eq!(part["text"], chat["choices"][0]["message"]["content"]);
    assert_eq!(whole["usage"]["output_tokens"], chat["usage"]["completion_tokens"]);
    assert_eq!(whole["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!((&whole["metadata"]["a"], &whole["store"]), (&json!("b"), &json!(false)));
    let is_cut = chat["choices"][0]["finish_reason"] == "length";
    assert_eq!(whole["status"], if is_cut { "incomplete" } else { "completed" });
    assert_eq!(whole["incomplete_details"]["reason"] == "max_output_tokens", is_cut);

    let answer = server.post("/v1/responses", &request(&json!({ "stream": true })));
    let mut names = Vec::new();
    let mut events: Vec<Value> = Vec::new();
    for event in answer.body.trim_end().split("\n\n") {
        let (name, data) = event.split_once('\n').expect("two lines");
        names.push(name.strip_prefix("event: ").expect("a name"));
        events.push(serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON"));
    }
    for (i, (name, event)) in names.iter().zip(&events).enumerate() {
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(i)));
    }
    let n_deltas = names.iter().filter(|name| **name == "response.output_text.delta").count();
    let expected: Vec<&str> = ["created", "in_progress", "output_item.added", "content_part.added"]
        .into_iter()
        .chain(std::iter::repeat_n("output_text.delta", n_deltas))
        .chain(["output_text.done", "content_part.done", "output_item.done"])
        .chain(whole["status"].as_str())
        .collect();
    let found: Vec<&str> = names.iter().filter_map(|name| name.strip_prefix("response.")).collect();
    assert_eq!(found, expected);
    let text: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(text, part["text"]);
    let last = &events[events.len() - 1]["response"];
    assert_eq!(
        (&last["output"][0]["content"], &last["usage"]["output_tokens"]),
        (&whole["output"][0]["content"], &whole["usage"]["output_tokens"])
    );
}

#[test]
fn items_and_instructions_are_messages() {
    let server = Server::start(&[]);
    let user = json!({ "role": "user", "content": "line 3" });
    let items = json!([{ "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "line 3" }] }]);
    let text =
        |body: &Value| server.post("/v1/responses", body).json()["output"][0]["content"][0]["text"].clone();
    assert_eq!(text(&request(&json!({ "input": items }))), text(&request(&json!({}))));
    let mut with_system = chat(40, 5);
    with_system["messages"] = json!([{ "role": "system", "content": "be brief" }, user]);
    let expected = server.post("/v1/chat/completions", &with_system).json();
    assert_eq!(
        text(&request(&json!({ "instructions": "be brief" }))),
        expected["choices"][0]["message"]["content"]
    );
}

#[test]
fn what_would_have_to_be_stored_is_refused_by_name() {
    let server = Server::start(&[]);
    for (field, value) in [
        ("previous_response_id", json!("resp_1")),
        ("store", json!(true)),
        ("background", json!(true)),
        ("conversation", json!("c")),
        ("n", json!(2)),
        ("max_output_tokens", json!(0)),
        ("temperature", json!(-1)),
        ("truncation", json!("auto")),
        ("odd", json!(1)),
    ] {
        let mut body = request(&json!({}));
        body[field] = value;
        let (status, param, _) = server.post("/v1/responses", &body).error();
        assert_eq!((status, param), (400, json!(field)));
    }
    let stored = server.post("/v1/responses", &request(&json!({ "previous_response_id": "resp_1" })));
    assert!(stored.body.contains("stores no answers"), "{}", stored.body);
    let long = request(&json!({ "max_output_tokens": 4000 }));
    assert_eq!(server.post("/v1/responses", &long).error().2, "context_length_exceeded");
    let bad = request(&json!({ "input": [{ "role": "user", "content": 3 }] }));
    assert_eq!(server.post("/v1/responses", &bad).error().1, "input[0].content");
}
