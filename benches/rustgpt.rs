//! The job of the teaching program RustGPT: time, speed and score of `configs/rustgpt.ron` for ten seeds.
//!
//! `cargo bench --bench rustgpt` runs the real program, so the figures hold all that a user waits for.
//! It fails if any seed answers fewer than all 53 questions.

#![expect(clippy::print_stdout, reason = "a bench is its output")]

use std::process::Command;
use std::time::Instant;

const SEEDS: std::ops::RangeInclusive<u32> = 1..=10;

fn main() {
    let folder = std::env::temp_dir().join(format!("flint-rustgpt-{}", std::process::id()));
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/rustgpt.ron");
    let mut worst = (53, 0.0_f64);
    println!(
        "{:>4}  {:>8}  {:>9}  {:>8}  {:>10}  {:>8}",
        "seed", "wall s", "train s", "tokens", "tokens/s", "score"
    );
    for seed in SEEDS {
        let begin = Instant::now();
        let out = Command::new(env!("CARGO_BIN_EXE_flint"))
            .args(["train", config, "--overwrite", "--json", "-q", "-t", "2"])
            .args(["--set", &format!("seed={seed}"), "--set", &format!("out={}", folder.display())])
            .output()
            .expect("the program starts");
        let wall = begin.elapsed().as_secs_f64();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let outcome: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one line of JSON");
        let number = |key: &str| outcome[key].as_f64().expect("a number");
        let exact = outcome["exam"][0]["n_exact"].as_u64().expect("a score");
        println!(
            "{seed:>4}  {wall:>8.2}  {:>9.2}  {:>8}  {:>10.0}  {exact:>5}/53",
            number("seconds"),
            number("tokens"),
            number("tokens_per_s"),
        );
        worst = (worst.0.min(exact), worst.1.max(wall));
    }
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    println!("worst: {} of 53 exact, {:.2} s", worst.0, worst.1);
    assert!(worst.0 == 53, "a seed answered fewer than all questions");
}
