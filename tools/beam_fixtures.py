#!/usr/bin/env python3
"""Makes infer/tests/fixtures/beams.json: what transformers' beam search finds with tiny models of model/tests/fixtures/families.

    pip install torch transformers==5.23.0
    python3 tools/beam_fixtures.py

Some prompts are so long that beams cross a page of 64 positions. Tokens that end a text are chosen among those that the
search finds without any, so that some texts end early.
"""
import itertools
import json
import pathlib

import torch
import transformers as hf

ROOT = pathlib.Path(__file__).resolve().parent.parent
FAMILIES = ROOT / "model/tests/fixtures/families"
OUT = ROOT / "infer/tests/fixtures/beams.json"


def search(model, prompt, n, beams, penalty, early, stop):
    config = hf.GenerationConfig(
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=n,
        length_penalty=penalty,
        early_stopping=early,
        do_sample=False,
        eos_token_id=stop or None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    found = []
    for row, score in zip(out.sequences.tolist(), out.sequences_scores.tolist()):
        row = row[len(prompt) :]
        ends = [i for i, token in enumerate(row) if token in stop]
        found.append({"ids": row[: ends[0] + 1] if ends else row[:n], "score": score})
    return found


def main():
    cases = []
    for family in ("llama", "gpt2"):
        model = hf.AutoModelForCausalLM.from_pretrained(FAMILIES / family, dtype=torch.float32).eval()
        vocab, context = model.config.vocab_size, model.config.max_position_embeddings
        for i, (length, beams) in enumerate(itertools.product((3, 56, 63), (2, 4, 7))):
            generator = torch.Generator().manual_seed(i)
            prompt = torch.randint(0, vocab, (length,), generator=generator).tolist()
            n = min((6, 20, 30)[i % 3], context - length)
            free = search(model, prompt, n, beams, 1.0, False, [])
            common = [token for beam in free for token in beam["ids"][2:]]
            for stop in ([], common[:1], [common[0], common[-1]]):
                penalty, early = [(1.0, False), (0.0, "never"), (2.0, True), (-0.5, False), (1.5, "never")][len(cases) % 5]
                cases.append(
                    {
                        "model": family,
                        "prompt": prompt,
                        "n": n,
                        "beams": beams,
                        "length_penalty": penalty,
                        "early_stopping": early,
                        "stop_ids": sorted(set(stop)),
                        "expected": search(model, prompt, n, beams, penalty, early, sorted(set(stop))),
                    }
                )
    OUT.write_text(json.dumps(cases, separators=(",", ":")) + "\n")
    ended = sum(beam["ids"][-1] in case["stop_ids"] for case in cases for beam in case["expected"])
    print(f"{OUT}: {len(cases)} cases, {ended} texts end by a token, {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
