//! The pieces of 64 bytes at once, by arithmetic on bit masks.
//!
//! A window begins where a piece begins. For each class of characters, SIMD comparisons give a mask of the bytes of ASCII
//! in it; characters of more bytes are looked up one by one, none of which waits for the one before, and all their bytes
//! are in the mask. The starts of pieces follow by shifting, adding and masking: a run of letters starts at `letters &
//! !(letters << 1)`; adding a seed to a mask carries through the run at the seed and so floods it. What the end of the
//! window hides (how a run of white space goes on) or what is rare (numbers and white space beyond ASCII) ends the window
//! early: the next begins at the last piece whose start is sure, and a piece that fills a whole window is left to
//! [`super::scan`]. Nothing is carried from one window to the next. Two instructions a byte of ASCII, where the scan needs
//! ten.

use wide::u8x16;

use super::BATCH;
use super::scan::{LETTER, MARK, NUMBER, OTHER_LETTER, Pattern, SPACE, Scan, Set, UPPER, contraction_len};

/// Bytes looked at together: the bits of a mask.
const WINDOW: usize = 64;

/// Writes the ends of the pieces from `at` on, as many as surely fit, and tells how many.
pub(super) fn ends<P: Pattern>(scan: &Scan<'_>, mut at: usize, ends: &mut [usize; BATCH]) -> usize {
    let mut n_ends = 0;
    // A window has fewer pieces than bytes.
    while at < scan.bytes.len() && n_ends <= BATCH - WINDOW {
        let mut starts = match scan.bytes[at..].first_chunk() {
            Some(block) if P::HAS_WINDOWS && shows::<P>(block, scan, at) => {
                P::starts(block, &Masks::of::<P>(block, scan, at))
            }
            _ => 0,
        };
        if starts == 0 {
            at = P::end(scan, at);
            ends[n_ends] = at;
            n_ends += 1;
            continue;
        }
        let (base, n_starts) = (at, starts.count_ones() as usize);
        at = base + starts.ilog2() as usize;
        // Four at a time, the last of which may mean nothing: whether there is one more would be guessed wrong too often.
        let (fours, _) = ends[n_ends..].as_chunks_mut::<4>();
        for four in &mut fours[..n_starts.div_ceil(4)] {
            for end in four {
                *end = base + starts.trailing_zeros() as usize;
                starts &= starts.wrapping_sub(1);
            }
        }
        n_ends += n_starts;
    }
    n_ends
}

/// Whether a window shows more than where it begins.
#[inline]
fn shows<P: Pattern>(block: &[u8; WINDOW], scan: &Scan<'_>, at: usize) -> bool {
    let hidden = NUMBER | SPACE | if P::MARKS_IN_WORDS { MARK } else { 0 };
    block[0].is_ascii() || scan.peek(at).is_some_and(|(class, _)| class & hidden == 0)
}

/// One bit for each byte of the window.
pub(super) struct Masks {
    /// The bytes that the other masks tell of, from the first on.
    known: u64,
    /// The bytes of letters, and of what goes with them in words.
    letters: u64,
    /// Those of them in capitals.
    capitals: u64,
    /// Those of them in what is neither a capital nor a small letter.
    uncased: u64,
    /// The bytes of a character after its first.
    inner: u64,
    digits: u64,
    /// All white space.
    spaces: u64,
    /// Carriage returns and line feeds.
    newlines: u64,
    /// The space itself.
    blanks: u64,
    apostrophes: u64,
    slashes: u64,
}

impl Masks {
    #[inline(always)]
    fn of<P: Pattern>(block: &[u8; WINDOW], scan: &Scan<'_>, at: usize) -> Self {
        let parts: [u8x16; 4] = std::array::from_fn(|i| {
            let mut part = [0; 16];
            part.copy_from_slice(&block[i * 16..][..16]);
            u8x16::new(part)
        });
        let mut masks = Self {
            known: u64::MAX,
            letters: mask(&parts, |v| within(v | u8x16::splat(0x20), b'a', b'z')),
            capitals: mask(&parts, |v| within(v, b'A', b'Z')),
            uncased: 0,
            inner: 0,
            digits: mask(&parts, |v| within(v, b'0', b'9')),
            spaces: mask(&parts, |v| within(v, b'\t', b'\r') | is(v, b' ')),
            newlines: mask(&parts, |v| is(v, b'\n') | is(v, b'\r')),
            blanks: mask(&parts, |v| is(v, b' ')),
            apostrophes: mask(&parts, |v| is(v, b'\'')),
            slashes: mask(&parts, |v| is(v, b'/')),
        };
        let high = mask(&parts, |v| v);
        if high != 0 {
            masks.inner = mask(&parts, |v| is(v & u8x16::splat(0xc0), 0x80));
            masks.add_others::<P>(high, scan, at);
        }
        masks
    }

    /// Adds the characters beyond ASCII, of which `high` has all bytes.
    #[inline(always)]
    fn add_others<P: Pattern>(&mut self, high: u64, scan: &Scan<'_>, at: usize) {
        let mut n_known = WINDOW;
        for i in bits(high & !self.inner) {
            let Some((class, end)) = scan.peek(at + i) else { break };
            let end = end - at;
            let is_last = end > WINDOW || class & (NUMBER | SPACE) != 0;
            // What a word does with a mark depends on more than the character before it, unless that is in a word.
            let is_odd_mark = P::MARKS_IN_WORDS && class == MARK && self.letters << 1 & bit(i) == 0;
            if is_last || is_odd_mark {
                n_known = i;
                break;
            }
            // The last byte may be that of the window.
            let bytes = (2u64 << (end - 1)).wrapping_sub(1 << i);
            let only = |set: Set| if class & set != 0 { bytes } else { 0 };
            if P::MARKS_IN_WORDS {
                self.letters |= only(LETTER | MARK);
                self.capitals |= only(UPPER);
                self.uncased |= only(OTHER_LETTER | MARK);
            } else {
                self.letters |= only(LETTER);
            }
        }
        let quoted = high & self.apostrophes << 1;
        if let Some(i) = bits(quoted).find(|&i| scan.is_long_s(at + i)) {
            n_known = n_known.min(i);
        }
        // Whether a capital goes with such a letter before it depends on what comes after.
        let doubtful = self.capitals & self.uncased << 1;
        if P::MARKS_IN_WORDS && doubtful != 0 {
            n_known = n_known.min(doubtful.trailing_zeros() as usize);
        }
        self.known = below(n_known);
        for mask in [
            &mut self.letters,
            &mut self.capitals,
            &mut self.digits,
            &mut self.spaces,
            &mut self.newlines,
            &mut self.blanks,
            &mut self.apostrophes,
            &mut self.slashes,
        ] {
            *mask &= self.known;
        }
    }

    /// Starts for [`super::scan::Gpt2`].
    #[inline]
    pub(super) fn gpt2(&self, block: &[u8; WINDOW]) -> u64 {
        let runs = run_starts(self.letters) | run_starts(self.digits) | run_starts(self.symbols());
        // A blank goes with the run after it.
        let runs = runs & !(self.blanks << 1);
        let mut starts = runs | run_starts(self.spaces) | self.spaces & !(self.spaces >> 1);
        for i in bits(self.apostrophes & runs & self.letters >> 1) {
            if i + 2 >= self.len() {
                // What follows decides whether the letter starts a word.
                starts &= below(i + 1);
                break;
            }
            let len = contraction_len(block[i + 1], block[i + 2], false);
            if len > 0 {
                starts = starts & !bit(i + 1) | bit(i + len);
            }
        }
        self.sure(starts, self.spaces)
    }

    /// Starts for [`super::scan::Gpt4`].
    #[inline]
    pub(super) fn gpt4<const D: usize>(&self, block: &[u8; WINDOW]) -> u64 {
        let symbols = self.symbols();
        // Newlines go with the symbols before them.
        let seeds = self.newlines & symbols << 1;
        let taken = self.newlines & !self.newlines.wrapping_add(seeds);
        let runs = run_starts(symbols) & !(self.blanks << 1);
        let (space_starts, spaces) = self.space_starts(taken);
        let mut starts = self.words(runs) | runs | number_starts::<D>(self.digits) | space_starts;
        for i in bits(self.apostrophes & runs & self.letters >> 1) {
            if i + 2 < self.len() {
                let len = contraction_len(block[i + 1], block[i + 2], true);
                starts |= if len > 0 { bit(i + len) } else { 0 };
            }
        }
        self.sure(starts, spaces)
    }

    /// Starts for [`super::scan::O200k`].
    #[inline]
    pub(super) fn o200k<const D: usize, const CONTRACTIONS: bool>(&self, block: &[u8; WINDOW]) -> u64 {
        let symbols = self.symbols();
        // Newlines, and slashes after them, go with the symbols before them. A slash is a symbol as well, so seeds may
        // lie in what an earlier one took.
        let tails = self.newlines | self.slashes;
        let (mut seeds, mut taken) = (self.newlines & symbols << 1, 0);
        while seeds != 0 {
            let seed = seeds & seeds.wrapping_neg();
            taken |= tails & !tails.wrapping_add(seed);
            seeds &= !taken;
        }
        let runs = run_starts(symbols & !taken) & !(self.blanks << 1);
        let (space_starts, spaces) = self.space_starts(taken);
        let small = self.letters & !(self.capitals | self.uncased);
        let mut starts = self.words(runs) | self.capitals & small << 1;
        starts |= runs | number_starts::<D>(self.digits) | space_starts;
        let quotes = if CONTRACTIONS { self.apostrophes & self.letters << 1 } else { 0 };
        let mut contraction_end = 0;
        for i in bits(quotes) {
            // A contraction has none of its own: the apostrophe then begins the next piece.
            if i == contraction_end {
                continue;
            }
            if i + 2 >= self.len() {
                starts &= below(i);
                break;
            }
            let len = contraction_len(block[i + 1], block[i + 2], true);
            if len > 0 {
                contraction_end = i + len;
                starts = starts & !(below(contraction_end) & !below(i)) | bit(contraction_end);
            }
        }
        self.sure(starts, spaces)
    }

    /// What is neither letter, digit nor white space.
    #[inline]
    fn symbols(&self) -> u64 {
        self.known & !(self.letters | self.digits | self.spaces)
    }

    /// Number of bytes that the masks tell of.
    #[inline]
    fn len(&self) -> usize {
        self.known.trailing_ones() as usize
    }

    /// Starts of words, where one symbol or white space goes with the word after it: `[^\r\n\p{L}\p{N}]?\p{L}+`.
    /// `symbol_runs` are the starts of runs of symbols that have no blank before them; before a letter, such a start is
    /// the whole run.
    #[inline]
    fn words(&self, symbol_runs: u64) -> u64 {
        let leads = symbol_runs | self.spaces & !self.newlines;
        run_starts(self.letters) & !self.following(leads)
    }

    /// Where the characters after these begin.
    #[inline]
    fn following(&self, starts: u64) -> u64 {
        let seeds = self.inner & starts << 1;
        let inner = self.inner & !self.inner.wrapping_add(seeds);
        (starts | inner) << 1 & !self.inner
    }

    /// Starts by `\s*[\r\n]+|\s+(?!\S)|\s+` among the white space that is not `taken`, and that white space.
    #[inline]
    fn space_starts(&self, taken: u64) -> (u64, u64) {
        let spaces = self.spaces & !taken;
        let newlines = self.newlines & !taken;
        let inner = spaces & !newlines;
        let mut after_line = inner & newlines << 1;
        // White space between newlines goes with the second: rare enough to be looked at one by one.
        if after_line.wrapping_add(inner) & !inner & newlines != 0 {
            for i in bits(after_line) {
                let end = i + (inner >> i).trailing_ones() as usize;
                if bit(end) & newlines != 0 {
                    after_line &= !bit(i);
                }
            }
        }
        // The last of a run, unless it is a newline, stands alone or goes with what follows.
        let last = inner & !(spaces >> 1);
        (run_starts(spaces) | after_line | last, spaces)
    }

    /// Drops the first start, which is known, and those that bytes after the window may undo: all but the first in the
    /// run of `spaces` that touches the end.
    #[inline]
    fn sure(&self, starts: u64, spaces: u64) -> u64 {
        let len = self.len();
        if len == 0 {
            return 0;
        }
        let n_last = (spaces << (WINDOW - len)).leading_ones() as usize;
        let run = self.known & !below(len - n_last);
        let in_run = starts & run;
        (starts & !run | in_run & in_run.wrapping_neg()) & self.known & !1
    }
}

/// One bit for each byte of the block whose highest bit is set after `test`.
#[inline(always)]
fn mask(parts: &[u8x16; 4], test: impl Fn(u8x16) -> u8x16) -> u64 {
    let part = |i: usize| u64::from(test(parts[i]).to_bitmask()) << (16 * i);
    part(0) | part(1) | part(2) | part(3)
}

#[inline(always)]
fn within(v: u8x16, first: u8, last: u8) -> u8x16 {
    let offset = v - u8x16::splat(first);
    offset.min(u8x16::splat(last - first)).simd_eq(offset)
}

#[inline(always)]
fn is(v: u8x16, byte: u8) -> u8x16 {
    v.simd_eq(u8x16::splat(byte))
}

#[inline]
const fn run_starts(mask: u64) -> u64 {
    mask & !(mask << 1)
}

/// Starts by `\p{N}{1,D}`.
#[inline]
fn number_starts<const D: usize>(digits: u64) -> u64 {
    if D == 1 {
        return digits;
    }
    // Where a digit has D digits before it.
    let full = (1..=D).fold(digits, |full, n| full & digits << n);
    let mut last = run_starts(digits);
    let mut starts = last;
    while last != 0 {
        last = last << D & full;
        starts |= last;
    }
    starts
}

#[inline]
fn bit(i: usize) -> u64 {
    1u64.checked_shl(i as u32).unwrap_or(0)
}

/// The bits below `i`.
#[inline]
fn below(i: usize) -> u64 {
    bit(i).wrapping_sub(1)
}

/// The positions of the bits, lowest first.
#[inline]
fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let i = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (i < WINDOW).then_some(i)
    })
}
