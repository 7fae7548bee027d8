//! The program, run in a folder of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

pub const CONFIG: &str = r#"(
    name: "tiny",
    out: "run",
    seed: 7,
    tokenizer: (kind: char, vocab_size: 320),
    model: (n_layer: 1, n_embd: 16, n_head: 2, context: 16),
    data: (paths: ["text.txt"], valid_fraction: 0.1),
    train: (
        steps: 12, batch_size: 2, lr: 1e-3,
        eval_interval: 4, eval_batches: 2, checkpoint_interval: 3,
    ),
    samples: (interval: 6, prompts: ["the "], tokens: 8),
)
"#;

/// A folder with a config `c.ron` and the text it learns.
pub fn workplace() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let line = |i: usize| format!("line {i}: the cat number {} sat on mat {}.\n", i * 7 % 13, i * i % 29);
    let text: String = (0..80).map(line).collect();
    write(dir.path(), "text.txt", &text);
    write(dir.path(), "c.ron", CONFIG);
    dir
}

pub fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).expect("written");
}

pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flint"));
    command.current_dir(dir).args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs to the end; whatever happens, nothing may panic.
pub fn flint(dir: &Path, args: &[&str]) -> Output {
    let output = command(dir, args).output().expect("flint starts");
    assert!(!stderr(&output).contains("panicked"), "{args:?}: {}", stderr(&output));
    output
}

pub fn succeeds(dir: &Path, args: &[&str]) -> Output {
    let output = flint(dir, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    output
}

/// Ends with exit code 2 and an error that has all these words.
pub fn fails(dir: &Path, args: &[&str], words: &[&str]) {
    let output = flint(dir, args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?}: no `{word}` in: {text}");
    }
}

/// `flint train c.ron` with these arguments added.
pub fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["train", "c.ron"];
    args.extend_from_slice(more);
    args
}
