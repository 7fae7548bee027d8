//! The parameters' names in files.
//!
//! The names are LLaMA's in the Hugging Face layout, extended by the parts that LLaMA lacks (learned
//! positions, biases, an MLP without a gate). Fused projections are split into their parts, which lie
//! one below the other.

use crate::config::{Config, MlpKind};

/// A tensor in a file: the rows it takes of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Name in the file.
    pub name: String,
    /// Number of rows (of elements, for a vector).
    pub rows: usize,
}

/// The tensors that a parameter is stored as, in order of rows.
///
/// `path` is the parameter's place in [`Transformer`](crate::Transformer), for instance
/// `blocks.0.attention.qkv.weight`, and `rows` its first dimension.
///
/// # Panics
/// If there is no such parameter: the paths come from the module itself.
pub fn pieces(path: &str, rows: usize, config: &Config) -> Vec<Piece> {
    let one = |name: String| vec![Piece { name, rows }];
    match path.split('.').collect::<Vec<_>>()[..] {
        ["embedding"] => one("model.embed_tokens.weight".into()),
        ["positions"] => one("model.embed_positions.weight".into()),
        ["norm", kind] => one(format!("model.norm.{kind}")),
        ["head", kind] => one(format!("lm_head.{kind}")),
        ["blocks", i, "attention_norm", kind] => one(format!("model.layers.{i}.input_layernorm.{kind}")),
        ["blocks", i, "mlp_norm", kind] => one(format!("model.layers.{i}.post_attention_layernorm.{kind}")),
        ["blocks", i, "attention", "out", kind] => one(format!("model.layers.{i}.self_attn.o_proj.{kind}")),
        ["blocks", i, "mlp", "down", kind] => one(format!("model.layers.{i}.mlp.down_proj.{kind}")),
        ["blocks", i, "attention", "qkv", kind] => {
            let (q, kv) = (config.n_head * config.head_dim(), config.n_kv_head() * config.head_dim());
            let part =
                |name, rows| Piece { name: format!("model.layers.{i}.self_attn.{name}_proj.{kind}"), rows };
            vec![part("q", q), part("k", kv), part("v", kv)]
        }
        ["blocks", i, "mlp", "up", kind] if config.mlp == MlpKind::SwiGlu => {
            let part =
                |name| Piece { name: format!("model.layers.{i}.mlp.{name}_proj.{kind}"), rows: rows / 2 };
            vec![part("gate"), part("up")]
        }
        ["blocks", i, "mlp", "up", kind] => one(format!("model.layers.{i}.mlp.up_proj.{kind}")),
        _ => panic!("no file name for parameter `{path}`"),
    }
}
