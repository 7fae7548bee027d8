"""Makes model/tests/fixtures/families: tiny models of every family with random weights, and their logits.

    pip install torch transformers==5.23.0 safetensors numpy
    python tools/model_fixtures.py            # writes the fixtures, or those named on the command line
    FLINT_SAVED=DIR cargo test -p model saved        # leaves the same models, written by Flint, in DIR
    python tools/model_fixtures.py --check DIR/*     # opens them with transformers and compares the logits
    python tools/model_fixtures.py --random DIR N    # N models of random shape of each family, for
    FLINT_FAMILIES=DIR cargo test -p model families  # which reads those in place of the fixtures

Weights are written as float16, so that the files stay small, and read back as float32 before the logits are computed:
they are what transformers gives for exactly the numbers in the file.
"""

import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

EAGER = dict(dtype=torch.float32, attn_implementation="eager", experts_implementation="eager")
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
DYNAMIC = dict(rope_type="dynamic", rope_theta=1000.0, factor=4.0)
LINEAR = dict(rope_type="linear", rope_theta=1000.0, factor=4.0)


def with_rope(config, parameters):
    """Set afterwards, because some constructors fill in what is not given."""
    config.rope_parameters = parameters
    return config


def longrope(n_pairs):
    short, long = [[1.0 + i * step for i in range(n_pairs)] for step in (0.1, 2.0)]
    return dict(rope_type="longrope", rope_theta=1000.0, short_factor=short, long_factor=long)


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
    # Half as many positions as there are ids.
    "llama_dynamic": lambda: with_rope(hf.LlamaConfig(**dict(GROUPED, max_position_embeddings=32)), DYNAMIC),
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
    # 64 ids are long, and then short.
    "phi3_longrope": lambda: hf.Phi3Config(
        **GROUPED, original_max_position_embeddings=32, rope_parameters=longrope(3), sliding_window=48
    ),
    "phi3_longrope_short": lambda: hf.Phi3Config(
        **dict(GROUPED, hidden_size=32),
        original_max_position_embeddings=100,
        rope_parameters=dict(longrope(3), partial_rotary_factor=0.75),
    ),
    "olmo2": lambda: hf.Olmo2Config(**GROUPED),
    "mixtral": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=5, num_experts_per_tok=2, sliding_window=16),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **dict(GROUPED, num_hidden_layers=3),
        head_dim=10,
        num_experts=6,
        num_experts_per_tok=3,
        moe_intermediate_size=12,
        mlp_only_layers=[1],
    ),
    "qwen3_moe_normalised": lambda: hf.Qwen3MoeConfig(
        **dict(GROUPED, num_hidden_layers=3),
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        decoder_sparse_step=2,
        norm_topk_prob=True,
        attention_bias=True,
    ),
    "smollm3": lambda: hf.SmolLM3Config(**GROUPED, no_rope_layers=[1, 0]),
}


def random_config(family, rng):
    """A shape that the family's class allows. What has no effect on the logits stays at its default."""
    pick = rng.choice
    n_kv_head = pick([1, 2, 3])
    n_head = n_kv_head * pick([1, 2, 3])
    width = 2 * rng.randint(2, 9)
    n_layer = rng.randint(1, 4)
    sizes = dict(
        vocab_size=VOCAB,
        num_hidden_layers=n_layer,
        num_attention_heads=n_head,
        hidden_size=n_head * width,
        intermediate_size=rng.randint(5, 50),
        max_position_embeddings=rng.randint(64, 200),
        tie_word_embeddings=pick([True, False]),
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    ids = dict(bos_token_id=None, eos_token_id=None)
    if family == "GPT2":
        return hf.GPT2Config(
            vocab_size=VOCAB, n_positions=rng.randint(64, 200), n_embd=n_head * width, n_layer=n_layer, n_head=n_head,
            n_inner=pick([None, 33]), activation_function=pick(["gelu_new", "gelu", "relu", "silu"]),
            layer_norm_epsilon=pick([1e-5, 1e-3]), tie_word_embeddings=pick([True, False]), **ids,
        )
    factor = pick([1.0, 2.0, 3.5, 8.0])
    original = pick([16, 32, 64])
    theta = pick([100.0, 10_000.0, 500_000.0])
    part = pick([1.0, 0.5, 0.34])
    is_odd = int(width * part) % 2 == 1
    part = part if family == "GPTNeoX" or family == "Phi3" and not is_odd and width * part >= 4 else 1.0
    n_pairs = (int(width * part) + 1) // 2
    yarn = dict(rope_type="yarn", factor=factor, original_max_position_embeddings=original)
    yarn_more = dict(beta_fast=pick([8.0, 32.0]), beta_slow=pick([0.5, 1.0]), attention_factor=1.5, truncate=False)
    longrope = dict(
        rope_type="longrope",
        short_factor=[rng.uniform(1, 2) for _ in range(n_pairs)],
        long_factor=[rng.uniform(1, 9) for _ in range(n_pairs)],
        original_max_position_embeddings=original,
    )
    ropes = [dict(rope_type="default"), longrope]
    if family != "Phi3":
        ropes += [
            dict(rope_type="linear", factor=factor),
            dict(rope_type="dynamic", factor=factor),
            yarn,
            dict(yarn, **yarn_more),
            dict(longrope, factor=factor),
            dict(
                rope_type="llama3", factor=factor, low_freq_factor=pick([1.0, 2.0]), high_freq_factor=4.0,
                original_max_position_embeddings=original,
            ),
        ]
    rope = dict(pick(ropes), rope_theta=theta)
    if rope["rope_type"] == "dynamic" and factor > 1:
        sizes["max_position_embeddings"] = rng.randint(32, 80)
    if part != 1.0 or family == "GPTNeoX":
        rope["partial_rotary_factor"] = part
    sizes["rope_parameters"] = rope
    eps = pick([1e-6, 1e-5, 1e-3])
    act = dict(hidden_act=pick(["silu", "silu", "gelu", "gelu_pytorch_tanh", "relu"]))
    bias = dict(attention_bias=pick([True, False]))
    if family == "GPTNeoX":
        act["hidden_act"] = pick(["gelu", "gelu_new", "relu", "gelu_fast"])
        return hf.GPTNeoXConfig(**sizes, **act, **bias, layer_norm_eps=eps, use_parallel_residual=pick([True, False]))
    sizes.update(num_key_value_heads=n_kv_head, rms_norm_eps=eps)
    window = pick([1, 7, 16, 63, 64, 200])
    types = [pick(["sliding_attention", "full_attention"]) for _ in range(n_layer)]
    # Heads as wide as they like, in any stream.
    own_width = dict(sizes, head_dim=width, hidden_size=pick([n_head * width, n_head * 6]))
    switched = pick([dict(), dict(use_sliding_window=True, sliding_window=window, max_window_layers=rng.randint(0, n_layer)),
                     dict(use_sliding_window=True, sliding_window=window, layer_types=types)])
    match family:
        case "Llama":
            return hf.LlamaConfig(**own_width, **act, **bias, mlp_bias=pick([True, False]))
        case "Mistral":
            return hf.MistralConfig(**own_width, **act, sliding_window=pick([None, window]))
        case "Mixtral":
            n = rng.randint(1, 7)
            return hf.MixtralConfig(
                **own_width, **act, sliding_window=pick([None, window]), num_local_experts=n, num_experts_per_tok=rng.randint(1, n)
            )
        case "Qwen2":
            return hf.Qwen2Config(**sizes, **act, **switched)
        case "Qwen3":
            return hf.Qwen3Config(**own_width, **act, **bias, **switched)
        case "Qwen3Moe":
            n = rng.randint(1, 7)
            return hf.Qwen3MoeConfig(
                **own_width, **act, **bias, **pick([dict(), dict(use_sliding_window=True, sliding_window=window)]),
                num_experts=n, num_experts_per_tok=rng.randint(1, n), moe_intermediate_size=rng.randint(5, 30),
                norm_topk_prob=pick([True, False]), decoder_sparse_step=pick([1, 1, 2]),
                mlp_only_layers=pick([None, [0]]),
            )
        case "Gemma2":
            return hf.Gemma2Config(
                **own_width, **bias, hidden_activation=pick(["gelu_pytorch_tanh", "silu"]), sliding_window=window,
                query_pre_attn_scalar=rng.randint(4, 30), attn_logit_softcapping=pick([None, 2.0]),
                final_logit_softcapping=pick([None, 3.0]), **pick([dict(), dict(layer_types=types)]),
            )
        case "Gemma3Text":
            rope = own_width.pop("rope_parameters")
            local = dict(rope_type="default", rope_theta=pick([100.0, 10_000.0]))
            return hf.Gemma3TextConfig(
                **own_width, **bias, sliding_window=window, query_pre_attn_scalar=rng.randint(4, 30),
                attn_logit_softcapping=pick([None, 2.0]), final_logit_softcapping=pick([None, 3.0]),
                rope_parameters=pick([None, dict(full_attention=rope, sliding_attention=local)]),
                **pick([dict(), dict(layer_types=types)]),
            )
        case "Phi3":
            if rope["rope_type"] == "longrope":
                sizes["original_max_position_embeddings"] = original
            return hf.Phi3Config(**sizes, **act, sliding_window=pick([None, window]))
        case "Olmo2":
            return hf.Olmo2Config(**sizes, **act, **bias)
        case "SmolLM3":
            return hf.SmolLM3Config(
                **sizes, **act, **bias, mlp_bias=pick([True, False]), no_rope_layer_interval=pick([2, 3, 4]),
                **pick([dict(), dict(no_rope_layers=[pick([0, 1]) for _ in range(n_layer)])]),
            )


RANDOM = "GPT2 GPTNeoX Llama Mistral Mixtral Qwen2 Qwen3 Qwen3Moe Gemma2 Gemma3Text Phi3 Olmo2 SmolLM3".split()


def make_random(folder, n):
    for family in RANDOM:
        for seed in range(n):
            name = f"{family}-{seed}"
            try:
                make(name, random_config(family, random.Random(name)), Path(folder))
            except Exception as error:
                print(f"{name}: transformers refuses it: {error}")


def make(name, config, out=OUT):
    torch.manual_seed(sum(name.encode()))
    model = hf.AutoModelForCausalLM.from_config(config, **EAGER)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            std = 0.5 if "embed" in key or "wte" in key or "wpe" in key else 0.25
            # Gains and biases too: a model that ignores one must not pass.
            noise = torch.randn_like(parameter) * (std if parameter.dim() > 1 else 0.2)
            parameter.copy_(noise + (0 if parameter.dim() > 1 else parameter))
            parameter.copy_(parameter.half().float())
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = hf.AutoModelForCausalLM.from_pretrained(folder, **EAGER).eval()
    ids = torch.randint(0, VOCAB, (1, POSITIONS))
    with torch.no_grad():
        logits = model(ids).logits[0]
    save_file(
        {"ids": ids[0].to(torch.int32).numpy(), "logits": logits.numpy().astype(np.float32)},
        folder / "expected.safetensors",
    )
    spread = logits.std().item()
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits with deviation {spread:.2f}")
    assert out != OUT or spread > 0.3, "too quiet to tell right from wrong"


def check(folder):
    folder = Path(folder)
    out = Path(os.environ.get("FLINT_FAMILIES", OUT))
    expected = load_file(out / folder.name / "expected.safetensors")
    model = hf.AutoModelForCausalLM.from_pretrained(folder, **EAGER).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(expected["ids"]).long()[None]).logits[0].numpy()
    worst = np.abs(logits - expected["logits"]).max()
    print(f"{folder.name}: written as {model.config.model_type}, largest difference {worst:.1e}")
    return worst < 1e-4


def checked(folder):
    try:
        return check(folder)
    except Exception as error:
        print(f"{folder}: {error}")
        return False


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        failed = [argument for argument in sys.argv[2:] if not checked(argument)]
        sys.exit(f"failed: {failed}" if failed else 0)
    elif sys.argv[1:2] == ["--random"]:
        make_random(sys.argv[2], int(sys.argv[3]))
    else:
        for family, config in FAMILIES.items():
            if not sys.argv[1:] or family in sys.argv[1:]:
                make(family, config())
