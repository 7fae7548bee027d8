//! The key/value part of a GGUF, versions 2 and 3, little-endian.
//!
//! Values are found, not copied: what is kept of a value is where its bytes are, so memory follows the number of keys,
//! and a key takes at least 13 bytes of the file. Every count is checked against the bytes that are left before anything
//! is done with it, and an array is read as what its elements are declared to be: asked for as anything else, it is an
//! error. Arrays of arrays, which no vocabulary has, are refused.

use std::collections::HashMap;

use crate::Error;
use crate::hash::Seeded;

/// What errors call this format.
const PART: &str = "GGUF";

/// The values by key.
pub(super) struct Header<'a> {
    values: HashMap<&'a str, Value<'a>, Seeded>,
}

/// A value: its type, for arrays the number of elements, and its bytes.
#[derive(Clone, Copy)]
struct Value<'a> {
    kind: Kind,
    /// Nothing for a single value.
    n_elements: Option<usize>,
    bytes: &'a [u8],
    offset: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    U64,
    I64,
    F64,
}

/// The number that stands for an array.
const ARRAY: u32 = 9;

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            8 => Self::String,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of a value, if they are always as many.
    fn size(self) -> Option<usize> {
        Some(match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::String => return None,
        })
    }
}

impl<'a> Header<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader { rest: bytes, offset: 0 };
        if reader.take(4)? != b"GGUF" {
            return Err(malformed(0, "the file does not start with `GGUF`"));
        }
        let version = reader.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(Error::Unsupported {
                part: PART,
                found: format!("version {version}"),
                supported: "versions 2 and 3, little-endian",
            });
        }
        let _n_tensors = reader.u64()?;
        let n_values = reader.u64()?;
        let mut values = HashMap::default();
        for _ in 0..n_values {
            let offset = reader.offset;
            let key = reader.text()?;
            let value = reader.value()?;
            if key.starts_with("tokenizer.") && values.insert(key, value).is_some() {
                return Err(malformed(offset, &format!("the key `{key}` stands twice")));
            }
        }
        Ok(Self { values })
    }

    pub(super) fn missing(&self, key: &str) -> Error {
        malformed(0, &format!("the key `{key}` is missing"))
    }

    fn get(&self, key: &str) -> Option<Value<'a>> {
        self.values.get(key).copied()
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        let Some(value) = self.single(key, &[Kind::String])? else { return Ok(None) };
        Reader { rest: value.bytes, offset: value.offset }.text().map(Some)
    }

    /// A truth value.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        Ok(self.single(key, &[Kind::Bool])?.map(|value| value.bytes != [0]))
    }

    /// An id, in any type of whole number.
    pub(super) fn id(&self, key: &str) -> Result<Option<u32>, Error> {
        let whole = [Kind::U8, Kind::I8, Kind::U16, Kind::I16, Kind::U32, Kind::I32, Kind::U64, Kind::I64];
        let Some(value) = self.single(key, &whole)? else { return Ok(None) };
        let number = value.whole_numbers()?[0];
        // -1 and the highest number say that there is none.
        if number == -1 || number == i64::from(u32::MAX) {
            return Ok(None);
        }
        let id = u32::try_from(number).ok();
        id.map(Some).ok_or_else(|| malformed(value.offset, &format!("`{key}` is {number}, which is no id")))
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, Error> {
        let Some((value, n)) = self.array(key, &[Kind::String])? else { return Ok(None) };
        let mut reader = Reader { rest: value.bytes, offset: value.offset };
        // The bytes were gone through once, so `n` texts of at least 8 bytes are there.
        let mut texts = Vec::with_capacity(n);
        for _ in 0..n {
            texts.push(reader.text()?);
        }
        Ok(Some(texts))
    }

    /// A list of 32-bit whole numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<i64>>, Error> {
        match self.array(key, &[Kind::I32, Kind::U32])? {
            Some((value, _)) => value.whole_numbers().map(Some),
            None => Ok(None),
        }
    }

    /// A list of numbers, as llama.cpp takes them for scores.
    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        let Some((value, _)) = self.array(key, &[Kind::F32, Kind::I32])? else { return Ok(None) };
        if value.kind == Kind::I32 {
            return Ok(Some(value.whole_numbers()?.into_iter().map(|number| number as f32).collect()));
        }
        Ok(Some(value.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
    }

    /// A list of bytes.
    pub(super) fn raw_bytes(&self, key: &str) -> Result<Option<&'a [u8]>, Error> {
        Ok(self.array(key, &[Kind::U8, Kind::I8])?.map(|(value, _)| value.bytes))
    }

    fn single(&self, key: &str, kinds: &[Kind]) -> Result<Option<Value<'a>>, Error> {
        match self.get(key) {
            Some(value) if value.n_elements.is_some() || !kinds.contains(&value.kind) => {
                Err(value.wrong(key, "one", kinds))
            }
            found => Ok(found),
        }
    }

    fn array(&self, key: &str, kinds: &[Kind]) -> Result<Option<(Value<'a>, usize)>, Error> {
        match self.get(key) {
            Some(value @ Value { n_elements: Some(n), .. }) if kinds.contains(&value.kind) => {
                Ok(Some((value, n)))
            }
            Some(value) => Err(value.wrong(key, "an array", kinds)),
            None => Ok(None),
        }
    }
}

impl Value<'_> {
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
}

/// The bytes that are left, and where they start.
struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Error> {
        let Some((bytes, rest)) = self.rest.split_at_checked(n) else {
            let reason = format!("{n} bytes are needed, but {} are left", self.rest.len());
            return Err(cut_short(self.offset, self.offset, n as u64, reason));
        };
        self.rest = rest;
        self.offset += n;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().unwrap_or_default()))
    }

    fn u64(&mut self) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().unwrap_or_default()))
    }

    /// A count of things that take at least `size` bytes each.
    fn count(&mut self, size: usize) -> Result<usize, Error> {
        let offset = self.offset;
        let n = self.u64()?;
        let fits = usize::try_from(n).ok().filter(|&n| n <= self.rest.len() / size);
        fits.ok_or_else(|| {
            let reason =
                format!("{n} elements of {size} bytes or more, but {} bytes are left", self.rest.len());
            cut_short(offset, self.offset, n.saturating_mul(size as u64), reason)
        })
    }

    fn text(&mut self) -> Result<&'a str, Error> {
        let n = self.count(1)?;
        let offset = self.offset;
        std::str::from_utf8(self.take(n)?)
            .map_err(|error| malformed(offset + error.valid_up_to(), "not UTF-8"))
    }

    fn skip_text(&mut self) -> Result<(), Error> {
        let n = self.count(1)?;
        self.take(n).map(drop)
    }

    fn value(&mut self) -> Result<Value<'a>, Error> {
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
            None => (0..n).try_for_each(|_| self.skip_text())?,
        }
        let bytes = &before[..self.offset - start];
        Ok(Value { kind, n_elements: is_array.then_some(n), bytes, offset: start })
    }
}

/// `n_bytes` were to come from `start` on.
fn cut_short(offset: usize, start: usize, n_bytes: u64, reason: String) -> Error {
    Error::CutShort { part: PART, offset, needed: n_bytes.saturating_add(start as u64), reason }
}

fn malformed(offset: usize, reason: &str) -> Error {
    Error::Malformed { part: PART, offset, reason: reason.to_owned() }
}
