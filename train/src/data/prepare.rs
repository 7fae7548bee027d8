//! Splitting, tokenizing and keeping the data of a phase.
//!
//! Plain text is tokenized once into the run's folder. What is there is used again if it was made from
//! the same sources with the same tokenizer and settings, and made anew otherwise.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use model::files;
use model::rng::Rng;
use serde::{Deserialize, Serialize};
use tokenizer::Tokenizer;
use tokenizer::chat::{ChatFormat, Rendered};

use super::samples::{Samples, windows_per_epoch};
use super::shards::{Tokens, Writer};
use super::source::{self, Source};
use crate::config::DataConfig;
use crate::error::Error;

/// The data of a phase, ready to be read.
#[derive(Clone, Debug)]
pub enum Corpus {
    /// Plain text.
    Text {
        /// What is learnt.
        train: Arc<Tokens>,
        /// What is only evaluated; may be empty.
        valid: Arc<Tokens>,
    },
    /// Conversations.
    Chat {
        /// What is learnt.
        train: Arc<Vec<Rendered>>,
        /// What is only evaluated; may be empty.
        valid: Arc<Vec<Rendered>>,
    },
}

impl Corpus {
    /// `n` training samples from the `first` on.
    pub fn train_samples(&self, seq_len: usize, seed: u64, first: usize, n: usize) -> Samples {
        match self {
            Self::Text { train, .. } => Samples::windows(train.clone(), seq_len, seed, first, n),
            Self::Chat { train, .. } => Samples::conversations(train.clone(), seed, first, n),
        }
    }

    /// At most `limit` validation samples (0: all).
    pub fn valid_samples(&self, seq_len: usize, limit: usize) -> Samples {
        match self {
            Self::Text { valid, .. } => Samples::grid(valid.clone(), seq_len, limit),
            Self::Chat { valid, .. } => Samples::list(valid.clone(), limit),
        }
    }

    /// Samples until everything was seen once.
    pub fn samples_per_epoch(&self, seq_len: usize) -> usize {
        match self {
            Self::Text { train, .. } => windows_per_epoch(train.len(), seq_len),
            Self::Chat { train, .. } => train.len(),
        }
    }

    /// Tokens of the training and of the validation part.
    pub fn n_tokens(&self) -> (usize, usize) {
        let chat = |all: &[Rendered]| all.iter().map(|r| r.ids.len()).sum();
        match self {
            Self::Text { train, valid } => (train.len(), valid.len()),
            Self::Chat { train, valid } => (chat(train), chat(valid)),
        }
    }

    /// Checks that a sequence of `seq_len` tokens can be had at all.
    ///
    /// # Errors
    /// What there is and what is asked for.
    pub fn check(&self, seq_len: usize) -> Result<(), Error> {
        match self {
            Self::Text { train, .. } if train.len() <= seq_len => Err(Error::Data(format!(
                "the training text has {} tokens, one sequence needs {}: use more text or a smaller `train.seq_len`",
                train.len(),
                seq_len + 1
            ))),
            Self::Text { valid, .. } if !valid.is_empty() && valid.len() <= seq_len => {
                Err(Error::Data(format!(
                    "the validation text has {} tokens, one sequence needs {}: raise `data.valid_fraction`, or set it to 0",
                    valid.len(),
                    seq_len + 1
                )))
            }
            Self::Chat { train, valid } => {
                match train.iter().chain(valid.iter()).map(|r| r.ids.len() - 1).find(|&n| n > seq_len) {
                    Some(n) => Err(Error::Data(format!(
                        "a conversation has {n} tokens, a sequence holds {seq_len}: shorten it or raise `model.context`"
                    ))),
                    None => Ok(()),
                }
            }
            Self::Text { .. } => Ok(()),
        }
    }
}

/// Says what happens on the way, for people.
pub type Notice<'a> = &'a dyn Fn(&str);

/// Trains a vocabulary on the training parts of several phases. Documents are read one source at a time.
///
/// # Errors
/// If a source cannot be read, or the trainer refuses.
pub fn train_tokenizer(
    trainer: &tokenizer::train::Trainer,
    phases: &[(&DataConfig, u64)],
    notice: Notice<'_>,
) -> Result<Tokenizer, Error> {
    let mut failed = None;
    let mut texts = Vec::with_capacity(phases.len());
    for &(config, seed) in phases {
        texts.push(Documents::open(config, seed)?);
    }
    let documents = texts.iter_mut().flatten().map_while(|document| match document {
        Ok(document) => Some(document),
        Err(e) => {
            failed = Some(e);
            None
        }
    });
    let tokenizer = trainer.train(documents.filter(|d| !d.is_valid).map(|d| d.text));
    match failed {
        Some(e) => Err(e),
        None => {
            texts.iter().for_each(|documents| documents.report(notice));
            Ok(tokenizer?)
        }
    }
}

/// The data of phase `phase_idx`, tokenized into `dir` or taken from there.
///
/// # Errors
/// If there is no data, or it cannot be read or written.
pub fn prepare(
    config: &DataConfig,
    tokenizer: &Tokenizer,
    dir: &Path,
    phase_idx: usize,
    seed: u64,
    notice: Notice<'_>,
) -> Result<Corpus, Error> {
    let documents = Documents::open(config, seed)?;
    if documents.sources[0].is_conversations() {
        return chat(config, &documents.sources, tokenizer, seed);
    }
    let dir = dir.join(format!("phase-{phase_idx}"));
    let wanted = fingerprint(config, &documents.sources, tokenizer, seed);
    if let Some((train, valid)) = read_index(&dir, &wanted) {
        let open = |names: &[String]| {
            Tokens::open(&names.iter().map(|n| dir.join(n)).collect::<Vec<_>>(), tokenizer.hash())
        };
        match (open(&train), open(&valid)) {
            (Ok(train), Ok(valid)) => return Ok(Corpus::Text { train: train.into(), valid: valid.into() }),
            (Err(e), _) | (_, Err(e)) => notice(&format!("{e}; tokenizing again")),
        }
    }
    tokenize(documents, tokenizer, &dir, notice, wanted)
}

/// Bytes of text that are tokenized together: enough for all threads, little beside a model.
const BATCH_BYTES: usize = 8 << 20;

fn tokenize(
    mut documents: Documents,
    tokenizer: &Tokenizer,
    dir: &Path,
    notice: Notice<'_>,
    fingerprint: String,
) -> Result<Corpus, Error> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(Error::io(dir))?;
    }
    files::create_dir(dir).map_err(Error::io(dir))?;
    let writer = |name| Writer::new(dir, name, tokenizer.vocab_size(), tokenizer.hash());
    let (mut train, mut valid) = (writer("train"), writer("valid"));
    loop {
        let batch = documents.next_batch()?;
        if batch.is_empty() {
            break;
        }
        for (document, mut ids) in batch.iter().zip(tokenizer.encode_batch(&batch)) {
            ids.extend(tokenizer.eos_id());
            if document.is_valid { valid.push(&ids) } else { train.push(&ids) }?;
        }
    }
    documents.report(notice);
    let (train, valid) = (train.finish()?, valid.finish()?);
    write_index(dir, fingerprint, &train, &valid)?;
    let open = |paths: &[PathBuf]| Tokens::open(paths, tokenizer.hash()).map(Arc::new);
    let (train, valid) = (open(&train)?, open(&valid)?);
    let n_sources = documents.sources.len();
    if train.is_empty() {
        return Err(Error::Data(format!(
            "`{}` holds no text to learn from",
            documents.config.paths.join("`, `")
        )));
    }
    notice(&format!(
        "tokenized {n_sources} files: {} tokens to learn, {} to validate",
        train.len(),
        valid.len()
    ));
    Ok(Corpus::Text { train, valid })
}

/// A document and whether it is for validation.
struct Document {
    text: String,
    is_valid: bool,
}

impl AsRef<str> for Document {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

/// The documents of a phase in order, one source in memory at a time: the messages of conversations, the
/// lines or files of plain text.
///
/// For validation are the last part of a single document, else whole documents drawn by the seed.
struct Documents {
    config: DataConfig,
    seed: u64,
    sources: Vec<Source>,
    /// Sources beyond `max_bytes`.
    n_left_out: usize,
    next_source: usize,
    waiting: std::collections::VecDeque<Document>,
    n_seen: u64,
    not_utf8: Vec<String>,
}

impl Documents {
    fn open(config: &DataConfig, seed: u64) -> Result<Self, Error> {
        let (sources, n_left_out) = source::find(config)?;
        Ok(Self {
            config: config.clone(),
            seed,
            sources,
            n_left_out,
            next_source: 0,
            waiting: Default::default(),
            n_seen: 0,
            not_utf8: Vec::new(),
        })
    }

    /// The next documents, a few megabytes or one; none at the end.
    fn next_batch(&mut self) -> Result<Vec<Document>, Error> {
        let (mut batch, mut n_bytes) = (Vec::new(), 0);
        while n_bytes < BATCH_BYTES
            && let Some(document) = self.next().transpose()?
        {
            n_bytes += document.text.len();
            batch.push(document);
        }
        Ok(batch)
    }

    /// Says what was left out.
    fn report(&self, notice: Notice<'_>) {
        if let Some(first) = self.not_utf8.first() {
            notice(&format!(
                "{} files are not UTF-8 and were left out, the first is {first}",
                self.not_utf8.len()
            ));
        }
        if self.n_left_out > 0 {
            let limit = self.config.max_bytes;
            notice(&format!(
                "{} files lie beyond `data.max_bytes`, {limit}, and were left out",
                self.n_left_out
            ));
        }
    }

    /// Reads the next source.
    fn fill(&mut self) -> Result<(), Error> {
        let source = &self.sources[self.next_source];
        self.next_source += 1;
        if source.is_conversations() {
            let messages = source::conversations(source)?.into_iter().flatten();
            self.waiting.extend(messages.map(|m| Document { text: m.content, is_valid: false }));
            return Ok(());
        }
        let Some(text) = source.read()? else {
            self.not_utf8.push(source.name());
            return Ok(());
        };
        let documents = source::documents(&text, self.config.documents);
        if let (1, [only]) = (self.sources.len(), &documents[..]) {
            let cut = ((1.0 - self.config.valid_fraction) * only.len() as f64) as usize;
            let (learnt, kept) = only.split_at(only.floor_char_boundary(cut));
            let parts = [(learnt, false), (kept, true)].into_iter().filter(|(text, _)| !text.is_empty());
            self.waiting.extend(parts.map(|(text, is_valid)| Document { text: text.to_owned(), is_valid }));
            return Ok(());
        }
        for document in documents {
            let is_valid = self.is_valid();
            self.waiting.push_back(Document { text: document.to_owned(), is_valid });
        }
        Ok(())
    }

    /// Whether the next document is for validation. The first one is always learnt and the second, if
    /// anything is validated at all, is: so neither part of a small corpus is empty by chance.
    fn is_valid(&mut self) -> bool {
        self.n_seen += 1;
        match self.n_seen {
            1 => false,
            2 => self.config.valid_fraction > 0.0,
            n => Rng::stream(self.seed, n).uniform() < self.config.valid_fraction,
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.waiting.is_empty() && self.next_source < self.sources.len() {
            if let Err(e) = self.fill() {
                return Some(Err(e));
            }
        }
        self.waiting.pop_front().map(Ok)
    }
}

fn all_conversations(sources: &[Source]) -> Result<Vec<Vec<tokenizer::chat::Message>>, Error> {
    let mut all = Vec::new();
    for source in sources {
        all.extend(source::conversations(source)?);
    }
    match all.is_empty() {
        true => Err(Error::Data(format!("{}: no conversations in it", sources[0].name()))),
        false => Ok(all),
    }
}

fn chat(config: &DataConfig, sources: &[Source], tokenizer: &Tokenizer, seed: u64) -> Result<Corpus, Error> {
    let format = ChatFormat::new(tokenizer)?;
    let (mut train, mut valid) = (Vec::new(), Vec::new());
    for (idx, messages) in all_conversations(sources)?.into_iter().enumerate() {
        let rendered = format.render(tokenizer, &messages, false)?;
        let drawn = Rng::stream(seed, idx as u64).uniform() < config.valid_fraction;
        if drawn && idx > 0 { valid.push(rendered) } else { train.push(rendered) }
    }
    Ok(Corpus::Chat { train: train.into(), valid: valid.into() })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    fingerprint: String,
    train: Vec<String>,
    valid: Vec<String>,
}

fn fingerprint(config: &DataConfig, sources: &[Source], tokenizer: &Tokenizer, seed: u64) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(
        format!("{:016x} {seed} {:?} {}\n", tokenizer.hash(), config.documents, config.valid_fraction)
            .as_bytes(),
    );
    sources.iter().for_each(|source| {
        hash.update(source.fingerprint().as_bytes()).update(b"\n");
    });
    hash.finalize().to_hex().to_string()
}

fn read_index(dir: &Path, fingerprint: &str) -> Option<(Vec<String>, Vec<String>)> {
    let text = fs::read(dir.join("index.json")).ok()?;
    let index: Index = serde_json::from_slice(&text).ok()?;
    let plain = |names: &[String]| names.iter().all(|n| !n.contains(['/', '\\']));
    (index.fingerprint == fingerprint && plain(&index.train) && plain(&index.valid))
        .then_some((index.train, index.valid))
}

fn write_index(dir: &Path, fingerprint: String, train: &[PathBuf], valid: &[PathBuf]) -> Result<(), Error> {
    let names = |paths: &[PathBuf]| {
        paths.iter().map(|p| p.file_name().unwrap_or_default().to_string_lossy().into_owned()).collect()
    };
    let index = Index { fingerprint, train: names(train), valid: names(valid) };
    let path = dir.join("index.json");
    files::write_atomic(&path, |f| Ok(serde_json::to_writer_pretty(f, &index)?)).map_err(Error::io(&path))
}
