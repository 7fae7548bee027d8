//! `flint tokenizer train | encode | decode`

use std::io::{BufRead, BufReader, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use tokenizer::train::Trainer;
use tokenizer::{Kind, Split, Tokenizer};
use train::config::{DataConfig, Documents};
use train::data::source;

use super::Common;
use crate::args::{Tokenizer as Verb, TokenizerDecode, TokenizerEncode, TokenizerTrain};
use crate::{loading, output};

pub fn run(verb: Verb, common: Common) -> Result<ExitCode> {
    match verb {
        Verb::Train(args) => train(args, common),
        Verb::Encode(args) => encode(&args),
        Verb::Decode(args) => decode(&args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn train(args: TokenizerTrain, common: Common) -> Result<()> {
    let kind = if args.char { Kind::Char } else { Kind::Bpe };
    let trainer = Trainer::new(kind, args.vocab_size).with_chat_tokens();
    let trainer = match (kind, &args.split[..]) {
        (Kind::Char, _) => trainer.with_min_frequency(1),
        (Kind::Bpe, "gpt2") => trainer.with_split(Split::Gpt2),
        (Kind::Bpe, "gpt4") => trainer.with_split(Split::Gpt4),
        (Kind::Bpe, other) => bail!("unknown --split `{other}`: choose gpt2 or gpt4"),
    };
    let data = DataConfig {
        paths: args.files,
        extensions: Vec::new(),
        documents: Documents::Files,
        max_bytes: 0,
        valid_fraction: 0.0,
    };
    let mut texts = Vec::new();
    for source in source::find(&data)?.0 {
        match source.read()? {
            Some(text) => texts.push(text),
            None => common.note(&format!("{} is not UTF-8 and was left out", source.name())),
        }
    }
    let tokenizer = trainer.train(&texts)?;
    tokenizer.save(&args.out)?;
    common.note(&format!("{} tokens, written to {}", tokenizer.vocab_size(), args.out.display()));
    Ok(())
}

fn encode(args: &TokenizerEncode) -> Result<()> {
    let tokenizer = loading::tokenizer(&args.tokenizer)?;
    let ids = |text: &str| match args.parse_special {
        true => tokenizer.encode_with_special(text),
        false => tokenizer.encode(text),
    };
    let mut input: Box<dyn BufRead> = match &args.file {
        Some(path) => {
            let file =
                std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
            Box::new(BufReader::new(file))
        }
        None => Box::new(std::io::stdin().lock()),
    };
    if args.jsonl {
        return each_line(input, |text: String| Ok(ids(&text)));
    }
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).context("cannot read the text")?;
    let ids = match std::str::from_utf8(&bytes) {
        Ok(text) => ids(text),
        // Every byte string has ids; special tokens are text, and this is none.
        Err(_) => tokenizer.encode_bytes(&bytes),
    };
    match args.json {
        true => output::json(&ids)?,
        false => output::line(&ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))?,
    }
    Ok(())
}

fn decode(args: &TokenizerDecode) -> Result<()> {
    let tokenizer = loading::tokenizer(&args.tokenizer)?;
    let input = std::io::stdin().lock();
    if args.jsonl {
        return each_line(input, |ids: Vec<u32>| Ok(tokenizer.decode(&ids)?));
    }
    decode_plain(&tokenizer, input)
}

fn decode_plain(tokenizer: &Tokenizer, mut input: impl Read) -> Result<()> {
    let mut text = String::new();
    input.read_to_string(&mut text).context("cannot read the ids")?;
    let numbers =
        text.split(|c: char| c.is_whitespace() || "[],".contains(c)).filter(|part| !part.is_empty());
    let ids = numbers.map(|part| part.parse().with_context(|| format!("`{part}` is not a token id")));
    let bytes = tokenizer.decode_bytes(&ids.collect::<Result<Vec<u32>>>()?)?;
    Ok(output::bytes(&bytes)?)
}

/// Answers each line of JSON with a line of JSON; an error names the line.
fn each_line<T, U>(input: impl BufRead, answer: impl Fn(T) -> Result<U>) -> Result<()>
where
    T: serde::de::DeserializeOwned,
    U: serde::Serialize,
{
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (idx, line) in input.lines().enumerate() {
        let line = line.context("cannot read the input")?;
        let place = || format!("line {}", idx + 1);
        let question = serde_json::from_str(&line).with_context(place)?;
        let text = serde_json::to_string(&answer(question).with_context(place)?).expect("plain data");
        writeln!(out, "{text}")?;
    }
    Ok(out.flush()?)
}
