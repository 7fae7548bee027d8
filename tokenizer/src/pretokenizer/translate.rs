//! Regular expressions as Oniguruma reads them, spelled for a linear-time engine.
//!
//! Hugging Face's files are written for Oniguruma with Ruby's syntax, which backtracks. The `regex` crate never does,
//! and where both accept a pattern they find the same matches, except for a list of differences that this translation
//! settles: `.`, `^` and `$`, classes, what `\w` means, possessive repetition, intervals followed by `+`, and case. The
//! parser knows what it passes on, and refuses the rest by name: look-around other than `\s+(?!\S)`, back-references,
//! atomic groups, options. A class of characters means the same in both engines as far as [`PROPERTIES`] goes, which
//! the tests hold to Oniguruma's answers for every code point.

/// A translated pattern.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translation {
    /// The pattern for the `regex` crate.
    pub regex: String,
    /// Whether the group [`GIVE_BACK`] stands in it.
    pub gives_back: bool,
}

/// Matches of this group end before their last character.
pub(super) const GIVE_BACK: &str = "give_back";

/// Longest pattern in bytes; a class of Unicode may cost a thousand times its spelling.
const MAX_LEN: usize = 4096;

/// Deepest nesting of groups and classes.
const MAX_DEPTH: usize = 24;

/// What `\w` is in Oniguruma within classes: Unicode's word characters without joiners.
const WORD: &str = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}";

/// What `\w` has besides outside classes: superscript digits and fractions of Latin-1, by an accident of its tables.
const LATIN_DIGITS: &str = r"\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE}";

/// Properties that are the same sets in both engines.
pub(super) const PROPERTIES: [&str; 67] = [
    "L",
    "Lu",
    "Ll",
    "Lt",
    "Lm",
    "Lo",
    "M",
    "Mn",
    "Mc",
    "Me",
    "N",
    "Nd",
    "Nl",
    "No",
    "P",
    "Pc",
    "Pd",
    "Ps",
    "Pe",
    "Pi",
    "Pf",
    "Po",
    "S",
    "Sm",
    "Sc",
    "Sk",
    "So",
    "Z",
    "Zs",
    "Zl",
    "Zp",
    "Cc",
    "Cf",
    "Co",
    "Letter",
    "Mark",
    "Number",
    "Punctuation",
    "Symbol",
    "Separator",
    "Alphabetic",
    "Lowercase",
    "Uppercase",
    "White_Space",
    "Emoji",
    "Han",
    "Hiragana",
    "Katakana",
    "Hangul",
    "Bopomofo",
    "Latin",
    "Greek",
    "Cyrillic",
    "Armenian",
    "Hebrew",
    "Arabic",
    "Devanagari",
    "Bengali",
    "Gurmukhi",
    "Gujarati",
    "Tamil",
    "Telugu",
    "Thai",
    "Lao",
    "Tibetan",
    "Georgian",
    "Ethiopic",
];

/// Pairs of letters that Oniguruma also finds as one character when case does not count, such as `ß` for `ss`.
const FOLDED_PAIRS: [&str; 5] = ["ss", "ff", "fi", "fl", "st"];

/// Translates a pattern, or says what in it cannot be.
pub(super) fn translate(pattern: &str) -> Result<Translation, String> {
    if pattern.len() > MAX_LEN {
        return Err(format!("it has {} bytes, more than {MAX_LEN}", pattern.len()));
    }
    let mut parser = Parser { pattern, at: 0, depth: 0, ignore_case: false, caret: false, gives_back: false };
    let (regex, shape) = parser.alternatives()?;
    if parser.at < pattern.len() {
        return Err("a `)` closes nothing".to_owned());
    }
    if parser.caret && shape.may_be_empty {
        return Err("`^` in a pattern that matches nothing at all".to_owned());
    }
    Ok(Translation { regex, gives_back: parser.gives_back })
}

/// What a part of a pattern can match.
#[derive(Clone, Copy)]
struct Shape {
    /// Whether it can match the empty string.
    may_be_empty: bool,
    /// Whether it matches at every place, if only the empty string.
    never_fails: bool,
}

impl Shape {
    const CHARACTER: Self = Self { may_be_empty: false, never_fails: false };
    const ASSERTION: Self = Self { may_be_empty: true, never_fails: false };
    const OPTIONAL: Self = Self { may_be_empty: true, never_fails: true };
}

/// One element of a sequence, with its repetition.
struct Element {
    regex: String,
    shape: Shape,
    possessive: bool,
}

struct Parser<'p> {
    pattern: &'p str,
    at: usize,
    depth: usize,
    ignore_case: bool,
    /// Whether `^` was seen.
    caret: bool,
    gives_back: bool,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.pattern[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    /// Goes one level deeper for as long as `parse` runs.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, String>) -> Result<T, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("groups and classes nest deeper than {MAX_DEPTH}"));
        }
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Sequences between `|`, up to a `)` or the end.
    fn alternatives(&mut self) -> Result<(String, Shape), String> {
        let mut regex = String::new();
        let mut shape = Shape::CHARACTER;
        loop {
            let (branch, branch_shape) = self.branch()?;
            regex.push_str(&branch);
            shape.may_be_empty |= branch_shape.may_be_empty;
            shape.never_fails |= branch_shape.never_fails;
            if !self.eat("|") {
                return Ok((regex, shape));
            }
            regex.push('|');
        }
    }

    fn branch(&mut self) -> Result<(String, Shape), String> {
        const LOOK_AHEAD: &str = r"\s+(?!\S)";
        if self.depth == 0 && self.rest().starts_with(LOOK_AHEAD) {
            let after = self.rest()[LOOK_AHEAD.len()..].chars().next();
            if matches!(after, None | Some('|')) {
                return self.space_before_text(LOOK_AHEAD.len());
            }
        }
        let elements = self.elements()?;
        let mut never_fails = true;
        for element in elements.iter().rev() {
            // A possessive repetition is a greedy one if nothing after it can fail and ask for something back.
            if element.possessive && !(never_fails && self.depth == 0) {
                return Err("a possessive repetition that something may follow".to_owned());
            }
            never_fails &= element.shape.never_fails;
        }
        let may_be_empty = elements.iter().all(|element| element.shape.may_be_empty);
        let regex = elements.into_iter().map(|element| element.regex).collect();
        Ok((regex, Shape { may_be_empty, never_fails }))
    }

    /// `\s+(?!\S)` takes a run of white space at the end of the text, and elsewhere all of it but the last character,
    /// if it has two. The same without looking ahead: a run of two or more, of which the match gives the last back.
    fn space_before_text(&mut self, len: usize) -> Result<(String, Shape), String> {
        if self.gives_back {
            return Err(r"`\s+(?!\S)` stands twice".to_owned());
        }
        self.at += len;
        self.gives_back = true;
        Ok((format!(r"\s+\z|(?P<{GIVE_BACK}>\s+\s)"), Shape::CHARACTER))
    }

    fn elements(&mut self) -> Result<Vec<Element>, String> {
        let mut elements = Vec::new();
        let mut letters_before = String::new();
        while !matches!(self.peek(), None | Some('|' | ')')) {
            let start = self.at;
            let (atom, shape) = self.atom()?;
            let letters = self.pattern[start..self.at].to_ascii_lowercase();
            if self.ignore_case {
                check_folding(&letters_before, &letters)?;
            }
            letters_before = letters;
            elements.push(self.repetition(atom, shape)?);
        }
        Ok(elements)
    }

    fn atom(&mut self) -> Result<(String, Shape), String> {
        let Some(c) = self.next() else { return Err("it ends too early".to_owned()) };
        match c {
            '(' => self.nested(Self::group),
            '[' => Ok((self.nested(Self::class)?, Shape::CHARACTER)),
            '\\' => self.escape(),
            '*' | '+' | '?' => Err(format!("`{c}` repeats nothing")),
            '{' if self.interval().is_some() => Err("an interval repeats nothing".to_owned()),
            _ if self.ignore_case && !(c.is_ascii_alphabetic() || c == '\'') => {
                Err(format!("`{c}` where case does not count"))
            }
            '.' => Ok((r"[^\n]".to_owned(), Shape::CHARACTER)),
            '^' => {
                self.caret = true;
                Ok(("(?m:^)".to_owned(), Shape::ASSERTION))
            }
            '$' => Ok(("(?m:$)".to_owned(), Shape::ASSERTION)),
            _ => Ok((literal(c), Shape::CHARACTER)),
        }
    }

    fn group(&mut self) -> Result<(String, Shape), String> {
        let ignored = self.ignore_case;
        let open = if self.eat("?:") {
            "(?:"
        } else if self.eat("?i:") {
            self.ignore_case = true;
            "(?i:"
        } else if self.rest().starts_with('?') {
            return Err(format!("the group `({}`", self.rest().chars().take(3).collect::<String>()));
        } else {
            "(?:"
        };
        let (inner, shape) = self.alternatives()?;
        self.ignore_case = ignored;
        if !self.eat(")") {
            return Err("a group without its `)`".to_owned());
        }
        Ok((format!("{open}{inner})"), shape))
    }

    /// What stands after a backslash outside classes.
    fn escape(&mut self) -> Result<(String, Shape), String> {
        match self.peek() {
            Some('A') => self.at += 1,
            Some('z') => {
                self.at += 1;
                return Ok((r"\z".to_owned(), Shape::ASSERTION));
            }
            _ if self.ignore_case => return Err("an escape where case does not count".to_owned()),
            Some(c @ ('w' | 'W')) => {
                self.at += 1;
                let negation = if c == 'W' { "^" } else { "" };
                return Ok((format!("[{negation}{WORD}{LATIN_DIGITS}]"), Shape::CHARACTER));
            }
            _ => {
                return match self.class_escape()? {
                    Item::Char(c) => Ok((literal(c), Shape::CHARACTER)),
                    Item::Set(set) => Ok((format!("[{set}]"), Shape::CHARACTER)),
                };
            }
        }
        Ok((r"\A".to_owned(), Shape::ASSERTION))
    }

    /// What stands after a backslash and means one character or a set of them.
    fn class_escape(&mut self) -> Result<Item, String> {
        let Some(c) = self.next() else { return Err("it ends in a backslash".to_owned()) };
        let item = match c {
            's' | 'S' | 'd' | 'D' => Item::Set(format!("\\{c}")),
            'w' => Item::Set(WORD.to_owned()),
            'W' => Item::Set(format!("[^{WORD}]")),
            'p' | 'P' => return self.property(c == 'P'),
            't' => Item::Char('\t'),
            'n' => Item::Char('\n'),
            'v' => Item::Char('\x0b'),
            'f' => Item::Char('\x0c'),
            'r' => Item::Char('\r'),
            'x' if self.eat("{") => return self.code_point(8, "}"),
            'x' => match self.code_point(2, "")? {
                Item::Char(c) if !c.is_ascii() => {
                    return Err(format!(r"`\x{:02X}`, a part of a character", c as u32));
                }
                item => item,
            },
            'u' => return self.code_point(4, ""),
            _ if c.is_ascii_alphanumeric() => return Err(format!(r"`\{c}`")),
            _ => Item::Char(c),
        };
        Ok(item)
    }

    /// Hexadecimal digits: exactly `n_digits`, or up to as many before `close`.
    fn code_point(&mut self, n_digits: usize, close: &str) -> Result<Item, String> {
        let digits: String = self.rest().chars().take_while(char::is_ascii_hexdigit).take(n_digits).collect();
        self.at += digits.len();
        let complete = if close.is_empty() { digits.len() == n_digits } else { self.eat(close) };
        let code = u32::from_str_radix(&digits, 16).ok().filter(|_| complete);
        let bad = || format!("the code point `{digits}`");
        code.and_then(char::from_u32).map(Item::Char).ok_or_else(bad)
    }

    fn property(&mut self, negated: bool) -> Result<Item, String> {
        let end = self.rest().find('}').filter(|_| self.rest().starts_with('{'));
        let Some(end) = end else { return Err("a property without its name in braces".to_owned()) };
        let name = self.rest()[1..end].to_owned();
        self.at += end + 1;
        let (name, inverted) = name.strip_prefix('^').map_or((name.as_str(), false), |name| (name, true));
        let plain = |name: &str| name.replace([' ', '-', '_'], "").to_ascii_lowercase();
        let Some(known) = PROPERTIES.iter().find(|known| plain(known) == plain(name)) else {
            return Err(format!(r"the property `\p{{{name}}}`"));
        };
        Ok(Item::Set(format!(r"\{}{{{known}}}", if negated == inverted { 'p' } else { 'P' })))
    }

    /// A class, whose `[` is read.
    fn class(&mut self) -> Result<String, String> {
        let mut class = String::from(if self.eat("^") { "[^" } else { "[" });
        if self.ignore_case && class.len() > 1 {
            return Err("a negated class where case does not count".to_owned());
        }
        if self.rest().starts_with(']') {
            return Err("an empty class".to_owned());
        }
        loop {
            if self.eat("]") {
                class.push(']');
                return Ok(class);
            }
            if self.eat("&&") {
                class.push_str("&&");
                continue;
            }
            match self.item()? {
                Item::Set(set) => class.push_str(&set),
                Item::Char(first) => {
                    class.push_str(&in_class(first));
                    let rest = self.rest();
                    if rest.starts_with('-') && !rest.starts_with("-]") {
                        self.at += 1;
                        class.push_str(&self.range_end(first)?);
                    }
                }
            }
        }
    }

    fn range_end(&mut self, first: char) -> Result<String, String> {
        match self.item()? {
            _ if self.ignore_case => Err("a range where case does not count".to_owned()),
            Item::Char(last) if first <= last && !self.rest().starts_with('-') => {
                Ok(format!("-{}", in_class(last)))
            }
            Item::Char(last) => Err(format!("the range `{first}-{last}`")),
            Item::Set(_) => Err(format!("a range from `{first}` to a set")),
        }
    }

    /// One member of a class.
    fn item(&mut self) -> Result<Item, String> {
        if self.rest().starts_with("[:") {
            return Err("a class by POSIX name".to_owned());
        }
        let Some(c) = self.next() else { return Err("a class without its `]`".to_owned()) };
        match c {
            _ if self.ignore_case && !(c.is_ascii_alphabetic()) => {
                Err(format!("`{c}` where case does not count"))
            }
            '[' => Ok(Item::Set(self.nested(Self::class)?)),
            '\\' => self.class_escape(),
            _ => Ok(Item::Char(c)),
        }
    }

    /// The repetition after an atom.
    fn repetition(&mut self, atom: String, shape: Shape) -> Result<Element, String> {
        let mut element = Element { regex: atom, shape, possessive: false };
        let (operator, from_zero, is_interval) = match self.peek() {
            Some(c @ ('*' | '+' | '?')) => {
                self.at += 1;
                (c.to_string(), c != '+', false)
            }
            Some('{') => {
                self.at += 1;
                match self.interval() {
                    Some((spelled, from_zero)) => (spelled, from_zero, true),
                    None => {
                        self.at -= 1;
                        return Ok(element);
                    }
                }
            }
            _ => return Ok(element),
        };
        if shape.may_be_empty {
            return Err(format!("`{operator}` after something that may be empty"));
        }
        if self.ignore_case {
            return Err(format!("`{operator}` where case does not count"));
        }
        element.regex.push_str(&operator);
        if from_zero {
            element.shape = Shape::OPTIONAL;
        }
        if self.eat("?") {
            if is_interval && !operator.contains(',') {
                return Err(format!("`{operator}?`"));
            }
            element.regex.push('?');
        } else if is_interval && from_zero && self.rest().starts_with('+') {
            return Err(format!("`{operator}+`"));
        } else if self.eat("+") {
            // In Ruby's syntax an interval is not made possessive but repeated.
            match is_interval {
                true => element.regex = format!("(?:{})+", element.regex),
                false => element.possessive = true,
            }
        }
        match self.peek() {
            Some(c @ ('*' | '+' | '?')) => Err(format!("`{operator}` followed by `{c}`")),
            Some('{') if self.rest()[1..].starts_with(|c: char| c.is_ascii_digit() || c == ',') => {
                Err(format!("`{operator}` followed by an interval"))
            }
            _ => Ok(element),
        }
    }

    /// An interval whose `{` is read, and whether it allows no repetition at all. Anything else is a literal brace.
    fn interval(&mut self) -> Option<(String, bool)> {
        let (inner, _) = self.rest().split_once('}')?;
        let number = |text: &str| if text.len() <= 4 { text.parse::<u32>().ok() } else { None };
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let (spelled, least) = match inner.split_once(',') {
            None => (format!("{{{}}}", number(inner)?), number(inner)?),
            Some((least, most)) if is_digits(least) && is_digits(most) && inner.len() > 1 => {
                let least = if least.is_empty() { 0 } else { number(least)? };
                let most = if most.is_empty() { None } else { Some(number(most)?) };
                if most.is_some_and(|most| most < least) {
                    return None;
                }
                (format!("{{{least},{}}}", most.map_or_else(String::new, |most| most.to_string())), least)
            }
            Some(_) => return None,
        };
        self.at += inner.len() + 1;
        Some((spelled, least == 0))
    }
}

/// A member of a class.
enum Item {
    Char(char),
    /// Spelled for use inside brackets.
    Set(String),
}

/// Refuses neighbours that together fold to one character. Both are spelled as in the pattern, in lower case.
fn check_folding(before: &str, after: &str) -> Result<(), String> {
    let pair = FOLDED_PAIRS.iter().find(|pair| before.contains(&pair[..1]) && after.contains(&pair[1..]));
    pair.map_or(Ok(()), |pair| Err(format!("`{pair}` where case does not count")))
}

fn literal(c: char) -> String {
    regex::escape(c.encode_utf8(&mut [0; 4]))
}

/// A character inside brackets, where the `regex` crate has more operators than Oniguruma.
fn in_class(c: char) -> String {
    format!(r"\x{{{:X}}}", c as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regex(pattern: &str) -> String {
        translate(pattern).expect(pattern).regex
    }

    #[test]
    fn patterns_are_spelled_anew() {
        assert_eq!(regex(r"a.c|^x$"), r"a[^\n]c|(?m:^)x(?m:$)");
        assert_eq!(regex(r"[a-z~~\-\]]\/"), r"[\x{61}-\x{7A}\x{7E}\x{7E}\x{2D}\x{5D}]/");
        assert_eq!(regex(r"\p{^letter}"), r"[\P{Letter}]");
        assert_eq!(regex(r"\p{N}{1,3}+"), r"(?:[\p{N}]{1,3})+");
        assert_eq!(regex("x{,2}"), "x{0,2}");
        assert_eq!(regex("a{x}"), r"a\{x\}");
        assert_eq!(regex(r" ?\p{L}++"), r" ?[\p{L}]+");
        assert_eq!(regex(r"(?i:'s|'re)|\u00e9\x{1F600}"), "(?i:'s|'re)|é😀");
        let gpt2 = translate(r" ?\p{L}+|\s+(?!\S)|\s+").unwrap();
        assert_eq!(gpt2.regex, r" ?[\p{L}]+|\s+\z|(?P<give_back>\s+\s)|[\s]+");
        assert!(gpt2.gives_back);
    }

    #[test]
    fn what_cannot_be_translated_is_refused_by_name() {
        for (pattern, named) in [
            ("a(?=b)", "(?=b"),
            ("(?<=a)b", "(?<="),
            ("(?>a)", "(?>a"),
            (r"(a)\1", r"\1"),
            (r"\bfoo", r"\b"),
            (r"\s+(?!\s)", "(?!"),
            (r"x\s+(?!\S)", "(?!"),
            (r"(?:\s+(?!\S))", "(?!"),
            ("a++b", "possessive"),
            ("(?:a*)*", "may be empty"),
            ("a**", "followed by"),
            ("a{2}?", "{2}?"),
            ("(?i:ss)", "`ss`"),
            ("(?i:é)", "é"),
            ("[[:alpha:]]", "POSIX"),
            (r"\p{Klingon}", "Klingon"),
            ("(a", "without its `)`"),
            ("a)", "closes nothing"),
            ("[a", "without its `]`"),
            ("[z-a]", "z-a"),
            (r"\xff", "part of a character"),
            (r"\u{d800}", "code point"),
            ("*", "repeats nothing"),
            ("^", "`^`"),
            ("\\", "backslash"),
            ("", "\u{0}"),
        ] {
            match translate(pattern) {
                Err(reason) => assert!(reason.contains(named), "{pattern}: {reason}"),
                Ok(_) => assert_eq!(named, "\u{0}", "{pattern} was taken"),
            }
        }
        assert!(translate(&"(".repeat(100)).is_err_and(|reason| reason.contains("deeper")));
        assert!(translate(&"[".repeat(100)).is_err());
        assert!(translate(&"a".repeat(5000)).is_err_and(|reason| reason.contains("5000")));
    }
}
