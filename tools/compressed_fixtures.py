"""Makes model/tests/fixtures/compressed: tiny models that compressed-tensors has quantized, what it makes of their numbers,
and transformers' logits. With a folder that Flint wrote, compares logits.

    pip install torch transformers==5.23.0 compressed-tensors==0.20.0 safetensors numpy
    python tools/compressed_fixtures.py                              # writes the fixtures
    python tools/compressed_fixtures.py --logits MODEL IDS OUT.npy   # logits of a folder: IDS is 1,2,3

Each fixture has, in expected.json, for every quantized matrix the FNV-1a hash of its numbers as compressed-tensors gives
them (float32, little-endian), the ids that were asked, and the logits of the last of them. Scales in BF16 are widened
before: compressed-tensors would round the products to BF16, as it computes in the type of the scales.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from compressed_tensors.compressors import BaseCompressor, ModelCompressor
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    apply_quantization_config,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file

OUT = Path(__file__).parent.parent / "model/tests/fixtures/compressed"
IDS = [1, 5, 30, 2, 2, 17, 9, 28]
CASES = {
    "int8": ("pack-quantized", 64, torch.float32, dict(num_bits=8, strategy="channel")),
    "int8_plain": ("int-quantized", 64, torch.bfloat16, dict(num_bits=8, strategy="channel")),
    "int4_g32": ("pack-quantized", 64, torch.bfloat16, dict(num_bits=4, strategy="group", group_size=32)),
    "int4_g128": ("pack-quantized", 128, torch.float16, dict(num_bits=4, strategy="group", group_size=128)),
}


def tiny(width, dtype):
    config = hf.LlamaConfig(
        vocab_size=32,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.2,
        dtype=dtype,
    )
    torch.manual_seed(width)
    return hf.LlamaForCausalLM(config).to(dtype).eval()


def quantize(model, form, args):
    args = QuantizationArgs(type="int", symmetric=True, dynamic=False, **args)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, format=form)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], format=form)
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        weight = module.weight.data
        groups = weight.reshape(weight.shape[0], -1, args.group_size or weight.shape[1])
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        module.weight_scale.data = scale.to(module.weight_scale.dtype)
        module.quantization_status = QuantizationStatus.FROZEN
    return ModelCompressor.from_pretrained_model(model, quantization_format=form)


def fnv(numbers):
    hashed = 0xCBF29CE484222325
    for byte in numbers.tobytes():
        hashed = (hashed ^ byte) * 0x100000001B3 % 2**64
    return f"{hashed:016x}"


def numbers(folder, form, args):
    """What compressed-tensors makes of the file, in single precision."""
    tensors = load_file(folder / "model.safetensors")
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(symmetric=True, **args))
    compressor = BaseCompressor.get_value_from_registry(form)
    found = {}
    for name in tensors:
        module, end = name.rsplit(".", 1)
        if end == "weight_scale":
            parts = {key.rsplit(".", 1)[1]: value for key, value in tensors.items() if key.rsplit(".", 1)[0] == module}
            parts["weight_scale"] = parts["weight_scale"].float()
            weight = compressor.decompress(parts, scheme)["weight"]
            assert weight.dtype == torch.float32
            found[f"{module}.weight"] = fnv(weight.contiguous().numpy())
    return found


def logits(folder, ids):
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def write():
    for name, (form, width, dtype, args) in CASES.items():
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        model = tiny(width, dtype)
        compressor = quantize(model, form, args)
        compressor.compress_model(model)
        model.save_pretrained(folder)
        compressor.update_config(str(folder))
        (folder / "generation_config.json").unlink(missing_ok=True)
        expected = {
            "numbers": numbers(folder, form, args),
            "ids": IDS,
            "logits": [float(logit) for logit in logits(folder, IDS)[-1]],
        }
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")
        print(name, {path.name: path.stat().st_size for path in folder.iterdir()})


if len(sys.argv) == 1:
    write()
else:
    _, _, folder, ids, out = sys.argv
    np.save(out, logits(folder, [int(id) for id in ids.split(",")]))
