//! How values print: Python's `str` and `repr`.

use std::rc::Rc;

use super::Raise;
use super::text;
use super::value::{Buf, Meter, Seq, SeqKind, Str, Value};

impl Value {
    /// Appends Python's `str(self)`.
    pub fn print(&self, out: &mut Buf) -> Result<(), Raise> {
        match self {
            Self::Undefined(_) => Ok(()),
            Self::Str(text) => out.push(text.raw()),
            _ => self.repr(out),
        }
    }

    /// Appends Python's `repr(self)`.
    pub fn repr(&self, out: &mut Buf) -> Result<(), Raise> {
        out.meter().work(1)?;
        match self {
            Self::Undefined(_) => out.push("Undefined"),
            Self::None => out.push("None"),
            Self::Bool(bool) => out.push(if *bool { "True" } else { "False" }),
            Self::Int(int) => out.push(&int.to_string()),
            Self::Float(float) => out.push(&text::float_repr(*float)),
            Self::Str(text) => text::str_repr(text.raw(), out),
            Self::Seq(seq) => seq.repr(out),
            Self::Dict(dict) => {
                out.push("{")?;
                for (at, (key, value)) in dict.entries.iter().enumerate() {
                    out.push(if at > 0 { ", " } else { "" })?;
                    key.repr(out)?;
                    out.push(": ")?;
                    value.repr(out)?;
                }
                out.push("}")
            }
            _ => Err(Raise::new(format!("a {} has no text of its own", self.type_name()))),
        }
    }

    /// Python's `str(self)` as a value.
    pub fn to_str(&self, meter: &Rc<Meter>) -> Result<Rc<Str>, Raise> {
        if let Self::Str(text) = self {
            return Ok(Rc::clone(text));
        }
        let mut out = meter.buf();
        self.print(&mut out)?;
        match out.into_value()? {
            Self::Str(text) => Ok(text),
            _ => Err(Raise::new("no text")),
        }
    }
}

impl Seq {
    fn repr(&self, out: &mut Buf) -> Result<(), Raise> {
        let (open, close) = match self.kind {
            SeqKind::List => ("[", "]"),
            SeqKind::Tuple if self.items.len() == 1 => ("(", ",)"),
            SeqKind::Tuple => ("(", ")"),
            SeqKind::Keys => ("dict_keys([", "])"),
            SeqKind::Values => ("dict_values([", "])"),
            SeqKind::Items => ("dict_items([", "])"),
            SeqKind::Generator => return Err(Raise::new("a generator has no text: use `|list`")),
            SeqKind::Range => return Err(Raise::new("a range has no text: use `|list`")),
        };
        out.push(open)?;
        for (at, item) in self.items.iter().enumerate() {
            out.push(if at > 0 { ", " } else { "" })?;
            item.repr(out)?;
        }
        out.push(close)
    }
}
