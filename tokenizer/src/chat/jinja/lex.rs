//! Template text to tokens, with Jinja's rules for white space.
//!
//! The rules are those of `trim_blocks` and `lstrip_blocks`, which every chat template is written for: a line break
//! after a block is dropped, and so is white space before a block that begins its line. `-` strips all white space on
//! its side and `+` keeps it.

use super::Fault;
use super::text::is_space;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Text(String),
    VarBegin,
    VarEnd,
    BlockBegin,
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    /// An operator or bracket.
    Op(&'static str),
}

/// Longest first, so that `//` is not read as two slashes.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// The tokens of `source` with their lines, counted from 1.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, usize)>, Fault> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { rest: &source, line: 1, line_start: true, tokens: Vec::new() };
    while !lexer.rest.is_empty() {
        lexer.text()?;
    }
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    /// Whether what was read last ended a line.
    line_start: bool,
    tokens: Vec<(Token, usize)>,
}

impl<'a> Lexer<'a> {
    /// Takes `len` bytes off the front.
    fn take(&mut self, len: usize) -> &'a str {
        let (head, rest) = self.rest.split_at(len);
        self.line += head.bytes().filter(|&byte| byte == b'\n').count();
        if let Some(last) = head.bytes().last() {
            self.line_start = last == b'\n';
        }
        self.rest = rest;
        head
    }

    fn fault(&self, reason: impl Into<String>) -> Fault {
        Fault { line: self.line, reason: reason.into(), raised: false }
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn push_text(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Text(text.to_owned()));
        }
    }

    /// Reads text up to the next tag, then the tag.
    fn text(&mut self) -> Result<(), Fault> {
        let bytes = self.rest.as_bytes();
        let open = (0..bytes.len().saturating_sub(1))
            .find(|&at| bytes[at] == b'{' && matches!(bytes[at + 1], b'{' | b'%' | b'#'));
        let Some(open) = open else {
            let text = self.take(self.rest.len());
            self.push_text(text);
            return Ok(());
        };
        let kind = bytes[open + 1];
        let sign = bytes.get(open + 2).copied().filter(|sign| matches!(sign, b'-' | b'+'));
        let text = self.strip_before(&self.rest[..open], sign, kind != b'{');
        self.push_text(text);
        self.take(open + 2 + usize::from(sign.is_some()));
        match kind {
            b'#' => self.comment(),
            b'{' => {
                self.push(Token::VarBegin);
                self.inside(Token::VarEnd, "}}")
            }
            _ if self.starts_raw() => self.raw(),
            _ => {
                self.push(Token::BlockBegin);
                self.inside(Token::BlockEnd, "%}")
            }
        }
    }

    /// The text before a tag, without the white space that the tag strips.
    fn strip_before(&self, text: &'a str, sign: Option<u8>, block: bool) -> &'a str {
        match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            Some(_) => text,
            None if block => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let begins_line = line > 0 || self.line_start;
                let blank = text[line..].chars().all(is_space);
                if begins_line && blank { &text[..line] } else { text }
            }
            None => text,
        }
    }

    fn comment(&mut self) -> Result<(), Fault> {
        let close = self.rest.find("#}").ok_or_else(|| self.fault("a comment `{#` is not closed by `#}`"))?;
        let sign = self.rest[..close].bytes().last();
        self.take(close + 2);
        self.strip_after(sign, true);
        Ok(())
    }

    /// Drops the white space that the end of a tag strips.
    fn strip_after(&mut self, sign: Option<u8>, block: bool) {
        if sign == Some(b'-') {
            self.take(self.rest.len() - self.rest.trim_start_matches(is_space).len());
        } else if block && sign != Some(b'+') && self.rest.starts_with('\n') {
            self.take(1);
        }
    }

    fn starts_raw(&self) -> bool {
        let rest = self.rest.trim_start_matches(is_space);
        rest.strip_prefix("raw").is_some_and(|rest| {
            let rest = rest.trim_start_matches(is_space);
            rest.starts_with("%}") || rest.starts_with("-%}")
        })
    }

    /// `{% raw %}` up to `{% endraw %}`: text that holds no tags.
    fn raw(&mut self) -> Result<(), Fault> {
        let close = self.rest.find("%}").unwrap_or_default();
        let sign = self.rest[..close].bytes().last();
        self.take(close + 2);
        self.strip_after(sign.filter(|&sign| sign == b'-'), false);
        let (body, len, begin, end) =
            find_endraw(self.rest).ok_or_else(|| self.fault("`raw` is not closed by `{% endraw %}`"))?;
        let text = self.strip_before(&self.rest[..body], begin, true);
        self.push_text(text);
        self.take(body + len);
        self.strip_after(end, true);
        Ok(())
    }

    /// The tokens of a tag up to its end, `close`.
    fn inside(&mut self, end: Token, close: &str) -> Result<(), Fault> {
        let mut brackets: Vec<&'static str> = Vec::new();
        loop {
            let space = self.rest.len() - self.rest.trim_start_matches(is_space).len();
            self.take(space);
            if brackets.is_empty() {
                let sign = self.rest.bytes().next().filter(|&sign| {
                    (sign == b'-' || (sign == b'+' && close == "%}")) && self.rest[1..].starts_with(close)
                });
                if sign.is_some() || self.rest.starts_with(close) {
                    self.push(end);
                    self.take(close.len() + usize::from(sign.is_some()));
                    self.strip_after(sign, close == "%}");
                    return Ok(());
                }
            }
            let Some(first) = self.rest.chars().next() else {
                return Err(self.fault(format!("a tag is not closed by `{close}`")));
            };
            match first {
                '0'..='9' => self.number()?,
                '\'' | '"' => self.string(first)?,
                _ if first == '_' || first.is_alphanumeric() => self.name(),
                _ => self.operator(first, &mut brackets)?,
            }
        }
    }

    fn name(&mut self) {
        let len = self.rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(self.rest.len());
        let name = self.take(len).to_owned();
        self.push(Token::Name(name));
    }

    fn operator(&mut self, first: char, brackets: &mut Vec<&'static str>) -> Result<(), Fault> {
        let Some(operator) = OPERATORS.into_iter().find(|operator| self.rest.starts_with(operator)) else {
            return Err(self.fault(format!("unexpected character {first:?}")));
        };
        match operator {
            "(" => brackets.push(")"),
            "[" => brackets.push("]"),
            "{" => brackets.push("}"),
            ")" | "]" | "}" if brackets.pop() != Some(operator) => {
                return Err(self.fault(format!("unexpected `{operator}`")));
            }
            _ => {}
        }
        self.push(Token::Op(operator));
        self.take(operator.len());
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
        let radix = match self.rest.get(..2) {
            Some("0x" | "0X") => 16,
            Some("0o" | "0O") => 8,
            Some("0b" | "0B") => 2,
            _ => 10,
        };
        if radix != 10 {
            let rest = &self.rest[2..];
            let len = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            let text = self.take(2 + len)[2..].replace('_', "");
            let int = i128::from_str_radix(&text, radix);
            self.push(Token::Int(int.map_err(|_| self.fault(format!("bad number `{text}`")))?));
            return Ok(());
        }
        let mut len = digits(self.rest);
        let whole = len;
        // `1.5`, but not `1.method`: a digit must follow the point.
        if self.rest[len..].starts_with('.') && self.rest[len + 1..].starts_with(|c: char| c.is_ascii_digit())
        {
            len += 1 + digits(&self.rest[len + 1..]);
        }
        if self.rest[len..].starts_with(['e', 'E']) {
            let sign = usize::from(self.rest[len + 1..].starts_with(['+', '-']));
            let exponent = digits(&self.rest[len + 1 + sign..]);
            len += if exponent > 0 { 1 + sign + exponent } else { 0 };
        }
        let text = self.take(len).replace('_', "");
        let bad = || self.fault(format!("bad number `{text}`"));
        let token = if len == whole {
            Token::Int(text.parse().map_err(|_| bad())?)
        } else {
            Token::Float(text.parse().map_err(|_| bad())?)
        };
        self.push(token);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<(), Fault> {
        let mut escaped = false;
        let close = self.rest[1..].find(|c: char| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let close = close.ok_or_else(|| self.fault(format!("a string is not closed by {quote}")))?;
        let inner = &self.rest[1..1 + close];
        let text =
            unescape(inner).ok_or_else(|| self.fault(format!("bad escape in {quote}{inner}{quote}")))?;
        self.push(Token::Str(text));
        self.take(close + 2);
        Ok(())
    }
}

/// Where the text before `{% endraw %}` ends, the length of that tag, and the signs of both its ends.
fn find_endraw(text: &str) -> Option<(usize, usize, Option<u8>, Option<u8>)> {
    let sign = |c: Option<char>| c.filter(|c| matches!(c, '-' | '+')).map(|c| c as u8);
    for (at, _) in text.match_indices("{%") {
        let tag = &text[at + 2..];
        let begin = sign(tag.chars().next());
        let rest = tag[usize::from(begin.is_some())..].trim_start_matches(is_space);
        let Some(rest) = rest.strip_prefix("endraw") else { continue };
        let rest = rest.trim_start_matches(is_space);
        let end = sign(rest.chars().next());
        if let Some(rest) = rest[usize::from(end.is_some())..].strip_prefix("%}") {
            return Some((at, text.len() - at - rest.len(), begin, end));
        }
    }
    None
}

/// A literal's text, with Python's escapes resolved. Nothing if one is malformed.
fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let hex = |n: usize, chars: &mut std::str::Chars<'_>| {
            let digits = chars.as_str().get(..n)?;
            *chars = chars.as_str()[n..].chars();
            char::from_u32(u32::from_str_radix(digits, 16).ok()?)
        };
        match chars.next()? {
            '\n' => {}
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'v' => out.push('\x0b'),
            'x' => out.push(hex(2, &mut chars)?),
            'u' => out.push(hex(4, &mut chars)?),
            'U' => out.push(hex(8, &mut chars)?),
            c @ ('\\' | '\'' | '"') => out.push(c),
            c @ '0'..='7' => {
                let more =
                    chars.as_str().bytes().take(2).take_while(|byte| (b'0'..=b'7').contains(byte)).count();
                let mut value = c as u32 - '0' as u32;
                for digit in chars.by_ref().take(more) {
                    value = value * 8 + (digit as u32 - '0' as u32);
                }
                out.push(char::from_u32(value)?);
            }
            c => {
                // Python keeps a backslash that escapes nothing.
                out.push('\\');
                out.push(c);
            }
        }
    }
    Some(out)
}
