//! The families of models whose files are understood.

/// Models that share a layout of `config.json` and names of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Flint's own: any [`Config`](crate::Config), with LLaMA's names of tensors as far as they go.
    Flint,
    /// GPT-2 (Radford et al. 2019).
    Gpt2,
    /// GPT-NeoX and Pythia (Black et al. 2022).
    GptNeoX,
    /// LLaMA 1 to 3, TinyLlama, SmolLM2 and many more (Touvron et al. 2023).
    Llama,
    /// Mistral (Jiang et al. 2023).
    Mistral,
    /// Qwen2 and 2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, the text part.
    Gemma3,
    /// Phi-3.
    Phi3,
    /// OLMo 2.
    Olmo2,
    /// SmolLM3.
    SmolLm3,
    /// Mixtral (Jiang et al. 2024).
    Mixtral,
    /// Qwen3 with experts.
    Qwen3Moe,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Flint,
        Self::Gpt2,
        Self::GptNeoX,
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::Olmo2,
        Self::SmolLm3,
        Self::Mixtral,
        Self::Qwen3Moe,
    ];

    /// The value of `model_type` in `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Flint => "flint",
            Self::Gpt2 => "gpt2",
            Self::GptNeoX => "gpt_neox",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3_text",
            Self::Phi3 => "phi3",
            Self::Olmo2 => "olmo2",
            Self::SmolLm3 => "smollm3",
            Self::Mixtral => "mixtral",
            Self::Qwen3Moe => "qwen3_moe",
        }
    }

    /// The class that transformers runs it with.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Flint => "FlintForCausalLM",
            Self::Gpt2 => "GPT2LMHeadModel",
            Self::GptNeoX => "GPTNeoXForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Gemma2 => "Gemma2ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
            Self::Phi3 => "Phi3ForCausalLM",
            Self::Olmo2 => "Olmo2ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
            Self::Mixtral => "MixtralForCausalLM",
            Self::Qwen3Moe => "Qwen3MoeForCausalLM",
        }
    }

    /// The family of a `model_type`.
    pub fn of_model_type(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.model_type() == model_type)
    }
}
