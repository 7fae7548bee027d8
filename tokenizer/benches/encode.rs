//! Encoding and decoding rates on one and on all threads, cold and warm.
//!
//! ```text
//! cargo bench -p tokenizer --bench encode -- TOKENIZER FILE…
//! ```
//!
//! TOKENIZER is any file that Flint reads. Rates are megabytes (10^6 bytes of text) per second of processor time of the
//! whole process, the best of several passes; "cold" is the first pass of a tokenizer that has encoded nothing yet.

use std::hint::black_box;
use std::time::Instant;

use tokenizer::Tokenizer;

#[expect(clippy::print_stdout, reason = "a bench prints its figures")]
fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let Some((tokenizer, files)) = args.split_first() else {
        println!("skipped: give a tokenizer and text files");
        return;
    };
    for file in files {
        let text = std::fs::read_to_string(file).expect("a text file");
        let tokenizer = Tokenizer::load(tokenizer).expect("a tokenizer");
        let mut ids = Vec::new();
        let cold = rate(text.len(), 1, || {
            ids.clear();
            tokenizer.encode_into(&text, &mut ids);
        });
        let warm = rate(text.len(), 5, || {
            ids.clear();
            tokenizer.encode_into(&text, &mut ids);
        });
        // Before the pools: the processor time of their threads goes when they end.
        let decode = rate(text.len(), 5, || drop(black_box(tokenizer.decode_bytes(&ids))));
        let lines: Vec<&str> = text.split_inclusive("\n\n").collect();
        let mut batches = [1, rayon::current_num_threads()].into_iter().map(|n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("threads");
            pool.install(|| rate(text.len(), 5, || drop(black_box(tokenizer.encode_batch(&lines)))))
        });
        let (batch, batch_all) = (batches.next().expect("one"), batches.next().expect("two"));
        println!(
            "{file}: {} ids; MB/s: cold {cold:.0}, warm {warm:.0}; {} documents: {batch:.0} on one thread, {batch_all:.0} on all; decoding {decode:.0}",
            ids.len(),
            lines.len(),
        );
    }
}

/// Megabytes per second of processor time, the best of `n_runs`.
fn rate(n_bytes: usize, n_runs: usize, mut run: impl FnMut()) -> f64 {
    let seconds = (0..n_runs).map(|_| {
        let (begin, cpu) = (Instant::now(), cpu_seconds());
        run();
        match (cpu, cpu_seconds()) {
            (Some(before), Some(after)) => after - before,
            _ => begin.elapsed().as_secs_f64(),
        }
    });
    n_bytes as f64 / 1e6 / seconds.fold(f64::INFINITY, f64::min)
}

/// Processor time of all living threads, to the nanosecond, where the system tells it.
fn cpu_seconds() -> Option<f64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let nanos = tasks.map(|task| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanos.sum::<Option<f64>>().map(|nanos| nanos / 1e9)
}
