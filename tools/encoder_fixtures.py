"""Makes model/tests/fixtures/encoders: tiny BERT models with random weights, their hidden states and both poolings.

    pip install torch transformers==5.23.0 safetensors numpy
    python tools/encoder_fixtures.py

Weights are written as float16, so that the files stay small, and read back as float32 before anything is computed.
Sequences are run one by one, so that no padding takes part.
"""

from pathlib import Path

import numpy as np
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file

OUT = Path(__file__).parent.parent / "model/tests/fixtures/encoders"
LENGTHS = [1, 2, 7, 64, 65, 100]
VOCAB = 61
SIZES = dict(
    vocab_size=VOCAB, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
    max_position_embeddings=100, pad_token_id=0,
)

# Name, config, class, and how the oldest files call gains and biases of norms.
MODELS = [
    ("gelu", dict(), hf.BertModel, False),
    ("gelu_new_one_type", dict(hidden_act="gelu_new", type_vocab_size=1, layer_norm_eps=1e-5), hf.BertModel, False),
    # With the heads of training, hence the prefix `bert.`, and the old names.
    ("relu_pretraining", dict(hidden_act="relu", num_attention_heads=3), hf.BertForPreTraining, True),
]


def make(name, config, model_class, is_old):
    torch.manual_seed(sum(name.encode()))
    model = model_class(hf.BertConfig(**{**SIZES, **config}))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Gains and biases too: a model that ignores one must not pass.
            noise = torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.2)
            parameter.copy_(noise + (0 if parameter.dim() > 1 else parameter))
            parameter.copy_(parameter.half().float())
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    bert = hf.BertModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    if is_old:
        weights = load_file(folder / "model.safetensors")
        old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
               for k, v in weights.items()}
        old["bert.embeddings.position_ids"] = np.arange(100, dtype=np.int64)[None]
        save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    expected = {}
    for length in LENGTHS:
        ids = torch.randint(0, VOCAB, (1, length))
        with torch.no_grad():
            hidden = bert(ids).last_hidden_state[0]
        expected[f"{length}.ids"] = ids[0].to(torch.int32).numpy()
        expected[f"{length}.hidden"] = hidden.numpy().copy()
        expected[f"{length}.cls"] = torch.nn.functional.normalize(hidden[0], dim=0).numpy()
        expected[f"{length}.mean"] = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
    save_file(expected, folder / "expected.safetensors")
    print(f"{name}: {sum(p.numel() for p in bert.parameters())} parameters, deviation {hidden.std().item():.2f}")


if __name__ == "__main__":
    for entry in MODELS:
        make(*entry)
