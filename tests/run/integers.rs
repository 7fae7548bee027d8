//! Folders of matrices that are whole numbers: written, measured, and understood by every verb.

use std::fs;
use std::path::Path;

use quant::{Format, Gguf};
use serde_json::Value;

use super::quantize::{quantize, trained};
use super::{fails, json, stderr, succeeds};

/// The metadata of a folder's file of weights.
fn metadata(folder: &Path) -> Value {
    let file = fs::read(folder.join("model.safetensors")).expect("read");
    let len = u64::from_le_bytes(*file.first_chunk().expect("a length")) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + len]).expect("JSON");
    header["__metadata__"].clone()
}

#[test]
fn a_folder_of_whole_numbers_serves_every_verb_and_has_its_report() {
    let dir = trained();
    let at = |name: &str| dir.path().join(name);
    for (name, format) in [("int8", "INT8"), ("int4-g32", "INT4-G32")] {
        let report = quantize(&dir, &["--format", name, "-o", name, "--text", "text.txt"]);
        let stored = metadata(&at(name));
        for key in
            ["perplexity", "source_perplexity", "kl_divergence", "bits_per_weight", "error", "tokens_per_s"]
        {
            let text = stored[format!("flint.quantize.{key}")].as_str().expect("there");
            let (stored, reported) =
                (text.parse::<f64>().expect("a number"), report[key].as_f64().expect("a number"));
            assert!(stored > 0.0 && (reported / stored - 1.0).abs() < 1e-9, "{key}: {reported} {stored}");
        }
        assert_eq!(stored["format"], "pt");
        let saved: Value =
            serde_json::from_str(&fs::read_to_string(at(name).join("flint_quantize.json")).expect("read"))
                .expect("JSON");
        assert_eq!(saved["bytes"], report["bytes"]);
        let tensors = report["tensors"].as_array().expect("a list");
        for tensor in tensors {
            let is_matrix = tensor["name"].as_str().is_some_and(|name| name.ends_with("_proj.weight"));
            assert_eq!(tensor["format"] == format, is_matrix, "{tensor}");
            assert_eq!(tensor["error"].as_f64() > Some(0.0), is_matrix, "{tensor}");
        }
        assert!(report["bits_per_weight"].as_f64() < report["source_bits_per_weight"].as_f64());

        let folder = name;
        let again = json(&succeeds(dir.path(), &["eval", folder, "--ppl", "text.txt", "--json"]));
        let (again, first) =
            (again["perplexity"].as_f64().expect("it"), report["perplexity"].as_f64().expect("it"));
        assert!((again / first - 1.0).abs() < 1e-6, "{again} {first}");
        succeeds(dir.path(), &["generate", folder, "-p", "the cat", "-n", "4"]);
        succeeds(dir.path(), &["bench", folder, "-p", "8", "-n", "4", "--json"]);
        let inspected = json(&succeeds(dir.path(), &["inspect", folder, "--json", "--tensors"]));
        assert!(inspected["formats"][format]["tensors"].as_u64() > Some(6), "{inspected}");
        assert!(
            inspected["memory"]["weights_bytes"].as_u64()
                < Some(4 * inspected["parameters"].as_u64().expect("n"))
        );

        // Its numbers in another format.
        let out = format!("{name}.gguf");
        let said = succeeds(dir.path(), &["convert", folder, "--to", "gguf", "--dtype", "q8_0", "-o", &out]);
        assert!(stderr(&said).is_empty() || !stderr(&said).contains("error"));
        let file = fs::read(at(&out)).expect("read");
        let tensor = Gguf::parse(&file).expect("a GGUF").tensor("blk.0.attn_q.weight").map(|t| t.format);
        assert_eq!(tensor, Some(Format::Q8_0));
        let plain = format!("{name}-f32");
        succeeds(dir.path(), &["convert", folder, "--to", "safetensors", "-o", &plain]);
        let ppl = |model: &str| {
            let report = json(&succeeds(dir.path(), &["eval", model, "--ppl", "text.txt", "--json"]));
            report["perplexity"].as_f64().expect("a number")
        };
        // The same numbers, but for the rounding of what they meet.
        assert!((ppl(&plain) / first - 1.0).abs() < 0.02, "{name}");
        let rounded = succeeds(dir.path(), &["quantize", folder, "--format", "q8_0", "-o", "twice.gguf"]);
        assert!(stderr(&rounded).contains(format) && stderr(&rounded).contains("quantized already"));
        fs::remove_file(at("twice.gguf")).expect("removed");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).expect("listed").flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn groups_that_do_not_fit_are_smaller_and_that_is_said() {
    let dir = trained();
    let report = quantize(&dir, &["--format", "int4-g128", "-o", "a"]);
    assert!(report["formats"]["INT4-G32"].as_u64() > Some(0), "{report}");
    let said = succeeds(dir.path(), &["quantize", "run", "--format", "int4-g128", "-o", "b"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("INT4-G128 became INT4-G32: rows of 32 are no whole blocks"), "{said}");
    succeeds(dir.path(), &["generate", "a", "-p", "the cat", "-n", "2"]);
}

#[test]
fn columns_that_matter_lose_less() {
    let dir = trained();
    let plain = quantize(&dir, &["--format", "int4-g32", "-o", "plain"]);
    let report = quantize(&dir, &["--format", "int4-g32", "-o", "a", "--calibrate", "text.txt"]);
    assert!(dir.path().join("a.imatrix.gguf").exists());
    quantize(&dir, &["--format", "int4-g32", "-o", "b", "--imatrix", "a.imatrix.gguf"]);
    let file = |name: &str| fs::read(dir.path().join(name).join("model.safetensors")).expect("read");
    // Behind the header, where the reports differ.
    let data = |name: &str| {
        file(name).split_off(8 + u64::from_le_bytes(*file(name).first_chunk().expect("8")) as usize)
    };
    assert!(data("a") == data("b") && data("a") != data("plain"));
    assert!(report["n_weighed"].as_u64() > Some(6) && plain["n_weighed"] == 0);
    // By all numbers alike it is worse, by those that matter it is not.
    assert!(report["error"].as_f64() > plain["error"].as_f64());
}

#[test]
fn what_has_no_such_form_is_refused() {
    let dir = trained();
    let usual = ["quantize", "run", "--format", "int4-g64", "-o", "a"];
    fails(dir.path(), &[&usual[..], &["--tensor", "attn_v=q8_0"]].concat(), &["--tensor", "GGUF"]);
    fails(dir.path(), &[&usual[..], &["--pure"]].concat(), &["--pure", "GGUF"]);
    fails(dir.path(), &["quantize", "run", "--format", "int4-g48", "-o", "a"], &["int4-g48", "int4-g128"]);
    assert!(!dir.path().join("a").exists());
    // GPT-2's layers lie otherwise.
    let gpt2 = concat!(env!("CARGO_MANIFEST_DIR"), "/model/tests/fixtures/families/gpt2");
    fails(dir.path(), &["quantize", gpt2, "--format", "int8", "-o", "a"], &["GPT-2", "GGUF"]);
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_nothing_behind() {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    let dir = trained();
    let names = || {
        let entries = fs::read_dir(dir.path()).expect("listed").flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    super::write(dir.path(), "long.txt", &"the cat sat on the mat. ".repeat(400_000));
    let before = names();
    for format in ["int8", "q8_0"] {
        let args = ["quantize", "run", "--format", format, "-o", "never", "--calibrate", "long.txt"];
        let mut child = super::command(dir.path(), &args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let begin = Instant::now();
        while names() == before {
            assert!(begin.elapsed() < Duration::from_secs(60), "no folder was made");
            assert!(child.try_wait().expect("waited").is_none(), "it ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(sent.expect("kill starts").success());
        let output = child.wait_with_output().expect("waited");
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        assert!(stderr(&output).contains("nothing was written"), "{}", stderr(&output));
        assert_eq!(names(), before);
    }
}
