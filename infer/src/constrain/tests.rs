//! Grammars under random logits and random budgets, and sources that mean harm.

use std::io::Write;
use std::time::{Duration, Instant};

use model::rng::Rng;
use proptest::prelude::*;
use serde_json::Map;
use tokenizer::train::Trainer;
use tokenizer::{END_OF_TEXT, Kind};

use super::*;
use crate::sampler::{NoToken, Sampler, Sampling};

/// Fails with whatever happens.
#[derive(Debug)]
struct Fault(#[expect(dead_code, reason = "shown when a test fails")] String);

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Self {
        Self(broken.to_string())
    }
}

impl From<NoToken> for Fault {
    fn from(error: NoToken) -> Self {
        Self(error.to_string())
    }
}

/// Bytes, some words, and pieces of JSON such as `{"` and `"}`.
fn tokenizer() -> Tokenizer {
    let line = |i: usize| {
        format!(
            "{{\"name\": \"n{i}\", \"list\": [{i}, {}], \"is\": true, \"none\":null,\"o\":{{}}}}\n",
            i * i
        )
    };
    let text: String = (0..60).map(line).collect();
    Trainer::new(Kind::Bpe, 400).train([text]).expect("trained")
}

fn vocabulary(tokenizer: &Tokenizer) -> Vocabulary {
    // The model has room for a few more.
    Vocabulary::new(tokenizer, tokenizer.vocab_size() + 7).expect("a vocabulary")
}

fn json_schema(schema: &Value) -> Source {
    Source::JsonSchema(schema.to_string())
}

/// What comes of random logits: ids, and whether it ended by itself.
fn generate(
    grammar: &Grammar,
    tokenizer: &Tokenizer,
    n: usize,
    seed: u64,
    temperature: f32,
) -> (Vec<u32>, bool) {
    let stop = [tokenizer.eos_id().expect("an end")];
    let mut sampler = Sampler::new(Sampling { seed, temperature, ..Sampling::default() }).expect("valid");
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut constraint = grammar.begin();
    let mut ids = Vec::new();
    while ids.len() < n {
        let logits: Vec<f32> = (0..tokenizer.vocab_size() + 7).map(|_| rng.uniform() as f32 * 8.0).collect();
        let pick = |logits: &[f32]| sampler.sample(logits, &ids).map_err(Fault::from);
        let id = constraint.pick(&logits, n - ids.len(), &stop, pick).expect("a token");
        if stop.contains(&id) {
            return (ids, true);
        }
        ids.push(id);
        if constraint.is_over() {
            return (ids, true);
        }
    }
    (ids, false)
}

fn text(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    String::from_utf8(tokenizer.decode_bytes(ids).expect("known ids")).expect("whole characters")
}

/// Whether a value is as a schema says, for what [`random_schema`] says.
fn is_valid(value: &Value, schema: &Value) -> bool {
    let number = |key: &str| schema[key].as_f64();
    if let Some(options) = schema.get("anyOf").and_then(Value::as_array) {
        return options.iter().any(|option| is_valid(value, option));
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        return values.contains(value);
    }
    match schema["type"].as_str().expect("a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|n| {
            n.fract() == 0.0
                && number("minimum").is_none_or(|min| n >= min)
                && number("maximum").is_none_or(|max| n <= max)
        }),
        "number" => value.is_number(),
        "string" => value.as_str().is_some_and(|text| {
            let n = text.chars().count() as f64;
            number("minLength").is_none_or(|min| n >= min)
                && number("maxLength").is_none_or(|max| n <= max)
                && (schema.get("pattern").is_none()
                    || text.ends_with("xyz")
                        && text.trim_end_matches("xyz").chars().all(|c| "abxyz".contains(c)))
        }),
        "array" => value.as_array().is_some_and(|items| {
            let n = items.len() as f64;
            number("minItems").is_none_or(|min| n >= min)
                && number("maxItems").is_none_or(|max| n <= max)
                && items.iter().all(|item| is_valid(item, &schema["items"]))
        }),
        _ => value.as_object().is_some_and(|object| {
            let properties = schema["properties"].as_object().expect("properties");
            schema["required"]
                .as_array()
                .expect("a list")
                .iter()
                .all(|name| object.contains_key(name.as_str().expect("a name")))
                && object
                    .iter()
                    .all(|(name, value)| properties.get(name).is_some_and(|of| is_valid(value, of)))
        }),
    }
}

fn random_schema(rng: &mut Rng, depth: usize) -> Value {
    let n_kinds = if depth == 0 { 8 } else { 11 };
    match rng.below(n_kinds) {
        0 => json!({ "type": "null" }),
        1 => json!({ "type": "boolean" }),
        2 => json!({ "type": "integer" }),
        3 => json!({ "type": "integer", "minimum": rng.below(300), "maximum": 300 + rng.below(9000) }),
        4 => json!({ "type": "number" }),
        5 => json!({ "type": "string", "minLength": rng.below(6), "maxLength": 6 + rng.below(20) }),
        6 => json!({ "type": "string", "pattern": "^[abxyz]*xyz$" }),
        7 => json!({ "enum": ["a branch that takes many words", "leaf", 17, null] }),
        8 => {
            let min = rng.below(4);
            json!({
                "type": "array", "items": random_schema(rng, depth - 1),
                "minItems": min, "maxItems": min + rng.below(4),
            })
        }
        9 => json!({ "anyOf": [random_schema(rng, depth - 1), random_schema(rng, depth - 1)] }),
        _ => {
            let n = rng.below(5);
            let mut properties = Map::new();
            let mut required = Vec::new();
            for i in 0..n {
                let name = format!("{}{i}", ["name", "list", "x", "é\""][rng.below(4) as usize]);
                if rng.below(2) == 0 {
                    required.push(name.clone());
                }
                properties.insert(name, random_schema(rng, depth - 1));
            }
            json!({
                "type": "object", "properties": properties, "required": required, "additionalProperties": false,
            })
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    /// The promise: whatever the schema, the logits and the budget, if that is at least the least.
    #[test]
    fn json_is_valid_and_whole_within_any_budget(seed: u64, extra in 0usize..40, greedy: bool) {
        let tokenizer = tokenizer();
        let vocabulary = vocabulary(&tokenizer);
        let schema = random_schema(&mut Rng::new(seed), 3);
        let grammar = vocabulary.grammar(&json_schema(&schema)).expect("a grammar");
        let least = grammar.begin().least_tokens();
        for (n, seed) in [(least, seed), (least + extra, seed ^ 1), (least + extra * 8, seed ^ 2)] {
            let (ids, _) = generate(&grammar, &tokenizer, n, seed, if greedy { 0.0 } else { 1.0 });
            let text = text(&tokenizer, &ids);
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}; {schema}"));
            prop_assert!(is_valid(&value, &schema), "{}; {}", text, schema);
        }
    }

    #[test]
    fn any_object_is_whole_within_any_budget(seed: u64, n in 1usize..120) {
        let tokenizer = tokenizer();
        let grammar = vocabulary(&tokenizer).grammar(&Source::JsonObject).expect("a grammar");
        prop_assert!(grammar.begin().least_tokens() <= 2);
        let (ids, ended) = generate(&grammar, &tokenizer, n.max(2), seed, 1.0);
        let value: Value = serde_json::from_str(&text(&tokenizer, &ids)).expect("JSON");
        prop_assert!(value.is_object() && ended);
    }
}

#[test]
fn the_least_is_the_shortest_where_that_is_known() {
    // One token for each byte, so that tokens are bytes.
    let tokenizer = Trainer::new(Kind::Bpe, 257).train(["a"]).expect("trained");
    let vocabulary = vocabulary(&tokenizer);
    let tree = json!({
        "$ref": "#/$defs/node",
        "$defs": { "node": { "anyOf": [
            { "type": "object", "properties": { "a": { "const": "branch" }, "l": { "$ref": "#/$defs/node" } },
              "required": ["a", "l"], "additionalProperties": false },
            { "type": "object", "properties": { "a": { "const": "leaf" } }, "required": ["a"],
              "additionalProperties": false },
        ] } },
    });
    let object = json!({
        "type": "object",
        "properties": { "n": { "type": "integer", "minimum": 100 }, "s": { "type": "string", "pattern": "^[a-z]+q{3}$" } },
        "required": ["n", "s"],
    });
    let cases: [(Source, &str); 11] = [
        (Source::JsonObject, "{}"),
        (json_schema(&tree), r#"{"a":"leaf"}"#),
        (json_schema(&object), r#"{"n":100,"s":"aqqq"}"#),
        (json_schema(&json!({ "type": "integer" })), "0"),
        (
            json_schema(&json!({ "type": "array", "minItems": 5, "items": { "type": "integer" } })),
            "[0,0,0,0,0]",
        ),
        (json_schema(&json!({ "type": "array", "items": { "$ref": "#" } })), "[]"),
        (json_schema(&json!({ "type": "string", "format": "date" })), "\"0000-01-01\""),
        (Source::Regex("(abc)+|a{9}b".into()), "abc"),
        (Source::Regex("x*".into()), ""),
        (Source::Lark("start: \"(\" start \")\" | word\nword: /[a-z]{2,}/".into()), "aa"),
        (Source::Lark("start: a\na: \"x\" a \"y\" | \"x\" b\nb: \"long enough\" | \"zz\"".into()), "xzz"),
    ];
    for (source, shortest) in cases {
        let grammar = vocabulary.grammar(&source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
        assert_eq!(grammar.begin().least_tokens(), shortest.len(), "{source:?}: {:?}", grammar.way);
    }
}

#[test]
fn a_complete_text_ends_and_one_that_may_go_on_may_end() {
    let tokenizer = tokenizer();
    let vocabulary = vocabulary(&tokenizer);
    for (regex, may_stop) in [("(yes|no)", false), ("[0-9]{2,6}", true)] {
        let grammar = vocabulary.grammar(&Source::Regex(regex.into())).expect("a grammar");
        let mut lengths = Vec::new();
        for seed in 0..60 {
            let (ids, ended) = generate(&grammar, &tokenizer, 20, seed, 1.0);
            let text = text(&tokenizer, &ids);
            assert!(ended, "{text}");
            match may_stop {
                false => assert!(["yes", "no"].contains(&&*text)),
                true => {
                    assert!((2..=6).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()))
                }
            }
            lengths.push(text.len());
        }
        lengths.sort_unstable();
        lengths.dedup();
        assert!(lengths.len() > 1, "not always the same");
    }
}

#[test]
fn a_mask_allows_what_the_grammar_takes_and_nothing_else() {
    let tokenizer = tokenizer();
    let vocabulary = vocabulary(&tokenizer);
    let eos = tokenizer.special_id(END_OF_TEXT).expect("there");
    let mut constraint = vocabulary.grammar(&Source::Regex("ab?".into())).expect("a grammar").begin();
    let allowed = |constraint: &mut Constraint| {
        let mut logits = vec![1.0; tokenizer.vocab_size() + 7];
        constraint.mask(&mut logits, &[eos]).expect("a mask");
        (0..).zip(logits).filter(|(_, logit)| *logit == 1.0).map(|(id, _)| id).collect::<Vec<u32>>()
    };
    let id = |text: &str| tokenizer.token_to_id(text).expect("a token");
    assert_eq!(allowed(&mut constraint), [id("a")]);
    assert!(
        !constraint.accept(id("b"), 9).expect("refused") && constraint.accept(id("a"), 9).expect("taken")
    );
    let mut both = [id("b"), eos];
    both.sort_unstable();
    assert_eq!(allowed(&mut constraint), both);
    assert!(!constraint.accept(eos, 9).expect("a special token is no text"));
    assert!(constraint.accept(id("b"), 9).expect("taken") && constraint.is_over());
    assert!(!constraint.accept(id("b"), 9).expect("it is over"));
}

#[test]
fn the_same_seed_gives_the_same_text_whatever_the_grammar_was_used_for_before() {
    let tokenizer = tokenizer();
    let schema = json_schema(&random_schema(&mut Rng::new(11), 3));
    let used = vocabulary(&tokenizer).grammar(&schema).expect("a grammar");
    for seed in 0..20 {
        let first = generate(&used, &tokenizer, 60, seed, 1.0);
        let fresh = vocabulary(&tokenizer).grammar(&schema).expect("a grammar");
        assert_eq!(generate(&fresh, &tokenizer, 60, seed, 1.0), first);
        assert_eq!(generate(&used, &tokenizer, 60, seed, 1.0), first);
    }
}

#[test]
fn hostile_sources_are_refused_in_time() {
    let tokenizer = tokenizer();
    let vocabulary = vocabulary(&tokenizer);
    let nested = |open: &str, n: usize, close: &str| open.repeat(n) + &close.repeat(n);
    let many = |n: usize| {
        let of = |i: usize| (format!("p{i}"), json!({ "type": "string", "pattern": "(a|b){50,900}c" }));
        json!({ "type": "object", "properties": (0..n).map(of).collect::<Map<_, _>>() })
    };
    let product = {
        let pair = |i: usize| json!({ "anyOf": [{ "minimum": i }, { "maximum": 1000 + i }, { "multipleOf": i + 1 }] });
        json!({ "type": "integer", "allOf": (0..30).map(pair).collect::<Vec<_>>() })
    };
    let cases = [
        Source::JsonSchema("{".into()),
        Source::JsonSchema("[]".into()),
        Source::JsonSchema("false".into()),
        Source::JsonSchema(r#"{"type":"no type"}"#.into()),
        Source::JsonSchema(r##"{"$ref":"#/$defs/missing"}"##.into()),
        Source::JsonSchema(r#"{"$ref":"https://example.com/schema"}"#.into()),
        Source::JsonSchema(r#"{"type":"string","minLength":5,"maxLength":2}"#.into()),
        Source::JsonSchema(nested("{\"items\":", 5000, "}")),
        Source::JsonSchema(nested("{\"type\":\"array\",\"items\":", 120, "}").replace(":}", ":{}}")),
        Source::JsonSchema(" ".repeat(MAX_BYTES + 1)),
        json_schema(&many(3000)),
        json_schema(&product),
        json_schema(
            &json!({ "type": "string", "maxLength": 4_000_000_000u64, "minLength": 3_999_999_999u64 }),
        ),
        json_schema(&json!({ "type": "array", "minItems": 1_000_000_000 })),
        Source::Regex("(".into()),
        Source::Regex("(?=a)b".into()),
        Source::Regex("((a{1000}){1000}){1000}".into()),
        Source::Regex(nested("(", 20_000, ")")),
        Source::Regex("[^\\s\\S]".into()),
        Source::Lark("start: nothing".into()),
        Source::Lark("start: start \"a\"".into()),
        Source::Lark("start: <|no such token|>".into()),
        Source::Lark("start: a\na[max_tokens=3]: /b+/".into()),
        Source::Lark(String::new()),
    ];
    for source in cases {
        let begin = Instant::now();
        let refused = vocabulary.grammar(&source).map(|grammar| grammar.way);
        let shown: String = source.text().chars().take(60).collect();
        // Those that are large but fine are taken; none takes long.
        let is_fine = shown.contains("minimum")
            || shown.contains("\"p0\"")
            || shown.contains("\"array\",\"items\":{\"type\"");
        assert!(refused.is_err() || is_fine, "{shown}: {refused:?}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{shown}: {:?}", begin.elapsed());
        if let Err(error) = refused {
            let error = error.to_string();
            assert!(!error.is_empty() && error.len() < 500 && !error.contains("panic"), "{shown}: {error}");
        }
    }
}

#[test]
fn grammars_are_compiled_once_and_the_oldest_are_forgotten() {
    let tokenizer = tokenizer();
    let vocabulary = vocabulary(&tokenizer);
    for i in 0..2 * MAX_KEPT {
        vocabulary.grammar(&Source::Regex(format!("a{i}"))).expect("a grammar");
        vocabulary.grammar(&Source::Regex("often".into())).expect("a grammar");
    }
    let kept = vocabulary.kept();
    assert_eq!(kept.grammars.len(), MAX_KEPT);
    assert!(kept.grammars.contains_key(&Source::Regex("often".into())));
    assert!(!kept.grammars.contains_key(&Source::Regex("a0".into())));
    assert_eq!(kept.bytes, kept.grammars.keys().map(|source| source.text().len()).sum::<usize>());
}

/// The suite of json-schema.org: what is compiled lets no invalid instance through.
#[test]
fn of_the_json_schema_suite_no_invalid_instance_passes() {
    let Some(assets) = std::env::var_os("FLINT_ASSETS").map(std::path::PathBuf::from) else {
        let _ = writeln!(std::io::stderr(), "skipped: FLINT_ASSETS is not set");
        return;
    };
    let tokenizer = tokenizer();
    let vocabulary = vocabulary(&tokenizer);
    let folder = assets.join("suites/json-schema/tests/draft2020-12");
    let files = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let files: Vec<_> = files.filter(|path| path.is_file()).collect();
    let (mut n_compiled, mut n_valid, mut n_passed, mut wrong) = (0, 0, 0, Vec::new());
    for file in &files {
        let groups: Value = serde_json::from_slice(&std::fs::read(file).expect("read")).expect("JSON");
        for group in groups.as_array().expect("a list") {
            let Ok(grammar) = vocabulary.grammar(&json_schema(&group["schema"])) else { continue };
            n_compiled += 1;
            for test in group["tests"].as_array().expect("a list") {
                let mut constraint = grammar.begin();
                let ids = tokenizer.encode(&test["data"].to_string());
                let passes = ids.iter().all(|&id| constraint.accept(id, 10_000).expect("not broken"))
                    && (constraint.is_over() || {
                        let mut logits = vec![0.0; tokenizer.vocab_size()];
                        let stop = tokenizer.eos_id().expect("an end");
                        constraint.mask(&mut logits, &[stop]).expect("a mask");
                        logits[stop as usize] == 0.0
                    });
                if test["valid"] == true {
                    n_valid += 1;
                    n_passed += usize::from(passes);
                } else if passes {
                    wrong.push((group["description"].clone(), test["description"].clone()));
                }
            }
        }
    }
    // The others ask for what is refused, or for properties in an order that is not theirs.
    assert!(n_compiled >= 150 && n_passed * 10 >= n_valid * 9, "{n_compiled}, {n_passed} of {n_valid}");
    assert!(wrong.is_empty(), "{wrong:?}");
}
