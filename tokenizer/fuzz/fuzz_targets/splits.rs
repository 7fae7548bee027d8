//! The hand-written splitters against their regular expressions in a backtracking engine.
#![no_main]

use std::sync::LazyLock;

use fancy_regex::Regex;
use libfuzzer_sys::fuzz_target;
use tokenizer::Split;

static SPLITS: LazyLock<Vec<(Split, Regex)>> = LazyLock::new(|| {
    let splits = Split::names().filter_map(Split::from_name);
    splits.map(|split| (split, Regex::new(split.regex()).expect("published patterns compile"))).collect()
});

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    for (split, regex) in SPLITS.iter() {
        let (mut expected, mut end) = (Vec::new(), 0);
        for found in regex.find_iter(&text) {
            // The oracle gives up on long texts.
            let Ok(found) = found else { return };
            expected.extend([&text[end..found.start()], found.as_str()]);
            end = found.end();
        }
        expected.push(&text[end..]);
        expected.retain(|piece| !piece.is_empty());
        let pieces: Vec<&str> = split.pieces(&text).collect();
        assert_eq!(pieces, expected, "{split:?} on {text:?}");
    }
});
