#!/usr/bin/env python3
"""Writes models of Equinox with what is in them, and a function exported over one: tests/data/equinox.

    venv/bin/python scripts/make_equinox.py [--directory DIR]

Needs equinox 0.13.8, jax 0.10.2 and safetensors. NAME.eqx lies beside NAME.safetensors, which has every leaf by its number.
"""

import argparse
import json
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_traceback_in_locations_limit", 0)


class Model(eqx.Module):
    first: eqx.nn.Linear
    rest: list
    scale: jax.Array
    name: str = eqx.field(static=True)
    rate: float
    steps: int
    is_done: bool
    table: np.ndarray
    nothing: None = None

    def __init__(self, dtype):
        keys = jax.random.split(jax.random.key(0), 13)
        self.first = eqx.nn.Linear(4, 8, key=keys[0], dtype=dtype)
        # More than ten, so that numbers and their texts have other orders.
        self.rest = [eqx.nn.Linear(8, 8, use_bias=False, key=key, dtype=dtype) for key in keys[1:]]
        self.scale = jnp.asarray(2.0, dtype)
        self.name = "a model"
        self.rate, self.steps, self.is_done = 0.5, 7, True
        self.table = np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4))


def expected(model):
    leaves = [leaf for leaf in jax.tree.leaves(model) if isinstance(leaf, (jax.Array, np.ndarray, bool, int, float, complex))]
    return {str(number): np.array(leaf, order="C") for number, leaf in enumerate(leaves)}


def write(path, model, line=None):
    with open(path, "wb") as file:
        if line is not None:
            file.write((json.dumps(line) + "\n").encode())
        eqx.tree_serialise_leaves(file, model)
    safetensors.numpy.save_file(expected(model), path.with_suffix(".safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("tests/data/equinox"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    write(directory / "model.eqx", Model(jnp.float32))
    write(directory / "bfloat16.eqx", Model(jnp.bfloat16), {"depth": 12, "dtype": "bfloat16"})
    write(directory / "one.eqx", jnp.arange(6.0, dtype=jnp.float32).reshape(2, 3))

    # The arrays of a perceptron as an argument: jax.export knows no modules, so that the function takes them by names.
    perceptron = eqx.nn.MLP(3, 2, 5, 2, key=jax.random.key(1), dtype=jnp.float32)
    arrays, others = eqx.partition(perceptron, eqx.is_array)
    write(directory / "mlp.eqx", arrays)
    leaves, treedef = jax.tree.flatten(arrays)
    # JAX's order of these is that of the model, whose weights come before the biases.
    params = {f"layer_{at // 2}": {"a_weight": leaves[at], "b_bias": leaves[at + 1]} for at in range(0, len(leaves), 2)}

    def forward(params, x):
        return jax.vmap(eqx.combine(jax.tree.unflatten(treedef, jax.tree.leaves(params)), others))(x)

    x = jnp.linspace(-1, 1, 12, dtype=jnp.float32).reshape(4, 3)
    (directory / "mlp.jaxexport").write_bytes(jax.export.export(jax.jit(forward))(params, x).serialize())
    np.save(directory / "x.npy", np.asarray(x))
    np.save(directory / "y.npy", np.asarray(forward(params, x)))


if __name__ == "__main__":
    main()
