#!/usr/bin/env python3
"""What each library brings back of a tree, kind by kind: the table in README.md.

    target/interop-jax/bin/python scripts/what_is_kept.py        safetensors.flax, Flax msgpack, npz, safejax
    target/interop-safejax/bin/python scripts/what_is_kept.py    Python safejax 0.5.0

(The environments are made by the interop tests.) Every kind of thing is saved and loaded alone, in a tree of
its own, so that one failure does not hide another. JAX is as it is by default, without 64-bit types. "kept": equal, with types and structure. "lost": it came
back, but not equal. "refused": saving or loading failed with an error.
"""

import collections
import io
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
Point = collections.namedtuple("Point", ["x", "y"])
LEAF = np.arange(3, dtype=np.float32)

KINDS = {
    "nested dict": {"a": {"b": LEAF}},
    "list": {"a": [LEAF, LEAF]},
    "tuple": {"a": (LEAF, LEAF)},
    "named tuple": {"a": Point(LEAF, LEAF)},
    "None": {"a": None, "b": LEAF},
    "empty dict": {"a": {}, "b": LEAF},
    "integer keys": {"a": {10: LEAF, 9: LEAF}},
    "dotted key": {"a.b": LEAF},
    "empty key": {"": LEAF},
    "Python scalars": {"a": 3, "b": 0.1, "c": True},
    "float64, int64": {"a": np.arange(3, dtype=np.float64), "b": np.arange(3) + 2**40},
    "bfloat16": {"a": jnp.ones(3, jnp.bfloat16)},
    "float8": {"a": jnp.ones(3, jnp.float8_e4m3fn)} if hasattr(jnp, "float8_e4m3fn") else None,
    "complex64": {"a": np.ones(3, np.complex64)},
    "zero dimensions": {"a": np.array(2, np.float32)},
}


def safetensors_flax(tree):
    import flax.traverse_util
    import safetensors.flax

    flat = flax.traverse_util.flatten_dict(tree, sep=".")
    with tempfile.NamedTemporaryFile() as file:  # (its `load` from bytes reads fewer types)
        safetensors.flax.save_file(flat, file.name)
        return flax.traverse_util.unflatten_dict(safetensors.flax.load_file(file.name), sep=".")


def flax_msgpack(tree):
    import flax.serialization

    return flax.serialization.msgpack_restore(flax.serialization.to_bytes(tree))


def npz(tree):
    file = io.BytesIO()
    np.savez(file, **{jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]})
    file.seek(0)
    loaded = np.load(file)
    # With the structure at hand, which the file does not have, this would be all there is to do.
    nested = {}
    for name in loaded.files:
        keys = [key.strip("'") for key in name.strip("[]").split("][")]
        node = nested
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = loaded[name]
    return nested


def python_safejax(tree):
    import safejax

    return safejax.deserialize(safejax.serialize(tree))


def ours(tree):
    import safejax_tree

    return safejax_tree.load(safejax_tree.save(tree), namedtuples=[Point])


def verdict(library, tree):
    if tree is None:
        return "?"
    try:
        back = library(tree)
    except Exception:
        return "refused"
    if jax.tree_util.tree_structure(back) != jax.tree_util.tree_structure(tree):
        return "lost"
    for a, b in zip(jax.tree_util.tree_leaves(back), jax.tree_util.tree_leaves(tree)):
        if isinstance(b, (bool, int, float)) and type(a) is not type(b):
            return "lost"
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            return "lost"
    return "kept"


def main():
    try:
        import safejax  # noqa: F401

        libraries = {"safejax 0.5.0": python_safejax}
    except ImportError:
        libraries = {"safetensors.flax": safetensors_flax, "Flax msgpack": flax_msgpack, "npz": npz, "ours": ours}
    print("| |", " | ".join(libraries), "|")
    for name, tree in KINDS.items():
        print(f"| {name} |", " | ".join(verdict(library, tree) for library in libraries.values()), "|")


if __name__ == "__main__":
    main()
