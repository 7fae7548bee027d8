//! What a model is made of. Everything else (shapes, names, memory) follows from this struct.

use serde::{Deserialize, Serialize};

/// How a token's position enters the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// A learned vector per position, added to the embedding (GPT-2).
    Learned,
    /// Rotation of queries and keys, half-split form (Su et al. 2021, as LLaMA applies it).
    Rotary,
}

/// Which normalisation stands before attention, before the MLP and before the head.
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
    /// `down(silu(gate(x)) * up(x))` (Shazeer 2020).
    SwiGlu,
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
    /// Width of the feed-forward part; default 4 × `n_embd`, for SwiGLU 8/3 of it rounded up to 64.
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
    /// Default: RMSNorm.
    #[serde(default = "rms_norm")]
    pub norm: NormKind,
    /// Added to the variance before the square root; default 1e-5.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// Default: SwiGLU.
    #[serde(default = "swiglu")]
    pub mlp: MlpKind,
    /// Whether linear layers and LayerNorms have biases; default no.
    #[serde(default)]
    pub bias: bool,
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
const MAX_SIZE: usize = 1 << 24;

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
            n_ff: None,
            context,
            position: rotary(),
            rope_theta: rope_theta(),
            norm: rms_norm(),
            norm_eps: norm_eps(),
            mlp: swiglu(),
            bias: false,
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
        self.n_embd / self.n_head
    }

    /// Width of the feed-forward part.
    pub fn n_ff(&self) -> usize {
        self.n_ff.unwrap_or(match self.mlp {
            MlpKind::SwiGlu => (8 * self.n_embd / 3).next_multiple_of(64),
            MlpKind::Gelu | MlpKind::GeluTanh => 4 * self.n_embd,
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
            ("n_ff", self.n_ff.unwrap_or(1)),
            ("context", self.context),
        ];
        for (key, value) in sizes {
            if value == 0 || value > MAX_SIZE {
                return Err(invalid(key, value, format!("must be 1 to {MAX_SIZE}")));
            }
        }
        if !self.n_embd.is_multiple_of(self.n_head) {
            return Err(invalid("n_head", self.n_head, format!("must divide `n_embd`, {}", self.n_embd)));
        }
        if !self.n_head.is_multiple_of(self.n_kv_head()) {
            return Err(invalid(
                "n_kv_head",
                self.n_kv_head(),
                format!("must divide `n_head`, {}", self.n_head),
            ));
        }
        if self.position == Position::Rotary && !self.head_dim().is_multiple_of(2) {
            let why = format!("rotary positions need an even `n_embd` / `n_head`, not {}", self.head_dim());
            return Err(invalid("n_head", self.n_head, why));
        }
        if self.n_params_wide() > MAX_PARAMS {
            let why =
                format!("with these widths a model of {} parameters, more than 2^44", self.n_params_wide());
            return Err(invalid("n_layer", self.n_layer, why));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return Err(invalid("rope_theta", self.rope_theta, "must be a positive number".into()));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return Err(invalid("norm_eps", self.norm_eps, "must be a positive number".into()));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(invalid("dropout", self.dropout, "must be at least 0 and below 1".into()));
        }
        Ok(())
    }

    /// Number of trainable parameters.
    pub fn n_params(&self) -> usize {
        self.n_params_wide() as usize
    }

    /// The same for sizes of any product, as a config has them before it is validated.
    fn n_params_wide(&self) -> u128 {
        let [v, c, f, layers] = [self.vocab_size, self.n_embd, self.n_ff(), self.n_layer].map(|n| n as u128);
        let (qkv, context) = (self.qkv_width() as u128, self.context as u128);
        let norm = if self.norm == NormKind::LayerNorm && self.bias { 2 * c } else { c };
        let up = if self.mlp == MlpKind::SwiGlu { 2 * f } else { f };
        let biases = if self.bias { qkv + c + up + c } else { 0 };
        let block = qkv * c + c * c + up * c + c * f + biases + 2 * norm;
        let positions = if self.position == Position::Learned { context * c } else { 0 };
        let head = if self.tie_embeddings { 0 } else { v * c };
        v * c + positions + layers * block + norm + head
    }

    /// Floating-point operations of one training step per token: 6 for each weight that takes part in
    /// a matrix product, and 12 · layers · width · context for full attention (Chowdhery et al. 2022,
    /// appendix B; the causal half is counted, as is usual, in full).
    pub fn train_flops_per_token(&self, seq_len: usize) -> f64 {
        let up = if self.mlp == MlpKind::SwiGlu { 2 } else { 1 } * self.n_ff();
        let c = self.n_embd;
        let block = self.qkv_width() * c + c * c + up * c + c * self.n_ff();
        let weights = (self.n_layer * block + self.vocab_size * c) as f64;
        6.0 * weights + 12.0 * (self.n_layer * c * seq_len) as f64
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
        let cases: [(&str, Config); 9] = [
            ("vocab_size", Config { vocab_size: 0, ..good.clone() }),
            ("n_layer", Config { n_layer: usize::MAX, ..good.clone() }),
            ("n_head", Config { n_head: 5, ..good.clone() }),
            ("n_head", Config { n_head: 16, ..good.clone() }),
            ("n_kv_head", Config { n_kv_head: Some(3), ..good.clone() }),
            ("context", Config { context: 0, ..good.clone() }),
            ("dropout", Config { dropout: 1.0, ..good.clone() }),
            ("rope_theta", Config { rope_theta: f64::NAN, ..good.clone() }),
            ("norm_eps", Config { norm_eps: 0.0, ..good.clone() }),
        ];
        for (key, config) in cases {
            assert_eq!(config.validate().map_err(|e| e.key), Err(key), "{config:?}");
        }
    }

    #[test]
    fn swiglu_width_follows_llama() {
        assert_eq!(Config::new(100, 2, 768, 12, 16).n_ff(), 2048);
        assert_eq!(Config { mlp: MlpKind::Gelu, ..Config::new(100, 2, 768, 12, 16) }.n_ff(), 3072);
    }
}
