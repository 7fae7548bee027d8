//! From ids to text by table: each token stands for the same bytes wherever it stands, except at the start.
//!
//! Nearly every decoder is of this kind, and is then a copy for each id. The others go through
//! [`crate::decoder::Decoder`].

use crate::Error;
use crate::decoder::Decoder;
use crate::definition::PieceKind;
use crate::sentencepiece_normalizer::SentencePieceDecoder;
use crate::vocab::{TokenBytes, Vocab};

/// How ids become text.
pub(crate) struct Decoding {
    /// What each token stands for inside a text.
    pub bytes: TokenBytes,
    start: Start,
}

/// What is different at the start of a text.
enum Start {
    Same,
    /// So many of this byte go.
    Strip(u8, usize),
    /// The first token stands for other bytes.
    First(TokenBytes),
    /// sentencepiece takes away the spaces that it put there.
    SentencePiece {
        decoder: SentencePieceDecoder,
        kinds: Vec<PieceKind>,
    },
    /// No table: the decoder sees all tokens together.
    Whole(Decoder),
}

impl Decoding {
    /// Takes a decoder of `tokenizer.json`. `added` tells whether an id is an added token, which stands for itself.
    pub(crate) fn new(decoder: Decoder, vocab: &Vocab, added: impl Fn(u32) -> bool) -> Result<Self, Error> {
        let table = |is_first: bool| {
            let plan = decoder.per_token();
            TokenBytes::new((0..vocab.len() as u32).map(|id| {
                let token = vocab.token(id)?;
                Some(match &plan {
                    // Spelled in characters, not in the alphabet of bytes.
                    Some(plan) if added(id) && plan.is_alphabet() => token.as_bytes().to_vec(),
                    Some(plan) => plan.bytes(token, is_first),
                    None => token.as_bytes().to_vec(),
                })
            }))
        };
        let bytes = table(false)?;
        let start = match decoder.per_token() {
            None => Start::Whole(decoder.clone()),
            Some(plan) => match plan.strip_start {
                Some((byte, n)) => Start::Strip(byte, n),
                None if plan.first_differs() => Start::First(table(true)?),
                None => Start::Same,
            },
        };
        Ok(Self { bytes, start })
    }

    /// Takes sentencepiece's decoder and the type of each token.
    pub(crate) fn sentencepiece(
        decoder: SentencePieceDecoder,
        kinds: Vec<PieceKind>,
        vocab: &Vocab,
    ) -> Result<Self, Error> {
        let bytes = TokenBytes::new((0..vocab.len() as u32).map(|id| {
            let token = vocab.token(id)?;
            Some(decoder.bytes(token, kinds.get(id as usize).copied().unwrap_or(PieceKind::Normal)))
        }))?;
        Ok(Self { bytes, start: Start::SentencePiece { decoder, kinds } })
    }

    /// Appends the bytes of `ids`, which begin a text. `vocab` is the one that the tables were made from.
    pub(crate) fn decode(&self, ids: &[u32], vocab: &Vocab, out: &mut Vec<u8>) -> Result<(), Error> {
        let begin = out.len();
        match &self.start {
            Start::Same => self.bytes.decode(ids, out)?,
            Start::Strip(byte, n) => {
                self.bytes.decode(ids, out)?;
                let n_strip = out[begin..].iter().take(*n).take_while(|&b| b == byte).count();
                out.drain(begin..begin + n_strip);
            }
            Start::First(first) => {
                if let Some((&id, rest)) = ids.split_first() {
                    out.extend_from_slice(first.get(id)?);
                    self.bytes.decode(rest, out)?;
                }
            }
            Start::SentencePiece { decoder, kinds } => {
                let mut at_start = decoder.start();
                let mut n_started = 0;
                for &id in ids {
                    let token = vocab.token(id).ok_or(self.unknown(id))?;
                    let kind = kinds.get(id as usize).copied().unwrap_or(PieceKind::Normal);
                    if !at_start.push(token, kind, self.bytes.get(id)?, out) {
                        break;
                    }
                    n_started += 1;
                }
                self.bytes.decode(&ids[n_started..], out)?;
            }
            Start::Whole(decoder) => {
                let tokens: Result<Vec<&str>, Error> =
                    ids.iter().map(|&id| vocab.token(id).ok_or(self.unknown(id))).collect();
                out.extend_from_slice(decoder.decode(tokens?).as_bytes());
            }
        }
        Ok(())
    }

    /// Whether the bytes of a text are those of its first ids and those of the rest by the table.
    pub(crate) fn is_table(&self) -> bool {
        !matches!(self.start, Start::Whole(_))
    }

    fn unknown(&self, id: u32) -> Error {
        Error::UnknownId { id, vocab_size: self.bytes.len() }
    }
}
