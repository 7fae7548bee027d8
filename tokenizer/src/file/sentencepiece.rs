//! sentencepiece's `.model`: a protocol buffer with the pieces, the training options and the normalizer.
//!
//! Read are the fields that decide ids. Training options that do not are skipped, whatever they are; in the parts that
//! do decide, an unknown field is refused, because skipping it would change ids in silence. Every length is checked
//! against the bytes that are left, and fields are borrowed, so memory follows the file.

use crate::Error;
use crate::base64;
use crate::charsmap::CharsMap;
use crate::definition::{
    AddedTokenDef, BpeDef, Definition, Merges, ModelDef, PieceKind, SpecialIds, UnigramDef, UnigramRule,
};
use crate::sentencepiece_normalizer::{PartName, SentencePieceDecoder, SentencePieceJson};

/// What errors call this format.
const PART: &str = "sentencepiece model";

/// What an unknown token decodes to if the file does not say.
const UNK_SURFACE: &str = " \u{2047} ";

/// Reads a `.model`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Definition, Error> {
    let mut pieces = Vec::new();
    let mut options = Options::default();
    let mut normalizer = Normalizer::default();
    let mut fields = Fields::new(bytes, 0);
    while let Some(field) = fields.next()? {
        match field.number {
            1 => pieces.push(piece(field.message()?)?),
            2 => options.read(field.message()?)?,
            3 => normalizer.read(field.message()?)?,
            // Self-tests.
            4 => {}
            5 => {
                let mut denormalizer = Normalizer::default();
                denormalizer.read(field.message()?)?;
                if !denormalizer.charsmap.is_empty() {
                    return Err(unsupported("a denormalizer with a character map", "none"));
                }
            }
            _ => return Err(field.unknown("a model")),
        }
    }
    definition(&pieces, &options, &normalizer)
}

struct Piece<'a> {
    text: &'a str,
    score: f32,
    kind: PieceKind,
}

fn piece<'a>(mut fields: Fields<'a>) -> Result<Piece<'a>, Error> {
    let mut piece = Piece { text: "", score: 0.0, kind: PieceKind::Normal };
    let start = fields.start;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => piece.text = field.text()?,
            2 => piece.score = field.float()?,
            3 => {
                let number = field.varint()?;
                piece.kind = i64::try_from(number)
                    .ok()
                    .and_then(PieceKind::from_number)
                    .ok_or_else(|| malformed(field.offset, format!("a piece of type {number}")))?;
            }
            _ => return Err(field.unknown("a piece")),
        }
    }
    if piece.text.is_empty() || piece.text.contains('\0') {
        return Err(malformed(start, "a piece that is empty or has a zero byte".to_owned()));
    }
    Ok(piece)
}

/// The training options that matter afterwards.
struct Options<'a> {
    model_type: u64,
    whitespace_as_suffix: bool,
    byte_fallback: bool,
    unk_surface: &'a str,
    bos: &'a str,
    eos: &'a str,
    pad: &'a str,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            model_type: 1,
            whitespace_as_suffix: false,
            byte_fallback: false,
            unk_surface: UNK_SURFACE,
            bos: "<s>",
            eos: "</s>",
            pad: "<pad>",
        }
    }
}

impl<'a> Options<'a> {
    fn read(&mut self, mut fields: Fields<'a>) -> Result<(), Error> {
        while let Some(field) = fields.next()? {
            match field.number {
                3 => self.model_type = field.varint()?,
                24 => self.whitespace_as_suffix = field.varint()? != 0,
                35 => self.byte_fallback = field.varint()? != 0,
                44 => self.unk_surface = field.text()?,
                // An empty name means the default.
                46..=48 if field.text()?.is_empty() => {}
                46 => self.bos = field.text()?,
                47 => self.eos = field.text()?,
                48 => self.pad = field.text()?,
                _ => {}
            }
        }
        Ok(())
    }
}

struct Normalizer<'a> {
    charsmap: &'a [u8],
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

impl Default for Normalizer<'_> {
    fn default() -> Self {
        Self {
            charsmap: &[],
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }
}

impl<'a> Normalizer<'a> {
    fn read(&mut self, mut fields: Fields<'a>) -> Result<(), Error> {
        while let Some(field) = fields.next()? {
            match field.number {
                // The name of the rule, and its source.
                1 | 6 => {}
                2 => self.charsmap = field.bytes()?,
                3 => self.add_dummy_prefix = field.varint()? != 0,
                4 => self.remove_extra_whitespaces = field.varint()? != 0,
                5 => self.escape_whitespaces = field.varint()? != 0,
                _ => return Err(field.unknown("a normalizer")),
            }
        }
        Ok(())
    }
}

fn definition(
    pieces: &[Piece<'_>],
    options: &Options<'_>,
    normalizer: &Normalizer<'_>,
) -> Result<Definition, Error> {
    let vocab: Vec<(String, u32)> =
        pieces.iter().zip(0u32..).map(|(piece, id)| (piece.text.to_owned(), id)).collect();
    check_pieces(pieces, options)?;
    CharsMap::parse(normalizer.charsmap)?;
    let find = |text: &str, kind: PieceKind| {
        pieces.iter().position(|piece| piece.kind == kind && piece.text == text).map(|id| id as u32)
    };
    let unk = pieces.iter().position(|piece| piece.kind == PieceKind::Unknown).map(|id| id as u32);
    let kinds: Vec<PieceKind> = pieces.iter().map(|piece| piece.kind).collect();
    let is_special = |kind| matches!(kind, PieceKind::Control | PieceKind::Unknown);
    let user_defined = pieces.iter().filter(|piece| piece.kind == PieceKind::UserDefined);
    let part = SentencePieceJson {
        name: PartName::SentencePiece,
        precompiled_charsmap: base64::encode(normalizer.charsmap),
        add_dummy_prefix: normalizer.add_dummy_prefix,
        remove_extra_whitespaces: normalizer.remove_extra_whitespaces,
        escape_whitespaces: normalizer.escape_whitespaces,
        treat_whitespace_as_suffix: options.whitespace_as_suffix,
        user_defined_symbols: user_defined.map(|piece| piece.text.to_owned()).collect(),
    };
    let decoder = SentencePieceDecoder {
        name: PartName::SentencePiece,
        add_dummy_prefix: normalizer.add_dummy_prefix,
        remove_extra_whitespaces: normalizer.remove_extra_whitespaces,
        unk_surface: options.unk_surface.to_owned(),
    };
    let json = |value: Result<_, serde_json::Error>| value.map_err(|error| malformed(0, error.to_string()));
    Ok(Definition {
        added: pieces
            .iter()
            .zip(0u32..)
            .filter(|(piece, _)| is_special(piece.kind))
            .map(|(piece, id)| AddedTokenDef::special(id, piece.text))
            .collect(),
        vocab,
        normalizer: Some(json(serde_json::to_value(part))?),
        pre_tokenizer: None,
        post_processor: None,
        decoder: Some(json(serde_json::to_value(decoder))?),
        model: model(pieces, options, kinds, unk)?,
        special: SpecialIds {
            bos: find(options.bos, PieceKind::Control),
            eos: find(options.eos, PieceKind::Control),
            unk,
            pad: find(options.pad, PieceKind::Control),
            ..SpecialIds::default()
        },
        chat_template: None,
        truncation: None,
        padding: None,
    })
}

fn model(
    pieces: &[Piece<'_>],
    options: &Options<'_>,
    kinds: Vec<PieceKind>,
    unk: Option<u32>,
) -> Result<ModelDef, Error> {
    let byte_fallback = options.byte_fallback;
    match options.model_type {
        1 => Ok(ModelDef::Unigram(UnigramDef {
            scores: pieces.iter().map(|piece| f64::from(piece.score)).collect(),
            unk_id: unk,
            byte_fallback,
            rule: UnigramRule::SentencePiece,
            kinds,
        })),
        2 => Ok(ModelDef::Bpe(BpeDef {
            merges: Merges::Scored(pieces.iter().map(|piece| piece.score).collect()),
            byte_fallback,
            fuse_unk: true,
            kinds,
            ..BpeDef::default()
        })),
        3 => Err(unsupported("a model of whole words (`word`)", "`unigram` and `bpe`")),
        4 => Err(unsupported("a model of characters (`char`)", "`unigram` and `bpe`")),
        other => Err(unsupported(&format!("model type {other}"), "`unigram` and `bpe`")),
    }
}

/// What sentencepiece itself asks of its pieces.
fn check_pieces(pieces: &[Piece<'_>], options: &Options<'_>) -> Result<(), Error> {
    let n_unknown = pieces.iter().filter(|piece| piece.kind == PieceKind::Unknown).count();
    if n_unknown != 1 {
        return Err(unsupported(&format!("{n_unknown} unknown pieces"), "exactly one"));
    }
    let mut has_byte = [false; 256];
    for (piece, id) in pieces.iter().zip(0u32..).filter(|(piece, _)| piece.kind == PieceKind::Byte) {
        let bad = |reason| Error::BadToken { token: piece.text.to_owned(), id, reason };
        let byte = crate::alphabet::parse_fallback(piece.text);
        let byte = byte.ok_or_else(|| bad("is a byte piece, but not spelled as one"))?;
        if !options.byte_fallback {
            return Err(bad("is a byte piece, but the model has no byte fallback"));
        }
        has_byte[usize::from(byte)] = true;
    }
    match has_byte.iter().position(|has| !has) {
        Some(byte) if options.byte_fallback => Err(Error::MissingByte { byte: byte as u8 }),
        _ => Ok(()),
    }
}

fn unsupported(found: &str, supported: &'static str) -> Error {
    Error::Unsupported { part: PART, found: found.to_owned(), supported }
}

fn malformed(offset: usize, reason: String) -> Error {
    Error::Malformed { part: PART, offset, reason }
}

/// The fields of one message, in the order of the file.
struct Fields<'a> {
    bytes: &'a [u8],
    /// Where the rest of the message starts in the file.
    start: usize,
}

/// A field with its number, and where it is.
struct Field<'a> {
    number: u64,
    offset: usize,
    value: FieldValue<'a>,
}

enum FieldValue<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Fixed64,
    /// The bytes, and where they start.
    Bytes(&'a [u8], usize),
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8], start: usize) -> Self {
        Self { bytes, start }
    }

    fn next(&mut self) -> Result<Option<Field<'a>>, Error> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let offset = self.start;
        let key = self.varint()?;
        let value = match key & 7 {
            0 => FieldValue::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                FieldValue::Fixed64
            }
            2 => {
                let len = self.varint()?;
                let start = self.start;
                let n_left = self.bytes.len();
                let len = usize::try_from(len).ok().filter(|&len| len <= n_left).ok_or_else(|| {
                    malformed(start, format!("a field of {len} bytes, but {n_left} bytes are left"))
                })?;
                FieldValue::Bytes(self.take(len)?, start)
            }
            5 => {
                let bytes = self.take(4)?;
                FieldValue::Fixed32(bytes.try_into().unwrap_or_default())
            }
            wire_type => return Err(malformed(offset, format!("wire type {wire_type}"))),
        };
        Ok(Some(Field { number: key >> 3, offset, value }))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let Some((bytes, rest)) = self.bytes.split_at_checked(len) else {
            let n_left = self.bytes.len();
            return Err(malformed(
                self.start,
                format!("a field of {len} bytes, but {n_left} bytes are left"),
            ));
        };
        self.bytes = rest;
        self.start += len;
        Ok(bytes)
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(malformed(self.start, "a number of more than ten bytes".to_owned()))
    }
}

impl<'a> Field<'a> {
    fn varint(&self) -> Result<u64, Error> {
        match self.value {
            FieldValue::Varint(value) => Ok(value),
            _ => Err(self.wrong("a number")),
        }
    }

    fn float(&self) -> Result<f32, Error> {
        match self.value {
            FieldValue::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            _ => Err(self.wrong("a float")),
        }
    }

    fn bytes(&self) -> Result<&'a [u8], Error> {
        match self.value {
            FieldValue::Bytes(bytes, _) => Ok(bytes),
            _ => Err(self.wrong("bytes")),
        }
    }

    fn text(&self) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes()?).map_err(|_| self.wrong("UTF-8 text"))
    }

    fn message(&self) -> Result<Fields<'a>, Error> {
        match self.value {
            FieldValue::Bytes(bytes, start) => Ok(Fields::new(bytes, start)),
            _ => Err(self.wrong("a message")),
        }
    }

    fn wrong(&self, expected: &str) -> Error {
        malformed(self.offset, format!("field {} is not {expected}", self.number))
    }

    fn unknown(&self, place: &str) -> Error {
        unsupported(&format!("field {} of {place}", self.number), "the fields of sentencepiece 0.2")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::char_bpe::{self, CharBpe};
    use crate::sentencepiece_normalizer::SentencePieceNormalizer;
    use crate::unigram::{self, Unigram};

    fn fixture(name: &str) -> Vec<u8> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        std::fs::read(folder.join(name)).unwrap()
    }

    /// Builds what a definition asks for and uses it, which may fail but not panic.
    fn use_it(def: &Definition) -> Result<(), Error> {
        let tokens: Vec<&str> = def.vocab.iter().map(|(token, _)| token.as_str()).collect();
        let normalizer =
            SentencePieceNormalizer::from_json(def.normalizer.as_ref().expect("every model has one"))?;
        let (mut text, mut ids) = (String::new(), Vec::<u32>::new());
        normalizer.normalize("a <sep>xyz the\u{c0}\u{2603} ", &mut text, &mut ());
        match &def.model {
            ModelDef::Bpe(def) => {
                CharBpe::new(&tokens, def)?.encode(&text, &mut char_bpe::Scratch::default(), &mut ids);
            }
            ModelDef::Unigram(def) => {
                Unigram::new(&tokens, def)?.encode(&text, &mut unigram::Scratch::default(), &mut ids);
            }
            _ => {}
        }
        Ok(())
    }

    #[test]
    fn every_truncation_and_flip_is_an_error_or_usable() {
        for name in ["bpe.model", "unigram-suffix.model"] {
            let bytes = fixture(name);
            assert!(parse(&bytes).is_ok_and(|def| use_it(&def).is_ok()));
            for len in (0..bytes.len()).step_by(3) {
                let _ = parse(&bytes[..len]).map(|def| use_it(&def));
            }
            for idx in (0..bytes.len()).step_by(2) {
                for flip in [1u8, 0x80, 0xff] {
                    let mut broken = bytes.clone();
                    broken[idx] ^= flip;
                    let _ = parse(&broken).map(|def| use_it(&def));
                }
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let good = fixture("bpe.model");
        let with = |more: &[u8]| parse(&[&good[..], more].concat()).unwrap_err().to_string();
        for (more, expected) in [
            (&[0x32, 0][..], "field 6 of a model is not supported"),
            (&[0x0a, 2, 0x20, 1], "field 4 of a piece"),
            (&[0x1a, 2, 0x38, 1], "field 7 of a normalizer"),
            (&[0x12, 2, 0x18, 3], "a model of whole words (`word`)"),
            (&[0x12, 2, 0x18, 4], "a model of characters (`char`)"),
            (&[0x0a, 3, 0x0a, 1, b'a', 0x0a], "but 0 bytes are left"),
            (&[0x0a, 5, 0x0a, 1, b'\xff', 0x18, 9], "field 1 is not UTF-8 text"),
            (&[0x0a, 5, 0x0a, 1, b'z', 0x18, 9], "a piece of type 9"),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "18446744073709551615 bytes"),
            (&[0x0a, 0], "a piece that is empty"),
            (&[0x0a, 5, 0x0a, 1, b'z', 0x18, 2], "2 unknown pieces"),
            (&[0x0a, 5, 0x0a, 1, b'z', 0x18, 6], "not spelled as one"),
            (&[0x12, 3, 0x98, 2, 1], "no token stands for byte 0x00"),
            (&[0x2a, 4, 0x12, 2, 0, 0], "a denormalizer with a character map"),
            (&[0x0b], "wire type 3"),
        ] {
            let message = with(more);
            assert!(message.contains(expected), "{more:x?}: {message}");
        }
    }
}
