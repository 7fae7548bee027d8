"""Makes model/tests/fixtures/lora: adapters of the tiny models in model/tests/fixtures/families, and the logits with them.

    pip install torch transformers==5.23.0 peft safetensors numpy
    python tools/lora_fixtures.py            # writes the fixtures
    FLINT_SAVED=DIR cargo test -p model adapters     # leaves the same adapters, written by Flint, in DIR
    python tools/lora_fixtures.py --check DIR        # opens them with PEFT and compares the logits

Both factors are random, so that an adapter changes something, and small, so that the logits keep their size.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file

FIXTURES = Path(__file__).parent.parent / "model/tests/fixtures"
CASES = {
    "llama": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]),
    "llama_rank_stabilised": dict(r=9, lora_alpha=6, use_rslora=True, target_modules="all-linear"),
    "gpt2": dict(r=3, lora_alpha=5, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    "gpt_neox": dict(r=2, lora_alpha=4, target_modules=["query_key_value", "dense"]),
    "phi3": dict(r=2, lora_alpha=3, target_modules=["qkv_proj", "gate_up_proj"]),
}


def family(name):
    return FIXTURES / "families" / name.removesuffix("_rank_stabilised")


def model_of(name):
    return hf.AutoModelForCausalLM.from_pretrained(family(name), dtype=torch.float32).eval()


def ids_of(name):
    ids = load_file(family(name) / "expected.safetensors")["ids"]
    return torch.from_numpy(ids.astype(np.int64)).reshape(1, -1)


def write():
    for seed, (name, config) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        model = get_peft_model(model_of(name), LoraConfig(task_type="CAUSAL_LM", **config))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.data = (torch.randn_like(parameter) * 0.2).half().float()
        with torch.no_grad():
            logits = model(ids_of(name)).logits[0]
        out = FIXTURES / "lora" / name
        shutil.rmtree(out, ignore_errors=True)
        model.save_pretrained(out)
        (out / "README.md").unlink(missing_ok=True)
        saved = json.loads((out / "adapter_config.json").read_text())
        # Without the folder of whoever made it, and in order.
        saved |= {"base_model_name_or_path": family(name).name, "target_modules": sorted(saved["target_modules"])}
        (out / "adapter_config.json").write_text(json.dumps(saved, indent=2) + "\n")
        tensors = load_file(out / "adapter_model.safetensors")
        save_file({k: v.astype(np.float16) for k, v in tensors.items()}, out / "adapter_model.safetensors")
        save_file({"logits": logits.numpy()}, out / "expected.safetensors")
        print(name, len(tensors), "tensors")


def check(folder):
    for name in CASES:
        model = PeftModel.from_pretrained(model_of(name), Path(folder) / name).eval()
        with torch.no_grad():
            logits = model(ids_of(name)).logits[0].numpy()
        want = load_file(FIXTURES / "lora" / name / "expected.safetensors")["logits"]
        print(name, "largest difference", np.abs(logits - want).max())


if __name__ == "__main__":
    check(sys.argv[2]) if sys.argv[1:2] == ["--check"] else write()
