//! Documents from files, folders, globs and stdin, one after the other: a corpus is never in memory as a whole.
//!
//! What is left out is remembered, and [`Seen::report`] says it. Text that is not UTF-8 is left out: in a folder it is
//! an image or a program, from which a vocabulary learns nothing good.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use train::data::source::{self, Source};

use crate::args::{CorpusArgs, DocumentKind};
use crate::commands::Common;

/// Bytes up to which a file is read at once.
const AT_ONCE: u64 = 8 << 20;

/// Where text comes from, and how it is cut into documents.
pub struct Corpus {
    inputs: Vec<Input>,
    /// What a document is, if the user said so, and else in all but `.jsonl` files.
    asked: Option<DocumentKind>,
    otherwise: DocumentKind,
    field: String,
}

/// A stream of bytes.
pub enum Input {
    /// The standard input.
    Stdin,
    /// A file or an embedded text.
    Source(Source),
}

/// Bytes of a part of a document, at least. Large enough that threads share them out seldom.
const PART: usize = 1 << 20;

/// Tells the first place from a byte on where a text may be cut in parts.
pub type CutPart<'a> = &'a (dyn Fn(&str, usize) -> Option<usize> + Sync);

/// A document or a part of one; or with [`DocumentKind::Jsonl`] the line that has it: many threads parse faster than one.
pub struct Document {
    content: String,
    /// File and number of the line, if it is JSON.
    json: Option<(usize, u64)>,
    /// Whether it begins with this.
    pub begins: bool,
    /// Whether it ends with this.
    pub ends: bool,
}

impl Document {
    fn whole(content: String, json: Option<(usize, u64)>) -> Self {
        Self { content, json, begins: true, ends: true }
    }
}

/// What was met while reading.
#[derive(Debug, Default)]
pub struct Seen {
    /// Bytes read.
    pub n_bytes: u64,
    /// Documents without any visible character, which were left out.
    pub n_blank: u64,
    /// Documents that are not UTF-8, which were left out.
    pub n_not_utf8: u64,
    /// Where the first of them is.
    first_not_utf8: Option<String>,
}

impl Corpus {
    /// Finds the files. Unless the arguments or a file's name say what a document is, it is as `otherwise` says.
    pub fn find(paths: &[String], args: &CorpusArgs, otherwise: DocumentKind) -> Result<Self> {
        let mut inputs = Vec::new();
        for path in paths {
            match path.as_str() {
                "-" => inputs.push(Input::Stdin),
                _ => inputs
                    .extend(source::list(std::slice::from_ref(path), &[])?.into_iter().map(Input::Source)),
            }
        }
        let field = args.field.clone().unwrap_or_else(|| "text".to_owned());
        let corpus = Self { inputs, asked: args.documents, otherwise, field };
        let has_json = corpus.inputs.iter().any(|input| corpus.kind(input) == DocumentKind::Jsonl);
        if args.field.is_some() && !has_json {
            bail!("--field has no meaning here: no input is JSON lines (`.jsonl`, or --documents jsonl)");
        }
        Ok(corpus)
    }

    /// The streams in order.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// Bytes in all, if that is known.
    pub fn n_bytes(&self) -> Option<u64> {
        self.inputs.iter().map(Input::n_bytes).sum()
    }

    /// What a document of this input is.
    pub fn kind(&self, input: &Input) -> DocumentKind {
        let is_json = input.name().ends_with(".jsonl");
        self.asked.unwrap_or(if is_json { DocumentKind::Jsonl } else { self.otherwise })
    }

    /// All documents, from the first on.
    pub fn documents(&self) -> Documents<'_> {
        let inputs = 0..self.inputs.len();
        Documents { corpus: self, inputs, cut: &|_, _| None, lines: None, parts: None, seen: Seen::default() }
    }

    /// The text of a document.
    pub fn text(&self, document: Document) -> Result<String> {
        let Some((input_idx, line)) = document.json else { return Ok(document.content) };
        let place = || format!("{}, line {line}", self.inputs[input_idx].name());
        match serde_json::from_str(&document.content).with_context(place)? {
            Value::String(text) => Ok(text),
            Value::Object(mut object) => match object.remove(&self.field) {
                Some(Value::String(text)) => Ok(text),
                Some(_) => bail!("{}: `{}` is no string", place(), self.field),
                None => {
                    let names = object.keys().map(String::as_str).collect::<Vec<_>>().join("`, `");
                    bail!("{}: no field `{}`; name one of `{names}` with --field", place(), self.field)
                }
            },
            _ => bail!("{}: neither an object nor a string", place()),
        }
    }
}

impl Input {
    /// For messages.
    pub fn name(&self) -> String {
        match self {
            Self::Stdin => "stdin".to_owned(),
            Self::Source(source) => source.name(),
        }
    }

    /// Whether all of it is best not held in memory: large, or a pipe of unknown size.
    pub fn is_large(&self) -> bool {
        self.n_bytes().is_none_or(|n_bytes| n_bytes > AT_ONCE)
    }

    /// A file that can be read twice, which a pipe cannot.
    fn regular_file(&self) -> Option<(&Path, u64)> {
        match self {
            Self::Source(Source::File(path, n_bytes)) if path.is_file() => Some((path, *n_bytes)),
            _ => None,
        }
    }

    fn n_bytes(&self) -> Option<u64> {
        match self {
            Self::Source(source @ Source::Embedded(..)) => Some(source.bytes()),
            _ => self.regular_file().map(|(_, n_bytes)| n_bytes),
        }
    }

    /// Opens the stream.
    pub fn open(&self) -> Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Stdin => Box::new(io::stdin()),
            Self::Source(Source::Embedded(_, text)) => Box::new(text.as_bytes()),
            Self::Source(Source::File(path, _)) => {
                Box::new(File::open(path).with_context(|| format!("cannot read {}", path.display()))?)
            }
        })
    }
}

/// Reads documents one by one.
pub struct Documents<'a> {
    corpus: &'a Corpus,
    /// Inputs that are not begun.
    inputs: std::ops::Range<usize>,
    cut: CutPart<'a>,
    lines: Option<Lines>,
    parts: Option<Parts>,
    /// What was met so far.
    pub seen: Seen,
}

/// An input that is read line by line.
struct Lines {
    reader: BufReader<Box<dyn Read + Send>>,
    input_idx: usize,
    is_json: bool,
    n_lines: u64,
}

/// A large input that is read part by part.
struct Parts {
    reader: Box<dyn Read + Send>,
    input_idx: usize,
    /// What was read and not given out, and the bytes before it.
    pending: Vec<u8>,
    n_before: u64,
}

impl<'a> Documents<'a> {
    /// Reads this input alone, and adds to what was seen.
    pub fn only(self, input_idx: usize, seen: Seen) -> Self {
        Self { inputs: input_idx..input_idx + 1, seen, ..self }
    }

    /// Gives large files in parts, if `cut` finds places to cut them, so that no more than a few parts are in memory.
    pub fn in_parts(self, cut: CutPart<'a>) -> Self {
        Self { cut, ..self }
    }

    /// The next document.
    pub fn next(&mut self) -> Result<Option<Document>> {
        loop {
            if let Some(document) = self.next_line()? {
                return Ok(Some(document));
            }
            if let Some(part) = self.next_part()? {
                return Ok(Some(part));
            }
            let Some(input_idx) = self.inputs.next() else { return Ok(None) };
            if let Some(document) = self.begin(input_idx)? {
                return Ok(Some(document));
            }
        }
    }

    /// Opens an input; the document, if all of it is one.
    fn begin(&mut self, input_idx: usize) -> Result<Option<Document>> {
        let input = &self.corpus.inputs[input_idx];
        let kind = self.corpus.kind(input);
        if kind != DocumentKind::File {
            let reader = BufReader::with_capacity(1 << 20, input.open()?);
            self.lines = Some(Lines { reader, input_idx, is_json: kind == DocumentKind::Jsonl, n_lines: 0 });
            return Ok(None);
        }
        // What is wrong in a file must be known before any part of it is given out.
        if input.is_large() && !self.seen.accepts_input(input)? {
            return Ok(None);
        }
        self.parts = Some(Parts { reader: input.open()?, input_idx, pending: Vec::new(), n_before: 0 });
        Ok(None)
    }

    /// The next part of a large input, or all of one that is not large or cannot be cut.
    fn next_part(&mut self) -> Result<Option<Document>> {
        let Some(parts) = &mut self.parts else { return Ok(None) };
        let input = &self.corpus.inputs[parts.input_idx];
        let begins = parts.n_before == 0;
        // Small files are read at once.
        let mut wanted = if begins { AT_ONCE as usize } else { 2 * PART };
        loop {
            let n_more = wanted.saturating_sub(parts.pending.len()) as u64;
            let n_read = parts.reader.by_ref().take(n_more).read_to_end(&mut parts.pending);
            let n_read = n_read.with_context(|| format!("cannot read {}", input.name()))? as u64;
            self.seen.n_bytes += n_read;
            if n_read < n_more {
                break;
            }
            let (n_valid, is_damaged) = match std::str::from_utf8(&parts.pending) {
                Ok(text) => (text.len(), false),
                Err(error) => (error.valid_up_to(), error.error_len().is_some()),
            };
            let text = std::str::from_utf8(&parts.pending[..n_valid]).unwrap_or_default();
            if let Some(at) = (self.cut)(text, PART.min(n_valid)) {
                let content = text[..at].to_owned();
                parts.pending.drain(..at);
                parts.n_before += at as u64;
                return Ok(Some(Document { content, json: None, begins, ends: false }));
            }
            if is_damaged {
                break;
            }
            wanted *= 2;
        }
        let Some(Parts { pending, n_before, .. }) = self.parts.take() else { return Ok(None) };
        if begins {
            return Ok(self
                .seen
                .text(pending, || input.name())
                .map(|content| Document::whole(content, None)));
        }
        match String::from_utf8(pending) {
            Ok(content) => Ok(Some(Document { content, json: None, begins, ends: true })),
            // A pipe, or a file that changed since it was looked at.
            Err(error) => {
                let at = n_before + error.utf8_error().valid_up_to() as u64;
                bail!("{}: byte {at} is not UTF-8", input.name())
            }
        }
    }

    fn next_line(&mut self) -> Result<Option<Document>> {
        let Some(lines) = &mut self.lines else { return Ok(None) };
        let input = &self.corpus.inputs[lines.input_idx];
        loop {
            let mut line = Vec::new();
            let n_read = lines.reader.read_until(b'\n', &mut line);
            let n_read = n_read.with_context(|| format!("cannot read {}", input.name()))?;
            if n_read == 0 {
                self.lines = None;
                return Ok(None);
            }
            self.seen.n_bytes += n_read as u64;
            lines.n_lines += 1;
            let place = || format!("line {} of {}", lines.n_lines, input.name());
            if let Some(content) = self.seen.text(trim_end_of_line(line), place) {
                let json = lines.is_json.then_some((lines.input_idx, lines.n_lines));
                return Ok(Some(Document::whole(content, json)));
            }
        }
    }
}

impl Seen {
    /// The bytes as text, if they are a document.
    fn text(&mut self, bytes: Vec<u8>, place: impl FnOnce() -> String) -> Option<String> {
        match String::from_utf8(bytes) {
            Ok(text) if text.trim().is_empty() => {
                self.n_blank += 1;
                None
            }
            Ok(text) => Some(text),
            Err(error) => {
                let at = error.utf8_error().valid_up_to();
                self.leave_out(format!("{}, byte {at}", place()));
                None
            }
        }
    }

    /// Whether all of an input is UTF-8, if it can be read twice.
    pub fn accepts_input(&mut self, input: &Input) -> Result<bool> {
        input.regular_file().map_or(Ok(true), |(path, n_bytes)| self.accepts(path, n_bytes))
    }

    /// Whether all of a large file is UTF-8. It is read for that alone: counts cannot be taken back, and reading is
    /// cheap beside counting.
    fn accepts(&mut self, path: &Path, n_bytes: u64) -> Result<bool> {
        let found = File::open(path).and_then(first_not_utf8);
        let Some(at) = found.with_context(|| format!("cannot read {}", path.display()))? else {
            return Ok(true);
        };
        self.n_bytes += n_bytes;
        self.leave_out(format!("{}, byte {at}", path.display()));
        Ok(false)
    }

    fn leave_out(&mut self, place: String) {
        self.n_not_utf8 += 1;
        self.first_not_utf8.get_or_insert(place);
    }

    /// Says what was left out.
    pub fn report(&self, common: Common) {
        if let Some(first) = &self.first_not_utf8 {
            let n = self.n_not_utf8;
            common.note(&format!("{n} documents are not UTF-8 and were left out, the first is {first}"));
        }
        if self.n_blank > 0 {
            common.note(&format!("{} documents are empty and were left out", self.n_blank));
        }
    }
}

/// The place of the first byte that is not UTF-8.
fn first_not_utf8(mut reader: impl Read) -> io::Result<Option<u64>> {
    let (mut buffer, mut start) = (Vec::new(), 0);
    loop {
        let n_read = reader.by_ref().take(1 << 20).read_to_end(&mut buffer)?;
        let (n_valid, is_wrong) = match std::str::from_utf8(&buffer) {
            Ok(_) => (buffer.len(), false),
            // At the end of the buffer a character may go on.
            Err(error) => (error.valid_up_to(), n_read == 0 || error.error_len().is_some()),
        };
        if is_wrong {
            return Ok(Some(start + n_valid as u64));
        }
        if n_read == 0 {
            return Ok(None);
        }
        start += n_valid as u64;
        buffer.drain(..n_valid);
    }
}

/// A line without its end.
fn trim_end_of_line(mut line: Vec<u8>) -> Vec<u8> {
    line.pop_if(|byte| *byte == b'\n').and_then(|_| line.pop_if(|byte| *byte == b'\r'));
    line
}
