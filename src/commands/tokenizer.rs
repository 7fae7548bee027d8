//! `flint tokenizer train | encode | decode | eval | inspect`

mod corpus;
mod decode;
mod encode;
mod eval;
mod inspect;
mod shards;
mod train;

use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use tokenizer::{EncodeOptions, Tokenizer};

use super::Common;
use crate::args::{SpecialArgs, SplitArgs, Tokenizer as Verb};
use crate::loading;

pub fn run(verb: Verb, common: Common) -> Result<ExitCode> {
    match verb {
        Verb::Train(args) => return train::run(&args, common),
        Verb::Encode(args) if args.out.is_some() => return shards::run(&args, common),
        Verb::Encode(args) => encode::run(&args, common),
        Verb::Decode(args) => decode::run(&args),
        Verb::Eval(args) => eval::run(&args, common),
        Verb::Inspect(args) => inspect::run(&args, common),
    }?;
    Ok(ExitCode::SUCCESS)
}

impl SpecialArgs {
    fn options(self) -> EncodeOptions {
        EncodeOptions { parse_special: self.parse_special, add_special: !self.no_special }
    }
}

/// Reads one tokenizer.
fn load(path: &Path, split: SplitArgs) -> Result<Tokenizer> {
    let mut loaded = loading::tokenizers(&[path.to_owned()], split.split)?;
    Ok(loaded.remove(0))
}

/// Says what the file asks for and encoding does not do.
fn note_truncation(tokenizer: &Tokenizer, common: Common) {
    if let Some(n) = tokenizer.truncation() {
        common.note(&format!("the tokenizer's file wants texts cut to {n} tokens: nothing is cut here"));
    }
}

/// Reads a file, or stdin if there is none or it is `-`.
fn read(path: Option<&Path>) -> Result<Vec<u8>> {
    match path.filter(|path| *path != Path::new("-")) {
        Some(path) => std::fs::read(path).with_context(|| format!("cannot read {}", path.display())),
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("cannot read stdin")?;
            Ok(bytes)
        }
    }
}

/// Ids of any bytes: of text as the options say, of other bytes as those of plain text.
fn encode_bytes(tokenizer: &Tokenizer, bytes: &[u8], options: EncodeOptions) -> Vec<u32> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return tokenizer.encode_with(text, options);
    }
    // Every byte string has ids; special tokens are text, and this is none.
    let (before, after) = if options.add_special { tokenizer.around() } else { (&[][..], &[][..]) };
    [before, &tokenizer.encode_bytes(bytes), after].concat()
}
