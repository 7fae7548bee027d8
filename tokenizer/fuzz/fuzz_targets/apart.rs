//! An answer of a model comes apart into what is said and what is called, the same however it was cut.

use tokenizer::chat::{CallForm, CallPiece, CallReader};

/// Text, and calls as names and arguments.
type Read = (String, Vec<(String, String)>, bool);

fn read(form: CallForm, tag_is_token: bool, has_begun: bool, pieces: &[&str]) -> Read {
    let mut reader = CallReader::new(form, tag_is_token);
    if has_begun {
        reader.begin_call();
    }
    let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
    let mut take = |pieces: Vec<CallPiece>| {
        for piece in pieces {
            match piece {
                CallPiece::Text(more) => text.push_str(&more),
                CallPiece::Begin { name } => calls.push((name, String::new())),
                CallPiece::Arguments(more) => calls.last_mut().expect("a call has begun").1.push_str(&more),
            }
        }
    };
    pieces.iter().for_each(|piece| take(reader.push(piece)));
    take(reader.finish());
    assert_eq!(reader.n_calls(), calls.len());
    (text, calls, reader.has_whole_calls())
}

/// The first byte says of which form the answer is, the second how it is cut.
pub fn apart(bytes: &[u8]) {
    let [kind, cut, answer @ ..] = bytes else { return };
    let Ok(answer) = std::str::from_utf8(answer) else { return };
    let form = [CallForm::Hermes, CallForm::Told, CallForm::Llama, CallForm::Mistral][usize::from(kind & 3)];
    let (tag_is_token, has_begun) = (kind & 4 != 0, kind & 8 != 0);
    let whole = read(form, tag_is_token, has_begun, &[answer]);
    let n = 1 + usize::from(*cut) % 40;
    let ends: Vec<usize> = (0..=answer.len()).filter(|i| i % n == 0 && answer.is_char_boundary(*i)).collect();
    let mut pieces: Vec<&str> = ends.windows(2).map(|ends| &answer[ends[0]..ends[1]]).collect();
    pieces.push(&answer[ends.last().copied().unwrap_or(0)..]);
    assert_eq!(
        read(form, tag_is_token, has_begun, &pieces),
        whole,
        "{form:?}, {tag_is_token}, {n}: {answer:?}"
    );
    let (text, calls, _) = whole;
    let n_bytes: usize =
        text.len() + calls.iter().map(|(name, arguments)| name.len() + arguments.len()).sum::<usize>();
    assert!(n_bytes <= answer.len(), "nothing is made up");
}
