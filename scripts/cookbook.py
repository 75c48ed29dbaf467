#!/usr/bin/env python3
"""The Python halves of `docs/cookbook.md`: each recipe exports a function and writes what a call of it takes and gives.

    venv/bin/python scripts/cookbook.py OUT        (scripts/requirements-jax.txt)

writes `NAME.jaxexport`, arguments `NAME.0.*`, `NAME.1.*`, …, and the expected outputs `NAME.out.*`.
"""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safejax_tree
from flax import nnx, serialization
from flax.training.train_state import TrainState
from jax import export

OUT = pathlib.Path(sys.argv[1])
x = jnp.arange(12.0).reshape(4, 3) / 10


def save_tree(name, tree):
    """A tree as a file, with its structure."""
    safejax_tree.save_file(jax.tree.map(np.asarray, tree), OUT / f"{name}.safetensors")


def write(name, function, arguments, **options):
    exported = export.export(jax.jit(function, **options))(*arguments)
    (OUT / f"{name}.jaxexport").write_bytes(exported.serialize())
    values = [*((f"{name}.{i}", a) for i, a in enumerate(arguments)), (f"{name}.out", function(*arguments))]
    for file, value in values:
        if isinstance(value, jax.Array):
            np.save(OUT / f"{file}.npy", value)
        else:
            save_tree(file, value)


def with_nnx():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)

    def forward(params, x):
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state)(x)

    write("nnx", forward, (nnx.to_pure_dict(state), x))


def with_equinox():
    model = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
    arrays, static = eqx.partition(model, eqx.is_array)
    leaves, structure = jax.tree.flatten(arrays)

    def forward(leaves, x):
        arrays = jax.tree.unflatten(structure, leaves)
        return jax.vmap(eqx.combine(arrays, static))(x)

    write("equinox", forward, (leaves, x))
    (OUT / "equinox.0.safetensors").unlink()
    eqx.tree_serialise_leaves(OUT / "equinox.0.eqx", arrays)


def with_optax():
    for state in (optax.ScaleByAdamState, optax.EmptyState):
        export.register_namedtuple_serialization(state, serialized_name=f"optax.{state.__name__}")
    tx = optax.adam(1e-3)
    params = {"w": jnp.ones(3)}

    def step(params, state, x):
        grads = jax.grad(lambda params: jnp.sum((x @ params["w"]) ** 2))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    write("optax", step, (params, tx.init(params), x), donate_argnums=(0, 1))


def with_train_state():
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones(3)}, tx=optax.sgd(0.1, momentum=0.9))
    flat = jax.tree.map(jnp.asarray, serialization.to_state_dict(state))

    def step(flat, x):
        now = serialization.from_state_dict(state, flat)
        grads = jax.grad(lambda params: jnp.sum((x @ params["w"]) ** 2))(now.params)
        return serialization.to_state_dict(now.apply_gradients(grads=grads))

    write("train_state", step, (flat, x))


def with_key():
    def sample(key_data, x):
        return x + jax.random.normal(jax.random.wrap_key_data(key_data), x.shape)

    write("key", sample, (jax.random.key_data(jax.random.key(7)), x))


for recipe in (with_nnx, with_equinox, with_optax, with_train_state, with_key):
    recipe()
