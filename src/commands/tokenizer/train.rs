//! `flint tokenizer train`: a vocabulary from a corpus that is read as a stream.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use burn::train::Interrupter;
use tokenizer::train::{Counter, Observer, Progress, SentencePieceTrainer, Stage, Trainer};
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
    let counter = recipe.counter()?;
    let corpus = Corpus::find(&args.files, &args.corpus, recipe.document())?;
    let stop = Stop::listen(Interrupter::new())?;
    // Some stages are long and cannot be asked to end; nothing is written before the last.
    let insistence = stop.insist(GRACE, move || common.note("\nstopped: nothing was written"))?;
    let begin = Instant::now();
    let mut watch = Watch { n_bytes: corpus.n_bytes(), stop: &stop, common, drawn: None };
    let trained = train(counter, &corpus, &mut watch);
    drop((watch, insistence));
    let (tokenizer, seen) = match (trained, stop.exit_code()) {
        (Err(error), Some(code)) if is_cancelled(&error) => {
            common.note("stopped: nothing was written");
            return Ok(ExitCode::from(code));
        }
        (trained, _) => trained?,
    };
    seen.report(common);
    let Some(tokenizer) = tokenizer else {
        bail!("{}: no text to train on, nothing was written", args.files.join(", "));
    };
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

    fn counter(&self) -> Result<Counter, Error> {
        match self {
            Self::Bytes(trainer) => trainer.counter(),
            Self::Chars(trainer) => trainer.counter(),
        }
    }

    /// What a document is by default. SentencePiece cuts text at spaces only, so that words on both sides of a line's
    /// end would become one piece; its own trainer takes lines too.
    fn document(&self) -> DocumentKind {
        match self {
            Self::Bytes(_) => DocumentKind::File,
            Self::Chars(_) => DocumentKind::Line,
        }
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
    let dir = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.is_dir() {
        bail!("-o {shown}: there is no folder {}, make it first", dir.display());
    }
    tempfile::tempfile_in(dir).with_context(|| format!("-o {shown}: cannot write to {}", dir.display()))?;
    let is_bytes = matches!(recipe, Recipe::Bytes(trainer) if trainer.kind == Kind::Bpe);
    if is_tiktoken(out) && !is_bytes {
        bail!("-o {shown}: tiktoken ranks are --kind bpe only, write a tokenizer.json");
    }
    Ok(())
}

fn is_tiktoken(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tiktoken")
}

/// Counts the corpus and trains on it; no tokenizer if there is no text.
fn train(mut counter: Counter, corpus: &Corpus, watch: &mut Watch<'_>) -> Result<(Option<Tokenizer>, Seen)> {
    let (mut seen, mut is_blank) = (Seen::default(), true);
    for (input_idx, input) in corpus.inputs().iter().enumerate() {
        // What is wrong in a pipe is found too late to leave it out; files are looked through first.
        if corpus.kind(input) == DocumentKind::File && input.is_large() {
            if seen.accepts_input(input)? {
                let before = counter.n_bytes();
                let mut reader = Looked { reader: input.open()?, is_blank };
                counter.add_reader(&mut reader, watch).with_context(|| input.name())?;
                is_blank = reader.is_blank;
                seen.n_bytes += counter.n_bytes() - before;
            }
            continue;
        }
        let mut documents = corpus.documents().only(input_idx, seen);
        while let Some(document) = documents.next()? {
            let text = corpus.text(document)?;
            is_blank &= text.trim().is_empty();
            counter.add(&text, watch)?;
        }
        seen = documents.seen;
    }
    let tokenizer = if is_blank { None } else { Some(counter.finish(watch)?) };
    Ok((tokenizer, seen))
}

/// A stream, and whether nothing visible has come out of it.
struct Looked<R> {
    reader: R,
    is_blank: bool,
}

impl<R: Read> Read for Looked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_read = self.reader.read(buffer)?;
        self.is_blank = self.is_blank && buffer[..n_read].trim_ascii().is_empty();
        Ok(n_read)
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
