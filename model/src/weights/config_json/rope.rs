//! The rotary parameters of a family's files.

use serde_json::Value;

use super::Keys;
use crate::config::MAX_SIZE;
use crate::position::{RopeScaling, long_attention_factor};
use crate::weights::family::Family;

const LONGROPE: &[&str] = &["short_factor", "long_factor", "factor", "attention_factor"];

/// Rotary parameters in either spelling.
pub(super) struct Rope {
    pub theta: f64,
    pub scaling: Option<RopeScaling>,
    /// The part of a head that turns.
    pub part: Option<f64>,
    pub local_theta: Option<f64>,
    /// Positions that the model has: those of its training, or more where only a factor says how many.
    pub context: usize,
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
        let mut rope =
            Self { theta: theta.unwrap_or(default_theta), scaling: None, part, local_theta: None, context };
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
        let key = "original_max_position_embeddings";
        // Phi-3's code has a default beside the map.
        let beside = keys.size_if_there(key)?.or((family == Family::Phi3).then_some(4096));
        let original = || match (number(key)?.map(|n| n as usize), beside) {
            (Some(inside), Some(beside)) if inside != beside => {
                Err(wrong(&format!("`{key}` beside it is {beside}")))
            }
            (inside, beside) => Ok(inside.or(beside).unwrap_or(context)),
        };
        let factors = |key: &str| {
            let list = map.get(key).and_then(Value::as_array);
            let numbers = list.and_then(|list| list.iter().map(Value::as_f64).collect());
            numbers.ok_or_else(|| wrong(&format!("`{key}` must be a list of numbers")))
        };
        let kind = match map.get("rope_type").or(map.get("type")) {
            None | Some(Value::Null) => "default",
            Some(value) => value.as_str().ok_or_else(|| wrong("the type must be a string"))?,
        };
        let known: &[&str] = match kind {
            "default" => &[],
            // Names that Phi-3's first files have.
            "longrope" | "su" | "yarn" if family == Family::Phi3 => LONGROPE,
            _ if family == Family::Phi3 => return Err(wrong("only default and longrope are read for phi3")),
            "longrope" => LONGROPE,
            "linear" | "dynamic" => &["factor"],
            "llama3" => &["factor", "low_freq_factor", "high_freq_factor"],
            "yarn" => &["factor", "beta_fast", "beta_slow", "attention_factor", "truncate"],
            _ => return Err(wrong("only default, linear, dynamic, yarn, longrope and llama3 are read")),
        };
        let always =
            ["rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"];
        let is_unknown = |key: &str| !known.contains(&key) && !always.contains(&key);
        if let Some((key, _)) = map.iter().find(|(key, value)| !value.is_null() && is_unknown(key)) {
            return Err(wrong(&format!("`{key}` is not understood")));
        }
        rope.scaling = match kind {
            "longrope" | "su" | "yarn" if known == LONGROPE => {
                let original_context = original()?;
                let by_factor =
                    number("factor")?.map(|factor| long_attention_factor(factor, original_context as f64));
                Some(RopeScaling::LongRope {
                    short_factor: factors("short_factor")?,
                    long_factor: factors("long_factor")?,
                    original_context,
                    attention_factor: number("attention_factor")?.or(by_factor),
                })
            }
            "dynamic" => {
                let factor = needed("factor")?;
                // Their code has no end; here it is where the factor says how long the context may get.
                rope.context = ((context as f64 * factor.max(1.0)) as usize).min(MAX_SIZE);
                Some(RopeScaling::Dynamic { factor, original_context: context })
            }
            "linear" => Some(RopeScaling::Linear { factor: needed("factor")? }),
            "llama3" => Some(RopeScaling::Llama3 {
                factor: needed("factor")?,
                low_freq_factor: needed("low_freq_factor")?,
                high_freq_factor: needed("high_freq_factor")?,
                original_context: original()?,
            }),
            "yarn" => Some(RopeScaling::Yarn {
                factor: needed("factor")?,
                original_context: original()?,
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
