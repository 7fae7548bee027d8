//! Hugging Face's `tokenizer.json`: the one file format of both models.
//!
//! Reading accepts what the two models can express and refuses the rest by name: a normalizer or another pre-tokenizer
//! that were skipped would give other ids in silence. Writing gives what Hugging Face's `tokenizers` opens and encodes
//! alike, and is atomic.

mod read;
mod write;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use crate::{Error, Tokenizer};

/// Most bytes that are read. The largest vocabularies in use (about 260,000 tokens) take 35 MB.
const MAX_LEN: u64 = 512 << 20;

/// Files.
impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::InFile`] with the place and the reason.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let json = read_capped(path)?;
        Self::from_json(&json).map_err(|problem| problem.in_file(path))
    }

    /// Reads the contents of a `tokenizer.json`.
    ///
    /// # Errors
    /// Any that tells what is wrong in a file; see [`Error`].
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        Self::from_parts(read::parse(json)?)
    }

    /// Writes a `tokenizer.json`. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        write_atomic(path, self.to_json().as_bytes()).map_err(|source| Error::Io {
            action: "write",
            path: path.to_owned(),
            source,
        })
    }

    /// The contents of a `tokenizer.json`.
    pub fn to_json(&self) -> String {
        write::to_json(self)
    }
}

fn read_capped(path: &Path) -> Result<Vec<u8>, Error> {
    let io = |source| Error::Io { action: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let mut json = Vec::new();
    // One byte over the limit shows that there is more, whatever the size of the file claims to be.
    file.take(MAX_LEN + 1).read_to_end(&mut json).map_err(io)?;
    if json.len() as u64 > MAX_LEN {
        let len = fs::metadata(path).map_err(io)?.len();
        return Err(Error::TooLarge { len, limit: MAX_LEN }.in_file(path));
    }
    Ok(json)
}

/// Writes beside the target, makes it durable, then renames, so that no reader ever sees half a file.
fn write_atomic(path: &Path, contents: &[u8]) -> std::io::Result<()> {
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
}
