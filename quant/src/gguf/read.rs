//! Reading: tensors are found, not copied.
//!
//! What is kept is where each entry of the table stands, 8 bytes for at least 32 of the file, and an entry is read when it
//! is asked for; all of them were checked once.

use tokenizer::gguf::{Header, Reader};

use super::{MAX_DIMS, check};
use crate::{Error, Format};

/// Bytes of an entry of the table, at least: the length of a name, the number of dimensions, one of them, type, offset.
const MIN_ENTRY: usize = 8 + 4 + 8 + 4 + 8;

/// A GGUF in memory.
pub struct Gguf<'a> {
    header: Header<'a>,
    bytes: &'a [u8],
    /// Where each entry starts, counted from the start of the table, in order of the names.
    by_name: Vec<usize>,
    data_start: usize,
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its dimensions, in the order of rows: the last is that of neighbours in memory.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub format: Format,
    /// The blocks of its numbers.
    pub data: &'a [u8],
}

impl<'a> Gguf<'a> {
    /// Reads a whole file.
    ///
    /// # Errors
    /// [`Error`], for anything that is not as the format has it: see the variants. Files of version 1 and big-endian
    /// ones are refused by name.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let header = Header::parse(bytes)?;
        let alignment = header.alignment()?;
        let mut reader = header.rest();
        let start = reader.offset();
        let n_tensors = reader.fit(header.n_tensors(), MIN_ENTRY)?;
        let mut by_name = Vec::with_capacity(n_tensors);
        for _ in 0..n_tensors {
            by_name.push(reader.offset() - start);
            Entry::read(&mut reader)?;
        }
        // Without tensors there may be an end without padding.
        let end = reader.offset();
        let data_start = if n_tensors == 0 { end } else { end.next_multiple_of(alignment) };
        let mut gguf = Self { header, bytes, by_name, data_start };
        gguf.check_places(alignment)?;
        gguf.sort_names()?;
        Ok(gguf)
    }

    /// The keys and values.
    pub fn header(&self) -> &Header<'a> {
        &self.header
    }

    /// How many tensors there are.
    pub fn n_tensors(&self) -> usize {
        self.by_name.len()
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'a>> {
        let mut table = self.header.rest();
        (0..self.n_tensors()).map_while(move |_| self.placed(Entry::read(&mut table).ok()?))
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'a>> {
        let idx = self.by_name.binary_search_by(|&place| self.name_at(place).cmp(name)).ok()?;
        self.placed(self.entry_at(self.by_name[idx])?)
    }

    /// An entry with its data; nothing if that is not inside the file.
    fn placed(&self, entry: Entry<'a>) -> Option<Tensor<'a>> {
        let start = self.data_start.checked_add(usize::try_from(entry.offset).ok()?)?;
        let data = self.bytes.get(start..start.checked_add(entry.n_bytes)?)?;
        Some(Tensor { name: entry.name, shape: entry.shape, format: entry.format, data })
    }

    /// The table from an entry on.
    fn table_at(&self, place: usize) -> Option<Reader<'a>> {
        let mut reader = self.header.rest();
        reader.take(place).ok()?;
        Some(reader)
    }

    fn entry_at(&self, place: usize) -> Option<Entry<'a>> {
        Entry::read(&mut self.table_at(place)?).ok()
    }

    fn name_at(&self, place: usize) -> &'a str {
        self.table_at(place).and_then(|mut reader| reader.text().ok()).unwrap_or_default()
    }

    /// Every tensor's data is aligned, inside the file, and its own.
    fn check_places(&self, alignment: usize) -> Result<(), Error> {
        let Some(n_data) = self.bytes.len().checked_sub(self.data_start) else {
            return Err(Error::NoData { start: self.data_start, n_bytes: self.bytes.len() });
        };
        let mut ranges = Vec::with_capacity(self.n_tensors());
        let mut table = self.header.rest();
        for _ in 0..self.n_tensors() {
            let place = table.offset() - self.header.end();
            let Entry { name, offset, n_bytes, .. } = Entry::read(&mut table)?;
            let wrong = |reason: String| Error::Tensor { name: name.to_owned(), reason };
            if offset % alignment as u64 != 0 {
                return Err(wrong(format!("its data is at {offset}, which is no multiple of {alignment}")));
            }
            let end = usize::try_from(offset).ok().and_then(|start| start.checked_add(n_bytes));
            let Some(end) = end.filter(|&end| end <= n_data) else {
                return Err(wrong(format!(
                    "{n_bytes} bytes from {offset} on, but the file has {n_data} bytes of data"
                )));
            };
            if n_bytes > 0 {
                ranges.push((end - n_bytes, place));
            }
        }
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            let [(_, first), (start, second)] = [pair[0], pair[1]];
            let first =
                self.entry_at(first).filter(|first| first.offset + first.n_bytes as u64 > start as u64);
            if let Some(first) = first {
                let reason = format!("its data at {start} overlaps that of `{}`", first.name.escape_debug());
                return Err(Error::Tensor { name: self.name_at(second).to_owned(), reason });
            }
        }
        Ok(())
    }

    fn sort_names(&mut self) -> Result<(), Error> {
        let mut by_name = std::mem::take(&mut self.by_name);
        by_name.sort_unstable_by_key(|&place| self.name_at(place));
        self.by_name = by_name;
        let twice = self.by_name.windows(2).find(|pair| self.name_at(pair[0]) == self.name_at(pair[1]));
        match twice {
            Some(pair) => {
                let name = self.name_at(pair[0]).to_owned();
                Err(Error::Tensor { name, reason: "the name stands twice".to_owned() })
            }
            None => Ok(()),
        }
    }
}

impl Tensor<'_> {
    /// How many numbers it has.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its numbers.
    ///
    /// # Panics
    /// If `out` has not room for exactly as many.
    pub fn dequantize(&self, out: &mut [f32]) {
        self.format.dequantize(self.data, out);
    }

    /// Its numbers, in memory of their own.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.n_elements()];
        self.dequantize(&mut out);
        out
    }
}

/// An entry of the table.
struct Entry<'a> {
    name: &'a str,
    shape: Vec<usize>,
    format: Format,
    /// Where its data starts, counted from where all data does.
    offset: u64,
    n_bytes: usize,
}

impl<'a> Entry<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Error> {
        let name = reader.text()?;
        let wrong = |reason: String| Error::Tensor { name: name.to_owned(), reason };
        let n_dims = reader.u32()?;
        if n_dims as usize > MAX_DIMS {
            return Err(wrong(format!("{n_dims} dimensions, but 1 to {MAX_DIMS} are possible")));
        }
        let mut shape = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            let n = reader.u64()?;
            let fits = usize::try_from(n).ok().filter(|_| i64::try_from(n).is_ok());
            shape.push(fits.ok_or_else(|| wrong(format!("a dimension of {n}")))?);
        }
        shape.reverse();
        let number = reader.u32()?;
        let format = Format::from_number(number)
            .ok_or_else(|| Error::UnknownFormat { name: name.to_owned(), found: Format::describe(number) })?;
        let n_bytes = check(name, &shape, format)?;
        Ok(Self { name, shape, format, offset: reader.u64()?, n_bytes })
    }
}
