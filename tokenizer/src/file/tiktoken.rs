//! tiktoken's rank files: a token in base64, a space and its rank, one a line.
//!
//! The merges are not listed. Any two neighbours whose concatenation is a token merge, lowest rank first, and a piece
//! that is a token as a whole is that token. Nor does a file name its split of the text and its special tokens: the
//! published encodings are recognised by their contents, for others the caller says both.

use crate::alphabet;
use crate::base64;
use crate::definition::{
    AddedTokenDef, BpeDef, Definition, Merges, ModelDef, SpecialIds, byte_level, pre_tokenizer,
};
use crate::hash::Fnv;
use crate::{END_OF_TEXT, Error, Split};

/// What errors call this format.
const PART: &str = "tiktoken ranks";

/// What a file of ranks does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TiktokenEncoding {
    /// How text is cut.
    pub split: Split,
    /// Special tokens with their ids, which no rank may have. [`END_OF_TEXT`] ends a text.
    pub special_tokens: Vec<(String, u32)>,
}

impl From<Split> for TiktokenEncoding {
    /// No special tokens.
    fn from(split: Split) -> Self {
        Self { split, special_tokens: Vec::new() }
    }
}

/// A published encoding.
struct Published {
    split: Split,
    special: &'static [(&'static str, u32)],
    /// Number of tokens in the file, and the hash of tokens and ranks; no hash for p50k_base, which is r50k_base and
    /// runs of spaces.
    n_tokens: usize,
    hash: Option<u64>,
}

const PUBLISHED: [Published; 4] = [
    // cl100k_base
    Published {
        split: Split::Gpt4,
        special: &[
            (END_OF_TEXT, 100_257),
            ("<|fim_prefix|>", 100_258),
            ("<|fim_middle|>", 100_259),
            ("<|fim_suffix|>", 100_260),
            ("<|endofprompt|>", 100_276),
        ],
        n_tokens: 100_256,
        hash: Some(0x7bcd_af5c_3507_bf1a),
    },
    // o200k_base
    Published {
        split: Split::O200k,
        special: &[(END_OF_TEXT, 199_999), ("<|endofprompt|>", 200_018)],
        n_tokens: 199_998,
        hash: Some(0x17b3_9a97_e010_6a4e),
    },
    // r50k_base
    Published {
        split: Split::Gpt2,
        special: &[(END_OF_TEXT, 50_256)],
        n_tokens: 50_256,
        hash: Some(R50K_HASH),
    },
    // p50k_base
    Published { split: Split::Gpt2, special: &[(END_OF_TEXT, 50_256)], n_tokens: 50_280, hash: None },
];

/// The hash of r50k_base, which is GPT-2's vocabulary.
const R50K_HASH: u64 = 0xbc6c_fb6f_be53_3e8e;

/// Whether the first line is a token in base64 and a number.
pub(super) fn is_like(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut words = line.trim_ascii().split(|&byte| byte == b' ');
    let (token, rank) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    !token.is_empty()
        && base64::decode(token).is_some()
        && !rank.is_empty()
        && rank.iter().all(u8::is_ascii_digit)
}

/// Reads a rank file. Without `encoding`, the contents must be those of a published encoding.
pub(crate) fn parse(bytes: &[u8], encoding: Option<&TiktokenEncoding>) -> Result<Definition, Error> {
    let ranks = read(bytes)?;
    let encoding = match encoding {
        Some(encoding) => encoding,
        None => match PUBLISHED.iter().find(|published| published.is(&ranks)) {
            Some(published) => &published.encoding(),
            None => return Err(Error::UnknownSplit { n_tokens: ranks.len() }),
        },
    };
    let special = &encoding.special_tokens;
    let end_of_text = special.iter().find(|(token, _)| token == END_OF_TEXT).map(|&(_, id)| id);
    Ok(Definition {
        vocab: ranks.iter().map(|(token, rank)| (alphabet::spell(token), *rank)).collect(),
        added: special.iter().map(|(token, id)| AddedTokenDef::special(*id, token.as_str())).collect(),
        normalizer: None,
        pre_tokenizer: Some(pre_tokenizer(encoding.split)),
        post_processor: None,
        decoder: Some(byte_level(true)),
        model: ModelDef::Bpe(BpeDef {
            merges: Merges::ById,
            byte_level: true,
            ignore_merges: true,
            ..BpeDef::default()
        }),
        special: SpecialIds { eos: end_of_text, ..SpecialIds::default() },
        chat_template: None,
        truncation: None,
        padding: None,
    })
}

impl Published {
    fn is(&self, ranks: &[(Vec<u8>, u32)]) -> bool {
        if ranks.len() != self.n_tokens {
            return false;
        }
        match self.hash {
            Some(expected) => hash(ranks) == expected,
            None => {
                let (first, last) = ranks.split_at(50_256);
                let spaces = |(rank, (token, id)): (u32, &(Vec<u8>, u32))| {
                    *id == rank && token.iter().all(|&byte| byte == b' ')
                };
                hash(first) == R50K_HASH && (50_257..).zip(last).all(spaces)
            }
        }
    }

    fn encoding(&self) -> TiktokenEncoding {
        let special_tokens = self.special.iter().map(|&(token, id)| (token.to_owned(), id)).collect();
        TiktokenEncoding { split: self.split, special_tokens }
    }
}

/// Tokens and ranks, in order of rank.
fn read(bytes: &[u8]) -> Result<Vec<(Vec<u8>, u32)>, Error> {
    let mut ranks: Vec<(Vec<u8>, u32)> = Vec::new();
    let mut offset = 0;
    for line in bytes.split(|&byte| byte == b'\n') {
        let start = offset;
        offset += line.len() + 1;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let malformed =
            |reason: &str| Error::Malformed { part: PART, offset: start, reason: reason.to_owned() };
        let space =
            line.iter().position(|&byte| byte == b' ').ok_or_else(|| malformed("a line has no space"))?;
        let token = base64::decode(&line[..space]).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| malformed("the token is not base64, or empty"))?;
        let rank = std::str::from_utf8(&line[space + 1..]).ok().and_then(|rank| rank.parse::<u32>().ok());
        // The highest number is no id.
        let rank =
            rank.filter(|&rank| rank != u32::MAX).ok_or_else(|| malformed("the rank is not a number"))?;
        ranks.push((token, rank));
    }
    ranks.sort_by_key(|&(_, rank)| rank);
    check(&ranks)?;
    Ok(ranks)
}

fn check(ranks: &[(Vec<u8>, u32)]) -> Result<(), Error> {
    if let Some(pair) = ranks.windows(2).find(|pair| pair[0].1 == pair[1].1) {
        return Err(Error::DuplicateId {
            id: pair[0].1,
            first: alphabet::spell(&pair[0].0),
            second: alphabet::spell(&pair[1].0),
        });
    }
    let mut by_token: Vec<&(Vec<u8>, u32)> = ranks.iter().collect();
    by_token.sort();
    if let Some(pair) = by_token.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Error::DuplicateToken {
            token: alphabet::spell(&pair[0].0),
            first: pair[0].1,
            second: pair[1].1,
        });
    }
    let has = |byte: u8| by_token.binary_search_by(|(token, _)| token[..].cmp(&[byte])).is_ok();
    match (0..=255).find(|&byte| !has(byte)) {
        Some(byte) => Err(Error::MissingByte { byte }),
        None => Ok(()),
    }
}

fn hash(ranks: &[(Vec<u8>, u32)]) -> u64 {
    let mut fnv = Fnv::new();
    for (token, rank) in ranks {
        fnv.string(token);
        fnv.number(u64::from(*rank));
    }
    fnv.finish()
}

/// The contents of a rank file for a byte-level vocabulary. Special tokens have no place in it and are left out.
///
/// # Errors
/// If the ranks alone would not give the same merges: the vocabulary is not byte-level, a token has no merge or several,
/// ids are not in the order of the merges, or the merges of lower ids make a token from other parts.
pub(crate) fn write(definition: &Definition) -> Result<String, Error> {
    let refuse = |found: &str| Error::Unsupported {
        part: "vocabulary",
        found: found.to_owned(),
        supported: "byte-level BPE whose ids are in the order of its merges",
    };
    let ModelDef::Bpe(def) = &definition.model else { return Err(refuse("another model than BPE")) };
    if !def.byte_level {
        return Err(refuse("BPE over characters"));
    }
    let is_added = |id: u32| definition.added.iter().any(|added| added.id == id);
    let mut ranks = Vec::new();
    for (token, id) in definition.vocab.iter().filter(|&&(_, id)| !is_added(id)) {
        let bytes = alphabet::unspell(token).ok_or_else(|| Error::BadToken {
            token: token.clone(),
            id: *id,
            reason: "is not spelled in GPT-2's characters",
        })?;
        ranks.push((bytes, *id));
    }
    ranks.sort_by_key(|&(_, id)| id);
    check(&ranks)?;
    if let Merges::Ranked(pairs) = &def.merges {
        check_merges(&ranks, pairs)?;
    }
    let line = |(token, rank): &(Vec<u8>, u32)| format!("{} {rank}\n", base64::encode(token));
    Ok(ranks.iter().map(line).collect())
}

/// Whether merging by id makes each token from the two parts that its merge names, in the order of the merges.
fn check_merges(ranks: &[(Vec<u8>, u32)], pairs: &[(u32, u32)]) -> Result<(), Error> {
    let ids: std::collections::HashMap<&[u8], u32> =
        ranks.iter().map(|(token, id)| (&token[..], *id)).collect();
    let long = ranks.iter().filter(|(token, _)| token.len() > 1);
    let mut pairs = pairs.iter();
    for (token, id) in long {
        let bad = |reason| Error::BadToken { token: alphabet::spell(token), id: *id, reason };
        let &(left, right) = pairs.next().ok_or_else(|| bad("has no merge"))?;
        if parts_below(token, *id, &ids)[..] != [left, right] {
            return Err(bad("is not made of the two parts that ranks alone would give it"));
        }
    }
    match pairs.next() {
        Some(_) => Err(Error::Unsupported {
            part: "vocabulary",
            found: "more merges than tokens".to_owned(),
            supported: "one merge for each token",
        }),
        None => Ok(()),
    }
}

/// What the bytes of a token merge into, with lower ids only.
fn parts_below(token: &[u8], id: u32, ids: &std::collections::HashMap<&[u8], u32>) -> Vec<u32> {
    let mut ends: Vec<usize> = (1..=token.len()).collect();
    let start = |ends: &[usize], idx: usize| idx.checked_sub(1).map_or(0, |prev| ends[prev]);
    loop {
        let mut best: Option<(u32, usize)> = None;
        for idx in 0..ends.len().saturating_sub(1) {
            let merged = ids.get(&token[start(&ends, idx)..ends[idx + 1]]);
            if let Some(&merged) = merged.filter(|&&merged| merged < id)
                && best.is_none_or(|(old, _)| merged < old)
            {
                best = Some((merged, idx));
            }
        }
        match best {
            Some((_, idx)) => ends.remove(idx),
            None => break,
        };
    }
    let part = |idx: usize| ids.get(&token[start(&ends, idx)..ends[idx]]).copied().unwrap_or(u32::MAX);
    (0..ends.len()).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_and(more: &[(&str, u32)]) -> String {
        let bytes = (0..=255u8).map(|byte| format!("{} {byte}\n", base64::encode(&[byte])));
        bytes
            .chain(more.iter().map(|(token, rank)| format!("{} {rank}\n", base64::encode(token.as_bytes()))))
            .collect()
    }

    #[test]
    fn a_file_is_read_and_written_back() {
        let file = bytes_and(&[("ab", 256), ("abc", 300), ("bc", 301)]);
        let def = parse(file.as_bytes(), Some(&Split::Gpt4.into())).unwrap();
        assert_eq!(def.vocab.len(), 259);
        assert_eq!(def.vocab[257], ("abc".to_owned(), 300));
        assert!(def.added.is_empty());
        assert_eq!(write(&def).unwrap(), file);
        let message = parse(file.as_bytes(), None).unwrap_err().to_string();
        assert!(message.contains("259 tiktoken ranks are no published encoding"), "{message}");
        assert!(message.contains("--split"), "{message}");
        let special_tokens = vec![("<|x|>".to_owned(), 500), (END_OF_TEXT.to_owned(), 501)];
        let def =
            parse(file.as_bytes(), Some(&TiktokenEncoding { split: Split::Gpt2, special_tokens })).unwrap();
        assert_eq!(def.added[0], AddedTokenDef::special(500, "<|x|>"));
        assert_eq!((def.special.eos, def.pre_tokenizer), (Some(501), Some(byte_level(true))));
    }

    #[test]
    fn only_merges_that_ranks_express_are_written() {
        let file = bytes_and(&[("ab", 256), ("abc", 257), ("bc", 258)]);
        let with = |pairs: &[(u32, u32)]| {
            let mut def = parse(file.as_bytes(), Some(&Split::Gpt4.into())).unwrap();
            def.model = ModelDef::Bpe(BpeDef {
                merges: Merges::Ranked(pairs.to_vec()),
                byte_level: true,
                ..BpeDef::default()
            });
            write(&def).map_err(|error| error.to_string())
        };
        let (a, b, c) = (97, 98, 99);
        assert_eq!(with(&[(a, b), (256, c), (b, c)]).unwrap(), file);
        assert!(with(&[(a, b), (a, 258), (b, c)]).unwrap_err().contains("token `abc` (id 257) is not made"));
        assert!(with(&[(a, b), (256, c)]).unwrap_err().contains("token `bc` (id 258) has no merge"));
        assert!(with(&[(a, b), (256, c), (b, c), (c, c)]).unwrap_err().contains("more merges"));
    }

    #[test]
    fn bad_files_are_refused_with_the_place() {
        let good = bytes_and(&[]);
        for (more, expected) in [
            ("YQ== 0", "both have id 0"),
            ("YQ== 300", "token `a` stands twice, with ids 97 and 300"),
            ("YQ==", "a line has no space"),
            ("!! 5", "not base64"),
            (" 5", "not base64, or empty"),
            ("YWI= -1", "the rank is not a number"),
            ("YWI= 4294967295", "the rank is not a number"),
        ] {
            let message = parse(format!("{good}{more}\n").as_bytes(), Some(&Split::Gpt2.into()))
                .unwrap_err()
                .to_string();
            assert!(message.contains(expected), "{message}");
        }
        let missing = good.replacen("QQ== 65\n", "", 1);
        let message = parse(missing.as_bytes(), Some(&Split::Gpt2.into())).unwrap_err().to_string();
        assert_eq!(message, "no token stands for byte 0x41");
    }

    #[test]
    fn the_published_encodings_are_recognised() {
        let Some(assets) = std::env::var_os("FLINT_ASSETS").map(std::path::PathBuf::from) else { return };
        let folder = assets.join("tokenizers");
        for (name, n_special) in [("cl100k_base", 5), ("o200k_base", 2)] {
            let bytes = std::fs::read(folder.join(format!("tiktoken/{name}.tiktoken"))).unwrap();
            let def = parse(&bytes, None).unwrap();
            assert_eq!(def.added.len(), n_special);
            assert_eq!(write(&def).unwrap().into_bytes(), bytes);
        }
        let read = |name: &str| std::fs::read(folder.join("gpt2").join(name)).unwrap();
        let gpt2 = super::super::gpt2::parse(&read("encoder.json"), &read("vocab.bpe")).unwrap();
        let mut file = write(&gpt2).unwrap();
        let def = parse(file.as_bytes(), None).unwrap();
        assert_eq!(def.added, [AddedTokenDef::special(50_256, END_OF_TEXT)]);
        // p50k_base is r50k_base and 24 runs of spaces.
        for (n, rank) in (2..26).zip(50_257..) {
            file += &format!("{} {rank}\n", base64::encode(" ".repeat(n).as_bytes()));
        }
        assert_eq!(parse(file.as_bytes(), None).unwrap().vocab.len(), 50_280);
    }
}
