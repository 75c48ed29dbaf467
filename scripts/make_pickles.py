#!/usr/bin/env python3
"""Writes the pickles of the tests, and the arrays that are in them.

    venv/bin/python scripts/make_pickles.py

with numpy 2.4.6, ml_dtypes 0.5.4, safetensors 0.8.0; and, for `tests/data/pickles`, jax 0.10.2, flax 0.12.8, optax 0.2.8,
dm-haiku 0.0.17, joblib 1.6.0. Each `NAME.pkl` there has its arrays in `NAME.safetensors`.

`tests/data/shared.pickleN` is a tree whose parts refer to each other: a dictionary, a list, an array and a type of elements
stand in it twice, and pickle writes each once.
"""

import collections
import os
import pathlib
import pickle
import sys
import types

os.environ["JAX_PLATFORMS"] = "cpu"

import flax.core
import flax.training.train_state
import jax
import jax.numpy as jnp
import joblib
import ml_dtypes
import numpy as np
import optax
import safetensors.numpy
from haiku._src.data_structures import FlatMapping

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests/data"
PICKLES = DATA / "pickles"


def write_shared():
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
        (DATA / f"shared.pickle{protocol}").write_bytes(pickle.dumps(tree, protocol))
    flat = {
        "a.w": shared["w"], "b.w": shared["w"], "x": tree["x"].astype("<f4"), "y": tree["y"].astype("<f4"),
        "halves.0": halves, "halves.1": halves, "f": shared["w"], "od.q": tied, "c.0": tied, "c.1": tied, "d.0": tied,
        "d.1": tied,
    }
    safetensors.numpy.save_file(flat, DATA / "shared.safetensors")


def save(name, content, arrays):
    (PICKLES / f"{name}.pkl").write_bytes(content)
    # Without dimensions, an array must stay so (np.ascontiguousarray would give it one).
    arrays = {key: np.asarray(array) for key, array in arrays.items()}
    arrays = {key: array if array.flags.c_contiguous else array.copy("C") for key, array in arrays.items()}
    safetensors.numpy.save_file(arrays, PICKLES / f"{name}.safetensors")


def main():
    write_shared()
    PICKLES.mkdir(exist_ok=True)
    w = np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5
    b = np.array([-1, 200, 70000], np.int32)

    # The protocols of Python 2, with text and numbers beside the arrays.
    old = {"w": w, "it's": np.asfortranarray(w), "n": -5, "big": 2.5, "yes": True, "text": "né\n\\", "none": None}
    for protocol in (0, 1):
        arrays = {"w": w, "it's": w, "n": np.int64(-5), "big": np.float64(2.5), "yes": np.bool_(True)}
        save(f"protocol{protocol}", pickle.dumps(old, protocol), arrays)

    # What JAX users have.
    params = flax.core.freeze({"dense": {"kernel": jnp.asarray(w), "bias": jnp.asarray(b)}})
    count = collections.defaultdict(list, steps=np.int32(7))
    adam = optax.adam(1e-3).init({"w": jnp.ones(2)})
    tree = {
        "params": params, "opt": adam, "counts": count, "order": collections.OrderedDict(z=w, a=b), "c": 1 + 2j,
        "config": "two layers", "raw": b"\x00\xff", "half": jnp.asarray([1.5], jnp.bfloat16),
    }
    arrays = {
        "params.dense.kernel": w, "params.dense.bias": b, "opt.0.count": np.int32(0), "opt.0.mu.w": np.zeros(2, np.float32),
        "opt.0.nu.w": np.zeros(2, np.float32), "counts.steps": np.int32(7), "order.z": w, "order.a": b,
        "c": np.complex64(1 + 2j), "half": np.array([1.5], ml_dtypes.bfloat16),
    }
    save("jax", pickle.dumps(tree), arrays)

    state = flax.training.train_state.TrainState(step=3, apply_fn=None, params={"w": w}, tx=None, opt_state=adam)
    arrays = {key.replace("opt.", "opt_state."): value for key, value in arrays.items() if key.startswith("opt.")}
    save("train_state", pickle.dumps(state), {"step": np.int64(3), "params.w": w, **arrays})

    flat = FlatMapping({"mlp/~/linear_0": {"w": w, "b": b}})
    save("haiku", pickle.dumps(flat), {"mlp/~/linear_0.w": w, "mlp/~/linear_0.b": b})

    # What joblib writes: the arrays' bytes follow the pickle's own.
    model = {"model": {"w": w, "f": np.asfortranarray(w), "half": np.ones(3, np.float16)}, "name": "x", "n": 4}
    arrays = {"model.w": w, "model.f": w, "model.half": np.ones(3, np.float16), "n": np.int64(4)}
    for name, compress in (("joblib", 0), ("joblib_zlib", ("zlib", 3)), ("joblib_gzip", ("gzip", 3))):
        path = PICKLES / f"{name}.pkl"
        joblib.dump(model, path, compress=compress)
        save(name, path.read_bytes(), arrays)

    # What has no place in a tree of arrays, beside an array.
    odd = {"w": w, "objects": np.array([None, "x"], object), "names": np.array(["a", "bc"]), "large": 1 << 80}
    save("odd", pickle.dumps(odd), {"w": w})
    # Objects of classes that are not known: without arrays in them, and with one.
    deep = [{"seen": {1, 2}}, optax.adam, types.SimpleNamespace(weight=w)]
    (PICKLES / "refused.pkl").write_bytes(pickle.dumps({"w": w, "deep": deep}))

    # Arrays where they are not looked for: in a list that is more than one, under a mask, among objects.
    class Layers(list):
        pass

    Layers.__module__, Layers.__qualname__ = "models", "Layers"
    sys.modules["models"] = types.SimpleNamespace(Layers=Layers)
    hidden = {
        "layers": (0, Layers([w])), "masked": (2, np.ma.masked_array(w, w > 0)), "objects": (4, np.array([w, None], object)),
    }
    for name, (protocol, value) in hidden.items():
        (PICKLES / f"{name}.refused").write_bytes(pickle.dumps({"w": w, name: value}, protocol))

    # Archives: a directory, a text, strings, objects.
    import zipfile
    path = PICKLES / "odd.npz"
    np.savez(path, w=w, description=np.array("né"), names=np.array(["a", "bc"]), objects=np.array([None], object))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("folder/", "")
        archive.writestr("readme.txt", "read me")


main()
print("jax", jax.__version__, "flax", flax.__version__, "optax", optax.__version__, "joblib", joblib.__version__)
