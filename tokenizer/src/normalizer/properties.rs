//! What normalizers and pre-tokenizers ask about a character, all in one look-up.
//!
//! The sets of `classes.rs` become one bit each; the bits of every code point stand in a table of shared blocks, built
//! once per process in a few milliseconds (about 200 kB).

use std::sync::LazyLock;

use super::classes;

/// Sets of characters, as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Props(u16);

impl Props {
    /// Left alone by normalization forms.
    pub(crate) const INERT: Self = Self(1);
    /// Changed by lower-casing.
    pub(crate) const UPPER: Self = Self(1 << 1);
    /// Combining marks of any kind.
    pub(crate) const MARK: Self = Self(1 << 2);
    /// Accents to `BertNormalizer`.
    pub(crate) const NONSPACING: Self = Self(1 << 3);
    /// Controls to `BertNormalizer`, U+FFFD among them.
    pub(crate) const CONTROL: Self = Self(1 << 4);
    /// Chinese characters to `BertNormalizer`.
    pub(crate) const CHINESE: Self = Self(1 << 5);
    /// Punctuation.
    pub(crate) const PUNCTUATION: Self = Self(1 << 6);
    /// Numbers of any kind.
    pub(crate) const NUMERIC: Self = Self(1 << 7);
    /// Characters of words.
    pub(crate) const WORD: Self = Self(1 << 8);
    /// White space, which no Unicode version has changed since 6.3: what the standard library tests.
    pub(crate) const SPACE: Self = Self(1 << 9);

    /// The sets that `c` is in.
    #[inline]
    pub(crate) fn of(c: char) -> Self {
        let code = c as usize;
        let table: &Table = &TABLE;
        Self(table.blocks[usize::from(table.block_of[code / BLOCK])][code % BLOCK])
    }

    /// Whether one of `sets` is among these.
    #[inline]
    pub(crate) const fn is(self, sets: Self) -> bool {
        self.0 & sets.0 != 0
    }

    /// Both sets.
    pub(crate) const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Code points in a block.
const BLOCK: usize = 128;

static TABLE: LazyLock<Table> = LazyLock::new(Table::build);

struct Table {
    /// Block of a code point, by its upper bits.
    block_of: Vec<u16>,
    blocks: Vec<[u16; BLOCK]>,
}

impl Table {
    fn build() -> Self {
        let mut flat = vec![0; char::MAX as usize + 1];
        let sets: [(&[u32], Props); 9] = [
            (&classes::INERT, Props::INERT),
            (&classes::UPPER, Props::UPPER),
            (&classes::MARKS, Props::MARK),
            (&classes::NONSPACING, Props::NONSPACING),
            (&classes::CONTROL, Props::CONTROL),
            (&classes::CHINESE, Props::CHINESE),
            (&classes::PUNCTUATION, Props::PUNCTUATION),
            (&classes::NUMERIC, Props::NUMERIC),
            (&classes::WORD, Props::WORD),
        ];
        for (bounds, set) in sets {
            for range in bounds.chunks_exact(2) {
                flat[range[0] as usize..range[1] as usize].iter_mut().for_each(|bits| *bits |= set.0);
            }
        }
        for c in ('\0'..='\u{3000}').filter(|c| c.is_whitespace()) {
            flat[c as usize] |= Props::SPACE.0;
        }
        Self::share_blocks(&flat)
    }

    fn share_blocks(flat: &[u16]) -> Self {
        let mut blocks: Vec<[u16; BLOCK]> = Vec::new();
        let mut seen = std::collections::HashMap::new();
        let mut block_of = Vec::with_capacity(flat.len() / BLOCK);
        for block in flat.chunks_exact(BLOCK) {
            let block: [u16; BLOCK] = block.try_into().expect("chunks are one block long");
            let idx = *seen.entry(block).or_insert_with(|| {
                blocks.push(block);
                u16::try_from(blocks.len() - 1).expect("8704 blocks at most")
            });
            block_of.push(idx);
        }
        Self { block_of, blocks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_is_unicodes() {
        // `White_Space` of PropList.txt, which has not changed since Unicode 6.3.
        let spaces = "\t\n\u{b}\u{c}\r \u{85}\u{a0}\u{1680}\u{2000}\u{2001}\u{2002}\u{2003}\u{2004}\u{2005}\u{2006}\u{2007}\
                      \u{2008}\u{2009}\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}";
        assert!(('\0'..=char::MAX).all(|c| Props::of(c).is(Props::SPACE) == spaces.contains(c)));
    }

    #[test]
    fn sets_overlap_as_they_should() {
        assert!(Props::of('a').is(Props::WORD) && !Props::of('a').is(Props::MARK.or(Props::PUNCTUATION)));
        assert!(Props::of('\u{301}').is(Props::MARK) && Props::of('\u{301}').is(Props::NONSPACING));
        assert!(Props::of('京').is(Props::CHINESE) && Props::of('٣').is(Props::NUMERIC));
        assert!(Props::of('\0').is(Props::CONTROL) && !Props::of('\n').is(Props::CONTROL));
        assert!(Props::of('\u{fffd}').is(Props::CONTROL) && Props::of(char::MAX).is(Props::INERT));
    }
}
