//! `flint tokenizer eval`: tokenizers side by side on the same texts.
//!
//! Bytes per token say how much fits in a context; tokens per word (fertility) how evenly a language is treated;
//! unused tokens how well a vocabulary suits the text. The round trip says whether anything was lost.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use tokenizer::Tokenizer;

use super::Common;
use crate::args::TokenizerEval;
use crate::{loading, output};

/// Encoding is repeated for so long, and the best pass counts; large texts are encoded twice at least.
const LEAST_TIME: Duration = Duration::from_millis(200);

pub fn run(args: &TokenizerEval, common: Common) -> Result<()> {
    let mut texts = Vec::new();
    for path in &args.text {
        texts.push((path, super::read(Some(path))?));
    }
    let mut rows = Vec::new();
    for (path, tokenizer) in
        args.tokenizers.iter().zip(loading::tokenizers(&args.tokenizers, args.split.split)?)
    {
        super::note_truncation(&tokenizer, common);
        for (text_path, text) in &texts {
            rows.push(Row::measure(path, &tokenizer, text_path, text)?);
        }
    }
    match args.json {
        true => output::json(&rows)?,
        false => print(&rows)?,
    }
    Ok(())
}

/// One tokenizer on one text.
#[derive(Debug, Serialize)]
struct Row {
    tokenizer: String,
    text: String,
    bytes: usize,
    words: usize,
    tokens: usize,
    bytes_per_token: Option<f64>,
    tokens_per_word: Option<f64>,
    /// Special tokens left out: no plain text gives them.
    vocab_size: usize,
    used_tokens: usize,
    unused_tokens: usize,
    mb_per_s: f64,
    round_trip: bool,
    /// The first byte that comes back otherwise.
    differs_at: Option<usize>,
}

impl Row {
    fn measure(path: &Path, tokenizer: &Tokenizer, text_path: &Path, text: &[u8]) -> Result<Self> {
        let (ids, seconds) = encode(tokenizer, text);
        let decoded = tokenizer.decode_bytes(&ids)?;
        let is_counted = |&id: &u32| tokenizer.id_to_token(id).is_some() && !tokenizer.is_special(id);
        let mut used = vec![false; tokenizer.vocab_size()];
        ids.iter().filter(|id| is_counted(id)).for_each(|&id| used[id as usize] = true);
        let used_tokens = used.into_iter().filter(|&used| used).count();
        let vocab_size = (0..tokenizer.vocab_size() as u32).filter(is_counted).count();
        let words = String::from_utf8_lossy(text).split_whitespace().count();
        let ratio = |a: usize, b: usize| (b > 0).then(|| a as f64 / b as f64);
        let differs_at = (decoded != text).then(|| {
            let same = decoded.iter().zip(text).take_while(|(a, b)| a == b);
            same.count()
        });
        Ok(Self {
            tokenizer: path.display().to_string(),
            text: text_path.display().to_string(),
            bytes: text.len(),
            words,
            tokens: ids.len(),
            bytes_per_token: ratio(text.len(), ids.len()),
            tokens_per_word: ratio(ids.len(), words),
            vocab_size,
            used_tokens,
            unused_tokens: vocab_size - used_tokens,
            mb_per_s: text.len() as f64 / 1e6 / seconds,
            round_trip: differs_at.is_none(),
            differs_at,
        })
    }

    fn cells(&self) -> [String; 9] {
        let fixed = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        [
            self.tokenizer.clone(),
            self.text.clone(),
            self.tokens.to_string(),
            fixed(self.bytes_per_token),
            fixed(self.tokens_per_word),
            format!("{:.1} %", 100.0 * self.used_tokens as f64 / self.vocab_size.max(1) as f64),
            self.unused_tokens.to_string(),
            format!("{:.1}", self.mb_per_s),
            self.differs_at.map_or_else(|| "yes".to_owned(), |at| format!("no, byte {at}")),
        ]
    }
}

/// The ids of plain text, and the seconds of the best pass on one thread.
fn encode(tokenizer: &Tokenizer, text: &[u8]) -> (Vec<u32>, f64) {
    let (begin, mut best) = (Instant::now(), f64::INFINITY);
    for pass in 1.. {
        let start = Instant::now();
        let ids = tokenizer.encode_bytes(text);
        best = best.min(start.elapsed().as_secs_f64());
        if pass > 1 && begin.elapsed() >= LEAST_TIME {
            return (ids, best.max(1e-9));
        }
    }
    unreachable!("the loop has no end")
}

/// Names to the left, numbers to the right.
fn print(rows: &[Row]) -> std::io::Result<()> {
    let head =
        ["tokenizer", "text", "tokens", "bytes/token", "tokens/word", "used", "unused", "MB/s", "round trip"];
    let cells: Vec<[String; 9]> =
        std::iter::once(head.map(str::to_owned)).chain(rows.iter().map(Row::cells)).collect();
    let widths: [usize; 9] = std::array::from_fn(|column| {
        cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    });
    for row in &cells {
        let columns = row.iter().zip(widths).enumerate().map(|(column, (cell, width))| match column {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        output::line(columns.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}
