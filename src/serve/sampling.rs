//! The fields of a request that say how tokens are picked: OpenAI's, and those that llama.cpp's and vLLM's servers add.

use std::collections::BTreeMap;

use infer::Sampling;
use infer::sampler::dry::{self, Dry};
use infer::sampler::mirostat::{Mirostat, Version};

use tokenizer::Tokenizer;

use super::error::{ApiError, shortened};
use super::fields::Fields;

/// As in OpenAI's interface: far above it, any model's text is noise.
const MAX_TEMPERATURE: f32 = 2.0;

/// Entries of `logit_bias`.
const MAX_BIASES: usize = 1024;

/// Strings of `dry_sequence_breakers`, and bytes of each: every one is looked for in the whole vocabulary.
const MAX_BREAKERS: usize = 16;
const MAX_BREAKER_LEN: usize = 64;

/// Takes them. Without a seed, answers differ.
///
/// # Errors
/// If one has a value that cannot be.
pub fn take(fields: &mut Fields, tokenizer: &Tokenizer) -> Result<Sampling, ApiError> {
    let default = Sampling::default();
    let sampling = Sampling {
        temperature: fields.take("temperature")?.unwrap_or(default.temperature),
        top_p: fields.take("top_p")?.unwrap_or(default.top_p),
        top_k: fields.whole("top_k", 0..=u32::MAX.into())?.map_or(default.top_k, |k| k as usize),
        min_p: fields.take("min_p")?.unwrap_or(default.min_p),
        typical_p: fields.take("typical_p")?.unwrap_or(default.typical_p),
        xtc_probability: fields.take("xtc_probability")?.unwrap_or(default.xtc_probability),
        xtc_threshold: fields.take("xtc_threshold")?.unwrap_or(default.xtc_threshold),
        repetition_penalty: fields.take("repetition_penalty")?.unwrap_or(default.repetition_penalty),
        presence_penalty: fields.take("presence_penalty")?.unwrap_or(default.presence_penalty),
        frequency_penalty: fields.take("frequency_penalty")?.unwrap_or(default.frequency_penalty),
        logit_bias: logit_bias(fields, tokenizer)?,
        dry: dry(fields, tokenizer)?,
        mirostat: mirostat(fields)?,
        seed: match fields.take::<i64>("seed")? {
            Some(seed) => seed as u64,
            None => super::answer::now_ns(),
        },
    };
    if sampling.temperature > MAX_TEMPERATURE {
        let why = format!("`temperature` is {}: must be 0 to {MAX_TEMPERATURE}", sampling.temperature);
        return Err(ApiError::invalid("temperature", why).coded("decimal_above_max_value"));
    }
    sampling.validate().map_err(|error| ApiError::invalid(error.key, error.to_string()))?;
    Ok(sampling)
}

/// An object of token ids and what is added to their logits.
fn logit_bias(fields: &mut Fields, tokenizer: &Tokenizer) -> Result<Vec<(u32, f32)>, ApiError> {
    let biases: BTreeMap<String, f32> = fields.take("logit_bias")?.unwrap_or_default();
    if biases.len() > MAX_BIASES {
        let message = format!("`logit_bias` has {} entries: at most {MAX_BIASES}", biases.len());
        return Err(ApiError::invalid("logit_bias", message));
    }
    let of = |(id, bias): (String, f32)| {
        let known = id.parse().ok().filter(|&id: &u32| (id as usize) < tokenizer.vocab_size());
        known.map(|id| (id, bias)).ok_or_else(|| {
            let (id, n) = (shortened(&id), tokenizer.vocab_size());
            ApiError::invalid("logit_bias", format!("`logit_bias`: `{id}` is none of the {n} token ids"))
        })
    };
    biases.into_iter().map(of).collect()
}

/// Named as llama.cpp's server has them: of `dry_penalty_last_n`, -1 is the whole text and 0 none.
fn dry(fields: &mut Fields, tokenizer: &Tokenizer) -> Result<Dry, ApiError> {
    let default = Dry::default();
    let multiplier = fields.take("dry_multiplier")?.unwrap_or(default.multiplier);
    let base = fields.take("dry_base")?.unwrap_or(default.base);
    let allowed = fields.whole("dry_allowed_length", 0..=u32::MAX.into())?;
    let allowed_length = allowed.map_or(default.allowed_length, |n| n as usize);
    let name = "dry_penalty_last_n";
    let range = match fields.take::<i64>(name)?.unwrap_or(-1) {
        -1 => None,
        n => Some(usize::try_from(n).map_err(|_| {
            ApiError::invalid(name, format!("`{name}` is {n}: must be -1 for the whole text, or 0 or more"))
        })?),
    };
    let name = "dry_sequence_breakers";
    let strings: Option<Vec<String>> = fields.take(name)?;
    let is_long = |strings: &Vec<String>| {
        strings.len() > MAX_BREAKERS || strings.iter().any(|string| string.len() > MAX_BREAKER_LEN)
    };
    if strings.as_ref().is_some_and(is_long) {
        let message = format!("`{name}`: at most {MAX_BREAKERS} strings of up to {MAX_BREAKER_LEN} bytes");
        return Err(ApiError::invalid(name, message));
    }
    let breakers = match strings {
        _ if multiplier == 0.0 => Vec::new(),
        Some(strings) => dry::breakers(tokenizer, &strings),
        None => dry::breakers(tokenizer, &dry::BREAKERS),
    };
    Ok(Dry { multiplier, base, allowed_length, range, breakers })
}

/// `mirostat`: 0 for none, 1 or 2.
fn mirostat(fields: &mut Fields) -> Result<Option<Mirostat>, ApiError> {
    let default = Mirostat::default();
    let version = fields.whole("mirostat", 0..=2)?.unwrap_or(0);
    let tau = fields.take("mirostat_tau")?.unwrap_or(default.tau);
    let eta = fields.take("mirostat_eta")?.unwrap_or(default.eta);
    let version = match version {
        0 => return Ok(None),
        1 => Version::V1,
        _ => Version::V2,
    };
    Ok(Some(Mirostat { version, tau, eta }))
}

/// The value of a completion's `best_of`: how many are generated, of which the best `n` are the answer.
///
/// # Errors
/// If it is less than `n`, more than `most`, or there is a stream, which cannot wait for the best.
pub fn best_of(fields: &mut Fields, n: usize, most: u64, stream: bool) -> Result<usize, ApiError> {
    let Some(best_of) = fields.whole("best_of", n as u64..=most)? else { return Ok(n) };
    if stream && best_of as usize > n {
        let message =
            "`best_of` more than `n` cannot be streamed: all are generated before the best is known";
        return Err(ApiError::invalid("best_of", message));
    }
    Ok(best_of as usize)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn letters() -> Tokenizer {
        let json = br#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0,"b":1,"\n":2},"merges":[]}}"#;
        Tokenizer::from_json(json).expect("a vocabulary")
    }

    fn taken(value: Value) -> Result<Sampling, ApiError> {
        take(&mut Fields::read(value.to_string().as_bytes()).expect("an object"), &letters())
    }

    #[test]
    fn all_fields_arrive() {
        let request = json!({
            "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "typical_p": 0.8, "seed": -1,
            "xtc_probability": 0.25, "xtc_threshold": 0.2, "repetition_penalty": 1.5, "presence_penalty": -2,
            "frequency_penalty": 1.5, "logit_bias": { "1": -100, "0": 2.5 }, "dry_multiplier": 0.5, "dry_base": 3,
            "dry_allowed_length": 4, "dry_penalty_last_n": 64, "dry_sequence_breakers": ["b"], "mirostat": 1,
            "mirostat_tau": 3, "mirostat_eta": 0.5,
        });
        let dry =
            Dry { multiplier: 0.5, base: 3.0, allowed_length: 4, range: Some(64), breakers: vec![vec![1]] };
        let expected = Sampling {
            temperature: 0.5,
            top_k: 7,
            top_p: 0.9,
            min_p: 0.1,
            typical_p: 0.8,
            xtc_probability: 0.25,
            xtc_threshold: 0.2,
            repetition_penalty: 1.5,
            presence_penalty: -2.0,
            frequency_penalty: 1.5,
            logit_bias: vec![(0, 2.5), (1, -100.0)],
            dry,
            mirostat: Some(Mirostat { version: Version::V1, tau: 3.0, eta: 0.5 }),
            seed: u64::MAX,
        };
        assert_eq!(taken(request).expect("valid"), expected);
        let usual = taken(json!({ "dry_multiplier": 1, "mirostat": 2, "seed": 0 })).expect("valid");
        assert_eq!(usual.dry, Dry { multiplier: 1.0, breakers: vec![vec![2]], ..Dry::default() });
        assert_eq!(usual.mirostat, Some(Mirostat::default()));
        assert_eq!(taken(json!({ "seed": 0 })).expect("valid"), Sampling::default());
    }

    #[test]
    fn wrong_values_name_their_field() {
        for (name, value) in [
            ("temperature", json!(2.1)),
            ("temperature", json!(1e39)),
            ("typical_p", json!(0)),
            ("xtc_probability", json!(2)),
            ("presence_penalty", json!(2.5)),
            ("frequency_penalty", json!("x")),
            ("logit_bias", json!([1])),
            ("logit_bias", json!({ "3": 1 })),
            ("logit_bias", json!({ "a": 1 })),
            ("logit_bias", json!({ "1": 101 })),
            (
                "logit_bias",
                (0..2000).map(|i| (i.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into(),
            ),
            ("dry_multiplier", json!(-1)),
            ("dry_base", json!(0)),
            ("dry_allowed_length", json!(-1)),
            ("dry_penalty_last_n", json!(-2)),
            ("dry_sequence_breakers", json!("x")),
            ("dry_sequence_breakers", json!(vec!["x"; 17])),
            ("mirostat", json!(3)),
        ] {
            let error = taken(json!({ name: value })).expect_err("refused").body()["error"].clone();
            assert_eq!(error["param"], name, "{value}: {error}");
        }
        let error = taken(json!({ "mirostat": 2, "mirostat_tau": 0 })).expect_err("refused").body();
        assert_eq!(error["error"]["param"], "mirostat_tau");
    }

    #[test]
    fn the_best_are_at_least_those_that_are_shown() {
        let best = |value: Value, stream| {
            best_of(&mut Fields::read(value.to_string().as_bytes()).expect("an object"), 2, 8, stream)
        };
        assert_eq!(best(json!({}), true).expect("absent"), 2);
        assert_eq!(best(json!({ "best_of": 5 }), false).expect("valid"), 5);
        assert_eq!(best(json!({ "best_of": 2 }), true).expect("valid"), 2);
        for (value, stream) in [(1, false), (9, false), (3, true)] {
            let error = best(json!({ "best_of": value }), stream).expect_err("refused").body();
            assert_eq!(error["error"]["param"], "best_of");
        }
    }
}
