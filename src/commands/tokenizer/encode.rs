//! `flint tokenizer encode`: a text or lines of JSON to ids on stdout.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokenizer::{EncodeOptions, Tokenizer};

use super::Common;
use crate::args::TokenizerEncode;
use crate::output;

pub fn run(args: &TokenizerEncode, common: Common) -> Result<()> {
    let file = match &args.files[..] {
        [] => None,
        [file] => Some(Path::new(file)),
        _ => bail!("{} files: one at a time goes to stdout, more need -o DIR", args.files.len()),
    };
    if args.corpus.documents.is_some() {
        bail!("--documents has no meaning without -o DIR");
    }
    if args.corpus.field.is_some() {
        bail!("--field has no meaning without -o DIR");
    }
    let tokenizer = super::load(&args.tokenizer, args.split)?;
    super::note_truncation(&tokenizer, common);
    let options = args.special.options();
    if args.jsonl {
        let input = open(file)?;
        return each_line(input, |text: String| Ok(tokenizer.encode_with(&text, options)));
    }
    let bytes = super::read(file)?;
    if args.offsets {
        let text = std::str::from_utf8(&bytes)
            .with_context(|| "--offsets needs text: encode these bytes without it")?;
        return Ok(output::json(&offsets(&tokenizer, text, options))?);
    }
    let ids = super::encode_bytes(&tokenizer, &bytes, options);
    match args.json {
        true => output::json(&ids)?,
        false => output::line(&ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))?,
    }
    Ok(())
}

/// Each token with the bytes of the text that it came from.
fn offsets(tokenizer: &Tokenizer, text: &str, options: EncodeOptions) -> Vec<Value> {
    let tokens = tokenizer.encode_offsets(text, options).into_iter();
    let object = |(id, range): (u32, std::ops::Range<usize>)| {
        let token = tokenizer.id_to_token(id);
        json!({"id": id, "start": range.start, "end": range.end, "token": token})
    };
    tokens.map(object).collect()
}

fn open(file: Option<&Path>) -> Result<Box<dyn BufRead>> {
    Ok(match file.filter(|file| *file != Path::new("-")) {
        Some(path) => {
            let file =
                std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            Box::new(BufReader::new(file))
        }
        None => Box::new(std::io::stdin().lock()),
    })
}

/// Answers each line of JSON with a line of JSON; an error names the line.
pub fn each_line<T, U>(input: impl BufRead, answer: impl Fn(T) -> Result<U>) -> Result<()>
where
    T: serde::de::DeserializeOwned,
    U: serde::Serialize,
{
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (idx, line) in input.lines().enumerate() {
        let place = || format!("line {}", idx + 1);
        let line = line.with_context(place)?;
        let question = serde_json::from_str(&line).with_context(place)?;
        let text = serde_json::to_string(&answer(question).with_context(place)?).expect("plain data");
        writeln!(out, "{text}")?;
    }
    Ok(out.flush()?)
}
