//! `flint tokenizer decode`: ids to text.

use anyhow::{Context, Result};
use tokenizer::Tokenizer;

use super::encode::each_line;
use crate::args::TokenizerDecode;
use crate::output;

pub fn run(args: &TokenizerDecode) -> Result<()> {
    let tokenizer = super::load(&args.tokenizer, args.split)?;
    let shown = |mut ids: Vec<u32>| {
        ids.retain(|&id| !(args.skip_special && tokenizer.is_special(id)));
        ids
    };
    if args.jsonl {
        return each_line(std::io::stdin().lock(), |ids: Vec<u32>| Ok(tokenizer.decode(&shown(ids))?));
    }
    plain(&tokenizer, shown)
}

fn plain(tokenizer: &Tokenizer, shown: impl Fn(Vec<u32>) -> Vec<u32>) -> Result<()> {
    let text = std::io::read_to_string(std::io::stdin().lock()).context("cannot read the ids")?;
    let numbers =
        text.split(|c: char| c.is_whitespace() || "[],".contains(c)).filter(|part| !part.is_empty());
    let ids = numbers.map(|part| part.parse().with_context(|| format!("`{part}` is not a token id")));
    let bytes = tokenizer.decode_bytes(&shown(ids.collect::<Result<_>>()?))?;
    Ok(output::bytes(&bytes)?)
}
