"""Makes model/tests/fixtures/families: tiny models of every family with random weights, and their logits.

    pip install torch transformers==5.23.0 safetensors numpy
    python tools/model_fixtures.py            # writes the fixtures
    FLINT_SAVED=DIR cargo test -p model saved        # leaves the same models, written by Flint, in DIR
    python tools/model_fixtures.py --check DIR/*     # opens them with transformers and compares the logits

Weights are written as float16, so that the files stay small, and read back as float32 before the logits are computed:
they are what transformers gives for exactly the numbers in the file.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

OUT = Path(__file__).parent.parent / "model/tests/fixtures/families"
POSITIONS = 64
VOCAB = 61

SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
GROUPED = dict(SIZES, num_key_value_heads=2)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=32)
LINEAR = dict(rope_type="linear", rope_theta=1000.0, factor=4.0)


def with_rope(config, parameters):
    """Set afterwards, because some constructors fill in what is not given."""
    config.rope_parameters = parameters
    return config


FAMILIES = {
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=VOCAB, n_positions=128, n_embd=24, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None
    ),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**SIZES, rotary_pct=0.67),
    "gpt_neox_sequential": lambda: hf.GPTNeoXConfig(**SIZES, rotary_pct=0.34, use_parallel_residual=False),
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "llama3": lambda: with_rope(hf.LlamaConfig(**GROUPED, tie_word_embeddings=True), LLAMA3),
    "llama_yarn_bias": lambda: with_rope(hf.LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True), YARN),
    "llama_linear": lambda: with_rope(hf.LlamaConfig(**dict(SIZES, num_key_value_heads=1)), LINEAR),
    "mistral": lambda: hf.MistralConfig(**GROUPED, head_dim=8, sliding_window=16),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "qwen2_window": lambda: hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=10),
    "gemma2": lambda: hf.Gemma2Config(
        **GROUPED,
        head_dim=10,
        sliding_window=16,
        query_pre_attn_scalar=7,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3_text": lambda: hf.Gemma3TextConfig(
        **GROUPED,
        head_dim=10,
        sliding_window=16,
        query_pre_attn_scalar=7,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi3": lambda: hf.Phi3Config(**GROUPED, sliding_window=16),
    "olmo2": lambda: hf.Olmo2Config(**GROUPED),
    "smollm3": lambda: hf.SmolLM3Config(**GROUPED, no_rope_layers=[1, 0]),
}


def make(name, config):
    torch.manual_seed(sum(name.encode()))
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            std = 0.5 if "embed" in key or "wte" in key or "wpe" in key else 0.25
            # Gains and biases too: a model that ignores one must not pass.
            noise = torch.randn_like(parameter) * (std if parameter.dim() > 1 else 0.2)
            parameter.copy_(noise + (0 if parameter.dim() > 1 else parameter))
            parameter.copy_(parameter.half().float())
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(0, VOCAB, (1, POSITIONS))
    with torch.no_grad():
        logits = model(ids).logits[0]
    save_file(
        {"ids": ids[0].to(torch.int32).numpy(), "logits": logits.numpy().astype(np.float32)},
        folder / "expected.safetensors",
    )
    spread = logits.std().item()
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits with deviation {spread:.2f}")
    assert spread > 0.3, "too quiet to tell right from wrong"


def check(folder):
    folder = Path(folder)
    expected = load_file(OUT / folder.name / "expected.safetensors")
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(expected["ids"]).long()[None]).logits[0].numpy()
    worst = np.abs(logits - expected["logits"]).max()
    print(f"{folder.name}: written as {model.config.model_type}, largest difference {worst:.1e}")
    assert worst < 1e-4


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        for argument in sys.argv[2:]:
            check(argument)
    else:
        for family, config in FAMILIES.items():
            make(family, config())
