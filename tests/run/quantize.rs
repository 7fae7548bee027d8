//! Models in fewer bits: what is written, what is reported, and what is refused.

use std::fs;

use quant::{Format, Gguf, Importance};
use serde_json::Value;
use tempfile::TempDir;

use super::{fails, json, stderr, succeeds, train, workplace, write};

/// A folder with a trained run whose rows are blocks of 32 numbers, but none of 256.
pub(super) fn trained() -> TempDir {
    let dir = workplace();
    let changes = ["model.n_embd=32", "model.context=32", "tokenizer.kind=bpe", "tokenizer.vocab_size=300"];
    let set: Vec<&str> = changes.iter().flat_map(|change| ["--set", change]).collect();
    succeeds(dir.path(), &train(&set));
    dir
}

pub(super) fn quantize(dir: &TempDir, more: &[&str]) -> Value {
    json(&succeeds(dir.path(), &[&["quantize", "run", "--json"][..], more].concat()))
}

fn read(dir: &TempDir, name: &str) -> Vec<u8> {
    fs::read(dir.path().join(name)).expect("read")
}

/// Format and data of a tensor.
fn tensor(file: &[u8], name: &str) -> (Format, Vec<u8>) {
    let gguf = Gguf::parse(file).expect("a GGUF");
    let tensor = gguf.tensor(name).expect("there");
    (tensor.format, tensor.data.to_vec())
}

#[test]
fn a_quantized_model_runs_and_its_report_stands_in_its_file() {
    let dir = trained();
    let report = quantize(&dir, &["--format", "q4_0", "-o", "a.gguf", "--text", "text.txt"]);
    let file = read(&dir, "a.gguf");
    let gguf = Gguf::parse(&file).expect("a GGUF");
    let header = gguf.header();
    for key in ["perplexity", "source_perplexity", "kl_divergence", "same_top", "bits_per_weight", "error"] {
        let stored = header.float(&format!("flint.quantize.{key}")).expect("read").expect("there");
        // The parser of the tests is sometimes off by the last digit.
        let reported = report[key].as_f64().expect("a number");
        assert!(stored > 0.0 && (reported / stored - 1.0).abs() < 1e-14, "{key}: {reported} {stored}");
    }
    assert!(
        report["tokens_per_s"].as_f64() > Some(0.0) && report["source_tokens_per_s"].as_f64() > Some(0.0)
    );
    assert_eq!(header.text("flint.quantize.text").expect("read"), Some("text.txt"));
    let errors = header.floats("flint.quantize.tensor_errors").expect("read").expect("there");
    let tensors = report["tensors"].as_array().expect("a list");
    assert_eq!((errors.len(), gguf.n_tensors()), (tensors.len(), tensors.len()));
    let mut bits = 0;
    for ((stored, reported), error) in gguf.tensors().zip(tensors).zip(errors) {
        assert_eq!(
            (&reported["name"], &reported["format"]),
            (&stored.name.into(), &stored.format.name().into())
        );
        assert!((reported["error"].as_f64().expect("a number") - f64::from(error)).abs() < 1e-7);
        // Matrices lose something, norms nothing.
        assert_eq!(error > 0.0, stored.shape.len() > 1, "{}", stored.name);
        bits += 8 * stored.data.len();
    }
    assert_eq!(report["bytes"].as_u64(), Some(bits as u64 / 8));
    // The perplexity is that which `eval` measures of the same file, but for the rounding of its single-precision kernel,
    // and no worse than of a model without a clue.
    let args = ["eval", "a.gguf", "--ppl", "text.txt", "--json"];
    let again = json(&succeeds(dir.path(), &args))["perplexity"].as_f64().expect("a number");
    let first = report["perplexity"].as_f64().expect("a number");
    assert!((again / first - 1.0).abs() < 1e-6 && first < 300.0, "{again} {first}");
    succeeds(dir.path(), &["generate", "a.gguf", "-p", "the cat", "-n", "4"]);
    let left: Vec<_> = fs::read_dir(dir.path()).expect("listed").flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn what_does_not_fit_gets_another_format_and_that_is_said() {
    let dir = trained();
    let args = ["quantize", "run", "--format", "q4_k_m", "-o", "a.gguf", "--tensor", "ffn_down=q8_0"];
    let text = String::from_utf8(succeeds(dir.path(), &args).stdout).expect("UTF-8");
    assert!(text.contains("Q4_K became Q5_0: rows of 32") && text.contains("not measured"), "{text}");
    let file = read(&dir, "a.gguf");
    let format = |name: &str| tensor(&file, name).0;
    assert_eq!(format("blk.0.attn_q.weight"), Format::Q5_0);
    assert_eq!(format("blk.0.ffn_down.weight"), Format::Q8_0);
    assert_eq!(format("blk.0.attn_norm.weight"), Format::F32);
    let report = quantize(&dir, &["--format", "q4_k_m", "-o", "b.gguf"]);
    let instead =
        report["tensors"].as_array().expect("a list").iter().filter(|t| t["instead_of"].is_string());
    assert_eq!(report["n_fallbacks"].as_u64(), Some(instead.count() as u64));
    // A GGUF is a source too, and pure is pure.
    succeeds(dir.path(), &["convert", "run", "--to", "gguf", "-o", "f32.gguf"]);
    let pure = |from: &str, to: &str| {
        succeeds(dir.path(), &["quantize", from, "--format", "q4_1", "--pure", "-o", to]);
        let file = read(&dir, to);
        let formats: Vec<_> =
            Gguf::parse(&file).expect("a GGUF").tensors().map(|t| (t.shape.len(), t.format)).collect();
        assert!(formats.iter().all(|(n, format)| *format == if *n > 1 { Format::Q4_1 } else { Format::F32 }));
        tensor(&file, "blk.0.attn_k.weight")
    };
    assert_eq!(pure("run", "c.gguf"), pure("f32.gguf", "d.gguf"));
    // What was rounded before is said to have been.
    let said = stderr(&succeeds(dir.path(), &["quantize", "c.gguf", "--format", "q8_0", "-o", "e.gguf"]));
    assert!(said.contains("quantized already") && said.contains("Q4_1"), "{said}");
}

#[test]
fn a_calibration_is_saved_and_used_again() {
    let dir = trained();
    let report = quantize(&dir, &["--format", "q4_0", "-o", "a.gguf", "--calibrate", "text.txt"]);
    assert!(report["n_weighed"].as_u64() > Some(4));
    let statistics = read(&dir, "a.imatrix.gguf");
    let importance = Importance::parse(&statistics).expect("an imatrix");
    assert_eq!((importance.chunk_len, &importance.texts[..]), (32, &["text.txt".to_owned()][..]));
    let columns = importance.of("blk.0.attn_q.weight", 1, 32).expect("fits").expect("there");
    assert!(columns.iter().all(|&column| column > 0.0));
    quantize(&dir, &["--format", "q4_0", "-o", "b.gguf", "--imatrix", "a.imatrix.gguf"]);
    quantize(&dir, &["--format", "q4_0", "-o", "plain.gguf"]);
    let [a, b, plain] =
        ["a.gguf", "b.gguf", "plain.gguf"].map(|name| tensor(&read(&dir, name), "blk.0.attn_q.weight"));
    assert!(a == b && a != plain && a.0 == plain.0);
    let weighed = |report: &Value| {
        let tensors = report["tensors"].as_array().expect("a list").clone();
        let found = tensors.iter().find(|tensor| tensor["name"] == "blk.0.attn_q.weight").cloned();
        found.expect("there")["output_error"].as_f64()
    };
    assert!(weighed(&report) > Some(0.0));
    // What is there is not calibrated anew.
    fs::remove_file(dir.path().join("a.gguf")).expect("removed");
    let again = ["quantize", "run", "--format", "q4_0", "-o", "a.gguf", "--calibrate", "text.txt"];
    fails(dir.path(), &again, &["a.imatrix.gguf", "--imatrix"]);
}

#[test]
fn bits_are_spent_by_measured_error() {
    let dir = trained();
    let mut last = f64::INFINITY;
    for bits in ["5.5", "7.5", "10"] {
        let report = quantize(&dir, &["--target-bpw", bits, "-o", &format!("{bits}.gguf")]);
        let (found, error) =
            (report["bits_per_weight"].as_f64(), report["error"].as_f64().expect("a number"));
        assert!(found <= bits.parse().ok() && error < last, "{bits}: {report}");
        last = error;
    }
    succeeds(dir.path(), &["generate", "5.5.gguf", "-p", "the", "-n", "2"]);
    fails(
        dir.path(),
        &["quantize", "run", "--target-bpw", "1", "-o", "a.gguf"],
        &["bits per weight at least"],
    );
    let args = ["quantize", "run", "--target-bpw", "9", "-o", "a.gguf", "--tensor", "attn_v=q8_0"];
    succeeds(dir.path(), &args);
    assert_eq!(tensor(&read(&dir, "a.gguf"), "blk.0.attn_v.weight").0, Format::Q8_0);
}

#[test]
fn what_cannot_be_done_is_refused_before_it_is_begun() {
    let dir = trained();
    write(dir.path(), "short.txt", "the cat");
    write(dir.path(), "there.gguf", "");
    let usual = ["quantize", "run", "--format", "q4_0", "-o", "a.gguf"];
    for (more, words) in [
        (&["--tensor", "ffn_sideways=q8_0"][..], &["ffn_sideways", "no matrix"][..]),
        (&["--tensor", "ffn_down=q9"], &["q9", "q8_0"]),
        (&["--tensor", "=q8_0"], &["before `=`"]),
        (&["--tensor", "norm=q8_0"], &["norm", "no matrix"]),
        (&["--context", "16"], &["--text"]),
        (&["--text", "absent.txt"], &["absent.txt"]),
        (&["--text", "short.txt"], &["short.txt", "two windows of 32"]),
        (&["--text", "text.txt", "--context", "64"], &["64", "the model's 32"]),
        (&["--target-bpw", "4"], &["--format", "--target-bpw"]),
        (&["--imatrix", "absent"], &["absent"]),
        (&["--imatrix", "run"], &["no imatrix"]),
        (&["--imatrix", "text.txt"], &["text.txt", "no GGUF"]),
        (&["--imatrix", "there.gguf"], &["there.gguf", "number of entries"]),
        (&["--imatrix", "run", "--calibrate", "text.txt"], &["--imatrix"]),
    ] {
        fails(dir.path(), &[&usual[..], more].concat(), words);
    }
    fails(dir.path(), &["quantize", "run", "-o", "a.gguf"], &["--format"]);
    fails(dir.path(), &["quantize", "run", "--format", "q4_x", "-o", "a.gguf"], &["q4_x", "q4_k_m"]);
    fails(dir.path(), &["quantize", "run", "--format", "q4_0", "-o", "there.gguf"], &["already there"]);
    fails(dir.path(), &["quantize", "run", "--target-bpw", "none", "-o", "a.gguf"], &["none"]);
    fails(dir.path(), &["quantize", "absent", "--format", "q4_0", "-o", "a.gguf"], &["absent"]);
    assert!(!dir.path().join("a.gguf").exists());
}

#[test]
fn statistics_that_are_damaged_or_another_models_are_refused() {
    let dir = trained();
    quantize(&dir, &["--format", "q8_0", "-o", "a.gguf", "--calibrate", "text.txt"]);
    let whole = read(&dir, "a.imatrix.gguf");
    let refused = |file: &[u8], words: &[&str]| {
        fs::write(dir.path().join("bad"), file).expect("written");
        let args = ["quantize", "run", "--format", "q4_0", "-o", "b.gguf", "--imatrix", "bad"];
        fails(dir.path(), &args, words);
        assert!(!dir.path().join("b.gguf").exists());
    };
    refused(&whole[..whole.len() / 2], &["bad"]);
    refused(&read(&dir, "a.gguf"), &["bad"]);
    // The older format, of which the last values are cut off; and of a matrix with other columns.
    let older = |n_said: i32, n: usize| {
        let name = "blk.0.attn_q.weight";
        let mut file = [1, name.len() as i32].map(i32::to_le_bytes).concat();
        file.extend(name.bytes());
        file.extend([1, n_said].map(i32::to_le_bytes).concat());
        file.extend((0..n).flat_map(|_| 1.0f32.to_le_bytes()));
        file
    };
    refused(&older(32, 31), &["bad", "entry 0 of 1", "128 bytes"]);
    refused(&older(i32::MIN, 0), &["a length of"]);
    refused(&older(31, 31), &["blk.0.attn_q.weight", "31 columns", "another model"]);
    let mut nameless = older(32, 32);
    nameless[8..12].copy_from_slice(b"none");
    refused(&nameless, &["no matrix of this model"]);
    // A whole one says which matrices it lacks.
    fs::write(dir.path().join("good"), older(32, 32)).expect("written");
    let args = ["quantize", "run", "--format", "q4_0", "-o", "b.gguf", "--imatrix", "good"];
    let said = stderr(&succeeds(dir.path(), &args));
    assert!(said.contains("not weighed") && said.contains("more"), "{said}");
}

#[test]
fn a_gguf_keeps_its_vocabulary_even_if_nobody_understands_it() {
    let dir = trained();
    quantize(&dir, &["--format", "f16", "-o", "a.gguf"]);
    let vocabulary = |file: &[u8]| -> Vec<(String, tokenizer::gguf::Value)> {
        let gguf = Gguf::parse(file).expect("a GGUF");
        let ours = gguf.header().entries().filter(|(key, _)| key.starts_with("tokenizer."));
        ours.map(|(key, entry)| (key.to_owned(), entry.to_value().expect("read"))).collect()
    };
    // A model of vocabularies that there is not, by as many letters.
    let mut unknown = read(&dir, "a.gguf");
    let key = b"tokenizer.ggml.model";
    let at = unknown.windows(key.len()).position(|bytes| bytes == key).expect("the key");
    let gpt2 = at + key.len() + 4 + 8;
    assert_eq!(&unknown[gpt2..gpt2 + 4], b"gpt2");
    unknown[gpt2 + 3] = b'9';
    fs::write(dir.path().join("unknown.gguf"), &unknown).expect("written");
    for name in ["a", "unknown"] {
        let (from, to) = (format!("{name}.gguf"), format!("{name}-q4_0.gguf"));
        let out = succeeds(dir.path(), &["quantize", &from, "--format", "q4_0", "-o", &to]);
        assert_eq!(stderr(&out).contains("`gpt9`"), name == "unknown", "{}", stderr(&out));
        assert_eq!(vocabulary(&read(&dir, &to)), vocabulary(&read(&dir, &from)));
        assert!(!vocabulary(&read(&dir, &to)).is_empty());
    }
    let measured = ["quantize", "unknown.gguf", "--format", "q4_0", "-o", "b.gguf", "--text", "text.txt"];
    fails(dir.path(), &measured, &["no tokenizer that can be opened"]);
    let folder = ["convert", "unknown.gguf", "--to", "safetensors", "-o", "folder"];
    fails(dir.path(), &folder, &["`gpt9`"]);
    assert!(!dir.path().join("b.gguf").exists() && !dir.path().join("folder").exists());
}
