//! The patterns, one character at a time: where does the piece that starts here end?
//!
//! Each pattern is a list of alternatives, the first that matches wins, and each function below walks its list in that
//! order. This is the definition that [`super::window`] must agree with, and the path of what a window does not show.

use std::sync::LazyLock;

use super::classes;
use super::window::Masks;

/// A set of character classes; every character is in exactly one.
pub(super) type Set = u8;

/// `[\p{Lu}\p{Lt}]`
pub(super) const UPPER: Set = 1;
/// `\p{Ll}`
pub(super) const LOWER: Set = 1 << 1;
/// `[\p{Lm}\p{Lo}]`
pub(super) const OTHER_LETTER: Set = 1 << 2;
/// `\p{M}`
pub(super) const MARK: Set = 1 << 3;
/// `\p{N}`
pub(super) const NUMBER: Set = 1 << 4;
/// `[\p{P}\p{S}]`
pub(super) const PUNCTUATION: Set = 1 << 5;
/// `\s`
pub(super) const SPACE: Set = 1 << 6;
/// All else: controls, formats, unassigned.
const OTHER: Set = 1 << 7;

/// `\p{L}`
pub(super) const LETTER: Set = UPPER | LOWER | OTHER_LETTER;
/// `[^\s\p{L}\p{N}]`
const SYMBOL: Set = MARK | PUNCTUATION | OTHER;
/// The letters and marks with which a word of O200k may begin, and those with which it may end.
const HEAD: Set = UPPER | OTHER_LETTER | MARK;
const TAIL: Set = LOWER | OTHER_LETTER | MARK;

/// A way to split text.
pub(super) trait Pattern {
    /// The end of the piece that starts at `start`, which is not the end of the text.
    fn end(scan: &Scan<'_>, start: usize) -> usize;

    /// Whether [`Pattern::starts`] finds any.
    const HAS_WINDOWS: bool = true;

    /// Whether marks go with letters.
    const MARKS_IN_WORDS: bool = false;

    /// The starts of pieces, after the first, in 64 bytes of which the first starts a piece. Bits may be missing from
    /// some place on, but none before it.
    fn starts(block: &[u8; 64], masks: &Masks) -> u64;
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
pub(super) struct Gpt2;

impl Pattern for Gpt2 {
    #[inline]
    fn end(scan: &Scan<'_>, start: usize) -> usize {
        if let Some(end) = scan.contraction(start, false) {
            return end;
        }
        // An optional space goes with whatever run follows it.
        let run_start = start + usize::from(scan.bytes[start] == b' ');
        match scan.peek(run_start) {
            Some((UPPER | LOWER | OTHER_LETTER, end)) => scan.run(LETTER, end),
            Some((NUMBER, end)) => scan.run(NUMBER, end),
            Some((SPACE, _)) | None => scan.whitespace(start),
            Some((_, end)) => scan.run(SYMBOL, end),
        }
    }

    #[inline(always)]
    fn starts(block: &[u8; 64], masks: &Masks) -> u64 {
        masks.gpt2(block)
    }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,D}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
pub(super) struct Gpt4<const D: usize>;

impl<const D: usize> Pattern for Gpt4<D> {
    #[inline]
    fn end(scan: &Scan<'_>, start: usize) -> usize {
        if let Some(end) = scan.contraction(start, true) {
            return end;
        }
        let Some((class, end)) = scan.peek(start) else { return start };
        match class {
            UPPER | LOWER | OTHER_LETTER => return scan.run(LETTER, end),
            NUMBER => return scan.number(D, end),
            _ => {}
        }
        if !is_newline(scan.bytes[start])
            && let Some((UPPER | LOWER | OTHER_LETTER, letter_end)) = scan.peek(end)
        {
            return scan.run(LETTER, letter_end);
        }
        match scan.spaced_run(SYMBOL, class, start, end) {
            Some(end) => scan.while_byte(end, is_newline),
            None => scan.lines_or_whitespace(start, end),
        }
    }

    #[inline(always)]
    fn starts(block: &[u8; 64], masks: &Masks) -> u64 {
        masks.gpt4::<D>(block)
    }
}

/// `[^\r\n\p{L}\p{N}]?HEAD*TAIL+C?|[^\r\n\p{L}\p{N}]?HEAD+TAIL*C?|\p{N}{1,D}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
/// where `HEAD` is `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`, `TAIL` is `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`, and `C`, unless
/// `CONTRACTIONS` is false, is `(?i:'s|'t|'re|'ve|'m|'ll|'d)`.
pub(super) struct O200k<const D: usize, const CONTRACTIONS: bool>;

impl<const D: usize, const CONTRACTIONS: bool> Pattern for O200k<D, CONTRACTIONS> {
    const MARKS_IN_WORDS: bool = true;

    #[inline]
    fn end(scan: &Scan<'_>, start: usize) -> usize {
        let Some((class, end)) = scan.peek(start) else { return start };
        if class == NUMBER {
            return scan.number(D, end);
        }
        if let Some(end) = scan.cased_word(class, start, end) {
            return scan.contraction(end, true).filter(|_| CONTRACTIONS).unwrap_or(end);
        }
        match scan.spaced_run(SYMBOL, class, start, end) {
            Some(end) => scan.while_byte(end, |byte| is_newline(byte) || byte == b'/'),
            None => scan.lines_or_whitespace(start, end),
        }
    }

    #[inline(always)]
    fn starts(block: &[u8; 64], masks: &Masks) -> u64 {
        masks.o200k::<D, CONTRACTIONS>(block)
    }
}

/// ``[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+``
///
/// Unlike the other patterns it leaves characters over (numbers, controls); each run of those is a piece.
pub(super) struct Deepseek;

impl Pattern for Deepseek {
    /// Numbers are cut out before this pattern comes, so its texts are short.
    const HAS_WINDOWS: bool = false;

    fn end(scan: &Scan<'_>, start: usize) -> usize {
        if let Some(end) = Self::matched(scan, start) {
            return end;
        }
        let mut at = start;
        while let Some((_, end)) = scan.peek(at) {
            at = end;
            if at == scan.bytes.len() || Self::matched(scan, at).is_some() {
                break;
            }
        }
        at
    }

    fn starts(_: &[u8; 64], _: &Masks) -> u64 {
        0
    }
}

impl Deepseek {
    fn matched(scan: &Scan<'_>, start: usize) -> Option<usize> {
        const WORD: Set = LETTER | MARK;
        let (class, end) = scan.peek(start)?;
        if scan.bytes[start].is_ascii_punctuation() {
            let letters_end = scan.while_byte(end, |byte| byte.is_ascii_alphabetic());
            if letters_end > end {
                return Some(letters_end);
            }
        }
        // The optional first character is greedy, so a mark before a word goes with it either way.
        if class & (LETTER | PUNCTUATION) == 0
            && !is_newline(scan.bytes[start])
            && let Some((next, word_end)) = scan.peek(end)
            && next & WORD != 0
        {
            return Some(scan.run(WORD, word_end));
        }
        if class & WORD != 0 {
            return Some(scan.run(WORD, end));
        }
        match scan.spaced_run(PUNCTUATION, class, start, end) {
            Some(end) => Some(scan.while_byte(end, is_newline)),
            None if class == SPACE => Some(scan.lines_or_whitespace(start, end)),
            None => None,
        }
    }
}

/// A text with what is needed to look at it.
pub(super) struct Scan<'a> {
    text: &'a str,
    pub bytes: &'a [u8],
    classes: &'static Classes,
}

impl<'a> Scan<'a> {
    pub(super) fn new(text: &'a str, classes: &'static Classes) -> Self {
        Self { text, bytes: text.as_bytes(), classes }
    }

    /// The class of the character at `at` and the position after it; nothing at the end of the text.
    #[inline(always)]
    pub(super) fn peek(&self, at: usize) -> Option<(Set, usize)> {
        let rest = self.bytes.get(at..)?;
        // Decoded here, because the standard library's iterator checks what is known of this place.
        let low = |byte: u8| u16::from(byte & 0x3f);
        let (code, len) = match *rest {
            [byte @ ..0x80, ..] => (u16::from(byte), 1),
            [lead @ ..0xe0, next, ..] => (u16::from(lead & 0x1f) << 6 | low(next), 2),
            [lead @ ..0xf0, next, last, ..] => (u16::from(lead) << 12 | low(next) << 6 | low(last), 3),
            _ => {
                let c = self.text[at..].chars().next()?;
                return Some((self.classes.of(c), at + c.len_utf8()));
            }
        };
        Some((self.classes.plane[usize::from(code)], at + len))
    }

    /// The end of the run of characters in `set` that goes on at `at`.
    fn run(&self, set: Set, mut at: usize) -> usize {
        while let Some((class, end)) = self.peek(at) {
            if class & set == 0 {
                break;
            }
            at = end;
        }
        at
    }

    /// The end of the bytes at `at` for which `test` holds.
    fn while_byte(&self, at: usize, test: impl Fn(u8) -> bool) -> usize {
        at + self.bytes[at..].iter().take_while(|&&byte| test(byte)).count()
    }

    /// ` ?SET+` at `start`, where a character of `class` ends at `end`.
    #[inline]
    fn spaced_run(&self, set: Set, class: Set, start: usize, end: usize) -> Option<usize> {
        if class & set != 0 {
            return Some(self.run(set, end));
        }
        match self.peek(end) {
            Some((next, next_end)) if self.bytes[start] == b' ' && next & set != 0 => {
                Some(self.run(set, next_end))
            }
            _ => None,
        }
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`, where a first white space ends at `end`: up to the last newline of the run if it has
    /// one.
    fn lines_or_whitespace(&self, start: usize, end: usize) -> usize {
        let run = &self.bytes[start..self.run(SPACE, end)];
        match run.iter().rposition(|&byte| is_newline(byte)) {
            Some(newline_idx) => start + newline_idx + 1,
            None => self.whitespace(start),
        }
    }

    /// `\s+(?!\S)|\s+`: white space up to the end of the text; otherwise all but its last character, which goes with
    /// what follows, unless it is the only one.
    fn whitespace(&self, start: usize) -> usize {
        let end = self.run(SPACE, start);
        if end == self.text.len() {
            return end;
        }
        let last_len = self.text[start..end].chars().next_back().map_or(0, char::len_utf8);
        if start + last_len < end { end - last_len } else { end }
    }

    /// The end of the English contraction at `start`, such as `'re`.
    #[inline]
    fn contraction(&self, start: usize, any_case: bool) -> Option<usize> {
        if *self.bytes.get(start)? != b'\'' {
            return None;
        }
        let byte = |idx: usize| self.bytes.get(start + idx).copied().unwrap_or(0);
        if any_case && self.is_long_s(start + 1) {
            return Some(start + 3);
        }
        let len = contraction_len(byte(1), byte(2), any_case);
        (len > 0).then_some(start + len)
    }

    /// Whether the long s (U+017F) stands at `at`, which folds to s.
    #[inline]
    pub(super) fn is_long_s(&self, at: usize) -> bool {
        self.bytes[at..].starts_with(&[0xc5, 0xbf])
    }

    /// The end of up to `max` numeric characters, of which the first ends at `end`.
    fn number(&self, max: usize, mut end: usize) -> usize {
        for _ in 1..max {
            match self.peek(end) {
                Some((NUMBER, next)) => end = next,
                _ => break,
            }
        }
        end
    }

    /// The two alternatives of [`O200k`] for words, without the contraction. A character of `class` ends at `end`.
    fn cased_word(&self, class: Set, start: usize, end: usize) -> Option<usize> {
        let may_lead = class & (LETTER | NUMBER) == 0 && !is_newline(self.bytes[start]);
        let after_lead = if may_lead { self.tailed_word(end) } else { None };
        after_lead.or_else(|| self.tailed_word(start)).or_else(|| {
            let word = if may_lead { end } else { start };
            // All that is left are capitals: anything else would have ended the other alternative.
            Some(self.run(UPPER, word)).filter(|&word_end| word_end > word)
        })
    }

    /// `HEAD*TAIL+` at `at`.
    fn tailed_word(&self, at: usize) -> Option<usize> {
        let (mut head_end, mut last_tail) = (at, None);
        while let Some((class, end)) = self.peek(head_end)
            && class & HEAD != 0
        {
            head_end = end;
            if class & TAIL != 0 {
                last_tail = Some(end);
            }
        }
        match self.peek(head_end) {
            Some((LOWER, end)) => Some(self.run(TAIL, end)),
            // The head gives characters back up to the last one that may stand in a tail.
            _ => last_tail,
        }
    }
}

/// Length of the contraction of which `first` and `second` follow the apostrophe, or 0.
#[inline]
pub(super) fn contraction_len(first: u8, second: u8, any_case: bool) -> usize {
    let fold = |byte: u8| if any_case { byte.to_ascii_lowercase() } else { byte };
    match (fold(first), fold(second)) {
        (b's' | b't' | b'm' | b'd', _) => 2,
        (b'r' | b'v', b'e') | (b'l', b'l') => 3,
        _ => 0,
    }
}

const fn is_newline(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// The class of every code point: those of the first plane directly, the rest through a table of shared blocks.
#[derive(Debug)]
pub(super) struct Classes {
    plane: Box<[Set; PLANE]>,
    /// Block of a code point of another plane, by its upper bits.
    block_of: Vec<u8>,
    blocks: Vec<[Set; BLOCK]>,
}

/// Code points in a plane: those that two bytes can number.
const PLANE: usize = 1 << 16;

/// Code points in a block. With 256 the distinct blocks are few enough to be numbered by a byte.
const BLOCK: usize = 256;

impl Classes {
    pub(super) fn get() -> &'static Self {
        static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::build);
        &CLASSES
    }

    fn build() -> Self {
        let mut flat = vec![OTHER; char::MAX as usize + 1];
        for (bounds, class) in [
            (&classes::UPPER[..], UPPER),
            (&classes::LOWER, LOWER),
            (&classes::OTHER_LETTERS, OTHER_LETTER),
            (&classes::MARKS, MARK),
            (&classes::NUMBERS, NUMBER),
            (&classes::PUNCTUATION, PUNCTUATION),
        ] {
            for range in bounds.chunks_exact(2) {
                flat[range[0] as usize..range[1] as usize].fill(class);
            }
        }
        for (code, class) in flat.iter_mut().enumerate() {
            // `\s` is the property White_Space, which is what the standard library tests.
            if char::from_u32(code as u32).is_some_and(char::is_whitespace) {
                *class = SPACE;
            }
        }
        let others = flat.split_off(PLANE);
        let plane = flat.into_boxed_slice().try_into().expect("the rest is one plane long");
        let mut blocks: Vec<[Set; BLOCK]> = Vec::new();
        let mut block_of = Vec::with_capacity(others.len() / BLOCK);
        for block in others.chunks_exact(BLOCK) {
            let block: [Set; BLOCK] = block.try_into().expect("chunks are one block long");
            let idx = blocks.iter().position(|seen| *seen == block).unwrap_or_else(|| {
                blocks.push(block);
                blocks.len() - 1
            });
            block_of.push(u8::try_from(idx).expect("at most 256 distinct blocks"));
        }
        Self { plane, block_of, blocks }
    }

    #[inline]
    pub(super) fn of(&self, c: char) -> Set {
        let code = c as usize;
        match self.plane.get(code) {
            Some(&class) => class,
            None => self.blocks[usize::from(self.block_of[code / BLOCK - PLANE / BLOCK])][code % BLOCK],
        }
    }
}
