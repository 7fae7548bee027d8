//! `flint generate` by other ways than token by token.

use serde_json::{Value, json};

use super::server::trained;
use super::{fails, json as parsed, succeeds};

#[test]
fn guesses_do_not_change_the_text() {
    let dir = trained();
    let base = ["generate", "run", "-p", "line 3: the cat", "-n", "120", "--json"];
    for sampling in [&["--temperature", "0"][..], &["--temperature", "0.7", "--top-k", "5", "--seed", "4"]] {
        let args = [&base[..], sampling].concat();
        let plain = parsed(&succeeds(dir.path(), &args));
        for guess in ["lookup", "run"] {
            let guessed = parsed(&succeeds(dir.path(), &[&args[..], &["--speculate", guess]].concat()));
            for key in ["ids", "text", "finish_reason", "completion_tokens"] {
                assert_eq!(guessed[key], plain[key], "{guess}, {key}");
            }
            let n = |key: &str| guessed[key].as_u64().expect("a number");
            assert!(n("accepted_tokens") <= n("guessed_tokens"));
            // The model itself is always right.
            assert!(guess == "lookup" || n("guessed_tokens") > 0);
            assert!(guess == "lookup" || n("accepted_tokens") == n("guessed_tokens"));
        }
    }
    // Where the context ends, so does the text.
    let long = ["generate", "run", "-p", "the cat", "-n", "500", "--json", "--context", "100"];
    let plain = parsed(&succeeds(dir.path(), &long));
    let ended = parsed(&succeeds(dir.path(), &[&long[..], &["--speculate", "lookup"]].concat()));
    // The last token is told and takes no place.
    let sum = ended["prompt_tokens"].as_u64().zip(ended["completion_tokens"].as_u64()).map(|(a, b)| a + b);
    assert_eq!((sum, &ended["finish_reason"]), (Some(101), &json!("length")));
    assert_eq!((&ended["ids"], &ended["finish_reason"]), (&plain["ids"], &plain["finish_reason"]));
    fails(dir.path(), &[&base[..], &["--speculate", "nothing"]].concat(), &["lookup", "nothing"]);
    fails(
        dir.path(),
        &[&base[..], &["--speculate", "lookup", "--when-full", "slide"]].concat(),
        &["--when-full"],
    );
    let other = ["train", "c.ron", "--set", "out=other", "--set", "train.steps=1"];
    succeeds(dir.path(), &other);
    let words = ["cannot guess", "vocabularies differ", "the one that guesses"];
    fails(dir.path(), &[&base[..], &["--speculate", "other"]].concat(), &words);
}

#[test]
fn beams_find_more_probable_texts() {
    let dir = trained();
    let base = ["generate", "run", "-p", "line 3: the cat", "-n", "12", "--json"];
    let greedy = parsed(&succeeds(dir.path(), &[&base[..], &["--temperature", "0"]].concat()));
    let one = parsed(&succeeds(dir.path(), &[&base[..], &["--beams", "1"]].concat()));
    assert_eq!((&one["ids"], &one["text"]), (&greedy["ids"], &greedy["text"]));
    let four =
        parsed(&succeeds(dir.path(), &[&base[..], &["--beams", "4", "--length-penalty", "0"]].concat()));
    let scores: Vec<f64> =
        four["beams"].as_array().expect("a list").iter().filter_map(|beam| beam["score"].as_f64()).collect();
    assert!(scores.len() == 4 && scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    let score = |answer: &Value| answer["score"].as_f64().expect("a number");
    // That of one beam is divided by its length.
    assert!(score(&four) >= score(&one) * 12.0 - 1e-9, "{four}, {one}");
    assert_eq!(four["text"], four["beams"][0]["text"]);
    for other in [["--temperature", "0.5"], ["--speculate", "lookup"], ["--top-k", "3"]] {
        fails(dir.path(), &[&base[..], &["--beams", "2"], &other].concat(), &["cannot be used with"]);
    }
    fails(dir.path(), &[&base[..], &["--beams", "200"]].concat(), &["`beams` is 200", "must be 1 to"]);
    fails(dir.path(), &[&base[..], &["--length-penalty", "1"]].concat(), &["--beams"]);
}
