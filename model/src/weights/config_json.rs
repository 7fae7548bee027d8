//! `config.json` of the families in [`Family`], as transformers reads and writes it, and Flint's own for models that are
//! of no family.
//!
//! A key that could change what a model computes is either understood or named in an error. Both spellings of rotary
//! parameters are read: `rope_theta` beside `rope_scaling`, and `rope_parameters`, which newer files have.

mod bert;
mod rope;
mod write;

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::compressed::{self, Scheme};
use super::family::Family;
use crate::config::{Config, Experts, LayerKind, MAX_SIZE, MlpKind, NormKind, NormPlace, Position, QkNorm};

pub use bert::parse_encoder;
pub use write::{are_same, family_of, write};

use rope::Rope;

/// Reads a `config.json`.
///
/// # Errors
/// The key and value that are not understood.
pub fn parse(text: &str) -> Result<(Family, Config), String> {
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let map = value.as_object().ok_or("not a JSON object")?;
    let model_type = map.get("model_type").and_then(Value::as_str).ok_or("key `model_type` is missing")?;
    if model_type == "bert" {
        return Err("`model_type` is \"bert\": this is an encoder, which `flint embed` reads".into());
    }
    let family = Family::of_model_type(model_type).ok_or_else(|| {
        let known: Vec<_> = Family::ALL.iter().map(|family| family.model_type()).collect();
        format!("`model_type` is \"{model_type}\": only {} are read", known.join(", "))
    })?;
    if family == Family::Flint {
        let config = map.get("flint").ok_or("key `flint` is missing")?;
        let config = serde_json::from_value(config.clone()).map_err(|e| format!("in `flint`: {e}"))?;
        return Ok((family, config));
    }
    let keys = Keys { map, seen: RefCell::default() };
    keys.only("is_encoder_decoder", json!(false))?;
    // What it says of the weights, whoever reads these asks for again.
    if let Some(said) = keys.get(compressed::KEY) {
        Scheme::parse(said)?;
    }
    let config = match family {
        Family::Gpt2 => gpt2(&keys)?,
        Family::GptNeoX => gpt_neox(&keys)?,
        _ => llama_like(family, &keys)?,
    };
    keys.all_understood()?;
    config.validate().map_err(|e| e.to_string())?;
    Ok((family, config))
}

/// Keys that transformers does not read for these families, or that do not change the logits: ids and defaults for
/// generating, dropout, initialisation, bookkeeping.
const WITHOUT_EFFECT: &[&str] = &[
    "_name_or_path",
    "_num_labels",
    "_sliding_window_pattern",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_sequence_length",
    "max_window_layers",
    "min_length",
    "model_type",
    "n_ctx",
    "n_special",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "original_max_position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "predict_special_tokens",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "reorder_and_upcast_attn",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "rope_interleaved",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sep_token_id",
    "sliding_window_pattern",
    "sliding_window_size",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// The keys of a config; remembers which were asked for. A value of null counts as absent.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    seen: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.seen.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn read<T>(
        &self,
        key: &'static str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| format!("`{key}` is {value}: must be {what}"))
    }

    fn size_if_there(&self, key: &'static str) -> Result<Option<usize>, String> {
        let bounded =
            |value: &Value| value.as_u64().and_then(|n| n.try_into().ok()).filter(|&n| n <= MAX_SIZE);
        self.read(key, "a whole number below 2^24", bounded)
    }

    fn size(&self, key: &'static str) -> Result<usize, String> {
        self.size_if_there(key)?.ok_or_else(|| format!("key `{key}` is missing"))
    }

    /// Refuses a file without the key, even if null: families differ in what they take then.
    fn is_there(&self, key: &'static str) -> Result<(), String> {
        if self.map.contains_key(key) { Ok(()) } else { Err(format!("key `{key}` is missing")) }
    }

    fn number(&self, key: &'static str) -> Result<Option<f64>, String> {
        self.read(key, "a number", Value::as_f64)
    }

    fn flag(&self, key: &'static str, default: bool) -> Result<bool, String> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// Refuses anything but this value, which is the default.
    fn only(&self, key: &'static str, wanted: Value) -> Result<(), String> {
        match self.get(key) {
            Some(value) if *value != wanted => Err(format!("`{key}` is {value}: only {wanted} is read")),
            _ => Ok(()),
        }
    }

    fn text(&self, key: &'static str) -> Result<Option<&'a str>, String> {
        self.read(key, "a string", Value::as_str)
    }

    fn all_understood(&self) -> Result<(), String> {
        let seen = self.seen.borrow();
        let unknown = |(key, value): &(&String, &Value)| {
            !seen.contains(key.as_str()) && !WITHOUT_EFFECT.contains(&key.as_str()) && !value.is_null()
        };
        match self.map.iter().find(unknown) {
            Some((key, value)) => Err(format!("`{key}` is {value}: this key is not understood")),
            None => Ok(()),
        }
    }
}

fn gpt2(keys: &Keys) -> Result<Config, String> {
    keys.only("add_cross_attention", json!(false))?;
    keys.only("scale_attn_weights", json!(true))?;
    keys.only("scale_attn_by_inverse_layer_idx", json!(false))?;
    let activation = keys.text("activation_function")?.unwrap_or("gelu_new");
    Ok(Config {
        n_ff: keys.size_if_there("n_inner")?,
        position: Position::Learned,
        norm: NormKind::LayerNorm,
        norm_eps: keys.number("layer_norm_epsilon")?.unwrap_or(1e-5),
        mlp: read_activation("activation_function", activation)?,
        bias: true,
        tie_embeddings: keys.flag("tie_word_embeddings", true)?,
        ..Config::new(
            keys.size("vocab_size")?,
            keys.size("n_layer")?,
            keys.size("n_embd")?,
            keys.size("n_head")?,
            keys.size("n_positions")?,
        )
    })
}

/// An MLP without a gate, by the name of its activation.
fn read_activation(key: &str, name: &str) -> Result<MlpKind, String> {
    match name {
        "gelu" => Ok(MlpKind::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(MlpKind::GeluTanh),
        "relu" => Ok(MlpKind::Relu),
        "silu" => Ok(MlpKind::Silu),
        other => Err(format!("`{key}` is \"{other}\": this activation is not read")),
    }
}

fn gpt_neox(keys: &Keys) -> Result<Config, String> {
    let attention_bias = Some(keys.flag("attention_bias", true)?).filter(|&bias| !bias);
    let mut config = Config {
        n_ff: Some(keys.size("intermediate_size")?),
        norm: NormKind::LayerNorm,
        norm_eps: keys.number("layer_norm_eps")?.unwrap_or(1e-5),
        parallel_residual: keys.flag("use_parallel_residual", true)?,
        mlp: read_activation("hidden_act", keys.text("hidden_act")?.unwrap_or("gelu"))?,
        bias: true,
        qkv_bias: attention_bias,
        out_bias: attention_bias,
        tie_embeddings: keys.flag("tie_word_embeddings", false)?,
        ..sizes(keys)?
    };
    let rope = Rope::read(Family::GptNeoX, keys)?;
    config.context = rope.context;
    config.rope_theta = rope.theta;
    config.rope_scaling = rope.scaling;
    config.rotary_dim = rotary_dim(&config, rope.part.unwrap_or(0.25))?;
    Ok(config)
}

/// The sizes that all families but GPT-2 name alike.
fn sizes(keys: &Keys) -> Result<Config, String> {
    let config = Config::new(
        keys.size("vocab_size")?,
        keys.size("num_hidden_layers")?,
        keys.size("hidden_size")?,
        keys.size("num_attention_heads")?,
        keys.size("max_position_embeddings")?,
    );
    // Checked before the width of a head is asked for, which divides by their number.
    if config.n_head == 0 {
        return Err("`num_attention_heads` is 0: must be at least 1".into());
    }
    Ok(config)
}

fn llama_like(family: Family, keys: &Keys) -> Result<Config, String> {
    let is_gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let mut config = Config {
        n_kv_head: keys.size_if_there("num_key_value_heads")?,
        head_dim: keys.size_if_there("head_dim")?,
        n_ff: Some(keys.size("intermediate_size")?),
        norm_eps: keys.number("rms_norm_eps")?.unwrap_or(match family {
            Family::Phi3 | Family::Olmo2 | Family::Mixtral => 1e-5,
            _ => 1e-6,
        }),
        mlp: gated_mlp(keys, is_gemma)?,
        tie_embeddings: keys.flag("tie_word_embeddings", is_gemma || family == Family::SmolLm3)?,
        ..sizes(keys)?
    };
    if !matches!(family, Family::Llama | Family::Phi3 | Family::Olmo2) {
        keys.is_there("num_key_value_heads")?;
    }
    if is_gemma || family == Family::Qwen3 {
        keys.is_there("head_dim")?;
    }
    // One name for what is the default keeps equal models equal.
    config.head_dim = config.head_dim.filter(|&width| width * config.n_head != config.n_embd);
    match family {
        Family::Mistral | Family::Mixtral | Family::Qwen2 | Family::Phi3 => {
            keys.only("attention_bias", json!(false))?;
        }
        _ => {
            let bias = keys.flag("attention_bias", false)?;
            config.bias =
                matches!(family, Family::Llama | Family::SmolLm3) && keys.flag("mlp_bias", false)?;
            let bias = Some(bias).filter(|&bias| bias != config.bias);
            (config.qkv_bias, config.out_bias) = (bias, bias);
        }
    }
    match family {
        Family::Qwen2 => {
            keys.only("use_mrope", json!(false))?;
            config.qkv_bias = Some(true);
        }
        Family::Qwen3 => config.qk_norm = Some(QkNorm::Head),
        Family::Phi3 => {
            keys.only("mlp_bias", json!(false))?;
            keys.only("lm_head_bias", json!(false))?;
            keys.only("full_attn_mod", json!(1))?;
            keys.only("interpolate_factor", json!(1))?;
        }
        Family::Mixtral => config.experts = Some(mixtral_experts(keys)?),
        Family::Qwen3Moe => {
            keys.only("qkv_bias", json!(false))?;
            keys.only("use_qk_norm", json!(true))?;
            keys.only("shared_expert_intermediate_size", json!(0))?;
            config.qk_norm = Some(QkNorm::Head);
            config.experts = qwen3_experts(config.n_layer, keys)?;
        }
        Family::Olmo2 => {
            config.qk_norm = Some(QkNorm::Whole);
            config.norm_place = NormPlace::Post;
        }
        Family::Gemma2 | Family::Gemma3 => {
            keys.only("use_bidirectional_attention", json!(false))?;
            config.qk_norm = (family == Family::Gemma3).then_some(QkNorm::Head);
            config.norm_place = NormPlace::Both;
            config.embedding_scale = Some((config.n_embd as f64).sqrt());
            config.attention_scale = Some(keys.number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5));
            let softcap = keys.number("attn_logit_softcapping")?;
            if family == Family::Gemma2 {
                keys.is_there("attn_logit_softcapping")?;
                keys.is_there("final_logit_softcapping")?;
                // Gemma 3's files have the key, its code caps no scores.
                config.attention_softcap = softcap;
            }
            config.logit_softcap = keys.number("final_logit_softcapping")?;
        }
        _ => {}
    }
    (config.window, config.layers) = layers(family, &config, keys)?;
    let rope = Rope::read(family, keys)?;
    config.context = rope.context;
    config.rope_theta = rope.theta;
    config.rope_scaling = rope.scaling;
    config.rotary_dim = match rope.part {
        Some(part) if family == Family::Phi3 => rotary_dim(&config, part)?,
        // Their code turns whole heads, whatever the file says.
        Some(part) if part != 1.0 => {
            return Err(format!(
                "`partial_rotary_factor` is {part}: {} turns whole heads",
                family.model_type()
            ));
        }
        _ => None,
    };
    if family == Family::Gemma3 {
        config.local_rope_theta =
            rope.local_theta.or(keys.number("rope_local_base_freq")?).or(Some(10_000.0));
    }
    Ok(config)
}

fn gated_mlp(keys: &Keys, is_gemma: bool) -> Result<MlpKind, String> {
    // Gemma's first files name an activation that its code never ran, and a second that it did.
    let plain = keys.text("hidden_act")?;
    let name = match is_gemma {
        true => keys.text("hidden_activation")?.unwrap_or("gelu_pytorch_tanh"),
        false => plain.unwrap_or("silu"),
    };
    match name {
        "silu" => Ok(MlpKind::SwiGlu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(MlpKind::GeGluTanh),
        "gelu" => Ok(MlpKind::GeGlu),
        "relu" => Ok(MlpKind::ReGlu),
        other => Err(format!(
            "the activation is \"{other}\": only silu, gelu, gelu_pytorch_tanh and relu are read"
        )),
    }
}

fn mixtral_experts(keys: &Keys) -> Result<Experts, String> {
    Ok(Experts {
        n: keys.size("num_local_experts")?,
        n_active: keys.size("num_experts_per_tok")?,
        n_ff: None,
        normalise: true,
        dense_layers: Vec::new(),
    })
}

/// Experts in every so many-th layer that is not listed as dense; none if that is no layer.
fn qwen3_experts(n_layer: usize, keys: &Keys) -> Result<Option<Experts>, String> {
    // Published files have the one name, newer versions of transformers write the other.
    let n = match (keys.size_if_there("num_experts")?, keys.size_if_there("num_local_experts")?) {
        (Some(n), Some(local)) if n != local => {
            return Err(format!("`num_experts` is {n} and `num_local_experts` is {local}"));
        }
        (n, local) => n.or(local).ok_or("key `num_experts` is missing")?,
    };
    let index = |value: &Value| value.as_u64().and_then(|i| usize::try_from(i).ok());
    let indices = |value: &Value| value.as_array()?.iter().map(index).collect::<Option<Vec<_>>>();
    let listed = keys.read("mlp_only_layers", "a list of layers", indices)?.unwrap_or_default();
    let step = keys.size_if_there("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err("`decoder_sparse_step` is 0: must be at least 1".into());
    }
    let is_dense = |i: &usize| n == 0 || listed.contains(i) || !(i + 1).is_multiple_of(step);
    let experts = Experts {
        n,
        n_active: keys.size("num_experts_per_tok")?,
        n_ff: Some(keys.size("moe_intermediate_size")?),
        normalise: keys.flag("norm_topk_prob", false)?,
        dense_layers: (0..n_layer).filter(is_dense).collect(),
    };
    Ok(Some(experts).filter(|experts| experts.dense_layers.len() < n_layer))
}

/// So many elements of a head turn; nothing if all do.
fn rotary_dim(config: &Config, part: f64) -> Result<Option<usize>, String> {
    if !(part > 0.0 && part <= 1.0) {
        return Err(format!("the part of a head that turns is {part}: must be above 0 and at most 1"));
    }
    let dim = (config.head_dim() as f64 * part) as usize;
    Ok(Some(dim).filter(|&dim| dim != config.head_dim()))
}

/// The window and what each layer sees.
fn layers(family: Family, config: &Config, keys: &Keys) -> Result<(Option<usize>, Vec<LayerKind>), String> {
    // Their code knows no windows: a file that has one is not understood.
    if matches!(family, Family::Llama | Family::Olmo2) {
        return Ok((None, Vec::new()));
    }
    let n_layer = config.n_layer;
    let switched = matches!(family, Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 | Family::Qwen3Moe);
    let is_on = !switched || keys.flag("use_sliding_window", false)?;
    let first_sliding = keys.size_if_there("max_window_layers")?;
    let window = keys.size_if_there("sliding_window")?.filter(|_| is_on);
    if is_on && !matches!(family, Family::Phi3 | Family::Mixtral) {
        keys.is_there("sliding_window")?;
    }
    let kind = |is_sliding| if is_sliding { LayerKind::Sliding } else { LayerKind::Full };
    let types = layer_types(keys)?;
    let by_family = |i: usize| match family {
        _ if window.is_none() => Ok(LayerKind::Full),
        Family::Gemma2 => Ok(kind(i.is_multiple_of(2))),
        Family::Gemma3 => {
            let pattern = keys.size_if_there("sliding_window_pattern")?.unwrap_or(6).max(1);
            Ok(kind(!(i + 1).is_multiple_of(pattern)))
        }
        Family::Qwen2 | Family::Qwen3 => match first_sliding {
            Some(first) => Ok(kind(i >= first)),
            None => Err("key `max_window_layers` is missing".to_owned()),
        },
        Family::SmolLm3 => Err("`use_sliding_window` is true: only with `layer_types`".to_owned()),
        _ => Ok(LayerKind::Sliding),
    };
    let mut kinds = match types {
        // Their code has one kind of layer, whatever the file says.
        Some(types)
            if matches!(family, Family::Mistral | Family::Phi3 | Family::Mixtral | Family::Qwen3Moe) =>
        {
            if types.iter().any(|&found| found != kind(window.is_some())) {
                return Err("`layer_types` and `sliding_window` contradict each other".into());
            }
            types
        }
        Some(types) => types,
        None => (0..n_layer).map(by_family).collect::<Result<_, _>>()?,
    };
    if kinds.len() != n_layer {
        return Err(format!("`layer_types` has {} entries for {n_layer} layers", kinds.len()));
    }
    if family == Family::SmolLm3 {
        unrotate(&mut kinds, keys)?;
    }
    if window.is_none() && kinds.contains(&LayerKind::Sliding) {
        return Err("`layer_types` has sliding_attention and `sliding_window` is missing".into());
    }
    let window = window.filter(|_| kinds.contains(&LayerKind::Sliding));
    let default = if window.is_some() { LayerKind::Sliding } else { LayerKind::Full };
    if kinds.iter().all(|&kind| kind == default) {
        kinds.clear();
    }
    Ok((window, kinds))
}

fn layer_types(keys: &Keys) -> Result<Option<Vec<LayerKind>>, String> {
    let read = |value: &Value| match value.as_str() {
        Some("full_attention") => Ok(LayerKind::Full),
        Some("sliding_attention") => Ok(LayerKind::Sliding),
        _ => Err(format!("`layer_types` has {value}: only full_attention and sliding_attention are read")),
    };
    match keys.get("layer_types") {
        Some(Value::Array(types)) => types.iter().map(read).collect::<Result<_, _>>().map(Some),
        Some(value) => Err(format!("`layer_types` is {value}: must be a list")),
        None => Ok(None),
    }
}

/// SmolLM3's layers without positions: those whose entry is 0, or each so many-th.
fn unrotate(kinds: &mut [LayerKind], keys: &Keys) -> Result<(), String> {
    let interval = keys.size_if_there("no_rope_layer_interval")?.unwrap_or(4).max(1);
    let turns: Vec<bool> = match keys.get("no_rope_layers") {
        Some(Value::Array(entries)) if entries.len() == kinds.len() => {
            entries.iter().map(|entry| *entry != json!(0)).collect()
        }
        Some(value) => {
            return Err(format!("`no_rope_layers` is {value}: must be a list of {} numbers", kinds.len()));
        }
        None => (0..kinds.len()).map(|i| !(i + 1).is_multiple_of(interval)).collect(),
    };
    for (kind, _) in kinds.iter_mut().zip(turns).filter(|(_, turns)| !turns) {
        if *kind == LayerKind::Sliding {
            return Err(
                "`no_rope_layers` and `layer_types` have a sliding layer without positions: not read".into(),
            );
        }
        *kind = LayerKind::FullUnrotated;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::write::spelled_out;
    use super::*;
    use crate::position::RopeScaling;

    fn llama() -> Config {
        Config { n_kv_head: Some(2), n_ff: Some(96), ..Config::new(300, 2, 64, 4, 128) }
    }

    #[test]
    fn what_is_written_reads_back() {
        let gpt2 = Config {
            bias: true,
            mlp: MlpKind::GeluTanh,
            position: Position::Learned,
            norm: NormKind::LayerNorm,
            ..Config::new(300, 2, 64, 4, 128)
        };
        let experts = |n_ff, normalise, dense_layers| {
            Some(Experts { n: 4, n_active: 2, n_ff, normalise, dense_layers })
        };
        let qwen3_moe =
            Config { qk_norm: Some(QkNorm::Head), experts: experts(Some(24), false, vec![]), ..llama() };
        let longrope = RopeScaling::LongRope {
            short_factor: vec![1.0, 1.0, 1.1, 1.3],
            // A parser that is not exact loses their last bits.
            long_factor: vec![1.0, 2.0, 3.35114323299776, 1.0954451150103321],
            original_context: 32,
            attention_factor: None,
        };
        let gemma2 = Config {
            norm_place: NormPlace::Both,
            mlp: MlpKind::GeGluTanh,
            embedding_scale: Some(8.0),
            attention_scale: Some(0.25),
            attention_softcap: Some(50.0),
            logit_softcap: Some(30.0),
            ..llama()
        };
        let dynamic = RopeScaling::Dynamic { factor: 4.0, original_context: 128 };
        let cases = [
            (Family::Llama, llama()),
            (Family::Gpt2, gpt2.clone()),
            (Family::Mistral, Config { window: Some(16), ..llama() }),
            (Family::Mistral, Config { window: Some(16), rope_theta: 1.088_888_888_888_887_9e18, ..llama() }),
            (Family::Qwen2, Config { qkv_bias: Some(true), ..llama() }),
            (Family::Qwen3, Config { qk_norm: Some(QkNorm::Head), head_dim: Some(24), ..llama() }),
            (Family::Olmo2, Config { qk_norm: Some(QkNorm::Whole), norm_place: NormPlace::Post, ..llama() }),
            (Family::Flint, Config { position: Position::Sinusoidal, ..llama() }),
            (Family::Flint, Config { mlp: MlpKind::ReluSquared, ..gpt2 }),
            (Family::Mixtral, Config { experts: experts(None, true, vec![]), ..llama() }),
            (Family::Qwen3Moe, qwen3_moe.clone()),
            (Family::Qwen3Moe, Config { experts: experts(None, true, vec![1]), ..qwen3_moe }),
            (Family::Flint, Config { attention_sinks: true, ..llama() }),
            (Family::Flint, Config { experts: experts(Some(32), true, vec![]), ..llama() }),
            (Family::Llama, Config { qkv_bias: Some(true), out_bias: Some(true), ..llama() }),
            (Family::Phi3, Config { rotary_dim: Some(8), rope_scaling: Some(longrope), ..llama() }),
            (Family::Llama, Config { context: 512, rope_scaling: Some(dynamic.clone()), ..llama() }),
            (Family::Flint, Config { context: 500, rope_scaling: Some(dynamic), ..llama() }),
            (Family::SmolLm3, Config { layers: vec![LayerKind::Full, LayerKind::FullUnrotated], ..llama() }),
            (Family::Gemma2, gemma2),
        ];
        for (family, config) in cases {
            let config = Config { dropout: 0.1, ..config };
            let (read_family, read) = parse(&write(&config)).expect("read");
            assert_eq!(read_family, family, "{}", write(&config));
            assert_eq!(spelled_out(&read), spelled_out(&config), "{}", write(&config));
            // transformers fails to run a Gemma without a window, even where no layer has one.
            assert!(family != Family::Gemma2 || write(&config).contains("\"sliding_window\": 128"));
        }
    }

    /// Keys and values as published models have them, each with its number of parameters.
    #[test]
    fn published_configs_are_read() {
        let n_params = [
            124_439_808,
            162_322_944,
            1_235_814_400,
            134_515_008,
            7_241_732_096,
            494_032_768,
            596_049_920,
            9_241_705_984,
            268_098_176,
            3_821_079_552,
            1_484_916_736,
            3_075_098_624,
            46_702_792_704,
            30_532_122_624,
        ];
        let lines = include_str!("../../tests/fixtures/published_configs.jsonl").lines();
        assert_eq!(lines.clone().count(), n_params.len());
        for (line, n_params) in lines.zip(n_params) {
            let (name, config): (String, Value) = serde_json::from_str(line).expect("a name and a config");
            let (_, config) = parse(&config.to_string()).unwrap_or_else(|why| panic!("{name}: {why}"));
            assert_eq!(config.n_params(), n_params, "{name}: {config:?}");
        }
    }

    /// All keys that the classes of transformers write, at their defaults.
    #[test]
    fn default_configs_are_read() {
        let lines = include_str!("../../tests/fixtures/default_configs.jsonl").lines();
        let mut families = Vec::new();
        for line in lines {
            let (name, config): (String, Value) = serde_json::from_str(line).expect("a name and a config");
            let (family, _) = parse(&config.to_string()).unwrap_or_else(|why| panic!("{name}: {why}"));
            families.push(family);
        }
        assert!(Family::ALL.iter().all(|f| *f == Family::Flint || families.contains(f)), "{families:?}");
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let good = write(&Config::new(300, 2, 64, 4, 128));
        for (from, to, named) in [
            ("\"llama\"", "\"mamba\"", "mamba"),
            ("\"silu\"", "\"mish\"", "mish"),
            ("\"hidden_size\": 64", "\"hidden_size\": -1", "hidden_size"),
            ("\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "num_attention_heads"),
            ("\"head_dim\": 16", "\"head_dim\": \"x\"", "head_dim"),
            ("\"rope_scaling\": null", "\"rope_scaling\": {\"factor\": 8, \"type\": \"su\"}", "rope_scaling"),
            ("\"attention_bias\": false", "\"rope_parameters\": {\"rope_type\": \"yarn\"}", "factor"),
            ("\"attention_bias\": false", "\"quantization_config\": {}", "quantization_config"),
            ("\"attention_bias\": false", "\"attention_bias\": 1", "attention_bias"),
            ("\"attention_bias\": false", "\"partial_rotary_factor\": 0.5", "partial_rotary_factor"),
            ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 18446744073709551615", "num_hidden_layers"),
            ("\"head_dim\": 16", "\"head_dim\": 4611686018427387920", "head_dim"),
            ("\"rope_scaling\": null", "\"rope_scaling\": {\"rope_theta\": 5}", "rope_theta"),
            ("\"llama\"", "\"gemma2\"", "attn_logit_softcapping"),
            ("\"llama\"", "\"mixtral\"", "num_local_experts"),
            ("\"llama\"", "\"qwen3_moe\"", "num_experts"),
            (
                "\"rope_scaling\": null",
                "\"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1], \"long_factor\": [1]}",
                "short_factor",
            ),
            ("\"rope_scaling\": null", "\"rope_scaling\": {\"type\": \"dynamic\"}", "factor"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good, "{from}");
            let why = parse(&bad).unwrap_err();
            assert!(why.contains(named), "{why}");
        }
    }
}
