//! Token ids on disk: memory-mapped, so a corpus larger than memory trains as a small one does.
//!
//! A shard is a header of 64 bytes, then the ids in little-endian order:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `FLINTTOK` |
//! | 4 | format version, 1 |
//! | 4 | bytes per id, 2 or 4 |
//! | 8 | number of ids |
//! | 8 | hash of the tokenizer that made them |
//! | 32 | BLAKE3 of the ids' bytes |

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use kernels::mmap::Mmap;

use crate::error::Error;

const MAGIC: &[u8; 8] = b"FLINTTOK";
const VERSION: u32 = 1;
const HEADER: usize = 64;

/// Ids per shard: 256 MiB at two bytes each, so that a damaged file costs little and none is unwieldy.
const SHARD_TOKENS: u64 = 1 << 27;

/// Writes ids into `DIR/NAME-00000.tokens` and on; each file appears under its name only when whole.
pub struct Writer {
    dir: PathBuf,
    name: &'static str,
    width: usize,
    tokenizer_hash: u64,
    shard_tokens: u64,
    current: Option<Shard>,
    done: Vec<PathBuf>,
}

/// A shard that is being written.
struct Shard {
    file: BufWriter<File>,
    temporary: PathBuf,
    count: u64,
    hash: blake3::Hasher,
}

impl Writer {
    /// A writer for ids below `vocab_size`.
    pub fn new(dir: &Path, name: &'static str, vocab_size: usize, tokenizer_hash: u64) -> Self {
        let width = if vocab_size <= 1 << 16 { 2 } else { 4 };
        let dir = dir.into();
        Self { dir, name, width, tokenizer_hash, shard_tokens: SHARD_TOKENS, current: None, done: Vec::new() }
    }

    /// Appends ids.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn push(&mut self, ids: &[u32]) -> Result<(), Error> {
        let mut rest = ids;
        while !rest.is_empty() {
            let shard = match &mut self.current {
                Some(shard) => shard,
                None => self.current.insert(Shard::create(&self.dir, self.name, self.done.len())?),
            };
            let room = (self.shard_tokens - shard.count).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at(room);
            rest = later;
            let bytes: Vec<u8> =
                now.iter().flat_map(|id| id.to_le_bytes().into_iter().take(self.width)).collect();
            shard.hash.update(&bytes);
            shard.file.write_all(&bytes).map_err(Error::io(&shard.temporary))?;
            shard.count += now.len() as u64;
            if shard.count == self.shard_tokens {
                self.close_shard()?;
            }
        }
        Ok(())
    }

    /// Ends the last shard and names all of them, in order.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn finish(mut self) -> Result<Vec<PathBuf>, Error> {
        self.close_shard()?;
        model::files::sync_dir(&self.dir).map_err(Error::io(&self.dir))?;
        Ok(self.done)
    }

    fn close_shard(&mut self) -> Result<(), Error> {
        let Some(mut shard) = self.current.take() else { return Ok(()) };
        let path = self.dir.join(format!("{}-{:05}.tokens", self.name, self.done.len()));
        let mut header = Vec::with_capacity(HEADER);
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((self.width as u32).to_le_bytes());
        header.extend(shard.count.to_le_bytes());
        header.extend(self.tokenizer_hash.to_le_bytes());
        header.extend(shard.hash.finalize().as_bytes());
        let mut write = || {
            shard.file.seek(SeekFrom::Start(0))?;
            shard.file.write_all(&header)?;
            shard.file.flush()?;
            shard.file.get_ref().sync_all()?;
            std::fs::rename(&shard.temporary, &path)
        };
        write().map_err(Error::io(&shard.temporary))?;
        self.done.push(path);
        Ok(())
    }
}

impl Shard {
    fn create(dir: &Path, name: &str, idx: usize) -> Result<Self, Error> {
        let temporary = dir.join(format!(".{name}-{idx:05}.tmp"));
        let create = || {
            let mut file = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
            file.write_all(&[0; HEADER])?;
            Ok(file)
        };
        let file = create().map_err(Error::io(&temporary))?;
        Ok(Self { file, temporary, count: 0, hash: blake3::Hasher::new() })
    }
}

/// A sequence of ids that lies in one or more shards.
#[derive(Debug)]
pub struct Tokens {
    shards: Vec<(Mmap, usize)>,
    width: usize,
    /// Position of each shard's first id, and the total.
    starts: Vec<usize>,
}

impl Tokens {
    /// Opens shards in order and verifies them whole.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the file and what is wrong; [`Error::Io`] if one cannot be opened.
    pub fn open(paths: &[PathBuf], tokenizer_hash: u64) -> Result<Self, Error> {
        let mut tokens = Self { shards: Vec::new(), width: 2, starts: vec![0] };
        for path in paths {
            let map = Mmap::open(path).map_err(Error::io(path))?;
            // Summed by reading, not through the map: the whole shard need not become part of this process.
            let mut sum = blake3::Hasher::new();
            let mut file = File::open(path).map_err(Error::io(path))?;
            file.seek(SeekFrom::Start(HEADER as u64)).map_err(Error::io(path))?;
            sum.update_reader(file).map_err(Error::io(path))?;
            let (width, count) = check(&map, sum.finalize(), tokenizer_hash)
                .map_err(|why| Error::Damaged { path: path.clone(), why })?;
            tokens.width = width;
            tokens.starts.push(tokens.len() + count);
            tokens.shards.push((map, count));
        }
        Ok(tokens)
    }

    /// Number of ids.
    pub fn len(&self) -> usize {
        *self.starts.last().expect("begins with 0")
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `n` ids from `start` on.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn range(&self, start: usize, n: usize) -> Vec<u32> {
        assert!(start + n <= self.len(), "ids {start}..{} of {}", start + n, self.len());
        let mut ids = Vec::with_capacity(n);
        let mut shard_idx = self.starts.partition_point(|&s| s <= start) - 1;
        while ids.len() < n {
            let (map, count) = &self.shards[shard_idx];
            let from = start + ids.len() - self.starts[shard_idx];
            let to = (from + n - ids.len()).min(*count);
            let bytes = &map[HEADER + from * self.width..HEADER + to * self.width];
            match self.width {
                2 => ids.extend(bytes.as_chunks().0.iter().map(|&b| u32::from(u16::from_le_bytes(b)))),
                _ => ids.extend(bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b))),
            }
            shard_idx += 1;
        }
        ids
    }
}

/// Width and count of a shard, if all of it is as its header says.
fn check(map: &[u8], sum: blake3::Hash, tokenizer_hash: u64) -> Result<(usize, usize), String> {
    let (header, ids) = map.split_at_checked(HEADER).ok_or("shorter than its header")?;
    let u32_at = |i: usize| u32::from_le_bytes(header[i..i + 4].try_into().expect("4 bytes"));
    let u64_at = |i: usize| u64::from_le_bytes(header[i..i + 8].try_into().expect("8 bytes"));
    if &header[..8] != MAGIC {
        return Err("not a token shard".into());
    }
    if u32_at(8) != VERSION {
        return Err(format!("format version {}, this program reads {VERSION}", u32_at(8)));
    }
    let width = match u32_at(12) {
        2 => 2,
        4 => 4,
        other => return Err(format!("{other} bytes per id, must be 2 or 4")),
    };
    if u64_at(16).checked_mul(width as u64) != Some(ids.len() as u64) {
        return Err(format!("its header announces {} ids, it holds {}", u64_at(16), ids.len() / width));
    }
    if u64_at(24) != tokenizer_hash {
        return Err("made with another tokenizer".into());
    }
    if sum.as_bytes()[..] != header[32..64] {
        return Err("its checksum does not match: the file is damaged".into());
    }
    Ok((width, ids.len() / width))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, ids: &[u32], vocab_size: usize, shard_tokens: u64) -> Vec<PathBuf> {
        let mut writer = Writer::new(dir, "t", vocab_size, 7);
        writer.shard_tokens = shard_tokens;
        ids.chunks(3).for_each(|part| writer.push(part).expect("written"));
        writer.finish().expect("finished")
    }

    #[test]
    fn every_range_reads_back_across_shards() {
        for vocab_size in [1000, 100_000] {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let ids: Vec<u32> = (0..17).map(|i| i * 50).collect();
            let paths = write(dir.path(), &ids, vocab_size, 5);
            assert_eq!(paths.len(), 4);
            let tokens = Tokens::open(&paths, 7).expect("opened");
            for start in 0..=17 {
                for n in 0..=17 - start {
                    assert_eq!(tokens.range(start, n), ids[start..start + n], "{start} + {n}");
                }
            }
        }
    }

    #[test]
    fn every_damage_is_found() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = write(dir.path(), &[1, 2, 3], 100, 10).remove(0);
        let good = std::fs::read(&path).expect("there");
        let check =
            |bytes: &[u8], hash| check(bytes, blake3::hash(bytes.get(HEADER..).unwrap_or_default()), hash);
        for i in 0..good.len() {
            let mut bad = good.clone();
            bad[i] ^= 1;
            assert!(check(&bad, 7).is_err(), "byte {i} flipped");
            assert!(check(&good[..i], 7).is_err(), "cut at {i}");
        }
        assert!(check(&good, 8).unwrap_err().contains("another tokenizer"));
        assert_eq!(check(&good, 7), Ok((2, 3)));
    }
}
