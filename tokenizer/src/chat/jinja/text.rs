//! Python's texts of values: `repr`, `%` and `str.format`, JSON, and the cases of letters.

use std::rc::Rc;
use std::sync::LazyLock;

use regex::Regex;

use super::Raise;
use super::value::{Buf, Meter, Value};
use crate::chat::json::Json;

/// What `str.isspace` calls white space: Unicode's, and four separators that Rust leaves out.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `repr` of a float: the shortest digits that read back as the same number.
pub(super) fn float_repr(float: f64) -> String {
    if float.is_nan() {
        return "nan".to_owned();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = format!("{float}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Characters that `repr` spells out.
fn is_unprintable(c: char) -> bool {
    static UNPRINTABLE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[\p{C}\p{Z}]").expect("a fixed pattern"));
    if c.is_ascii() { c.is_ascii_control() } else { UNPRINTABLE.is_match(c.encode_utf8(&mut [0; 4])) }
}

/// `repr` of a string.
pub(super) fn str_repr(text: &str, out: &mut Buf) -> Result<(), Raise> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut done = String::with_capacity(64);
    done.push(quote);
    for c in text.chars() {
        match c {
            '\\' => done.push_str("\\\\"),
            '\n' => done.push_str("\\n"),
            '\r' => done.push_str("\\r"),
            '\t' => done.push_str("\\t"),
            c if c == quote => done.extend(['\\', c]),
            c if is_unprintable(c) && !out.meter().is_sign(c) => match u32::from(c) {
                code @ ..=0xff => done.push_str(&format!("\\x{code:02x}")),
                code @ ..=0xffff => done.push_str(&format!("\\u{code:04x}")),
                code => done.push_str(&format!("\\U{code:08x}")),
            },
            c => done.push(c),
        }
        if done.len() > 4096 {
            out.push(&done)?;
            done.clear();
        }
    }
    done.push(quote);
    out.push(&done)
}

/// How `json.dumps` is to lay out.
pub(super) struct Layout {
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
    pub ensure_ascii: bool,
}

/// Appends what `json.dumps` prints.
pub(super) fn json(value: &Value, layout: &Layout, level: usize, out: &mut Buf) -> Result<(), Raise> {
    out.meter().work(1)?;
    match value {
        Value::None => out.push("null"),
        Value::Bool(bool) => out.push(if *bool { "true" } else { "false" }),
        Value::Int(int) => out.push(&int.to_string()),
        Value::Float(float) => out.push(&json_float(*float)),
        Value::Str(text) => json_str(text.raw(), layout.ensure_ascii, out),
        Value::Seq(seq) if matches!(value.type_name(), "list" | "tuple") => {
            json_items(('[', ']'), seq.items.iter(), layout, level, out, |item, out| {
                json(item, layout, level + 1, out)
            })
        }
        Value::Dict(dict) => {
            let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
            if layout.sort_keys {
                out.meter().work(entries.len() * 8)?;
                entries.sort_by(|left, right| left.0.as_str().cmp(&right.0.as_str()));
            }
            json_items(('{', '}'), entries.into_iter(), layout, level, out, |(key, value), out| {
                json_str(&json_key(key)?, layout.ensure_ascii, out)?;
                out.push(&layout.key_separator)?;
                json(value, layout, level + 1, out)
            })
        }
        _ => Err(Raise::new(format!("Object of type {} is not JSON serializable", value.type_name()))),
    }
}

fn json_float(float: f64) -> String {
    match float_repr(float).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        text => text.to_owned(),
    }
}

fn json_key(key: &Value) -> Result<String, Raise> {
    match key {
        Value::Str(text) => Ok(text.raw().to_owned()),
        Value::Int(int) => Ok(int.to_string()),
        Value::Float(float) => Ok(json_float(*float)),
        Value::Bool(bool) => Ok(bool.to_string()),
        Value::None => Ok("null".to_owned()),
        _ => Err(Raise::new(format!("keys must be str, int, float, bool or None, not {}", key.type_name()))),
    }
}

fn json_items<T>(
    (open, close): (char, char),
    items: impl ExactSizeIterator<Item = T>,
    layout: &Layout,
    level: usize,
    out: &mut Buf,
    mut print: impl FnMut(T, &mut Buf) -> Result<(), Raise>,
) -> Result<(), Raise> {
    let new_line = |level: usize, out: &mut Buf| match &layout.indent {
        None => Ok(()),
        Some(indent) => {
            out.push("\n")?;
            out.repeat(indent, level)
        }
    };
    out.push(open.encode_utf8(&mut [0; 4]))?;
    let empty = items.len() == 0;
    for (at, item) in items.enumerate() {
        out.push(if at > 0 { &layout.item_separator } else { "" })?;
        new_line(level + 1, out)?;
        print(item, out)?;
    }
    if !empty {
        new_line(level, out)?;
    }
    out.push(close.encode_utf8(&mut [0; 4]))
}

fn json_str(text: &str, ensure_ascii: bool, out: &mut Buf) -> Result<(), Raise> {
    let mut done = String::with_capacity(text.len().min(4096) + 2);
    done.push('"');
    for c in text.chars() {
        match c {
            '"' => done.push_str("\\\""),
            '\\' => done.push_str("\\\\"),
            '\n' => done.push_str("\\n"),
            '\r' => done.push_str("\\r"),
            '\t' => done.push_str("\\t"),
            '\x08' => done.push_str("\\b"),
            '\x0c' => done.push_str("\\f"),
            c if c < ' ' => done.push_str(&format!("\\u{:04x}", u32::from(c))),
            c if ensure_ascii && !(' '..='~').contains(&c) && !out.meter().is_sign(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    done.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => done.push(c),
        }
        if done.len() > 4096 {
            out.push(&done)?;
            done.clear();
        }
    }
    done.push('"');
    out.push(&done)
}

/// `json.loads`.
pub(super) fn from_json(text: &str, meter: &Rc<Meter>) -> Result<Value, Raise> {
    // The values read take at most some tens of times their text.
    meter.check(text.len().saturating_mul(32))?;
    meter.touch(text.len().saturating_mul(8))?;
    let json = Json::parse(text).map_err(|error| Raise::new(format!("not JSON: {error}")))?;
    meter.json(&json)
}

/// `format % args`.
pub(super) fn percent(format: &str, args: &Value, meter: &Rc<Meter>) -> Result<Value, Raise> {
    let list = match args {
        Value::Seq(seq) if args.type_name() == "tuple" => seq.items.clone(),
        _ => vec![args.clone()],
    };
    let mut args_left = list.into_iter();
    let mut out = meter.buf();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        out.push(&rest[..at])?;
        rest = &rest[at + 1..];
        let named = if let Some(inner) = rest.strip_prefix('(') {
            let (name, after) = inner.split_once(')').ok_or_else(|| Raise::new("incomplete format key"))?;
            rest = after;
            Some(name)
        } else {
            None
        };
        let len = rest.find(|c: char| c.is_alphabetic() || c == '%');
        let len = len.ok_or_else(|| Raise::new("incomplete format"))?;
        let (spec, after) = rest.split_at(len);
        let kind = after.chars().next().unwrap_or('%');
        rest = &after[kind.len_utf8()..];
        if kind == '%' {
            out.push("%")?;
            continue;
        }
        let arg = match (named, args) {
            (Some(name), Value::Dict(dict)) => dict.get_str(name),
            (Some(_), _) => return Err(Raise::new("format requires a mapping")),
            (None, _) => args_left.next(),
        };
        let arg = arg.ok_or_else(|| Raise::new("not enough arguments for format string"))?;
        let text = percent_one(kind, spec, &arg, meter)?;
        let spec = Spec::percent(spec, kind)?;
        spec.pad(&text, &mut out)?;
    }
    out.push(rest)?;
    if args_left.next().is_some()
        && !matches!(args, Value::Dict(_) | Value::Seq(_) if args.type_name() != "tuple")
    {
        return Err(Raise::new("not all arguments converted during string formatting"));
    }
    out.into_value()
}

fn percent_one(kind: char, spec: &str, arg: &Value, meter: &Rc<Meter>) -> Result<String, Raise> {
    let precision = spec.split_once('.').and_then(|(_, digits)| digits.parse::<usize>().ok());
    let mut out = meter.buf();
    match kind {
        's' => arg.print(&mut out)?,
        'r' => arg.repr(&mut out)?,
        'd' | 'i' | 'x' | 'X' => {
            let float = arg.as_float().ok_or_else(|| {
                Raise::new(format!("%{kind} format: a number is required, not {}", arg.type_name()))
            })?;
            let int = arg.as_int().unwrap_or(float as i128);
            let text = match kind {
                'x' => format!("{int:x}"),
                'X' => format!("{int:X}"),
                _ => int.to_string(),
            };
            return Ok(text);
        }
        'f' | 'F' => {
            let float = arg
                .as_float()
                .ok_or_else(|| Raise::new(format!("must be real number, not {}", arg.type_name())))?;
            return Ok(format!("{float:.*}", precision.unwrap_or(6).min(100)));
        }
        _ => return Err(Raise::new(format!("unsupported format character '{kind}'"))),
    }
    let text = out.into_string();
    Ok(match precision {
        Some(n_chars) => {
            let mut left = n_chars;
            let mut fits = |c: char| {
                let is_sign = meter.is_sign(c);
                let fits = is_sign || left > 0;
                left = left.saturating_sub(usize::from(!is_sign));
                fits
            };
            text.chars().take_while(|&c| fits(c)).collect()
        }
        None => text,
    })
}

/// The width and alignment of a formatted value.
#[derive(Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    width: usize,
}

impl Spec {
    fn percent(spec: &str, kind: char) -> Result<Self, Raise> {
        let flags = spec.trim_start_matches(['-', '+', ' ', '#', '0']);
        let flag_text = &spec[..spec.len() - flags.len()];
        let width = flags.split('.').next().unwrap_or_default();
        let width = if width.is_empty() { 0 } else { parse_width(width)? };
        let left = flag_text.contains('-');
        let zero = flag_text.contains('0') && !left && !matches!(kind, 's' | 'r');
        Ok(Self { fill: zero.then_some('0'), align: Some(if left { '<' } else { '>' }), width })
    }

    fn pad(&self, text: &str, out: &mut Buf) -> Result<(), Raise> {
        let missing = self.width.saturating_sub(text.chars().filter(|&c| !out.meter().is_sign(c)).count());
        let mut fill_buf = [0; 4];
        let fill: &str = self.fill.unwrap_or(' ').encode_utf8(&mut fill_buf);
        let left = match self.align {
            Some('>') => missing,
            Some('^') => missing / 2,
            _ => 0,
        };
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) if self.fill == Some('0') => ("-", digits),
            _ => ("", text),
        };
        out.push(sign)?;
        out.repeat(fill, left)?;
        out.push(digits)?;
        out.repeat(fill, missing - left)
    }
}

fn parse_width(text: &str) -> Result<usize, Raise> {
    text.parse().map_err(|_| Raise::new(format!("bad width `{text}` in a format")))
}

/// `str.format`, with positions, names, and the fill, alignment, width, precision and type of simple values.
pub(super) fn format(
    format: &str,
    args: &[Value],
    named: &[(String, Value)],
    meter: &Rc<Meter>,
) -> Result<Value, Raise> {
    let mut out = meter.buf();
    let mut chars = format.char_indices().peekable();
    let mut next_arg = 0;
    while let Some((at, c)) = chars.next() {
        let doubled = chars.peek().is_some_and(|&(_, next)| next == c);
        match c {
            '{' | '}' if doubled => {
                chars.next();
                out.push(&format[at..=at])?;
            }
            '{' => {
                let close = format[at..].find('}').map(|len| at + len);
                let close = close.ok_or_else(|| Raise::new("expected '}' before end of string"))?;
                let field = &format[at + 1..close];
                while chars.next_if(|&(next, _)| next <= close).is_some() {}
                let (name, spec) = field.split_once(':').unwrap_or((field, ""));
                let value = if name.is_empty() {
                    next_arg += 1;
                    args.get(next_arg - 1)
                } else if let Ok(position) = name.parse::<usize>() {
                    args.get(position)
                } else if name.contains(['.', '[', '!', '{']) {
                    return Err(Raise::new(format!("`{{{field}}}` is not supported in `format`")));
                } else {
                    named.iter().find(|(found, _)| found == name).map(|(_, value)| value)
                };
                let value = value
                    .ok_or_else(|| Raise::new(format!("`format` lacks an argument for `{{{name}}}`")))?;
                format_one(value, spec, &mut out, meter)?;
            }
            '}' => return Err(Raise::new("single '}' encountered in format string")),
            c => out.push(c.encode_utf8(&mut [0; 4]))?,
        }
    }
    out.into_value()
}

fn format_one(value: &Value, spec: &str, out: &mut Buf, meter: &Rc<Meter>) -> Result<(), Raise> {
    if spec.is_empty() {
        return value.print(out);
    }
    let mut chars = spec.chars();
    let (first, second) = (chars.next(), chars.next());
    let is_align = |c: Option<char>| c.is_some_and(|c| matches!(c, '<' | '>' | '^'));
    let mut parsed = Spec::default();
    let mut rest = spec;
    if is_align(second) {
        (parsed.fill, parsed.align) = (first, second);
        rest = chars.as_str();
    } else if is_align(first) {
        parsed.align = first;
        rest = &spec[1..];
    }
    if rest.starts_with('0') && parsed.fill.is_none() {
        (parsed.fill, parsed.align) = (Some('0'), Some('>'));
    }
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    parsed.width = if digits > 0 { parse_width(&rest[..digits])? } else { 0 };
    let is_number = value.as_float().is_some();
    parsed.align = parsed.align.or(is_number.then_some('>'));
    let text = match &rest[digits..] {
        "" | "s" if !is_number || rest[digits..].is_empty() => {
            let mut text = meter.buf();
            value.print(&mut text)?;
            text.into_string()
        }
        "d" if value.as_int().is_some() => percent_one('d', "", value, meter)?,
        kind if kind.ends_with('f') && is_number => {
            percent_one('f', kind.trim_end_matches('f'), value, meter)?
        }
        kind => {
            return Err(Raise::new(format!(
                "the format `{kind}` is not supported for {}",
                value.type_name()
            )));
        }
    };
    parsed.pad(&text, out)
}

/// `str.title`: a letter after anything but a letter is a capital.
pub(super) fn title(text: &str) -> String {
    let mut in_word = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        in_word = c.is_alphabetic();
    }
    out
}

/// `str.capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect()
    })
}

/// `str.splitlines`.
pub(super) fn split_lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    let is_end = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    while let Some(at) = rest.find(is_end) {
        let end = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(1, char::len_utf8)
        };
        lines.push(if keep_ends { &rest[..at + end] } else { &rest[..at] });
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}
