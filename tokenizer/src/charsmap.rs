//! SentencePiece's precompiled character map: which substrings a normalizer replaces, and by what.
//!
//! A `.model`, a GGUF and (in base64) a `tokenizer.json` carry the same bytes: a 4-byte little-endian size, a double
//! array of that many bytes, and the replacements, each ended by a zero byte. The array is a byte trie in the layout of
//! Darts-clone: one 32-bit unit a node, and the unit at `node ^ offset ^ byte` is the child if it carries that byte as
//! its label. A value is where its replacement starts.
//!
//! The file is hostile: every position is checked as it is followed, so a broken array matches less and never reads
//! outside. A search follows one unit for a byte of text, whatever cycles the array has. Which positions of a text are
//! tried, and what happens where nothing matches, is the normalizer's business.

use crate::{Error, base64};

/// Longest replacement in bytes. NFKC needs 33; without a limit a small file could turn each letter into megabytes.
const MAX_REPLACEMENT: usize = 1024;

/// Marks a unit that was looked at; no array has so many.
const SEEN: u32 = u32::MAX;

/// Replacements by the text that they replace.
#[derive(Clone, Debug)]
pub(crate) struct CharsMap {
    units: Vec<Unit>,
    replacements: String,
}

/// One node of the double array.
#[derive(Clone, Copy, Debug)]
struct Unit(u32);

impl Unit {
    /// Distance to the children.
    fn offset(self) -> usize {
        ((self.0 >> 10) << ((self.0 & 1 << 9) >> 6)) as usize
    }

    /// The byte that leads here. Bit 31 marks a value, which no byte leads to.
    fn label(self) -> u32 {
        self.0 & (1 << 31 | 0xff)
    }

    /// Whether a key ends here; the value is then the child by byte 0.
    fn has_value(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    fn value(self) -> usize {
        (self.0 & !(1 << 31)) as usize
    }
}

impl CharsMap {
    /// Reads a map in base64.
    pub(crate) fn from_base64(text: &str) -> Result<Self, Error> {
        let blob = base64::decode(text.as_bytes());
        Self::parse(&blob.ok_or_else(|| malformed(0, "the text is not base64".to_owned()))?)
    }

    /// Reads the bytes of a map. No bytes at all are a map without entries.
    pub(crate) fn parse(blob: &[u8]) -> Result<Self, Error> {
        if blob.is_empty() {
            return Ok(Self { units: Vec::new(), replacements: String::new() });
        }
        let Some((size, rest)) = blob.split_first_chunk() else {
            return Err(malformed(0, format!("{} bytes are too few for a size", blob.len())));
        };
        let n_bytes = u32::from_le_bytes(*size);
        let split = usize::try_from(n_bytes).ok().filter(|size| size % 4 == 0);
        let Some((array, replacements)) = split.and_then(|size| rest.split_at_checked(size)) else {
            let reason = format!("the array has {n_bytes} bytes, of {} left, in units of 4", rest.len());
            return Err(malformed(0, reason));
        };
        let start = 4 + array.len();
        let replacements = std::str::from_utf8(replacements).map_err(|error| {
            malformed(start + error.valid_up_to(), "the replacements are not UTF-8".to_owned())
        })?;
        if let Some(long) = replacements.split('\0').find(|one| one.len() > MAX_REPLACEMENT) {
            let reason = format!("a replacement has {} bytes (limit: {MAX_REPLACEMENT})", long.len());
            return Err(malformed(start, reason));
        }
        let units = array.as_chunks().0.iter().map(|unit| Unit(u32::from_le_bytes(*unit))).collect();
        Ok(Self { units, replacements: replacements.to_owned() })
    }

    /// Whether the map replaces nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// How many times as long as the text that it replaces the longest replacement is, of entries of at most `max_key`
    /// bytes. Every unit is looked at once, whatever cycles the array has: it is first reached by its shortest key.
    pub(crate) fn growth(&self, max_key: usize) -> usize {
        // A unit is a child of every node whose children stand from here on.
        let child = |(idx, unit): (u32, &Unit)| (unit.label() <= 0xff).then(|| (idx ^ unit.label(), idx));
        let mut children: Vec<(u32, u32)> = (0..).zip(&self.units).filter_map(child).collect();
        children.sort_unstable();
        let ends: Vec<usize> = self.replacements.match_indices('\0').map(|(end, _)| end).collect();
        let len_from = |start: usize| {
            let end = ends.get(ends.partition_point(|&end| end < start));
            end.copied().unwrap_or(self.replacements.len()).saturating_sub(start)
        };
        let mut bases: Vec<usize> = self.units.first().map(|root| root.offset()).into_iter().collect();
        let mut growth = 1;
        for n_bytes in 1..=max_key {
            let mut next = Vec::new();
            for base in bases {
                let first = children.partition_point(|child| (child.0 as usize) < base);
                let siblings = children[first..].iter_mut().take_while(|child| child.0 as usize == base);
                for idx in siblings.map(|child| std::mem::replace(&mut child.1, SEEN)) {
                    let Some(unit) = self.units.get(idx as usize) else { break };
                    let base = idx as usize ^ unit.offset();
                    if let Some(value) = self.units.get(base).filter(|_| unit.has_value()) {
                        growth = growth.max(len_from(value.value()).div_ceil(n_bytes));
                    }
                    next.push(base);
                }
            }
            bases = next;
        }
        growth
    }

    /// The bytes of UTF-8 that some entry may go on with after `prefix`.
    pub(crate) fn next_bytes(&self, prefix: &[u8]) -> impl Iterator<Item = u8> {
        let children = |node_idx: usize| self.units.get(node_idx).map(|node| node_idx ^ node.offset());
        let is_child = |from: usize, byte: u8| {
            self.units.get(from ^ usize::from(byte)).is_some_and(|unit| unit.label() == u32::from(byte))
        };
        let step = |from: Option<usize>, &byte: &u8| {
            from.filter(|&from| is_child(from, byte)).and_then(|from| children(from ^ usize::from(byte)))
        };
        let from = prefix.iter().fold(children(0), step);
        (0..=0xf4).filter(move |&byte| from.is_some_and(|from| is_child(from, byte)))
    }

    /// The entries that `text` starts with, shortest first: number of bytes replaced, and the replacement.
    pub(crate) fn matches(&self, text: &[u8]) -> impl Iterator<Item = (usize, &str)> {
        let mut node_idx = self.units.first().map(|root| root.offset());
        let mut bytes = text.iter().enumerate();
        std::iter::from_fn(move || {
            for (idx, &byte) in bytes.by_ref() {
                let child_idx = node_idx? ^ usize::from(byte);
                let child = self.units.get(child_idx).filter(|unit| unit.label() == u32::from(byte))?;
                let next_idx = child_idx ^ child.offset();
                node_idx = Some(next_idx);
                if child.has_value()
                    && let Some(replacement) = self.replacement(next_idx)
                {
                    return Some((idx + 1, replacement));
                }
            }
            None
        })
    }

    /// The longest entry that `text` starts with: number of bytes replaced, and the replacement.
    #[inline]
    pub(crate) fn longest_match(&self, text: &[u8]) -> Option<(usize, &str)> {
        self.matches(text).last()
    }

    /// The replacement whose start stands in the unit.
    fn replacement(&self, unit_idx: usize) -> Option<&str> {
        let tail = self.replacements.get(self.units.get(unit_idx)?.value()..)?;
        let len = tail.bytes().position(|byte| byte == 0).unwrap_or(tail.len());
        Some(&tail[..len])
    }
}

fn malformed(offset: usize, reason: String) -> Error {
    Error::Malformed { part: "precompiled_charsmap", offset, reason }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The keys `a` -> `x` and `ab` -> `yz`, laid out by hand: the children of a node stand from its offset on.
    fn small() -> Vec<u8> {
        // Unused units carry a label that no UTF-8 text has.
        let mut units = vec![0xffu32; 1024];
        units[0] = 256 << 10;
        // `a` at 256 ^ 97, its children at 512; its value is the child by byte 0.
        let a = 256 ^ 97;
        units[a] = (((a ^ 512) as u32) << 10) | 1 << 8 | 97;
        units[512] = 1 << 31;
        let b = 512 ^ 98;
        units[b] = (((b ^ 768) as u32) << 10) | 1 << 8 | 98;
        units[768] = 1 << 31 | 2;
        let mut blob = ((units.len() * 4) as u32).to_le_bytes().to_vec();
        blob.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        blob.extend(b"x\0yz\0");
        blob
    }

    #[test]
    fn the_longest_entry_wins() {
        let map = CharsMap::parse(&small()).unwrap();
        assert_eq!(map.matches(b"abc").collect::<Vec<_>>(), [(1, "x"), (2, "yz")]);
        assert_eq!(map.longest_match(b"abc"), Some((2, "yz")));
        assert_eq!(map.longest_match(b"ac"), Some((1, "x")));
        assert_eq!(map.longest_match(b"\0a"), None);
        assert_eq!(map.longest_match(b""), None);
        let next = [&b""[..], b"a", b"ab", b"b"].map(|prefix| map.next_bytes(prefix).collect::<Vec<_>>());
        assert_eq!(next, [&b"a"[..], b"b", b"", b""]);
        assert_eq!(CharsMap::parse(b"").unwrap().longest_match(b"a"), None);
    }

    #[test]
    fn broken_maps_are_refused_or_match_less() {
        let blob = small();
        for (bytes, expected) in [
            (&b"\x01\0"[..], "too few"),
            (b"\x08\0\0\0abcd", "the array has 8 bytes, of 4 left"),
            (b"\x03\0\0\0abcd", "units of 4"),
            (b"\xff\xff\xff\xffabcd", "the array has 4294967295 bytes"),
            (b"\0\0\0\0a\xff", "byte 5 of precompiled_charsmap: the replacements are not UTF-8"),
        ] {
            let message = CharsMap::parse(bytes).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        let mut long = b"\0\0\0\0".to_vec();
        long.resize(4 + MAX_REPLACEMENT + 1, b'a');
        assert!(CharsMap::parse(&long).unwrap_err().to_string().contains("1025 bytes"));
        let text = b"abababab";
        for byte_idx in 0..blob.len() {
            for flip in [1u8, 0x80, 0xff] {
                let mut bad = blob.clone();
                bad[byte_idx] ^= flip;
                let Ok(map) = CharsMap::parse(&bad) else { continue };
                let found: Vec<_> = map.matches(text).collect();
                assert!(found.is_sorted_by_key(|&(len, _)| len) && found.len() <= text.len());
                assert!(found.iter().all(|&(len, new)| len <= text.len() && map.replacements.contains(new)));
                assert_eq!(map.longest_match(text), found.last().copied());
                assert!(found.iter().all(|(len, new)| new.len() <= len * map.growth(text.len())));
            }
        }
    }

    /// A map in which `a` leads to its own children again, so that any number of them is an entry.
    pub(crate) fn cyclic(replacement: &str) -> Vec<u8> {
        let mut units = vec![0xffu32; 512];
        units[0] = 256 << 10;
        let a = 256 ^ 97;
        units[a] = (((a ^ 256) as u32) << 10) | 1 << 8 | 97;
        units[256] = 1 << 31;
        let mut blob = ((units.len() * 4) as u32).to_le_bytes().to_vec();
        blob.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        blob.extend(replacement.bytes().chain([0]));
        blob
    }

    #[test]
    fn growth_is_that_of_the_longest_replacement_for_the_shortest_text() {
        assert_eq!(CharsMap::parse(b"").unwrap().growth(9), 1);
        let map = CharsMap::parse(&small()).unwrap();
        assert_eq!((map.growth(1), map.growth(9)), (1, 1));
        let mut long = small();
        long.truncate(long.len() - 1);
        long.extend(b"zzzzz\0");
        let map = CharsMap::parse(&long).unwrap();
        assert_eq!((map.growth(1), map.growth(2)), (1, 4));
        assert_eq!(CharsMap::parse(&cyclic("12345")).unwrap().growth(256), 5);
    }

    #[test]
    fn a_circle_matches_as_far_as_the_text_goes() {
        let map = CharsMap::parse(&cyclic("x")).unwrap();
        assert_eq!(map.longest_match(b"aaab"), Some((3, "x")));
    }
}
