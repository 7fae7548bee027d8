//! Bytes that a byte-level vocabulary has no token for.
//!
//! Hugging Face deals with them before it merges: without an unknown token they are left out, so that what stands on
//! both sides of one may merge; with one, each becomes that token, or each run of them if the file fuses. So do we, on
//! pieces that the cache does not know; a vocabulary that has all bytes has no [`Missing`].

use std::borrow::Cow;

use crate::model::TokenLens;

/// The bytes without a token, and what becomes of them.
#[derive(Debug)]
pub(crate) struct Missing {
    bytes: Vec<u8>,
    is_missing: [bool; 256],
    becomes: Becomes,
}

/// What becomes of a byte without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Becomes {
    /// It is left out.
    Nothing,
    /// The unknown token, which takes part in no merge.
    Unknown {
        id: u32,
        /// Whether several in a row are one token.
        fuse: bool,
    },
}

impl Missing {
    /// Takes the bytes, in order.
    pub(crate) fn new(bytes: Vec<u8>, becomes: Becomes) -> Self {
        let mut is_missing = [false; 256];
        bytes.iter().for_each(|&byte| is_missing[usize::from(byte)] = true);
        Self { bytes, is_missing, becomes }
    }

    /// The bytes without a token, in order.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What becomes of them.
    pub(crate) fn becomes(&self) -> Becomes {
        self.becomes
    }

    /// Whether some byte of `piece` is missing.
    pub(super) fn is_in(&self, piece: &[u8]) -> bool {
        piece.iter().any(|&byte| self.lacks(byte))
    }

    /// The bytes of a piece that become tokens.
    pub(super) fn kept<'a>(&self, piece: &'a [u8]) -> Cow<'a, [u8]> {
        match self.becomes {
            Becomes::Unknown { fuse: false, .. } => piece.into(),
            _ if !self.is_in(piece) => piece.into(),
            Becomes::Nothing => piece.iter().copied().filter(|&byte| !self.lacks(byte)).collect(),
            Becomes::Unknown { fuse: true, .. } => {
                let mut kept = piece.to_vec();
                kept.dedup_by(|byte, before| self.lacks(*byte) && self.lacks(*before));
                kept.into()
            }
        }
    }

    /// Gives each token of a piece with the bytes that it stands for. A byte that was left out counts for the token
    /// after it, or else for the last.
    pub(crate) fn spans<'a>(
        &self,
        piece: &'a [u8],
        ids: &[u32],
        lens: &TokenLens,
        mut each: impl FnMut(u32, &'a [u8]),
    ) {
        let Some((&last, ids)) = ids.split_last() else { return };
        let mut rest = piece;
        for &id in ids {
            let (token, after) = rest.split_at(self.len(rest, lens.get(id)));
            each(id, token);
            rest = after;
        }
        each(last, rest);
    }

    /// How many bytes the first token of `rest` stands for, if it is spelled by `n_spelled` that are kept.
    fn len(&self, rest: &[u8], n_spelled: usize) -> usize {
        let n_missing = rest.iter().take_while(|&&byte| self.lacks(byte)).count();
        match self.becomes {
            Becomes::Unknown { fuse, .. } if n_missing > 0 => {
                if fuse {
                    n_missing
                } else {
                    1
                }
            }
            Becomes::Unknown { .. } => n_spelled.min(rest.len()),
            Becomes::Nothing => {
                let kept = rest.iter().enumerate().filter(|&(_, &byte)| !self.lacks(byte));
                kept.take(n_spelled).last().map_or(0, |(idx, _)| idx + 1)
            }
        }
    }

    fn lacks(&self, byte: u8) -> bool {
        self.is_missing[usize::from(byte)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_left_out_count_for_a_neighbour() {
        let lens = TokenLens(vec![1, 2, 3, 5]);
        let (drop, unknown) = (Becomes::Nothing, |fuse| Becomes::Unknown { id: 3, fuse });
        for (becomes, piece, kept, ids, spans) in [
            (drop, "abc", "abc", &[2][..], &["abc"][..]),
            (drop, "qaqbcq", "abc", &[0, 1], &["qa", "qbcq"]),
            (drop, "aqqbq", "ab", &[1], &["aqqbq"]),
            (drop, "aqqbqc", "abc", &[1, 0], &["aqqb", "qc"]),
            (drop, "qq", "", &[], &[]),
            (unknown(false), "qqabq", "qqabq", &[3, 3, 1, 3], &["q", "q", "ab", "q"]),
            (unknown(true), "qqabqq", "qabq", &[3, 1, 3], &["qq", "ab", "qq"]),
            (unknown(true), "aa", "aa", &[0, 0], &["a", "a"]),
        ] {
            let missing = Missing::new(b"qx".to_vec(), becomes);
            assert_eq!(missing.kept(piece.as_bytes()), kept.as_bytes(), "{piece} {becomes:?}");
            let mut found = Vec::new();
            missing.spans(piece.as_bytes(), ids, &lens, |id, bytes| found.push((id, bytes)));
            let expected: Vec<_> =
                ids.iter().copied().zip(spans.iter().map(|span| span.as_bytes())).collect();
            assert_eq!(found, expected, "{piece} {becomes:?}");
        }
    }
}
