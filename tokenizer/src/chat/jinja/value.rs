//! Python's values as a template sees them, each accounted for.
//!
//! Every string, list and dictionary that a template makes is charged to the [`Meter`] of its rendering and credited
//! when it is dropped, so the memory of intermediate results is bounded whatever a template does: there is no operator
//! that makes a value past the meter. Lists and dictionaries know how deep they nest and may not nest deeper than
//! [`MAX_DEPTH`], so walking, printing and dropping them cannot overflow the stack. They are immutable, as in Hugging
//! Face's sandbox; only namespaces change, and they live in the interpreter (a namespace may hold itself).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use super::Raise;
use crate::chat::Role;
use crate::chat::json::Json;

/// The most levels to which lists and dictionaries nest: more than JSON is read to (128).
const MAX_DEPTH: usize = 200;
/// What a heap object costs besides its contents: counts, header and the allocator's rounding.
const OBJECT_BYTES: usize = 64;
/// What one place in a list costs, with the slack of a growing vector.
const SLOT_BYTES: usize = 2 * size_of::<Value>();
/// Dictionaries larger than this look keys up by hash.
const SMALL_DICT: usize = 8;

/// Bounds the memory and the work of one rendering.
pub(super) struct Meter {
    live: Cell<usize>,
    live_limit: Cell<usize>,
    fuel: Cell<u64>,
    marks: Option<Marks>,
}

/// How the caller's text is told from the template's.
///
/// Two signs, characters that occur in neither, are put before each of the caller's strings and after each of its
/// characters in `firsts`, so that no special token can be spelled with one of the caller's characters, also not
/// together with what the template puts around it or by what the template cuts out. Operators, methods and filters do
/// not see the signs; they only travel along to the output.
#[derive(Clone, Debug)]
pub(in crate::chat) struct Marks {
    /// Stands before a string of the caller's.
    pub begin: char,
    /// Stands after a character of the caller's. It is not `begin`, for a special token of one character that the
    /// template writes before a string of the caller's is the template's.
    pub after: char,
    /// The first characters of the special tokens, sorted.
    pub firsts: Vec<char>,
}

impl Marks {
    /// The length of a sign in UTF-8, which is the same for all of them.
    const SIGN_BYTES: usize = 3;

    pub fn is_sign(&self, c: char) -> bool {
        c == self.begin || c == self.after
    }

    fn is_first(&self, c: char) -> bool {
        self.firsts.binary_search(&c).is_ok()
    }

    fn mark(&self, text: &str) -> String {
        let mut marked = String::with_capacity(text.len() + 8);
        marked.push(self.begin);
        for c in text.chars() {
            marked.push(c);
            if self.is_first(c) {
                marked.push(self.after);
            }
        }
        marked
    }
}

impl Meter {
    /// Without bounds: the caller's own values are not the template's.
    pub fn new(marks: Option<Marks>) -> Rc<Self> {
        let (live_limit, fuel) = (Cell::new(usize::MAX), Cell::new(u64::MAX));
        Rc::new(Self { live: Cell::new(0), live_limit, fuel, marks })
    }

    /// Whether `c` is a sign of the caller's text.
    pub fn is_sign(&self, c: char) -> bool {
        self.marks.as_ref().is_some_and(|marks| marks.is_sign(c))
    }

    /// A string of the caller's.
    pub fn marked(self: &Rc<Self>, text: &str) -> Result<Value, Raise> {
        match &self.marks {
            Some(marks) => self.str(marks.mark(text)),
            None => self.str(text),
        }
    }

    /// `made` is what `from` became.
    pub fn derived(self: &Rc<Self>, from: &Str, made: String) -> Result<Value, Raise> {
        self.str(self.like(from, &made))
    }

    /// `text` as a string with marks if `from` has some.
    pub fn like(&self, from: &Str, text: &str) -> String {
        match &self.marks {
            Some(marks) if from.plain.is_some() => marks.mark(text),
            _ => text.to_owned(),
        }
    }

    /// `text` with other letters; `case` appends what a character becomes. A letter that it makes may be the first of a
    /// special token where the caller's was none, so it is marked anew.
    pub fn recased(
        self: &Rc<Self>,
        text: &Str,
        mut case: impl FnMut(char, &mut String),
    ) -> Result<Value, Raise> {
        let marks = self.marks.as_ref().filter(|_| text.plain.is_some());
        let mut out = self.buf();
        let (mut done, mut made) = (String::new(), String::new());
        for c in text.raw().chars() {
            if self.is_sign(c) {
                done.push(c);
                continue;
            }
            made.clear();
            case(c, &mut made);
            let same = made.len() == c.len_utf8() && made.starts_with(c);
            match marks.filter(|_| !same) {
                None => done.push_str(&made),
                Some(marks) => {
                    for c in made.chars() {
                        done.push(c);
                        done.extend(marks.is_first(c).then_some(marks.after));
                    }
                }
            }
            if done.len() > 4096 {
                out.push(&done)?;
                done.clear();
            }
        }
        out.push(&done)?;
        out.into_value()
    }

    /// A part of `text.as_str()` as a string.
    pub fn part(self: &Rc<Self>, text: &Str, part: &str) -> Result<Value, Raise> {
        let mut out = self.buf();
        out.push_part(text, part)?;
        out.into_value()
    }

    /// From here on, `bytes` more may be held and `steps` of work be done.
    pub fn bound(&self, bytes: usize, steps: u64) {
        self.live_limit.set(self.live.get().saturating_add(bytes));
        self.fuel.set(steps);
    }

    pub fn live(&self) -> usize {
        self.live.get()
    }

    /// Steps of work that are left.
    pub fn fuel(&self) -> u64 {
        self.fuel.get()
    }

    /// Pays for `steps` of work.
    pub fn work(&self, steps: usize) -> Result<(), Raise> {
        match self.fuel.get().checked_sub(steps as u64) {
            Some(left) => {
                self.fuel.set(left);
                Ok(())
            }
            None => {
                Err(Raise::new("the template does more work than a chat template may: does a loop not end?"))
            }
        }
    }

    /// Pays for copying `bytes` bytes, which is cheap: some templates gather their whole text in one string.
    fn copy(&self, bytes: usize) -> Result<(), Raise> {
        self.work(1 + bytes / 256)
    }

    /// Pays for looking at `bytes` bytes one by one.
    pub fn touch(&self, bytes: usize) -> Result<(), Raise> {
        self.work(1 + bytes / 32)
    }

    /// Whether `bytes` more may be held.
    pub fn check(&self, bytes: usize) -> Result<(), Raise> {
        match self.live.get().checked_add(bytes) {
            Some(live) if live <= self.live_limit.get() => Ok(()),
            _ => Err(Raise::new(format!(
                "the template holds more than {} bytes of intermediate results",
                self.live_limit.get()
            ))),
        }
    }

    pub fn charge(&self, bytes: usize) -> Result<(), Raise> {
        self.check(bytes)?;
        self.copy(bytes)?;
        self.live.set(self.live.get() + bytes);
        Ok(())
    }

    pub fn credit(&self, bytes: usize) {
        self.live.set(self.live.get().saturating_sub(bytes));
    }

    pub fn str(self: &Rc<Self>, text: impl Into<String>) -> Result<Value, Raise> {
        self.new_str(text).map(Value::Str)
    }

    pub fn new_str(self: &Rc<Self>, text: impl Into<String>) -> Result<Rc<Str>, Raise> {
        let text: String = text.into();
        let marks = self.marks.as_ref();
        let marks = marks.filter(|marks| text.contains(marks.begin) || text.contains(marks.after));
        self.copy(if marks.is_some() { 4 * text.len() } else { 0 })?;
        let plain = marks.map(|marks| Plain::new(&text, marks));
        let bytes = OBJECT_BYTES + text.len() + plain.as_ref().map_or(0, Plain::n_bytes);
        self.charge(bytes)?;
        let n_chars = Cell::new(if text.is_ascii() { Some(text.len()) } else { None });
        let charged = Charged { bytes, meter: Rc::clone(self) };
        Ok(Rc::new(Str { text, plain, n_chars, charged }))
    }

    pub fn seq(self: &Rc<Self>, kind: SeqKind, items: Vec<Value>) -> Result<Value, Raise> {
        self.new_seq(kind, items).map(Value::Seq)
    }

    pub fn new_seq(self: &Rc<Self>, kind: SeqKind, items: Vec<Value>) -> Result<Rc<Seq>, Raise> {
        let depth = depth_over(items.iter())?;
        let bytes = OBJECT_BYTES + items.len() * SLOT_BYTES;
        self.charge(bytes)?;
        let charged = Charged { bytes, meter: Rc::clone(self) };
        Ok(Rc::new(Seq { kind, items, depth, spent: Cell::new(false), _charged: charged }))
    }

    pub fn list(self: &Rc<Self>, items: Vec<Value>) -> Result<Value, Raise> {
        self.seq(SeqKind::List, items)
    }

    /// A dictionary. A key that comes again keeps its place and takes the later value.
    pub fn dict(self: &Rc<Self>, pairs: Vec<(Value, Value)>) -> Result<Value, Raise> {
        let depth = depth_over(pairs.iter().flat_map(|(key, value)| [key, value]))?;
        let mut dict = Dict {
            entries: Vec::with_capacity(pairs.len()),
            index: HashMap::new(),
            depth,
            _charged: Charged { bytes: 0, meter: Rc::clone(self) },
        };
        for (key, value) in pairs {
            if matches!(key, Value::Seq(ref seq) if seq.kind == SeqKind::List)
                || matches!(key, Value::Dict(_))
            {
                return Err(Raise::new(format!("unhashable type: '{}'", key.type_name())));
            }
            dict.insert(key, value, self)?;
        }
        let keys: usize = if dict.index.is_empty() { 0 } else { dict.index.keys().map(String::len).sum() };
        let bytes = OBJECT_BYTES + dict.entries.len() * 4 * SLOT_BYTES + keys;
        self.charge(bytes)?;
        dict._charged.bytes = bytes;
        Ok(Value::Dict(Rc::new(dict)))
    }

    /// A value of the caller's.
    pub fn json(self: &Rc<Self>, json: &Json) -> Result<Value, Raise> {
        match json {
            Json::Null => Ok(Value::None),
            Json::Bool(bool) => Ok(Value::Bool(*bool)),
            Json::Int(int) => Ok(Value::Int(*int)),
            Json::Float(float) => Ok(Value::Float(*float)),
            Json::Str(text) => self.marked(text),
            Json::List(items) => {
                let items: Result<_, _> = items.iter().map(|item| self.json(item)).collect();
                self.list(items?)
            }
            Json::Dict(entries) => {
                let pairs: Result<_, Raise> = entries
                    .iter()
                    .map(|(key, value)| Ok((self.marked(key)?, self.entry(key, value)?)))
                    .collect();
                self.dict(pairs?)
            }
        }
    }

    /// A role is no text of the caller's but one of a few words, of which templates make tokens.
    fn entry(self: &Rc<Self>, key: &str, value: &Json) -> Result<Value, Raise> {
        match value.as_str() {
            Some(role) if key == "role" && Role::ALL.iter().any(|known| known.name() == role) => {
                self.str(role)
            }
            _ => self.json(value),
        }
    }

    /// A string that is checked as it grows.
    pub fn buf(self: &Rc<Self>) -> Buf {
        Buf { text: String::new(), meter: Rc::clone(self) }
    }
}

fn depth_over<'a>(values: impl Iterator<Item = &'a Value>) -> Result<usize, Raise> {
    let depth = 1 + values.map(Value::depth).max().unwrap_or_default();
    if depth > MAX_DEPTH {
        return Err(Raise::new(format!("lists and dictionaries nest deeper than {MAX_DEPTH} levels")));
    }
    Ok(depth)
}

/// A string under construction.
pub(super) struct Buf {
    text: String,
    meter: Rc<Meter>,
}

impl Buf {
    pub fn push(&mut self, text: &str) -> Result<(), Raise> {
        self.meter.check(self.text.len() + text.len())?;
        self.meter.copy(text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    /// Appends a part of `text.as_str()`, with its marks.
    pub fn push_part(&mut self, text: &Str, part: &str) -> Result<(), Raise> {
        let (Some(plain), Some(marks)) = (&text.plain, &self.meter.marks) else { return self.push(part) };
        if part.is_empty() {
            return Ok(());
        }
        // `part` lies in `plain.text`, so the difference of their addresses is its place.
        let start = (part.as_ptr() as usize).saturating_sub(plain.text.as_ptr() as usize);
        let (start, end) = (plain.raw_place(start), plain.raw_place(start + part.len()));
        self.push(marks.begin.encode_utf8(&mut [0; 4]))?;
        self.push(text.text.get(start..end).unwrap_or_default())
    }

    /// Appends `text` `times` times.
    pub fn repeat(&mut self, text: &str, times: usize) -> Result<(), Raise> {
        let added = text.len().checked_mul(times).and_then(|added| added.checked_add(self.text.len()));
        self.meter.check(added.unwrap_or(usize::MAX))?;
        self.meter.touch(text.len() * times)?;
        for _ in 0..if text.is_empty() { 0 } else { times } {
            self.text.push_str(text);
        }
        Ok(())
    }

    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    pub fn into_value(self) -> Result<Value, Raise> {
        self.meter.str(self.text)
    }

    pub fn into_string(self) -> String {
        self.text
    }
}

/// A share of the meter, given back when dropped.
struct Charged {
    bytes: usize,
    meter: Rc<Meter>,
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.meter.credit(self.bytes);
    }
}

#[derive(Clone)]
pub(super) enum Value {
    /// With what was looked for, to name it where the value is used.
    Undefined(Option<Rc<str>>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<Str>),
    Seq(Rc<Seq>),
    Dict(Rc<Dict>),
    /// A position in the interpreter's namespaces.
    Namespace(usize),
    /// A position in the interpreter's macros.
    Macro(usize),
    /// A global function.
    Function(&'static str),
    /// A method and what it belongs to.
    Method(Rc<(Value, String)>),
    Loop(Rc<Loop>),
}

pub(super) struct Str {
    /// With the marks of what is the caller's.
    text: String,
    /// Without, if there are any.
    plain: Option<Plain>,
    /// Counted on first use.
    n_chars: Cell<Option<usize>>,
    charged: Charged,
}

/// A marked string as the template sees it.
struct Plain {
    text: String,
    /// The places in `text` before which a sign was taken out, in order.
    signs: Vec<usize>,
}

impl Plain {
    fn new(marked: &str, marks: &Marks) -> Self {
        let mut plain = Self { text: String::with_capacity(marked.len()), signs: Vec::new() };
        for piece in marked.split_inclusive([marks.begin, marks.after]) {
            match piece.strip_suffix([marks.begin, marks.after]) {
                Some(piece) => {
                    plain.text.push_str(piece);
                    plain.signs.push(plain.text.len());
                }
                None => plain.text.push_str(piece),
            }
        }
        plain
    }

    fn n_bytes(&self) -> usize {
        self.text.capacity() + self.signs.capacity() * size_of::<usize>()
    }

    /// The place in the marked text, after all signs that stand there.
    fn raw_place(&self, place: usize) -> usize {
        place + Marks::SIGN_BYTES * self.signs.partition_point(|&at| at <= place)
    }
}

impl Str {
    /// The text that the template sees.
    pub fn as_str(&self) -> &str {
        self.plain.as_ref().map_or(&self.text, |plain| &plain.text)
    }

    /// The text with its marks: what is to be printed and joined.
    pub fn raw(&self) -> &str {
        &self.text
    }

    /// The length as Python counts it.
    pub fn n_chars(&self) -> Result<usize, Raise> {
        if let Some(n_chars) = self.n_chars.get() {
            return Ok(n_chars);
        }
        self.charged.meter.touch(self.text.len())?;
        let n_chars = self.as_str().chars().count();
        self.n_chars.set(Some(n_chars));
        Ok(n_chars)
    }

    pub fn is_ascii(&self) -> bool {
        self.n_chars.get() == Some(self.text.len())
    }
}

/// The kinds of sequences that Python tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SeqKind {
    List,
    Tuple,
    /// What `map`, `select` and the like give: it has no length and can be walked once.
    Generator,
    Keys,
    Values,
    Items,
    Range,
}

pub(super) struct Seq {
    pub kind: SeqKind,
    pub items: Vec<Value>,
    depth: usize,
    /// Whether a generator has been walked.
    spent: Cell<bool>,
    _charged: Charged,
}

pub(super) struct Dict {
    pub entries: Vec<(Value, Value)>,
    /// Places of the keys that are strings, once there are more than a few.
    index: HashMap<String, usize>,
    depth: usize,
    _charged: Charged,
}

impl Dict {
    fn insert(&mut self, key: Value, value: Value, meter: &Meter) -> Result<(), Raise> {
        match self.position(&key, meter)? {
            Some(at) => {
                if let Some(entry) = self.entries.get_mut(at) {
                    entry.1 = value;
                }
            }
            None => {
                meter.check(self.entries.len() * 4 * SLOT_BYTES)?;
                self.entries.push((key, value));
                let from = if self.entries.len() == SMALL_DICT + 1 { 0 } else { self.entries.len() - 1 };
                if self.entries.len() > SMALL_DICT {
                    for (at, (key, _)) in self.entries.iter().enumerate().skip(from) {
                        if let Value::Str(key) = key {
                            self.index.insert(key.as_str().to_owned(), at);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    pub fn position(&self, key: &Value, meter: &Meter) -> Result<Option<usize>, Raise> {
        if let Value::Str(key) = key {
            return self.position_of(key.as_str(), meter);
        }
        meter.work(1)?;
        for (at, (found, _)) in self.entries.iter().enumerate() {
            if found.equals(key, meter)? {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    fn position_of(&self, key: &str, meter: &Meter) -> Result<Option<usize>, Raise> {
        meter.touch(key.len())?;
        if self.entries.len() > SMALL_DICT {
            return Ok(self.index.get(key).copied());
        }
        Ok(self.entries.iter().position(|(found, _)| found.as_str() == Some(key)))
    }

    pub fn get(&self, key: &Value, meter: &Meter) -> Result<Option<Value>, Raise> {
        let at = self.position(key, meter)?;
        Ok(at.and_then(|at| self.entries.get(at)).map(|(_, value)| value.clone()))
    }

    pub fn get_str(&self, key: &str, meter: &Meter) -> Result<Option<Value>, Raise> {
        let at = self.position_of(key, meter)?;
        Ok(at.and_then(|at| self.entries.get(at)).map(|(_, value)| value.clone()))
    }
}

/// The variable `loop`.
pub(super) struct Loop {
    /// What is walked. A template may keep the loop when it has ended, and then pays for its items.
    pub list: Rc<Seq>,
    pub at: Cell<usize>,
    pub depth: usize,
    /// What `changed` was last asked with, printed: a value could hold the loop and so itself.
    pub last: RefCell<Option<Rc<Str>>>,
}

impl Loop {
    pub fn new(list: Rc<Seq>, depth: usize) -> Self {
        Self { list, at: Cell::new(0), depth, last: RefCell::new(None) }
    }
}

impl Value {
    pub fn undefined(name: &str) -> Self {
        // The name serves a message only.
        let end = name.char_indices().nth(60).map_or(name.len(), |(at, _)| at);
        Self::Undefined(Some(Rc::from(&name[..end])))
    }

    fn depth(&self) -> usize {
        match self {
            Self::Seq(seq) => seq.depth,
            Self::Dict(dict) => dict.depth,
            Self::Method(method) => 1 + method.0.depth(),
            Self::Loop(state) => state.list.depth,
            _ => 0,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text.as_str()),
            _ => None,
        }
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// Whole numbers; Python's booleans are some.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(int) => Some(*int),
            Self::Bool(bool) => Some(i128::from(*bool)),
            _ => None,
        }
    }

    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(float) => Some(*float),
            _ => self.as_int().map(|int| int as f64),
        }
    }

    /// Python's name of the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Seq(seq) => match seq.kind {
                SeqKind::List => "list",
                SeqKind::Tuple => "tuple",
                SeqKind::Generator => "generator",
                SeqKind::Keys => "dict_keys",
                SeqKind::Values => "dict_values",
                SeqKind::Items => "dict_items",
                SeqKind::Range => "range",
            },
            Self::Dict(_) => "dict",
            Self::Namespace(_) => "Namespace",
            Self::Macro(_) => "Macro",
            Self::Function(_) => "function",
            Self::Method(_) => "method",
            Self::Loop(_) => "LoopContext",
        }
    }

    /// The complaint about using what does not exist.
    pub fn undefined_fault(&self) -> Raise {
        match self {
            Self::Undefined(Some(name)) => Raise::new(format!("`{name}` is undefined")),
            _ => Raise::new("a value is undefined"),
        }
    }

    pub fn truthy(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(bool) => *bool,
            Self::Int(int) => *int != 0,
            Self::Float(float) => *float != 0.0,
            Self::Str(text) => !text.as_str().is_empty(),
            Self::Seq(seq) => seq.kind == SeqKind::Generator || !seq.items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            _ => true,
        }
    }

    pub fn len(&self) -> Result<usize, Raise> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Str(text) => text.n_chars(),
            Self::Seq(seq) if seq.kind != SeqKind::Generator => Ok(seq.items.len()),
            Self::Dict(dict) => Ok(dict.entries.len()),
            Self::Loop(state) => Ok(state.list.items.len()),
            _ => Err(Raise::new(format!("object of type '{}' has no len()", self.type_name()))),
        }
    }

    /// The items that a loop walks.
    pub fn items(&self, meter: &Rc<Meter>) -> Result<Vec<Value>, Raise> {
        match self {
            Self::Undefined(_) => Ok(Vec::new()),
            Self::Str(text) => {
                let source = text.as_str();
                source
                    .char_indices()
                    .map(|(at, c)| meter.part(text, &source[at..at + c.len_utf8()]))
                    .collect()
            }
            Self::Seq(seq) => {
                meter.check(seq.items.len() * SLOT_BYTES)?;
                meter.work(seq.items.len() / 4)?;
                if seq.kind == SeqKind::Generator && seq.spent.replace(true) {
                    return Ok(Vec::new());
                }
                Ok(seq.items.clone())
            }
            Self::Dict(dict) => {
                meter.check(dict.entries.len() * SLOT_BYTES)?;
                meter.work(dict.entries.len() / 4)?;
                Ok(dict.entries.iter().map(|(key, _)| key.clone()).collect())
            }
            _ => Err(Raise::new(format!("'{}' object is not iterable", self.type_name()))),
        }
    }

    pub fn is_iterable(&self) -> bool {
        matches!(self, Self::Undefined(_) | Self::Str(_) | Self::Seq(_) | Self::Dict(_) | Self::Loop(_))
    }
}
