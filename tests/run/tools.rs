//! Answers in a form that was asked for, from a model that knows nothing: JSON, expressions, calls of tools.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::server::{Server, trained};
use super::{fails, json as parsed, succeeds, train, workplace, write};

/// A server whose model has room for a list of tools, a token for nearly each of its characters.
fn server() -> Server {
    Server::over(roomy(), &[], "")
}

fn roomy() -> TempDir {
    let dir = workplace();
    let text: String = (0..400).map(|i| format!("line {i}: the cat sat on mat {}.\n", i * i % 97)).collect();
    write(dir.path(), "text.txt", &text);
    let sets = [
        "tokenizer.kind=bpe",
        "tokenizer.vocab_size=300",
        "train.steps=2",
        "model.context=1600",
        "data.valid_fraction=0",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    succeeds(dir.path(), &train(&sets));
    dir
}

fn ask(seed: u64, more: Value) -> Value {
    let messages = json!([{ "role": "user", "content": "line 3" }]);
    let mut body = json!({ "model": "tiny", "messages": messages, "max_tokens": 90, "seed": seed });
    for (key, value) in more.as_object().expect("fields") {
        body[key] = value.clone();
    }
    body
}

/// Two tools, of which one takes arguments that can be checked.
fn tools() -> Value {
    json!([
        { "type": "function", "function": {
            "name": "get_weather", "description": "The weather of a place",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": { "type": "string", "maxLength": 8 },
                    "days": { "type": "integer", "minimum": 1, "maximum": 9 },
                    "unit": { "enum": ["C", "F"] },
                },
                "required": ["city", "unit"], "additionalProperties": false,
            },
        } },
        { "type": "function", "function": { "name": "now" } },
    ])
}

/// Whether a call is of one of [`tools`], with arguments as its schema says. Returns its name.
fn check(call: &Value) -> String {
    assert_eq!(call["type"], "function", "{call}");
    assert!(call["id"].as_str().is_some_and(|id| id.starts_with("call_")), "{call}");
    let arguments = call["function"]["arguments"].as_str().expect("text");
    let arguments: Value =
        serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments}"));
    let arguments = arguments.as_object().expect("an object");
    match call["function"]["name"].as_str().expect("a name") {
        "get_weather" => {
            assert!(arguments["city"].as_str().is_some_and(|city| city.chars().count() <= 8));
            assert!(["C", "F"].iter().any(|unit| arguments["unit"] == *unit));
            assert!(
                arguments.get("days").is_none_or(|days| days.as_u64().is_some_and(|n| (1..10).contains(&n)))
            );
            assert!(arguments.keys().all(|key| ["city", "days", "unit"].contains(&&**key)), "{arguments:?}");
        }
        name => assert!(name == "now" && arguments.is_empty(), "{name}, {arguments:?}"),
    }
    call["function"]["name"].as_str().expect("a name").to_owned()
}

/// The message and the reason of a stream, put together as a client does it.
fn joined(events: &[Value]) -> (Value, Value) {
    let (mut content, mut calls, mut reason) = (String::new(), Vec::<Value>::new(), Value::Null);
    for choice in events.iter().map(|event| &event["choices"][0]) {
        let delta = &choice["delta"];
        content.push_str(delta["content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().expect("an index") as usize;
            if index == calls.len() {
                assert!(call["id"].is_string() && call["function"]["name"].is_string(), "{call}");
                calls.push(call.clone());
                continue;
            }
            assert!(index + 1 == calls.len() && call.get("id").is_none(), "{call}");
            let more = call["function"]["arguments"].as_str().expect("text");
            let so_far = calls[index]["function"]["arguments"].as_str().expect("text").to_owned();
            calls[index]["function"]["arguments"] = json!(so_far + more);
        }
        if !choice["finish_reason"].is_null() {
            reason = choice["finish_reason"].clone();
        }
    }
    let mut message = json!({ "content": if content.is_empty() && !calls.is_empty() { Value::Null } else { json!(content) } });
    if !calls.is_empty() {
        message["tool_calls"] = json!(calls);
    }
    (message, reason)
}

/// Names and arguments of calls, without what differs each time.
fn without_ids(message: &Value) -> Vec<Value> {
    let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
    calls.into_iter().map(|call| call["function"].clone()).collect()
}

#[test]
fn forced_calls_have_the_names_and_arguments_that_were_offered() {
    let server = server();
    let weather = json!({ "type": "function", "function": { "name": "get_weather" } });
    let (mut names, mut most) = (Vec::new(), 0);
    for seed in 0..24u64 {
        let named = seed % 3 == 0;
        let choice = if named { weather.clone() } else { json!("required") };
        // The shortest call of the longer name has some eighty tokens here.
        let n = 100 + 8 * seed;
        let mut body = ask(seed, json!({ "tools": tools(), "tool_choice": choice, "max_tokens": n }));
        body["parallel_tool_calls"] = json!(seed % 2 == 0);
        let whole = server.post("/v1/chat/completions", &body).json();
        let choice = &whole["choices"][0];
        let calls = choice["message"]["tool_calls"].as_array().unwrap_or_else(|| panic!("{whole}"));
        assert_eq!(
            (&choice["message"]["content"], &choice["finish_reason"]),
            (&Value::Null, &json!("tool_calls"))
        );
        assert!(!calls.is_empty() && (calls.len() == 1 || seed % 2 == 0));
        most = most.max(calls.len());
        for call in calls {
            let name = check(call);
            assert!(!named || name == "get_weather");
            names.push(name);
        }
        body["stream"] = json!(true);
        let (message, reason) = joined(&server.post("/v1/chat/completions", &body).events());
        message["tool_calls"].as_array().expect("calls").iter().for_each(|call| drop(check(call)));
        assert_eq!((without_ids(&message), reason), (without_ids(&choice["message"]), json!("tool_calls")));
        assert_eq!(message["content"], Value::Null);
    }
    assert!(names.iter().any(|name| name == "now") && most > 1, "{names:?}, {most}");
}

#[test]
fn who_may_call_speaks_or_calls() {
    let server = server();
    for seed in 0..6 {
        let mut body = ask(seed, json!({ "tools": tools(), "max_tokens": 40 }));
        let whole = server.post("/v1/chat/completions", &body).json();
        let message = &whole["choices"][0]["message"];
        // This model never writes the tag by itself.
        assert!(message["content"].is_string() && message.get("tool_calls").is_none(), "{whole}");
        body["stream"] = json!(true);
        let (streamed, reason) = joined(&server.post("/v1/chat/completions", &body).events());
        assert_eq!(
            (&streamed["content"], &reason),
            (&message["content"], &whole["choices"][0]["finish_reason"])
        );
        body["tool_choice"] = json!("none");
        assert_eq!(server.post("/v1/chat/completions", &body).status, 200);
    }
    // An answer that must be JSON, or else a call.
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": { "type": "integer", "maximum": 99 } } });
    let whole = server
        .post("/v1/chat/completions", &ask(1, json!({ "tools": tools(), "response_format": format })))
        .json();
    let message = &whole["choices"][0]["message"];
    match message.get("tool_calls") {
        Some(calls) => calls.as_array().expect("a list").iter().for_each(|call| drop(check(call))),
        None => assert!(
            message["content"].as_str().is_some_and(|text| text.parse::<i128>().is_ok_and(|n| n <= 99))
        ),
    }
}

#[test]
fn calls_and_results_come_back_in_the_prompt() {
    let server = server();
    let call =
        json!({ "id": "call_1", "type": "function", "function": { "name": "now", "arguments": "{}" } });
    let messages = json!([
        { "role": "user", "content": "what time is it" },
        { "role": "assistant", "content": null, "refusal": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "call_1", "content": "noon" },
    ]);
    let body = json!({ "model": "tiny", "messages": messages, "tools": tools(), "max_tokens": 4 });
    let rendered = server
        .post("/apply-template", &json!({ "model": "tiny", "messages": messages, "tools": tools() }))
        .json();
    let prompt = rendered["prompt"].as_str().expect("text");
    for part in ["<tools>", "get_weather", "{\"name\": \"now\", \"arguments\": {}}", "<tool_response>\nnoon"]
    {
        assert!(prompt.contains(part), "no {part} in {prompt}");
    }
    let mut without = body.clone();
    without.as_object_mut().expect("an object").remove("tools");
    for body in [body, without] {
        assert_eq!(server.post("/v1/chat/completions", &body).status, 200);
    }
}

#[test]
fn answers_are_what_was_asked_for_whatever_the_seed_and_the_room() {
    let server = Server::start(&[]);
    let schema = json!({
        "type": "object",
        "properties": { "a": { "type": "array", "items": { "type": "boolean" }, "minItems": 2 }, "é": { "type": "string" } },
        "required": ["a", "é"], "additionalProperties": false,
    });
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "x", "schema": schema, "strict": true } });
    for seed in 0..20u64 {
        let n = 30 + 3 * seed;
        let content = |more: Value| {
            let mut body = ask(seed, more);
            body["max_tokens"] = json!(n);
            let whole = server.post("/v1/chat/completions", &body).json();
            body["stream"] = json!(true);
            let (streamed, _) = joined(&server.post("/v1/chat/completions", &body).events());
            let content = whole["choices"][0]["message"]["content"].clone();
            assert_eq!(streamed["content"], content);
            content.as_str().unwrap_or_else(|| panic!("{whole}")).to_owned()
        };
        let text = content(json!({ "response_format": format }));
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let items = value["a"].as_array().expect("a list");
        assert!(items.len() >= 2 && items.iter().all(Value::is_boolean) && value["é"].is_string(), "{text}");
        assert_eq!(value.as_object().map(serde_json::Map::len), Some(2));
        let text = content(json!({ "structured_outputs": { "regex": "(up|down)!+" } }));
        assert!(text.trim_end_matches('!') == "up" || text.trim_end_matches('!') == "down", "{text}");
        let text = content(json!({ "guided_choice": ["left", "right \"now\""] }));
        assert!(text == "left" || text == "right \"now\"", "{text}");
        let completion = json!({ "model": "tiny", "prompt": "the", "max_tokens": n, "seed": seed, "guided_regex": "[0-9]{3}" });
        let whole = server.post("/v1/completions", &completion).json();
        let text = whole["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{whole}"));
        assert!(text.len() == 3 && text.parse::<u16>().is_ok(), "{text}");
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    }
    // What is whole only because there was no room for more says so.
    let bounded = json!({ "guided_regex": "a{10}", "max_tokens": 30 });
    let choice = |more: Value| {
        let mut body = json!({ "model": "tiny", "prompt": "the", "seed": 1 });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        server.post("/v1/completions", &body).json()["choices"][0].clone()
    };
    let whole = choice(bounded);
    assert_eq!((&whole["finish_reason"], whole.get("stop_reason")), (&json!("stop"), None));
    let cut = choice(json!({ "guided_regex": "[a-z]*!", "max_tokens": 6 }));
    assert_eq!((&cut["finish_reason"], &cut["stop_reason"]), (&json!("stop"), &json!("length")));
}

#[test]
fn forms_that_cannot_be_are_errors_that_name_the_field() {
    let server = server();
    let function = |function: Value| json!([{ "type": "function", "function": function }]);
    let named = json!({ "type": "function", "function": { "name": "other" } });
    let of_schema = |schema: Value| json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema } } });
    let cases = [
        (json!({ "tools": [1] }), "tools[0]"),
        (json!({ "tools": [{ "type": "code" }] }), "tools[0].type"),
        (json!({ "tools": function(json!({})) }), "tools[0].function.name"),
        (json!({ "tools": function(json!({ "name": "a b" })) }), "tools[0].function.name"),
        (json!({ "tools": function(json!({ "name": "a", "x": 1 })) }), "tools[0].function.x"),
        (json!({ "tools": function(json!({ "name": "a", "strict": 1 })) }), "tools[0].function.strict"),
        (
            json!({ "tools": function(json!({ "name": "a", "parameters": [] })) }),
            "tools[0].function.parameters",
        ),
        (
            json!({ "tools": function(json!({ "name": "a", "parameters": { "type": "string" } })) }),
            "tools[0].function.parameters",
        ),
        (
            json!({ "tools": [tools()[0], { "type": "function", "function": { "name": "b", "parameters": { "properties": { "x": { "type": "no" } } } } }] }),
            "tools[1].function.parameters",
        ),
        (json!({ "tools": [tools()[0], tools()[0]] }), "tools[1].function.name"),
        (json!({ "tools": tools(), "tool_choice": "always" }), "tool_choice"),
        (json!({ "tools": tools(), "tool_choice": named }), "tool_choice"),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (json!({ "tools": tools(), "parallel_tool_calls": "yes" }), "parallel_tool_calls"),
        (json!({ "response_format": { "type": "xml" } }), "response_format.type"),
        (of_schema(json!({ "type": "nothing" })), "response_format"),
        (of_schema(json!({ "type": "array", "minItems": 1_000_000_000 })), "response_format"),
        (json!({ "guided_regex": "(" }), "guided_regex"),
        (json!({ "structured_outputs": { "grammar": "start: missing" } }), "structured_outputs"),
        (json!({ "response_format": { "type": "json_object" }, "guided_regex": "a" }), "guided_regex"),
        (json!({ "guided_regex": "a{40}b{40}", "max_tokens": 3 }), "max_tokens"),
    ];
    for (more, param) in cases {
        let (status, found, _) = server.post("/v1/chat/completions", &ask(1, more.clone())).error();
        assert_eq!((status, found), (400, json!(param)), "{more}");
    }
    for (tool, param) in [
        (json!({ "function": { "name": "a" } }), "tools[0].type"),
        (json!({ "type": null, "function": { "name": "a" } }), "tools[0].type"),
        (json!({ "type": "function" }), "tools[0].function"),
        (json!({ "type": "function", "function": { "description": "x" } }), "tools[0].function.name"),
    ] {
        let error = server.post("/v1/chat/completions", &ask(1, json!({ "tools": [tool] }))).error();
        assert_eq!(error, (400, json!(param), json!("missing_required_parameter")));
    }
    for (tool, param) in [
        (json!(1), "tools[0]"),
        (json!({ "type": "function", "function": "f" }), "tools[0].function"),
        (json!({ "type": "function", "function": { "name": 5 } }), "tools[0].function.name"),
        (
            json!({ "type": "function", "function": { "name": "a", "description": 1 } }),
            "tools[0].function.description",
        ),
        (json!({ "type": "function", "function": { "name": "a", "strict": 1 } }), "tools[0].function.strict"),
        (
            json!({ "type": "function", "function": { "name": "a", "parameters": [] } }),
            "tools[0].function.parameters",
        ),
    ] {
        let error = server.post("/v1/chat/completions", &ask(1, json!({ "tools": [tool] }))).error();
        assert_eq!(error, (400, json!(param), json!("invalid_type")));
    }
    assert_eq!(
        server.post("/v1/chat/completions", &ask(1, json!({ "max_tokens": 2 }))).status,
        200,
        "it still answers"
    );
}

#[test]
fn generate_holds_a_text_to_a_grammar() {
    let dir = trained();
    let generate = |more: &[&str]| {
        let args = [&["generate", "run", "-p", "the cat", "-n", "40", "--json"], more].concat();
        parsed(&succeeds(dir.path(), &args))["text"].as_str().expect("text").to_owned()
    };
    write(dir.path(), "schema.json", r#"{"type":"array","items":{"enum":["x",1]},"minItems":1}"#);
    write(dir.path(), "pairs.lark", "start: \"(\" start \")\" | \"<\" \">\"");
    for seed in ["1", "2", "3"] {
        let value: Value = serde_json::from_str(&generate(&["--seed", seed, "--json-object"])).expect("JSON");
        assert!(value.is_object());
        let value: Value =
            serde_json::from_str(&generate(&["--seed", seed, "--json-schema", "schema.json"])).expect("JSON");
        let items = value.as_array().expect("a list");
        assert!(!items.is_empty() && items.iter().all(|item| *item == "x" || *item == 1), "{value}");
        let text = generate(&["--seed", seed, "--regex", "[ab]+c"]);
        assert!(
            text.ends_with('c') && text.trim_end_matches('c').bytes().all(|byte| b"ab".contains(&byte)),
            "{text}"
        );
        let text = generate(&["--seed", seed, "--grammar", "pairs.lark"]);
        let depth = text.bytes().take_while(|&byte| byte == b'(').count();
        assert_eq!(text, "(".repeat(depth) + "<>" + &")".repeat(depth));
    }
    let base = ["generate", "run", "-p", "a", "-n", "3"];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    fails(dir.path(), &with(&["--regex", "("]), &["--regex", "unclosed"]);
    fails(dir.path(), &with(&["--regex", "a{9}b{9}"]), &["at least", "3"]);
    fails(dir.path(), &with(&["--json-schema", "none.json"]), &["none.json"]);
    fails(dir.path(), &with(&["--json-object", "--regex", "a"]), &["--json-object", "--regex"]);
}

/// The tools as `/v1/responses` has them: without a field `function`.
fn flat(tools: &Value) -> Value {
    let flat = |tool: &Value| {
        let mut flat = tool["function"].clone();
        flat["type"] = json!("function");
        flat
    };
    tools.as_array().expect("a list").iter().map(flat).collect()
}

#[test]
fn a_response_calls_the_tools_of_a_chat_whole_and_in_events() {
    let server = server();
    let chat = |more: Value| {
        let mut body = ask(3, json!({ "tools": tools() }));
        body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        server.post("/v1/chat/completions", &body).json()
    };
    let response = |more: Value| {
        let mut body = json!({ "model": "tiny", "input": "line 3", "max_output_tokens": 90, "seed": 3, "tools": flat(&tools()) });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
        server.post("/v1/responses", &body)
    };
    let named = |choice: Value| json!({ "tool_choice": choice });
    for (of_chat, of_response) in [
        (json!("required"), json!("required")),
        (
            json!({ "type": "function", "function": { "name": "get_weather" } }),
            json!({ "type": "function", "name": "get_weather" }),
        ),
    ] {
        let expected = chat(named(of_chat));
        let expected = &expected["choices"][0]["message"]["tool_calls"];
        let whole = response(named(of_response.clone())).json();
        let calls: Vec<&Value> = whole["output"].as_array().expect("items").iter().collect();
        assert!(!calls.is_empty() && calls.len() == expected.as_array().expect("calls").len(), "{whole}");
        for (call, expected) in calls.iter().zip(expected.as_array().expect("calls")) {
            assert_eq!((&call["type"], &call["status"]), (&json!("function_call"), &json!("completed")));
            assert_eq!(call["name"], expected["function"]["name"]);
            assert_eq!(call["arguments"], expected["function"]["arguments"]);
            assert!(call["call_id"].as_str().is_some_and(|id| id.starts_with("call_")), "{call}");
        }
        assert_eq!(whole["tool_choice"], of_response);

        let mut more = named(of_response);
        more["stream"] = json!(true);
        let answer = response(more);
        let events: Vec<Value> = answer
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|data| serde_json::from_str(data).expect("JSON"))
            .collect();
        let of = |kind: &str| -> Vec<&Value> {
            events.iter().filter(|event| event["type"] == format!("response.{kind}")).collect()
        };
        assert_eq!(of("output_item.added").len(), calls.len());
        for (i, call) in calls.iter().enumerate() {
            let at = |event: &&&Value| event["output_index"] == i;
            let deltas = of("function_call_arguments.delta");
            let text: String =
                deltas.iter().filter(at).map(|event| event["delta"].as_str().expect("text")).collect();
            assert_eq!(text, call["arguments"]);
            let [done, item] = ["function_call_arguments.done", "output_item.done"].map(|kind| of(kind)[i]);
            assert_eq!(
                (&done["arguments"], &item["item"]["arguments"]),
                (&call["arguments"], &call["arguments"])
            );
            assert_eq!((&done["item_id"], &item["item"]["name"]), (&item["item"]["id"], &call["name"]));
        }
        let last = &events[events.len() - 1];
        assert_eq!(
            (&last["type"], &last["response"]["output"][0]["name"]),
            (&json!("response.completed"), &calls[0]["name"])
        );
    }

    // What was called, and what came of it, goes on.
    let call = json!({ "type": "function_call", "call_id": "call_1", "name": "now", "arguments": "{}" });
    let result = json!({ "type": "function_call_output", "call_id": "call_1", "output": "12:00" });
    let input = json!([{ "role": "user", "content": "line 3" }, call, result]);
    assert_eq!(response(json!({ "input": input, "max_output_tokens": 3 })).status, 200);

    let form = json!({ "type": "json_schema", "name": "n", "schema": { "type": "integer" }, "strict": true });
    let text = response(json!({ "tools": [], "text": { "format": form } })).json();
    let text = text["output"][0]["content"][0]["text"].as_str().expect("text").to_owned();
    assert!(
        text.trim().parse::<i64>().is_ok()
            || text.trim().trim_start_matches('-').bytes().all(|b| b.is_ascii_digit()),
        "{text}"
    );

    for (more, param) in [
        (json!({ "tools": [{ "type": "web_search" }] }), "tools[0].type"),
        (json!({ "tools": [{ "type": "function", "name": "a b" }] }), "tools[0].name"),
        (
            json!({ "tools": [{ "type": "function", "name": "a", "parameters": { "type": "object", "properties": { "x": { "type": "no" } } } }] }),
            "tools[0].parameters",
        ),
        (json!({ "tool_choice": { "type": "function", "name": "none" } }), "tool_choice"),
        (json!({ "text": { "format": { "type": "xml" } } }), "text.format.type"),
        (json!({ "text": { "format": { "type": "json_schema", "schema": {} } } }), "text.format.name"),
        (json!({ "text": { "odd": 1 } }), "text.odd"),
    ] {
        assert_eq!(response(more.clone()).error(), (400, json!(param), Value::Null), "{more}");
    }
    let odd = json!({ "tools": [{ "type": "function", "name": "a", "odd": 1 }] });
    assert_eq!(response(odd).error(), (400, json!("tools[0].odd"), json!("unknown_parameter")));
    for (tool, param) in
        [(json!({ "name": "a" }), "tools[0].type"), (json!({ "type": "function" }), "tools[0].name")]
    {
        let error = response(json!({ "tools": [tool] })).error();
        assert_eq!(error, (400, json!(param), json!("missing_required_parameter")));
    }
}
