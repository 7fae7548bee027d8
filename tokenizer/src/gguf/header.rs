//! Reading the keys and values.
//!
//! Values are found, not copied: what is kept is where each key stands, 8 bytes for at least 14 of the file. Every count
//! is checked against the bytes that are left before anything is done with it, and a value is read as what it is declared
//! to be: asked for as anything else, it is an error. Arrays of arrays, which no model has, are refused.

use std::fmt;

use super::value::Value;
use super::{ARRAY, DEFAULT_ALIGNMENT, Kind, MAGIC, PART};
use crate::Error;

/// The key that says where tensors may start.
pub(super) const ALIGNMENT: &str = "general.alignment";

/// Bytes of a key with its value, at least: a length, a letter, a type and a byte.
const MIN_ENTRY: usize = 8 + 1 + 4 + 1;

/// Characters of a text, and elements of an array, that are shown.
const SHOWN_CHARS: usize = 72;
const SHOWN_ELEMENTS: usize = 6;

/// The keys and values at the start of a GGUF.
pub struct Header<'a> {
    bytes: &'a [u8],
    version: u32,
    n_tensors: u64,
    /// Where each key starts, in order of the keys.
    by_key: Vec<usize>,
    end: usize,
}

/// A value as it stands in a file: its type, for arrays the number of elements, and its bytes.
#[derive(Clone, Copy)]
pub struct Entry<'a> {
    kind: Kind,
    /// Nothing for a single value.
    n_elements: Option<usize>,
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Header<'a> {
    /// Reads the start of a file; `bytes` may end where the values do, or go on.
    ///
    /// # Errors
    /// [`Error::CutShort`] if more bytes are needed, [`Error::Unsupported`] for other versions and big-endian files, and
    /// [`Error::Malformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes, 0);
        if reader.take(4)? != MAGIC {
            return Err(malformed(0, "the file does not start with `GGUF`"));
        }
        let version = reader.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(unsupported_version(version));
        }
        let n_tensors = reader.u64()?;
        let n_entries = reader.count(MIN_ENTRY)?;
        let mut by_key = Vec::with_capacity(n_entries);
        for _ in 0..n_entries {
            let offset = reader.offset;
            if reader.text()?.is_empty() {
                return Err(malformed(offset, "a key is empty"));
            }
            reader.entry()?;
            by_key.push(offset);
        }
        by_key.sort_unstable_by_key(|&offset| (key_at(bytes, offset), offset));
        if let Some(pair) = by_key.windows(2).find(|pair| key_at(bytes, pair[0]) == key_at(bytes, pair[1])) {
            let key = key_at(bytes, pair[1]);
            return Err(malformed(pair[1], &format!("the key `{key}` stands twice")));
        }
        Ok(Self { bytes, version, n_tensors, by_key, end: reader.offset })
    }

    /// The version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// How many tensors the file says it has.
    pub fn n_tensors(&self) -> u64 {
        self.n_tensors
    }

    /// Where the values end and the table of tensors begins, in bytes from the start of the file.
    pub fn end(&self) -> usize {
        self.end
    }

    /// What follows the values: the table of tensors, if the bytes go on.
    pub fn rest(&self) -> Reader<'a> {
        Reader::at(self.bytes, self.end)
    }

    /// All keys with their values, in the order of the file.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, Entry<'a>)> {
        let mut offsets = self.by_key.clone();
        offsets.sort_unstable();
        offsets.into_iter().filter_map(|offset| {
            let mut reader = Reader::at(self.bytes, offset);
            Some((reader.text().ok()?, reader.entry().ok()?))
        })
    }

    /// The value of a key.
    ///
    /// # Errors
    /// None for a key that stands in the file: it was read before.
    fn get(&self, key: &str) -> Result<Option<Entry<'a>>, Error> {
        let Ok(idx) = self.by_key.binary_search_by_key(&key, |&offset| key_at(self.bytes, offset)) else {
            return Ok(None);
        };
        let offset = self.by_key[idx];
        let mut reader = Reader::at(self.bytes, offset);
        reader.text()?;
        reader.entry().map(Some)
    }

    /// The error that says that a key is missing.
    pub fn missing(&self, key: &str) -> Error {
        malformed(0, &format!("the key `{key}` is missing"))
    }

    /// Where tensors may start: at multiples of this many bytes, a power of two.
    ///
    /// # Errors
    /// [`Error::Malformed`] for any other number, and for any type but 32 bits without a sign.
    pub fn alignment(&self) -> Result<usize, Error> {
        let Some(entry) = self.single(ALIGNMENT, &[Kind::U32])? else {
            return Ok(DEFAULT_ALIGNMENT as usize);
        };
        let alignment = entry.whole_numbers()?[0];
        let power = usize::try_from(alignment).ok().filter(|alignment| alignment.is_power_of_two());
        power.ok_or_else(|| {
            malformed(entry.offset, &format!("`{ALIGNMENT}` is {alignment}, which is no power of two"))
        })
    }

    /// A text.
    ///
    /// # Errors
    /// Here and below, [`Error::Malformed`] for a value of another type; nothing is no error.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let Some(entry) = self.single(key, &[Kind::String])? else { return Ok(None) };
        entry.reader().text().map(Some)
    }

    /// A truth value.
    ///
    /// # Errors
    /// As [`Header::text`].
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        Ok(self.single(key, &[Kind::Bool])?.map(|entry| entry.bytes != [0]))
    }

    /// A number that is not negative, in any type of whole number.
    ///
    /// # Errors
    /// As [`Header::text`], and for a negative number.
    pub fn count(&self, key: &str) -> Result<Option<u64>, Error> {
        let Some(entry) = self.single(key, &Kind::WHOLE)? else { return Ok(None) };
        if entry.kind == Kind::U64 {
            return entry.reader().u64().map(Some);
        }
        let number = entry.whole_numbers()?[0];
        let count = u64::try_from(number).ok();
        count
            .map(Some)
            .ok_or_else(|| malformed(entry.offset, &format!("`{key}` is {number}, which is no count")))
    }

    /// An id, in any type of whole number.
    ///
    /// # Errors
    /// As [`Header::text`], and for a number that is no id.
    pub fn id(&self, key: &str) -> Result<Option<u32>, Error> {
        let Some(entry) = self.single(key, &Kind::WHOLE)? else { return Ok(None) };
        let number = entry.whole_numbers()?[0];
        // -1 and the highest number say that there is none.
        if number == -1 || number == i64::from(u32::MAX) {
            return Ok(None);
        }
        let id = u32::try_from(number).ok();
        id.map(Some).ok_or_else(|| malformed(entry.offset, &format!("`{key}` is {number}, which is no id")))
    }

    /// A number in single or double precision. Of single precision, `as f32` gives back what the file has.
    ///
    /// # Errors
    /// As [`Header::text`].
    pub fn float(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(entry) = self.single(key, &[Kind::F32, Kind::F64])? else { return Ok(None) };
        Ok(Some(match entry.kind {
            Kind::F64 => f64::from_le_bytes(entry.bytes.try_into().unwrap_or_default()),
            _ => f32::from_le_bytes(entry.bytes.try_into().unwrap_or_default()).into(),
        }))
    }

    /// A list of texts.
    ///
    /// # Errors
    /// As [`Header::text`].
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, Error> {
        let Some((entry, n)) = self.array(key, &[Kind::String])? else { return Ok(None) };
        let mut reader = entry.reader();
        // The bytes were gone through once, so `n` texts of at least 8 bytes are there.
        let mut texts = Vec::with_capacity(n);
        for _ in 0..n {
            texts.push(reader.text()?);
        }
        Ok(Some(texts))
    }

    /// A list of truth values.
    ///
    /// # Errors
    /// As [`Header::text`].
    pub fn flags(&self, key: &str) -> Result<Option<Vec<bool>>, Error> {
        Ok(self
            .array(key, &[Kind::Bool])?
            .map(|(entry, _)| entry.bytes.iter().map(|&byte| byte != 0).collect()))
    }

    /// A list of 32-bit whole numbers.
    ///
    /// # Errors
    /// As [`Header::text`].
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        match self.array(key, &[Kind::I32, Kind::U32])? {
            Some((entry, _)) => entry.whole_numbers().map(Some),
            None => Ok(None),
        }
    }

    /// A list of numbers, as llama.cpp takes them for scores.
    ///
    /// # Errors
    /// As [`Header::text`].
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        let Some((entry, _)) = self.array(key, &[Kind::F32, Kind::I32])? else { return Ok(None) };
        if entry.kind == Kind::I32 {
            return Ok(Some(entry.whole_numbers()?.into_iter().map(|number| number as f32).collect()));
        }
        Ok(Some(entry.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
    }

    /// A list of bytes.
    ///
    /// # Errors
    /// As [`Header::text`].
    pub fn raw_bytes(&self, key: &str) -> Result<Option<&'a [u8]>, Error> {
        Ok(self.array(key, &[Kind::U8, Kind::I8])?.map(|(entry, _)| entry.bytes))
    }

    /// Whether a key has an array for its value.
    ///
    /// # Errors
    /// As [`Header::text`].
    pub fn is_array(&self, key: &str) -> Result<bool, Error> {
        Ok(self.get(key)?.is_some_and(|entry| entry.n_elements.is_some()))
    }

    fn single(&self, key: &str, kinds: &[Kind]) -> Result<Option<Entry<'a>>, Error> {
        match self.get(key)? {
            Some(entry) if entry.n_elements.is_some() || !kinds.contains(&entry.kind) => {
                Err(entry.wrong(key, "one", kinds))
            }
            found => Ok(found),
        }
    }

    fn array(&self, key: &str, kinds: &[Kind]) -> Result<Option<(Entry<'a>, usize)>, Error> {
        match self.get(key)? {
            Some(entry @ Entry { n_elements: Some(n), .. }) if kinds.contains(&entry.kind) => {
                Ok(Some((entry, n)))
            }
            Some(entry) => Err(entry.wrong(key, "an array", kinds)),
            None => Ok(None),
        }
    }
}

impl<'a> Entry<'a> {
    /// The value by itself, as it would be written again.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a text that is not UTF-8.
    pub fn to_value(&self) -> Result<Value, Error> {
        Value::read(self.kind, self.n_elements, self.bytes, self.offset)
    }

    /// Bytes that the value takes in the file.
    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn reader(&self) -> Reader<'a> {
        Reader::new(self.bytes, self.offset)
    }

    fn wrong(&self, key: &str, number: &str, kinds: &[Kind]) -> Error {
        let array = if self.n_elements.is_some() { "an array of " } else { "" };
        let reason = format!("`{key}` is {array}{:?}, but should be {number} of {kinds:?}", self.kind);
        malformed(self.offset, &reason)
    }

    /// The elements, or the one value, of any type of whole number.
    fn whole_numbers(&self) -> Result<Vec<i64>, Error> {
        let number = |bytes: &[u8]| {
            let mut padded = [0; 8];
            padded[..bytes.len()].copy_from_slice(bytes);
            let unsigned = u64::from_le_bytes(padded);
            let n_unused_bits = 64 - 8 * bytes.len() as u32;
            match self.kind {
                Kind::U64 => i64::try_from(unsigned).ok(),
                Kind::I8 | Kind::I16 | Kind::I32 | Kind::I64 => {
                    // Shifting up and down again repeats the sign.
                    Some((unsigned << n_unused_bits) as i64 >> n_unused_bits)
                }
                _ => Some(unsigned as i64),
            }
            .ok_or_else(|| malformed(self.offset, &format!("{unsigned} is too large")))
        };
        let size = self.kind.size().ok_or_else(|| malformed(self.offset, "text is no number"))?;
        self.bytes.chunks_exact(size).map(number).collect()
    }

    /// The first `n` values, as people read them, and whether these are all.
    fn first(&self, n: usize) -> (Vec<String>, bool) {
        let n_elements = self.n_elements.unwrap_or(1);
        let mut reader = self.reader();
        let shown = (0..n.min(n_elements)).map_while(|_| match self.kind.size() {
            Some(size) => Some(shown_number(self.kind, reader.take(size).ok()?)),
            None => reader.bytes().ok().map(shown_text),
        });
        (shown.collect(), n_elements <= n)
    }
}

/// For people: long texts and arrays are cut, and nothing in them can move a terminal's cursor.
impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (values, is_all) = self.first(SHOWN_ELEMENTS);
        let list = values.join(", ");
        match self.n_elements {
            None => f.write_str(&list),
            Some(_) if is_all => write!(f, "[{list}]"),
            Some(n) => write!(f, "[{list}, ...] ({n} in all)"),
        }
    }
}

fn shown_number(kind: Kind, bytes: &[u8]) -> String {
    match Value::read(kind, None, bytes, 0) {
        Ok(value) => value.to_string(),
        Err(problem) => problem.to_string(),
    }
}

fn shown_text(bytes: &[u8]) -> String {
    // Four bytes hold any character: what is cut here is not shown anyway.
    let head = &bytes[..bytes.len().min(4 * SHOWN_CHARS + 4)];
    let text = String::from_utf8_lossy(head);
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    let is_all = head.len() == bytes.len() && shown.len() == text.len();
    format!("{shown:?}{}", if is_all { "" } else { "..." })
}

/// The key that starts at `offset`, which was read before.
fn key_at(bytes: &[u8], offset: usize) -> &str {
    Reader::at(bytes, offset).text().unwrap_or_default()
}

fn unsupported_version(version: u32) -> Error {
    let found = match version.swap_bytes() {
        swapped @ 1..=3 => format!("big-endian (version {swapped})"),
        _ => format!("version {version}"),
    };
    Error::Unsupported { part: PART, found, supported: "versions 2 and 3, little-endian" }
}

/// What is left of a file's bytes, and where in the file it starts. What is cut short is an error that says how many
/// bytes would do.
pub struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(rest: &'a [u8], offset: usize) -> Self {
        Self { rest, offset }
    }

    /// The bytes of a file from `offset` on, which lies inside it.
    fn at(bytes: &'a [u8], offset: usize) -> Self {
        Self { rest: &bytes[offset..], offset }
    }

    /// Bytes from the start of the file.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The next `n` bytes.
    ///
    /// # Errors
    /// Here and below, [`Error::CutShort`].
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let Some((bytes, rest)) = self.rest.split_at_checked(n) else {
            let reason = format!("{n} bytes are needed, but {} are left", self.rest.len());
            return Err(cut_short(self.offset, self.offset, n as u64, reason));
        };
        self.rest = rest;
        self.offset += n;
        Ok(bytes)
    }

    /// A number of 32 bits.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().unwrap_or_default()))
    }

    /// A number of 64 bits.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().unwrap_or_default()))
    }

    /// A count of things that take at least `size` bytes each, which are there.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn count(&mut self, size: usize) -> Result<usize, Error> {
        let n = self.u64()?;
        self.fit(n, size)
    }

    /// `n`, which is said to be the number of things of at least `size` bytes each, if so many bytes are left.
    ///
    /// # Errors
    /// As [`Reader::take`].
    pub fn fit(&self, n: u64, size: usize) -> Result<usize, Error> {
        let fits = usize::try_from(n).ok().filter(|&n| n <= self.rest.len() / size);
        fits.ok_or_else(|| {
            let reason =
                format!("{n} elements of {size} bytes or more, but {} bytes are left", self.rest.len());
            cut_short(self.offset.saturating_sub(8), self.offset, n.saturating_mul(size as u64), reason)
        })
    }

    /// The bytes of a text.
    fn bytes(&mut self) -> Result<&'a [u8], Error> {
        let n = self.count(1)?;
        self.take(n)
    }

    /// A text: its length in 64 bits, and UTF-8.
    ///
    /// # Errors
    /// As [`Reader::take`], and [`Error::Malformed`].
    pub fn text(&mut self) -> Result<&'a str, Error> {
        let bytes = self.bytes()?;
        let offset = self.offset - bytes.len();
        std::str::from_utf8(bytes).map_err(|error| malformed(offset + error.valid_up_to(), "not UTF-8"))
    }

    fn entry(&mut self) -> Result<Entry<'a>, Error> {
        let offset = self.offset;
        let number = self.u32()?;
        let is_array = number == ARRAY;
        let number = if is_array { self.u32()? } else { number };
        let kind = Kind::from_number(number).ok_or_else(|| {
            let reason =
                if number == ARRAY { "an array of arrays".to_owned() } else { format!("type {number}") };
            malformed(offset, &reason)
        })?;
        let n = if is_array { self.count(kind.size().unwrap_or(8))? } else { 1 };
        let (start, before) = (self.offset, self.rest);
        match kind.size() {
            // `count` has checked the product.
            Some(size) => drop(self.take(n * size)?),
            None => (0..n).try_for_each(|_| self.bytes().map(drop))?,
        }
        let bytes = &before[..self.offset - start];
        Ok(Entry { kind, n_elements: is_array.then_some(n), bytes, offset: start })
    }
}

/// `n_bytes` were to come from `start` on.
fn cut_short(offset: usize, start: usize, n_bytes: u64, reason: String) -> Error {
    Error::CutShort { part: PART, offset, needed: n_bytes.saturating_add(start as u64), reason }
}

fn malformed(offset: usize, reason: &str) -> Error {
    Error::Malformed { part: PART, offset, reason: reason.to_owned() }
}
