#!/usr/bin/env python3
"""Writes `tests/data/shared.pickleN`, a tree whose parts refer to each other, and `tests/data/shared.safetensors`, its arrays.

    venv/bin/python scripts/make_pickles.py        (numpy 2.4.6, ml_dtypes 0.5.4, safetensors 0.8.0)

A dictionary, a list, an array and a type of elements stand in it twice; pickle writes each once.
"""

import collections
import pathlib
import pickle

import ml_dtypes
import numpy as np
import safetensors.numpy

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/data"
shared = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
big_endian = np.dtype(">f4")
tied = np.arange(4, dtype=np.int16)
halves = np.array([1, 2.5], ml_dtypes.bfloat16)
pair = [tied, tied]
tree = {
    "a": shared, "b": shared, "x": np.array([1, 2, 3], big_endian), "y": np.array([4, 5, 6], big_endian),
    "halves": (halves, halves.copy()), "f": np.asfortranarray(shared["w"]), "od": collections.OrderedDict(q=tied),
    "c": pair, "d": pair,
}
for protocol in (2, 4, 5):
    (OUT / f"shared.pickle{protocol}").write_bytes(pickle.dumps(tree, protocol))
flat = {
    "a.w": shared["w"], "b.w": shared["w"], "x": tree["x"].astype("<f4"), "y": tree["y"].astype("<f4"), "halves.0": halves,
    "halves.1": halves, "f": shared["w"], "od.q": tied, "c.0": tied, "c.1": tied, "d.0": tied, "d.1": tied,
}
safetensors.numpy.save_file(flat, OUT / "shared.safetensors")
