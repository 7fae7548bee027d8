//! Small templates, one for each corner of the language, render as jinja2 renders them.

use serde::Deserialize;
use tokenizer::chat::json::Json;
use tokenizer::chat::template::{ChatTemplate, Inputs};

use crate::fixture;

#[derive(Deserialize)]
struct Fixture {
    variables: Json,
    /// Templates with their texts, or nothing where Python raises.
    snippets: Vec<(String, Option<String>)>,
}

#[test]
fn snippets_render_as_jinja2_renders_them() {
    let text = std::fs::read_to_string(fixture("chat/snippets.json")).unwrap();
    let fixture: Fixture = serde_json::from_str(&text).unwrap();
    let Json::Dict(kwargs) = fixture.variables else { panic!("variables are an object") };
    let inputs = Inputs { kwargs, now: 1_721_995_200, ..Inputs::default() };
    let mut wrong = Vec::new();
    for (source, expected) in &fixture.snippets {
        let source = source.replace("\\n", "\n").replace("\\r", "\r");
        let rendered = ChatTemplate::new(&source).and_then(|template| template.render(&inputs));
        match (rendered, expected) {
            (Ok(rendered), Some(expected)) if rendered.text == *expected => {}
            (Err(_), None) => {}
            (Ok(rendered), expected) => {
                wrong.push(format!("{source}\n  {:?}\n  {expected:?}", rendered.text))
            }
            (Err(error), Some(expected)) => wrong.push(format!("{source}\n  {error}\n  {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), fixture.snippets.len(), wrong.join("\n"));
}
