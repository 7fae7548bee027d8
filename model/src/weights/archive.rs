//! Where the tensors of a model lie in its files, whatever the files' format, and reading their numbers.
//!
//! Headers are parsed from a memory map that is let go at once. Numbers are copied by plain reads, piece by piece and by
//! all threads, straight into the memory that the tensor will have: a file that is cut short meanwhile is an error
//! instead of a signal, and at no time is there a second copy of more than a few pieces.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use kernels::packed::{Kind, Rows};
use quant::{Format, Symmetric};
use rayon::prelude::*;

use super::Error;

/// How the numbers of a tensor are spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As floats, or in blocks with scales of their own.
    Blocks(Format),
    /// As whole numbers, whose scales are another tensor of the files.
    Ints {
        /// The numbers.
        ints: Symmetric,
        /// How scales are spelled.
        scales: Format,
    },
}

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Row-major.
    pub shape: Vec<usize>,
    /// How its numbers are spelled.
    pub encoding: Encoding,
    /// Bytes from the beginning of its file to its first.
    pub offset: u64,
}

impl Encoding {
    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Blocks(format) => format.name().to_owned(),
            Self::Ints { ints, .. } => ints.name(),
        }
    }

    /// The format, of numbers that are floats each by itself.
    pub fn float(self) -> Option<Format> {
        match self {
            Self::Blocks(format) if format.block_len() == 1 => Some(format),
            _ => None,
        }
    }

    /// How a matrix with rows of `width` is packed.
    pub fn packed(self, width: usize) -> Kind {
        match self {
            Self::Blocks(format) => format.packed(),
            Self::Ints { ints, scales } => ints.packed(width, scales),
        }
    }

    /// Bytes of whole rows of `width`, of their numbers and of scales that lie elsewhere. Headers were checked for whole
    /// blocks.
    pub(super) fn bytes_of(self, n_elements: usize, width: usize) -> [usize; 2] {
        match self {
            Self::Blocks(format) => [bytes_of(format, n_elements), 0],
            Self::Ints { ints, scales } => {
                let n_rows = n_elements / width.max(1);
                [n_rows * ints.row_bytes(width), bytes_of(scales, n_rows * ints.n_scales(width))]
            }
        }
    }
}

impl Stored {
    /// Number of elements.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of all elements, with their scales.
    pub fn n_bytes(&self) -> usize {
        self.encoding.bytes_of(self.n_elements(), self.width()).iter().sum()
    }

    /// How a matrix of them is packed.
    pub fn packed(&self) -> Kind {
        self.encoding.packed(self.width())
    }

    /// Numbers of a row.
    fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Elements that are read at once: whole rows, where scales are by row.
    fn piece(&self) -> usize {
        match self.encoding {
            Encoding::Blocks(_) => PIECE,
            Encoding::Ints { .. } => (PIECE / self.width().max(1)).max(1) * self.width().max(1),
        }
    }

    fn dequantize(&self, bytes: &Bytes, out: &mut [f32]) {
        match self.encoding {
            Encoding::Blocks(format) => format.dequantize(&bytes.numbers, out),
            Encoding::Ints { ints, scales } => {
                ints.dequantize(&bytes.numbers, &bytes.scales, scales, self.width(), out);
            }
        }
    }
}

/// Bytes of so many numbers, which are whole blocks: headers were checked for that.
fn bytes_of(format: Format, n_elements: usize) -> usize {
    format.n_bytes(n_elements).expect("whole blocks")
}

/// What was read of a tensor.
#[derive(Default)]
struct Bytes {
    numbers: Vec<u8>,
    scales: Vec<u8>,
}

/// A tensor, the index of its file, and that of its scales' with bytes to the first of these.
#[derive(Debug)]
struct Place {
    file_idx: usize,
    stored: Stored,
    scales: Option<(usize, u64)>,
}

/// The tensors of one model, by their names in its files.
#[derive(Debug, Default)]
pub struct Archive {
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Place>,
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
        let file_idx = self.add_file(path)?;
        tensors.into_iter().try_for_each(|(name, stored)| self.add_tensor(name, stored, file_idx, None))
    }

    /// Adds a file without its tensors, and gives its index.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn add_file(&mut self, path: &Path) -> Result<usize, Error> {
        let file = File::open(path).map_err(|source| Error::Io { path: path.into(), source })?;
        self.files.push((path.into(), file));
        Ok(self.files.len() - 1)
    }

    /// Adds a tensor of a file, whose scales may lie in another.
    ///
    /// # Errors
    /// If there is one of this name.
    pub(super) fn add_tensor(
        &mut self,
        name: String,
        stored: Stored,
        file_idx: usize,
        scales: Option<(usize, u64)>,
    ) -> Result<(), Error> {
        if let Some(other) = self.tensors.get(&name) {
            let (name, other) = (name.escape_debug(), self.files[other.file_idx].0.display());
            let why = format!("tensor `{name}` is also in {other}");
            return Err(Error::Format { path: self.files[file_idx].0.clone(), why });
        }
        self.tensors.insert(name, Place { file_idx, stored, scales });
        Ok(())
    }

    /// The path of a file.
    pub(super) fn path(&self, file_idx: usize) -> &Path {
        &self.files[file_idx].0
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What is known of a tensor.
    pub fn get(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name).map(|place| &place.stored)
    }

    /// The file of a tensor, and the first file if there is no such tensor.
    pub fn path_of(&self, name: &str) -> &Path {
        let file_idx = self.tensors.get(name).map_or(0, |place| place.file_idx);
        self.files.get(file_idx).map_or(Path::new(""), |(path, _)| path)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Stored> {
        self.tensors.values().map(|place| &place.stored)
    }

    /// Elements of all tensors together.
    pub fn n_elements(&self) -> u64 {
        self.tensors().map(|stored| stored.n_elements() as u64).sum()
    }

    /// Reads the numbers of a tensor from one on, which begins a row.
    ///
    /// # Errors
    /// If the file cannot be read, for instance since it was cut short after its header was read.
    ///
    /// # Panics
    /// If there is no such tensor, or it has not as many numbers as `out` has room for.
    pub fn read(&self, name: &str, first: usize, out: &mut [f32]) -> Result<(), Error> {
        let place = &self.tensors[name];
        let stored = &place.stored;
        assert!(first + out.len() <= stored.n_elements(), "`{name}` has no {} from {first} on", out.len());
        let piece = stored.piece();
        let read = |bytes: &mut Bytes, (i, out): (usize, &mut [f32])| {
            self.fetch(place, first + i * piece, out.len(), bytes)?;
            stored.dequantize(bytes, out);
            Ok(())
        };
        out.par_chunks_mut(piece).enumerate().try_for_each_init(Bytes::default, read)
    }

    /// Appends the numbers of whole rows, from one on that begins a row, for a matrix that is packed as
    /// [`Stored::packed`] says.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    ///
    /// # Panics
    /// If there is no such tensor, or it has not as many numbers.
    pub fn read_packed(&self, name: &str, first: usize, n: usize, rows: &mut Rows) -> Result<(), Error> {
        let place = &self.tensors[name];
        let stored = &place.stored;
        assert!(first + n <= stored.n_elements(), "`{name}` has no {n} from {first} on");
        let mut bytes = Bytes::default();
        self.fetch(place, first, n, &mut bytes)?;
        match stored.encoding {
            Encoding::Blocks(format) => format.append_to(&bytes.numbers, rows),
            Encoding::Ints { ints, scales } => {
                ints.append_to(&bytes.numbers, &bytes.scales, scales, stored.width(), rows);
            }
        }
        Ok(())
    }

    /// Replaces bytes by those of `n` numbers of a tensor from `first` on.
    fn fetch(&self, place: &Place, first: usize, n: usize, bytes: &mut Bytes) -> Result<(), Error> {
        let Place { file_idx, stored, scales } = place;
        let bytes_of = |n| stored.encoding.bytes_of(n, stored.width());
        let ([before, scales_before], [numbers, n_scales]) = (bytes_of(first), bytes_of(n));
        bytes.numbers.resize(numbers, 0);
        self.read_at(*file_idx, &mut bytes.numbers, stored.offset + before as u64)?;
        bytes.scales.resize(n_scales, 0);
        match scales {
            Some((file_idx, offset)) => {
                self.read_at(*file_idx, &mut bytes.scales, offset + scales_before as u64)
            }
            None => Ok(()),
        }
    }

    fn read_at(&self, file_idx: usize, bytes: &mut [u8], offset: u64) -> Result<(), Error> {
        let (path, file) = &self.files[file_idx];
        read_at(file, bytes, offset).map_err(|source| Error::Io { path: path.clone(), source })
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
        if (&a.stored.shape, a.stored.encoding) != (&b.stored.shape, b.stored.encoding) {
            return Ok(false);
        }
        let (n, piece) = (a.stored.n_elements(), a.stored.piece());
        let mut buffers = [Bytes::default(), Bytes::default()];
        for first in (0..n).step_by(piece) {
            for (place, buffer) in [a, b].into_iter().zip(&mut buffers) {
                self.fetch(place, first, piece.min(n - first), buffer)?;
            }
            let [a, b] = &buffers;
            if a.numbers != b.numbers || a.scales != b.scales {
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
