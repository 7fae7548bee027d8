//! What BERT does to text: clean, space out Chinese characters, strip accents, lower-case.
//!
//! All four in one table for ASCII, which is one pass over bytes; for other text one step after the other, each of
//! which copies what it does not change.

use super::forms::Form;
use super::normalized::Normalized;
use super::properties::Props;
use super::{edit, lowercase, map_ascii, remove};

/// The four switches.
#[derive(Clone, Copy, Debug)]
pub(super) struct BertNormalizer {
    pub clean_text: bool,
    pub handle_chinese_chars: bool,
    pub strip_accents: bool,
    pub lowercase: bool,
}

impl BertNormalizer {
    /// Normalizes a text.
    pub(super) fn apply(self, text: &mut Normalized<'_>) {
        if text.text().is_ascii() {
            return self.apply_to_ascii(text);
        }
        if self.clean_text {
            clean(text);
        }
        if self.handle_chinese_chars {
            edit(
                text,
                |c| Props::of(c).is(Props::CHINESE),
                |c, out| {
                    // Both spaces come from the character.
                    out.replace(' ', 0);
                    out.keep(c.len_utf8());
                    out.insert(' ');
                },
            );
        }
        if self.strip_accents {
            Form::Nfd.apply(text);
            remove(text, Props::NONSPACING);
        }
        if self.lowercase {
            lowercase(text);
        }
    }

    fn apply_to_ascii(self, text: &mut Normalized<'_>) {
        // No early exit, and bytes for truth values, so that the loop becomes vector instructions.
        let (mut upper, mut line, mut control) = (0, 0, 0);
        for &byte in text.text().as_bytes() {
            upper |= u8::from(byte.is_ascii_uppercase());
            line |= u8::from(is_line(byte));
            control |= u8::from(byte.is_ascii_control() & !is_line(byte));
        }
        let (has_upper, has_line, has_control) = (upper != 0, line != 0, control != 0);
        if self.clean_text && has_control {
            clean(text);
        }
        let (cleans, lowers) = (self.clean_text && has_line, self.lowercase && has_upper);
        if cleans || lowers {
            map_ascii(text, |byte| {
                let byte = if lowers { byte.to_ascii_lowercase() } else { byte };
                if cleans & is_line(byte) { b' ' } else { byte }
            });
        }
    }
}

/// Whether a control character is white space to BERT.
fn is_line(byte: u8) -> bool {
    (byte == b'\t') | (byte == b'\n') | (byte == b'\r')
}

/// Removes controls and makes all white space spaces.
fn clean(text: &mut Normalized<'_>) {
    let changes = |c| c != ' ' && Props::of(c).is(Props::CONTROL.or(Props::SPACE));
    edit(text, changes, |c, out| {
        // Some controls are white space too; they go.
        if Props::of(c).is(Props::CONTROL) { out.skip(c.len_utf8()) } else { out.replace(' ', c.len_utf8()) }
    });
}
