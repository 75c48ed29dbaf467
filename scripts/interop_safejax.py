#!/usr/bin/env python3
"""The Python safejax side of cli/tests/interop.rs: writes its files, and reads ours.

    interop_safejax.py write DIRECTORY      writes flax, haiku and objax files with safejax 0.5.0
    interop_safejax.py check DIRECTORY      reads the files `*.ours.safetensors` with safejax 0.5.0

Run with the packages of requirements-safejax.txt, on Python 3.10 or 3.11.
"""

import pathlib
import sys

import flax.core
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import objax
import safejax
import safejax.flax
import safejax.haiku
import safejax.objax


def flax_params():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(7)(x)
            x = nn.BatchNorm(use_running_average=False)(x)
            return nn.Dense(3)(x)

    return flax.core.freeze(Net().init(jax.random.PRNGKey(0), jnp.ones((2, 5))))


def haiku_params():
    def net(x):
        x = hk.nets.MLP([6, 4])(x)
        return hk.BatchNorm(True, True, 0.9)(x, is_training=True)

    params, state = hk.transform_with_state(net).init(jax.random.PRNGKey(1), jnp.ones((2, 5)))
    return {"params": params, "state": state}


def objax_model():
    objax.random.DEFAULT_GENERATOR.seed(2)
    layers = [objax.nn.Linear(5, 6), objax.nn.BatchNorm0D(6), objax.functional.relu, objax.nn.Linear(6, 2)]
    return objax.nn.Sequential(layers)


def same(ours, theirs):
    ours, theirs = jax.tree_util.tree_flatten_with_path(ours)[0], jax.tree_util.tree_flatten_with_path(theirs)[0]
    assert [str(path) for path, _ in ours] == [str(path) for path, _ in theirs]
    for (path, a), (_, b) in zip(ours, theirs):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), path


def write(directory):
    safejax.serialize(flax_params(), filename=directory / "flax.safetensors")
    safejax.serialize(haiku_params(), filename=directory / "haiku.safetensors")
    variables = objax_model().vars()
    safejax.objax.serialize(variables, filename=directory / "objax.safetensors")
    with_random = objax.nn.Sequential([objax.nn.Linear(5, 6), objax.nn.Dropout(0.5)]).vars()
    safejax.objax.serialize(with_random, filename=directory / "objax-random.safetensors")
    plain = {"a": {"b": jnp.arange(3), "c": {"d": jnp.ones((2, 2), jnp.float16)}}}
    safejax.serialize(plain, filename=directory / "plain.safetensors")


def check(directory):
    read = lambda name, **options: safejax.deserialize(directory / f"{name}.ours.safetensors", **options)
    same(safejax.flax.deserialize(directory / "flax.ours.safetensors"), flax_params())
    same(safejax.haiku.deserialize(directory / "haiku.ours.safetensors"), haiku_params())
    same(read("plain"), safejax.deserialize(directory / "plain.safetensors"))
    ours = safejax.objax.deserialize(directory / "objax.ours.safetensors")
    theirs = safejax.objax.deserialize(directory / "objax.safetensors")
    assert list(ours.keys()) == list(theirs.keys()), (list(ours), list(theirs))
    for name, variable in objax_model().vars().items():
        assert type(ours[name]) is type(theirs[name]), name
        same(ours[name].value, theirs[name].value)
        same(ours[name].value, variable.value)
    model = objax_model()
    safejax.objax.deserialize_with_assignment(directory / "objax.ours.safetensors", model.vars())


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](pathlib.Path(sys.argv[2]))
