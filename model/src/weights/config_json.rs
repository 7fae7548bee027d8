//! `config.json`: LLaMA's keys where the model is a LLaMA, so that other programs open it; Flint's own
//! otherwise.

use serde_json::{Map, Value, json};

use crate::config::{Config, MlpKind, NormKind, Position};

/// The text of `config.json`.
pub fn write(config: &Config) -> String {
    let value = if is_llama(config) {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": config.vocab_size,
            "hidden_size": config.n_embd,
            "intermediate_size": config.n_ff(),
            "num_hidden_layers": config.n_layer,
            "num_attention_heads": config.n_head,
            "num_key_value_heads": config.n_kv_head(),
            "head_dim": config.head_dim(),
            "max_position_embeddings": config.context,
            "rope_theta": config.rope_theta,
            "rms_norm_eps": config.norm_eps,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": config.tie_embeddings,
            "torch_dtype": "float32",
        })
    } else {
        json!({ "architectures": ["FlintForCausalLM"], "model_type": "flint", "flint": config })
    };
    serde_json::to_string_pretty(&value).expect("plain data") + "\n"
}

/// What LLaMA's code can run. Dropout acts in training only and is no obstacle.
fn is_llama(config: &Config) -> bool {
    config.position == Position::Rotary
        && config.norm == NormKind::RmsNorm
        && config.mlp == MlpKind::SwiGlu
        && !config.bias
}

/// Reads what [`write()`] writes, and LLaMA's own files as far as the architecture goes.
///
/// # Errors
/// The key and value that are not understood.
pub fn parse(text: &str) -> Result<Config, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let map = value.as_object().ok_or("not a JSON object")?;
    match map.get("model_type").and_then(Value::as_str) {
        Some("flint") => {
            let config = map.get("flint").ok_or("key `flint` is missing")?;
            serde_json::from_value(config.clone()).map_err(|e| format!("in `flint`: {e}"))
        }
        Some("llama") => llama(map),
        Some(other) => Err(format!("`model_type` is `{other}`: only `llama` and `flint` are read")),
        None => Err("key `model_type` is missing".into()),
    }
}

fn llama(map: &Map<String, Value>) -> Result<Config, String> {
    let size = |key: &str| match map.get(key) {
        Some(value) => {
            value.as_u64().map(|n| n as usize).ok_or(format!("`{key}` is {value}: must be a whole number"))
        }
        None => Err(format!("key `{key}` is missing")),
    };
    let number = |key: &str, default: f64| match map.get(key) {
        Some(value) => value.as_f64().ok_or(format!("`{key}` is {value}: must be a number")),
        None => Ok(default),
    };
    let must_be = |key: &str, wanted: Value| match map.get(key) {
        Some(value) if *value != wanted && !value.is_null() => {
            Err(format!("`{key}` is {value}: only {wanted} is read"))
        }
        _ => Ok(()),
    };
    must_be("hidden_act", json!("silu"))?;
    must_be("attention_bias", json!(false))?;
    must_be("mlp_bias", json!(false))?;
    must_be("rope_scaling", Value::Null)?;
    let config = Config {
        n_kv_head: map
            .contains_key("num_key_value_heads")
            .then(|| size("num_key_value_heads"))
            .transpose()?,
        n_ff: Some(size("intermediate_size")?),
        rope_theta: match map.get("rope_parameters") {
            Some(parameters) => rope_theta(parameters)?,
            None => number("rope_theta", 10_000.0)?,
        },
        norm_eps: number("rms_norm_eps", 1e-6)?,
        tie_embeddings: map.get("tie_word_embeddings").is_some_and(|v| v == &json!(true)),
        ..Config::new(
            size("vocab_size")?,
            size("num_hidden_layers")?,
            size("hidden_size")?,
            size("num_attention_heads")?,
            size("max_position_embeddings")?,
        )
    };
    // Checked before `head_dim` divides by the number of heads.
    config.validate().map_err(|e| e.to_string())?;
    must_be("head_dim", json!(config.head_dim()))?;
    Ok(config)
}

/// The base of the frequencies as newer files have it, beside the kind of scaling.
fn rope_theta(parameters: &Value) -> Result<f64, String> {
    match (&parameters["rope_type"], parameters["rope_theta"].as_f64()) {
        (Value::Null, Some(theta)) => Ok(theta),
        (Value::String(kind), Some(theta)) if kind == "default" => Ok(theta),
        _ => {
            Err(format!("`rope_parameters` is {parameters}: only `rope_theta` with the default type is read"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_read_back() {
        let llama = Config { n_kv_head: Some(2), n_ff: Some(96), ..Config::new(300, 2, 64, 4, 128) };
        assert!(write(&llama).contains("LlamaForCausalLM"));
        assert_eq!(parse(&write(&llama)), Ok(llama.clone()));
        let other =
            Config { bias: true, mlp: MlpKind::Gelu, position: Position::Learned, dropout: 0.1, ..llama };
        assert!(write(&other).contains("\"flint\""));
        assert_eq!(parse(&write(&other)), Ok(other));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let good = write(&Config::new(300, 2, 64, 4, 128));
        for (from, to, named) in [
            ("\"llama\"", "\"mamba\"", "mamba"),
            ("\"silu\"", "\"relu\"", "hidden_act"),
            ("\"hidden_size\": 64", "\"hidden_size\": -1", "hidden_size"),
            ("\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "n_head"),
            ("\"head_dim\": 16", "\"head_dim\": 32", "head_dim"),
            ("\"attention_bias\": false", "\"rope_scaling\": {\"factor\": 8}", "rope_scaling"),
            ("\"attention_bias\": false", "\"rope_parameters\": {\"rope_type\": \"yarn\"}", "yarn"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good, "{from}");
            let why = parse(&bad).unwrap_err();
            assert!(why.contains(named), "{why}");
        }
    }
}
