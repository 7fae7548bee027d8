//! Python's texts of values: `repr`, `%` and `str.format`, JSON, and the cases of letters.

use std::rc::Rc;
use std::sync::LazyLock;

use regex::Regex;

use super::Raise;
use super::call::Given;
use super::compare::sorted;
use super::value::{Buf, Meter, Str, Value};
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

/// Characters that `repr` spells out. Rust's `Debug` knows the same ones, but also spells out a combining character at
/// the beginning, hence the letter before it.
fn is_unprintable(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    let mut buf = [b'a'; 5];
    let len = c.encode_utf8(&mut buf[1..]).len();
    std::str::from_utf8(&buf[..=len]).is_ok_and(|text| text.escape_debug().nth(1) == Some('\\'))
}

/// Appends the last `n_digits` hexadecimal digits of `code`.
fn push_hex(code: u32, n_digits: u32, out: &mut String) {
    out.extend((0..n_digits).rev().filter_map(|at| char::from_digit(code >> (4 * at) & 15, 16)));
}

/// Pays for spelling a string out or in other letters. Characters that are not plain ASCII take longer.
fn pay_for_spelling(text: &str, meter: &Meter) -> Result<(), Raise> {
    let n_odd = text.bytes().filter(|byte| !(b' '..=b'~').contains(byte)).count();
    meter.touch(2 * text.len() + 20 * n_odd)
}

/// `repr` of a string.
pub(super) fn str_repr(text: &str, out: &mut Buf) -> Result<(), Raise> {
    pay_for_spelling(text, out.meter())?;
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
            c if is_unprintable(c) && !out.meter().is_sign(c) => {
                let code = u32::from(c);
                let (kind, n_digits) = match code {
                    ..=0xff => ('x', 2),
                    0x100..=0xffff => ('u', 4),
                    _ => ('U', 8),
                };
                done.extend(['\\', kind]);
                push_hex(code, n_digits, &mut done);
            }
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
            let mut entries: Vec<(Value, &Value)> =
                dict.entries.iter().map(|(key, value)| (key.clone(), value)).collect();
            if layout.sort_keys {
                entries = sorted(entries, false, out.meter())?;
            }
            json_items(('{', '}'), entries.into_iter(), layout, level, out, |(key, value), out| {
                json_str(&json_key(&key)?, layout.ensure_ascii, out)?;
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
    pay_for_spelling(text, out.meter())?;
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
            c if c < ' ' => {
                done.push_str("\\u");
                push_hex(u32::from(c), 4, &mut done);
            }
            c if ensure_ascii && !(' '..='~').contains(&c) && !out.meter().is_sign(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    done.push_str("\\u");
                    push_hex(u32::from(*unit), 4, &mut done);
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
pub(super) fn percent(format: &Str, args: &Value, meter: &Rc<Meter>) -> Result<Value, Raise> {
    let list = match args {
        Value::Seq(seq) if args.type_name() == "tuple" => seq.items.as_slice(),
        _ => std::slice::from_ref(args),
    };
    let mut args_left = list.iter().cloned();
    let mut out = meter.buf();
    let mut rest = format.as_str();
    while let Some(at) = rest.find('%') {
        out.push_part(format, &rest[..at])?;
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
        if kind == '%' && spec.is_empty() {
            out.push("%")?;
            continue;
        }
        let arg = match (named, args) {
            (Some(name), Value::Dict(dict)) => dict.get_str(name, meter)?,
            (Some(_), _) => return Err(Raise::new("format requires a mapping")),
            (None, _) => args_left.next(),
        };
        let arg = arg.ok_or_else(|| Raise::new("not enough arguments for format string"))?;
        let spec = Spec::percent(spec, kind)?;
        match kind {
            's' | 'r' => {
                let mut text = meter.buf();
                if kind == 's' {
                    arg.print(&mut text)?
                } else {
                    arg.repr(&mut text)?
                }
                spec.text(&text.into_string(), " ", &mut out)?;
            }
            _ => {
                let number = spec.number(kind, &arg, meter)?;
                spec.pad(&number, if spec.zero { "0" } else { " " }, &mut out)?;
            }
        }
    }
    out.push_part(format, rest)?;
    if args_left.next().is_some()
        && !matches!(args, Value::Dict(_) | Value::Seq(_) if args.type_name() != "tuple")
    {
        return Err(Raise::new("not all arguments converted during string formatting"));
    }
    out.into_value()
}

/// How one value is to be formatted.
#[derive(Default)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^`, or `=` for blanks between sign and digits.
    align: Option<char>,
    /// `+` or a blank before numbers that are not negative.
    sign: Option<char>,
    zero: bool,
    /// `,` between thousands.
    grouped: bool,
    width: usize,
    precision: Option<usize>,
}

impl Spec {
    /// Flags, width and precision of a `%`.
    fn percent(spec: &str, kind: char) -> Result<Self, Raise> {
        let rest = spec.trim_start_matches(['-', '+', ' ', '0']);
        let flags = &spec[..spec.len() - rest.len()];
        let (width, precision) = rest.split_once('.').map_or((rest, None), |(w, p)| (w, Some(p)));
        let left = flags.contains('-');
        let zero = flags.contains('0') && !left && !matches!(kind, 's' | 'r');
        Ok(Self {
            fill: None,
            align: Some(match (left, zero) {
                (true, _) => '<',
                (_, true) => '=',
                _ => '>',
            }),
            sign: ['+', ' '].into_iter().find(|&sign| flags.contains(sign)),
            zero,
            grouped: false,
            width: count(width)?,
            precision: precision.map(count).transpose()?,
        })
    }

    /// What stands behind the `:` of a `str.format` field, with the type that ends it.
    fn braces(spec: &str) -> Result<(Self, &str), Raise> {
        let mut chars = spec.chars();
        let (first, second) = (chars.next(), chars.next());
        let is_align = |c: Option<char>| c.is_some_and(|c| matches!(c, '<' | '>' | '^' | '='));
        let mut parsed = Self::default();
        let mut rest = spec;
        if is_align(second) {
            (parsed.fill, parsed.align) = (first, second);
            rest = chars.as_str();
        } else if is_align(first) {
            parsed.align = first;
            rest = &spec[1..];
        }
        if let Some(after) = rest.strip_prefix('-') {
            rest = after;
        } else if rest.starts_with(['+', ' ']) {
            parsed.sign = rest.chars().next();
            rest = &rest[1..];
        }
        parsed.zero = rest.starts_with('0');
        let n_digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (width, after) = rest.split_at(n_digits(rest));
        parsed.width = count(width)?;
        parsed.grouped = after.starts_with(',');
        rest = &after[usize::from(parsed.grouped)..];
        if let Some(after) = rest.strip_prefix('.') {
            let (precision, after) = after.split_at(n_digits(after));
            if precision.is_empty() {
                return Err(Raise::new("Format specifier missing precision"));
            }
            parsed.precision = Some(count(precision)?);
            rest = after;
        }
        Ok((parsed, rest))
    }

    /// The sign and digits of a number.
    fn number(&self, kind: char, value: &Value, meter: &Meter) -> Result<String, Raise> {
        let needed =
            || Raise::new(format!("%{kind} format: a number is required, not {}", value.type_name()));
        let mut digits = match kind {
            'd' | 'i' | 'u' | 'x' | 'X' => {
                let float =
                    value.as_float().filter(|float| float.abs() < 1e30 && matches!(kind, 'd' | 'i' | 'u'));
                let int = value.as_int().or(float.map(|float| float as i128)).ok_or_else(needed)?;
                let digits = match kind {
                    'x' => format!("{:x}", int.unsigned_abs()),
                    'X' => format!("{:X}", int.unsigned_abs()),
                    _ => int.unsigned_abs().to_string(),
                };
                let n_zeros = self.precision.unwrap_or(0).saturating_sub(digits.len());
                meter.check(n_zeros)?;
                format!("{}{}{digits}", if int < 0 { "-" } else { "" }, "0".repeat(n_zeros))
            }
            'f' | 'F' => {
                /// The most decimals that a float has.
                const MOST: usize = 1074;
                let float = value.as_float().ok_or_else(needed)?;
                let precision = self.precision.unwrap_or(6);
                meter.check(precision)?;
                if float.is_finite() {
                    format!("{float:.*}", precision.min(MOST)) + &"0".repeat(precision.saturating_sub(MOST))
                } else {
                    float_repr(float)
                }
            }
            _ => return Err(Raise::new(format!("unsupported format character '{kind}'"))),
        };
        self.finish(&mut digits);
        Ok(digits)
    }

    /// Adds the sign and the commas.
    fn finish(&self, number: &mut String) {
        let n_digits = number.bytes().skip_while(|&byte| byte == b'-').take_while(u8::is_ascii_digit).count();
        let start = usize::from(number.starts_with('-'));
        if self.grouped {
            for n_behind in (3..n_digits).step_by(3) {
                number.insert(start + n_digits - n_behind, ',');
            }
        }
        if let Some(sign) = self.sign.filter(|_| start == 0) {
            number.insert(0, sign);
        }
    }

    /// Appends a text that is no number.
    fn text(&self, text: &str, fill: &str, out: &mut Buf) -> Result<(), Raise> {
        let Some(n_chars) = self.precision else { return self.pad(text, fill, out) };
        let mut left = n_chars;
        let mut cut = String::new();
        for c in text.chars() {
            if !out.meter().is_sign(c) {
                if left == 0 {
                    break;
                }
                left -= 1;
            }
            cut.push(c);
        }
        out.meter().touch(cut.len())?;
        self.pad(&cut, fill, out)
    }

    fn pad(&self, text: &str, fill: &str, out: &mut Buf) -> Result<(), Raise> {
        if self.width == 0 {
            return out.push(text);
        }
        out.meter().touch(text.len())?;
        let missing = self.width.saturating_sub(text.chars().filter(|&c| !out.meter().is_sign(c)).count());
        let left = match self.align {
            Some('>' | '=') => missing,
            Some('^') => missing / 2,
            _ => 0,
        };
        let n_sign = usize::from(self.align == Some('=') && text.starts_with(['-', '+', ' ']));
        out.push(&text[..n_sign])?;
        out.repeat(fill, left)?;
        out.push(&text[n_sign..])?;
        out.repeat(fill, missing - left)
    }
}

/// A width or precision; nothing is 0.
fn count(digits: &str) -> Result<usize, Raise> {
    if digits.is_empty() {
        return Ok(0);
    }
    let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    let count = digits.parse().ok().filter(|_| all_digits);
    count.ok_or_else(|| Raise::new(format!("`{digits}` in a format is not supported")))
}

/// `str.format`, with positions, names, and the fill, alignment, sign, width, commas, precision and type of simple
/// values.
pub(super) fn format(format: &Str, given: &Given, meter: &Rc<Meter>) -> Result<Value, Raise> {
    let mut out = meter.buf();
    let mut next_arg = 0;
    let mut rest = format.as_str();
    while let Some(at) = rest.find(['{', '}']) {
        let (text, field) = rest.split_at(at);
        out.push_part(format, text)?;
        if field.starts_with("{{") || field.starts_with("}}") {
            out.push_part(format, &field[..1])?;
            rest = &field[2..];
            continue;
        }
        let inner = field.strip_prefix('{');
        let inner = inner.ok_or_else(|| Raise::new("single '}' encountered in format string"))?;
        let close = inner.find('}').ok_or_else(|| Raise::new("expected '}' before end of string"))?;
        let field = &inner[..close];
        rest = &inner[close + 1..];
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let value = if name.is_empty() {
            next_arg += 1;
            given.positional.get(next_arg - 1)
        } else if let Ok(position) = name.parse::<usize>() {
            given.positional.get(position)
        } else if name.contains(['.', '[', '!', '{']) {
            return Err(Raise::new(format!("`{{{field}}}` is not supported in `format`")));
        } else {
            meter.work(given.named.len().saturating_mul(16 + name.len()) / 256)?;
            given.named.iter().find(|(found, _)| found.as_str() == name).map(|(_, value)| value)
        };
        let value =
            value.ok_or_else(|| Raise::new(format!("`format` lacks an argument for `{{{name}}}`")))?;
        format_one(value, spec, format, &mut out, meter)?;
    }
    out.push_part(format, rest)?;
    out.into_value()
}

/// Appends one value. The fill character is a part of `format`.
fn format_one(
    value: &Value,
    spec: &str,
    format: &Str,
    out: &mut Buf,
    meter: &Rc<Meter>,
) -> Result<(), Raise> {
    if spec.is_empty() {
        return value.print(out);
    }
    let (mut spec, kind) = Spec::braces(spec)?;
    let refused =
        || Raise::new(format!("the format `{kind}` or a flag is not supported for {}", value.type_name()));
    let has_fill = spec.fill.is_some();
    let fill = spec.fill.unwrap_or(if spec.zero { '0' } else { ' ' });
    let fill = meter.like(format, fill.encode_utf8(&mut [0; 4]));
    let number = match (value, kind) {
        (Value::Str(text), "" | "s") => {
            if spec.align == Some('=') || spec.sign.is_some() || spec.grouped {
                return Err(refused());
            }
            return spec.text(text.raw(), &fill, out);
        }
        // Zeros take part in the groups, which no template needs.
        _ if spec.grouped && spec.zero && !has_fill => return Err(refused()),
        (_, "f" | "F") if value.as_float().is_some() => spec.number('f', value, meter)?,
        (_, "" | "d" | "x" | "X") if value.as_int().is_some() => {
            if spec.precision.is_some() || (spec.grouped && matches!(kind, "x" | "X")) {
                return Err(refused());
            }
            spec.number(kind.chars().next().unwrap_or('d'), value, meter)?
        }
        (Value::Float(float), "") if spec.precision.is_none() => {
            let mut number = float_repr(*float);
            spec.finish(&mut number);
            number
        }
        _ => return Err(refused()),
    };
    spec.align = spec.align.or(Some(if spec.zero { '=' } else { '>' }));
    spec.pad(&number, &fill, out)
}

/// `lower`, `upper`, `title`, `capitalize`, `swapcase` and `casefold` of a string.
pub(super) fn recased(name: &str, text: &Str, meter: &Rc<Meter>) -> Result<Value, Raise> {
    meter.check(text.as_str().len())?;
    pay_for_spelling(text.as_str(), meter)?;
    // How a sigma is lowered depends on the letters around it, so the whole text is lowered at once.
    let lowered = text.as_str().to_lowercase();
    let mut lowered = lowered.chars();
    let mut at_start = true;
    meter.recased(text, |c, out| {
        let lower = lowered.by_ref().take(c.to_lowercase().count());
        let upper = match name {
            "upper" => true,
            "swapcase" => !c.is_uppercase(),
            _ => false,
        };
        match name {
            "casefold" => {
                lower.for_each(drop);
                fold(c, out);
            }
            "title" | "capitalize" if at_start => {
                lower.for_each(drop);
                title(c, out);
            }
            _ if upper => {
                lower.for_each(drop);
                out.extend(c.to_uppercase());
            }
            _ => out.extend(lower),
        }
        // To `title` a letter after anything but a letter is a capital.
        at_start = name == "title" && !c.is_alphabetic();
    })
}

/// A capital that small letters follow: of `ﬁ` the second letter is small.
fn title(c: char, out: &mut String) {
    let mut upper = c.to_uppercase();
    let first = upper.next().unwrap_or(c);
    out.push(first);
    for c in upper {
        if first.is_uppercase() { out.extend(c.to_lowercase()) } else { out.push(c) }
    }
}

/// `str.casefold` of a character: Unicode's full case folding, which has few exceptions from lowering the capital.
fn fold(c: char, out: &mut String) {
    match c {
        '\u{1e9e}' => out.push_str("ss"),
        'ı' => out.push(c),
        // Cherokee folds to its capitals.
        '\u{13a0}'..='\u{13fd}' | '\u{ab70}'..='\u{abbf}' => out.extend(c.to_uppercase()),
        _ => out.extend(c.to_uppercase().flat_map(char::to_lowercase)),
    }
}

/// The filter `title`, which knows words by blanks, hyphens and brackets, and lowers what follows the first letter.
pub(super) fn filter_title(text: &Str, meter: &Rc<Meter>) -> Result<Value, Raise> {
    pay_for_spelling(text.as_str(), meter)?;
    let mut at_start = true;
    meter.recased(text, |c, out| {
        if at_start {
            out.extend(c.to_uppercase())
        } else {
            out.extend(c.to_lowercase())
        }
        at_start = is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    })
}

/// `str.isdecimal`, `str.isdigit` and `str.isnumeric`.
pub(super) fn is_number(name: &str, text: &str) -> bool {
    /// Besides decimals: digits in superscripts, circles and the like.
    const DIGITS: &str =
        r"²³¹፩-፱᧚⁰⁴-⁹₀-₉①-⑨⑴-⑼⒈-⒐⓪⓵-⓽⓿❶-❾➀-➈➊-➒\x{10a40}-\x{10a43}\x{10e60}-\x{10e68}\x{11052}-\x{1105a}🄀-🄊";
    /// Besides numbers: ideographs that are numerals.
    const NUMERALS: &str = r"\p{N}\x{3405}\x{3483}\x{382a}\x{3b4d}一七万三九二五亖亿什仟仨伍佰億兆兩八六十千卄卅卌叁参參叄四壱壹幺廾廿弌弍弎弐拾捌柒漆玖百肆萬貮貳贰阡陆陌陸零\x{f96b}\x{f973}\x{f978}\x{f9b2}\x{f9d1}\x{f9d3}\x{f9fd}\x{20001}\x{20064}\x{200e2}\x{20121}\x{2092a}\x{20983}\x{2098c}\x{2099c}\x{20aea}\x{20afd}\x{20b19}\x{22390}\x{22998}\x{23b1b}\x{2626d}\x{2f890}";
    static REGEXES: LazyLock<[Regex; 3]> = LazyLock::new(|| {
        ["", DIGITS, NUMERALS]
            .map(|more| Regex::new(&format!(r"\A[\p{{Nd}}{more}]+\z")).expect("a fixed pattern"))
    });
    let [decimal, digit, numeric] = &*REGEXES;
    match name {
        "isdecimal" => decimal.is_match(text),
        "isdigit" => digit.is_match(text),
        _ => numeric.is_match(text),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `str.isprintable` is defined by these categories. Characters that one of the two tables does not have yet are
    /// left out.
    #[test]
    fn what_is_unprintable_is_other_or_a_separator() {
        let regexes = [r"[\p{C}\p{Z}]", r"\p{Cn}"].map(|pattern| Regex::new(pattern).unwrap());
        let differ: Vec<char> = (' '..=char::MAX)
            .filter(|&c| {
                let [unprintable, unassigned] =
                    regexes.each_ref().map(|r| r.is_match(c.encode_utf8(&mut [0; 4])));
                is_unprintable(c) != (unprintable && c != ' ') && !unassigned
            })
            .collect();
        assert!(differ.is_empty(), "{} characters: {:?}", differ.len(), &differ[..differ.len().min(20)]);
    }
}
