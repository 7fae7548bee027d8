//! The parameters' names in a GGUF, and how the numbers lie there.

use crate::config::Config;
use crate::weights::family::Family;
use crate::weights::names::{Expert, Form, Piece};

/// The tensors that a parameter is stored as, in order of rows; see [`names::pieces`](crate::weights::names::pieces).
pub(in crate::weights) fn pieces(path: &[&str], rows: usize, config: &Config, family: Family) -> Vec<Piece> {
    let one = |name: String| vec![Piece::new(name, rows, Form::Same)];
    let (layer, experts, path) = match path {
        ["blocks", i, rest @ ..] => {
            let experts = i.parse().ok().and_then(|i| config.experts(i));
            (format!("blk.{i}"), experts, rest)
        }
        _ => (String::new(), None, path),
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
            let part = |name, n_head: usize, form| {
                Piece::new(format!("{layer}.attn_{name}.{kind}"), n_head * config.head_dim(), form)
            };
            let turned = |n_head| match turns_neighbours(family) {
                true => Form::PairsTogether { n_head },
                false => Form::Same,
            };
            let (n, n_kv) = (config.n_head, config.n_kv_head());
            vec![part("q", n, turned(n)), part("k", n_kv, turned(n_kv)), part("v", n_kv, Form::Same)]
        }
        ["mlp", "router", kind] => one(format!("{layer}.ffn_gate_inp.{kind}")),
        ["mlp", part @ ("up" | "down"), kind] if experts.is_some() => {
            let n = experts.map_or(1, |experts| experts.n);
            let names: &[&str] = match part {
                "up" if config.mlp.is_gated() => &["gate", "up"],
                _ => &[part],
            };
            let rows = rows / n / names.len();
            let piece = |(idx, name)| {
                let piece = Piece::new(format!("{layer}.ffn_{name}_exps.{kind}"), rows, Form::Same);
                Piece { expert: Some(Expert { idx, n }), ..piece }
            };
            (0..n).flat_map(|idx| names.iter().map(move |name| (idx, name))).map(piece).collect()
        }
        ["mlp", "down", kind] => one(format!("{layer}.ffn_down.{kind}")),
        ["mlp", "up", kind] if config.mlp.is_gated() && family != Family::Phi3 => {
            let part = |name| Piece::new(format!("{layer}.ffn_{name}.{kind}"), rows / 2, Form::Same);
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
pub(super) fn turns_neighbours(family: Family) -> bool {
    matches!(family, Family::Llama | Family::Mistral | Family::Mixtral | Family::SmolLm3)
}
