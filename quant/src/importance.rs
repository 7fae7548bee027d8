//! Importance: how large the inputs of each column of a matrix are, so that rounding can spare the columns that matter.
//!
//! A calibration runs a model over a text and sums the squares of what each matrix is multiplied by. The statistics are
//! kept in llama.cpp's two formats, of which both are read and the newer is written:
//!
//! - a GGUF with two F32 tensors for each matrix, `NAME.in_sum2` (the sums) and `NAME.counts` (how many inputs; of experts
//!   for each);
//! - the older binary format: a number of entries, then for each the length of its name, the name, a number of calls, a
//!   number of values, and the values, the mean squares times the calls; then, if anything, the number of chunks and the
//!   name of a text. All numbers have 32 bits.
//!
//! (<https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix>)

use std::collections::BTreeMap;
use std::io::Write;

use tokenizer::gguf::{Array, Value};

use crate::{Error, Format, Gguf, NewTensor, write};

/// Statistics of a model's matrices, by their names in a GGUF.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    entries: BTreeMap<String, Entry>,
    /// Texts that they come from.
    pub texts: Vec<String>,
    /// Pieces of text.
    pub n_chunks: u32,
    /// Tokens of a piece; 0 where that is not known.
    pub chunk_len: u32,
}

/// Of one matrix, or of the matrices of all experts one after the other.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    /// Of the squares of inputs, `[matrices, columns]`.
    sums: Vec<f32>,
    /// Inputs: of all matrices the same, or of each.
    counts: Vec<f32>,
}

// Ends of names of the two tensors.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// Entries of the older format at most: no model has as many matrices.
const MAX_ENTRIES: usize = 1 << 20;

impl Importance {
    /// Reads a file of either format.
    ///
    /// # Errors
    /// [`Error::Importance`] says what is wrong with it, and where; as [`Gguf::parse`] for a GGUF.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let found = if bytes.starts_with(b"GGUF") { parse_gguf(bytes)? } else { parse_older(bytes)? };
        found.check()?;
        match found.entries.is_empty() {
            true => Err(wrong("it has no statistics".to_owned())),
            false => Ok(found),
        }
    }

    /// Adds those of a matrix, or of the matrices of all experts: sums `[matrices, columns]`, and for each how many inputs it
    /// had, which may be one number for all.
    ///
    /// # Panics
    /// If the sums are no whole number of matrices.
    pub fn add(&mut self, name: &str, sums: Vec<f32>, counts: Vec<f32>) {
        assert!(
            sums.len().is_multiple_of(counts.len().max(1)),
            "{} sums, {} counts",
            sums.len(),
            counts.len()
        );
        self.entries.insert(name.to_owned(), Entry { sums, counts });
    }

    /// Whether all are sums of squares.
    ///
    /// # Errors
    /// [`Error::Importance`] names the first that is not, for instance since what was summed was not finite.
    pub fn check(&self) -> Result<(), Error> {
        let check = |(name, entry): (&String, &Entry)| {
            entry.check().map_err(|why| wrong(format!("`{}`: {why}", name.escape_debug())))
        };
        self.entries.iter().try_for_each(check)
    }

    /// How many matrices there are statistics of.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The mean squares of a matrix's inputs, or those of `n_matrices` one after the other; nothing if there are none.
    ///
    /// # Errors
    /// [`Error::Importance`] if they are those of another shape.
    pub fn of(&self, name: &str, n_matrices: usize, n_columns: usize) -> Result<Option<Vec<f32>>, Error> {
        let Some(Entry { sums, counts }) = self.entries.get(name) else { return Ok(None) };
        if Some(sums.len()) != n_matrices.checked_mul(n_columns) {
            return Err(wrong(format!(
                "`{name}` has statistics of {} columns, but {n_matrices} x {n_columns}: they are of another model",
                sums.len()
            )));
        }
        let part = (sums.len() / counts.len()).max(1);
        let mean = |(sums, &count): (&[f32], &f32)| -> Vec<f32> {
            let total: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
            // Nobody knows of an expert that was never asked, or whose inputs were all zero.
            if count == 0.0 || total == 0.0 {
                return vec![1.0; sums.len()];
            }
            let least = LEAST_SHARE * (total / sums.len() as f64) as f32;
            sums.iter().map(|&sum| if sum == 0.0 { least } else { sum } / count).collect()
        };
        Ok(Some(sums.chunks(part).zip(counts).flat_map(mean).collect()))
    }

    /// Writes the newer format.
    ///
    /// # Errors
    /// As [`write()`].
    pub fn write(&self, out: &mut impl Write) -> Result<(), Error> {
        let values = [
            ("general.type".to_owned(), Value::from("imatrix")),
            ("imatrix.datasets".to_owned(), Value::Array(Array::String(self.texts.clone()))),
            ("imatrix.chunk_count".to_owned(), Value::U32(self.n_chunks)),
            ("imatrix.chunk_size".to_owned(), Value::U32(self.chunk_len)),
        ];
        let mut numbers = Vec::new();
        let mut tensors = Vec::new();
        for (name, Entry { sums, counts }) in &self.entries {
            let n = counts.len();
            for (end, width, of) in [(SUMS, sums.len() / n.max(1), sums), (COUNTS, 1, counts)] {
                tensors.push(NewTensor {
                    name: format!("{name}{end}"),
                    shape: vec![n, width],
                    format: Format::F32,
                });
                numbers.push(of);
            }
        }
        write(out, &values, &tensors, |idx, bytes| {
            Format::F32.quantize(numbers[idx], bytes);
            Ok(())
        })
    }
}

/// The largest sum that is believed: errors weighed by it stay finite.
const MAX_SUM: f32 = 1e20;

/// The share of the mean that a column has whose inputs were all zero: it may have others in another text, so its weights are
/// not free to be anything.
const LEAST_SHARE: f32 = 1e-6;

impl Entry {
    fn check(&self) -> Result<(), String> {
        let (n, n_counts) = (self.sums.len(), self.counts.len());
        if n == 0 || n_counts == 0 || !n.is_multiple_of(n_counts) {
            return Err(format!("{n} sums for {n_counts} counts"));
        }
        let is_wrong = |number: &&f32| !(0.0..=MAX_SUM).contains(*number);
        match self.sums.iter().chain(&self.counts).find(is_wrong) {
            Some(number) => Err(format!("{number} is no sum of squares of at most {MAX_SUM:e}")),
            None => Ok(()),
        }
    }
}

fn wrong(reason: String) -> Error {
    Error::Importance { reason }
}

fn parse_gguf(bytes: &[u8]) -> Result<Importance, Error> {
    let gguf = Gguf::parse(bytes)?;
    let header = gguf.header();
    if let Some(kind) = header.text("general.type")?.filter(|kind| *kind != "imatrix") {
        return Err(wrong(format!("it is a GGUF of type `{}`, not `imatrix`", kind.escape_debug())));
    }
    let mut found = Importance::default();
    for tensor in gguf.tensors() {
        let shown = tensor.name.escape_debug();
        if tensor.format != Format::F32 {
            return Err(wrong(format!("`{shown}` is {}, not F32", tensor.format)));
        }
        if let Some(name) = tensor.name.strip_suffix(SUMS) {
            let counts = gguf.tensor(&format!("{name}{COUNTS}"));
            let counts = counts.ok_or_else(|| wrong(format!("`{shown}` is there without `{COUNTS}`")))?;
            // As whole numbers, which they are.
            let counts = counts.to_vec().into_iter().map(f32::round).collect();
            found.entries.insert(name.to_owned(), Entry { sums: tensor.to_vec(), counts });
        } else {
            let sums =
                tensor.name.strip_suffix(COUNTS).and_then(|name| gguf.tensor(&format!("{name}{SUMS}")));
            sums.ok_or_else(|| wrong(format!("`{shown}` belongs to no `{SUMS}`: this is no imatrix")))?;
        }
    }
    let number = |key| Ok::<_, Error>(header.count(key)?.and_then(|n| u32::try_from(n).ok()).unwrap_or(0));
    found.n_chunks = number("imatrix.chunk_count")?;
    found.chunk_len = number("imatrix.chunk_size")?;
    let texts = header.texts("imatrix.datasets")?.unwrap_or_default();
    found.texts = texts.into_iter().map(str::to_owned).collect();
    Ok(found)
}

fn parse_older(bytes: &[u8]) -> Result<Importance, Error> {
    let mut reader = Older { bytes, offset: 0 };
    let n_entries = reader.count("number of entries")?;
    if !(1..=MAX_ENTRIES).contains(&n_entries) {
        return Err(wrong(format!(
            "it is no GGUF, and as the older format it would have {n_entries} entries"
        )));
    }
    let mut found = Importance::default();
    for idx in 0..n_entries {
        let what = format!("entry {idx} of {n_entries}");
        let len = reader.count(&what)?;
        let name = String::from_utf8(reader.take(len, &what)?.to_vec())
            .map_err(|_| wrong(format!("{what}: its name is not UTF-8")))?;
        let n_calls = reader.number(&what)?;
        let n = reader.count(&what)?;
        let values = reader.take(n.saturating_mul(4), &what)?;
        let mut sums = vec![0.0; n];
        Format::F32.dequantize(values, &mut sums);
        // Without calls the values are the mean squares themselves.
        let entry = Entry { sums, counts: vec![n_calls.max(1) as f32] };
        if found.entries.insert(name.clone(), entry).is_some() {
            return Err(wrong(format!("{what}: `{}` is there twice", name.escape_debug())));
        }
    }
    if reader.offset < bytes.len() {
        found.n_chunks = reader.count("number of chunks")? as u32;
    }
    if reader.offset < bytes.len() {
        let len = reader.count("name of the text")?;
        let name = reader.take(len, "name of the text")?;
        found.texts.push(String::from_utf8_lossy(name).into_owned());
    }
    match bytes.len() - reader.offset {
        0 => Ok(found),
        n => Err(wrong(format!("{n} bytes follow its end at byte {}", reader.offset))),
    }
}

/// Reads the older format.
struct Older<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Older<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], Error> {
        let rest = &self.bytes[self.offset..];
        let taken = rest.get(..n).ok_or_else(|| {
            let (offset, n_rest) = (self.offset, rest.len());
            wrong(format!("{what}: {n} bytes are wanted at byte {offset}, but {n_rest} are there"))
        })?;
        self.offset += n;
        Ok(taken)
    }

    fn number(&mut self, what: &str) -> Result<i32, Error> {
        Ok(i32::from_le_bytes(*self.take(4, what)?.first_chunk().unwrap_or(&[0; 4])))
    }

    fn count(&mut self, what: &str) -> Result<usize, Error> {
        let offset = self.offset;
        let n = self.number(what)?;
        usize::try_from(n).map_err(|_| wrong(format!("{what}: a length of {n} at byte {offset}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Importance {
        let mut made = Importance { n_chunks: 3, chunk_len: 512, ..Importance::default() };
        made.texts.push("text.txt".to_owned());
        made.add("blk.0.attn_q.weight", vec![1.0, 2.0, 4.0, 8.0], vec![2.0]);
        made.add("blk.0.ffn_up_exps.weight", vec![1.0, 2.0, 3.0, 4.0], vec![0.0, 4.0]);
        made
    }

    fn bytes(of: &Importance) -> Vec<u8> {
        let mut bytes = Vec::new();
        of.write(&mut bytes).expect("written");
        bytes
    }

    /// The older format, with so many values said to be there.
    fn older(n: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [1, 3] {
            bytes.extend(i32::to_le_bytes(number));
        }
        bytes.extend(b"a.b");
        for number in [4, n] {
            bytes.extend(i32::to_le_bytes(number));
        }
        [4.0f32, 8.0].iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        bytes
    }

    #[test]
    fn what_is_written_is_read_and_means_the_same() {
        let read = Importance::parse(&bytes(&made())).expect("read");
        assert_eq!(read, made());
        let of = |name: &str, n, columns| read.of(name, n, columns).expect("fits");
        assert_eq!(of("blk.0.attn_q.weight", 1, 4), Some(vec![0.5, 1.0, 2.0, 4.0]));
        // One count may be that of all experts; an expert without inputs has columns alike.
        assert_eq!(of("blk.0.attn_q.weight", 2, 2), Some(vec![0.5, 1.0, 2.0, 4.0]));
        assert_eq!(of("blk.0.ffn_up_exps.weight", 2, 2), Some(vec![1.0, 1.0, 0.75, 1.0]));
        assert_eq!(of("output.weight", 1, 4), None);
        let error = read.of("blk.0.attn_q.weight", 1, 5).expect_err("too many").to_string();
        assert!(error.contains("4 columns") && error.contains("1 x 5"), "{error}");
    }

    #[test]
    fn the_older_format_is_read_with_and_without_its_end() {
        let mut file = older(2);
        let read = Importance::parse(&file).expect("read");
        assert_eq!(read.of("a.b", 1, 2).expect("fits"), Some(vec![1.0, 2.0]));
        file.extend(i32::to_le_bytes(7));
        assert_eq!(Importance::parse(&file).expect("read").n_chunks, 7);
        file.extend(i32::to_le_bytes(2));
        assert!(Importance::parse(&file).is_err());
        file.extend(b"xy");
        assert_eq!(Importance::parse(&file).expect("read").texts, ["xy"]);
        file.push(0);
        let error = Importance::parse(&file).expect_err("too long").to_string();
        assert!(error.contains("1 bytes follow"), "{error}");
    }

    #[test]
    fn columns_that_were_never_seen_count_a_little() {
        let mut importance = Importance::default();
        importance.add("a", vec![0.0, 4.0, 2.0, 0.0, 0.0, 0.0], vec![2.0, 5.0]);
        let of = importance.of("a", 2, 3).expect("fits").expect("there");
        assert_eq!(of, [1e-6, 2.0, 1.0, 1.0, 1.0, 1.0]);
        // So a block of such columns keeps its numbers.
        let mut row = vec![0.5; 64];
        row[32..].fill(3.0);
        let weights: Vec<f32> = (0..64).map(|i| if i < 32 { 0.0 } else { 9.0 }).collect();
        importance.add("b", weights, vec![1.0]);
        let weights = importance.of("b", 1, 64).expect("fits").expect("there");
        for format in [Format::Q4_0, Format::Q5_1, Format::IQ4_NL] {
            let (mut bytes, mut back) = (Vec::new(), vec![0.0; 64]);
            format.quantize_row(&row, Some(&weights), &mut bytes);
            format.dequantize(&bytes, &mut back);
            assert!(back.iter().zip(&row).all(|(a, b)| (a - b).abs() < 0.2 * b), "{format}: {back:?}");
        }
        for sum in [f32::NAN, f32::INFINITY, -1.0, 3e38] {
            importance.add("c", vec![sum], vec![1.0]);
            assert!(importance.check().expect_err("no sum").to_string().contains('c'), "{sum}");
        }
    }

    #[test]
    fn damaged_files_are_refused_wherever_they_end() {
        // The first ends with 24 bytes of padding.
        for (file, n_padding) in [(bytes(&made()), 24), (older(2), 0)] {
            for end in 0..file.len() - n_padding {
                assert!(Importance::parse(&file[..end]).is_err(), "{end} of {}", file.len());
            }
        }
        let refused = |file: &[u8]| Importance::parse(file).expect_err("refused").to_string();
        assert!(refused(&older(-1)).contains("a length of -1"));
        assert!(refused(&older(i32::MAX)).contains("bytes are wanted"));
        assert!(refused(&older(0)[..19]).contains("0 sums"));
        let mut wrong = made();
        wrong.add("x", vec![1.0, f32::NAN], vec![1.0]);
        assert!(refused(&bytes(&wrong)).contains("`x`: NaN"));
        wrong.add("x", vec![1.0, -1.0], vec![1.0]);
        assert!(refused(&bytes(&wrong)).contains("-1 is no sum"));
        let file = |values: &[(String, Value)], names: &[&str], format| {
            let tensor = |name: &&str| NewTensor { name: (*name).to_owned(), shape: vec![1, 2], format };
            let tensors: Vec<NewTensor> = names.iter().map(tensor).collect();
            let mut file = Vec::new();
            let zeros = |_: usize, bytes: &mut Vec<u8>| {
                bytes.resize(format.n_bytes(2).unwrap_or(0), 0);
                Ok(())
            };
            write(&mut file, values, &tensors, zeros).expect("written");
            file
        };
        let kind = ("general.type".to_owned(), Value::from("model"));
        assert!(refused(&file(&[kind], &[], Format::F32)).contains("`model`, not `imatrix`"));
        assert!(refused(&file(&[], &[], Format::F32)).contains("no statistics"));
        assert!(refused(&file(&[], &["a.in_sum2"], Format::F32)).contains("without `.counts`"));
        assert!(refused(&file(&[], &["a.counts"], Format::F32)).contains("no imatrix"));
        assert!(refused(&file(&[], &["a.weight"], Format::F32)).contains("no imatrix"));
        assert!(refused(&file(&[], &["a.in_sum2", "a.counts"], Format::F16)).contains("F16, not F32"));
    }
}
