#!/usr/bin/env python3
"""The current JAX side of cli/tests/interop.rs: trees through safejax_tree.py, safetensors.flax and Flax.

    interop_jax.py write DIRECTORY      writes trees with safejax_tree.py and msgpack with Flax
    interop_jax.py check DIRECTORY      reads what safejax made of the trees, and compares
    interop_jax.py check-formats DIRECTORY   the same for other formats

Run with the packages of requirements-jax.txt.
"""

import collections
import pathlib
import pickle
import sys

import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import safetensors.flax

import safejax_tree

jax.config.update("jax_enable_x64", True)
Point = collections.namedtuple("Point", ["x", "y"])


def params():
    keys = jax.random.split(jax.random.key(0), 4)
    dense = lambda key, m, n: {"kernel": jax.random.normal(key, (m, n), jnp.float32), "bias": jnp.zeros(n, jnp.bfloat16)}
    return {"params": {"Dense_0": dense(keys[0], 5, 7), "Dense_1": dense(keys[1], 7, 3)}}


def train_state():
    """What a trainer saves: params, an optimizer's named tuples, a step."""
    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params())
    return {"step": 7, "params": tree, "opt_state": optax.adamw(1e-3).init(tree)}


def one_of_everything():
    return {
        "list": [jnp.arange(3), None, {}],
        "tuple": (Point(1.5, jnp.float64(2)), ()),
        "a.dotted": np.int64(2**40),
        "": jnp.complex64(1 + 2j),
        "integers": {10: jnp.uint8(1), -9: True},
        "quotes' \" and\nnewlines/::": jnp.float8_e4m3fn(0.5),
        "ordered": collections.OrderedDict(z=jnp.zeros((0, 2)), a=3 + 4j),
    }


TREES = {"params": params, "train_state": train_state, "everything": one_of_everything}


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs), jax.tree.structure(ours)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        if isinstance(b, (bool, int, float, complex)) and not isinstance(b, np.generic):
            assert type(a) is type(b) and a == b, (a, b)
            continue
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), (a, b)


def write(directory):
    for name, make in TREES.items():
        safejax_tree.save_file(make(), directory / f"{name}.safetensors", {"by": "safejax_tree.py"})
    (directory / "params.msgpack").write_bytes(flax.serialization.to_bytes(params()))
    (directory / "train_state.msgpack").write_bytes(flax.serialization.to_bytes(train_state()))
    odd = {"bool": np.array([True, False]), "scalar": np.float32(2.5), "complex": 1 + 2j, "int": 2**40, "float": 0.1,
           "flag": True, "none": None, "f8": jnp.ones(3, jnp.float8_e5m2), "c64": jnp.ones(2, jnp.complex64)}  # fmt: skip
    (directory / "odd.msgpack").write_bytes(flax.serialization.to_bytes(odd))
    # Arrays over this size are chunked; Flax's own limit is 2**30 bytes.
    flax.serialization.MAX_CHUNK_SIZE = 64
    chunked = {"big": np.arange(40, dtype=np.float32).reshape(5, 8), "small": np.arange(3)}
    (directory / "chunked.msgpack").write_bytes(flax.serialization.to_bytes(chunked))
    arrays = {"a/b": np.arange(6).reshape(2, 3), "c": np.ones(4, np.float16)}
    np.savez(directory / "stored.npz", **arrays)
    np.savez_compressed(directory / "deflated.npz", **arrays)
    for protocol in (2, 5):
        (directory / f"arrays.pickle{protocol}").write_bytes(pickle.dumps(pickled(), protocol))


def pickled():
    return {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "half": np.arange(4).astype(ml_dtypes.bfloat16),
        "scalar": np.float64(2.5),
        "list": [np.zeros((0, 2), np.int8), None, 3],
        "nested": {"flag": True, "x": 0.5},
    }


def check_formats(directory):
    load = lambda name: safejax_tree.load_file(directory / f"{name}.safetensors")
    state = flax.serialization.to_state_dict
    same(load("params.from-msgpack"), params())
    same(load("train_state.from-msgpack"), jax.tree.map(np.asarray, state(train_state())) | {"step": 7})
    odd = load("odd.from-msgpack")
    assert odd["complex"] == 1 + 2j and odd["int"] == 2**40 and odd["float"] == 0.1, odd
    assert odd["flag"] is True and odd["none"] is None and odd["scalar"].dtype == np.float32
    assert odd["f8"].dtype == ml_dtypes.float8_e5m2 and odd["c64"].dtype == np.complex64
    assert (load("chunked.from-msgpack")["big"] == np.arange(40, dtype=np.float32).reshape(5, 8)).all()
    for name in ("stored", "deflated"):
        npz = load(f"{name}.from-npz")
        assert (npz["a/b"] == np.arange(6).reshape(2, 3)).all() and npz["c"].dtype == np.float16
    native = lambda leaf: leaf.astype(leaf.dtype.newbyteorder("=")) if isinstance(leaf, np.ndarray) else leaf
    for protocol in (2, 5):
        same(load(f"arrays.from-pickle{protocol}"), jax.tree.map(native, pickled()))
    restored = flax.serialization.from_bytes(params(), (directory / "params.ours.msgpack").read_bytes())
    same(jax.tree.map(np.asarray, restored), jax.tree.map(np.asarray, params()))
    restored = flax.serialization.from_bytes(train_state(), (directory / "train_state.ours.msgpack").read_bytes())
    same(jax.tree.map(np.asarray, restored), jax.tree.map(np.asarray, train_state()))
    npz = np.load(directory / "params.ours.npz")
    assert sorted(npz.files) == sorted(flax.traverse_util.flatten_dict(params(), sep=".")), npz.files


def types(name):
    made = TREES[name]()
    nodes = []
    jax.tree.flatten(made, is_leaf=lambda node: nodes.append(node) if hasattr(node, "_fields") else False)
    return {type(node) for node in nodes if hasattr(node, "_fields")}


def check(directory):
    for name, make in TREES.items():
        ours = directory / f"{name}.ours.safetensors"
        same(safejax_tree.load_file(ours, namedtuples=types(name)), make())
    flat = safetensors.flax.load_file(directory / "params.ours.safetensors")
    same(flax.traverse_util.unflatten_dict(flat, sep="."), params())


if __name__ == "__main__":
    {"write": write, "check": check, "check-formats": check_formats}[sys.argv[1]](pathlib.Path(sys.argv[2]))
