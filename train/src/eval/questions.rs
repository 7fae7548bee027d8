//! Questions with known answers, as lines of the data sets' published files, laid out as lm-eval lays them out.
//!
//! A line's fields say what it is, so a file may have any name.

use serde::Deserialize;
use serde_json::Value;

/// A text that is given and one that is scored after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What the model reads.
    pub context: String,
    /// Whose likelihood counts.
    pub continuation: String,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// The last word of a text (LAMBADA, Paperno et al. 2016).
    LastWord(Pair),
    /// Several continuations, of which one is right.
    Choice {
        /// One for each choice.
        pairs: Vec<Pair>,
        /// Characters of each choice, by which likelihoods are normalised; none where contexts differ instead of
        /// continuations.
        lengths: Option<Vec<usize>>,
        /// The right one.
        answer: usize,
    },
}

#[derive(Deserialize)]
struct Choices {
    text: Vec<String>,
    label: Vec<String>,
}

/// Reads a line.
///
/// # Errors
/// What is missing or wrong.
pub fn parse(line: &str) -> Result<Question, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let map = value.as_object().ok_or("not a JSON object")?;
    let text = |key: &str| match map.get(key) {
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => Err(format!("`{key}` is {other}: must be a string")),
        None => Err(format!("key `{key}` is missing")),
    };
    if map.contains_key("endings") {
        return hellaswag(&value, text);
    }
    if map.contains_key("goal") {
        let context = format!("Question: {}\nAnswer:", text("goal")?);
        let choices = [text("sol1")?, text("sol2")?].map(str::to_owned);
        return choice(&context, &choices, number(&value["label"], "label")?);
    }
    if map.contains_key("option1") {
        return winogrande(text("sentence")?, [text("option1")?, text("option2")?], &value["answer"]);
    }
    if map.contains_key("choices") {
        let Choices { text: choices, label } =
            serde_json::from_value(value["choices"].clone()).map_err(|e| format!("in `choices`: {e}"))?;
        let key = text("answerKey")?;
        let answer = label.iter().position(|label| label == key);
        let answer = answer.ok_or_else(|| format!("`answerKey` is \"{key}\", labels are {label:?}"))?;
        return choice(&format!("Question: {}\nAnswer:", text("question")?), &choices, answer);
    }
    if map.contains_key("text") {
        return last_word(text("text")?);
    }
    let keys: Vec<_> = map.keys().map(String::as_str).collect();
    Err(format!(
        "no known kind of question has the keys {}: known are text (last word), endings, choices, goal, option1",
        keys.join(", ")
    ))
}

/// A label as a number or its digits.
fn number(value: &Value, key: &str) -> Result<usize, String> {
    let number = match value {
        Value::String(digits) => digits.trim().parse().ok(),
        other => other.as_u64().and_then(|n| n.try_into().ok()),
    };
    number.ok_or_else(|| format!("`{key}` is {value}: must be the number of the right choice"))
}

fn choice(context: &str, choices: &[String], answer: usize) -> Result<Question, String> {
    if answer >= choices.len() {
        return Err(format!("choice {answer} is right, but there are {}", choices.len()));
    }
    let pair = |choice: &String| Pair { context: context.to_owned(), continuation: format!(" {choice}") };
    Ok(Question::Choice {
        pairs: choices.iter().map(pair).collect(),
        lengths: Some(choices.iter().map(|choice| choice.chars().count()).collect()),
        answer,
    })
}

fn last_word(text: &str) -> Result<Question, String> {
    let (context, word) = text.rsplit_once(' ').ok_or("`text` has one word: nothing stands before it")?;
    Ok(Question::LastWord(Pair { context: context.to_owned(), continuation: format!(" {word}") }))
}

/// HellaSwag (Zellers et al. 2019): the published files have the context in two parts, and markup in brackets.
fn hellaswag<'a>(
    value: &'a Value,
    text: impl Fn(&str) -> Result<&'a str, String>,
) -> Result<Question, String> {
    let context = match (text("ctx_a"), text("ctx_b"), text("activity_label")) {
        (Ok(a), Ok(b), Ok(activity)) => format!("{activity}: {a} {}", capitalized(b)),
        _ => text("ctx")?.to_owned(),
    };
    let endings: Vec<String> =
        serde_json::from_value(value["endings"].clone()).map_err(|e| format!("in `endings`: {e}"))?;
    let endings: Vec<String> = endings.iter().map(|ending| without_markup(ending)).collect();
    choice(&without_markup(&context), &endings, number(&value["label"], "label")?)
}

/// The first character in upper case, all others in lower case.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &chars.as_str().to_lowercase()
}

/// WikiHow's marks: a title ends a sentence, anything else in brackets goes.
fn without_markup(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let (mut kept, mut rest) = (String::new(), &*text);
    while let Some(open) = rest.find('[') {
        let Some(len) = rest[open..].find(']') else { break };
        // As a regular expression's dot: no bracket reaches over a line.
        let end = if rest[open..open + len].contains('\n') { open + 1 } else { open + len + 1 };
        kept += if end == open + 1 { &rest[..end] } else { &rest[..open] };
        rest = &rest[end..];
    }
    (kept + rest).replace("  ", " ")
}

/// WinoGrande (Sakaguchi et al. 2020): each option fills the gap, what follows the gap is scored.
fn winogrande(sentence: &str, options: [&str; 2], answer: &Value) -> Result<Question, String> {
    let (before, after) = sentence.split_once('_').ok_or("`sentence` has no gap `_`")?;
    let answer = number(answer, "answer")?;
    if !(1..=2).contains(&answer) {
        return Err(format!("`answer` is {answer}: must be 1 or 2"));
    }
    let pair =
        |option| Pair { context: format!("{before}{option}"), continuation: format!(" {}", after.trim()) };
    Ok(Question::Choice { pairs: options.map(pair).to_vec(), lengths: None, answer: answer - 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> String {
        match parse(line).unwrap_or_else(|why| panic!("{line}: {why}")) {
            Question::LastWord(Pair { context, continuation }) => format!("{context}|{continuation}"),
            Question::Choice { pairs, lengths, answer } => {
                let pairs: Vec<_> =
                    pairs.iter().map(|p| format!("{}|{}", p.context, p.continuation)).collect();
                format!("{} {answer} {lengths:?}", pairs.join(" / "))
            }
        }
    }

    #[test]
    fn each_kind_is_laid_out_as_in_lm_eval() {
        for (line, want) in [
            (r#"{"text": "the cat sat"}"#, "the cat| sat"),
            (
                r#"{"goal": "Boil it.", "sol1": "Use heat", "sol2": "Üse", "label": 1}"#,
                "Question: Boil it.\nAnswer:| Use heat / Question: Boil it.\nAnswer:| Üse 1 Some([8, 3])",
            ),
            (
                r#"{"question": "Who?", "choices": {"text": ["I", "you"], "label": ["A", "B"]}, "answerKey": "B"}"#,
                "Question: Who?\nAnswer:| I / Question: Who?\nAnswer:| you 1 Some([1, 3])",
            ),
            (
                r#"{"sentence": "Ann helps Bo as _ is kind.", "option1": "Ann", "option2": "Bo", "answer": "1"}"#,
                "Ann helps Bo as Ann| is kind. / Ann helps Bo as Bo| is kind. 0 None",
            ),
            (
                r#"{"ctx": "He runs", "endings": ["far.", "up."], "label": "0"}"#,
                "He runs| far. / He runs| up. 0 Some([4, 3])",
            ),
            (
                r#"{"ctx_a": "A [header] man [title] Run.", "ctx_b": "he Goes", "activity_label": "Run", "ctx": "?",
                    "endings": ["up [step]  now."], "label": 0}"#,
                "Run: A man. Run. He goes| up  now. 0 Some([8])",
            ),
        ] {
            assert_eq!(shown(line), want, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, named) in [
            ("[]", "object"),
            (r#"{"x": 1}"#, "x"),
            (r#"{"text": "word"}"#, "one word"),
            (r#"{"goal": "a", "sol1": "b", "label": 1}"#, "sol2"),
            (r#"{"goal": "a", "sol1": "b", "sol2": "c", "label": 2}"#, "choice 2"),
            (r#"{"ctx": "a", "endings": ["b"], "label": ""}"#, "label"),
            (
                r#"{"question": "a", "choices": {"text": ["b"], "label": ["A"]}, "answerKey": "E"}"#,
                "answerKey",
            ),
            (r#"{"sentence": "a", "option1": "b", "option2": "c", "answer": "1"}"#, "gap"),
            (r#"{"sentence": "a _", "option1": "b", "option2": "c", "answer": "3"}"#, "answer"),
        ] {
            let why = parse(line).expect_err(line);
            assert!(why.contains(named), "{line}: {why}");
        }
    }
}
