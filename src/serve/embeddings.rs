//! `/v1/embeddings`

use std::sync::Arc;

use axum::extract::State as Shared;
use axum::response::{IntoResponse, Json, Response};
use infer::embedder::{self, Input};
use infer::encoding::{Failure, Sink};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;

use super::asked::Asked;
use super::error::ApiError;
use super::models::Encoder;
use super::state::State;
use super::text::off_the_loop;

/// Inputs of a request, and tokens of all of them: those of OpenAI's interface.
const MAX_INPUTS: usize = 2048;
const MAX_TOKENS: usize = 300_000;

#[derive(Serialize)]
struct Answer {
    object: &'static str,
    data: Vec<Entry>,
    model: String,
    usage: Usage,
}

#[derive(Serialize)]
struct Entry {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

/// The numbers, with as many digits as an f32 needs, or their bytes, the lowest first.
#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Bytes(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Makes vectors of texts.
pub async fn create(Shared(state): Shared<Arc<State>>, asked: Asked) -> Result<Response, ApiError> {
    let (owner, model) = (asked.owner, asked.model.clone());
    let Prepared { encoder, sequences, dimensions, is_base64 } = off_the_loop(move || prepare(asked)).await?;
    let n_tokens = sequences.iter().map(Vec::len).sum();
    let (sender, receiver) = oneshot::channel();
    encoder.client.submit(sequences, Box::new(Waiting(sender)))?;
    state.accounts.charge(owner, n_tokens);
    let vectors = receiver.await.unwrap_or(Err(Failure::Stopped)).map_err(|failure| {
        crate::output::note(&format!("a request failed: {failure}"));
        ApiError::internal()
    })?;
    off_the_loop(move || {
        let entry = |(index, vector): (usize, Vec<f32>)| {
            let vector = cut(vector, dimensions);
            let embedding = if is_base64 { Vector::Bytes(base64(&vector)) } else { Vector::Numbers(vector) };
            Entry { object: "embedding", index, embedding }
        };
        let data = vectors.into_iter().enumerate().map(entry).collect();
        let usage = Usage { prompt_tokens: n_tokens, total_tokens: n_tokens };
        Ok(Json(Answer { object: "list", data, model, usage }).into_response())
    })
    .await
}

struct Prepared {
    encoder: Arc<Encoder>,
    sequences: Vec<Vec<i32>>,
    dimensions: Option<usize>,
    is_base64: bool,
}

fn prepare(mut asked: Asked) -> Result<Prepared, ApiError> {
    let encoder = asked.encoder()?;
    let fields = &mut asked.fields;
    let is_base64 = match fields.take::<String>("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => {
            let why = "`encoding_format` must be `float` or `base64`";
            return Err(ApiError::invalid("encoding_format", why));
        }
    };
    let dimensions = fields.whole("dimensions", 1..=encoder.n_embd as u64)?.map(|n| n as usize);
    fields.ignore("user");
    let inputs = inputs(fields.need("input")?)?;
    asked.fields.finish()?;
    let sequences = encoder.reader.read(&inputs).map_err(refused)?;
    let n_tokens: usize = sequences.iter().map(Vec::len).sum();
    if n_tokens > MAX_TOKENS {
        let why = format!("`input` has {n_tokens} tokens: at most {MAX_TOKENS} in one request");
        return Err(ApiError::invalid("input", why));
    }
    Ok(Prepared { encoder, sequences, dimensions, is_base64 })
}

/// A text, ids, or a list of either.
fn inputs(value: Value) -> Result<Vec<Input>, ApiError> {
    let refuse = |why: String| ApiError::invalid("input", why);
    let wrong = || refuse("`input` must be a string, a list of token ids, or a list of either".into());
    let one = |value: Value| match value {
        Value::String(text) if text.is_empty() => Err(refuse("`input` has an empty string".into())),
        Value::String(text) => Ok(Input::Text(text)),
        Value::Array(_) => serde_json::from_value(value).map(Input::Ids).map_err(|_| wrong()),
        _ => Err(wrong()),
    };
    match value {
        Value::Array(list) if list.is_empty() => Err(refuse("`input` is an empty list".into())),
        Value::Array(list) if list.len() > MAX_INPUTS && !list[0].is_number() => {
            Err(refuse(format!("`input` has {} entries: at most {MAX_INPUTS}", list.len())))
        }
        Value::Array(list) if !list[0].is_number() => list.into_iter().map(one).collect(),
        other => Ok(vec![one(other)?]),
    }
}

fn refused(error: embedder::Error) -> ApiError {
    match error {
        embedder::Error::TooLong { .. } => ApiError::too_long("input", error.to_string()),
        _ => ApiError::invalid("input", error.to_string()),
    }
}

/// The first numbers of a vector, made as long as the whole was: what is left of it where the model was trained so that
/// these say the most (Kusupati et al. 2022, "Matryoshka Representation Learning").
fn cut(mut vector: Vec<f32>, dimensions: Option<usize>) -> Vec<f32> {
    let Some(n) = dimensions.filter(|&n| n < vector.len()) else { return vector };
    let length = |of: &[f32]| of.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let whole = length(&vector);
    vector.truncate(n);
    let left = length(&vector);
    // Of zeros nothing else can be made.
    let scale = if left > 0.0 { whole / left } else { 0.0 };
    vector.iter().map(|x| (f64::from(*x) * scale) as f32).collect()
}

/// The bytes of the numbers in base64 (RFC 4648).
fn base64(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

struct Waiting(oneshot::Sender<Result<Vec<Vec<f32>>, Failure>>);

impl Sink for Waiting {
    fn send(self: Box<Self>, vectors: Result<Vec<Vec<f32>>, Failure>) {
        // Whoever has gone does not miss them.
        let _ = self.0.send(vectors);
    }

    fn is_gone(&self) -> bool {
        self.0.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        // As Python's `base64.b64encode(struct.pack("<…f", …))`.
        for (vector, text) in [
            (&[][..], ""),
            (&[1.0], "AACAPw=="),
            (&[1.0, -0.5], "AACAPwAAAL8="),
            (&[1.0, -0.5, 3.25], "AACAPwAAAL8AAFBA"),
        ] {
            assert_eq!(base64(vector), text);
        }
    }

    #[test]
    fn a_cut_vector_keeps_its_length() {
        assert_eq!(cut(vec![0.0, 3.0, 4.0], Some(2)), [0.0, 5.0]);
        assert_eq!(cut(vec![3.0, 4.0], Some(2)), [3.0, 4.0]);
        assert_eq!(cut(vec![0.0, 4.0], Some(1)), [0.0]);
        assert_eq!(cut(vec![3.0, 4.0], None), [3.0, 4.0]);
    }

    #[test]
    fn inputs_are_texts_or_ids_or_lists_of_either() {
        let text = |text: &str| Input::Text(text.into());
        assert_eq!(inputs(json!("a")).expect("a text"), [text("a")]);
        assert_eq!(inputs(json!(["a", "b"])).expect("texts"), [text("a"), text("b")]);
        assert_eq!(inputs(json!([1, 2])).expect("ids"), [Input::Ids(vec![1, 2])]);
        assert_eq!(inputs(json!([[1], [2]])).expect("ids"), [Input::Ids(vec![1]), Input::Ids(vec![2])]);
        let many = vec!["x"; MAX_INPUTS + 1];
        for wrong in [
            json!(3),
            json!([]),
            json!(""),
            json!(["a", 1]),
            json!([1, "a"]),
            json!([-1]),
            json!([[1.5]]),
            json!({}),
            json!(many),
        ] {
            let error = inputs(wrong.clone()).expect_err("wrong").body();
            assert_eq!(error["error"]["param"], "input", "{wrong}");
        }
    }
}
