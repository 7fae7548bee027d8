//! The parameters' names in a GGUF, and how the numbers lie there.

use crate::config::Config;
use crate::weights::family::Family;
use crate::weights::names::{Form, Piece};

/// The tensors that a parameter is stored as, in order of rows; see [`names::pieces`](crate::weights::names::pieces).
pub(in crate::weights) fn pieces(path: &[&str], rows: usize, config: &Config, family: Family) -> Vec<Piece> {
    let one = |name: String| vec![Piece { name, rows, form: Form::Same }];
    let (layer, path) = match path {
        ["blocks", i, rest @ ..] => (format!("blk.{i}"), rest),
        _ => (String::new(), path),
    };
    match *path {
        ["embedding"] => one("token_embd.weight".into()),
        ["positions"] => one("position_embd.weight".into()),
        ["norm", kind] => one(format!("output_norm.{kind}")),
        ["head", kind] => one(format!("output.{kind}")),
        ["attention_norm", kind] => one(format!("{layer}.attn_norm.{kind}")),
        ["attention_out_norm", kind] => one(format!("{layer}.post_attention_norm.{kind}")),
        ["mlp_norm", kind] => one(format!("{layer}.ffn_norm.{kind}")),
        ["mlp_out_norm", kind] => one(format!("{layer}.post_ffw_norm.{kind}")),
        ["attention", norm @ ("q_norm" | "k_norm"), kind] => one(format!("{layer}.attn_{norm}.{kind}")),
        ["attention", "out", kind] => one(format!("{layer}.attn_output.{kind}")),
        ["attention", "qkv", kind] if is_fused(family) => one(format!("{layer}.attn_qkv.{kind}")),
        ["attention", "qkv", kind] => {
            let part = |name, n_head: usize, form| Piece {
                name: format!("{layer}.attn_{name}.{kind}"),
                rows: n_head * config.head_dim(),
                form,
            };
            let turned = |n_head| match turns_neighbours(family) {
                true => Form::PairsTogether { n_head },
                false => Form::Same,
            };
            let (n, n_kv) = (config.n_head, config.n_kv_head());
            vec![part("q", n, turned(n)), part("k", n_kv, turned(n_kv)), part("v", n_kv, Form::Same)]
        }
        ["mlp", "down", kind] => one(format!("{layer}.ffn_down.{kind}")),
        ["mlp", "up", kind] if config.mlp.is_gated() && family != Family::Phi3 => {
            let part =
                |name| Piece { name: format!("{layer}.ffn_{name}.{kind}"), rows: rows / 2, form: Form::Same };
            vec![part("gate"), part("up")]
        }
        ["mlp", "up", kind] => one(format!("{layer}.ffn_up.{kind}")),
        _ => panic!("no GGUF name for parameter `{}`", path.join(".")),
    }
}

/// Whether queries, keys and values are one tensor.
fn is_fused(family: Family) -> bool {
    matches!(family, Family::Gpt2 | Family::GptNeoX | Family::Phi3)
}

/// Whether llama.cpp turns an element with its neighbour, so that the rows of a head stand in another order.
fn turns_neighbours(family: Family) -> bool {
    matches!(family, Family::Llama | Family::Mistral | Family::SmolLm3)
}
