//! Base64 with padding, as tokenizer files hold bytes that are not text.

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The bytes that `text` stands for; nothing if it is not base64.
pub(crate) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let (groups, []) = text.as_chunks::<4>() else { return None };
    let mut bytes = Vec::with_capacity(groups.len() * 3);
    for (idx, group) in groups.iter().enumerate() {
        let is_last = idx + 1 == groups.len();
        let n_padding = group.iter().rev().take_while(|&&digit| digit == b'=').count();
        if n_padding > 2 || n_padding > 0 && !is_last {
            return None;
        }
        let mut value = 0;
        for &digit in &group[..4 - n_padding] {
            value = value << 6 | value_of(digit)?;
        }
        value <<= 6 * n_padding;
        let [_, first, second, third] = value.to_be_bytes();
        bytes.extend_from_slice(&[first, second, third][..3 - n_padding]);
    }
    Some(bytes)
}

/// Spells bytes.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |idx: usize| u32::from(group.get(idx).copied().unwrap_or(0));
        let value = at(0) << 16 | at(1) << 8 | at(2);
        for idx in 0..4 {
            let digit = DIGITS[(value >> (18 - 6 * idx)) as usize & 63];
            text.push(if idx <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn value_of(digit: u8) -> Option<u32> {
    Some(u32::from(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_published_values_and_back() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text.as_bytes()).unwrap(), bytes.as_bytes());
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(encode(&all).as_bytes()).unwrap(), all);
        for bad in ["Z", "Zg=", "Zg==Zg==", "Z===", "====", "Zm9*", "Zg=a"] {
            assert_eq!(decode(bad.as_bytes()), None, "{bad}");
        }
    }
}
