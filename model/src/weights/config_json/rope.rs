//! The rotary parameters of a family's files.

use serde_json::Value;

use super::Keys;
use crate::position::RopeScaling;
use crate::weights::family::Family;

/// Rotary parameters in either spelling.
pub(super) struct Rope {
    pub theta: f64,
    pub scaling: Option<RopeScaling>,
    /// The part of a head that turns.
    pub part: Option<f64>,
    pub local_theta: Option<f64>,
}

impl Rope {
    /// Reads what a family's code reads. Two spellings side by side are refused, for versions differ in which they take.
    pub fn read(family: Family, keys: &Keys) -> Result<Self, String> {
        let (theta_key, part_key, default_theta) = match family {
            Family::GptNeoX => ("rotary_emb_base", "rotary_pct", 10_000.0),
            Family::Gemma3 => ("rope_theta", "partial_rotary_factor", 1_000_000.0),
            Family::SmolLm3 => ("rope_theta", "partial_rotary_factor", 2_000_000.0),
            _ => ("rope_theta", "partial_rotary_factor", 10_000.0),
        };
        let (theta, part) = (keys.number(theta_key)?, keys.number(part_key)?);
        let context = keys.size("max_position_embeddings")?;
        let mut rope = Self { theta: theta.unwrap_or(default_theta), scaling: None, part, local_theta: None };
        let (name, value) = match (keys.get("rope_parameters"), keys.get("rope_scaling")) {
            (None, None) => return Ok(rope),
            (Some(parameters), None) => ("rope_parameters", parameters),
            (None, Some(scaling)) => ("rope_scaling", scaling),
            (Some(_), Some(_)) => return Err("`rope_parameters` and `rope_scaling` are both there".into()),
        };
        let wrong = |why: &str| format!("`{name}` is {value}: {why}");
        let mut map = value.as_object().ok_or_else(|| wrong("must be an object"))?;
        if family == Family::Gemma3 && name == "rope_parameters" {
            let of = |kind: &str| map.get(kind).and_then(Value::as_object);
            let (Some(full), Some(local)) = (of("full_attention"), of("sliding_attention")) else {
                return Err(wrong("must have full_attention and sliding_attention"));
            };
            if local
                .iter()
                .any(|(key, value)| key != "rope_theta" && (key != "rope_type" || value != "default"))
            {
                return Err(wrong("sliding layers are read with rope_theta and rope_type default alone"));
            }
            rope.local_theta = local.get("rope_theta").and_then(Value::as_f64);
            map = full;
        }
        let number = |key: &str| match map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                value.as_f64().map(Some).ok_or_else(|| wrong(&format!("`{key}` must be a number")))
            }
        };
        let needed = |key: &str| number(key)?.ok_or_else(|| wrong(&format!("`{key}` is missing")));
        match (number("rope_theta")?, theta) {
            (Some(inside), Some(beside)) if inside != beside => {
                return Err(wrong(&format!("`{theta_key}` beside it is {beside}")));
            }
            (Some(inside), _) => rope.theta = inside,
            _ => {}
        }
        match (number("partial_rotary_factor")?, part) {
            (Some(inside), Some(beside)) if inside != beside => {
                return Err(wrong(&format!("`{part_key}` beside it is {beside}")));
            }
            (inside, beside) => rope.part = inside.or(beside),
        }
        let original = number("original_max_position_embeddings")?.map_or(context, |n| n as usize);
        let kind = match map.get("rope_type").or(map.get("type")) {
            None | Some(Value::Null) => "default",
            Some(value) => value.as_str().ok_or_else(|| wrong("the type must be a string"))?,
        };
        let known: &[&str] = match kind {
            "default" => &[],
            _ if family == Family::Phi3 => return Err(wrong("only default is read for phi3")),
            "linear" => &["factor"],
            "llama3" => &["factor", "low_freq_factor", "high_freq_factor"],
            "yarn" => &["factor", "beta_fast", "beta_slow", "attention_factor", "truncate"],
            _ => return Err(wrong("only default, linear, yarn and llama3 are read")),
        };
        let always =
            ["rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"];
        let is_unknown = |key: &str| !known.contains(&key) && !always.contains(&key);
        if let Some((key, _)) = map.iter().find(|(key, value)| !value.is_null() && is_unknown(key)) {
            return Err(wrong(&format!("`{key}` is not understood")));
        }
        rope.scaling = match kind {
            "linear" => Some(RopeScaling::Linear { factor: needed("factor")? }),
            "llama3" => Some(RopeScaling::Llama3 {
                factor: needed("factor")?,
                low_freq_factor: needed("low_freq_factor")?,
                high_freq_factor: needed("high_freq_factor")?,
                original_context: original,
            }),
            "yarn" => Some(RopeScaling::Yarn {
                factor: needed("factor")?,
                original_context: original,
                beta_fast: number("beta_fast")?.unwrap_or(32.0),
                beta_slow: number("beta_slow")?.unwrap_or(1.0),
                attention_factor: number("attention_factor")?,
                truncate: match map.get("truncate") {
                    None | Some(Value::Null) => true,
                    Some(value) => {
                        value.as_bool().ok_or_else(|| wrong("`truncate` must be true or false"))?
                    }
                },
            }),
            _ => None,
        };
        Ok(rope)
    }
}
