//! Texts to vectors by an encoder.
//!
//! An [`Embedder`] tokenizes, cuts what is longer than the model takes (and says so), and runs texts of like lengths
//! together, longest first. No padding is computed, and a text's vector has the same bits alone and in any batch.

use burn::prelude::*;
use model::encoder::{Encoder, pool, unit};
use model::weights::sentence::Sentence;
use model::{FusedOps, weights};
use tokenizer::Tokenizer;

/// Positions that go through the encoder together, about: enough that matrix products run at full speed, few enough
/// that what lies between them (the widest is the MLP's, some KiB a position) stays near the caches.
pub const ROWS_TOGETHER: usize = 1024;

/// A text's vector, and what became of the text.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// `[n_embd]`
    pub vector: Vec<f32>,
    /// Tokens that the encoder saw, those around the text included.
    pub n_tokens: usize,
    /// Tokens at the text's end that it did not see, because the model takes no more.
    pub n_cut: usize,
}

/// Why texts have no vectors.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// The tokenizer gives an id that the encoder has no vector for.
    #[error(
        "token id {id} is not in the encoder's vocabulary of {vocab_size}: the tokenizer belongs to another model"
    )]
    UnknownId {
        /// The id.
        id: u32,
        /// Number of ids the encoder knows.
        vocab_size: usize,
    },
    /// The tokenizer puts nothing around a text, and this one has no tokens of its own.
    #[error("text {text_idx} has no tokens, so it has no vector: leave it out")]
    Empty {
        /// Which of the texts, from 0.
        text_idx: usize,
    },
    /// What stands around every text leaves no room for one.
    #[error(
        "the model takes {max} tokens, of which {around} stand around the text: there is no room for any"
    )]
    NoRoom {
        /// Tokens that the model takes.
        max: usize,
        /// Those that the tokenizer puts around a text.
        around: usize,
    },
    /// A text that is not to be cut is longer than the model takes.
    #[error("text {text_idx} has {n_tokens} tokens, those around it included: the model takes {max}")]
    TooLong {
        /// Which of the texts, from 0.
        text_idx: usize,
        /// Its tokens.
        n_tokens: usize,
        /// Tokens that the model takes.
        max: usize,
    },
    /// The model computes nonsense.
    #[error("the vector of text {text_idx} is not made of numbers: the weights are damaged")]
    NotANumber {
        /// Which of the texts, from 0.
        text_idx: usize,
    },
}

/// What is to have a vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A text, around which the tokenizer puts what it puts around every text.
    Text(String),
    /// Ids as the encoder is to see them.
    Ids(Vec<u32>),
}

/// Turns texts into what an encoder sees.
#[derive(Clone, Debug)]
pub struct Reader {
    tokenizer: Tokenizer,
    is_lowered: bool,
    max_tokens: usize,
    vocab_size: usize,
}

impl Reader {
    /// For an encoder of `vocab_size` ids that sees `max_tokens` of a text, lowered before if it is to be.
    pub fn new(tokenizer: Tokenizer, is_lowered: bool, max_tokens: usize, vocab_size: usize) -> Self {
        Self { tokenizer, is_lowered, max_tokens, vocab_size }
    }

    /// The vocabulary.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The most tokens that the encoder sees of a text, those around it included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The ids of each input; nothing is cut.
    ///
    /// # Errors
    /// [`Error`] says which is empty, too long or has an id that is none.
    pub fn read(&self, inputs: &[Input]) -> Result<Vec<Vec<i32>>, Error> {
        let (max, (before, after)) = (self.max_tokens, self.tokenizer.around());
        let one = |(text_idx, input): (usize, &Input)| {
            let ids = match input {
                Input::Text(text) => {
                    let plain = match self.is_lowered {
                        true => self.tokenizer.encode(&text.to_lowercase()),
                        false => self.tokenizer.encode(text),
                    };
                    [before, &plain[..], after].concat()
                }
                Input::Ids(ids) => ids.clone(),
            };
            if ids.len() > max {
                return Err(Error::TooLong { text_idx, n_tokens: ids.len(), max });
            }
            self.checked(text_idx, ids)
        };
        inputs.iter().enumerate().map(one).collect()
    }

    fn checked(&self, text_idx: usize, ids: Vec<u32>) -> Result<Vec<i32>, Error> {
        if ids.is_empty() {
            return Err(Error::Empty { text_idx });
        }
        let vocab_size = self.vocab_size;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(&id) => Err(Error::UnknownId { id, vocab_size }),
            None => Ok(ids.into_iter().map(|id| id as i32).collect()),
        }
    }
}

/// An encoder with its tokenizer and its way of pooling.
pub struct Embedder<B: FusedOps> {
    encoder: Encoder<B>,
    sentence: Sentence,
    reader: Reader,
}

impl<B: FusedOps> Embedder<B> {
    /// Joins the parts of a model.
    ///
    /// # Errors
    /// [`Error::NoRoom`].
    pub fn new(encoder: Encoder<B>, tokenizer: Tokenizer, sentence: Sentence) -> Result<Self, Error> {
        let context = encoder.config().context;
        let max = sentence.max_tokens.unwrap_or(context).min(context);
        let (before, after) = tokenizer.around();
        let around = before.len() + after.len();
        if around >= max {
            return Err(Error::NoRoom { max, around });
        }
        let (is_lowered, vocab_size) = (sentence.is_lowered, encoder.config().vocab_size);
        let reader = Reader::new(tokenizer, is_lowered, max, vocab_size);
        Ok(Self { encoder, sentence, reader })
    }

    /// What turns texts into ids, for whoever has them elsewhere.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Elements of a vector.
    pub fn n_embd(&self) -> usize {
        self.encoder.config().n_embd
    }

    /// The most tokens that the encoder sees of a text, those around it included.
    pub fn max_tokens(&self) -> usize {
        self.reader.max_tokens
    }

    /// The vectors of texts, in their order.
    ///
    /// # Errors
    /// [`Error`] says which text or id is at fault.
    pub fn embed<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Embedding>, Error> {
        let sequences = self.tokenize(texts)?;
        let ids: Vec<&[i32]> = sequences.iter().map(|(ids, _)| &**ids).collect();
        let vectors = self.vectors(&ids)?;
        let join = |(vector, (ids, n_cut)): (Vec<f32>, (Vec<i32>, usize))| Embedding {
            vector,
            n_tokens: ids.len(),
            n_cut,
        };
        Ok(vectors.into_iter().zip(sequences).map(join).collect())
    }

    /// The vectors of what a [`Reader`] made of texts, in their order.
    ///
    /// # Errors
    /// [`Error::NotANumber`].
    pub fn vectors(&self, sequences: &[&[i32]]) -> Result<Vec<Vec<f32>>, Error> {
        let mut order: Vec<usize> = (0..sequences.len()).collect();
        // Longest first, so that memory is at its most at once.
        order.sort_by_key(|&i| std::cmp::Reverse(sequences[i].len()));
        let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); sequences.len()];
        let mut rest = &order[..];
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(n_together(rest.iter().map(|&i| sequences[i].len())));
            rest = later;
            let ids: Vec<&[i32]> = batch.iter().map(|&i| sequences[i]).collect();
            for (vector, &text_idx) in self.encode(&ids).into_iter().zip(batch) {
                if vector.iter().any(|x| !x.is_finite()) {
                    return Err(Error::NotANumber { text_idx });
                }
                vectors[text_idx] = vector;
            }
        }
        Ok(vectors)
    }

    /// Each text's ids as the encoder sees them, and how many tokens it does not see.
    fn tokenize<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<(Vec<i32>, usize)>, Error> {
        let plain = match self.sentence.is_lowered {
            true => {
                let lowered: Vec<String> = texts.iter().map(|text| text.as_ref().to_lowercase()).collect();
                self.reader.tokenizer.encode_batch(&lowered)
            }
            false => self.reader.tokenizer.encode_batch(texts),
        };
        let (before, after) = self.reader.tokenizer.around();
        let room = self.reader.max_tokens - before.len() - after.len();
        let sequence = |(text_idx, plain): (usize, Vec<u32>)| {
            let n_kept = plain.len().min(room);
            let ids = [before, &plain[..n_kept], after].concat();
            Ok((self.reader.checked(text_idx, ids)?, plain.len() - n_kept))
        };
        plain.into_iter().enumerate().map(sequence).collect()
    }

    /// One vector for each sequence.
    fn encode(&self, sequences: &[&[i32]]) -> Vec<Vec<f32>> {
        let lens: Vec<usize> = sequences.iter().map(|ids| ids.len()).collect();
        let ids = sequences.concat();
        let n = ids.len();
        let ids = Tensor::from_data(TensorData::new(ids, [n]), &self.encoder.device());
        let vectors = pool(self.encoder.forward(ids, &lens), &lens, self.sentence.pooling);
        let vectors = if self.sentence.is_unit { unit(vectors) } else { vectors };
        weights::values(&vectors).chunks(self.n_embd()).map(<[f32]>::to_vec).collect()
    }
}

/// How many of the first sequences, of these lengths, go together: one at least.
fn n_together(lens: impl Iterator<Item = usize>) -> usize {
    let mut rows = 0;
    let fits = |len: &usize| {
        rows += len;
        rows <= ROWS_TOGETHER
    };
    lens.take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::backend::Flex;
    use model::encoder::Pooling;

    use super::*;

    const CLS_SEP: &str = r#"{"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}"#;

    /// Letters as tokens, the last letter's id being `last_id`.
    fn tokenizer(post_processor: &str, last_id: u32) -> Tokenizer {
        let mut vocab = serde_json::json!({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2});
        for (i, letter) in ('a'..='z').enumerate() {
            vocab[letter.to_string()] = (3 + i).into();
            vocab[format!("##{letter}")] = (30 + i).into();
        }
        vocab["z"] = last_id.into();
        let text = format!(
            r###"{{"model": {{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 1000, "vocab": {vocab}}},
                "pre_tokenizer": {{"type": "BertPreTokenizer"}}, "post_processor": {post_processor}}}"###
        );
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("tokenizer.json"), text).expect("written");
        Tokenizer::load(dir.path()).expect("a tokenizer")
    }

    fn embedder(tokenizer: Tokenizer, sentence: Sentence) -> Result<Embedder<Flex>, Error> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/encoders/gelu");
        Embedder::new(
            weights::bert::load(&folder, &Default::default()).expect("an encoder"),
            tokenizer,
            sentence,
        )
    }

    #[test]
    fn many_texts_get_what_each_gets_alone_in_their_order() {
        let all = embedder(tokenizer(CLS_SEP, 28), Sentence::default()).expect("fits");
        let texts: Vec<String> = (0..90).map(|i| "ab c".repeat(i * 37 % 60)).collect();
        let together = all.embed(&texts).expect("embedded");
        for (text, found) in texts.iter().zip(&together) {
            assert_eq!(all.embed(&[text]).expect("embedded")[0], *found, "{text}");
            let n = text.chars().filter(|&c| c != ' ').count();
            assert_eq!((found.n_tokens, found.n_cut), ((n + 2).min(100), n.saturating_sub(98)));
        }
        assert!(all.embed::<&str>(&[]).expect("nothing").is_empty());
    }

    #[test]
    fn what_is_too_long_is_cut_before_the_last_token() {
        let limited = Sentence { max_tokens: Some(5), ..Sentence::default() };
        let cutting = embedder(tokenizer(CLS_SEP, 28), limited).expect("fits");
        let found = cutting.embed(&["abc", "abcde"]).expect("embedded");
        assert_eq!(found[0].vector, found[1].vector);
        assert_eq!(found.iter().map(|e| (e.n_tokens, e.n_cut)).collect::<Vec<_>>(), [(5, 0), (5, 2)]);
    }

    #[test]
    fn a_reader_cuts_nothing_and_takes_ids_as_they_are() {
        let limited = Sentence { max_tokens: Some(5), ..Sentence::default() };
        let embedder = embedder(tokenizer(CLS_SEP, 28), limited).expect("fits");
        let (reader, text) = (embedder.reader(), |text: &str| Input::Text(text.into()));
        let read = reader.read(&[text("abc"), Input::Ids(vec![1, 3, 31, 32, 2])]).expect("short enough");
        assert_eq!(read[0], read[1]);
        let vectors = embedder.vectors(&[&read[0]]).expect("embedded");
        assert_eq!(vectors[0], embedder.embed(&["abc"]).expect("embedded")[0].vector);
        let too_long = Error::TooLong { text_idx: 1, n_tokens: 6, max: 5 };
        assert_eq!(reader.read(&[text("a"), text("abcd")]), Err(too_long.clone()));
        assert_eq!(reader.read(&[text("a"), Input::Ids(vec![0; 6])]), Err(too_long));
        assert_eq!(reader.read(&[Input::Ids(vec![])]), Err(Error::Empty { text_idx: 0 }));
        let unknown = Error::UnknownId { id: 61, vocab_size: 61 };
        assert_eq!(reader.read(&[Input::Ids(vec![61])]), Err(unknown));
    }

    #[test]
    fn pooling_length_and_case_follow_the_files() {
        let plain = Sentence::default();
        let of = |sentence: Sentence, text: &str| {
            let found = embedder(tokenizer(CLS_SEP, 28), sentence).expect("fits").embed(&[text]);
            found.expect("embedded").remove(0).vector
        };
        let length = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
        let (mean, unit) = (of(plain.clone(), "abc"), of(Sentence { is_unit: true, ..plain.clone() }, "abc"));
        assert!((length(&unit) - 1.0).abs() < 1e-6 && (length(&mean) - 1.0).abs() > 0.1);
        assert_ne!(of(Sentence { pooling: Pooling::Cls, ..plain.clone() }, "abc"), mean);
        assert_ne!(of(plain.clone(), "ABC"), mean);
        assert_eq!(of(Sentence { is_lowered: true, ..plain }, "ABC"), mean);
    }

    #[test]
    fn what_cannot_be_embedded_is_named() {
        let plain = Sentence::default();
        let no_room = Sentence { max_tokens: Some(2), ..plain.clone() };
        let error = embedder(tokenizer(CLS_SEP, 28), no_room).err();
        assert_eq!(error, Some(Error::NoRoom { max: 2, around: 2 }));
        let foreign = embedder(tokenizer(CLS_SEP, 61), plain.clone()).expect("fits");
        assert_eq!(foreign.embed(&["a", "z"]), Err(Error::UnknownId { id: 61, vocab_size: 61 }));
        let bare = embedder(tokenizer("null", 28), plain).expect("fits");
        assert_eq!(bare.embed(&["a", ""]), Err(Error::Empty { text_idx: 1 }));
    }
}
