//! Models that llama.cpp's `llama-gguf-split` has cut into several files, as large ones are published:
//! `NAME-00001-of-00003.gguf` and so on. The first has the keys of the model; each says which of how many it is.

use std::path::{Path, PathBuf};

use tokenizer::gguf::Header;

/// Parts that five digits can number.
const MOST: u64 = 99_999;

/// Which of how many parts a file is, from its header: the first is 0. A file that is no part is the only one.
///
/// # Errors
/// What is wrong with its keys.
fn place(header: &Header<'_>) -> Result<(u64, u64), String> {
    let count = |key: &str| header.count(key).map_err(|error| error.to_string());
    let n = count("split.count")?.unwrap_or(0).max(1);
    let idx = if n == 1 { 0 } else { count("split.no")?.unwrap_or(0) };
    match idx < n && n <= MOST {
        true => Ok((idx, n)),
        false => Err(format!("`split.no` is {idx} and `split.count` is {n}: no such part can be")),
    }
}

/// The paths of the parts after the first, which this file must be: none for a file that is no part.
///
/// # Errors
/// If the file is another part, or its name does not say what those of the others are.
pub(super) fn after(first: &Path, header: &Header<'_>) -> Result<Vec<PathBuf>, String> {
    let (idx, n) = place(header)?;
    if n == 1 {
        return Ok(Vec::new());
    }
    let name = first.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some(stem) = name.strip_suffix(&ending(idx, n)) else {
        let ending = ending(idx, n);
        return Err(format!("part {} of {n}, so its name must end with `{ending}`", idx + 1));
    };
    if idx > 0 {
        return Err(format!("part {} of {n}: open the first, {stem}{}", idx + 1, ending(0, n)));
    }
    Ok((1..n).map(|idx| first.with_file_name(format!("{stem}{}", ending(idx, n)))).collect())
}

/// Checks that a file is this part of as many.
///
/// # Errors
/// If it is not.
pub(super) fn check(header: &Header<'_>, idx: usize, n: usize) -> Result<(), String> {
    match place(header)? {
        (found_idx, found_n) if (found_idx, found_n) == (idx as u64, n as u64) => Ok(()),
        (found_idx, found_n) => {
            Err(format!("it says that it is part {} of {found_n}, not {} of {n}", found_idx + 1, idx + 1))
        }
    }
}

/// How the name of a part ends.
fn ending(idx: u64, n: u64) -> String {
    format!("-{:05}-of-{n:05}.gguf", idx + 1)
}

/// The names of all parts, from that of any; `None` if it is not the name of a part.
pub fn names(part: &str) -> Option<Vec<String>> {
    let (rest, n) = part.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, idx) = rest.rsplit_once('-')?;
    let is_number = |digits: &str| digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
    let number = |digits: &str| digits.parse().ok().filter(|&n: &u64| is_number(digits) && n > 0);
    let (idx, n) = (number(idx)?, number(n)?);
    (n > 1 && idx <= n).then(|| (0..n).map(|idx| format!("{stem}{}", ending(idx, n))).collect())
}

/// The path of the first part, if this is that of another.
pub fn first(part: &Path) -> Option<PathBuf> {
    let name = part.file_name()?.to_str()?;
    let first = names(name)?.swap_remove(0);
    (first != name).then(|| part.with_file_name(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let both = ["a-b-00001-of-00002.gguf", "a-b-00002-of-00002.gguf"];
        for part in both {
            assert_eq!(names(part).expect("a part"), both);
        }
        assert_eq!(first(&Path::new("x").join(both[1])), Some(Path::new("x").join(both[0])));
        assert_eq!(first(Path::new(both[0])), None);
        for other in [
            "a.gguf",
            "a-00001-of-00002",
            "a-00003-of-00002.gguf",
            "a-00001-of-00001.gguf",
            "a-0001-of-0002.gguf",
            "a-+0001-of-00002.gguf",
            "00001-of-00002.gguf",
        ] {
            assert_eq!(names(other), None, "{other}");
        }
    }
}
