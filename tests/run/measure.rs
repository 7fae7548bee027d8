//! `flint embed` and `flint eval`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use super::{command, fails, flint, json as parsed, keys, stderr, succeeds, workplace, write};

const MODULES: &str = r#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]"#;

/// A folder `m` with a tiny encoder whose tokens are letters.
pub fn encoder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/tests/fixtures/encoders/gelu");
    fs::create_dir_all(dir.path().join("m/1_Pooling")).expect("created");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture.join(name), dir.path().join("m").join(name)).expect("copied");
    }
    let mut vocab = json!({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2});
    for (i, letter) in ('a'..='z').enumerate() {
        vocab[letter.to_string()] = (3 + i).into();
        vocab[format!("##{letter}")] = (30 + i).into();
    }
    let tokenizer = json!({
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 1000, "vocab": vocab},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
    });
    write(dir.path(), "m/tokenizer.json", &tokenizer.to_string());
    write(dir.path(), "m/modules.json", MODULES);
    write(dir.path(), "m/1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true}"#);
    dir
}

/// With these lines on stdin.
fn with_input(dir: &Path, args: &[&str], input: &str) -> Output {
    let mut child = command(dir, args).stdin(Stdio::piped()).spawn().expect("flint starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    child.wait_with_output().expect("ended")
}

fn vectors(output: &Output) -> Vec<Vec<f32>> {
    let text = std::str::from_utf8(&output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("an array")).collect()
}

#[test]
fn embed_gives_a_vector_for_each_line_in_order() {
    let dir = encoder();
    let long = "x".repeat(120);
    let input = format!("\"abc\"\n\"{long}\"\n\"\"\n\"abc\"\n");
    let output = with_input(dir.path(), &["embed", "m", "--jsonl"], &input);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("1 of 4 texts cut to the model's 100 tokens: 22 tokens"), "{output:?}");
    let found = vectors(&output);
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [24; 4]);
    assert!(found[0] == found[3] && found[0] != found[1] && found[0] != found[2]);
    for vector in &found {
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    write(dir.path(), "texts.jsonl", &input);
    assert_eq!(vectors(&succeeds(dir.path(), &["embed", "m", "texts.jsonl", "--jsonl"])), found);

    let one = parsed(&succeeds(dir.path(), &["embed", "m", "abc", "--json"]));
    assert_eq!(keys(&one), ["embedding", "tokens", "tokens_cut"]);
    let vector: Vec<f32> = serde_json::from_value(one["embedding"].clone()).expect("numbers");
    assert_eq!((vector, &one["tokens"]), (found[0].clone(), &json!(5)));
    let plain = with_input(dir.path(), &["embed", "m"], "abc");
    let plain = String::from_utf8(plain.stdout).expect("text");
    let plain: Vec<f32> = plain.split_whitespace().map(|x| x.parse().expect("a number")).collect();
    assert_eq!(plain, found[0]);
}

#[test]
fn embed_names_what_is_wrong() {
    let dir = encoder();
    let at = dir.path();
    write(at, "bad.jsonl", "\"a\"\nb\n");
    fails(at, &["embed", "m", "bad.jsonl", "--jsonl"], &["line 2"]);
    fails(at, &["embed", "m", "gone.jsonl", "--jsonl"], &["gone.jsonl"]);
    fails(at, &["embed", "nowhere", "a"], &["nowhere"]);
    fails(at, &["generate", "m", "-p", "a"], &["flint embed"]);
    write(at, "m/1_Pooling/config.json", r#"{"pooling_mode_max_tokens": true}"#);
    fails(at, &["embed", "m", "a"], &["max_tokens", "1_Pooling"]);
    fs::remove_file(at.join("m/modules.json")).expect("removed");
    let output = succeeds(at, &["embed", "m", "a"]);
    assert!(stderr(&output).contains("modules.json"), "{output:?}");
    assert!(stderr(&succeeds(at, &["embed", "m", "a", "-q"])).is_empty());
}

/// A trained character model of 16 positions in `run`.
fn trained() -> tempfile::TempDir {
    let dir = workplace();
    succeeds(dir.path(), &["train", "c.ron", "--plain"]);
    dir
}

#[test]
fn eval_measures_a_text_by_both_definitions() {
    let dir = trained();
    let at = dir.path();
    let halves = parsed(&succeeds(at, &["eval", "run", "--ppl", "text.txt", "--json"]));
    let want = [
        "context",
        "definition",
        "nll",
        "perplexity",
        "stderr",
        "stride",
        "text_tokens",
        "tokens",
        "windows",
    ];
    assert_eq!(keys(&halves), want);
    let number = |value: &Value, key: &str| value[key].as_f64().expect("a number");
    assert_eq!((&halves["context"], &halves["definition"]), (&json!(16), &json!("llama.cpp")));
    // Of 16 tokens the last 7 are scored.
    assert_eq!(number(&halves, "tokens"), 7.0 * number(&halves, "windows"));
    assert_eq!(number(&halves, "windows"), (number(&halves, "text_tokens") / 16.0).floor());
    assert!((number(&halves, "nll").exp() - number(&halves, "perplexity")).abs() < 1e-9);
    // Twelve steps of training: better than all characters alike, worse than knowing the text.
    assert!((1.5..400.0).contains(&number(&halves, "perplexity")), "{halves}");

    let args = ["eval", "run", "--ppl", "text.txt", "--context", "10", "--stride", "4", "--json"];
    let sliding = parsed(&succeeds(at, &args));
    assert_eq!((&sliding["definition"], &sliding["stride"]), (&json!("transformers"), &json!(4)));
    // Each token but the first is scored once.
    assert_eq!(number(&sliding, "tokens") + 1.0, number(&sliding, "text_tokens"));
    let threads = [&args[..], &["-t", "1"]].concat();
    assert_eq!(parsed(&succeeds(at, &threads)), sliding);

    fails(at, &["eval", "run", "--ppl", "text.txt", "--context", "17"], &["context", "17", "16"]);
    fails(at, &["eval", "run", "--ppl", "text.txt", "--stride", "0"], &["stride"]);
    fails(at, &["eval", "run", "--ppl", "gone.txt"], &["gone.txt"]);
    write(at, "short.txt", "cat");
    fails(at, &["eval", "run", "--ppl", "short.txt"], &["3 tokens", "32"]);
    assert_eq!(flint(at, &["eval", "run"]).status.code(), Some(2));
}

#[test]
fn eval_asks_questions() {
    let dir = trained();
    let at = dir.path();
    // What was trained on against what was not.
    let line = |right: &str, wrong: &str| json!({"goal": "the", "sol1": right, "sol2": wrong, "label": 0});
    let lines: String =
        (0..4).map(|i| format!("{}\n", line(&format!("cat {i}"), &"#".repeat(40 + i)))).collect();
    write(at, "choices.jsonl", &lines);
    write(at, "words.jsonl", "{\"text\": \"the cat\"}\n{\"text\": \"a b #\"}\n");
    let args = ["eval", "run", "--tasks", "choices,words", "--data", ".", "--json"];
    let output = flint(at, &args);
    // The second choices are longer than the context.
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(stderr(&output).contains("choices") && stderr(&output).contains("the model's context holds 16"));
    write(at, "choices.jsonl", &lines.replace(&"#".repeat(32), ""));
    let found = parsed(&succeeds(at, &args));
    assert_eq!(found["tasks"]["choices"]["n"], 4);
    assert_eq!(keys(&found["tasks"]["choices"]), ["acc", "acc_norm", "n", "n_truncated"]);
    assert_eq!(keys(&found["tasks"]["words"]), ["acc", "n", "n_truncated", "perplexity"]);
    assert!(found["tasks"]["words"]["perplexity"].as_f64().expect("a number") > 1.0);
    // `Question: the\nAnswer:` and eight characters more are 29, of which 17 fit.
    assert_eq!(found["tasks"]["choices"]["n_truncated"], 8);
    let limited = [&args[..], &["--limit", "1"]].concat();
    let limited = parsed(&succeeds(at, &limited));
    assert_eq!(
        (&limited["tasks"]["words"]["n"], &limited["tasks"]["words"]["acc"]["stderr"]),
        (&json!(1), &Value::Null)
    );

    write(at, "mixed.jsonl", &format!("{{\"text\": \"a b\"}}\n{}\n", line("a", "b")));
    fails(at, &["eval", "run", "--tasks", "mixed", "--data", "."], &["mixed", "line 2", "another kind"]);
    fails(at, &["eval", "run", "--tasks", "gone", "--data", "."], &["gone.jsonl"]);
    fails(at, &["eval", "run", "--tasks", "../words", "--data", "."], &["../words"]);
}

/// What transformers 5.23 gives over the first 20,000 characters of the text.
#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn perplexity_is_that_of_transformers() {
    let Some(assets) = std::env::var_os("FLINT_ASSETS").map(PathBuf::from) else {
        return eprintln!("skipped: FLINT_ASSETS does not name the folder with models/stories260k");
    };
    let text = fs::read_to_string(assets.join("text/tinystories-sample-197k.txt")).expect("the text");
    let dir = tempfile::tempdir().expect("a temporary folder");
    write(dir.path(), "text.txt", &text.chars().take(20_000).collect::<String>());
    let model = assets.join("models/stories260k/hf");
    let model = model.to_str().expect("a path in UTF-8");
    for (more, want) in [
        (&["--context", "512"][..], 3.99598397663892),
        (&["--context", "128"], 4.199985278606794),
        (&["--stride", "256"], 4.071836858360874),
        (&["--stride", "512"], 4.168973516937942),
        (&["--context", "128", "--stride", "64"], 4.1149617940819425),
    ] {
        let args = [&["eval", model, "--ppl", "text.txt", "--json"], more].concat();
        let found = parsed(&succeeds(dir.path(), &args))["perplexity"].as_f64().expect("a number");
        assert!((found / want - 1.0).abs() < 1e-5, "{more:?}: {found}, not {want}");
    }
}
