//! GPT-2's two files: `vocab.json` with `merges.txt`, which OpenAI called `encoder.json` and `vocab.bpe`.
//!
//! The first is an object of tokens and ids; the second has one merge a line, two tokens with a space between, after an
//! optional first line `#version`. Later lines that start so are merges. The files do not name the split of the text; it
//! is GPT-2's.

use super::read::{VocabJson, without_place};
use crate::definition::{AddedTokenDef, BpeDef, Definition, Merges, ModelDef, SpecialIds, byte_level};
use crate::pieces::PieceMap;
use crate::{END_OF_TEXT, Error};

/// What errors call the second file.
const PART: &str = "merges";

/// Reads the contents of both files.
pub(crate) fn parse(vocab: &[u8], merges: &[u8]) -> Result<Definition, Error> {
    let VocabJson(vocab) = serde_json::from_slice(vocab).map_err(|error| Error::Json {
        line: error.line(),
        column: error.column(),
        reason: without_place(&error),
    })?;
    let merges = std::str::from_utf8(merges).map_err(|error| malformed(error.valid_up_to(), "not UTF-8"))?;
    let ids = ids(&vocab)?;
    let merges = merge_lines(merges)?;
    let pairs = pairs(merges.iter().copied(), &ids)?;
    let end_of_text = ids.get(END_OF_TEXT.as_bytes());
    Ok(Definition {
        added: end_of_text.map(|id| AddedTokenDef::special(id, END_OF_TEXT)).into_iter().collect(),
        vocab,
        normalizer: None,
        pre_tokenizer: Some(byte_level(true)),
        post_processor: None,
        decoder: Some(byte_level(true)),
        model: ModelDef::Bpe(BpeDef { merges: Merges::Ranked(pairs), byte_level: true, ..BpeDef::default() }),
        special: SpecialIds { eos: end_of_text, ..SpecialIds::default() },
        chat_template: None,
        truncation: None,
        padding: None,
    })
}

/// Ids by spelling; no spelling may stand twice.
pub(super) fn ids(vocab: &[(String, u32)]) -> Result<PieceMap<u32>, Error> {
    let mut ids = PieceMap::new();
    for (token, id) in vocab {
        let n_before = ids.len();
        let first = *ids.entry(token.as_bytes(), *id);
        if ids.len() == n_before {
            return Err(Error::DuplicateToken { token: token.clone(), first, second: *id });
        }
    }
    Ok(ids)
}

/// Merges as pairs of ids. That the merged token exists is checked where the model is built.
pub(super) fn pairs<'a>(
    merges: impl IntoIterator<Item = (&'a str, &'a str)>,
    ids: &PieceMap<u32>,
) -> Result<Vec<(u32, u32)>, Error> {
    let pair = |(merge_idx, (left, right)): (usize, (&str, &str))| {
        let id = |token: &str| {
            ids.get(token.as_bytes()).ok_or_else(|| Error::BadMerge {
                merge_idx,
                left: left.to_owned(),
                right: right.to_owned(),
                reason: "one of them is not in the vocabulary",
            })
        };
        Ok((id(left)?, id(right)?))
    };
    merges.into_iter().enumerate().map(pair).collect()
}

fn merge_lines(text: &str) -> Result<Vec<(&str, &str)>, Error> {
    let mut merges = Vec::new();
    let mut offset = 0;
    for (line_idx, line) in text.split('\n').enumerate() {
        let (start, is_last) = (offset, offset + line.len() == text.len());
        offset += line.len() + 1;
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line_idx == 0 && line.starts_with("#version") || is_last && line.is_empty() {
            continue;
        }
        match line.split_once(' ') {
            Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => {
                merges.push((left, right));
            }
            _ => return Err(malformed(start, "a line is not two tokens with a space between")),
        }
    }
    Ok(merges)
}

fn malformed(offset: usize, reason: &str) -> Error {
    Error::Malformed { part: PART, offset, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: &str =
        r##"{"#": 0, "version": 1, "a": 2, "#version": 3, "#versiona": 4, "<|endoftext|>": 5}"##;

    fn ranked(merges: &str) -> Vec<(u32, u32)> {
        match parse(VOCAB.as_bytes(), merges.as_bytes()).unwrap().model {
            ModelDef::Bpe(BpeDef { merges: Merges::Ranked(pairs), .. }) => pairs,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_first_line_is_a_version() {
        for merges in
            ["#version: 0.2\n# version\n#version a\n", "# version\r\n#version a\r\n", "# version\n#version a"]
        {
            assert_eq!(ranked(merges), [(0, 1), (3, 2)], "{merges:?}");
        }
        assert_eq!(ranked(""), []);
        let def = parse(VOCAB.as_bytes(), b"").unwrap();
        assert_eq!(def.added, [AddedTokenDef::special(5, END_OF_TEXT)]);
    }

    #[test]
    fn bad_files_are_refused_with_the_place() {
        for (vocab, merges, expected) in [
            (VOCAB, "# version\n\na a\n", "byte 10 of merges: a line is not two"),
            (VOCAB, "a\n", "byte 0 of merges"),
            (VOCAB, "a a a\n", "byte 0 of merges"),
            (VOCAB, "a b\n", "merge 0, `a` + `b`: one of them"),
            ("{\"a\": 1, \"a\": 2}", "", "token `a` stands twice"),
            ("{\"a\": -1}", "", "invalid value"),
            ("[]", "", "an object of tokens"),
            ("", "", "EOF"),
        ] {
            let message = parse(vocab.as_bytes(), merges.as_bytes()).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert!(parse(VOCAB.as_bytes(), b"a \xff").is_err());
    }
}
