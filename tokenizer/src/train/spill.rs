//! Counts on disk: what no longer fits in memory is appended to a temporary file, shard by shard.
//!
//! A piece always falls into the same shard, so the sum of a shard needs only that shard's parts of the file and, for each
//! thread, the memory of one shard, a sixty-fourth of all distinct pieces. Summing in a table makes sorting unnecessary.
//! The file has no name (on Windows it is deleted when closed), so nothing is left behind however the process ends.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use super::table::{N_SHARDS, Shard, Shards};
use crate::Error;

/// Bytes read or written at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// A temporary file of counts.
pub(super) struct Spill {
    file: Mutex<File>,
    /// Start and length in bytes of the parts of each shard.
    parts: Vec<Vec<(u64, u64)>>,
    n_bytes: u64,
}

impl Spill {
    /// An empty file.
    pub(super) fn create() -> Result<Self, Error> {
        let file = tempfile::tempfile().map_err(|e| failed("create a file for counts in", e))?;
        Ok(Self { file: Mutex::new(file), parts: vec![Vec::new(); N_SHARDS], n_bytes: 0 })
    }

    /// Moves all counts to the file.
    pub(super) fn write(&mut self, shards: &Shards) -> Result<(), Error> {
        self.append(shards).map_err(|e| failed("write counts to a file in", e))
    }

    fn append(&mut self, shards: &Shards) -> io::Result<()> {
        let file = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.n_bytes))?;
        let mut writer = BufWriter::with_capacity(BUFFER_BYTES, file);
        for (shard_idx, parts) in self.parts.iter_mut().enumerate() {
            let mut shard = shards.lock(shard_idx);
            let (start, mut written) = (self.n_bytes, Ok(()));
            shard.for_each(|piece, count| {
                if written.is_ok() {
                    self.n_bytes += 16 + piece.len() as u64;
                    written = write_record(&mut writer, piece, count);
                }
            });
            written?;
            parts.push((start, self.n_bytes - start));
            shard.clear();
        }
        writer.flush()
    }

    /// The counts of one shard: what is on disk and what is in `rest`.
    pub(super) fn sum(&self, shard_idx: usize, rest: &Shard) -> Result<Shard, Error> {
        let mut sum = Shard::new();
        rest.for_each(|piece, count| sum.add(piece, count));
        self.read_into(shard_idx, &mut sum).map_err(|e| failed("read counts from a file in", e))?;
        Ok(sum)
    }

    fn read_into(&self, shard_idx: usize, sum: &mut Shard) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut piece = Vec::new();
        for &(start, len) in &self.parts[shard_idx] {
            file.seek(SeekFrom::Start(start))?;
            let mut reader = BufReader::with_capacity(BUFFER_BYTES, (&mut *file).take(len));
            let mut n_left = len;
            while n_left > 0 {
                let count = read_record(&mut reader, &mut piece)?;
                sum.add(&piece, count);
                n_left = n_left.saturating_sub(16 + piece.len() as u64);
            }
        }
        Ok(())
    }
}

fn write_record(writer: &mut impl Write, piece: &[u8], count: u64) -> io::Result<()> {
    writer.write_all(&(piece.len() as u64).to_le_bytes())?;
    writer.write_all(&count.to_le_bytes())?;
    writer.write_all(piece)
}

fn read_record(reader: &mut impl Read, piece: &mut Vec<u8>) -> io::Result<u64> {
    let mut numbers = [[0; 8]; 2];
    reader.read_exact(numbers.as_flattened_mut())?;
    piece.clear();
    // Only as many bytes as are there are allocated, even if someone else wrote to the file.
    let len = u64::from_le_bytes(numbers[0]);
    if reader.by_ref().take(len).read_to_end(piece)? as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(u64::from_le_bytes(numbers[1]))
}

fn failed(action: &'static str, source: io::Error) -> Error {
    Error::Io { action, path: std::env::temp_dir(), source }
}
