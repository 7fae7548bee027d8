//! Read-only memory maps: weights and token shards are read from the page cache without a copy.
//!
//! The only place in the workspace that maps files. A map's bytes change if another process changes the
//! file, and reading past a file that was cut short ends the process; files that Flint writes are only
//! ever replaced by renaming, never written in place, so its own maps stay whole.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// The bytes of a file.
#[derive(Debug)]
pub struct Mmap(memmap2::Mmap);

impl Mmap {
    /// Maps a whole file; an empty one gives an empty slice.
    ///
    /// # Errors
    /// What the operating system says, for instance if there is no such file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Before it is opened: a pipe would wait for a writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        // SAFETY: the map is read-only and private to this value. The remaining risk, another process
        // that truncates the file meanwhile, is stated in the module's documentation.
        unsafe { memmap2::Mmap::map(&file) }.map(Self)
    }
}

impl Deref for Mmap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_and_refuses_folders() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("bytes");
        std::fs::write(&path, b"abc").expect("written");
        assert_eq!(&*Mmap::open(&path).expect("mapped"), b"abc");
        std::fs::write(&path, b"").expect("written");
        assert!(Mmap::open(&path).expect("mapped").is_empty());
        assert!(Mmap::open(dir.path()).is_err());
        assert!(Mmap::open(&dir.path().join("absent")).is_err());
    }
}
