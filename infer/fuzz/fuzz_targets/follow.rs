//! A grammar of any text is refused, or followed to an end within its budget.

use infer::constrain::{Broken, Source, Vocabulary};
use tokenizer::Tokenizer;

/// Letters, digits, and what JSON is made of, each a token, then the end.
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz0123456789 \n{}[]:,.-+_\"\\/";

/// Tokens of a text.
const MAX_TOKENS: usize = 60;

/// A vocabulary, and the id that ends texts.
pub fn vocabulary() -> (Vocabulary, u32) {
    let entry = |(id, c): (usize, char)| format!("{}:{id}", serde_json::Value::from(c.to_string()));
    let entries: Vec<String> = LETTERS.chars().enumerate().map(entry).collect();
    let end = entries.len();
    let json = format!(
        r#"{{"version":"1.0","added_tokens":[{{"id":{end},"content":"<end>","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}}],"model":{{"type":"BPE","vocab":{{{},"<end>":{end}}},"merges":[]}},"decoder":{{"type":"Fuse"}}}}"#,
        entries.join(",")
    );
    let tokenizer = Tokenizer::from_json(json.as_bytes()).expect("a vocabulary");
    (Vocabulary::new(&tokenizer, tokenizer.vocab_size()).expect("few tokens"), end as u32)
}

/// The first byte says what the text is.
///
/// # Errors
/// Why no grammar came of it.
pub fn follow((vocabulary, end): &(Vocabulary, u32), bytes: &[u8]) -> Result<(), String> {
    let [kind, text @ ..] = bytes else { return Err("nothing".into()) };
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let source = match kind % 3 {
        0 => Source::JsonSchema(text.to_owned()),
        1 => Source::Regex(text.to_owned()),
        _ => Source::Lark(text.to_owned()),
    };
    let grammar = match vocabulary.grammar(&source) {
        Ok(grammar) => grammar,
        Err(error) => {
            let error = error.to_string();
            assert!(!error.is_empty() && !error.contains("panicked"), "{error}");
            return Err(error);
        }
    };
    let mut constraint = grammar.begin();
    let budget = (constraint.least_tokens() + 8).min(MAX_TOKENS);
    if constraint.least_tokens() > budget {
        return Ok(());
    }
    let n = LETTERS.chars().count() + 1;
    for left in (1..=budget).rev() {
        // Every token wants to be the next, each time in another order.
        let logits: Vec<f32> = (0..n).map(|id| ((id * 31 + left * 17) % n) as f32).collect();
        let best = |logits: &[f32]| {
            let found = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            Ok::<u32, Broken>(found.expect("some") as u32)
        };
        match constraint.pick(&logits, left, &[*end], best) {
            Ok(id) if id == *end => return Ok(()),
            Ok(_) if constraint.is_over() => return Ok(()),
            Ok(_) => {}
            // The parser's own limits.
            Err(Broken(_)) => return Ok(()),
        }
    }
    // The budget is spent: what is there is whole.
    let mut logits = vec![0.0; n];
    let allowed = constraint.mask(&mut logits, &[*end]);
    assert!(allowed.is_err() || logits[*end as usize] == 0.0, "{source:?} may not end after {budget} tokens");
    Ok(())
}
