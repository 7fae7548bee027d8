//! From text to ids: added tokens, normalizer, pre-tokenizer, model, in Hugging Face's order.
//!
//! Most byte-level vocabularies have a published split and nothing else; their text goes straight to [`crate::bpe`]. All
//! others, and all offsets, take the general way.

use std::ops::Range;

use crate::Split;
use crate::added::{AddedTokens, Part};
use crate::bpe::Bpe;
use crate::model::{Model, Scratch, TokenLens};
use crate::normalizer::{Normalized, Normalizer};
use crate::pretoken;
use crate::pretokenizer::PreTokenizer;
use crate::sentencepiece_normalizer::SentencePieceNormalizer;
use crate::sink::{Sink, Spans};

/// What happens to text.
pub(crate) struct Pipeline {
    pub added: AddedTokens,
    pub normalizer: AnyNormalizer,
    pub pre_tokenizer: Option<PreTokenizer>,
    pub model: Model,
}

/// Hugging Face's normalizers, or sentencepiece's own.
pub(crate) enum AnyNormalizer {
    None,
    Parts(Normalizer),
    SentencePiece(SentencePieceNormalizer),
}

/// How a text begins, and how it is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// Whether nothing stands before it: some pre-tokenizers put a space there.
    pub is_first: bool,
    /// Whether special tokens that it spells count.
    pub parse_special: bool,
}

/// A token and the bytes of the original text that it came from.
pub(crate) type Placed = (u32, Range<usize>);

impl Pipeline {
    /// Appends the ids of `text`. Special tokens are text unless `parse_special`; other added tokens always count.
    pub(crate) fn encode(&self, text: &str, start: Start, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let Start { is_first: starts_text, parse_special } = start;
        self.added.split_raw(text, parse_special, |part| match part {
            Part::Token { id, .. } => ids.push(id),
            Part::Text(range) => {
                let is_first = starts_text && range.start == 0;
                match self.plain_bytes() {
                    Some((bpe, _, split)) => {
                        let text = self.normalizer.plain(&text[range]);
                        self.added.split_normalized(&text, parse_special, |part| match part {
                            Part::Token { id, .. } => ids.push(id),
                            Part::Text(range) => bpe.encode(split, &text[range], &mut scratch.bytes, ids),
                        });
                    }
                    _ => {
                        let mut normalized = Normalized::new(&text[range]);
                        self.normalizer.normalize(&mut normalized);
                        self.encode_normalized(
                            &normalized,
                            is_first,
                            parse_special,
                            &mut |part| match part {
                                Step::Token(id, _) => ids.push(id),
                                Step::Pieces(text, pieces) => {
                                    self.encode_pieces(text.text(), pieces, scratch, ids);
                                }
                            },
                        );
                    }
                }
            }
        });
    }

    /// As [`Pipeline::encode`], with where each token came from.
    pub(crate) fn encode_offsets(
        &self,
        text: &str,
        Start { is_first: starts_text, parse_special }: Start,
        scratch: &mut Scratch,
        out: &mut Vec<Placed>,
    ) {
        self.added.split_raw(text, parse_special, |part| match part {
            Part::Token { id, range } => out.push((id, range)),
            Part::Text(range) => {
                let (is_first, base) = (starts_text && range.start == 0, range.start);
                if let Some((bpe, lens, split)) = self.plain_bytes()
                    && matches!(self.normalizer, AnyNormalizer::None)
                    && bpe.missing().is_none()
                    && !self.added.has_normalized()
                {
                    let (mut ids, mut at) = (Vec::new(), base);
                    bpe.encode(split, &text[range], &mut scratch.bytes, &mut ids);
                    out.extend(ids.into_iter().map(|id| {
                        let start = at;
                        at += lens.get(id);
                        // A token may be a part of a character, which it then comes from.
                        (id, text.floor_char_boundary(start)..text.ceil_char_boundary(at))
                    }));
                    return;
                }
                let mut normalized = Normalized::with_origins(&text[range]);
                self.normalizer.normalize(&mut normalized);
                let place = |text: &Normalized<'_>, range| {
                    let origin = text.origin_of(range).unwrap_or_default();
                    base + origin.start..base + origin.end
                };
                self.encode_normalized(&normalized, is_first, parse_special, &mut |part| match part {
                    Step::Token(id, (text, range)) => out.push((id, place(text, range))),
                    Step::Pieces(text, pieces) => pieces.iter().for_each(|range| {
                        let mut spans = Spans::default();
                        self.encode_piece(&text.text()[range.clone()], scratch, &mut spans);
                        let mut start = range.start;
                        for (id, end) in spans.ids.into_iter().zip(spans.ends) {
                            let end = range.start + end;
                            out.push((id, place(text, start..end)));
                            start = end;
                        }
                    }),
                });
            }
        });
    }

    /// The first place from `from` on where a text may be cut, if one is known: then the ids of both parts are, one after
    /// the other, those of the whole, and would be whatever came after it.
    pub(crate) fn safe_cut(&self, text: &str, mut from: usize, parse_special: bool) -> Option<usize> {
        self.plain_bytes().filter(|_| !self.added.has_normalized())?;
        let keeps_spaces = match &self.normalizer {
            AnyNormalizer::None => true,
            AnyNormalizer::Parts(normalizer) => normalizer.only_forms(),
            AnyNormalizer::SentencePiece(_) => false,
        };
        if !keeps_spaces || !self.added.keep_within_spaces(parse_special) {
            return None;
        }
        loop {
            let at = pretoken::safe_cut(text, from);
            let letter = text[..at].char_indices().next_back().filter(|_| at < text.len())?.0;
            // A rare letter becomes one and a mark.
            let normalized = self.normalizer.plain(&text[letter..at]);
            if normalized.chars().next_back().is_some_and(pretoken::is_letter) {
                return Some(at);
            }
            from = at;
        }
    }

    fn encode_pieces(&self, text: &str, pieces: &[Range<usize>], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        match &self.model {
            Model::Bytes(bpe, _) if !self.is_spelled() => {
                bpe.encode_pieces(text.as_bytes(), pieces, &mut scratch.bytes, ids);
            }
            _ => pieces.iter().for_each(|piece| self.encode_piece(&text[piece.clone()], scratch, ids)),
        }
    }

    fn encode_piece<S: Sink>(&self, piece: &str, scratch: &mut Scratch, sink: &mut S) {
        if self.is_spelled() {
            self.model.encode_spelled(piece, scratch, sink);
        } else {
            self.model.encode(piece, scratch, sink);
        }
    }

    /// Whether pieces come spelled in the alphabet of bytes.
    fn is_spelled(&self) -> bool {
        self.pre_tokenizer.as_ref().is_some_and(PreTokenizer::is_spelled)
    }

    /// Byte-level BPE and the published split that is all that happens between normalizer and model.
    fn plain_bytes(&self) -> Option<(&Bpe, &TokenLens, Split)> {
        match (&self.model, self.pre_tokenizer.as_ref().and_then(PreTokenizer::known_split)) {
            (Model::Bytes(bpe, lens), Some(split)) => Some((bpe, lens, split)),
            _ => None,
        }
    }

    /// Cuts a normalized text into added tokens and pieces for the model.
    fn encode_normalized(
        &self,
        text: &Normalized<'_>,
        is_first: bool,
        parse_special: bool,
        each: &mut dyn FnMut(Step<'_, '_>),
    ) {
        let mut pieces = Vec::new();
        self.added.split_normalized(text.text(), parse_special, |part| match part {
            Part::Token { id, range } => each(Step::Token(id, (text, range))),
            Part::Text(range) => {
                let is_first = is_first && range.start == 0;
                let mut part = text.slice(range);
                match &self.pre_tokenizer {
                    Some(pre_tokenizer) => pre_tokenizer.pre_tokenize(&mut part, is_first, &mut pieces),
                    None => {
                        pieces.clear();
                        pieces.extend(Some(0..part.text().len()).filter(|all| !all.is_empty()));
                    }
                }
                each(Step::Pieces(&part, &pieces));
            }
        });
    }
}

/// A part of a normalized text, and where it stands in which text.
enum Step<'p, 't> {
    Token(u32, (&'p Normalized<'t>, Range<usize>)),
    /// Pieces for the model, none of them empty.
    Pieces(&'p Normalized<'t>, &'p [Range<usize>]),
}

impl AnyNormalizer {
    fn normalize(&self, text: &mut Normalized<'_>) {
        match self {
            Self::None => {}
            Self::Parts(normalizer) => normalizer.normalize(text),
            Self::SentencePiece(normalizer) => {
                let mut out = String::new();
                let origins = if text.has_origins() {
                    let mut origins = Vec::new();
                    normalizer.normalize(text.text(), &mut out, &mut origins);
                    Some(origins)
                } else {
                    normalizer.normalize(text.text(), &mut out, &mut ());
                    None
                };
                *text = Normalized::from_parts(out, origins);
            }
        }
    }

    /// The normalized text, when nobody asks where it came from.
    fn plain<'a>(&self, text: &'a str) -> std::borrow::Cow<'a, str> {
        match self {
            Self::None => text.into(),
            Self::Parts(normalizer) => normalizer.normalized(text),
            Self::SentencePiece(_) => {
                let mut normalized = Normalized::new(text);
                self.normalize(&mut normalized);
                normalized.into_text()
            }
        }
    }
}
