//! Values that are owned, and how they are written.

use std::collections::HashSet;
use std::fmt;

use super::header::Reader;
use super::{ARRAY, DEFAULT_ALIGNMENT, Kind, MAGIC, PART};
use crate::Error;

/// The version that is written.
const VERSION: u32 = 3;

/// Defines both enums, one case a type, and what they have in common.
macro_rules! values {
    ($($name:ident($type:ty), $doc:literal;)*) => {
        /// A value of a GGUF.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value {
            $(#[doc = $doc] $name($type),)*
            /// An array.
            Array(Array),
        }

        /// An array of a GGUF: values of one type. There are no arrays of arrays.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $(#[doc = concat!($doc, " Any number of them.")] $name(Vec<$type>),)*
        }

        impl Value {
            fn kind(&self) -> Kind {
                match self {
                    $(Self::$name(_) | Self::Array(Array::$name(_)) => Kind::$name,)*
                }
            }

            /// Reads the bytes of one value, or those of `n` elements; the error is at `offset`.
            pub(super) fn read(kind: Kind, n: Option<usize>, bytes: &[u8], offset: usize) -> Result<Self, Error> {
                let mut reader = Reader::new(bytes, offset);
                Ok(match (kind, n) {
                    $((Kind::$name, None) => Self::$name(<$type>::read(&mut reader)?),)*
                    $((Kind::$name, Some(n)) => Self::Array(Array::$name(
                        (0..n).map(|_| <$type>::read(&mut reader)).collect::<Result<_, _>>()?,
                    )),)*
                })
            }

            fn write_bytes(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$name(value) => value.write(out),)*
                    $(Self::Array(Array::$name(values)) => {
                        (values.len() as u64).write(out);
                        values.iter().for_each(|value| value.write(out));
                    })*
                }
            }
        }

        /// Numbers and texts as they are, arrays as in Rust.
        impl fmt::Display for Value {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name(value) => fmt::Display::fmt(value, f),)*
                    $(Self::Array(Array::$name(values)) => fmt::Debug::fmt(values, f),)*
                }
            }
        }

        $(impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$name(value)
            }
        }

        impl From<Vec<$type>> for Value {
            fn from(values: Vec<$type>) -> Self {
                Self::Array(Array::$name(values))
            }
        })*
    };
}

values! {
    U8(u8), "8 bits, not negative.";
    I8(i8), "8 bits.";
    U16(u16), "16 bits, not negative.";
    I16(i16), "16 bits.";
    U32(u32), "32 bits, not negative.";
    I32(i32), "32 bits.";
    F32(f32), "Single precision.";
    Bool(bool), "A truth value.";
    String(String), "A text.";
    U64(u64), "64 bits, not negative.";
    I64(i64), "64 bits.";
    F64(f64), "Double precision.";
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

/// What is read and written as the format spells it.
trait Stored: Sized {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Error>;

    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! stored_numbers {
    ($($type:ty)*) => {$(
        impl Stored for $type {
            fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
                let bytes = reader.take(size_of::<Self>())?;
                Ok(Self::from_le_bytes(bytes.try_into().unwrap_or_default()))
            }

            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

stored_numbers! { u8 i8 u16 i16 u32 i32 f32 u64 i64 f64 }

impl Stored for bool {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(reader.take(1)? != [0])
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push((*self).into());
    }
}

impl Stored for String {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        reader.text().map(str::to_owned)
    }

    fn write(&self, out: &mut Vec<u8>) {
        (self.len() as u64).write(out);
        out.extend_from_slice(self.as_bytes());
    }
}

/// The start of a file, up to where its table of tensors begins.
///
/// # Errors
/// [`Error::Malformed`] for a key that is empty or stands twice, and for a `general.alignment` that is no power of two;
/// the offset is where the key would have stood.
pub fn write_head(n_tensors: usize, values: &[(String, Value)]) -> Result<Vec<u8>, Error> {
    let mut out = MAGIC.to_vec();
    VERSION.write(&mut out);
    (n_tensors as u64).write(&mut out);
    (values.len() as u64).write(&mut out);
    let mut seen = HashSet::new();
    for (key, value) in values {
        let malformed = |reason: String| Error::Malformed { part: PART, offset: out.len(), reason };
        if key.is_empty() {
            return Err(malformed("a key is empty".to_owned()));
        }
        if !seen.insert(key) {
            return Err(malformed(format!("the key `{key}` stands twice")));
        }
        if key == super::header::ALIGNMENT
            && !matches!(value, Value::U32(alignment) if alignment.is_power_of_two())
        {
            return Err(malformed(format!(
                "`{key}` is no power of two in 32 bits, such as {DEFAULT_ALIGNMENT}"
            )));
        }
        key.write(&mut out);
        if matches!(value, Value::Array(_)) {
            ARRAY.write(&mut out);
        }
        (value.kind() as u32).write(&mut out);
        value.write_bytes(&mut out);
    }
    Ok(out)
}
