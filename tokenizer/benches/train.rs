//! Trains a byte-level vocabulary and prints what it cost: wall time, CPU time by phase, and the peak of memory.
//!
//! `FLINT_TRAIN_FILES` names text files, separated as in `PATH`; without it a text of random words is made up.
//! `FLINT_TRAIN_SPLIT` (gpt2 or gpt4), `FLINT_TRAIN_VOCAB` (32000), `FLINT_TRAIN_MEMORY` (bytes) and `RAYON_NUM_THREADS`
//! set the rest. `FLINT_TRAIN_OUT` is where the `tokenizer.json` goes. `FLINT_TRAIN_SPLIT_ONLY` measures the splitter
//! alone, so that the cost of counting can be told apart from it. `tools/tokenizer_training.py` runs this beside other
//! trainers. `FLINT_TRAIN_UNIGRAM_OUT` trains Unigram pieces instead and writes them there. CPU time and memory come from /proc, so on other systems they print as 0.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::time::Instant;

use tokenizer::train::{Progress, SentencePieceTrainer, Stage, Trainer};
use tokenizer::{Kind, Split};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let setting = |name: &str| std::env::var(format!("FLINT_TRAIN_{name}")).ok();
    let split = match setting("SPLIT").as_deref() {
        None | Some("gpt2") => Split::Gpt2,
        Some("gpt4") => Split::Gpt4,
        Some(other) => return Err(format!("FLINT_TRAIN_SPLIT is `{other}`: choose gpt2 or gpt4").into()),
    };
    let files = setting("FILES").map(|paths| std::env::split_paths(&paths).collect::<Vec<_>>());
    if setting("SPLIT_ONLY").is_some() {
        return split_only(split, &files.unwrap_or_default());
    }
    if let Some(out) = setting("UNIGRAM_OUT") {
        return unigram(&files.unwrap_or_default(), &out);
    }
    let vocab_size = setting("VOCAB").map_or(Ok(32_000), |size| size.parse())?;
    let memory_limit = setting("MEMORY").map(|n_bytes| n_bytes.parse()).transpose()?;
    let trainer = Trainer { memory_limit, ..Trainer::new(Kind::Bpe, vocab_size).with_split(split) };

    let mut phases = Phases { start: Instant::now(), ends: [(0.0, 0.0); 3] };
    let mut counter = trainer.counter()?;
    match &files {
        Some(files) => {
            for file in files {
                counter.add_reader(File::open(file)?, &mut |progress| phases.observe(progress))?;
            }
        }
        None => counter.add_reader(MadeUp::new(20 << 20), &mut |progress| phases.observe(progress))?,
    }
    let n_bytes = counter.n_bytes();
    let tokenizer = counter.finish(&mut |progress| phases.observe(progress))?;
    phases.end(2);
    if let Some(path) = setting("OUT") {
        tokenizer.save(path)?;
    }
    let [(wall_count, cpu_count), (wall_arrange, cpu_arrange), (wall, cpu)] = phases.ends;
    writeln!(
        io::stdout(),
        "{n_bytes} bytes, {} tokens, {split:?}: wall {wall:.2} s, CPU {cpu:.2} s (wall and CPU: split and count \
         {wall_count:.2} {cpu_count:.2}, arrange {:.2} {:.2}, merge {:.2} {:.2}), peak {} MB",
        tokenizer.vocab_size(),
        wall_arrange - wall_count,
        cpu_arrange - cpu_count,
        wall - wall_arrange,
        cpu - cpu_arrange,
        peak_bytes() >> 20,
    )?;
    Ok(())
}

/// When phases ended.
struct Phases {
    start: Instant,
    /// Wall and CPU seconds at the end of counting, of arranging and of all.
    ends: [(f64, f64); 3],
}

impl Phases {
    fn observe(&mut self, progress: Progress) -> ControlFlow<()> {
        match progress.stage {
            Stage::Count => self.end(0),
            Stage::Merge if self.ends[1].1 == 0.0 => self.end(1),
            Stage::Arrange | Stage::Merge | Stage::Prune => {}
        }
        ControlFlow::Continue(())
    }

    fn end(&mut self, phase: usize) {
        self.ends[phase] = (self.start.elapsed().as_secs_f64(), cpu_seconds());
    }
}

fn split_only(split: Split, files: &[std::path::PathBuf]) -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    for file in files {
        File::open(file)?.read_to_string(&mut text)?;
    }
    let before = cpu_seconds();
    let (n_pieces, n_bytes) =
        split.pieces(&text).fold((0u64, 0), |(n, n_bytes), piece| (n + 1, n_bytes + piece.len()));
    let cpu = cpu_seconds() - before;
    writeln!(io::stdout(), "{n_bytes} bytes, {n_pieces} pieces, {split:?}: split alone, CPU {cpu:.2} s")?;
    Ok(())
}

/// Trains a Unigram vocabulary of 8,000 pieces and saves it.
fn unigram(files: &[std::path::PathBuf], out: &str) -> Result<(), Box<dyn std::error::Error>> {
    let texts = files.iter().map(std::fs::read_to_string).collect::<Result<Vec<_>, _>>()?;
    let trainer = SentencePieceTrainer {
        kind: Kind::Unigram,
        // Three special tokens and the bytes come on top.
        vocab_size: 8000 + 3 + 256,
        character_coverage: 1.0,
        ..SentencePieceTrainer::default()
    };
    let before = cpu_seconds();
    let tokenizer = trainer.train(&texts, &mut ())?;
    writeln!(
        io::stdout(),
        "unigram: {} tokens, CPU {:.2} s",
        tokenizer.vocab_size(),
        cpu_seconds() - before
    )?;
    Ok(tokenizer.save(out)?)
}

/// A stream of random words whose frequencies fall as those of a language do.
struct MadeUp {
    n_left: u64,
    state: u64,
}

impl MadeUp {
    fn new(n_left: u64) -> Self {
        Self { n_left, state: 1 }
    }

    fn next(&mut self) -> u64 {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.state >> 33
    }
}

impl Read for MadeUp {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut text = Vec::new();
        while text.len() < buffer.len().min(1 << 16) {
            // The product of two uniform numbers is small more often than large.
            let mut word = self.next() % 1000 * (self.next() % 1000) + 1;
            while word > 0 {
                text.push(b"etaoinshrdlcumwfgypbvk"[(word % 22) as usize]);
                word /= 22;
            }
            text.push(if self.next().is_multiple_of(12) { b'\n' } else { b' ' });
        }
        let n = text.len().min(buffer.len()).min(self.n_left as usize);
        buffer[..n].copy_from_slice(&text[..n]);
        self.n_left -= n as u64;
        Ok(n)
    }
}

/// User and system time of the process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields are counted behind the name, which may hold spaces; a tick is 10 ms on every Linux in use.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The most memory that the process ever held.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) << 10
}
