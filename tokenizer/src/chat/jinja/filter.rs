//! Filters (`value|name(args)`) and tests (`value is name(args)`), as Jinja defines them.

use std::cmp::Ordering;
use std::rc::Rc;

use super::Raise;
use super::ast::Arith;
use super::call::Given;
use super::compare::sorted;
use super::eval::Interp;
use super::number::round;
use super::text::{self, Layout, is_space};
use super::value::{SeqKind, Str, Value};

/// The most blanks of one level of `indent`, and of `tojson(indent=…)`.
const MAX_INDENT: i128 = 1000;

/// What `is filter` finds: Jinja's filters, also those that no chat template uses and that are not here.
const FILTERS: &str = "abs attr batch capitalize center count d default dictsort e escape filesizeformat first float forceescape format groupby indent int items join last length list lower map max min pprint random reject rejectattr replace reverse round safe select selectattr slice sort string striptags sum title tojson trim truncate unique upper urlencode urlize wordcount wordwrap xmlattr";
/// What `is test` finds.
const TESTS: &str = "!= < <= == > >= boolean callable defined divisibleby eq equalto escaped even false filter float ge greaterthan gt in integer iterable le lessthan lower lt mapping ne none number odd sameas sequence string test true undefined upper";

impl Interp<'_> {
    pub(super) fn filter(&mut self, name: &str, value: Value, given: &Given) -> Result<Value, Raise> {
        given.pay(&self.meter)?;
        if let Value::Str(text) = &value {
            self.meter.touch(text.as_str().len())?;
        }
        match name {
            "default" | "d" => {
                let use_default = value.is_undefined() || (given.flag(1, "boolean") && !value.truthy());
                if !use_default {
                    return Ok(value);
                }
                given.get(0, "default_value").cloned().map_or_else(|| self.meter.str(""), Ok)
            }
            "length" | "count" => Ok(Value::Int(value.len()? as i128)),
            "tojson" => self.to_json(&value, given),
            "fromjson" | "from_json" => {
                let text = value.as_str().ok_or_else(|| {
                    Raise::new(format!("the JSON object must be str, not {}", value.type_name()))
                })?;
                // What comes of it counts as the caller's, whoever wrote it.
                text::from_json(text, &self.meter)
            }
            "string" | "safe" => Ok(Value::Str(value.to_str(&self.meter)?)),
            "trim" | "lower" | "upper" | "title" | "capitalize" | "replace" | "indent" | "center"
            | "escape" | "e" | "format" | "truncate" | "wordcount" => self.text_filter(name, &value, given),
            "int" | "float" | "abs" | "round" => self.number_filter(name, &value, given),
            "map" | "select" | "reject" | "selectattr" | "rejectattr" => self.walk(name, &value, given),
            "attr" => {
                let attr = given.str(0, "name")?.to_owned();
                match &value {
                    Value::Dict(_) => Ok(Value::undefined(&attr)),
                    _ => self.attr(&value, &attr),
                }
            }
            "items" => match &value {
                Value::Dict(dict) => {
                    let pairs = self.pairs(dict)?;
                    self.meter.seq(SeqKind::Generator, pairs)
                }
                Value::Undefined(_) => self.meter.seq(SeqKind::Generator, Vec::new()),
                _ => Err(Raise::new("Can only get item pairs from a mapping.")),
            },
            _ => self.list_filter(name, &value, given),
        }
    }

    fn to_json(&self, value: &Value, given: &Given) -> Result<Value, Raise> {
        given.at_most("tojson", 4, &["ensure_ascii", "indent", "separators", "sort_keys"])?;
        let indent = match given.get(1, "indent") {
            None | Some(Value::None) => None,
            Some(Value::Str(indent)) if indent.as_str().len() <= 1000 => Some(indent.raw().to_owned()),
            Some(indent) => match indent.as_int() {
                Some(n_spaces @ ..=MAX_INDENT) => {
                    Some(" ".repeat(usize::try_from(n_spaces).unwrap_or_default()))
                }
                _ => return Err(Raise::new(format!("`indent` of `tojson` must be at most {MAX_INDENT}"))),
            },
        };
        let separators = match given.get(2, "separators") {
            None | Some(Value::None) => None,
            Some(pair) => {
                let pair = pair.items(&self.meter)?;
                match pair.as_slice() {
                    [Value::Str(item), Value::Str(key)] => {
                        Some((item.raw().to_owned(), key.raw().to_owned()))
                    }
                    _ => return Err(Raise::new("`separators` of `tojson` must be two strings")),
                }
            }
        };
        let item_separator = if indent.is_some() { "," } else { ", " };
        let (item_separator, key_separator) =
            separators.unwrap_or_else(|| (item_separator.to_owned(), ": ".to_owned()));
        let layout = Layout {
            indent,
            item_separator,
            key_separator,
            sort_keys: given.flag(3, "sort_keys"),
            ensure_ascii: given.flag(0, "ensure_ascii"),
        };
        let mut out = self.meter.buf();
        text::json(value, &layout, 0, &mut out)?;
        out.into_value()
    }

    fn text_filter(&self, name: &str, value: &Value, given: &Given) -> Result<Value, Raise> {
        let text = value.to_str(&self.meter)?;
        let (source, meter) = (text.as_str(), &self.meter);
        meter.touch(source.len())?;
        match name {
            "trim" => self.strip(&text, (true, true), given),
            "lower" | "upper" | "capitalize" => text::recased(name, &text, meter),
            "title" => text::filter_title(&text, meter),
            "replace" => {
                let (old, new) = (given.need(0, "old")?.to_str(meter)?, given.need(1, "new")?.to_str(meter)?);
                self.replace(&text, old.as_str(), &new, given.int(2, "count", -1)?)
            }
            "indent" => self.indent(&text, given),
            "center" => {
                let width = usize::try_from(given.int(0, "width", 80)?.max(0)).unwrap_or(usize::MAX);
                let missing = width.saturating_sub(text.n_chars()?);
                let left = missing / 2 + (missing & width & 1);
                let mut out = meter.buf();
                out.repeat(" ", left)?;
                out.push(text.raw())?;
                out.repeat(" ", missing - left)?;
                out.into_value()
            }
            "escape" | "e" => {
                let mut out = meter.buf();
                for c in text.raw().chars() {
                    match c {
                        '&' => out.push("&amp;")?,
                        '<' => out.push("&lt;")?,
                        '>' => out.push("&gt;")?,
                        '"' => out.push("&#34;")?,
                        '\'' => out.push("&#39;")?,
                        c => out.push(c.encode_utf8(&mut [0; 4]))?,
                    }
                }
                out.into_value()
            }
            "format" => {
                let args = if given.named.is_empty() {
                    meter.seq(SeqKind::Tuple, given.positional.clone())?
                } else {
                    let pair =
                        |(name, value): &(Rc<Str>, Value)| (Value::Str(Rc::clone(name)), value.clone());
                    meter.dict(given.named.iter().map(pair).collect())?
                };
                text::percent(&text, &args, meter)
            }
            "truncate" => self.truncate(&text, given),
            _ => {
                let words = source.split(|c: char| c != '_' && !c.is_alphanumeric());
                Ok(Value::Int(words.filter(|word| !word.is_empty()).count() as i128))
            }
        }
    }

    fn indent(&self, text: &Str, given: &Given) -> Result<Value, Raise> {
        let blank = match given.get(0, "width") {
            Some(Value::Str(indent)) => indent.raw().to_owned(),
            _ => match given.int(0, "width", 4)? {
                width @ ..=MAX_INDENT => " ".repeat(usize::try_from(width).unwrap_or_default()),
                width => {
                    return Err(Raise::new(format!("`indent` by {width} is too wide (limit: {MAX_INDENT})")));
                }
            },
        };
        let (first, blank_lines) = (given.flag(1, "first"), given.flag(2, "blank"));
        let mut out = self.meter.buf();
        let source = text.as_str();
        let mut lines = text::split_lines(source, false);
        // The filter adds a line break before it splits, so a last empty line counts.
        if source.is_empty()
            || text::split_lines(source, true)
                .last()
                .is_some_and(|last| last.len() > lines.last().map_or(0, |line| line.len()))
        {
            lines.push("");
        }
        for (at, line) in lines.iter().enumerate() {
            out.push(if at > 0 { "\n" } else { "" })?;
            let indented = if at == 0 { first } else { blank_lines || !line.is_empty() };
            out.push(if indented { &blank } else { "" })?;
            out.push_part(text, line)?;
        }
        out.into_value()
    }

    fn truncate(&self, text: &Rc<Str>, given: &Given) -> Result<Value, Raise> {
        let source = text.as_str();
        let length = usize::try_from(given.int(0, "length", 255)?.max(0)).unwrap_or(usize::MAX);
        let end = match given.get(2, "end") {
            Some(_) => given.text(2, "end")?,
            None => &self.meter.new_str("...")?,
        };
        let leeway = usize::try_from(given.int(3, "leeway", 5)?);
        let (Some(n_kept), Ok(leeway)) = (length.checked_sub(end.n_chars()?), leeway) else {
            return Err(Raise::new("`truncate` to less than its end, or with a leeway below 0"));
        };
        let n_chars = source.chars().count();
        if n_chars <= length.saturating_add(leeway) {
            return Ok(Value::Str(Rc::clone(text)));
        }
        let kept = source.char_indices().nth(n_kept).map_or(source, |(at, _)| &source[..at]);
        let whole_words = !given.flag(1, "killwords");
        let kept = if whole_words { kept.rsplit_once(' ').map_or(kept, |(kept, _)| kept) } else { kept };
        let mut out = self.meter.buf();
        out.push_part(text, kept)?;
        out.push(end.raw())?;
        out.into_value()
    }

    fn number_filter(&self, name: &str, value: &Value, given: &Given) -> Result<Value, Raise> {
        match name {
            "int" => {
                let default = given.get(0, "default").cloned().unwrap_or(Value::Int(0));
                Ok(match value {
                    Value::Undefined(_) => return Err(value.undefined_fault()),
                    Value::Str(text) => {
                        let text = text.as_str().trim_matches(is_space).replace('_', "");
                        let base = u32::try_from(given.int(1, "base", 10)?).unwrap_or(10).clamp(2, 36);
                        let digits = match base {
                            16 => text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")),
                            8 => text.strip_prefix("0o").or_else(|| text.strip_prefix("0O")),
                            2 => text.strip_prefix("0b").or_else(|| text.strip_prefix("0B")),
                            _ => None,
                        };
                        match (i128::from_str_radix(digits.unwrap_or(&text), base), text.parse::<f64>()) {
                            (Ok(int), _) => Value::Int(int),
                            (_, Ok(float)) if float.abs() < 1e30 => Value::Int(float as i128),
                            _ => default,
                        }
                    }
                    Value::Float(float) if float.abs() < 1e30 => Value::Int(*float as i128),
                    _ => value.as_int().map_or(default, Value::Int),
                })
            }
            "float" => {
                let default = given.get(0, "default").cloned().unwrap_or(Value::Float(0.0));
                Ok(match value {
                    Value::Undefined(_) => return Err(value.undefined_fault()),
                    Value::Str(text) => {
                        text.as_str().trim_matches(is_space).parse().map_or(default, Value::Float)
                    }
                    _ => value.as_float().map_or(default, Value::Float),
                })
            }
            "abs" => match (value.as_int(), value.as_float()) {
                (Some(int), _) => {
                    Ok(Value::Int(int.checked_abs().ok_or_else(|| Raise::new("the integer is too large"))?))
                }
                (None, Some(float)) => Ok(Value::Float(float.abs())),
                _ => Err(Raise::new(format!("bad operand type for abs(): '{}'", value.type_name()))),
            },
            _ => {
                let float = value.as_float();
                let float = float.ok_or_else(|| {
                    Raise::new(format!("`round` needs a number, not {}", value.type_name()))
                })?;
                let places = i32::try_from(given.int(0, "precision", 0)?).unwrap_or(0).clamp(-300, 300);
                let scale = 10f64.powi(places);
                match given.get(1, "method").map(|method| method.as_str().unwrap_or_default()) {
                    None | Some("common") => round(value, float, places),
                    Some("ceil") => Ok(Value::Float((float * scale).ceil() / scale)),
                    Some("floor") => Ok(Value::Float((float * scale).floor() / scale)),
                    Some(_) => Err(Raise::new("the method of `round` must be common, ceil or floor")),
                }
            }
        }
    }

    /// `a.b.0` of a value; `default` where there is no such part, undefined without one.
    fn path(&self, value: &Value, path: &Value, default: Option<&Value>) -> Result<Value, Raise> {
        let default = default.filter(|default| !matches!(default, Value::None));
        let or_default = |found: Value| match default {
            Some(default) if found.is_undefined() => default.clone(),
            _ => found,
        };
        if path.as_int().is_some() {
            return self.item(value, path).map(or_default);
        }
        let path = path.as_str().ok_or_else(|| Raise::new("an attribute must be named by a string"))?;
        self.meter.touch(2 * path.len())?;
        let mut value = value.clone();
        for part in path.split('.') {
            let index = match part.parse::<i128>() {
                Ok(int) if part.bytes().all(|byte| byte.is_ascii_digit()) => Value::Int(int),
                _ => self.meter.str(part)?,
            };
            value = or_default(self.item(&value, &index)?);
        }
        Ok(value)
    }

    /// The filters that apply a filter, a test or an attribute to each item.
    fn walk(&mut self, name: &str, value: &Value, given: &Given) -> Result<Value, Raise> {
        let items = value.items(&self.meter)?;
        let mut args = given.positional.iter();
        let attr = match (name, args.len()) {
            ("map", 0) => Some(given.need(0, "attribute")?),
            ("selectattr" | "rejectattr", 0) => {
                return Err(Raise::new(format!("`{name}` needs the name of an attribute")));
            }
            ("selectattr" | "rejectattr", _) => args.next(),
            _ => None,
        };
        let applied = args.next();
        // The arguments of what is applied to every item, copied once.
        self.meter.work(given.positional.len() + given.named.len())?;
        let given = Given { positional: args.cloned().collect(), named: given.named.clone() };
        let mut kept = Vec::new();
        if name == "map" {
            for item in items {
                self.meter.work(1)?;
                given.pay(&self.meter)?;
                kept.push(match (attr, applied) {
                    (Some(attr), _) => self.path(&item, attr, given.get(1, "default"))?,
                    (_, applied) => self.map_one(item, applied, &given)?,
                });
                self.meter.check(kept.len() * size_of::<Value>())?;
            }
            return self.meter.seq(SeqKind::Generator, kept);
        }
        let test = applied.map(|test| test.to_str(&self.meter)).transpose()?;
        let wanted = name.starts_with("select");
        for item in items {
            let subject = match attr {
                Some(attr) => self.path(&item, attr, None)?,
                None => item.clone(),
            };
            let holds = match &test {
                Some(test) => self.test(test.as_str(), &subject, &given)?,
                None => subject.truthy(),
            };
            if holds == wanted {
                kept.push(item);
            }
        }
        self.meter.seq(SeqKind::Generator, kept)
    }

    fn map_one(&mut self, item: Value, filter: Option<&Value>, args: &Given) -> Result<Value, Raise> {
        let Some(Value::Str(filter)) = filter else {
            return Err(Raise::new("`map` needs the name of a filter or `attribute=`"));
        };
        if matches!(filter.as_str(), "map" | "select" | "reject" | "selectattr" | "rejectattr")
            && args.positional.len() > 8
        {
            return Err(Raise::new("`map` of `map` nests too deep"));
        }
        self.filter(filter.as_str(), item, args)
    }

    fn list_filter(&self, name: &str, value: &Value, given: &Given) -> Result<Value, Raise> {
        let meter = &self.meter;
        match name {
            "last" if matches!(value, Value::Seq(seq) if seq.kind == SeqKind::Generator) => {
                Err(Raise::new("'generator' object is not reversible"))
            }
            "first" | "last" => {
                let mut items = value.items(meter)?;
                let item = if name == "first" { items.into_iter().next() } else { items.pop() };
                Ok(item.unwrap_or_else(|| Value::undefined("an item of an empty sequence")))
            }
            "list" => meter.list(value.items(meter)?),
            "reverse" => {
                let mut items = value.items(meter)?;
                items.reverse();
                match value {
                    Value::Str(text) => meter.derived(text, text.as_str().chars().rev().collect()),
                    _ => meter.seq(SeqKind::Generator, items),
                }
            }
            "join" => {
                let separator = match given.get(0, "d") {
                    None => None,
                    Some(separator) => Some(separator.to_str(meter)?),
                };
                let mut out = meter.buf();
                for (at, item) in value.items(meter)?.iter().enumerate() {
                    match &separator {
                        Some(separator) if at > 0 => out.push(separator.raw())?,
                        _ => {}
                    }
                    match given.get(1, "attribute") {
                        Some(path) => self.path(item, path, None)?.print(&mut out)?,
                        None => item.print(&mut out)?,
                    }
                }
                out.into_value()
            }
            "sort" | "unique" | "min" | "max" => self.by_key(name, value, given),
            "dictsort" => self.dict_sort(value, given),
            "sum" => {
                let mut sum = given.get(1, "start").cloned().unwrap_or(Value::Int(0));
                for item in value.items(meter)? {
                    let item = match given.get(0, "attribute") {
                        Some(path) => self.path(&item, path, None)?,
                        None => item,
                    };
                    sum = self.arith(Arith::Add, &sum, &item)?;
                }
                Ok(sum)
            }
            "groupby" => self.group_by(value, given),
            "batch" | "slice" => self.batch(name, value, given),
            _ => Err(Raise::new(format!("No filter named '{name}'."))),
        }
    }

    /// What an item is compared by: an attribute, its letters in lower case unless told otherwise.
    fn key(&self, item: &Value, path: Option<&Value>, case_sensitive: bool) -> Result<Value, Raise> {
        let key = match path {
            Some(Value::None) | None => item.clone(),
            Some(path) => self.path(item, path, None)?,
        };
        match &key {
            Value::Str(text) if !case_sensitive => {
                self.meter.touch(text.as_str().len())?;
                self.meter.str(text.as_str().to_lowercase())
            }
            _ => Ok(key),
        }
    }

    fn by_key(&self, name: &str, value: &Value, given: &Given) -> Result<Value, Raise> {
        let (at_case, at_path) = if name == "sort" { (1, 2) } else { (0, 1) };
        let case_sensitive = given.flag(at_case, "case_sensitive");
        let path = given.get(at_path, "attribute");
        let mut keyed = Vec::new();
        for item in value.items(&self.meter)? {
            keyed.push((self.key(&item, path, case_sensitive)?, item));
        }
        match name {
            "sort" => {
                let sorted = sorted(keyed, given.flag(0, "reverse"), &self.meter)?;
                self.meter.list(sorted.into_iter().map(|(_, item)| item).collect())
            }
            "unique" => {
                let mut kept: Vec<(Value, Value)> = Vec::new();
                'items: for (key, item) in keyed {
                    for (seen, _) in &kept {
                        if seen.equals(&key, &self.meter)? {
                            continue 'items;
                        }
                    }
                    kept.push((key, item));
                }
                self.meter.seq(SeqKind::Generator, kept.into_iter().map(|(_, item)| item).collect())
            }
            _ => {
                let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
                let mut best: Option<(Value, Value)> = None;
                for (key, item) in keyed {
                    let better = match &best {
                        Some((best, _)) => key.order(best, &self.meter)? == Some(wanted),
                        None => true,
                    };
                    if better {
                        best = Some((key, item));
                    }
                }
                Ok(best.map_or_else(|| Value::undefined("an item of an empty sequence"), |(_, item)| item))
            }
        }
    }

    fn dict_sort(&self, value: &Value, given: &Given) -> Result<Value, Raise> {
        let Value::Dict(dict) = value else {
            return Err(Raise::new(format!("`dictsort` needs a mapping, not {}", value.type_name())));
        };
        let by_value = match given.get(1, "by").and_then(Value::as_str) {
            None | Some("key") => false,
            Some("value") => true,
            Some(by) => return Err(Raise::new(format!("`dictsort` sorts by key or value, not by `{by}`"))),
        };
        let case_sensitive = given.flag(0, "case_sensitive");
        let mut keyed = Vec::new();
        for ((key, value), pair) in dict.entries.iter().zip(self.pairs(dict)?) {
            keyed.push((self.key(if by_value { value } else { key }, None, case_sensitive)?, pair));
        }
        let sorted = sorted(keyed, given.flag(2, "reverse"), &self.meter)?;
        self.meter.list(sorted.into_iter().map(|(_, pair)| pair).collect())
    }

    fn group_by(&self, value: &Value, given: &Given) -> Result<Value, Raise> {
        let path = given.need(0, "attribute")?;
        let mut keyed = Vec::new();
        for item in value.items(&self.meter)? {
            let key = self.path(&item, path, given.get(1, "default"))?;
            let sort_key =
                if given.flag(2, "case_sensitive") { key.clone() } else { self.key(&key, None, false)? };
            keyed.push((sort_key, (key, item)));
        }
        // A group is named by the key of its first item, as that is spelled.
        let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
        for (sort_key, (key, item)) in sorted(keyed, false, &self.meter)? {
            match groups.last_mut() {
                Some((last, _, items)) if last.equals(&sort_key, &self.meter)? => items.push(item),
                _ => groups.push((sort_key, key, vec![item])),
            }
        }
        let groups: Result<_, Raise> = groups
            .into_iter()
            .map(|(_, key, items)| {
                let items = self.meter.list(items)?;
                self.meter.seq(SeqKind::Tuple, vec![key, items])
            })
            .collect();
        self.meter.list(groups?)
    }

    fn batch(&self, name: &str, value: &Value, given: &Given) -> Result<Value, Raise> {
        let count = usize::try_from(given.int(0, "linecount", 0)?).ok().filter(|&count| count > 0);
        let count = count.ok_or_else(|| Raise::new(format!("`{name}` needs a positive number")))?;
        let items = value.items(&self.meter)?;
        let fill = given.get(1, "fill_with").cloned().filter(|fill| !matches!(fill, Value::None));
        let mut rows: Vec<Vec<Value>> = Vec::new();
        if name == "batch" {
            rows = items.chunks(count).map(<[Value]>::to_vec).collect();
            if let (Some(last), Some(fill)) = (rows.last_mut(), fill) {
                self.meter.check(count.saturating_mul(size_of::<Value>()))?;
                last.resize(count, fill);
            }
        } else {
            self.meter.check(count.saturating_mul(64))?;
            let (each, longer) = (items.len() / count, items.len() % count);
            let mut items = items.into_iter();
            for row in 0..count {
                let mut slice: Vec<Value> = items.by_ref().take(each + usize::from(row < longer)).collect();
                slice.extend(fill.clone().filter(|_| row >= longer));
                rows.push(slice);
            }
        }
        let rows: Result<_, Raise> = rows.into_iter().map(|row| self.meter.list(row)).collect();
        self.meter.seq(SeqKind::Generator, rows?)
    }

    pub(super) fn test(&self, name: &str, value: &Value, given: &Given) -> Result<bool, Raise> {
        let meter = &self.meter;
        given.pay(meter)?;
        let other = || given.need(0, "other");
        Ok(match name {
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "none" => matches!(value, Value::None),
            "string" => value.as_str().is_some(),
            "mapping" => matches!(value, Value::Dict(_)),
            "boolean" => matches!(value, Value::Bool(_)),
            "true" => matches!(value, Value::Bool(true)),
            "false" => matches!(value, Value::Bool(false)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => value.as_float().is_some(),
            "iterable" => value.is_iterable(),
            "sequence" => match value {
                Value::Seq(seq) => matches!(seq.kind, SeqKind::List | SeqKind::Tuple | SeqKind::Range),
                _ => matches!(value, Value::Str(_) | Value::Dict(_) | Value::Undefined(_)),
            },
            "callable" => {
                matches!(value, Value::Macro(_) | Value::Function(_) | Value::Method(_) | Value::Undefined(_))
            }
            "eq" | "equalto" | "==" => value.equals(other()?, meter)?,
            "ne" | "!=" => !value.equals(other()?, meter)?,
            "lt" | "lessthan" | "<" => value.order(other()?, meter)?.is_some_and(Ordering::is_lt),
            "le" | "<=" => value.order(other()?, meter)?.is_some_and(Ordering::is_le),
            "gt" | "greaterthan" | ">" => value.order(other()?, meter)?.is_some_and(Ordering::is_gt),
            "ge" | ">=" => value.order(other()?, meter)?.is_some_and(Ordering::is_ge),
            "in" => given.need(0, "seq")?.contains(value, meter)?,
            "sameas" => same(value, other()?, meter)?,
            "odd" | "even" | "divisibleby" => {
                let by =
                    if name == "divisibleby" { Value::Int(given.int(0, "num", 0)?) } else { Value::Int(2) };
                let rest = self.arith(Arith::Mod, value, &by)?;
                (rest.as_float() == Some(0.0)) != (name == "odd")
            }
            "lower" | "upper" => {
                let text = value.to_str(meter)?;
                let chars = || text.as_str().chars();
                let (any_lower, any_upper) =
                    (chars().any(char::is_lowercase), chars().any(char::is_uppercase));
                if name == "lower" { any_lower && !any_upper } else { any_upper && !any_lower }
            }
            "escaped" => false,
            "filter" => value.as_str().is_some_and(|name| FILTERS.split(' ').any(|found| found == name)),
            "test" => value.as_str().is_some_and(|name| TESTS.split(' ').any(|found| found == name)),
            _ => return Err(Raise::new(format!("No test named '{name}'."))),
        })
    }
}

/// Python's `is`, as far as it can be told: the same object.
fn same(left: &Value, right: &Value, meter: &super::value::Meter) -> Result<bool, Raise> {
    Ok(match (left, right) {
        (Value::Seq(left), Value::Seq(right)) => Rc::ptr_eq(left, right),
        (Value::Dict(left), Value::Dict(right)) => Rc::ptr_eq(left, right),
        _ => left.type_name() == right.type_name() && left.equals(right, meter)?,
    })
}
