#!/usr/bin/env python3
"""Writes GGUF files with what is in them: tests/data/gguf.

    venv/bin/python scripts/make_gguf.py [--directory DIR]

Needs gguf 0.19, ml_dtypes and safetensors. NAME.gguf lies beside NAME.safetensors, which has every tensor by its name.
"""

import argparse
import pathlib

import gguf
import ml_dtypes
import numpy as np
import safetensors.numpy

TYPES = ["int8", "int16", "int32", "int64", "float16", "float32", "float64"]


def numbers(seed, *shape, dtype="float32"):
    return np.random.default_rng(seed).integers(-8, 8, shape).astype(dtype)


def write(path, quantised=False, alignment=None):
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_name("a model")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope", 0.5)
    writer.add_bool("llama.is_small", True)
    writer.add_int64("llama.negative", -7)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5, 2.5])
    found = {f"types.{dtype}": numbers(index, 3, 5, dtype=dtype) for index, dtype in enumerate(TYPES)}
    found["blk.0.attn_q.weight"] = numbers(40, 4, 6, 2)
    found["blk.1.attn_q.weight"] = numbers(41, 33)
    for name, array in found.items():
        writer.add_tensor(name, array)
    half = numbers(50, 4, 3).astype(ml_dtypes.bfloat16)
    writer.add_tensor("types.bfloat16", half.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    found["types.bfloat16"] = half
    if quantised:
        values = gguf.quants.quantize(numbers(51, 2, 64), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor("blk.2.ffn.weight", values, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    safetensors.numpy.save_file(found, path.with_suffix(".safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("tests/data/gguf"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    write(directory / "plain.gguf")
    write(directory / "aligned.gguf", alignment=64)
    # Its content says what it is.
    write(directory / "quantised.bin", quantised=True)


if __name__ == "__main__":
    main()
