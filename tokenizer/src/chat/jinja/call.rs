//! Attributes, items, and what can be called: functions, macros and the methods of Python's values.
//!
//! A method is found by the type of its value in one `match`; there is no way from a value to its insides. Methods that
//! would change a value are refused, as in the sandbox of `transformers`.

use std::ops::Range;
use std::rc::Rc;

use super::Raise;
use super::eval::Interp;
use super::text::{self, is_space};
use super::time::strftime;
use super::value::{Dict, Loop, Meter, SeqKind, Str, Value};

/// The most items of `range`, as in Jinja's sandbox.
const MAX_RANGE: i128 = 100_000;
/// What a namespace costs, and each of its fields besides name and value; it lives until the end of the rendering.
const NAMESPACE_BYTES: usize = 256;

const STR_METHODS: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const LIST_METHODS: &[&str] = &["copy", "count", "index"];
const TUPLE_METHODS: &[&str] = &["count", "index"];
const DICT_METHODS: &[&str] = &["copy", "get", "items", "keys", "values"];
/// Methods that the sandbox forbids, for they change their value.
const CHANGING: &[&str] = &[
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
];

/// The arguments of a call.
#[derive(Default)]
pub(super) struct Given {
    pub positional: Vec<Value>,
    pub named: Vec<(Rc<Str>, Value)>,
}

impl Given {
    /// Pays for what a call looks up by name, one by one.
    pub fn pay(&self, meter: &Meter) -> Result<(), Raise> {
        meter.work(self.named.len())
    }

    /// The argument at a position or of a name; nothing if it is missing.
    pub fn get(&self, at: usize, name: &str) -> Option<&Value> {
        self.positional
            .get(at)
            .or_else(|| self.named.iter().find(|(found, _)| found.as_str() == name).map(|(_, value)| value))
    }

    pub fn need(&self, at: usize, name: &str) -> Result<&Value, Raise> {
        self.get(at, name).ok_or_else(|| Raise::new(format!("the argument `{name}` is missing")))
    }

    /// A string to compare with. What is to be printed comes from [`Given::text`], with its marks.
    pub fn str(&self, at: usize, name: &str) -> Result<&str, Raise> {
        self.text(at, name).map(|text| text.as_str())
    }

    pub fn text(&self, at: usize, name: &str) -> Result<&Rc<Str>, Raise> {
        match self.need(at, name)? {
            Value::Str(text) => Ok(text),
            value => Err(Raise::new(format!("`{name}` must be str, not {}", value.type_name()))),
        }
    }

    /// A whole number; `default` if it is missing or none.
    pub fn int(&self, at: usize, name: &str, default: i128) -> Result<i128, Raise> {
        match self.get(at, name) {
            None | Some(Value::None) => Ok(default),
            Some(value) => value
                .as_int()
                .ok_or_else(|| Raise::new(format!("`{name}` must be an integer, not {}", value.type_name()))),
        }
    }

    pub fn flag(&self, at: usize, name: &str) -> bool {
        self.get(at, name).is_some_and(Value::truthy)
    }

    /// Refuses more than `most` arguments and names other than `names`.
    pub fn at_most(&self, what: &str, most: usize, names: &[&str]) -> Result<(), Raise> {
        if self.positional.len() > most {
            return Err(Raise::new(format!("`{what}` takes at most {most} arguments")));
        }
        match self.named.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            Some((name, _)) => Err(Raise::new(format!("`{what}` takes no argument `{}`", name.as_str()))),
            None => Ok(()),
        }
    }
}

/// A function that every template has.
pub(super) fn global(name: &str) -> Option<Value> {
    ["range", "dict", "namespace", "raise_exception", "strftime_now"]
        .into_iter()
        .find(|&function| function == name)
        .map(Value::Function)
}

impl Interp<'_> {
    /// `value.name`: a method first, then a key.
    pub(super) fn attr(&self, value: &Value, name: &str) -> Result<Value, Raise> {
        if let Value::Undefined(_) = value {
            return Err(value.undefined_fault());
        }
        if let Some(found) = self.own_attr(value, name)? {
            return Ok(found);
        }
        match value {
            Value::Dict(dict) => {
                Ok(dict.get_str(name, &self.meter)?.unwrap_or_else(|| Value::undefined(name)))
            }
            _ if name.starts_with("__") => Err(Raise::new(format!(
                "access to `{name}` of a {} is refused: templates have no way to the insides of values",
                value.type_name()
            ))),
            _ => Ok(Value::undefined(name)),
        }
    }

    /// `value[index]`: an item first, then what `value.name` gives.
    pub(super) fn item(&self, value: &Value, index: &Value) -> Result<Value, Raise> {
        let missing = || Value::undefined(index.as_str().unwrap_or("an item"));
        let found = match value {
            Value::Undefined(_) => return Err(value.undefined_fault()),
            Value::Dict(dict) => dict.get(index, &self.meter)?,
            Value::Str(_) | Value::Seq(_) if index.as_int().is_some() => {
                let len = value.len().unwrap_or_default() as i128;
                let at = index.as_int().map(|at| if at < 0 { at.saturating_add(len) } else { at });
                let at = at.and_then(|at| usize::try_from(at).ok());
                match (value, at) {
                    (Value::Str(text), Some(at)) => self.char_at(text, at)?,
                    (Value::Seq(seq), Some(at))
                        if matches!(seq.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Range) =>
                    {
                        seq.items.get(at).cloned()
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        match index.as_str() {
            Some(name) if !matches!(value, Value::Dict(_)) || self.own_attr(value, name)?.is_some() => {
                self.attr(value, name)
            }
            _ => Ok(missing()),
        }
    }

    fn char_at(&self, text: &Rc<Str>, at: usize) -> Result<Option<Value>, Raise> {
        let found = if text.is_ascii() {
            text.as_str().get(at..at.saturating_add(1))
        } else {
            self.meter.touch(text.as_str().len())?;
            let place = text.as_str().char_indices().nth(at);
            place.and_then(|(at, c)| text.as_str().get(at..at + c.len_utf8()))
        };
        found.map(|part| self.meter.part(text, part)).transpose()
    }

    /// A method, or a field of what is no dictionary.
    fn own_attr(&self, value: &Value, name: &str) -> Result<Option<Value>, Raise> {
        let methods = match value {
            Value::Str(_) => STR_METHODS,
            Value::Seq(seq) => match seq.kind {
                SeqKind::List => LIST_METHODS,
                SeqKind::Tuple => TUPLE_METHODS,
                _ => &[],
            },
            Value::Dict(_) => DICT_METHODS,
            Value::Loop(state) => return self.loop_field(state, name),
            Value::Macro(at) if name == "name" => return self.meter.str(self.macro_name(*at)).map(Some),
            Value::Namespace(at) => {
                let Some(fields) = self.namespaces.get(*at) else { return Ok(None) };
                self.meter.work(fields.len().saturating_mul(16 + name.len()) / 256)?;
                let found = fields.iter().find(|(found, _)| found.as_str() == name);
                return Ok(found.map(|(_, value)| value.clone()));
            }
            _ => &[],
        };
        let changing = CHANGING.contains(&name)
            && match value {
                Value::Seq(seq) => {
                    seq.kind == SeqKind::List && !matches!(name, "popitem" | "setdefault" | "update")
                }
                Value::Dict(_) => matches!(name, "clear" | "pop" | "popitem" | "setdefault" | "update"),
                _ => false,
            };
        let is_method = changing || methods.contains(&name);
        Ok(is_method.then(|| Value::Method(Rc::new((value.clone(), name.to_owned())))))
    }

    fn loop_field(&self, state: &Rc<Loop>, name: &str) -> Result<Option<Value>, Raise> {
        let (at, len) = (state.at.get(), state.list.items.len());
        let int = |int: usize| Value::Int(int as i128);
        Ok(Some(match name {
            "index" => int(at + 1),
            "index0" => int(at),
            "revindex" => int(len - at),
            "revindex0" => int(len - at - 1),
            "first" => Value::Bool(at == 0),
            "last" => Value::Bool(at + 1 == len),
            "length" => int(len),
            "depth" => int(state.depth),
            "depth0" => int(state.depth.saturating_sub(1)),
            "previtem" => {
                let item = at.checked_sub(1).and_then(|at| state.list.items.get(at));
                item.cloned().unwrap_or_else(|| Value::undefined("there is no previous item"))
            }
            "nextitem" => {
                let item = state.list.items.get(at + 1);
                item.cloned().unwrap_or_else(|| Value::undefined("there is no next item"))
            }
            "cycle" | "changed" => Value::Method(Rc::new((Value::Loop(Rc::clone(state)), name.to_owned()))),
            _ => return Ok(None),
        }))
    }

    pub(super) fn set_field(&mut self, at: usize, name: Rc<Str>, value: Value) -> Result<(), Raise> {
        if name.as_str().starts_with('_') {
            return Err(Raise::new(format!(
                "a namespace has no field `{}`: names may not begin with `_`",
                name.as_str()
            )));
        }
        let Some(fields) = self.namespaces.get_mut(at) else { return Ok(()) };
        self.meter.work(fields.len().saturating_mul(16 + name.as_str().len()) / 256)?;
        match fields.iter_mut().find(|(found, _)| found.as_str() == name.as_str()) {
            Some((_, old)) => *old = value,
            None => {
                self.meter.charge(NAMESPACE_BYTES)?;
                fields.push((name, value));
            }
        }
        Ok(())
    }

    pub(super) fn call(&mut self, function: &Value, given: Given) -> Result<Value, Raise> {
        given.pay(&self.meter)?;
        match function {
            Value::Macro(at) => self.call_macro(*at, given),
            Value::Function(name) => self.call_global(name, &given),
            Value::Method(method) => {
                let (value, name) = method.as_ref();
                match value {
                    Value::Str(text) => self.str_method(text, name, &given),
                    Value::Seq(_) => self.seq_method(value, name, &given),
                    Value::Dict(dict) => self.dict_method(dict, name, &given),
                    Value::Loop(state) => self.loop_method(state, name, given),
                    _ => Err(Raise::new(format!("`{name}` cannot be called"))),
                }
            }
            Value::Undefined(_) => Err(function.undefined_fault()),
            _ => Err(Raise::new(format!("'{}' object is not callable", function.type_name()))),
        }
    }

    fn call_global(&mut self, name: &str, given: &Given) -> Result<Value, Raise> {
        match name {
            "range" => self.range(given),
            "raise_exception" => {
                let message = given.need(0, "message")?.to_str(&self.meter)?;
                Err(Raise { reason: message.as_str().to_owned(), raised: true })
            }
            "strftime_now" => {
                let format = given.text(0, "format")?;
                if format.as_str().len() > 4096 {
                    return Err(Raise::new("the format of `strftime_now` is too long"));
                }
                self.meter.derived(format, strftime(self.now, format.as_str())?)
            }
            _ => {
                let entries = self.dict_entries(name, given)?;
                if name == "dict" {
                    return self.meter.dict(entries);
                }
                self.meter.charge(NAMESPACE_BYTES)?;
                self.namespaces.push(Vec::new());
                let at = self.namespaces.len() - 1;
                for (name, value) in entries {
                    let name = name.to_str(&self.meter)?;
                    self.set_field(at, name, value)?;
                }
                Ok(Value::Namespace(at))
            }
        }
    }

    /// The entries that `dict(…)` and `namespace(…)` are made of.
    fn dict_entries(&self, what: &str, given: &Given) -> Result<Vec<(Value, Value)>, Raise> {
        let mut entries = match given.positional.as_slice() {
            [] => Vec::new(),
            [Value::Dict(dict)] => {
                self.meter.work(dict.entries.len())?;
                dict.entries.clone()
            }
            [pairs] => {
                let mut entries = Vec::new();
                for pair in pairs.items(&self.meter)? {
                    let mut pair = pair.items(&self.meter)?.into_iter();
                    let (Some(key), Some(value), None) = (pair.next(), pair.next(), pair.next()) else {
                        return Err(Raise::new(format!("`{what}` needs pairs")));
                    };
                    entries.push((key, value));
                }
                entries
            }
            _ => return Err(Raise::new(format!("`{what}` takes at most 1 argument"))),
        };
        entries.extend(given.named.iter().map(|(name, value)| (Value::Str(Rc::clone(name)), value.clone())));
        Ok(entries)
    }

    fn range(&self, given: &Given) -> Result<Value, Raise> {
        given.at_most("range", 3, &[])?;
        let mut ints = Vec::new();
        for value in &given.positional {
            let int = value.as_int();
            ints.push(
                int.ok_or_else(|| Raise::new(format!("`range` needs integers, not {}", value.type_name())))?,
            );
        }
        let (start, stop, step) = match ints[..] {
            [stop] => (0, stop, 1),
            [start, stop] => (start, stop, 1),
            [start, stop, step] if step != 0 => (start, stop, step),
            _ => return Err(Raise::new("`range` needs one to three integers, the third not 0")),
        };
        let too_large = || Raise::new(format!("`range` has more than {MAX_RANGE} items"));
        let span = if step > 0 { stop.checked_sub(start) } else { start.checked_sub(stop) };
        let n_items = match span {
            Some(span) if span <= 0 => 0,
            Some(span) => (span - 1) / step.checked_abs().ok_or_else(too_large)? + 1,
            None => return Err(too_large()),
        };
        if n_items > MAX_RANGE {
            return Err(too_large());
        }
        self.meter.work(usize::try_from(n_items).unwrap_or_default() / 4)?;
        let items = (0..n_items).map(|at| Value::Int(start + at * step)).collect();
        self.meter.seq(SeqKind::Range, items)
    }

    fn loop_method(&self, state: &Rc<Loop>, name: &str, given: Given) -> Result<Value, Raise> {
        if name == "cycle" {
            let at = state.at.get().checked_rem(given.positional.len());
            let item = at.and_then(|at| given.positional.get(at)).cloned();
            return item.ok_or_else(|| Raise::new("`cycle` needs items"));
        }
        let mut printed = self.meter.buf();
        for value in &given.positional {
            value.repr(&mut printed)?;
        }
        let printed = self.meter.new_str(printed.into_string())?;
        let last = state.last.replace(Some(Rc::clone(&printed)));
        Ok(Value::Bool(last.is_none_or(|last| last.raw() != printed.raw())))
    }

    fn seq_method(&self, value: &Value, name: &str, given: &Given) -> Result<Value, Raise> {
        let Value::Seq(seq) = value else { return Ok(Value::None) };
        match name {
            "copy" => self.meter.list(value.items(&self.meter)?),
            "count" | "index" => {
                let item = given.need(0, "value")?;
                let mut places = Vec::new();
                for (at, found) in seq.items.iter().enumerate() {
                    if found.equals(item, &self.meter)? {
                        places.push(at);
                    }
                }
                match places.first() {
                    _ if name == "count" => Ok(Value::Int(places.len() as i128)),
                    Some(&at) => Ok(Value::Int(at as i128)),
                    None => Err(Raise::new("the value is not in the list")),
                }
            }
            _ => Err(refused(name, "list")),
        }
    }

    fn dict_method(&self, dict: &Rc<Dict>, name: &str, given: &Given) -> Result<Value, Raise> {
        self.meter.work(if name == "get" { 1 } else { dict.entries.len() / 2 })?;
        match name {
            "get" => {
                given.at_most("get", 2, &[])?;
                let found = match given.need(0, "key")? {
                    Value::Dict(_) => return Err(Raise::new("unhashable type: 'dict'")),
                    key => dict.get(key, &self.meter)?,
                };
                Ok(found.or_else(|| given.positional.get(1).cloned()).unwrap_or(Value::None))
            }
            "copy" => self.meter.dict(dict.entries.clone()),
            "keys" => {
                let keys = dict.entries.iter().map(|(key, _)| key.clone()).collect();
                self.meter.seq(SeqKind::Keys, keys)
            }
            "values" => {
                let values = dict.entries.iter().map(|(_, value)| value.clone()).collect();
                self.meter.seq(SeqKind::Values, values)
            }
            "items" => {
                let items = self.pairs(dict)?;
                self.meter.seq(SeqKind::Items, items)
            }
            _ => Err(refused(name, "dict")),
        }
    }

    /// The entries as tuples.
    pub(super) fn pairs(&self, dict: &Dict) -> Result<Vec<Value>, Raise> {
        let pair =
            |(key, value): &(Value, Value)| self.meter.seq(SeqKind::Tuple, vec![key.clone(), value.clone()]);
        dict.entries.iter().map(pair).collect()
    }

    fn str_method(&self, text: &Rc<Str>, name: &str, given: &Given) -> Result<Value, Raise> {
        let source = text.as_str();
        self.meter.touch(source.len())?;
        self.meter.check(source.len())?;
        let meter = &self.meter;
        let all = |is: fn(char) -> bool| Ok(Value::Bool(!source.is_empty() && source.chars().all(is)));
        match name {
            "strip" => self.strip(text, (true, true), given),
            "lstrip" => self.strip(text, (true, false), given),
            "rstrip" => self.strip(text, (false, true), given),
            "lower" | "upper" | "title" | "capitalize" | "swapcase" | "casefold" => {
                text::recased(name, text, meter)
            }
            "startswith" | "endswith" => self.affix(source, name == "startswith", given),
            "split" | "rsplit" => self.split(text, name == "rsplit", given),
            "splitlines" => {
                let lines = text::split_lines(source, given.flag(0, "keepends"));
                let lines: Result<_, Raise> = lines.into_iter().map(|line| meter.part(text, line)).collect();
                meter.list(lines?)
            }
            "partition" | "rpartition" => {
                let separator = given.text(0, "sep")?;
                let word = nonempty(separator.as_str())?;
                let found =
                    if name == "partition" { source.split_once(word) } else { source.rsplit_once(word) };
                let parts = match found {
                    // The separator is the template's word for it, not a part of the text.
                    Some((before, after)) => vec![
                        meter.part(text, before)?,
                        Value::Str(Rc::clone(separator)),
                        meter.part(text, after)?,
                    ],
                    None => {
                        let (whole, empty) = (Value::Str(Rc::clone(text)), meter.str("")?);
                        match name {
                            "partition" => vec![whole, empty.clone(), empty],
                            _ => vec![empty.clone(), empty, whole],
                        }
                    }
                };
                meter.seq(SeqKind::Tuple, parts)
            }
            "replace" => {
                let count = given.int(2, "count", -1)?;
                given.str(1, "new")?;
                let new = given.need(1, "new")?.to_str(meter)?;
                self.replace(text, given.str(0, "old")?, &new, count)
            }
            "removeprefix" => {
                meter.part(text, source.strip_prefix(given.str(0, "prefix")?).unwrap_or(source))
            }
            "removesuffix" => {
                meter.part(text, source.strip_suffix(given.str(0, "suffix")?).unwrap_or(source))
            }
            "join" => {
                let items = given.need(0, "iterable")?.items(meter)?;
                let mut out = meter.buf();
                for (at, item) in items.iter().enumerate() {
                    out.push(if at > 0 { text.raw() } else { "" })?;
                    let Value::Str(item) = item else {
                        return Err(Raise::new(format!("`join` needs strings, not {}", item.type_name())));
                    };
                    out.push(item.raw())?;
                }
                out.into_value()
            }
            "format" => text::format(text, given, meter),
            "find" | "rfind" | "index" | "count" => self.find(source, name, given),
            "center" | "ljust" | "rjust" | "zfill" => self.justify(text, name, given),
            "isdecimal" | "isdigit" | "isnumeric" => Ok(Value::Bool(text::is_number(name, source))),
            "isalpha" => all(char::is_alphabetic),
            "isalnum" => all(char::is_alphanumeric),
            "isspace" => all(is_space),
            "isascii" => Ok(Value::Bool(source.is_ascii())),
            "isupper" => Ok(Value::Bool(
                source.chars().any(char::is_uppercase) && !source.chars().any(char::is_lowercase),
            )),
            "islower" => Ok(Value::Bool(
                source.chars().any(char::is_lowercase) && !source.chars().any(char::is_uppercase),
            )),
            _ => Err(Raise::new(format!("`{name}` of a str is not supported"))),
        }
    }

    /// `strip` at the chosen ends, and the filter `trim`.
    pub(super) fn strip(
        &self,
        text: &Str,
        (left, right): (bool, bool),
        given: &Given,
    ) -> Result<Value, Raise> {
        let chars = match given.get(0, "chars") {
            None | Some(Value::None) => None,
            Some(_) => Some(given.str(0, "chars")?),
        };
        let mut part = text.as_str();
        self.meter.touch(chars.map_or(1, str::len).saturating_mul(part.len()))?;
        let strips = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
        if left {
            part = part.trim_start_matches(strips);
        }
        if right {
            part = part.trim_end_matches(strips);
        }
        self.meter.part(text, part)
    }

    /// The bytes of `source` that the arguments `start` and `end` of a search leave, counted as those of a slice.
    fn bounds(&self, source: &str, given: &Given) -> Result<Option<Range<usize>>, Raise> {
        given.at_most("a search in a string", 3, &[])?;
        if given.positional.len() < 2 {
            return Ok(Some(0..source.len()));
        }
        let n_chars = source.chars().count() as i128;
        let from_end = |bound: i128| if bound < 0 { (bound + n_chars).max(0) } else { bound };
        let start = from_end(given.int(1, "start", 0)?.max(-n_chars));
        let end = from_end(given.int(2, "end", n_chars)?.max(-n_chars)).min(n_chars);
        let place = |n_chars: i128| {
            let n_chars = usize::try_from(n_chars).unwrap_or_default();
            source.char_indices().nth(n_chars).map_or(source.len(), |(at, _)| at)
        };
        Ok((start <= end).then(|| place(start)..place(end)))
    }

    fn affix(&self, source: &str, start: bool, given: &Given) -> Result<Value, Raise> {
        let Some(range) = self.bounds(source, given)? else { return Ok(Value::Bool(false)) };
        let source = source.get(range).unwrap_or_default();
        let holds = |affix: &Value| {
            let affix = affix.as_str().ok_or_else(|| {
                Raise::new(format!("`startswith` and `endswith` need str, not {}", affix.type_name()))
            })?;
            Ok(if start { source.starts_with(affix) } else { source.ends_with(affix) })
        };
        match given.need(0, "prefix")? {
            Value::Seq(seq) if seq.kind == SeqKind::Tuple => {
                for affix in &seq.items {
                    self.meter.touch(source.len().min(affix.as_str().map_or(0, str::len)))?;
                    if holds(affix)? {
                        return Ok(Value::Bool(true));
                    }
                }
                Ok(Value::Bool(false))
            }
            affix => holds(affix).map(Value::Bool),
        }
    }

    fn split(&self, text: &Str, from_right: bool, given: &Given) -> Result<Value, Raise> {
        let source = text.as_str();
        let most = usize::try_from(given.int(1, "maxsplit", -1)?).ok();
        let most_parts = most.map_or(usize::MAX, |most| most.saturating_add(1));
        let mut parts = Vec::new();
        match given.get(0, "sep") {
            None | Some(Value::None) => {
                let mut rest = if from_right {
                    source.trim_end_matches(is_space)
                } else {
                    source.trim_start_matches(is_space)
                };
                while !rest.is_empty() {
                    let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
                    let Some(at) = cut.filter(|_| parts.len() + 1 < most_parts) else {
                        parts.push(self.meter.part(text, rest)?);
                        break;
                    };
                    if from_right {
                        let space = rest[at..].chars().next().map_or(1, char::len_utf8);
                        parts.push(self.meter.part(text, &rest[at + space..])?);
                        rest = rest[..at].trim_end_matches(is_space);
                    } else {
                        parts.push(self.meter.part(text, &rest[..at])?);
                        rest = rest[at..].trim_start_matches(is_space);
                    }
                }
            }
            Some(_) => {
                let separator = nonempty(given.str(0, "sep")?)?;
                if from_right {
                    for part in source.rsplitn(most_parts, separator) {
                        parts.push(self.meter.part(text, part)?);
                    }
                } else {
                    for part in source.splitn(most_parts, separator) {
                        parts.push(self.meter.part(text, part)?);
                    }
                }
            }
        }
        if from_right {
            parts.reverse();
        }
        self.meter.list(parts)
    }

    pub(super) fn replace(&self, text: &Str, old: &str, new: &Str, count: i128) -> Result<Value, Raise> {
        let most = usize::try_from(count).unwrap_or(usize::MAX);
        let source = text.as_str();
        let mut out = self.meter.buf();
        let mut done = 0;
        for (at, found) in source.match_indices(old).take(most) {
            out.push_part(text, &source[done..at])?;
            out.push(new.raw())?;
            done = at + found.len();
        }
        out.push_part(text, &source[done..])?;
        out.into_value()
    }

    fn find(&self, source: &str, name: &str, given: &Given) -> Result<Value, Raise> {
        let part = given.str(0, "sub")?;
        let range = self.bounds(source, given)?;
        let start = range.as_ref().map_or(0, |range| range.start);
        let within = range.and_then(|range| source.get(range));
        let place = match name {
            "count" => {
                let count = within.map_or(0, |source| match part {
                    "" => source.chars().count() + 1,
                    _ => source.matches(part).count(),
                });
                return Ok(Value::Int(count as i128));
            }
            "rfind" => within.and_then(|source| source.rfind(part)),
            _ => within.and_then(|source| source.find(part)),
        };
        match place {
            Some(at) => Ok(Value::Int(source[..start + at].chars().count() as i128)),
            None if name == "index" => Err(Raise::new("substring not found")),
            None => Ok(Value::Int(-1)),
        }
    }

    fn justify(&self, text: &Rc<Str>, name: &str, given: &Given) -> Result<Value, Raise> {
        let width = usize::try_from(given.int(0, "width", 0)?.max(0)).unwrap_or(usize::MAX);
        let fill = match given.get(1, "fillchar") {
            Some(_) => given.text(1, "fillchar")?,
            None => &self.meter.new_str(if name == "zfill" { "0" } else { " " })?,
        };
        if fill.n_chars()? != 1 {
            return Err(Raise::new("the fill character must be exactly one character long"));
        }
        let n_chars = text.n_chars()?;
        let missing = width.saturating_sub(n_chars);
        let left = match name {
            "ljust" => 0,
            // As CPython splits an odd number of places.
            "center" => missing / 2 + (missing & width & 1),
            _ => missing,
        };
        let source = text.as_str();
        let signed = name == "zfill" && source.starts_with(['-', '+']);
        let (sign, rest) = source.split_at(usize::from(signed));
        let mut out = self.meter.buf();
        out.push_part(text, sign)?;
        out.repeat(fill.raw(), left)?;
        out.push_part(text, rest)?;
        out.repeat(fill.raw(), missing - left)?;
        out.into_value()
    }
}

fn nonempty(separator: &str) -> Result<&str, Raise> {
    if separator.is_empty() { Err(Raise::new("empty separator")) } else { Ok(separator) }
}

fn refused(name: &str, kind: &str) -> Raise {
    Raise::new(format!("`{name}` of a {kind} is refused: templates may not change values"))
}
