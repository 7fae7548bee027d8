//! `flint tokenizer train`: a vocabulary from a corpus that is read as a stream.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use burn::train::Interrupter;
use tokenizer::train::{Observer, Progress, SentencePieceTrainer, Stage, Trainer};
use tokenizer::{Error, Kind, Tokenizer};

use super::Common;
use super::corpus::{Corpus, Seen};
use crate::args::{DocumentKind, TokenizerTrain, VocabularyKind};
use crate::bar::{Bar, Unit};
use crate::progress;
use crate::stop::Stop;

/// How long training may take to notice a signal.
const GRACE: Duration = Duration::from_secs(1);

pub fn run(args: &TokenizerTrain, common: Common) -> Result<ExitCode> {
    let recipe = Recipe::new(args)?;
    check_out(&args.out, &recipe)?;
    let corpus = Corpus::find(&args.files, &args.corpus)?;
    let stop = Stop::listen(Interrupter::new())?;
    // Some stages are long and cannot be asked to end; nothing is written before the last.
    let insistence = stop.insist(GRACE, move || common.note("\nstopped: nothing was written"));
    let begin = Instant::now();
    let mut watch = Watch { n_bytes: corpus.n_bytes(), stop: &stop, common, drawn: None };
    let trained = match &recipe {
        Recipe::Bytes(trainer) => count_bytes(trainer, &corpus, &mut watch),
        Recipe::Chars(trainer) => count_chars(trainer, &corpus, &mut watch),
    };
    drop((watch, insistence));
    let (tokenizer, seen) = match (trained, stop.exit_code()) {
        (Err(error), Some(code)) if is_cancelled(&error) => {
            common.note("stopped: nothing was written");
            return Ok(ExitCode::from(code));
        }
        (trained, _) => trained?,
    };
    seen.report(common);
    save(&tokenizer, &args.out, common)?;
    report(&tokenizer, &seen, args, begin.elapsed().as_secs_f64(), common);
    Ok(ExitCode::SUCCESS)
}

/// One of the crate's trainers.
enum Recipe {
    Bytes(Trainer),
    Chars(SentencePieceTrainer),
}

impl Recipe {
    fn new(args: &TokenizerTrain) -> Result<Self> {
        let kind = if args.char { VocabularyKind::Char } else { args.kind };
        let name = format!("{kind:?}").to_lowercase();
        if args.split.is_some() && kind != VocabularyKind::Bpe {
            bail!("--split has no meaning for --kind {name}: only bpe cuts by a pattern");
        }
        if args.min_frequency.is_some() && kind == VocabularyKind::Unigram {
            bail!("--min-frequency has no meaning for --kind {name}: its pieces are chosen by likelihood");
        }
        if args.memory_limit.is_some() && kind == VocabularyKind::Char {
            bail!("--memory-limit has no meaning for --kind {name}: counts of characters are small");
        }
        Ok(match kind {
            VocabularyKind::Bpe => Self::Bytes(bytes(args, Kind::Bpe, 2)),
            VocabularyKind::Char => Self::Bytes(bytes(args, Kind::Char, 1)),
            VocabularyKind::Sentencepiece => Self::Chars(chars(args, Kind::Bpe)),
            VocabularyKind::Unigram => Self::Chars(chars(args, Kind::Unigram)),
        })
    }
}

fn bytes(args: &TokenizerTrain, kind: Kind, min_frequency: u64) -> Trainer {
    let trainer = Trainer::new(kind, args.vocab_size);
    let trainer = match &args.special[..] {
        [] => trainer.with_chat_tokens(),
        tokens => trainer.with_special_tokens(tokens),
    };
    Trainer {
        split: args.split,
        min_frequency: args.min_frequency.unwrap_or(min_frequency),
        memory_limit: args.memory_limit,
        ..trainer
    }
}

fn chars(args: &TokenizerTrain, kind: Kind) -> SentencePieceTrainer {
    let mut trainer = SentencePieceTrainer { kind, vocab_size: args.vocab_size, ..Default::default() };
    trainer.special_tokens.extend(args.special.iter().cloned());
    trainer.min_frequency = args.min_frequency.unwrap_or(trainer.min_frequency);
    trainer.memory_limit = args.memory_limit;
    trainer
}

/// Refuses what could not be written in the end, before hours of work.
fn check_out(out: &Path, recipe: &Recipe) -> Result<()> {
    let shown = out.display();
    if out.is_dir() {
        bail!("-o {shown} is a folder: name a file in it, such as {}", out.join("tokenizer.json").display());
    }
    if let Some(dir) = out.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()) {
        bail!("-o {shown}: there is no folder {}, make it first", dir.display());
    }
    let is_bytes = matches!(recipe, Recipe::Bytes(trainer) if trainer.kind == Kind::Bpe);
    if is_tiktoken(out) && !is_bytes {
        bail!("-o {shown}: tiktoken ranks are --kind bpe only, write a tokenizer.json");
    }
    Ok(())
}

fn is_tiktoken(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tiktoken")
}

fn count_bytes(trainer: &Trainer, corpus: &Corpus, watch: &mut Watch<'_>) -> Result<(Tokenizer, Seen)> {
    let mut counter = trainer.counter()?;
    let mut seen = Seen::default();
    for (input_idx, input) in corpus.inputs().iter().enumerate() {
        // What is wrong in a pipe is found too late to leave it out; files are looked through first.
        if corpus.kind(input) == DocumentKind::File && input.is_large() {
            if seen.accepts_input(input)? {
                let before = counter.n_bytes();
                counter.add_reader(input.open()?, watch).with_context(|| input.name())?;
                seen.n_bytes += counter.n_bytes() - before;
            }
            continue;
        }
        let mut documents = corpus.documents().only(input_idx, seen);
        while let Some(document) = documents.next()? {
            counter.add(&corpus.text(document)?, watch)?;
        }
        seen = documents.seen;
    }
    Ok((counter.finish(watch)?, seen))
}

fn count_chars(
    trainer: &SentencePieceTrainer,
    corpus: &Corpus,
    watch: &mut Watch<'_>,
) -> Result<(Tokenizer, Seen)> {
    let failed: RefCell<Option<anyhow::Error>> = RefCell::default();
    let mut documents = corpus.documents().in_parts();
    let texts = std::iter::from_fn(|| {
        let next = documents.next();
        let text = next.and_then(|document| document.map(|document| corpus.text(document)).transpose());
        text.unwrap_or_else(|error| {
            *failed.borrow_mut() = Some(error);
            None
        })
    });
    // The trainer sees the end of the corpus; that it came too early is known here.
    let mut observer = |progress: Progress| match *failed.borrow() {
        Some(_) => ControlFlow::Break(()),
        None => watch.observe(progress),
    };
    let trained = trainer.train(texts, &mut observer);
    match failed.into_inner() {
        Some(error) => Err(error),
        None => Ok((trained?, documents.seen)),
    }
}

/// Shows how far training has come, and asks it to stop when a signal came.
struct Watch<'a> {
    /// Bytes of the corpus, if known.
    n_bytes: Option<u64>,
    stop: &'a Stop,
    common: Common,
    /// The stage that is shown, and whether it is over while the next has not begun.
    drawn: Option<((Stage, bool), Bar)>,
}

impl Observer for Watch<'_> {
    fn observe(&mut self, progress: Progress) -> ControlFlow<()> {
        let Progress { stage, done, total } = progress;
        let shown = (stage, stage == Stage::Count && self.n_bytes.is_some_and(|n_bytes| done >= n_bytes));
        if self.drawn.as_ref().is_none_or(|(drawn, _)| *drawn != shown) {
            // The old bar goes before the new one comes.
            self.drawn = None;
            let quiet = self.common.quiet;
            let bar = match shown {
                (_, true) => Bar::busy("preparing", quiet),
                (Stage::Count, _) => Bar::new("counting", Unit::Bytes, self.n_bytes, quiet),
                (Stage::Arrange, _) => Bar::new("arranging", Unit::Items, total, quiet),
                (Stage::Merge, _) => Bar::new("merging", Unit::Items, total, quiet),
                (Stage::Prune, _) => Bar::new("pruning", Unit::Items, total, quiet),
            };
            self.drawn = Some((shown, bar));
        }
        if let Some((_, bar)) = self.drawn.as_ref().filter(|(shown, _)| !shown.1) {
            bar.set(done);
        }
        match self.stop.exit_code() {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    }
}

fn is_cancelled(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Error::Cancelled)))
}

fn save(tokenizer: &Tokenizer, out: &Path, common: Common) -> Result<()> {
    if !is_tiktoken(out) {
        return Ok(tokenizer.save(out)?);
    }
    tokenizer.save_tiktoken(out)?;
    common
        .note("tiktoken ranks have neither the split nor the special tokens: who reads them must know both");
    Ok(())
}

fn report(tokenizer: &Tokenizer, seen: &Seen, args: &TokenizerTrain, seconds: f64, common: Common) {
    let (n, asked) = (tokenizer.vocab_size(), args.vocab_size);
    let fewer = if n < asked { format!(" ({asked} asked: the text has no more)") } else { String::new() };
    common.note(&format!(
        "{n} tokens{fewer} from {} bytes in {} ({:.1} MB/s), written to {}",
        seen.n_bytes,
        progress::seconds(seconds),
        seen.n_bytes as f64 / 1e6 / seconds.max(1e-9),
        args.out.display()
    ));
}
