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

/// How much of the start of a text is decoded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Begun {
    /// Whether the table tells all that follows.
    pub is_over: bool,
    n_stripped: usize,
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
        if let Start::Whole(decoder) = &self.start {
            let tokens: Result<Vec<&str>, Error> =
                ids.iter().map(|&id| vocab.token(id).ok_or(self.unknown(id))).collect();
            out.extend_from_slice(decoder.decode(tokens?).as_bytes());
            return Ok(());
        }
        let mut begun = Begun::default();
        let mut rest = ids;
        while let Some((&id, after)) = rest.split_first().filter(|_| !begun.is_over) {
            self.begin(&mut begun, id, vocab, out)?;
            rest = after;
        }
        self.bytes.decode(rest, out)
    }

    /// Appends the bytes of the next id at the start of a text, of a decoder that is a table.
    pub(crate) fn begin(
        &self,
        begun: &mut Begun,
        id: u32,
        vocab: &Vocab,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let bytes = self.bytes.get(id)?;
        begun.is_over = true;
        match &self.start {
            Start::Same | Start::Whole(_) => out.extend_from_slice(bytes),
            Start::First(first) => out.extend_from_slice(first.get(id)?),
            Start::Strip(byte, n) => {
                let n_more = n - begun.n_stripped;
                let n_strip = bytes.iter().take(n_more).take_while(|&b| b == byte).count();
                out.extend_from_slice(&bytes[n_strip..]);
                begun.n_stripped += n_strip;
                begun.is_over = n_strip < bytes.len() || n_strip == n_more;
            }
            Start::SentencePiece { decoder, kinds } => {
                let token = vocab.token(id).ok_or(self.unknown(id))?;
                let kind = kinds.get(id as usize).copied().unwrap_or(PieceKind::Normal);
                begun.is_over = decoder.begin(token, kind, bytes, out);
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
