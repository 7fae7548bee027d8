//! `flint tokenizer encode -o`: corpora to memory-mapped token shards.
//!
//! While the threads encode a batch of documents, one of them writes the batch before and reads the next. Shards and
//! the file that describes them are made in a folder beside the target, which gets its name when all is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use burn::train::Interrupter;
use rayon::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokenizer::{EncodeOptions, Tokenizer};
use train::data::shards::Writer;

use super::Common;
use super::corpus::{Corpus, Document, Documents, Seen};
use crate::args::{DocumentKind, TokenizerEncode};
use crate::bar::{Bar, Unit};
use crate::stop::Stop;
use crate::{output, progress};

/// How long encoding may take to notice a signal.
const GRACE: Duration = Duration::from_secs(1);

/// Bytes of text that are encoded together: enough for all threads, little beside a vocabulary.
const BATCH_BYTES: u64 = 8 << 20;

pub fn run(args: &TokenizerEncode, common: Common) -> Result<ExitCode> {
    let out = args.out.as_deref().expect("the caller looked");
    let tokenizer = super::load(&args.tokenizer, args.split)?;
    super::note_truncation(&tokenizer, common);
    let job = Job { tokenizer: &tokenizer, options: args.special.options(), end: end_id(args, &tokenizer)? };
    if args.files.is_empty() {
        bail!("-o {} needs files, folders or globs to encode, or `-` for stdin", out.display());
    }
    let corpus = Corpus::find(&args.files, &args.corpus, DocumentKind::File)?;
    let stop = Stop::listen_once(Interrupter::new())?;
    let folder = new_folder(out)?;
    let unfinished = folder.path().to_owned();
    // A pipe may give nothing for hours.
    let insistence = stop.insist(GRACE, move || {
        let _ = fs::remove_dir_all(unfinished);
        common.note("\nstopped: nothing was written");
    })?;
    let begin = Instant::now();
    let writer = Writer::new(folder.path(), "tokens", tokenizer.vocab_size(), tokenizer.hash());
    let bar = Bar::new("encoding", Unit::Bytes, corpus.n_bytes(), common.quiet);
    let cut = |text: &str, from| job.tokenizer.safe_cut(text, from, job.options);
    let mut documents = corpus.documents().in_parts(&cut);
    let written = job.encode(&corpus, &mut documents, writer, &mut |n_bytes| {
        bar.set(n_bytes);
        stop.exit_code().is_none()
    });
    drop((bar, insistence));
    // From here on nobody removes the folder; a signal before may have.
    let written = if stop.exit_code().is_some() { None } else { written? };
    let Some((counts, shards)) = written else {
        common.note("stopped: nothing was written");
        return Ok(ExitCode::from(stop.exit_code().unwrap_or(2)));
    };
    documents.seen.report(common);
    if counts.n_documents == 0 {
        bail!("{}: no text to encode", args.files.join(", "));
    }
    let described = description(&job, &counts, &documents.seen, &shards);
    publish(folder, out, &described)?;
    report(&counts, out, begin.elapsed().as_secs_f64(), common);
    if args.json {
        output::json(&described)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What `tokens.json` says beside the shards.
fn description(job: &Job<'_>, counts: &Counts, seen: &Seen, shards: &[PathBuf]) -> Value {
    let names = shards.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy());
    json!({
        "documents": counts.n_documents,
        "tokens": counts.n_tokens,
        "bytes": counts.n_bytes,
        "left_out": { "not_utf8": seen.n_not_utf8, "empty": seen.n_blank },
        "vocab_size": job.tokenizer.vocab_size(),
        "tokenizer_hash": format!("{:016x}", job.tokenizer.hash()),
        "end_id": job.end,
        "shards": names.collect::<Vec<_>>(),
    })
}

/// The id after each document.
fn end_id(args: &TokenizerEncode, tokenizer: &Tokenizer) -> Result<Option<u32>> {
    match args.end_token.as_deref() {
        Some("none") => Ok(None),
        Some(token) => match tokenizer.token_to_id(token) {
            Some(id) => Ok(Some(id)),
            None => bail!("--end-token `{token}` is no token of this tokenizer"),
        },
        None => match tokenizer.eos_id() {
            Some(id) => Ok(Some(id)),
            None => bail!(
                "this tokenizer names no end of text: say which token goes after each document with --end-token, \
                 or `--end-token none`"
            ),
        },
    }
}

/// A folder beside `out` that becomes `out`; dropped before, it vanishes.
fn new_folder(out: &Path) -> Result<TempDir> {
    let is_used = fs::read_dir(out).map(|mut entries| entries.next().is_some());
    if is_used.unwrap_or_else(|_| out.exists()) {
        bail!("-o {} is there already: name a new folder, or remove it", out.display());
    }
    let parent = out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let make = || {
        model::files::create_dir(parent)?;
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Private by default; data is as readable as the user's umask says.
            builder.permissions(fs::Permissions::from_mode(0o777));
        }
        builder.prefix(".tokens-").tempdir_in(parent)
    };
    make().with_context(|| format!("cannot make a folder for {}", out.display()))
}

/// Describes the shards and gives the folder its name.
fn publish(folder: TempDir, out: &Path, described: &Value) -> Result<()> {
    let write = || {
        model::files::write_atomic(&folder.path().join("tokens.json"), |f| {
            Ok(serde_json::to_writer_pretty(f, described)?)
        })?;
        if out.is_dir() {
            // An empty one, or this fails.
            fs::remove_dir(out)?;
        }
        fs::rename(folder.path(), out)?;
        model::files::sync_dir(
            out.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        )
    };
    write().with_context(|| format!("cannot write {}", out.display()))?;
    // It has another name now: nothing is left to remove.
    let _ = folder.keep();
    Ok(())
}

/// What was written.
#[derive(Default)]
struct Counts {
    n_documents: u64,
    n_tokens: u64,
    n_bytes: u64,
}

/// How a document becomes ids.
struct Job<'a> {
    tokenizer: &'a Tokenizer,
    options: EncodeOptions,
    end: Option<u32>,
}

/// Ids of a document or of a part of one.
struct Encoded {
    ids: Vec<u32>,
    /// Bytes of text that they stand for.
    n_bytes: usize,
    /// Whether the document ends with it.
    ends: bool,
}

impl Job<'_> {
    /// Encodes all documents in order, or until `goes_on` says no; it is told how many bytes were read.
    fn encode(
        &self,
        corpus: &Corpus,
        documents: &mut Documents<'_>,
        mut writer: Writer,
        goes_on: &mut (dyn FnMut(u64) -> bool + Send),
    ) -> Result<Option<(Counts, Vec<PathBuf>)>> {
        let mut counts = Counts::default();
        let (mut batch, mut encoded) = (next_batch(documents)?, Vec::new());
        while !batch.is_empty() || !encoded.is_empty() {
            if !goes_on(documents.seen.n_bytes) {
                return Ok(None);
            }
            let write_and_read = || {
                counts.write(&mut writer, std::mem::take(&mut encoded))?;
                next_batch(documents)
            };
            let (now, next) = rayon::join(|| self.batch(corpus, batch), write_and_read);
            (encoded, batch) = (now?, next?);
        }
        Ok(Some((counts, writer.finish()?)))
    }

    fn batch(&self, corpus: &Corpus, batch: Vec<Document>) -> Result<Vec<Encoded>> {
        // Ids grow in a buffer and are copied: a batch of short documents would hold far more room than ids.
        let encode = |buffer: &mut Vec<u32>, document: Document| {
            let Document { begins, ends, .. } = document;
            let text = corpus.text(document)?;
            buffer.clear();
            self.part(&text, begins, ends, buffer);
            Ok(Encoded { ids: buffer.to_vec(), n_bytes: text.len(), ends })
        };
        let encoded: Vec<Result<_>> = batch.into_par_iter().map_init(Vec::new, encode).collect();
        // Of several errors, the first in the corpus, whichever thread was faster.
        encoded.into_iter().collect()
    }

    /// Appends the ids of a part of a document, and what goes before and after all of it.
    fn part(&self, text: &str, begins: bool, ends: bool, ids: &mut Vec<u32>) {
        let none: (&[u32], &[u32]) = Default::default();
        let (before, after) = if self.options.add_special { self.tokenizer.around() } else { none };
        if begins {
            ids.extend_from_slice(before);
        }
        if self.options.parse_special {
            let options = EncodeOptions { add_special: false, ..self.options };
            ids.extend(self.tokenizer.encode_with(text, options));
        } else {
            self.tokenizer.encode_into(text, ids);
        }
        if ends {
            ids.extend_from_slice(after);
            // The tokenizer's file may have put it there already.
            if after.last() != self.end.as_ref() {
                ids.extend(self.end);
            }
        }
    }
}

fn next_batch(documents: &mut Documents<'_>) -> Result<Vec<Document>> {
    let (mut batch, full) = (Vec::new(), documents.seen.n_bytes + BATCH_BYTES);
    while documents.seen.n_bytes < full {
        match documents.next()? {
            Some(document) => batch.push(document),
            None => break,
        }
    }
    Ok(batch)
}

impl Counts {
    fn write(&mut self, writer: &mut Writer, encoded: Vec<Encoded>) -> Result<()> {
        for Encoded { ids, n_bytes, ends } in encoded {
            writer.push(&ids)?;
            self.n_documents += u64::from(ends);
            self.n_tokens += ids.len() as u64;
            self.n_bytes += n_bytes as u64;
        }
        Ok(())
    }
}

fn report(counts: &Counts, out: &Path, seconds: f64, common: Common) {
    let Counts { n_documents, n_tokens, n_bytes } = *counts;
    common.note(&format!(
        "{n_documents} documents, {n_tokens} tokens, {:.2} bytes per token, in {} ({:.1} MB/s), written to {}",
        n_bytes as f64 / n_tokens.max(1) as f64,
        progress::seconds(seconds),
        n_bytes as f64 / 1e6 / seconds.max(1e-9),
        out.display()
    ));
}
