//! The parameters' names in files, and how the numbers lie there.
//!
//! Most families have LLaMA's names in the Hugging Face layout; Flint's own extends them by the parts that LLaMA lacks
//! (learned positions, an MLP without a gate). Fused projections are split into their parts, which lie one below the
//! other, unless the family fuses them too.

use super::family::Family;
use super::gguf;
use crate::config::{Config, NormPlace};

/// Whose names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Those of a family's files in the Hugging Face layout.
    HuggingFace(Family),
    /// Those of a family's GGUF files.
    Gguf(Family),
}

/// A tensor in a file: the rows it takes of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Name in the file.
    pub name: String,
    /// Number of rows (of elements, for a vector).
    pub rows: usize,
    /// How the file has the numbers.
    pub form: Form,
}

/// How the numbers of a tensor lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As here.
    Same,
    /// Rows as columns (GPT-2).
    Transposed,
    /// Less one (Gemma's gains).
    LessOne,
    /// For each head its queries, keys and values, where here are all queries, all keys, all values (GPT-NeoX).
    ByHead {
        /// Number of heads.
        n_head: usize,
    },
    /// In each head the elements that turn together stand side by side, where here they are half a head apart (GGUF
    /// files of LLaMA).
    PairsTogether {
        /// Number of heads.
        n_head: usize,
    },
}

/// The tensors that a parameter is stored as, in order of rows.
///
/// `path` is the parameter's place in [`Transformer`](crate::Transformer), for instance
/// `blocks.0.attention.qkv.weight`, and `rows` its first dimension.
///
/// # Panics
/// If there is no such parameter: the paths come from the module itself.
pub fn pieces(path: &str, rows: usize, config: &Config, layout: Layout) -> Vec<Piece> {
    let path: Vec<&str> = path.split('.').collect();
    match layout {
        Layout::Gguf(family) => gguf::pieces(&path, rows, config, family),
        Layout::HuggingFace(Family::Gpt2) => vec![gpt2(&path, rows)],
        Layout::HuggingFace(Family::GptNeoX) => vec![gpt_neox(&path, rows, config)],
        Layout::HuggingFace(family) => llama_like(&path, rows, config, family),
    }
}

fn llama_like(path: &[&str], rows: usize, config: &Config, family: Family) -> Vec<Piece> {
    let is_gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let form =
        if is_gemma && path.iter().any(|part| part.ends_with("norm")) { Form::LessOne } else { Form::Same };
    let one = |name: String| vec![Piece { name, rows, form }];
    let part = |name: String, rows| Piece { name, rows, form };
    let (layer, path) = match path {
        ["blocks", i, rest @ ..] => (format!("model.layers.{i}"), rest),
        _ => (String::new(), path),
    };
    match *path {
        ["embedding"] => one("model.embed_tokens.weight".into()),
        ["positions"] => one("model.embed_positions.weight".into()),
        ["norm", kind] => one(format!("model.norm.{kind}")),
        ["head", kind] => one(format!("lm_head.{kind}")),
        ["attention_norm", kind] => one(format!("{layer}.input_layernorm.{kind}")),
        ["attention_out_norm", kind] => one(format!("{layer}.post_attention_layernorm.{kind}")),
        ["mlp_norm", kind] if config.norm_place == NormPlace::Both => {
            one(format!("{layer}.pre_feedforward_layernorm.{kind}"))
        }
        ["mlp_norm", kind] => one(format!("{layer}.post_attention_layernorm.{kind}")),
        ["mlp_out_norm", kind] => one(format!("{layer}.post_feedforward_layernorm.{kind}")),
        ["attention", norm @ ("q_norm" | "k_norm"), kind] => one(format!("{layer}.self_attn.{norm}.{kind}")),
        ["attention", "out", kind] => one(format!("{layer}.self_attn.o_proj.{kind}")),
        ["attention", "qkv", kind] if family == Family::Phi3 => {
            one(format!("{layer}.self_attn.qkv_proj.{kind}"))
        }
        ["attention", "qkv", kind] => {
            let (q, kv) = (config.attention_width(), config.n_kv_head() * config.head_dim());
            let part = |name, rows| part(format!("{layer}.self_attn.{name}_proj.{kind}"), rows);
            vec![part("q", q), part("k", kv), part("v", kv)]
        }
        ["mlp", "down", kind] => one(format!("{layer}.mlp.down_proj.{kind}")),
        ["mlp", "up", kind] if family == Family::Phi3 => one(format!("{layer}.mlp.gate_up_proj.{kind}")),
        ["mlp", "up", kind] if config.mlp.is_gated() => {
            let part = |name| part(format!("{layer}.mlp.{name}_proj.{kind}"), rows / 2);
            vec![part("gate"), part("up")]
        }
        ["mlp", "up", kind] => one(format!("{layer}.mlp.up_proj.{kind}")),
        _ => panic!("no file name for parameter `{}`", path.join(".")),
    }
}

fn gpt2(path: &[&str], rows: usize) -> Piece {
    let (name, is_matrix) = match *path {
        ["embedding"] => ("transformer.wte.weight".into(), false),
        ["positions"] => ("transformer.wpe.weight".into(), false),
        ["norm", kind] => (format!("transformer.ln_f.{kind}"), false),
        ["head", kind] => (format!("lm_head.{kind}"), false),
        ["blocks", i, "attention_norm", kind] => (format!("transformer.h.{i}.ln_1.{kind}"), false),
        ["blocks", i, "mlp_norm", kind] => (format!("transformer.h.{i}.ln_2.{kind}"), false),
        ["blocks", i, "attention", "qkv", kind] => (format!("transformer.h.{i}.attn.c_attn.{kind}"), true),
        ["blocks", i, "attention", "out", kind] => (format!("transformer.h.{i}.attn.c_proj.{kind}"), true),
        ["blocks", i, "mlp", "up", kind] => (format!("transformer.h.{i}.mlp.c_fc.{kind}"), true),
        ["blocks", i, "mlp", "down", kind] => (format!("transformer.h.{i}.mlp.c_proj.{kind}"), true),
        _ => panic!("no file name for parameter `{}`", path.join(".")),
    };
    let form = if is_matrix && name.ends_with("weight") { Form::Transposed } else { Form::Same };
    Piece { name, rows, form }
}

fn gpt_neox(path: &[&str], rows: usize, config: &Config) -> Piece {
    let (layer, path) = match path {
        ["blocks", i, rest @ ..] => (format!("gpt_neox.layers.{i}"), rest),
        _ => (String::new(), path),
    };
    let name = match *path {
        ["embedding"] => "gpt_neox.embed_in.weight".into(),
        ["norm", kind] => format!("gpt_neox.final_layer_norm.{kind}"),
        ["head", kind] => format!("embed_out.{kind}"),
        ["attention_norm", kind] => format!("{layer}.input_layernorm.{kind}"),
        ["mlp_norm", kind] => format!("{layer}.post_attention_layernorm.{kind}"),
        ["attention", "qkv", kind] => format!("{layer}.attention.query_key_value.{kind}"),
        ["attention", "out", kind] => format!("{layer}.attention.dense.{kind}"),
        ["mlp", "up", kind] => format!("{layer}.mlp.dense_h_to_4h.{kind}"),
        ["mlp", "down", kind] => format!("{layer}.mlp.dense_4h_to_h.{kind}"),
        _ => panic!("no file name for parameter `{}`", path.join(".")),
    };
    let form = if path.contains(&"qkv") { Form::ByHead { n_head: config.n_head } } else { Form::Same };
    Piece { name, rows, form }
}
