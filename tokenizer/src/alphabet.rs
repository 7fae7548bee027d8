//! The spelling of bytes in vocabulary files: GPT-2's 256 printable characters, and `<0x41>` of byte fallback.
//!
//! GPT-2 gives every byte a visible character: printable Latin-1 bytes stand for themselves, the other 68 take the
//! code points from 256 on, in order. Only files use this spelling; encoding works on bytes.

/// GPT-2's character for `byte`.
pub(crate) const fn byte_to_char(byte: u8) -> char {
    CHARS[byte as usize]
}

/// The byte that GPT-2's character stands for.
pub(crate) fn char_to_byte(c: char) -> Option<u8> {
    match c as u32 {
        code @ 0..=255 if is_printable(code as u8) => Some(code as u8),
        code @ 256..324 => Some(HIDDEN[code as usize - 256]),
        _ => None,
    }
}

/// Spells bytes in GPT-2's characters.
pub(crate) fn spell(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| byte_to_char(byte)).collect()
}

/// The bytes that a spelling in GPT-2's characters stands for.
pub(crate) fn unspell(token: &str) -> Option<Vec<u8>> {
    token.chars().map(char_to_byte).collect()
}

/// All bytes in the order of their characters' code points, which is the order of their ids in a trained vocabulary.
pub(crate) fn bytes_by_char() -> impl Iterator<Item = u8> {
    (0..=255).filter(|&byte| is_printable(byte)).chain(HIDDEN)
}

/// The token of byte fallback for `byte`: two upper-case hexadecimal digits, as in `<0x0A>`.
pub(crate) fn fallback_spelling(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// The byte that a token of byte fallback stands for.
pub(crate) fn parse_fallback(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let exact = digits.len() == 2 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if exact { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Marks a byte without a token.
pub(crate) const NO_BYTE: u32 = u32::MAX;

/// The ids of the tokens of byte fallback, by byte; [`NO_BYTE`] where there is none.
pub(crate) fn fallback_ids(tokens: &[&str]) -> Vec<u32> {
    let mut ids = vec![NO_BYTE; 256];
    for (token, id) in tokens.iter().zip(0u32..) {
        if let Some(byte) = parse_fallback(token) {
            ids[usize::from(byte)] = id;
        }
    }
    ids
}

const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The bytes without a printable Latin-1 character; number `i` is spelled as code point `256 + i`.
const HIDDEN: [u8; 68] = {
    let mut hidden = [0; 68];
    let mut n_hidden = 0;
    let mut byte = 0;
    while byte < 256 {
        if !is_printable(byte as u8) {
            hidden[n_hidden] = byte as u8;
            n_hidden += 1;
        }
        byte += 1;
    }
    hidden
};

const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let mut byte = 0;
    while byte < 256 {
        chars[byte] = byte as u8 as char;
        byte += 1;
    }
    let mut i = 0;
    while i < HIDDEN.len() {
        chars[HIDDEN[i] as usize] = match char::from_u32(256 + i as u32) {
            Some(c) => c,
            None => unreachable!(),
        };
        i += 1;
    }
    chars
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_character() {
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
            assert_eq!(parse_fallback(&fallback_spelling(byte)), Some(byte));
        }
        assert_eq!(spell(b" \n\0A"), "ĠĊĀA");
        assert_eq!(unspell("Ġ\u{ad}"), None);
        assert_eq!(bytes_by_char().count(), 256);
        assert!(bytes_by_char().is_sorted_by_key(byte_to_char));
    }

    #[test]
    fn only_the_exact_fallback_spelling_counts() {
        for token in ["<0x0a>", "<0xA>", "<0x+A>", "<0x0A", "0x0A", "<0x0A>>"] {
            assert_eq!(parse_fallback(token), None, "{token}");
        }
    }
}
