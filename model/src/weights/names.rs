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
    /// Where the tensor has the same of all experts.
    pub expert: Option<Expert>,
}

/// A tensor of several experts is `[n, rows, …]`; of this one it has the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expert {
    /// Which.
    pub idx: usize,
    /// Of how many.
    pub n: usize,
}

impl Piece {
    /// A tensor of its own.
    pub fn new(name: String, rows: usize, form: Form) -> Self {
        Self { name, rows, form, expert: None }
    }
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
    let one = |name: String| vec![Piece::new(name, rows, form)];
    let piece = |name: String, rows| Piece::new(name, rows, form);
    let (layer, experts, path) = match path {
        ["blocks", i, rest @ ..] => {
            let experts = i.parse().ok().and_then(|i| config.experts(i));
            (format!("model.layers.{i}"), experts, rest)
        }
        _ => (String::new(), None, path),
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
            let part = |name, rows| piece(format!("{layer}.self_attn.{name}_proj.{kind}"), rows);
            vec![part("q", q), part("k", kv), part("v", kv)]
        }
        ["attention", "sinks"] => one(format!("{layer}.self_attn.sinks")),
        ["mlp", "router", kind] => one(format!("{layer}.{}.gate.{kind}", sparse(family))),
        ["mlp", part @ ("up" | "down"), kind] if experts.is_some() => {
            let n = experts.map_or(1, |experts| experts.n);
            let names: &[&str] = match (part, family) {
                ("up", Family::Mixtral) => &["w1", "w3"],
                ("up", _) if config.mlp.is_gated() => &["gate_proj", "up_proj"],
                ("up", _) => &["up_proj"],
                (_, Family::Mixtral) => &["w2"],
                _ => &["down_proj"],
            };
            let layer = format!("{layer}.{}", sparse(family));
            let all = (0..n).flat_map(|expert| names.iter().map(move |name| (expert, name)));
            let rows = rows / n / names.len();
            all.map(|(expert, name)| piece(format!("{layer}.experts.{expert}.{name}.{kind}"), rows)).collect()
        }
        ["mlp", "down", kind] => one(format!("{layer}.mlp.down_proj.{kind}")),
        ["mlp", "up", kind] if family == Family::Phi3 => one(format!("{layer}.mlp.gate_up_proj.{kind}")),
        ["mlp", "up", kind] if config.mlp.is_gated() => {
            let part = |name| piece(format!("{layer}.mlp.{name}_proj.{kind}"), rows / 2);
            vec![part("gate"), part("up")]
        }
        ["mlp", "up", kind] => one(format!("{layer}.mlp.up_proj.{kind}")),
        _ => panic!("no file name for parameter `{}`", path.join(".")),
    }
}

/// The part of a layer that has the experts.
fn sparse(family: Family) -> &'static str {
    if family == Family::Mixtral { "block_sparse_moe" } else { "mlp" }
}

/// The same for the matrices of experts where transformers saves a model as it has it in memory: one tensor of all.
pub fn stacked(path: &str, rows: usize, config: &Config) -> Option<Vec<Piece>> {
    let path: Vec<&str> = path.split('.').collect();
    let ["blocks", i, "mlp", part @ ("up" | "down"), "weight"] = path[..] else { return None };
    let n = config.experts(i.parse().ok()?)?.n;
    let part = if part == "up" { "gate_up_proj" } else { "down_proj" };
    let name = format!("model.layers.{i}.mlp.experts.{part}");
    let piece =
        |idx| Piece { expert: Some(Expert { idx, n }), ..Piece::new(name.clone(), rows / n, Form::Same) };
    Some((0..n).map(piece).collect())
}

/// What transformers calls the tensor where it saves a model as it has it in memory.
pub fn in_memory(name: &str) -> String {
    name.replace(&format!(".{}.", sparse(Family::Mixtral)), ".mlp.")
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
    Piece::new(name, rows, form)
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
    Piece::new(name, rows, form)
}
