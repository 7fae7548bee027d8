//! sentencepiece's own normalizer and decoder, whose rules Hugging Face's parts express only nearly.
//!
//! At each position of a text: a user-defined token is left alone; else the longest entry of the character map is
//! replaced; else one character is copied. Spaces become U+2581, runs of them shrink to one, those around the text go,
//! and one is put before the text (or after it), each if the file says so. Runs of characters that are no entry, nor go on
//! with one, are copied at once: for most texts that is nearly everything.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Error;
use crate::added::MAX_CONTENT;
use crate::charsmap::CharsMap;
use crate::definition::PieceKind;
use crate::trie::Trie;

/// Longest text in bytes that a map may replace at once; those of published maps have a dozen. A damaged map may have
/// circles, and would otherwise look at all that is left at every place of a text.
const MAX_KEY: usize = 256;

/// Stands for a space in the vocabulary.
const SPACE: &str = "\u{2581}";

/// What the file says, in the shape of a part of `tokenizer.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SentencePieceJson {
    #[serde(rename = "type")]
    pub name: PartName,
    /// In base64; empty if nothing is replaced.
    pub precompiled_charsmap: String,
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
    pub treat_whitespace_as_suffix: bool,
    pub user_defined_symbols: Vec<String>,
}

/// What the `type` of both parts says.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum PartName {
    /// The only one.
    #[default]
    SentencePiece,
}

/// The normalizer of a sentencepiece model.
#[derive(Debug)]
pub(crate) struct SentencePieceNormalizer {
    map: CharsMap,
    user_defined: Option<Trie>,
    add_prefix: bool,
    add_suffix: bool,
    merge_spaces: bool,
    space: &'static str,
    stops: Box<Stops>,
}

/// Most beginnings of entries that are looked at to find where copying stops: those of published maps are a tenth. A damaged
/// map may have circles, and with them any number.
const MAX_BEGUN: usize = 1 << 16;

/// Characters at which copying stops: those that begin a user-defined token, are replaced, or may be the second of what is
/// replaced.
#[derive(Debug)]
struct Stops {
    ascii: [bool; 128],
    /// One bit for each character below U+10000; all others stop, too.
    bits: [u64; 1024],
}

impl Stops {
    fn new(map: &CharsMap, user_defined: &[String]) -> Self {
        let mut stops = Self { ascii: [false; 128], bits: [0; 1024] };
        user_defined.iter().filter_map(|symbol| symbol.chars().next()).for_each(|c| stops.add(c));
        // Beginnings of up to two characters.
        let (mut open, mut n_begun) = (vec![Vec::new()], 0);
        while let Some(begun) = open.pop() {
            n_begun += 1;
            if n_begun > MAX_BEGUN {
                return Self { ascii: [true; 128], bits: [u64::MAX; 1024] };
            }
            let whole = begun.utf8_chunks().next();
            let (text, rest) = whole.map_or(("", &[][..]), |chunk| (chunk.valid(), chunk.invalid()));
            let is_damaged = std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_some());
            let mut chars = text.chars();
            match (chars.next(), chars.next()) {
                _ if is_damaged => continue,
                (_, Some(second)) => {
                    stops.add(second);
                    continue;
                }
                (Some(first), None) if rest.is_empty() && map.longest_match(&begun).is_some() => {
                    stops.add(first);
                }
                _ => {}
            }
            open.extend(map.next_bytes(&begun).map(|byte| [&begun[..], &[byte]].concat()));
        }
        stops
    }

    fn add(&mut self, c: char) {
        let code = c as usize;
        if let Some(stops) = self.ascii.get_mut(code) {
            *stops = true;
        }
        if let Some(bits) = self.bits.get_mut(code / 64) {
            *bits |= 1 << (code % 64);
        }
    }

    #[inline]
    fn at(&self, c: char) -> bool {
        let code = c as usize;
        self.bits.get(code / 64).is_none_or(|bits| bits >> (code % 64) & 1 == 1)
    }

    /// Number of bytes at the start of a text that are copied as they are, up to a space.
    #[inline]
    fn n_plain(&self, text: &str) -> usize {
        let bytes = text.as_bytes();
        let (mut len, mut last) = (0, 0);
        loop {
            match bytes.get(len) {
                None | Some(b' ') => break,
                Some(&byte) if byte < 0x80 => {
                    if self.ascii[usize::from(byte)] {
                        return last;
                    }
                    last = len;
                    len += 1;
                }
                Some(_) => {
                    let c = text[len..].chars().next().unwrap_or_default();
                    if self.at(c) {
                        return last;
                    }
                    last = len;
                    len += c.len_utf8();
                }
            }
        }
        // The space may be the second character of what is replaced.
        if self.ascii[usize::from(b' ')] && len < bytes.len() { last } else { len }
    }
}

/// Where the bytes of normalized text come from.
pub(crate) trait Origins {
    /// `n_bytes` more of output come from this range of the input.
    fn push(&mut self, n_bytes: usize, start: usize, end: usize);
    /// More of the output are characters of the input, from `start` on.
    fn copied(&mut self, text: &str, start: usize);
    /// Output was cut to this length.
    fn truncate(&mut self, n_bytes: usize);
}

/// Nobody asked.
impl Origins for () {
    fn push(&mut self, _: usize, _: usize, _: usize) {}
    fn copied(&mut self, _: &str, _: usize) {}
    fn truncate(&mut self, _: usize) {}
}

/// Start and end in the input, by byte of the output.
impl Origins for Vec<(usize, usize)> {
    fn push(&mut self, n_bytes: usize, start: usize, end: usize) {
        self.extend(std::iter::repeat_n((start, end), n_bytes));
    }

    fn copied(&mut self, text: &str, start: usize) {
        for (idx, c) in text.char_indices() {
            Origins::push(self, c.len_utf8(), start + idx, start + idx + c.len_utf8());
        }
    }

    fn truncate(&mut self, n_bytes: usize) {
        Vec::truncate(self, n_bytes);
    }
}

impl SentencePieceNormalizer {
    /// Reads the part of a definition.
    pub(crate) fn from_json(json: &Value) -> Result<Self, Error> {
        let part = SentencePieceJson::deserialize(json).map_err(|error| Error::Unsupported {
            part: "normalizer",
            found: error.to_string(),
            supported: "the fields of a sentencepiece normalizer",
        })?;
        Self::new(&part, CharsMap::from_base64(&part.precompiled_charsmap)?)
    }

    /// `map` is the parsed `precompiled_charsmap`.
    fn new(part: &SentencePieceJson, map: CharsMap) -> Result<Self, Error> {
        let symbols = part.user_defined_symbols.iter().filter(|symbol| !symbol.is_empty());
        if let Some((symbol, id)) = symbols.clone().zip(0..).find(|(symbol, _)| symbol.len() > MAX_CONTENT) {
            let token = symbol.chars().take(100).collect();
            let reason = "is longer than the 4096 bytes that a user-defined token may have";
            return Err(Error::BadToken { token, id, reason });
        }
        let user_defined = Trie::new(symbols.zip(0..))?;
        let has_user_defined = !part.user_defined_symbols.is_empty();
        let stops = Box::new(Stops::new(&map, &part.user_defined_symbols));
        Ok(Self {
            map,
            user_defined: has_user_defined.then_some(user_defined),
            add_prefix: part.add_dummy_prefix && !part.treat_whitespace_as_suffix,
            add_suffix: part.add_dummy_prefix && part.treat_whitespace_as_suffix,
            merge_spaces: part.remove_extra_whitespaces,
            space: if part.escape_whitespaces { SPACE } else { " " },
            stops,
        })
    }

    /// Appends the normalized text to `out`, which must be empty.
    pub(crate) fn normalize<O: Origins>(&self, text: &str, out: &mut String, origins: &mut O) {
        debug_assert!(out.is_empty());
        let mut pos = 0;
        while self.merge_spaces && pos < text.len() {
            match self.prefix(&text[pos..]) {
                (" ", len) => pos += len,
                _ => break,
            }
        }
        if pos == text.len() {
            return;
        }
        out.reserve(text.len() + text.len() / 2);
        if self.add_prefix {
            out.push_str(self.space);
            origins.push(self.space.len(), pos, pos);
        }
        let mut after_space = self.merge_spaces;
        while pos < text.len() {
            let n_plain = self.stops.n_plain(&text[pos..]);
            if n_plain > 0 {
                let plain = &text[pos..pos + n_plain];
                out.push_str(plain);
                origins.copied(plain, pos);
                pos += n_plain;
                after_space = false;
            }
            if self.is_plain_space(&text[pos..]) {
                if !after_space {
                    out.push_str(self.space);
                    origins.push(self.space.len(), pos, pos + 1);
                }
                after_space = self.merge_spaces;
                pos += 1;
                continue;
            }
            if n_plain > 0 {
                continue;
            }
            let (normal, len) = self.prefix(&text[pos..]);
            let kept = if after_space { normal.trim_start_matches(' ') } else { normal };
            for (idx, part) in kept.split(' ').enumerate() {
                if idx > 0 {
                    out.push_str(self.space);
                    origins.push(self.space.len(), pos, pos + len);
                }
                out.push_str(part);
                origins.push(part.len(), pos, pos + len);
            }
            if !kept.is_empty() {
                after_space = self.merge_spaces && kept.ends_with(' ');
            }
            pos += len;
        }
        while self.merge_spaces && out.ends_with(self.space) {
            out.truncate(out.len() - self.space.len());
            origins.truncate(out.len());
        }
        if self.add_suffix {
            out.push_str(self.space);
            origins.push(self.space.len(), text.len(), text.len());
        }
    }

    /// Whether the text starts with a space that is one, whatever follows.
    #[inline]
    fn is_plain_space(&self, text: &str) -> bool {
        let mut chars = text.chars();
        chars.next() == Some(' ')
            && !self.stops.ascii[usize::from(b' ')]
            && chars.next().is_none_or(|next| !self.stops.at(next))
    }

    /// What the text starts with, normalized, and the number of bytes that it was.
    #[inline]
    fn prefix<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        if let Some((len, _)) = self.user_defined.as_ref().and_then(|trie| trie.longest(text.as_bytes())) {
            return (&text[..len], len);
        }
        let key = &text.as_bytes()[..text.len().min(MAX_KEY)];
        if let Some((len, replacement)) = self.map.longest_match(key)
            && text.is_char_boundary(len)
        {
            return (replacement, len);
        }
        let len = text.chars().next().map_or(0, char::len_utf8);
        (&text[..len], len)
    }
}

/// The decoder of a sentencepiece model.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SentencePieceDecoder {
    #[serde(rename = "type")]
    pub name: PartName,
    /// Whether the space before a text is not part of it.
    pub add_dummy_prefix: bool,
    /// Whether no space before a text is part of it.
    pub remove_extra_whitespaces: bool,
    /// What an unknown token becomes.
    pub unk_surface: String,
}

#[cfg(test)]
impl SentencePieceDecoder {
    /// Appends the text of tokens to `out`, which must be empty: sentencepiece's rules one by one, as the tests compare
    /// them.
    pub(crate) fn decode<'a>(
        &self,
        tokens: impl IntoIterator<Item = (&'a str, PieceKind)>,
        out: &mut String,
    ) {
        debug_assert!(out.is_empty());
        let mut bytes = Vec::new();
        let mut at_start = true;
        // Whether the last token gave its space away, which only one may.
        let mut gave_space = false;
        for (token, kind) in tokens {
            if kind == PieceKind::Byte {
                bytes.extend(crate::alphabet::parse_fallback(token));
                continue;
            }
            push_lossy(&mut bytes, out);
            at_start &= !gave_space && out.is_empty();
            gave_space = false;
            match kind {
                PieceKind::Control => {}
                PieceKind::Unknown => out.push_str(&self.unk_surface),
                _ => {
                    let mut rest = token;
                    if at_start
                        && (self.add_dummy_prefix || self.remove_extra_whitespaces)
                        && let Some(stripped) = rest.strip_prefix(SPACE)
                    {
                        rest = stripped;
                        // Where extra spaces go, every token at the start gives one.
                        gave_space = !self.remove_extra_whitespaces;
                    }
                    out.extend(
                        rest.split(SPACE)
                            .enumerate()
                            .flat_map(|(idx, part)| [if idx > 0 { " " } else { "" }, part]),
                    );
                }
            }
        }
        push_lossy(&mut bytes, out);
    }
}

impl SentencePieceDecoder {
    /// What a token stands for inside a text.
    pub(crate) fn bytes(&self, token: &str, kind: PieceKind) -> Vec<u8> {
        match kind {
            PieceKind::Control => Vec::new(),
            PieceKind::Unknown => self.unk_surface.as_bytes().to_vec(),
            PieceKind::Byte => crate::alphabet::parse_fallback(token).into_iter().collect(),
            _ => token.replace(SPACE, " ").into_bytes(),
        }
    }

    /// Appends a token at the start of a text, where spaces go; it stands for `bytes` inside a text. Gives whether the
    /// start is over.
    pub(crate) fn begin(&self, token: &str, kind: PieceKind, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        let drops = self.add_dummy_prefix || self.remove_extra_whitespaces;
        let is_text = !matches!(kind, PieceKind::Control | PieceKind::Unknown | PieceKind::Byte);
        let gives_space = is_text && drops && token.starts_with(SPACE);
        let bytes = if gives_space { &bytes[1..] } else { bytes };
        out.extend_from_slice(bytes);
        // Where extra spaces go, every token at the start gives one.
        !bytes.is_empty() || kind == PieceKind::Byte || gives_space && !self.remove_extra_whitespaces
    }
}

/// Appends bytes as characters, each byte that is part of none as U+FFFD.
#[cfg(test)]
fn push_lossy(bytes: &mut Vec<u8>, out: &mut String) {
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    bytes.clear();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(symbols: &[&str], add: bool, merge: bool, suffix: bool) -> Value {
        serde_json::to_value(SentencePieceJson {
            name: PartName::SentencePiece,
            precompiled_charsmap: String::new(),
            add_dummy_prefix: add,
            remove_extra_whitespaces: merge,
            escape_whitespaces: true,
            treat_whitespace_as_suffix: suffix,
            user_defined_symbols: symbols.iter().map(|&symbol| symbol.to_owned()).collect(),
        })
        .unwrap()
    }

    fn normalize(json: &Value, text: &str) -> (String, Vec<(usize, usize)>) {
        let normalizer = SentencePieceNormalizer::from_json(json).unwrap();
        let (mut out, mut plain, mut origins) = (String::new(), String::new(), Vec::new());
        normalizer.normalize(text, &mut out, &mut origins);
        normalizer.normalize(text, &mut plain, &mut ());
        assert_eq!(out, plain);
        assert_eq!(out.len(), origins.len());
        assert!(origins.iter().all(|&(start, end)| start <= end && end <= text.len()));
        (out, origins)
    }

    proptest! {
        /// What is copied at once is what comes out one character at a time.
        #[test]
        fn runs_are_what_their_characters_are(
            name in prop::sample::select(vec!["bpe-symbols", "unigram-bytes", "unigram-suffix", "unigram-symbols"]),
            text in "([axyzA \t\n\u{c0}\u{301}\u{1f1}\u{2603}\u{3000}é日😀]|xyz|<sep>|\u{2603} |the|  ){0,40}",
        ) {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
            let tokenizer = crate::Tokenizer::load(folder.join(name).with_extension("model")).unwrap();
            let json = tokenizer.inner().def.normalizer.as_ref().unwrap();
            let fast = SentencePieceNormalizer::from_json(json).unwrap();
            let mut slow = SentencePieceNormalizer::from_json(json).unwrap();
            slow.stops.ascii.fill(true);
            slow.stops.bits.fill(u64::MAX);
            let normalize = |normalizer: &SentencePieceNormalizer| {
                let (mut out, mut origins) = (String::new(), Vec::new());
                normalizer.normalize(&text, &mut out, &mut origins);
                (out, origins)
            };
            prop_assert_eq!(normalize(&fast), normalize(&slow));
        }
    }

    #[test]
    fn spaces_are_merged_marked_and_added() {
        for (text, add, merge, suffix, expected) in [
            (" a  b ", true, true, false, "\u{2581}a\u{2581}b"),
            (" a  b ", true, false, false, "\u{2581}\u{2581}a\u{2581}\u{2581}b\u{2581}"),
            (" a  b ", true, true, true, "a\u{2581}b\u{2581}"),
            (" a  b ", false, true, false, "a\u{2581}b"),
            ("  ", true, true, false, ""),
            ("", true, false, false, ""),
            ("  ", true, false, false, "\u{2581}\u{2581}\u{2581}"),
        ] {
            assert_eq!(normalize(&json(&[], add, merge, suffix), text).0, expected, "{text:?}");
        }
        let (out, origins) = normalize(&json(&[" x "], true, true, false), "a x b");
        assert_eq!(out, "\u{2581}a\u{2581}x\u{2581}b");
        assert_eq!(origins[3..5], [(0, 1), (1, 4)]);
    }

    #[test]
    fn a_map_with_circles_takes_linear_time() {
        let mut part = json(&[], false, false, false);
        let map = crate::charsmap::tests::cyclic("x");
        part["precompiled_charsmap"] = crate::base64::encode(&map).into();
        let normalizer = SentencePieceNormalizer::from_json(&part).unwrap();
        // What follows the last `a` keeps an entry from being the whole rest.
        let text = "\u{e9}".to_owned() + &"a".repeat(1000) + "b";
        let mut out = String::new();
        normalizer.normalize(&text, &mut out, &mut ());
        assert_eq!(out, "\u{e9}xxxxb", "four entries of at most 256 bytes");
    }

    #[test]
    fn a_very_long_user_defined_token_is_refused() {
        let error = SentencePieceNormalizer::from_json(&json(&[&"a".repeat(4097)], true, true, false));
        assert!(error.unwrap_err().to_string().contains("longer than the 4096 bytes"));
    }

    #[test]
    fn decoding_takes_the_added_space_away() {
        let decode = |merge: bool, tokens: &[(&str, PieceKind)]| {
            let decoder = SentencePieceDecoder {
                name: PartName::SentencePiece,
                add_dummy_prefix: true,
                remove_extra_whitespaces: merge,
                unk_surface: " \u{2047} ".to_owned(),
            };
            let mut out = String::new();
            decoder.decode(tokens.iter().copied(), &mut out);
            out
        };
        use PieceKind::{Byte, Control, Normal, Unknown};
        let spaces = [("<s>", Control), ("\u{2581}", Normal), ("\u{2581}a", Normal), ("\u{2581}b", Normal)];
        assert_eq!(decode(false, &spaces), " a b");
        assert_eq!(decode(true, &spaces), "a b");
        let bytes =
            [("<0xE2>", Byte), ("<0x98>", Byte), ("<0x83>", Byte), ("<0xC3>", Byte), ("<unk>", Unknown)];
        assert_eq!(decode(true, &bytes), "\u{2603}\u{fffd} \u{2047} ");
    }
}
