//! `/openapi.json`: all endpoints and their fields, as OpenAPI 3.1. The document is written by hand.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// It, as it is sent.
const DOCUMENT: &str = include_str!("openapi.json");

/// Shows it.
pub async fn show() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).expect("JSON")
    }

    /// Every `$ref` below a value.
    fn refs<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| refs(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| refs(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_route_stands_in_it_and_every_path_is_a_route() {
        let document = document();
        let paths = document["paths"].as_object().expect("paths");
        let found: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().expect("methods").keys().map(|method| (path.clone(), method.clone()))
            })
            .collect();
        let routes = crate::serve::routes().into_iter();
        let routes =
            routes.map(|(method, path, _)| (path.replace("{*id}", "{id}"), method.to_owned())).collect();
        assert_eq!(found, routes);
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = document();
        let mut found = BTreeSet::new();
        refs(&document, &mut found);
        for pointer in &found {
            assert!(document.pointer(pointer.trim_start_matches('#')).is_some(), "{pointer}");
        }
        for kind in ["schemas", "responses"] {
            for name in document["components"][kind].as_object().expect("an object").keys() {
                let pointer = format!("#/components/{kind}/{name}");
                assert!(found.contains(pointer.as_str()), "nothing refers to {pointer}");
            }
        }
    }

    #[test]
    fn every_field_that_is_read_stands_in_it() {
        let sources = [
            include_str!("answer.rs"),
            include_str!("asked.rs"),
            include_str!("chat.rs"),
            include_str!("completions.rs"),
            include_str!("constraint.rs"),
            include_str!("embeddings.rs"),
            include_str!("responses.rs"),
            include_str!("sampling.rs"),
            include_str!("text.rs"),
            include_str!("tools.rs"),
        ];
        let document = document();
        let schemas = document["components"]["schemas"].as_object().expect("schemas");
        let requests = schemas.iter().filter(|(name, _)| name.ends_with("Request"));
        let known: BTreeSet<&str> = requests
            .flat_map(|(_, schema)| schema["properties"].as_object().expect("fields").keys())
            .map(String::as_str)
            .collect();
        let mut n_read = 0;
        for source in sources {
            let program = source.split("#[cfg(test)]").next().unwrap_or_default();
            for (at, _) in program.match_indices("fields.") {
                // `fields.take::<T>("name"` and its like.
                let call = &program[at..(at + 80).min(program.len())];
                let Some((before, rest)) = call.split_once("(\"") else { continue };
                if before.contains(['\n', ';', '(']) {
                    continue;
                }
                let name = rest.split('"').next().unwrap_or_default();
                assert!(known.contains(name), "`{name}` is read, and no request has it");
                n_read += 1;
            }
        }
        assert!(n_read > 40, "{n_read}");
    }
}
