//! The templates of 35 model families render as Python's jinja2 renders them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizer::chat::json::Json;
use tokenizer::chat::template::{ChatTemplate, Inputs};

use crate::fixture;

#[derive(Deserialize)]
struct Fixture {
    now: i64,
    cases: BTreeMap<String, Json>,
    /// For each template and case the length and hash of the text, or nothing where Python raises.
    expected: BTreeMap<String, Option<Digests>>,
}

/// For each case the length and hash of the text.
type Digests = BTreeMap<String, Option<(usize, String)>>;

/// The folder of templates, if this machine has it.
pub fn assets() -> Option<PathBuf> {
    let folder =
        std::env::var_os("FLINT_ASSETS").map(|assets| PathBuf::from(assets).join("suites/chat-templates"));
    if folder.is_none() {
        let says = "skipped: set FLINT_ASSETS to the folder with suites/chat-templates";
        writeln!(std::io::stderr(), "{says}").expect("stderr is open");
    }
    folder
}

fn committed() -> Fixture {
    serde_json::from_str(&std::fs::read_to_string(fixture("chat/templates.json")).unwrap()).unwrap()
}

/// The files of the templates.
pub fn names(assets: &Path) -> Vec<String> {
    assert!(assets.is_dir(), "{}", assets.display());
    committed().expected.into_keys().collect()
}

/// The conversations by name.
pub fn cases() -> Vec<(String, Inputs)> {
    let Fixture { now, cases, .. } = committed();
    cases.into_iter().map(|(name, case)| (name, inputs(&case, now))).collect()
}

fn inputs(case: &Json, now: i64) -> Inputs {
    let Json::Dict(entries) = case else { panic!("a case is an object") };
    let mut inputs = Inputs { now, ..Inputs::default() };
    for (name, value) in entries {
        match name.as_str() {
            "messages" => inputs.messages = value.clone(),
            "tools" => inputs.tools = value.clone(),
            "documents" => inputs.documents = value.clone(),
            "add_generation_prompt" => inputs.add_generation_prompt = *value == Json::Bool(true),
            _ => inputs.kwargs.push((name.clone(), value.clone())),
        }
    }
    inputs
}

fn fnv(text: &str) -> String {
    let step = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

#[test]
fn real_templates_render_as_jinja2_renders_them() {
    let Some(assets) = assets() else { return };
    let fixture = committed();
    let (mut n_texts, mut n_errors, mut wrong) = (0, 0, Vec::new());
    for (name, cases) in &fixture.expected {
        let source = std::fs::read_to_string(assets.join(name)).unwrap();
        let template = match (ChatTemplate::new(&source), cases) {
            (Ok(template), Some(_)) => template,
            (Err(_), None) => continue,
            (read, _) => {
                wrong.push(format!("{name}: {:?}", read.err().map(|error| error.to_string())));
                continue;
            }
        };
        for (case, expected) in cases.iter().flatten() {
            let rendered = template.render(&inputs(&fixture.cases[case], fixture.now));
            match (&rendered, expected) {
                (Ok(rendered), Some((len, hash))) => {
                    n_texts += 1;
                    if rendered.text.len() != *len || fnv(&rendered.text) != *hash {
                        wrong.push(format!("{name} {case}: {} bytes, not {len}", rendered.text.len()));
                    }
                }
                (Err(_), None) => n_errors += 1,
                (Err(error), Some(_)) => wrong.push(format!("{name} {case}: {error}")),
                (Ok(_), None) => wrong.push(format!("{name} {case}: Python raises")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), n_texts + n_errors, wrong.join("\n"));
    assert_eq!((fixture.expected.len(), n_texts + n_errors), (35, 3220));
}
