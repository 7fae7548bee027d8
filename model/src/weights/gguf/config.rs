//! The keys of a GGUF that say what a model is made of, as llama.cpp reads and its converters write them.
//!
//! What llama.cpp's code knows of a family and its files need not say (Gemma's windows, say) is filled in here. A key of
//! the model's own that is not understood is refused.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use tokenizer::gguf::{Array, Value};

use crate::config::{Config, Experts, LayerKind, MAX_SIZE, MlpKind, NormKind, NormPlace, Position, QkNorm};
use crate::position::{RopeScaling, frequencies, long_attention_factor};
use crate::weights::config_json::are_same;
use crate::weights::family::Family;
use crate::weights::gguf::names::turns_neighbours;

/// Families and what `general.architecture` calls them.
const ARCHITECTURES: [(&str, Family); 12] = [
    ("llama", Family::Llama),
    // The same with experts.
    ("llama", Family::Mixtral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("qwen3moe", Family::Qwen3Moe),
    ("gemma2", Family::Gemma2),
    ("gemma3", Family::Gemma3),
    ("phi3", Family::Phi3),
    ("gpt2", Family::Gpt2),
    ("gptneox", Family::GptNeoX),
    ("olmo2", Family::Olmo2),
    ("smollm3", Family::SmolLm3),
];

/// What the tensors say of a model and the keys do not.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::weights) struct Facts {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Whether there is a head besides the embedding.
    pub has_head: bool,
    /// Whether the projections to queries, keys and values have biases.
    pub has_qkv_bias: bool,
    /// Whether the projection out of attention has.
    pub has_out_bias: bool,
    /// Whether those of the MLP have.
    pub has_bias: bool,
    /// The tensors that change the frequencies of pairs, where a file has them: some of [`ROPE`].
    pub rope: BTreeMap<&'static str, Vec<f32>>,
}

/// Tensors that are no parameters: what each pair's frequency is divided by.
pub(super) const ROPE: [&str; 3] = [DIVISORS, LONG, SHORT];
const DIVISORS: &str = "rope_freqs.weight";
/// In sequences beyond the context of training.
const LONG: &str = "rope_factors_long.weight";
/// In others.
const SHORT: &str = "rope_factors_short.weight";

/// Reads the keys of a model.
///
/// # Errors
/// The key and value that are not understood.
pub(in crate::weights) fn parse(
    values: &BTreeMap<String, Value>,
    facts: &Facts,
) -> Result<(Family, Config), String> {
    let name = match values.get("general.architecture") {
        Some(Value::String(name)) => name,
        Some(other) => return Err(format!("`general.architecture` is {other}: must be a string")),
        None => return Err("key `general.architecture` is missing".into()),
    };
    let family = ARCHITECTURES.iter().find(|(known, _)| known == name).map(|(_, family)| *family);
    let family = family.ok_or_else(|| {
        let mut known = ARCHITECTURES.map(|(known, _)| known).to_vec();
        known.dedup();
        let found = shown(&Value::String(name.clone()));
        format!("`general.architecture` is {found}: only {} are read", known.join(", "))
    })?;
    let keys = Keys { values, prefix: format!("{name}."), seen: RefCell::default() };
    let family = match family {
        Family::Llama if keys.size_if_there("expert_count")?.unwrap_or(0) > 0 => Family::Mixtral,
        family => family,
    };
    let config = read(family, &keys, facts)?;
    keys.all_understood()?;
    config.validate().map_err(|error| error.to_string())?;
    Ok((family, config))
}

fn read(family: Family, keys: &Keys<'_>, facts: &Facts) -> Result<Config, String> {
    let (n_layer, n_embd) = (keys.size("block_count")?, keys.size("embedding_length")?);
    let n_head = keys.same_for_all("attention.head_count", n_layer)?.ok_or("no `attention.head_count`")?;
    if n_head == 0 {
        return Err(format!("`{}attention.head_count` is 0: must be at least 1", keys.prefix));
    }
    let plain = Config::new(facts.vocab_size, n_layer, n_embd, n_head, keys.size("context_length")?);
    let head_dim = keys.size_if_there("attention.key_length")?.unwrap_or(plain.head_dim());
    keys.only("attention.value_length", &[head_dim as f64])?;
    if keys.size_if_there("vocab_size")?.is_some_and(|n| n != facts.vocab_size) {
        let (prefix, n) = (&keys.prefix, facts.vocab_size);
        return Err(format!("`{prefix}vocab_size` is not the number of rows of `token_embd.weight`, {n}"));
    }
    let has_layer_norm = matches!(family, Family::Gpt2 | Family::GptNeoX);
    let eps =
        if has_layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    let is_gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let mut config = Config {
        n_kv_head: keys.same_for_all("attention.head_count_kv", n_layer)?.filter(|&n| n != n_head),
        head_dim: Some(head_dim).filter(|width| width * n_head != n_embd),
        n_ff: Some(keys.same_for_all("feed_forward_length", n_layer)?.ok_or("no `feed_forward_length`")?),
        norm: if has_layer_norm { NormKind::LayerNorm } else { NormKind::RmsNorm },
        norm_eps: keys.number(eps)?.ok_or_else(|| format!("key `{}{eps}` is missing", keys.prefix))?,
        mlp: match family {
            Family::Gpt2 => MlpKind::GeluTanh,
            Family::GptNeoX => MlpKind::Gelu,
            _ if is_gemma => MlpKind::GeGluTanh,
            _ => MlpKind::SwiGlu,
        },
        bias: has_layer_norm || facts.has_bias,
        qkv_bias: Some(facts.has_qkv_bias),
        out_bias: Some(facts.has_out_bias),
        tie_embeddings: !facts.has_head,
        position: if family == Family::Gpt2 { Position::Learned } else { Position::Rotary },
        parallel_residual: family == Family::GptNeoX && keys.flag("use_parallel_residual")?.unwrap_or(true),
        qk_norm: match family {
            Family::Qwen3 | Family::Qwen3Moe | Family::Gemma3 => Some(QkNorm::Head),
            Family::Olmo2 => Some(QkNorm::Whole),
            _ => None,
        },
        norm_place: match family {
            Family::Olmo2 => NormPlace::Post,
            _ if is_gemma => NormPlace::Both,
            _ => NormPlace::Pre,
        },
        embedding_scale: is_gemma.then(|| (n_embd as f64).sqrt()),
        // As files of the family say it: the inverse square of a whole number.
        attention_scale: is_gemma
            .then(|| (scaled_by(family, n_layer, n_embd / n_head, head_dim) as f64).powf(-0.5)),
        attention_softcap: match family {
            Family::Gemma2 => Some(keys.number("attn_logit_softcapping")?.unwrap_or(50.0)),
            _ => None,
        },
        logit_softcap: match family {
            Family::Gemma2 => Some(keys.number("final_logit_softcapping")?.unwrap_or(30.0)),
            Family::Gemma3 => keys.number("final_logit_softcapping")?.filter(|&cap| cap != 0.0),
            _ => None,
        },
        ..plain
    };
    if matches!(family, Family::Mixtral | Family::Qwen3Moe) {
        config.experts = Some(Experts {
            n: keys.size("expert_count")?,
            n_active: keys.size("expert_used_count")?,
            n_ff: keys.size_if_there("expert_feed_forward_length")?,
            normalise: true,
            dense_layers: Vec::new(),
        });
    }
    (config.window, config.layers) = layers(family, n_layer, keys)?;
    rotary(family, keys, facts, &mut config)?;
    Ok(config)
}

/// What the inverse square root of is the scale of scores: in Gemma's largest models the width of the stream by heads.
fn scaled_by(family: Family, n_layer: usize, share: usize, head_dim: usize) -> usize {
    let is_27b = matches!((family, n_layer), (Family::Gemma2, 46) | (Family::Gemma3, 62));
    if is_27b { share } else { head_dim }
}

fn layers(
    family: Family,
    n_layer: usize,
    keys: &Keys<'_>,
) -> Result<(Option<usize>, Vec<LayerKind>), String> {
    if family == Family::SmolLm3 {
        let kind = |i: usize| match (i + 1).is_multiple_of(4) {
            true => LayerKind::FullUnrotated,
            false => LayerKind::Full,
        };
        return Ok((None, (0..n_layer).map(kind).collect()));
    }
    let (default_window, default_period) = match family {
        Family::Gemma2 => (Some(4096), 2),
        Family::Gemma3 => (None, 6),
        Family::Olmo2 => (None, 4),
        // Each layer.
        Family::Phi3 => (None, 0),
        _ => return Ok((None, Vec::new())),
    };
    let window = keys.size_if_there("attention.sliding_window")?.or(default_window).filter(|&n| n > 0);
    let name = "attention.sliding_window_pattern";
    let is_sliding: Vec<bool> = match keys.get(name) {
        Some(Value::Array(Array::Bool(flags))) if flags.len() == n_layer => flags.clone(),
        Some(Value::Array(other)) => {
            return Err(keys.wrong(name, &Value::Array(other.clone()), &format!("{n_layer} flags")));
        }
        _ => {
            let period = keys.size_if_there(name)?.unwrap_or(default_period);
            (0..n_layer).map(|i| period == 0 || i % period + 1 < period).collect()
        }
    };
    let window = window.filter(|_| is_sliding.contains(&true));
    if window.is_none() || !is_sliding.contains(&false) {
        return Ok((window, Vec::new()));
    }
    let kind = |sliding: bool| if sliding { LayerKind::Sliding } else { LayerKind::Full };
    Ok((window, is_sliding.into_iter().map(kind).collect()))
}

fn rotary(family: Family, keys: &Keys<'_>, facts: &Facts, config: &mut Config) -> Result<(), String> {
    if config.position != Position::Rotary {
        return Ok(());
    }
    let dim = keys.size_if_there("rope.dimension_count")?;
    config.rotary_dim = dim.filter(|&dim| dim != config.head_dim());
    config.rope_theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    if family == Family::Gemma3 {
        config.local_rope_theta = keys.number("rope.freq_base_swa")?.or(Some(10_000.0));
    }
    if family == Family::Olmo2 && config.window.is_some() {
        // Sliding layers are never scaled.
        config.local_rope_theta = keys.number("rope.freq_base_swa")?.or(Some(config.rope_theta));
    }
    if turns_neighbours(family) && config.rotary_dim.is_some() {
        let (prefix, dim) = (&keys.prefix, config.head_dim());
        return Err(format!(
            "`{prefix}rope.dimension_count` is not {dim}: whole heads turn in this architecture"
        ));
    }
    let old = keys.number("rope.scale_linear")?;
    let factor = keys.number("rope.scaling.factor")?.or(old).filter(|&factor| factor != 0.0);
    let original = keys.size_if_there("rope.scaling.original_context_length")?.unwrap_or(config.context);
    keys.flag("rope.scaling.finetuned")?;
    let attention_factor = keys.number("rope.scaling.attn_factor")?.filter(|&factor| factor != 1.0);
    let longrope = longrope(facts, keys, original, attention_factor, config)?;
    // Files of Phi-3 have the factors and do not say what for.
    let default = if longrope.is_some() { "longrope" } else { "linear" };
    config.rope_scaling = match (keys.text("rope.scaling.type")?.unwrap_or(default), factor) {
        ("longrope", None) if longrope.is_some() => longrope,
        ("longrope", Some(factor)) if longrope.is_some() => {
            let key = format!("{}rope.scaling.factor", keys.prefix);
            return Err(format!("`{key}` is {factor}: nothing is read besides the factors of `{LONG}`"));
        }
        (other, _) if longrope.is_some() => {
            return Err(format!("`{LONG}` and a rotary scaling of type {other} are there"));
        }
        ("none", _) | ("linear", None) => None,
        ("linear", Some(factor)) => Some(RopeScaling::Linear { factor }).filter(|_| factor != 1.0),
        ("yarn", Some(factor)) => {
            keys.only("rope.scaling.yarn_ext_factor", &[1.0, -1.0])?;
            Some(RopeScaling::Yarn {
                factor,
                original_context: original,
                beta_fast: keys.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: keys.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                // llama.cpp multiplies the usual one by the first of these; the second replaces it.
                attention_factor: match keys.number("rope.scaling.yarn_attn_factor")? {
                    None => attention_factor.map(|times| times * (0.1 * factor.ln() + 1.0)),
                    other => other,
                },
                truncate: true,
            })
        }
        (other, _) => {
            let key = format!("{}rope.scaling.type", keys.prefix);
            return Err(format!(
                "`{key}` is \"{other}\": only none, linear and yarn with a factor, and longrope with `{LONG}`, are read"
            ));
        }
    };
    let has_factor =
        matches!(config.rope_scaling, Some(RopeScaling::Yarn { .. } | RopeScaling::LongRope { .. }));
    if attention_factor.is_some() && !has_factor {
        return Err(format!("`{}rope.scaling.attn_factor` is read with yarn and longrope only", keys.prefix));
    }
    if let Some(divisors) = facts.rope.get(DIVISORS) {
        if config.rope_scaling.is_some() {
            return Err(format!("both `{DIVISORS}` and a rotary scaling are there"));
        }
        config.rope_scaling = Some(llama3(divisors, keys, config)?);
    }
    Ok(())
}

/// Keys of Flint's own, for what the format has no keys for; others skip them.
const OWN: &str = "flint.rope.scaling.";

/// The scaling of Phi-3's models for long texts, whose factors are tensors. Single precision holds them nearly; Flint writes
/// them besides in double.
fn longrope(
    facts: &Facts,
    keys: &Keys<'_>,
    original_context: usize,
    attention_factor: Option<f64>,
    config: &Config,
) -> Result<Option<RopeScaling>, String> {
    let factors = |name: &str| {
        let stored = facts.rope.get(name)?;
        let own = match keys.values.get(&format!("{OWN}{name}")) {
            Some(Value::Array(Array::F64(own))) => own.clone(),
            _ => Vec::new(),
        };
        let is_same = own.iter().map(|&factor| factor as f32).eq(stored.iter().copied());
        Some(if is_same { own } else { stored.iter().map(|&factor| decimal(factor)).collect() })
    };
    let (short_factor, long_factor) = match (factors(SHORT), factors(LONG)) {
        (None, None) => return Ok(None),
        (Some(short), Some(long)) => (short, long),
        _ => return Err(format!("one of `{SHORT}` and `{LONG}` is missing")),
    };
    // llama.cpp multiplies by what the file says, and by nothing if it says nothing.
    let usual =
        long_attention_factor(config.context as f64 / original_context as f64, original_context as f64);
    let found = attention_factor.unwrap_or(1.0);
    let attention_factor = Some(found).filter(|found| (found - usual).abs() > 1e-6 * usual);
    Ok(Some(RopeScaling::LongRope { short_factor, long_factor, original_context, attention_factor }))
}

/// The scaling of LLaMA 3.1 and later, of which a GGUF has only what it makes of each frequency. All published models
/// have the same parameters; for others Flint writes them too.
fn llama3(divisors: &[f32], keys: &Keys<'_>, config: &Config) -> Result<RopeScaling, String> {
    let own = |key: &str| keys.values.get(&format!("{OWN}{key}")).and_then(number);
    let largest = divisors.iter().fold(1.0f32, |most, &divisor| most.max(divisor));
    let scaling = RopeScaling::Llama3 {
        factor: own("factor").unwrap_or(f64::from(largest)),
        low_freq_factor: own("low_freq_factor").unwrap_or(1.0),
        high_freq_factor: own("high_freq_factor").unwrap_or(4.0),
        original_context: own("original_context_length").map_or(8192, |n| n as usize),
    };
    scaling.validate(config).map_err(|(value, why)| format!("`{OWN}*`: {value}: {why}"))?;
    let wanted = divisors_of(&scaling, config);
    let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * b.abs();
    match wanted.len() == divisors.len() && divisors.iter().zip(&wanted).all(is_close) {
        true => Ok(scaling),
        false => {
            Err(format!("`{DIVISORS}`, {} numbers, is not what LLaMA 3.1's scaling gives", divisors.len()))
        }
    }
}

/// What a scaling divides each pair's frequency by.
fn divisors_of(scaling: &RopeScaling, config: &Config) -> Vec<f32> {
    let dim = config.rotary_dim();
    let plain = frequencies(config.rope_theta, dim, None, 0);
    let scaled = frequencies(config.rope_theta, dim, Some(scaling), 0);
    plain.iter().zip(scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect()
}

/// What a model is written with.
pub(in crate::weights) struct Written {
    /// Whose names its tensors have.
    pub family: Family,
    /// Keys and values.
    pub pairs: Vec<(String, Value)>,
    /// What its tensors say.
    pub facts: Facts,
}

/// Says a model in the keys of the first architecture that has all of it.
///
/// # Errors
/// If no architecture of the format is this model.
pub(in crate::weights) fn write(config: &Config) -> Result<Written, String> {
    let facts = Facts {
        vocab_size: config.vocab_size,
        has_head: !config.tie_embeddings,
        has_qkv_bias: config.qkv_bias(),
        has_out_bias: config.out_bias(),
        has_bias: config.bias,
        rope: match &config.rope_scaling {
            Some(scaling @ RopeScaling::Llama3 { .. }) => [(DIVISORS, divisors_of(scaling, config))].into(),
            Some(RopeScaling::LongRope { short_factor, long_factor, .. }) => {
                let single = |factors: &Vec<f64>| factors.iter().map(|&factor| factor as f32).collect();
                [(LONG, single(long_factor)), (SHORT, single(short_factor))].into()
            }
            _ => BTreeMap::new(),
        },
    };
    for (name, family) in ARCHITECTURES {
        // llama.cpp ignores Phi-3's window, and knows no biases there.
        if family == Family::Phi3 && (config.window.is_some() || config.qkv_bias()) {
            continue;
        }
        let pairs = to_pairs(name, family, config);
        let values = pairs.iter().cloned().collect();
        if parse(&values, &facts).is_ok_and(|(_, read)| are_same(&read, config)) {
            return Ok(Written { family, pairs, facts });
        }
    }
    Err("no architecture that GGUF files have is this model: write it as safetensors".into())
}

fn to_pairs(name: &str, family: Family, config: &Config) -> Vec<(String, Value)> {
    let mut pairs = vec![("general.architecture".to_owned(), Value::String(name.to_owned()))];
    let mut own = Vec::new();
    let mut put = |key: &str, value: Value| pairs.push((format!("{name}.{key}"), value));
    let count = |n: usize| Value::U32(n as u32);
    put("block_count", count(config.n_layer));
    put("context_length", count(config.context));
    put("embedding_length", count(config.n_embd));
    put("feed_forward_length", count(config.n_ff()));
    put("vocab_size", count(config.vocab_size));
    put("attention.head_count", count(config.n_head));
    put("attention.head_count_kv", count(config.n_kv_head()));
    put("attention.key_length", count(config.head_dim()));
    put("attention.value_length", count(config.head_dim()));
    let eps =
        if config.norm == NormKind::LayerNorm { "layer_norm_epsilon" } else { "layer_norm_rms_epsilon" };
    put(&format!("attention.{eps}"), Value::F32(config.norm_eps as f32));
    if config.position == Position::Rotary {
        put("rope.dimension_count", count(config.rotary_dim()));
        put("rope.freq_base", Value::F32(config.rope_theta as f32));
    }
    if let Some(theta) = config.local_rope_theta {
        put("rope.freq_base_swa", Value::F32(theta as f32));
    }
    match &config.rope_scaling {
        Some(RopeScaling::Linear { factor }) => {
            put("rope.scaling.type", Value::String("linear".into()));
            put("rope.scaling.factor", Value::F32(*factor as f32));
        }
        Some(RopeScaling::Yarn {
            factor, original_context, beta_fast, beta_slow, attention_factor, ..
        }) => {
            put("rope.scaling.type", Value::String("yarn".into()));
            put("rope.scaling.factor", Value::F32(*factor as f32));
            put("rope.scaling.original_context_length", count(*original_context));
            put("rope.scaling.yarn_beta_fast", Value::F32(*beta_fast as f32));
            put("rope.scaling.yarn_beta_slow", Value::F32(*beta_slow as f32));
            if let Some(factor) = attention_factor {
                put("rope.scaling.yarn_attn_factor", Value::F32(*factor as f32));
            }
        }
        Some(scaling @ RopeScaling::LongRope { short_factor, long_factor, original_context, .. }) => {
            put("rope.scaling.type", Value::String("longrope".into()));
            put("rope.scaling.original_context_length", count(*original_context));
            put("rope.scaling.attn_factor", Value::F32(scaling.attention_factor(config.context) as f32));
            for (name, factors) in [(LONG, long_factor), (SHORT, short_factor)] {
                own.push((format!("{OWN}{name}"), Value::Array(Array::F64(factors.clone()))));
            }
        }
        _ => {}
    }
    if let Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }) =
        config.rope_scaling
    {
        let mut put = |key: &str, value: f64| own.push((format!("{OWN}{key}"), Value::F64(value)));
        put("factor", factor);
        put("low_freq_factor", low_freq_factor);
        put("high_freq_factor", high_freq_factor);
        put("original_context_length", original_context as f64);
    }
    if let Some(experts) = &config.experts {
        put("expert_count", count(experts.n));
        put("expert_used_count", count(experts.n_active));
        if let Some(n_ff) = experts.n_ff {
            put("expert_feed_forward_length", count(n_ff));
        }
    }
    if family == Family::GptNeoX {
        put("use_parallel_residual", Value::Bool(config.parallel_residual));
    }
    if let Some(window) = config.window {
        put("attention.sliding_window", count(window));
        let is_sliding = (0..config.n_layer).map(|i| config.layer(i) == LayerKind::Sliding);
        put("attention.sliding_window_pattern", Value::Array(Array::Bool(is_sliding.collect())));
    }
    if let Some(cap) = config.attention_softcap {
        put("attn_logit_softcapping", Value::F32(cap as f32));
    }
    if let Some(cap) = config.logit_softcap {
        put("final_logit_softcapping", Value::F32(cap as f32));
    }
    pairs.extend(own);
    pairs
}

/// The keys of one architecture; remembers which were asked for.
struct Keys<'a> {
    values: &'a BTreeMap<String, Value>,
    /// Of the architecture's own keys, with the dot.
    prefix: String,
    seen: RefCell<BTreeSet<String>>,
}

/// A value in an error, cut and without control characters.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Array(_) => "an array".to_owned(),
        value => value.to_string(),
    };
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

/// Keys of an architecture's own that say nothing of what is computed.
const WITHOUT_EFFECT: [&str; 3] = ["tensor_data_layout", "leading_dense_block_count", "pooling_type"];

/// Keys that change what is computed, and the value with which they do not.
const NEUTRAL: [(&str, f64); 7] = [
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
    ("expert_gating_func", 1.0),
    ("expert_group_count", 1.0),
    ("expert_group_used_count", 1.0),
    ("logit_scale", 1.0),
    ("nextn_predict_layers", 0.0),
];

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        let key = format!("{}{key}", self.prefix);
        let value = self.values.get(&key);
        self.seen.borrow_mut().insert(key);
        value
    }

    fn wrong(&self, key: &str, value: &Value, what: &str) -> String {
        format!("`{}{key}` is {}: must be {what}", self.prefix, shown(value))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        number(value).map(Some).ok_or_else(|| self.wrong(key, value, "a number"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        match self.get(key) {
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong(key, other, "true or false")),
            None => Ok(None),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        match self.get(key) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, other, "a string")),
            None => Ok(None),
        }
    }

    fn size_if_there(&self, key: &str) -> Result<Option<usize>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let n = number(value).filter(|n| n.fract() == 0.0 && (0.0..=MAX_SIZE as f64).contains(n));
        n.map(|n| Some(n as usize)).ok_or_else(|| self.wrong(key, value, "a whole number of at most 2^24"))
    }

    fn size(&self, key: &str) -> Result<usize, String> {
        self.size_if_there(key)?.ok_or_else(|| format!("key `{}{key}` is missing", self.prefix))
    }

    /// A size that files may also give for each layer, if it is the same for all.
    fn same_for_all(&self, key: &str, n_layer: usize) -> Result<Option<usize>, String> {
        let Some(value @ Value::Array(array)) = self.get(key) else { return self.size_if_there(key) };
        let sizes: Vec<i64> = match array {
            Array::U32(sizes) => sizes.iter().map(|&n| i64::from(n)).collect(),
            Array::I32(sizes) => sizes.iter().map(|&n| i64::from(n)).collect(),
            _ => return Err(self.wrong(key, value, "whole numbers")),
        };
        match sizes.first() {
            Some(&first) if sizes.len() == n_layer && sizes.iter().all(|&n| n == first) => {
                let n = usize::try_from(first).ok().filter(|&n| n <= MAX_SIZE);
                n.map(Some).ok_or_else(|| self.wrong(key, value, "whole numbers of at most 2^24"))
            }
            _ => Err(self.wrong(key, value, &format!("the same for each of the {n_layer} layers"))),
        }
    }

    /// Refuses anything but these values.
    fn only(&self, key: &str, wanted: &[f64]) -> Result<(), String> {
        match self.number(key)? {
            Some(found) if !wanted.contains(&found) => {
                Err(format!("`{}{key}` is {found}: only {wanted:?} is read", self.prefix))
            }
            _ => Ok(()),
        }
    }

    fn all_understood(&self) -> Result<(), String> {
        let seen = self.seen.borrow();
        let is_neutral = |own: &str, value: &Value| match (own, value) {
            ("attention.causal", value) => *value == Value::Bool(true),
            (own, value) => {
                NEUTRAL.iter().any(|&(key, neutral)| key == own && number(value) == Some(neutral))
            }
        };
        let is_unknown = |key: &String, value: &Value| match key.strip_prefix(&self.prefix) {
            Some(own) => !seen.contains(key) && !WITHOUT_EFFECT.contains(&own) && !is_neutral(own, value),
            None => false,
        };
        match self.values.iter().find(|(key, value)| is_unknown(key, value)) {
            Some((key, value)) => {
                Err(format!("`{}` is {}: this key is not understood", key.escape_debug(), shown(value)))
            }
            None => Ok(()),
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    Some(match *value {
        Value::U8(n) => f64::from(n),
        Value::I8(n) => f64::from(n),
        Value::U16(n) => f64::from(n),
        Value::I16(n) => f64::from(n),
        Value::U32(n) => f64::from(n),
        Value::I32(n) => f64::from(n),
        Value::U64(n) => n as f64,
        Value::I64(n) => n as f64,
        Value::F32(n) => decimal(n),
        Value::F64(n) => n,
        Value::Bool(_) | Value::String(_) | Value::Array(_) => return None,
    })
}

/// The shortest decimal that is this number as f32: 1e-5 was written, not 9.99999974e-6.
fn decimal(n: f32) -> f64 {
    n.to_string().parse().unwrap_or(f64::from(n))
}
