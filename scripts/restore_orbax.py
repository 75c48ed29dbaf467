#!/usr/bin/env python3
"""Restores with Orbax what safejax wrote for it.

    venv/bin/python scripts/restore_orbax.py write DIR          # a tree, DIR/tree.pkl, and an NNX state, DIR/nnx
    venv/bin/python scripts/restore_orbax.py check DIR TARGET   # TARGET is what tree.pkl was converted to
    venv/bin/python scripts/restore_orbax.py check-manager DIR TARGET
    venv/bin/python scripts/restore_orbax.py check-nnx DIR TARGET

Needs orbax-checkpoint 0.12.8, flax, jax and ml_dtypes.
"""

import os
import pathlib
import pickle
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import orbax.checkpoint.experimental.v1 as ocp_v1
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

TYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128".split()
EXTENSIONS = "bfloat16 int2 int4 float4_e2m1fn float8_e3m4 float8_e4m3fn float8_e4m3fnuz float8_e4m3b11fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu".split()


def tree():
    random = np.random.default_rng(0)
    types = {name: np.arange(-2, 2).astype(name) for name in TYPES}
    types |= {name: np.array([1, 0.5, 2, 1]).astype(getattr(ml_dtypes, name)) for name in EXTENSIONS if name[0] != "i"}
    types |= {name: np.array([-2, -1, 0, 1]).astype(getattr(ml_dtypes, name)) for name in EXTENSIONS if name[0] == "i"}
    return {
        # More than ten, so that numbers and their texts have other orders.
        "layers": [{"kernel": np.full((8, 4), number, np.float32)} for number in range(13)],
        "types": types,
        # Of several chunks where it is compressed.
        "large": random.normal(size=(300, 40, 600)).astype(np.float32),
        "pair": (np.zeros(2), np.ones((2, 2), np.int8)),
        "with.dots in/it": np.arange(3),
        "nothing": np.zeros((0, 3), np.float32),
        "scalars": {"int": 3, "float": 0.5, "bool": True, "array": np.float32(2)},
        "name": "a text",
        "none": None,
        "empty": [{}, [], ()],
    }


def model():
    return nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(1)))


def named(value):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]}


def assert_same(found, expected):
    found, expected = named(found), named(expected)
    assert list(found) == list(expected), (list(found), list(expected))
    for path, value in expected.items():
        if isinstance(value, str):
            assert found[path] == value, path
            continue
        if isinstance(value, (bool, int, float)):
            assert type(found[path]) is type(value), path
        value, here = np.asarray(value), np.asarray(found[path])
        assert (here.dtype, here.shape, here.tobytes()) == (value.dtype, value.shape, value.tobytes()), path


def check(target):
    # Orbax has lists for tuples that are not empty.
    expected = {**tree(), "pair": list(tree()["pair"])}
    assert_same(ocp.PyTreeCheckpointer().restore(target), expected)
    assert_same(ocp.StandardCheckpointer().restore(target), expected)
    assert_same(ocp_v1.load_pytree(target), expected)
    # A part of it, over four devices of our choice.
    sharding = NamedSharding(Mesh(np.array(jax.devices()), "x"), P("x"))
    part = {"layers": expected["layers"], "large": expected["large"]}
    wanted = jax.tree.map(lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding), part)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True)
    restored = ocp.PyTreeCheckpointer().restore(target, args=args)
    assert_same(restored, part)
    assert all(value.sharding == sharding for value in jax.tree.leaves(restored))


def check_manager(target):
    """The target is item `default` of a step of a manager."""
    with ocp.CheckpointManager(target.parent.parent) as manager:
        assert manager.latest_step() == int(target.parent.name)
        restored = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore())
    assert_same(restored, {**tree(), "pair": list(tree()["pair"])})


def check_nnx(target):
    state = nnx.state(model())
    restored = ocp.StandardCheckpointer().restore(target, jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
    assert_same(restored, state)


def main():
    command, directory = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
    if command == "write":
        (directory / "tree.pkl").write_bytes(pickle.dumps(tree()))
        checkpointer = ocp.StandardCheckpointer()
        checkpointer.save(directory / "nnx", nnx.state(model()))
        checkpointer.wait_until_finished()
        return
    {"check": check, "check-manager": check_manager, "check-nnx": check_nnx}[command](pathlib.Path(sys.argv[3]).resolve())


if __name__ == "__main__":
    main()
