//! Files: every format in which tokenizers come, told apart by what is in them.
//!
//! | format | what it is |
//! |---|---|
//! | `tokenizer.json` | Hugging Face's; read and written |
//! | `vocab.json` and `merges.txt`, `encoder.json` and `vocab.bpe` | GPT-2's two files |
//! | `*.tiktoken` | ranks of tiktoken, also as Llama 3's `tokenizer.model`; read and written |
//! | `*.model` | sentencepiece, BPE or Unigram |
//! | `*.gguf` | the vocabulary inside a model; read, and written as keys and values |
//!
//! What a file asks for and this crate cannot do is refused by its name: a part that were skipped would give other ids
//! in silence. Writing is atomic.

mod gguf;
mod gpt2;
mod read;
#[cfg(test)]
mod reference;
mod sentencepiece;
mod tiktoken;
mod write;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::definition::Definition;
use crate::{Error, Tokenizer};

pub use tiktoken::TiktokenEncoding;

/// Most bytes that are read. The largest vocabularies in use (about 260,000 tokens) take 35 MB.
const MAX_LEN: u64 = 512 << 20;

/// Bytes of a GGUF that are read at first: its vocabulary stands before the tensors, which may be any number.
const GGUF_HEAD: u64 = 32 << 20;

/// The names under which a model's folder may have its tokenizer, the best first.
const IN_FOLDER: [&str; 4] = ["tokenizer.json", "tokenizer.model", "vocab.json", "encoder.json"];

/// What the only tokenizer of a folder may end with, if none has a name above.
const ENDINGS: [&str; 3] = ["gguf", "model", "tiktoken"];

/// Files.
impl Tokenizer {
    /// Reads a tokenizer: a file of any format above, or a folder that has one. Of GPT-2's two files name the first; the
    /// other must lie beside it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::InFolder`], or [`Error::InFile`] with the place and the reason: [`Error::UnknownSplit`] for
    /// tiktoken ranks that [`Tokenizer::load_tiktoken`] reads.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        load_file(&find(path.as_ref())?)
    }

    /// Reads tiktoken ranks, from a file or a folder, for whose `encoding` the caller speaks. [`Tokenizer::load`] reads
    /// published encodings without being told.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn load_tiktoken(
        path: impl AsRef<Path>,
        encoding: impl Into<TiktokenEncoding>,
    ) -> Result<Self, Error> {
        let path = find(path.as_ref())?;
        let bytes = read_capped(&path)?;
        Self::from_tiktoken(&bytes, Some(&encoding.into())).map_err(|problem| problem.in_file(&path))
    }

    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// Any that tells what is wrong in a file; see [`Error`].
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        Self::from_definition(read::parse(json)?)
    }

    /// Reads the vocabulary in the bytes of a GGUF, which may end with its keys and values.
    ///
    /// # Errors
    /// Any that tells what is wrong in a file; see [`Error`].
    pub fn from_gguf(bytes: &[u8]) -> Result<Self, Error> {
        Self::from_definition(gguf::parse(bytes)?)
    }

    /// Reads the contents of a sentencepiece model.
    ///
    /// # Errors
    /// Any that tells what is wrong in a file; see [`Error`].
    pub fn from_sentencepiece(bytes: &[u8]) -> Result<Self, Error> {
        Self::from_definition(sentencepiece::parse(bytes)?)
    }

    /// Reads tiktoken ranks of `encoding`, or of a published one.
    ///
    /// # Errors
    /// [`Error::UnknownSplit`] for others, and any that tells what is wrong in a file; see [`Error`].
    pub fn from_tiktoken(bytes: &[u8], encoding: Option<&TiktokenEncoding>) -> Result<Self, Error> {
        Self::from_definition(tiktoken::parse(bytes, encoding)?)
    }

    /// Writes a `tokenizer.json`. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Unsupported`] for what the format cannot express, by name: sentencepiece's normalizer
    /// other than the identity, Unigram of a `.model` or a GGUF, BPE of which two tokens merge at the same score.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        write_atomic(path.as_ref(), self.to_json()?.as_bytes())
    }

    /// Writes what a model folder in the Hugging Face layout has of a tokenizer: `tokenizer.json`,
    /// `tokenizer_config.json` with the special tokens' names, the model's context and its chat template, and
    /// `generation_config.json` with the ids that begin and end a text. Each appears whole or not at all.
    ///
    /// # Errors
    /// As [`Tokenizer::save`].
    pub fn save_folder(
        &self,
        folder: impl AsRef<Path>,
        context: usize,
        chat_template: Option<&str>,
    ) -> Result<(), Error> {
        let special = &self.inner().def.special;
        let token = |id: Option<u32>| id.and_then(|id| self.id_to_token(id));
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "bos_token": token(special.bos),
            "eos_token": token(self.eos_id()),
            "unk_token": token(special.unk),
            "pad_token": token(special.pad),
            "clean_up_tokenization_spaces": false,
            "chat_template": chat_template,
        });
        let generation = json!({ "bos_token_id": special.bos, "eos_token_id": self.eos_id() });
        self.save(folder.as_ref().join("tokenizer.json"))?;
        for (name, mut value) in [("tokenizer_config.json", config), ("generation_config.json", generation)] {
            if let Some(map) = value.as_object_mut() {
                map.retain(|_, value| !value.is_null());
            }
            write_atomic(&folder.as_ref().join(name), format!("{value:#}\n").as_bytes())?;
        }
        Ok(())
    }

    /// Writes tiktoken ranks. The file appears whole or not at all; it has neither the split nor the special tokens.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Unsupported`] for a vocabulary that is not byte-level BPE with ids in order of rank.
    pub fn save_tiktoken(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let inner = self.inner();
        let in_model = |&(_, id): &(&str, u32)| inner.added_only.binary_search(&id).is_err();
        let vocab = inner.vocab.iter().filter(in_model).map(|(token, id)| (token.to_owned(), id));
        let definition = Definition { vocab: vocab.collect(), ..inner.def.clone() };
        write_atomic(path.as_ref(), tiktoken::write(&definition)?.as_bytes())
    }

    /// The vocabulary as the keys and values of a GGUF, with which [`crate::gguf::write_head`] writes one, and what they
    /// leave out: see [`crate::gguf::Vocabulary::left_out`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what ids depend on and the format cannot express, by name: any other normalizer than
    /// NFC before byte-level BPE, splits without a name there, Unigram of a `tokenizer.json`.
    pub fn to_gguf(&self) -> Result<crate::gguf::Vocabulary, Error> {
        gguf::vocabulary(self)
    }

    /// The contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] as in [`Tokenizer::save`].
    pub fn to_json(&self) -> Result<String, Error> {
        write::to_json(self)
    }
}

/// The file that a path means: itself, or of a folder the one that has a known name, or the only one with a known ending.
fn find(path: &Path) -> Result<PathBuf, Error> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    if let Some(file) = IN_FOLDER.iter().map(|name| path.join(name)).find(|file| file.exists()) {
        return Ok(file);
    }
    let names = fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>());
    let mut names = names.map_err(|source| io("read", path, source))?;
    names.retain(|name| {
        Path::new(name).extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known))
    });
    names.sort_unstable();
    let reason = match &names[..] {
        [name] => return Ok(path.join(name)),
        [] => {
            let [known, endings] = [IN_FOLDER.join("`, `"), ENDINGS.join("`, `*.")];
            format!("no tokenizer is there: neither one of `{known}` nor a single `*.{endings}`")
        }
        several => {
            let names: Vec<_> = several.iter().map(|name| name.to_string_lossy()).collect();
            format!("name one of its tokenizers: `{}`", names.join("`, `"))
        }
    };
    Err(Error::InFolder { path: path.to_owned(), reason })
}

fn load_file(path: &Path) -> Result<Tokenizer, Error> {
    let (bytes, is_whole) = read_head(path)?;
    let result = match bytes.first_chunk::<4>() {
        Some(b"GGUF") => match Tokenizer::from_gguf(&bytes) {
            // What is missing may stand further on; what is wrong stays wrong.
            Err(Error::CutShort { needed, .. }) if !is_whole && needed <= MAX_LEN => {
                Tokenizer::from_gguf(&read_up_to(path, MAX_LEN)?)
            }
            result => result,
        },
        _ => parse(path, &if is_whole { bytes } else { read_capped(path)? }),
    };
    result.map_err(|problem| match problem {
        Error::Io { .. } | Error::InFile { .. } => problem,
        problem => problem.in_file(path),
    })
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Tokenizer, Error> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    for (vocab, merges) in [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")] {
        // Prefixes such as `gpt2-vocab.json` are common.
        if let Some(prefix) = name.strip_suffix(vocab) {
            let beside = path.with_file_name(format!("{prefix}{merges}"));
            let merges = read_capped(&beside)?;
            let read = gpt2::parse(bytes, &merges).and_then(Tokenizer::from_definition);
            return read.map_err(|problem| match problem {
                // The vocabulary has no such places.
                Error::Malformed { .. } | Error::BadMerge { .. } => problem.in_file(&beside),
                problem => problem,
            });
        }
    }
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if name.ends_with(".model") {
        // Mistral's Tekken and Llama 3 also call their files so.
        return match first {
            Some(b'{') => Tokenizer::from_json(bytes),
            _ if tiktoken::is_like(bytes) => Tokenizer::from_tiktoken(bytes, None),
            _ => Tokenizer::from_sentencepiece(bytes),
        };
    }
    match first {
        Some(b'{') | None => Tokenizer::from_json(bytes),
        _ if name.ends_with(".json") => Tokenizer::from_json(bytes),
        _ if tiktoken::is_like(bytes) => Tokenizer::from_tiktoken(bytes, None),
        // The first field of sentencepiece's message; as text it would be an empty line.
        _ if bytes[0] == b'\n' => Tokenizer::from_sentencepiece(bytes),
        _ => Tokenizer::from_json(bytes),
    }
}

/// Reads a file, or of a large one that looks like a GGUF only the head; and whether that is all.
fn read_head(path: &Path) -> Result<(Vec<u8>, bool), Error> {
    let bytes = read_up_to(path, GGUF_HEAD)?;
    let is_whole = (bytes.len() as u64) < GGUF_HEAD;
    Ok((bytes, is_whole))
}

fn read_capped(path: &Path) -> Result<Vec<u8>, Error> {
    // One byte over the limit shows that there is more, whatever the size of the file claims to be.
    let bytes = read_up_to(path, MAX_LEN + 1)?;
    if bytes.len() as u64 > MAX_LEN {
        let len = fs::metadata(path).map_err(|source| io("read", path, source))?.len();
        return Err(Error::TooLarge { len, limit: MAX_LEN }.in_file(path));
    }
    Ok(bytes)
}

fn read_up_to(path: &Path, n_bytes: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(n_bytes).read_to_end(&mut bytes))
        .map_err(|source| io("read", path, source))?;
    Ok(bytes)
}

fn io(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    Error::Io { action, path: PathBuf::from(path), source }
}

/// Writes beside the target, makes it durable, then renames, so that no reader ever sees half a file.
fn write_atomic(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let write = || {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // Temporary files are private by default; a model is as readable as the user's umask says.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        let mut file = builder.prefix(".tokenizer").tempfile_in(dir)?;
        file.write_all(contents)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        #[cfg(unix)]
        File::open(dir)?.sync_all()?;
        Ok(())
    };
    write().map_err(|source| io("write", path, source))
}
