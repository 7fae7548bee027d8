//! Cutting pieces into smaller ones, without changing the text.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::pattern::Pattern;
use super::scripts;
use crate::normalizer::properties::Props;

/// What becomes of the matches that text is cut around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Behavior {
    /// They are dropped.
    Removed,
    /// Each is a piece.
    #[default]
    Isolated,
    /// Each belongs to the piece before it.
    MergedWithPrevious,
    /// Each belongs to the piece after it.
    MergedWithNext,
    /// Matches in a row are one piece.
    Contiguous,
}

/// A way to cut.
#[derive(Clone, Debug)]
pub(super) enum Cuts {
    /// Around matches of a pattern, or around what lies between them.
    Pattern { pattern: Pattern, behavior: Behavior, invert: bool },
    /// Around single characters of a class.
    Class { class: Props, behavior: Behavior },
    /// At a character, which is dropped.
    Delimiter(char),
    /// At white space and around punctuation.
    Bert,
    /// Runs of word characters, and runs of others that are no white space.
    Words,
    /// Between scripts.
    Scripts,
    /// After so many characters.
    FixedLength(usize),
}

impl Cuts {
    /// Cuts each piece of `text`.
    pub(super) fn cut(&self, text: &str, pieces: &mut Vec<Range<usize>>) {
        let mut cut = Vec::with_capacity(pieces.len() + text.len() / 4);
        for piece in pieces.iter() {
            let mut sink = Sink { pieces: &mut cut, offset: piece.start };
            self.cut_piece(&text[piece.clone()], &mut sink);
        }
        *pieces = cut;
    }

    fn cut_piece(&self, text: &str, sink: &mut Sink<'_>) {
        match self {
            Self::Pattern { pattern, behavior, invert } => {
                let mut joiner = Joiner::new(*behavior, sink);
                pattern.for_each(text, |range, is_match| joiner.push(range, is_match != *invert));
                joiner.finish();
            }
            Self::Class { class, behavior } => cut_chars(text, |c| Props::of(c).is(*class), *behavior, sink),
            Self::Delimiter(delimiter) => cut_chars(text, |c| c == *delimiter, Behavior::Removed, sink),
            Self::Bert => cut_runs(text, sink, |c| {
                let props = Props::of(c);
                if props.is(Props::SPACE) {
                    Run::Dropped
                } else if props.is(Props::PUNCTUATION) {
                    Run::Alone
                } else {
                    Run::Of(0)
                }
            }),
            Self::Words => cut_runs(text, sink, |c| {
                let props = Props::of(c);
                if props.is(Props::WORD) {
                    Run::Of(0)
                } else if props.is(Props::SPACE) {
                    Run::Dropped
                } else {
                    Run::Of(1)
                }
            }),
            Self::Scripts => cut_scripts(text, sink),
            Self::FixedLength(n_chars) => {
                let mut rest = text;
                while !rest.is_empty() {
                    let len = rest.char_indices().nth(*n_chars).map_or(rest.len(), |(at, _)| at);
                    let start = text.len() - rest.len();
                    sink.push(start..start + len);
                    rest = &rest[len..];
                }
            }
        }
    }
}

/// Takes the pieces of one piece.
struct Sink<'p> {
    pieces: &'p mut Vec<Range<usize>>,
    offset: usize,
}

impl Sink<'_> {
    #[inline]
    fn push(&mut self, range: Range<usize>) {
        if !range.is_empty() {
            self.pieces.push(self.offset + range.start..self.offset + range.end);
        }
    }
}

/// Makes pieces of matches and what lies between, which come in order and without gaps.
struct Joiner<'s, 'p> {
    behavior: Behavior,
    sink: &'s mut Sink<'p>,
    /// What may still grow, and whether it is a match.
    held: Option<(Range<usize>, bool)>,
}

impl<'s, 'p> Joiner<'s, 'p> {
    fn new(behavior: Behavior, sink: &'s mut Sink<'p>) -> Self {
        Self { behavior, sink, held: None }
    }

    #[inline]
    fn push(&mut self, range: Range<usize>, is_match: bool) {
        let joins = match (self.behavior, &self.held) {
            (Behavior::Removed, _) => {
                return if is_match {
                } else {
                    self.sink.push(range)
                };
            }
            (Behavior::Isolated, _) => return self.sink.push(range),
            (Behavior::MergedWithPrevious, Some((_, held_match))) => is_match && !held_match,
            (Behavior::MergedWithNext, Some((_, held_match))) => !is_match && *held_match,
            (Behavior::Contiguous, Some((_, held_match))) => is_match == *held_match,
            (_, None) => false,
        };
        match &mut self.held {
            Some((held, held_match)) if joins => {
                held.end = range.end;
                // A piece that ends in a match takes no other, and one that begins with a match needs no other.
                *held_match = match self.behavior {
                    Behavior::MergedWithPrevious => true,
                    Behavior::MergedWithNext => false,
                    _ => is_match,
                };
            }
            held => {
                if let Some((done, _)) = held.replace((range, is_match)) {
                    self.sink.push(done);
                }
            }
        }
    }

    fn finish(self) {
        if let Some((held, _)) = self.held {
            self.sink.push(held);
        }
    }
}

/// Cuts around single characters.
fn cut_chars(text: &str, is_match: impl Fn(char) -> bool, behavior: Behavior, sink: &mut Sink<'_>) {
    let mut joiner = Joiner::new(behavior, sink);
    let mut end = 0;
    for (at, found) in text.match_indices(is_match) {
        if end < at {
            joiner.push(end..at, false);
        }
        end = at + found.len();
        joiner.push(at..end, true);
    }
    if end < text.len() {
        joiner.push(end..text.len(), false);
    }
    joiner.finish();
}

/// What a character does to the piece before it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Run {
    /// Ends it and is in none.
    Dropped,
    /// Ends it and is one.
    Alone,
    /// Goes on if the characters before are of the same kind.
    Of(u8),
}

/// Cuts between kinds of characters.
#[inline]
fn cut_runs(text: &str, sink: &mut Sink<'_>, run_of: impl Fn(char) -> Run) {
    let (mut start, mut current) = (0, Run::Dropped);
    for (at, c) in text.char_indices() {
        let run = run_of(c);
        if run != current || run == Run::Alone {
            if current != Run::Dropped {
                sink.push(start..at);
            }
            (start, current) = (at, run);
        }
    }
    if current != Run::Dropped {
        sink.push(start..text.len());
    }
}

/// Cuts between scripts. Spaces are of any script; those at the start are dropped, as by Hugging Face.
fn cut_scripts(text: &str, sink: &mut Sink<'_>) {
    let mut current: Option<(usize, u8)> = None;
    for (at, c) in text.char_indices() {
        let script = script_of(c);
        match current {
            _ if script == 0 => {}
            Some((_, same)) if same == script => {}
            _ => {
                if let Some((start, _)) = current.replace((at, script)) {
                    sink.push(start..at);
                }
            }
        }
    }
    if let Some((start, _)) = current {
        sink.push(start..text.len());
    }
}

/// The number of a character's script; 0 is any.
fn script_of(c: char) -> u8 {
    let after = scripts::RUNS.partition_point(|&(first, _)| first <= c as u32);
    after.checked_sub(1).map_or(0, |idx| scripts::RUNS[idx].1)
}
