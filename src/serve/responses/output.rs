//! What a response is answered with: items, which are messages and calls, whole or as events that are numbered.

use std::sync::Arc;

use infer::engine::{Event, Finished};
use serde_json::{Map, Value, json};

use crate::serve::answer::{self, Chunks, Whole};
use crate::serve::error::ApiError;
use crate::serve::state::State;
use crate::serve::tools::{self, Calls, Reading};

/// An answer as far as it is.
pub struct Output {
    id: String,
    created: u64,
    /// What it repeats of its request.
    body: Map<String, Value>,
    items: Vec<Item>,
    /// Reads calls, if there can be any.
    calls: Option<Calls>,
    finished: Option<Finished>,
    n_sent: u64,
    state: Arc<State>,
}

struct Item {
    id: String,
    kind: Kind,
    /// The text of a message, the arguments of a call.
    text: String,
}

enum Kind {
    Message,
    Call { id: String, name: String },
}

impl Item {
    fn json(&self, status: &str) -> Value {
        let (id, text) = (&self.id, &self.text);
        match &self.kind {
            Kind::Message => {
                let content = if status == "in_progress" { Vec::new() } else { vec![part(text)] };
                json!({ "type": "message", "id": id, "status": status, "role": "assistant", "content": content })
            }
            Kind::Call { id: call_id, name } => json!({
                "type": "function_call", "id": id, "status": status, "call_id": call_id, "name": name,
                "arguments": text,
            }),
        }
    }
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}

impl Output {
    /// Nothing yet.
    pub fn new(body: Map<String, Value>, reading: Option<&Reading>, state: Arc<State>) -> Self {
        let (id, created, calls) = (state.unique("resp_"), answer::now(), reading.map(Reading::begin));
        Self { id, created, body, items: Vec::new(), calls, finished: None, n_sent: 0, state }
    }

    /// All of it, of an answer that has ended.
    pub fn whole(mut self, choice: &Whole) -> Value {
        let mut at = 0;
        for &(id, end) in &choice.ids {
            self.token(id, &choice.text[at..end]);
            at = end;
        }
        self.finished.clone_from(&choice.finished);
        self.last(&choice.text[at..]);
        self.end();
        self.response()
    }

    /// Takes a token and its text, and returns the events that it makes.
    fn token(&mut self, id: u32, text: &str) -> Vec<Value> {
        let Self { calls, state, .. } = self;
        let deltas = match calls {
            Some(calls) => calls.push(id, text, || tools::call_id(state)),
            None => vec![json!({ "content": text })],
        };
        deltas.iter().flat_map(|delta| self.delta(delta)).collect()
    }

    /// Takes the text that was held back until the end.
    fn last(&mut self, text: &str) -> Vec<Value> {
        let Self { calls, state, .. } = self;
        let deltas = match calls {
            Some(calls) => calls.finish(text, || tools::call_id(state)),
            None => vec![json!({ "content": text })],
        };
        deltas.iter().flat_map(|delta| self.delta(delta)).collect()
    }

    /// A delta of a message, as chat has it.
    fn delta(&mut self, delta: &Value) -> Vec<Value> {
        let mut events = Vec::new();
        let text = delta["content"].as_str().unwrap_or_default();
        if !text.is_empty() {
            if !self.items.last().is_some_and(|item| matches!(item.kind, Kind::Message)) {
                events.extend(self.open(Kind::Message));
            }
            events.push(self.more(text, "response.output_text.delta"));
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let [id, name, arguments] =
                [&call["id"], &call["function"]["name"], &call["function"]["arguments"]]
                    .map(|value| value.as_str().unwrap_or_default().to_owned());
            if !id.is_empty() {
                events.extend(self.open(Kind::Call { id, name }));
            }
            if !arguments.is_empty() {
                events.push(self.more(&arguments, "response.function_call_arguments.delta"));
            }
        }
        events
    }

    /// Begins an item, after ending the one before.
    fn open(&mut self, kind: Kind) -> Vec<Value> {
        let mut events = self.close("completed");
        let is_message = matches!(kind, Kind::Message);
        let id = self.state.unique(if is_message { "msg_" } else { "fc_" });
        let (output_index, item) = (self.items.len(), Item { id, kind, text: String::new() });
        let added = json!({ "output_index": output_index, "item": item.json("in_progress") });
        self.items.push(item);
        events.push(self.numbered("response.output_item.added", added));
        if is_message {
            events.push(self.of_last("response.content_part.added", "part", part("")));
        }
        events
    }

    fn more(&mut self, text: &str, kind: &str) -> Value {
        self.items.last_mut().expect("an open item").text.push_str(text);
        self.of_last(kind, "delta", text.into())
    }

    /// Ends the last item, if there is one.
    fn close(&mut self, status: &str) -> Vec<Value> {
        let Some(item) = self.items.last() else { return Vec::new() };
        let (item_json, text) = (item.json(status), item.text.clone());
        let mut events = match &item.kind {
            Kind::Message => vec![
                self.of_last("response.output_text.done", "text", text.clone().into()),
                self.of_last("response.content_part.done", "part", part(&text)),
            ],
            Kind::Call { .. } => {
                vec![self.of_last("response.function_call_arguments.done", "arguments", text.into())]
            }
        };
        let done = json!({ "output_index": self.items.len() - 1, "item": item_json });
        events.push(self.numbered("response.output_item.done", done));
        events
    }

    /// An event of the last item.
    fn of_last(&mut self, kind: &str, key: &str, value: Value) -> Value {
        let item = self.items.last().expect("an item");
        let mut fields = json!({ "item_id": item.id, "output_index": self.items.len() - 1 });
        if matches!(item.kind, Kind::Message) {
            fields["content_index"] = json!(0);
            if key != "part" {
                fields["logprobs"] = json!([]);
            }
        }
        fields[key] = value;
        self.numbered(kind, fields)
    }

    fn numbered(&mut self, kind: &str, mut fields: Value) -> Value {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.n_sent.into();
        self.n_sent += 1;
        fields
    }

    fn status(&self) -> &'static str {
        let Some(finished) = &self.finished else { return "in_progress" };
        let reason = finished.reason;
        match self.calls.as_ref().map_or(reason.name(), |calls| calls.reason(reason)) {
            "length" => "incomplete",
            _ => "completed",
        }
    }

    /// As much as is known: before the end, nothing of the items.
    fn response(&self) -> Value {
        let status = self.status();
        let last = self.items.len().saturating_sub(1);
        let item = |(i, item): (usize, &Item)| item.json(if i == last { status } else { "completed" });
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "completed_at": self.finished.as_ref().map(|_| answer::now()),
            "error": null,
            "incomplete_details": match status {
                "incomplete" => json!({ "reason": "max_output_tokens" }),
                _ => Value::Null,
            },
            "output": self.items.iter().enumerate().map(item).collect::<Vec<_>>(),
            "previous_response_id": null,
            "reasoning": { "effort": null, "summary": null },
            "service_tier": "default",
            "store": false,
            "top_logprobs": 0,
            "max_tool_calls": null,
            "truncation": "disabled",
            "usage": self.finished.as_ref().map(usage),
        });
        if let Some(finished) = &self.finished {
            answer::note_cut(&mut response, finished.reason);
        }
        response.as_object_mut().expect("an object").extend(self.body.clone());
        response
    }
}

fn usage(finished: &Finished) -> Value {
    json!({
        "input_tokens": finished.n_prompt,
        "input_tokens_details": { "cached_tokens": finished.n_cached },
        "output_tokens": finished.n_new,
        "output_tokens_details": { "reasoning_tokens": 0 },
        "total_tokens": finished.n_prompt + finished.n_new,
    })
}

impl Chunks for Output {
    const IS_NAMED: bool = true;

    fn begin(&mut self) -> Vec<Value> {
        let response = json!({ "response": self.response() });
        vec![
            self.numbered("response.created", response.clone()),
            self.numbered("response.in_progress", response),
        ]
    }

    fn event(&mut self, _: usize, event: Event) -> Result<Vec<Value>, ApiError> {
        match event {
            Event::Prompt(_) => Ok(Vec::new()),
            Event::Token { id, text, .. } => Ok(self.token(id, &text)),
            Event::End(finished) => {
                self.state.metrics.finished(&finished);
                let text = finished.text.clone();
                self.finished = Some(finished);
                Ok(self.last(&text))
            }
            Event::Failed(failure) => Err(answer::failed(&failure)),
        }
    }

    fn end(&mut self) -> Vec<Value> {
        let mut events = Vec::new();
        if self.items.is_empty() {
            events.extend(self.open(Kind::Message));
        }
        let status = self.status();
        events.extend(self.close(status));
        let response = json!({ "response": self.response() });
        events.push(self.numbered(&format!("response.{status}"), response));
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<Value> {
        let body = error.body();
        let [code, message, param] = ["code", "message", "param"].map(|key| body["error"][key].clone());
        vec![self.numbered("error", json!({ "code": code, "message": message, "param": param }))]
    }
}
