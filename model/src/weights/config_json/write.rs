//! A config as the files of a family have it.

use serde_json::{Value, json};

use super::parse;
use crate::config::{Config, Experts, LayerKind, MlpKind};
use crate::position::RopeScaling;
use crate::weights::family::Family;

/// The text of `config.json`.
pub fn write(config: &Config) -> String {
    let mut value = match family_of(config) {
        Family::Flint => json!({
            "architectures": [Family::Flint.architecture()],
            "model_type": Family::Flint.model_type(),
            "flint": config,
        }),
        family => to_json(family, config),
    };
    // Whether serde_json keeps an order of its own depends on who else uses it.
    value.sort_all_objects();
    serde_json::to_string_pretty(&value).expect("plain data") + "\n"
}

/// The family that a model is written as: the first whose files can say all of it.
pub fn family_of(config: &Config) -> Family {
    // The code of some families insists on it, though heads may be as wide as they like.
    let is_even = config.n_embd.is_multiple_of(config.n_head);
    let says_all = |family: &Family| {
        *family != Family::Flint
            && (is_even
                || matches!(family, Family::Mistral | Family::Qwen3 | Family::Mixtral | Family::Qwen3Moe))
            && parse(&to_json(*family, config).to_string()).is_ok_and(|(_, read)| are_same(&read, config))
    };
    // LLaMA before the families that would do as well.
    [Family::Llama].into_iter().chain(Family::ALL).find(says_all).unwrap_or(Family::Flint)
}

/// Whether two configs are of the same model.
pub fn are_same(a: &Config, b: &Config) -> bool {
    spelled_out(a) == spelled_out(b)
}

/// The config with its defaults filled in, so that equal models have equal ones. Dropout acts in training only.
pub(super) fn spelled_out(config: &Config) -> Config {
    let scale = config.attention_scale.unwrap_or((config.head_dim() as f64).powf(-0.5));
    Config {
        n_kv_head: Some(config.n_kv_head()),
        head_dim: Some(config.head_dim()),
        // The width of single parts, if any layer has one.
        n_ff: Some((0..config.n_layer).find(|&i| config.experts(i).is_none()).map_or(0, |_| config.n_ff())),
        rotary_dim: Some(config.rotary_dim()),
        layers: (0..config.n_layer).map(|i| config.layer(i)).collect(),
        qkv_bias: Some(config.qkv_bias()),
        out_bias: Some(config.out_bias()),
        experts: config.experts.as_ref().map(|experts| Experts {
            n_ff: Some(experts.n_ff.unwrap_or(config.n_ff())),
            dense_layers: (0..config.n_layer).filter(|&i| config.experts(i).is_none()).collect(),
            ..experts.clone()
        }),
        rope_scaling: config.rope_scaling.clone().map(|scaling| rounded(scaling, config.context)),
        rope_theta: round(config.rope_theta),
        local_rope_theta: config.local_rope_theta.map(round),
        norm_eps: round(config.norm_eps),
        // Files have its inverse square; what counts is the number that scores are multiplied by.
        attention_scale: Some(round(scale)),
        attention_softcap: config.attention_softcap.map(round),
        logit_softcap: config.logit_softcap.map(round),
        embedding_scale: config.embedding_scale.map(round),
        dropout: 0.0,
        ..config.clone()
    }
}

/// As exact as what the model computes with: serde_json reads some numbers as their neighbours, as do the programs that use
/// it, such as Hugging Face's.
fn round(x: f64) -> f64 {
    f64::from(x as f32)
}

/// The scaling with numbers as exact as tables are, and the default spelled out.
fn rounded(scaling: RopeScaling, context: usize) -> RopeScaling {
    let usual = scaling.attention_factor(context);
    match scaling {
        RopeScaling::LongRope { short_factor, long_factor, original_context, attention_factor } => {
            let [short_factor, long_factor] =
                [short_factor, long_factor].map(|list| list.into_iter().map(round).collect());
            let attention_factor = Some(round(attention_factor.unwrap_or(usual)));
            RopeScaling::LongRope { short_factor, long_factor, original_context, attention_factor }
        }
        other => other,
    }
}

/// The config as files of a family have it, as far as they can say it.
fn to_json(family: Family, config: &Config) -> Value {
    let mut map = match family {
        Family::Gpt2 => json!({
            "vocab_size": config.vocab_size,
            "n_positions": config.context,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.n_ff(),
            "activation_function": activation(config.mlp),
            "layer_norm_epsilon": config.norm_eps,
        }),
        _ => json!({
            "vocab_size": config.vocab_size,
            "hidden_size": config.n_embd,
            "intermediate_size": config.n_ff(),
            "num_hidden_layers": config.n_layer,
            "num_attention_heads": config.n_head,
            "max_position_embeddings": match &config.rope_scaling {
                Some(RopeScaling::Dynamic { original_context, .. }) => *original_context,
                _ => config.context,
            },
            "rope_scaling": config.rope_scaling.as_ref().map(rope_scaling),
            "hidden_act": activation(config.mlp),
        }),
    };
    let part = part_of(config.rotary_dim(), config.head_dim());
    let more = match family {
        Family::Gpt2 => json!({}),
        Family::GptNeoX => json!({
            "layer_norm_eps": config.norm_eps,
            "use_parallel_residual": config.parallel_residual,
            "attention_bias": config.qkv_bias(),
            "rotary_pct": part,
            "rotary_emb_base": config.rope_theta,
        }),
        _ => json!({
            "rope_theta": config.rope_theta,
            "num_key_value_heads": config.n_kv_head(),
            "head_dim": config.head_dim(),
            "rms_norm_eps": config.norm_eps,
            // In Qwen2 not a choice.
            "attention_bias": family != Family::Qwen2 && config.qkv_bias(),
            "sliding_window": config.window,
        }),
    };
    let kinds: Vec<_> = (0..config.n_layer).map(|i| config.layer(i)).collect();
    let layer_types = kinds.iter().map(|kind| match kind {
        LayerKind::Sliding => "sliding_attention",
        LayerKind::Full | LayerKind::FullUnrotated => "full_attention",
    });
    let special = match family {
        Family::Gemma2 | Family::Gemma3 => json!({
            "hidden_activation": activation(config.mlp),
            // A whole number there; what is none is another model when it is read back.
            "query_pre_attn_scalar": config.attention_scale.map(|scale| scale.powi(-2).round() as u64),
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.logit_softcap,
            "rope_local_base_freq": config.local_rope_theta,
            // Their code wants one even where no layer slides.
            "sliding_window": config.window.unwrap_or(config.context),
            "layer_types": layer_types.collect::<Vec<_>>(),
        }),
        Family::Qwen2 | Family::Qwen3 => json!({
            "use_sliding_window": config.window.is_some(),
            "layer_types": layer_types.collect::<Vec<_>>(),
        }),
        Family::SmolLm3 => json!({
            "mlp_bias": config.bias,
            "use_sliding_window": config.window.is_some(),
            "layer_types": layer_types.collect::<Vec<_>>(),
            "no_rope_layers": kinds.iter().map(|&kind| u8::from(kind != LayerKind::FullUnrotated)).collect::<Vec<_>>(),
        }),
        Family::Llama => json!({ "mlp_bias": config.bias }),
        Family::Phi3 => json!({
            "partial_rotary_factor": part,
            "original_max_position_embeddings": match &config.rope_scaling {
                Some(RopeScaling::LongRope { original_context, .. }) => *original_context,
                _ => config.context,
            },
        }),
        Family::Mixtral => json!({
            "num_local_experts": config.experts.as_ref().map(|experts| experts.n),
            "num_experts_per_tok": config.experts.as_ref().map(|experts| experts.n_active),
        }),
        Family::Qwen3Moe => json!({
            "use_sliding_window": config.window.is_some(),
            "num_experts": config.experts.as_ref().map(|experts| experts.n),
            "num_experts_per_tok": config.experts.as_ref().map(|experts| experts.n_active),
            "moe_intermediate_size": config.experts.as_ref().map(|experts| experts.n_ff.unwrap_or(config.n_ff())),
            "norm_topk_prob": config.experts.as_ref().map(|experts| experts.normalise),
            "mlp_only_layers": (0..config.n_layer).filter(|&i| config.experts(i).is_none()).collect::<Vec<_>>(),
        }),
        _ => json!({}),
    };
    let always = json!({
        "architectures": [family.architecture()],
        "model_type": family.model_type(),
        "tie_word_embeddings": config.tie_embeddings,
        // Left out, they would be those of the family's first model, which a smaller vocabulary does not have.
        "bos_token_id": null,
        "eos_token_id": null,
        "pad_token_id": null,
        "torch_dtype": "float32",
    });
    if let Value::Object(map) = &mut map {
        for entries in [more, special, always] {
            let Value::Object(entries) = entries else { continue };
            map.extend(entries);
        }
    }
    map
}

/// The part that `n` is of `all`, such that `all` times it, cut off, is `n`.
fn part_of(n: usize, all: usize) -> f64 {
    let (n, all) = (n as f64, all as f64);
    if (n / all * all).trunc() == n { n / all } else { (n + 0.5) / all }
}

fn activation(mlp: MlpKind) -> &'static str {
    match mlp {
        MlpKind::SwiGlu | MlpKind::Silu => "silu",
        MlpKind::GeluTanh => "gelu_new",
        MlpKind::GeGluTanh => "gelu_pytorch_tanh",
        MlpKind::Gelu | MlpKind::GeGlu => "gelu",
        MlpKind::Relu | MlpKind::ReGlu => "relu",
        MlpKind::ReluSquared => "relu2",
    }
}

fn rope_scaling(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Ntk { factor } => json!({ "rope_type": "ntk", "factor": factor }),
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, truncate } => {
            json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": original_context,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "attention_factor": attention_factor,
                "truncate": truncate,
            })
        }
        RopeScaling::LongRope { short_factor, long_factor, original_context, attention_factor } => json!({
            "rope_type": "longrope",
            "short_factor": short_factor,
            "long_factor": long_factor,
            "original_max_position_embeddings": original_context,
            "attention_factor": attention_factor,
        }),
        RopeScaling::Dynamic { factor, .. } => json!({ "rope_type": "dynamic", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context,
        }),
    }
}
