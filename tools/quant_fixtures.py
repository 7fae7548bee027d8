"""Makes quant/tests/fixtures/blocks.json: what the package `gguf` makes of blocks, and of numbers.

    pip install gguf==0.19.0 numpy
    python tools/quant_fixtures.py LIBRARY

LIBRARY is ggml (https://github.com/ggml-org/llama.cpp, `src/ggml-quants.c` and what it needs) as a shared library, built
with `-O2 -ffp-contract=off`: its reference makes the blocks of those formats that the package only reads. For the others
both must agree. The fixture has, in hexadecimal, for each format

    "dequantize": blocks of random bytes, and one with every bit of its numbers set; and the numbers they stand for
    "quantize":   the blocks of the numbers in "values"
    "weighed":    those of the same numbers in rows of 512 whose columns have the importance in "importance"

Numbers are f32, little-endian. A block of zeros as IQ4_NL has what was in memory for its numbers: here, zeros. Blocks whose numbers are not all finite are drawn again.
"""

import ctypes
import json
import pathlib
import sys

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize

OUT = pathlib.Path(__file__).parent.parent / "quant/tests/fixtures/blocks.json"

READ = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
BY_LIBRARY = "Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()
WRITTEN = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1".split()
# Where the scales of 16 bits stand in a block, from its start or its end.
SCALES = {"Q4_1": [0, 2], "Q5_1": [0, 2], "Q2_K": [-4, -2], "Q3_K": [-2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [-2]}


def hexadecimal(array):
    return np.ascontiguousarray(array).tobytes().hex()


def full_block(name, n_bytes):
    """Every bit set, and the scales 1 and -0.5."""
    block = np.full(n_bytes, 255, dtype=np.uint8)
    for place, scale in zip(SCALES.get(name, [0]), [1.0, -0.5]):
        place %= n_bytes
        block[place : place + 2] = np.array([scale], dtype=np.float16).view(np.uint8)
    return block


def blocks(name, rng):
    n_elements, n_bytes = GGML_QUANT_SIZES[Type[name]]
    n_blocks = 2 if n_elements == 256 else 4 if n_elements == 32 else 64
    found = [] if n_elements == 1 else [full_block(name, n_bytes)]
    while len(found) < n_blocks + 1:
        block = rng.integers(0, 256, n_bytes, dtype=np.uint8)
        with np.errstate(all="ignore"):
            if np.isfinite(dequantize(block.reshape(1, -1), Type[name])).all():
                found.append(block)
    return np.concatenate(found).reshape(1, -1)


def values(rng):
    """Rows of 32 for every corner, then 256 and more as weights have them."""
    ramp = np.arange(32, dtype=np.float32)
    corners = [
        np.zeros(32),
        np.full(32, 0.75),
        np.full(32, -3.0),
        ramp - 16,
        16 - ramp,
        (ramp - 8) / 2,
        ramp * 1e-7,
        ramp * 1e4 - 1e5,
        np.where(ramp == 7, -1, 1),
        np.where(ramp == 7, 1e-6, 0),
        np.tile([0.5, -0.5, 1.5, -2.5], 8),
        np.where(ramp == 7, -0.0, 1),
    ]
    weights = [rng.normal(0, 0.02, 256), rng.standard_t(3, 256), rng.uniform(0.5, 1.5, 256)]
    mixed = np.concatenate([rng.normal(0, 10.0**-k, 32) for k in range(8)])
    padding = [rng.normal(0, 1, 32) for _ in range(-len(corners) % 8)]
    return np.concatenate([*corners, *padding, *weights, mixed]).astype(np.float32)


def by_library(library, name, numbers):
    n_elements, n_bytes = GGML_QUANT_SIZES[Type[name]]
    function = getattr(library, f"quantize_row_{name[:-2].lower()}{name[-2:].replace('NL', 'nl').replace('XS', 'xs')}_ref")
    n_blocks = len(numbers) // n_elements
    out = np.zeros((n_blocks, n_bytes), dtype=np.uint8)
    numbers = np.ascontiguousarray(numbers, dtype=np.float32)
    function(ctypes.c_void_p(numbers.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(len(numbers)))
    if name == "IQ4_NL":
        out[(numbers.reshape(n_blocks, n_elements) == 0).all(axis=1)] = 0
    return out


def weighed(library, name, numbers, importance):
    """As llama.cpp's tools quantize with an importance matrix."""
    n_elements, n_bytes = GGML_QUANT_SIZES[Type[name]]
    function = getattr(library, f"quantize_{name[:-2].lower()}{name[-2:].replace('NL', 'nl').replace('XS', 'xs')}")
    function.restype = ctypes.c_size_t
    n_columns = len(importance)
    n_rows = len(numbers) // n_columns
    out = np.zeros((len(numbers) // n_elements, n_bytes), dtype=np.uint8)
    numbers = np.ascontiguousarray(numbers, dtype=np.float32)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (numbers, out, importance)]
    written = function(*pointers[:2], ctypes.c_int64(n_rows), ctypes.c_int64(n_columns), pointers[2])
    assert written == out.nbytes, (name, written)
    return out


def columns(rng):
    """Mean squares as activations have them: of any size, some alike, some nothing."""
    importance = rng.lognormal(0, 2, 512)
    importance[64:96] = 1
    importance[100:110] = 0
    importance[300] = 1e4
    return importance.astype(np.float32)


def main():
    library = ctypes.CDLL(sys.argv[1])
    rng = np.random.default_rng(20250914)
    fixture = {"values": None, "dequantize": {}, "quantize": {}}
    for name in READ:
        data = blocks(name, rng)
        numbers = dequantize(data, Type[name]).astype(np.float32)
        fixture["dequantize"][name] = {"blocks": hexadecimal(data), "values": hexadecimal(numbers)}
    numbers = values(rng)
    fixture["values"] = hexadecimal(numbers)
    for name in WRITTEN:
        with np.errstate(all="ignore"):
            made = hexadecimal(quantize(numbers.reshape(1, -1), Type[name]))
        if name.startswith("Q"):
            assert made == hexadecimal(by_library(library, name, numbers)), name
        fixture["quantize"][name] = made
    for name in BY_LIBRARY:
        fixture["quantize"][name] = hexadecimal(by_library(library, name, numbers))
    importance = columns(rng)
    fixture["importance"] = hexadecimal(importance)
    fixture["weighed"] = {
        name: hexadecimal(weighed(library, name, numbers, importance)) for name in READ if "Q" in name
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(fixture, indent=1) + "\n")
    print(f"{OUT}: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
