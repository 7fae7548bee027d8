//! The `config.json` of an encoder.

use serde_json::{Value, json};

use super::{Keys, read_activation};
use crate::encoder::Config;

/// Reads the `config.json` of an encoder of the BERT class.
///
/// # Errors
/// The key and value that are not understood.
pub fn parse_encoder(text: &str) -> Result<Config, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let map = value.as_object().ok_or("not a JSON object")?;
    let keys = Keys { map, seen: Default::default() };
    match keys.text("model_type")? {
        Some("bert") => {}
        Some(other) => return Err(format!("`model_type` is \"{other}\": of encoders only bert is read")),
        None => return Err("key `model_type` is missing".into()),
    }
    keys.only("position_embedding_type", json!("absolute"))?;
    keys.only("is_decoder", json!(false))?;
    keys.only("add_cross_attention", json!(false))?;
    // Of the pooler, of training heads and of how the work is cut up: none changes the vectors of positions.
    for key in [
        "chunk_size_feed_forward",
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "tie_word_embeddings",
    ] {
        keys.get(key);
    }
    let config = Config {
        vocab_size: keys.size("vocab_size")?,
        n_layer: keys.size("num_hidden_layers")?,
        n_embd: keys.size("hidden_size")?,
        n_head: keys.size("num_attention_heads")?,
        n_ff: keys.size("intermediate_size")?,
        context: keys.size("max_position_embeddings")?,
        n_types: keys.size_if_there("type_vocab_size")?.unwrap_or(2),
        norm_eps: keys.number("layer_norm_eps")?.unwrap_or(1e-12),
        mlp: read_activation("hidden_act", keys.text("hidden_act")?.unwrap_or("gelu"))?,
    };
    keys.all_understood()?;
    // Checked before the width of a head is asked for, which divides by their number.
    if config.n_head == 0 {
        return Err("`num_attention_heads` is 0: must be at least 1".into());
    }
    config.validate().map_err(|e| e.to_string())?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"model_type": "bert", "vocab_size": 61, "num_hidden_layers": 2, "hidden_size": 24,
        "num_attention_heads": 4, "intermediate_size": 32, "max_position_embeddings": 40}"#;

    #[test]
    fn what_is_not_understood_is_named() {
        let config = parse_encoder(GOOD).expect("read");
        assert_eq!((config.n_types, config.norm_eps), (2, 1e-12));
        for (from, to, named) in [
            ("\"bert\"", "\"roberta\"", "roberta"),
            ("\"model_type\": \"bert\",", "", "model_type"),
            ("\"hidden_size\": 24,", "", "hidden_size"),
            ("\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "num_attention_heads"),
            ("\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "n_head"),
            ("{", "{\"type_vocab_size\": 0,", "n_types"),
            ("{", "{\"hidden_act\": \"swish\",", "swish"),
            ("{", "{\"is_decoder\": true,", "is_decoder"),
            ("{", "{\"add_cross_attention\": true,", "add_cross_attention"),
            ("{", "{\"position_embedding_type\": \"relative_key\",", "relative_key"),
            ("{", "{\"quantization_config\": {},", "quantization_config"),
        ] {
            let bad = GOOD.replacen(from, to, 1);
            assert_ne!(bad, GOOD, "{from}");
            let why = parse_encoder(&bad).unwrap_err();
            assert!(why.contains(named), "{why}");
        }
    }
}
