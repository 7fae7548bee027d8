//! Where the tensors of a model lie in its files, whatever the files' format, and reading their numbers.
//!
//! Headers are parsed from a memory map that is let go at once. Numbers are copied by plain reads, piece by piece and by
//! all threads, straight into the memory that the tensor will have: a file that is cut short meanwhile is an error
//! instead of a signal, and at no time is there a second copy of more than a few pieces.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use quant::Format;
use rayon::prelude::*;

use super::Error;

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Row-major.
    pub shape: Vec<usize>,
    /// How its numbers are spelled.
    pub format: Format,
    /// Bytes from the beginning of its file to its first.
    pub offset: u64,
}

impl Stored {
    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of all elements.
    pub fn n_bytes(&self) -> usize {
        bytes_of(self.format, self.n_elements())
    }
}

/// Bytes of so many numbers, which are whole blocks: headers were checked for that.
fn bytes_of(format: Format, n_elements: usize) -> usize {
    format.n_bytes(n_elements).expect("whole blocks")
}

/// The tensors of one model, by their names in its files.
#[derive(Debug, Default)]
pub struct Archive {
    files: Vec<(PathBuf, File)>,
    /// With the index of its file.
    tensors: BTreeMap<String, (usize, Stored)>,
}

/// Elements that are read at once: a multiple of every format's block, and small enough that what was read is still in
/// the core's cache when it is converted.
const PIECE: usize = 1 << 17;

impl Archive {
    /// Adds a file and the tensors that its header lists, whose places were checked against its length.
    ///
    /// # Errors
    /// If the file cannot be opened or has a tensor that another has too.
    pub fn add(&mut self, path: &Path, tensors: Vec<(String, Stored)>) -> Result<(), Error> {
        let file = File::open(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let file_idx = self.files.len();
        self.files.push((path.into(), file));
        for (name, stored) in tensors {
            if let Some((other, _)) = self.tensors.get(&name) {
                let (name, other) = (name.escape_debug(), self.files[*other].0.display());
                let why = format!("tensor `{name}` is also in {other}");
                return Err(Error::Format { path: path.into(), why });
            }
            self.tensors.insert(name, (file_idx, stored));
        }
        Ok(())
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What is known of a tensor.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name).map(|(_, stored)| stored)
    }

    /// The file of a tensor, and the first file if there is no such tensor.
    pub fn path_of(&self, name: &str) -> &Path {
        let file_idx = self.tensors.get(name).map_or(0, |(file_idx, _)| *file_idx);
        self.files.get(file_idx).map_or(Path::new(""), |(path, _)| path)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Stored> {
        self.tensors.values().map(|(_, stored)| stored)
    }

    /// Elements of all tensors together.
    pub fn n_elements(&self) -> u64 {
        self.tensors.values().map(|(_, stored)| stored.n_elements() as u64).sum()
    }

    /// Reads the numbers of a tensor from one on, which begins a row.
    ///
    /// # Errors
    /// If the file cannot be read, for instance since it was cut short after its header was read.
    ///
    /// # Panics
    /// If there is no such tensor, or it has not as many numbers as `out` has room for.
    pub fn read(&self, name: &str, first: usize, out: &mut [f32]) -> Result<(), Error> {
        let (file_idx, stored) = &self.tensors[name];
        assert!(first + out.len() <= stored.n_elements(), "`{name}` has no {} from {first} on", out.len());
        let (path, file) = &self.files[*file_idx];
        let piece_bytes = bytes_of(stored.format, PIECE) as u64;
        let offset = stored.offset + bytes_of(stored.format, first) as u64;
        let read = |bytes: &mut Vec<u8>, (i, out): (usize, &mut [f32])| {
            bytes.resize(bytes_of(stored.format, out.len()), 0);
            read_at(file, bytes, offset + i as u64 * piece_bytes)?;
            stored.format.dequantize(bytes, out);
            Ok(())
        };
        out.par_chunks_mut(PIECE)
            .enumerate()
            .try_for_each_init(Vec::new, read)
            .map_err(|source| Error::Io { path: path.clone(), source })
    }

    /// Appends the bytes of a tensor's numbers, from one on that begins a block.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Panics
    /// If there is no such tensor, or it has not as many numbers.
    pub fn read_bytes(&self, name: &str, first: usize, n: usize, bytes: &mut Vec<u8>) -> Result<(), Error> {
        let (file_idx, stored) = &self.tensors[name];
        assert!(first + n <= stored.n_elements(), "`{name}` has no {n} from {first} on");
        let (path, file) = &self.files[*file_idx];
        let (old, format) = (bytes.len(), stored.format);
        bytes.resize(old + bytes_of(format, n), 0);
        read_at(file, &mut bytes[old..], stored.offset + bytes_of(format, first) as u64)
            .map_err(|source| Error::Io { path: path.clone(), source })
    }

    /// Whether two tensors are spelled by the same bytes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Panics
    /// If there are no such tensors.
    pub fn are_same(&self, a: &str, b: &str) -> Result<bool, Error> {
        let [a, b] = [a, b].map(|name| &self.tensors[name]);
        if (&a.1.shape, a.1.format) != (&b.1.shape, b.1.format) {
            return Ok(false);
        }
        let n_bytes = a.1.n_bytes();
        let mut buffers = [vec![0; n_bytes.min(PIECE)], vec![0; n_bytes.min(PIECE)]];
        for begin in (0..n_bytes).step_by(PIECE) {
            let n = PIECE.min(n_bytes - begin);
            for ((file_idx, stored), buffer) in [a, b].into_iter().zip(&mut buffers) {
                let (path, file) = &self.files[*file_idx];
                read_at(file, &mut buffer[..n], stored.offset + begin as u64)
                    .map_err(|source| Error::Io { path: path.clone(), source })?;
            }
            if buffers[0][..n] != buffers[1][..n] {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => (bytes, offset) = (&mut bytes[n..], offset + n as u64),
        }
    }
    Ok(())
}
