//! What a model is made of. Everything else (shapes, names, memory) follows from this struct.

use serde::{Deserialize, Serialize};

use crate::position::RopeScaling;

/// How a token's position enters the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// A learned vector per position, added to the embedding (GPT-2).
    Learned,
    /// Fixed sines and cosines, added to the embedding (Vaswani et al. 2017).
    Sinusoidal,
    /// Rotation of queries and keys, half-split form (Su et al. 2021, as LLaMA applies it).
    Rotary,
    /// Not at all: causality alone tells positions apart.
    None,
}

/// What the attention of one layer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// All positions so far.
    Full,
    /// The last [`Config::window`] positions, its own among them.
    Sliding,
    /// All positions so far, with queries and keys as they are, whatever the rest of the model does (Yang et al. 2025).
    FullUnrotated,
}

/// Where the norms of a block stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlace {
    /// Before attention and before the MLP.
    #[default]
    Pre,
    /// After each of them, before the sum (OLMo 2).
    Post,
    /// Before and after (Gemma 2).
    Both,
}

/// RMSNorm of queries and keys before they are turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// Each head by itself (Qwen3, Gemma 3).
    Head,
    /// All heads of a position as one vector (OLMo 2).
    Whole,
}

/// Which normalisation the blocks and the head have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Mean and variance (Ba et al. 2016).
    LayerNorm,
    /// Root mean square only (Zhang & Sennrich 2019).
    RmsNorm,
}

/// The feed-forward part of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MlpKind {
    /// `down(gelu(up(x)))` with the exact GELU (Hendrycks & Gimpel 2016).
    Gelu,
    /// The same with the tanh approximation that GPT-2 uses.
    GeluTanh,
    /// `down(silu(up(x)))`.
    Silu,
    /// `down(relu(up(x)))`.
    Relu,
    /// `down(relu(up(x))²)` (So et al. 2021).
    ReluSquared,
    /// `down(silu(gate(x)) * up(x))` (Shazeer 2020).
    SwiGlu,
    /// `down(gelu(gate(x)) * up(x))` with the exact GELU (Shazeer 2020).
    GeGlu,
    /// The same with the tanh approximation (Gemma).
    GeGluTanh,
    /// `down(relu(gate(x)) * up(x))` (Shazeer 2020).
    ReGlu,
}

impl MlpKind {
    /// Whether a second projection multiplies the activation.
    pub fn is_gated(self) -> bool {
        matches!(self, Self::SwiGlu | Self::GeGlu | Self::GeGluTanh | Self::ReGlu)
    }
}

/// A feed-forward part that is many, of which each position takes a few (Shazeer et al. 2017).
///
/// A linear layer without bias, the router, gives each expert a logit; the outputs of the few with the largest are summed,
/// weighted by the softmax of the logits. Of equal logits the expert that comes first is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// How many there are in a layer.
    pub n: usize,
    /// How many a position takes.
    pub n_active: usize,
    /// Width of one; default as the model's `n_ff`.
    #[serde(default)]
    pub n_ff: Option<usize>,
    /// Whether the weights of those taken sum to 1; default yes (Mixtral).
    #[serde(default = "yes")]
    pub normalise: bool,
    /// Layers with a single feed-forward part, counted from 0; default none.
    #[serde(default)]
    pub dense_layers: Vec<usize>,
}

/// The shape of a decoder-only transformer.
///
/// `n_head == n_kv_head` is multi-head attention, `n_kv_head == 1` multi-query, anything between
/// grouped-query attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Number of token ids. 0 in a run's config means: as many as the tokenizer has.
    #[serde(default)]
    pub vocab_size: usize,
    /// Number of blocks.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Number of query heads.
    pub n_head: usize,
    /// Number of key and value heads; default `n_head`.
    #[serde(default)]
    pub n_kv_head: Option<usize>,
    /// Width of one head; default `n_embd / n_head`.
    #[serde(default)]
    pub head_dim: Option<usize>,
    /// Width of the feed-forward part; default 4 × `n_embd`, with a gate 8/3 of it rounded up to 64.
    #[serde(default)]
    pub n_ff: Option<usize>,
    /// The most positions the model attends over.
    pub context: usize,
    /// Default: rotary.
    #[serde(default = "rotary")]
    pub position: Position,
    /// Base of the rotary frequencies; default 10,000.
    #[serde(default = "rope_theta")]
    pub rope_theta: f64,
    /// How many elements of each head turn; default all. Of an odd number (GPT-NeoX allows it) the next even one turns, at
    /// the angles that the odd one gives.
    #[serde(default)]
    pub rotary_dim: Option<usize>,
    /// How the angles are stretched for contexts longer than those of training; default not.
    #[serde(default)]
    pub rope_scaling: Option<RopeScaling>,
    /// Base of the frequencies in sliding layers, never scaled; default as in the others (Gemma 3).
    #[serde(default)]
    pub local_rope_theta: Option<f64>,
    /// What each layer sees; default all positions, or the window where one is given.
    #[serde(default)]
    pub layers: Vec<LayerKind>,
    /// How many positions a sliding layer sees.
    #[serde(default)]
    pub window: Option<usize>,
    /// What scores are multiplied by; default `head_dim^(-1/2)` (Vaswani et al. 2017).
    #[serde(default)]
    pub attention_scale: Option<f64>,
    /// `c` of `c · tanh(score / c)`, applied to scores before the softmax (Gemma 2).
    #[serde(default)]
    pub attention_softcap: Option<f64>,
    /// The same for the logits.
    #[serde(default)]
    pub logit_softcap: Option<f64>,
    /// Whether each head has a learned score that takes part in the softmax and has no value, so that a query can attend
    /// to nothing (gpt-oss); default no.
    #[serde(default)]
    pub attention_sinks: bool,
    /// Default: queries and keys are not normalised.
    #[serde(default)]
    pub qk_norm: Option<QkNorm>,
    /// Default: RMSNorm.
    #[serde(default = "rms_norm")]
    pub norm: NormKind,
    /// Added to the variance before the square root; default 1e-5.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// Default: pre.
    #[serde(default)]
    pub norm_place: NormPlace,
    /// Whether attention and MLP read the same stream and are added to it together (GPT-NeoX); default no.
    #[serde(default)]
    pub parallel_residual: bool,
    /// What embeddings are multiplied by before the first block; default 1.
    #[serde(default)]
    pub embedding_scale: Option<f64>,
    /// Default: SwiGLU.
    #[serde(default = "swiglu")]
    pub mlp: MlpKind,
    /// Default: one feed-forward part in each layer.
    #[serde(default)]
    pub experts: Option<Experts>,
    /// Whether linear layers and LayerNorms have biases; default no.
    #[serde(default)]
    pub bias: bool,
    /// Whether the projection to queries, keys and values has biases; default as `bias`.
    #[serde(default)]
    pub qkv_bias: Option<bool>,
    /// Whether the projection from the heads back to the stream has biases; default as `bias`.
    #[serde(default)]
    pub out_bias: Option<bool>,
    /// Whether the head is the embedding matrix itself; default yes.
    #[serde(default = "yes")]
    pub tie_embeddings: bool,
    /// Probability of dropping an element of the embedding and of each branch's output while
    /// training; never active otherwise. Default 0.
    #[serde(default)]
    pub dropout: f64,
}

fn rotary() -> Position {
    Position::Rotary
}
fn rope_theta() -> f64 {
    10_000.0
}
fn rms_norm() -> NormKind {
    NormKind::RmsNorm
}
fn norm_eps() -> f64 {
    1e-5
}
fn swiglu() -> MlpKind {
    MlpKind::SwiGlu
}
fn yes() -> bool {
    true
}

/// A value of [`Config`] that no model can have.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("`model.{key}` is {value}: {why}")]
pub struct ConfigError {
    /// The field's name.
    pub key: &'static str,
    /// The value found.
    pub value: String,
    /// What would be allowed.
    pub why: String,
}

/// The most that any size in a config may be. Products of three such sizes still overflow, hence
/// [`MAX_PARAMS`].
pub(crate) const MAX_SIZE: usize = 1 << 24;

/// The most parameters a config may ask for, 2^44: counts of bytes and operations made of it stay exact.
const MAX_PARAMS: u128 = 1 << 44;

impl Config {
    /// A config of the given sizes with every default.
    pub fn new(vocab_size: usize, n_layer: usize, n_embd: usize, n_head: usize, context: usize) -> Self {
        Self {
            vocab_size,
            n_layer,
            n_embd,
            n_head,
            n_kv_head: None,
            head_dim: None,
            n_ff: None,
            context,
            position: rotary(),
            rope_theta: rope_theta(),
            rotary_dim: None,
            rope_scaling: None,
            local_rope_theta: None,
            layers: Vec::new(),
            window: None,
            attention_scale: None,
            attention_softcap: None,
            attention_sinks: false,
            logit_softcap: None,
            qk_norm: None,
            norm: rms_norm(),
            norm_eps: norm_eps(),
            norm_place: NormPlace::Pre,
            parallel_residual: false,
            embedding_scale: None,
            mlp: swiglu(),
            experts: None,
            bias: false,
            qkv_bias: None,
            out_bias: None,
            tie_embeddings: true,
            dropout: 0.0,
        }
    }

    /// Number of key and value heads.
    pub fn n_kv_head(&self) -> usize {
        self.n_kv_head.unwrap_or(self.n_head)
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.n_embd / self.n_head)
    }

    /// Width of all query heads together.
    pub fn attention_width(&self) -> usize {
        self.n_head * self.head_dim()
    }

    /// Elements of a head that turn with the position.
    pub fn rotary_dim(&self) -> usize {
        self.rotary_dim.unwrap_or(self.head_dim())
    }

    /// What the layer's attention sees.
    pub fn layer(&self, layer_idx: usize) -> LayerKind {
        let default = if self.window.is_some() { LayerKind::Sliding } else { LayerKind::Full };
        self.layers.get(layer_idx).copied().unwrap_or(default)
    }

    /// Whether the projection to queries, keys and values has biases.
    pub fn qkv_bias(&self) -> bool {
        self.qkv_bias.unwrap_or(self.bias)
    }

    /// Whether the projection from the heads back to the stream has biases.
    pub fn out_bias(&self) -> bool {
        self.out_bias.unwrap_or(self.bias)
    }

    /// The experts of a layer, unless it has a single feed-forward part.
    pub fn experts(&self, layer_idx: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| !experts.dense_layers.contains(&layer_idx))
    }

    /// Width of the feed-forward part of a layer, of one expert where it has several.
    pub fn layer_ff(&self, layer_idx: usize) -> usize {
        self.experts(layer_idx).and_then(|experts| experts.n_ff).unwrap_or(self.n_ff())
    }

    /// Projections into a feed-forward part: with a gate, that and the other factor.
    pub fn n_up(&self) -> usize {
        if self.mlp.is_gated() { 2 } else { 1 }
    }

    /// Norms of a block, those of queries and keys aside.
    pub fn norms_per_block(&self) -> usize {
        if self.norm_place == NormPlace::Both { 4 } else { 2 }
    }

    /// Width of the feed-forward part.
    pub fn n_ff(&self) -> usize {
        self.n_ff.unwrap_or(match self.mlp.is_gated() {
            true => (8 * self.n_embd / 3).next_multiple_of(64),
            false => 4 * self.n_embd,
        })
    }

    /// Width of the fused query, key and value projection.
    pub fn qkv_width(&self) -> usize {
        (self.n_head + 2 * self.n_kv_head()) * self.head_dim()
    }

    /// Checks every value; the first impossible one is the error.
    ///
    /// # Errors
    /// [`ConfigError`] names the key, the value and what is allowed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("n_layer", self.n_layer),
            ("n_embd", self.n_embd),
            ("n_head", self.n_head),
            ("n_kv_head", self.n_kv_head()),
            ("head_dim", self.head_dim.unwrap_or(1)),
            ("n_ff", self.n_ff.unwrap_or(1)),
            ("window", self.window.unwrap_or(1)),
            ("context", self.context),
        ];
        for (key, value) in sizes {
            if value == 0 || value > MAX_SIZE {
                return Err(invalid(key, value, format!("must be 1 to {MAX_SIZE}")));
            }
        }
        if self.head_dim.is_none() && !self.n_embd.is_multiple_of(self.n_head) {
            return Err(invalid("n_head", self.n_head, format!("must divide `n_embd`, {}", self.n_embd)));
        }
        if !self.n_head.is_multiple_of(self.n_kv_head()) {
            return Err(invalid(
                "n_kv_head",
                self.n_kv_head(),
                format!("must divide `n_head`, {}", self.n_head),
            ));
        }
        let rotary_dim = self.rotary_dim();
        let head_dim = self.head_dim();
        if self.position == Position::Rotary && (rotary_dim == 0 || rotary_dim.next_multiple_of(2) > head_dim)
        {
            let (key, why) = match self.rotary_dim {
                Some(_) => {
                    ("rotary_dim", format!("must be at least 1, rounded up to even at most {head_dim}"))
                }
                None => ("n_head", "rotary positions need an even number of elements of a head".to_owned()),
            };
            return Err(invalid(key, rotary_dim, why));
        }
        if ![0, self.n_layer].contains(&self.layers.len()) {
            let why = format!("must be one for each of the {} layers, or none", self.n_layer);
            return Err(invalid("layers", self.layers.len(), why));
        }
        if self.window.is_none() && self.layers.contains(&LayerKind::Sliding) {
            return Err(invalid("layers", "sliding", "needs `window`".into()));
        }
        if self.parallel_residual && self.norm_place != NormPlace::Pre {
            return Err(invalid("parallel_residual", true, "goes with `norm_place: pre`".into()));
        }
        if let Some(experts) = &self.experts {
            self.validate_experts(experts)?;
        }
        if self.n_params_wide() > MAX_PARAMS {
            let why =
                format!("with these widths a model of {} parameters, more than 2^44", self.n_params_wide());
            return Err(invalid("n_layer", self.n_layer, why));
        }
        let positive = [
            ("rope_theta", Some(self.rope_theta)),
            ("local_rope_theta", self.local_rope_theta),
            ("norm_eps", Some(self.norm_eps)),
            ("attention_scale", self.attention_scale),
            ("attention_softcap", self.attention_softcap),
            ("logit_softcap", self.logit_softcap),
            ("embedding_scale", self.embedding_scale),
        ];
        for (key, value) in positive {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(invalid(key, value, "must be a positive number".into()));
            }
        }
        if let Some(scaling) = &self.rope_scaling {
            scaling.validate(self).map_err(|(value, why)| invalid("rope_scaling", value, why))?;
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(invalid("dropout", self.dropout, "must be at least 0 and below 1".into()));
        }
        Ok(())
    }

    fn validate_experts(&self, experts: &Experts) -> Result<(), ConfigError> {
        for (key, value, most) in [
            ("experts.n", experts.n, MAX_SIZE),
            ("experts.n_active", experts.n_active, experts.n),
            ("experts.n_ff", experts.n_ff.unwrap_or(1), MAX_SIZE),
        ] {
            if value == 0 || value > most {
                return Err(invalid(key, value, format!("must be 1 to {most}")));
            }
        }
        if let Some(layer) = experts.dense_layers.iter().find(|&&layer| layer >= self.n_layer) {
            let why = format!("there are {} layers, counted from 0", self.n_layer);
            return Err(invalid("experts.dense_layers", layer, why));
        }
        if self.bias {
            return Err(invalid("bias", true, "experts have none; `qkv_bias` and `out_bias` may be".into()));
        }
        Ok(())
    }

    /// Number of trainable parameters.
    pub fn n_params(&self) -> usize {
        self.n_params_wide() as usize
    }

    /// The same for sizes of any product, as a config has them before it is validated.
    fn n_params_wide(&self) -> u128 {
        self.params_by_part().iter().map(|(_, n)| n).sum()
    }

    /// Number of trainable parameters of each part, all layers together.
    pub fn params_by_part(&self) -> [(&'static str, u128); 6] {
        let [v, c, layers] = [self.vocab_size, self.n_embd, self.n_layer].map(|n| n as u128);
        let [qkv, width, head_dim, context, heads] =
            [self.qkv_width(), self.attention_width(), self.head_dim(), self.context, self.n_head]
                .map(|n| n as u128);
        let norm = if self.norm == NormKind::LayerNorm && self.bias { 2 * c } else { c };
        let biases = if self.qkv_bias() { qkv } else { 0 } + if self.out_bias() { c } else { 0 };
        let qk_norm = match self.qk_norm {
            Some(QkNorm::Head) => 2 * head_dim,
            Some(QkNorm::Whole) => width + self.n_kv_head() as u128 * head_dim,
            None => 0,
        };
        let sinks = if self.attention_sinks { heads } else { 0 };
        let [dense, sparse] = self.layers_by_experts();
        [
            ("embedding", v * c),
            ("positions", if self.position == Position::Learned { context * c } else { 0 }),
            ("attention", layers * (qkv * c + width * c + biases + sinks)),
            ("feed-forward", dense * self.ff_params(None) + sparse * self.ff_params(self.experts.as_ref())),
            ("norms", layers * (self.norms_per_block() as u128 * norm + qk_norm) + norm),
            ("head", if self.tie_embeddings { 0 } else { v * c }),
        ]
    }

    /// How many layers have a single feed-forward part, and how many have experts.
    fn layers_by_experts(&self) -> [u128; 2] {
        let n_dense = match &self.experts {
            Some(experts) => {
                let mut dense = experts.dense_layers.clone();
                dense.sort_unstable();
                dense.dedup();
                dense.len().min(self.n_layer)
            }
            None => self.n_layer,
        };
        [n_dense as u128, (self.n_layer - n_dense) as u128]
    }

    /// Parameters of a layer's feed-forward part.
    fn ff_params(&self, experts: Option<&Experts>) -> u128 {
        let [c, dense, n_up] = [self.n_embd, self.n_ff(), self.n_up()].map(|n| n as u128);
        let Some(experts) = experts else {
            let biases = if self.bias { n_up * dense + c } else { 0 };
            return (n_up + 1) * dense * c + biases;
        };
        let width = experts.n_ff.map_or(dense, |n| n as u128);
        experts.n as u128 * ((n_up + 1) * width * c + c)
    }

    /// Of so many positions those that a query of a layer sees.
    pub fn seen(&self, layer_idx: usize, positions: usize) -> usize {
        match (self.layer(layer_idx), self.window) {
            (LayerKind::Sliding, Some(window)) => window.min(positions),
            _ => positions,
        }
    }

    /// Floating-point operations of one training step per token: 6 for each weight that takes part in
    /// a matrix product, and 12 · layers · width · context for full attention (Chowdhery et al. 2022,
    /// appendix B; the causal half is counted, as is usual, in full). Of experts those count that a token takes.
    pub fn train_flops_per_token(&self, seq_len: usize) -> f64 {
        let (c, width) = (self.n_embd, self.attention_width());
        let ff = |layer_idx: usize| {
            let one = (self.n_up() + 1) * self.layer_ff(layer_idx) * c;
            self.experts(layer_idx).map_or(one, |experts| experts.n_active * one + experts.n * c)
        };
        let block = |layer_idx| self.qkv_width() * c + width * c + ff(layer_idx);
        let weights = ((0..self.n_layer).map(block).sum::<usize>() + self.vocab_size * c) as f64;
        let seen: usize = (0..self.n_layer).map(|layer_idx| self.seen(layer_idx, seq_len)).sum();
        6.0 * weights + 12.0 * (width * seen) as f64
    }
}

fn invalid(key: &'static str, value: impl ToString, why: String) -> ConfigError {
    ConfigError { key, value: value.to_string(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_impossible_value_is_named() {
        let good = Config::new(100, 2, 48, 4, 16);
        assert_eq!(good.validate(), Ok(()));
        let experts = |n, n_active, dense_layers| {
            Some(Experts { n, n_active, n_ff: None, normalise: true, dense_layers })
        };
        let cases: [(&str, Config); 20] = [
            ("vocab_size", Config { vocab_size: 0, ..good.clone() }),
            ("n_layer", Config { n_layer: usize::MAX, ..good.clone() }),
            ("n_head", Config { n_head: 5, ..good.clone() }),
            ("n_head", Config { n_head: 16, ..good.clone() }),
            ("n_kv_head", Config { n_kv_head: Some(3), ..good.clone() }),
            ("context", Config { context: 0, ..good.clone() }),
            ("dropout", Config { dropout: 1.0, ..good.clone() }),
            ("rope_theta", Config { rope_theta: f64::NAN, ..good.clone() }),
            ("norm_eps", Config { norm_eps: 0.0, ..good.clone() }),
            ("head_dim", Config { head_dim: Some(0), ..good.clone() }),
            ("rotary_dim", Config { rotary_dim: Some(14), ..good.clone() }),
            ("rotary_dim", Config { rotary_dim: Some(0), ..good.clone() }),
            ("n_head", Config { head_dim: Some(7), ..good.clone() }),
            ("layers", Config { layers: vec![LayerKind::Full], ..good.clone() }),
            ("layers", Config { layers: vec![LayerKind::Sliding; 2], ..good.clone() }),
            ("logit_softcap", Config { logit_softcap: Some(-1.0), ..good.clone() }),
            ("experts.n", Config { experts: experts(0, 0, vec![]), ..good.clone() }),
            ("experts.n_active", Config { experts: experts(4, 5, vec![]), ..good.clone() }),
            ("experts.dense_layers", Config { experts: experts(4, 2, vec![2]), ..good.clone() }),
            ("bias", Config { experts: experts(4, 2, vec![]), bias: true, ..good.clone() }),
        ];
        for (key, config) in cases {
            assert_eq!(config.validate().map_err(|e| e.key), Err(key), "{config:?}");
        }
    }

    /// Mixtral 8x7B: 46.7 billion parameters, of which a token takes 12.9 (Jiang et al. 2024).
    #[test]
    fn of_experts_those_count_that_a_token_takes() {
        let experts = Experts { n: 8, n_active: 2, n_ff: None, normalise: true, dense_layers: vec![] };
        let mixtral = Config {
            n_kv_head: Some(8),
            n_ff: Some(14_336),
            experts: Some(experts),
            tie_embeddings: false,
            ..Config::new(32_000, 32, 4096, 32, 32_768)
        };
        assert_eq!(mixtral.n_params(), 46_702_792_704);
        let in_products = mixtral.train_flops_per_token(0) / 6.0;
        // The embedding takes no part, nor do norms.
        assert_eq!(in_products + 32_000.0 * 4096.0, 12_879_659_008.0);
    }

    #[test]
    fn swiglu_width_follows_llama() {
        assert_eq!(Config::new(100, 2, 768, 12, 16).n_ff(), 2048);
        assert_eq!(Config { mlp: MlpKind::Gelu, ..Config::new(100, 2, 768, 12, 16) }.n_ff(), 3072);
    }
}
