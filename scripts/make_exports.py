#!/usr/bin/env python3
"""Makes tests/data/exports: functions exported by jax.export, with their arguments and what JAX computes.

    venv/bin/python scripts/make_exports.py NAME      with the jax of that name's version

Run with jax 0.4.38 (NAME jax0438), 0.10.2 (jax0102) and 0.12.0.1 (jax0120), flatbuffers and safetensors. Each
case is NAME-CASE.jaxexport and NAME-CASE.safetensors, which holds the arguments as `args.…` and `kwargs.…` and
the outputs as `out.…`, by the paths of their leaves. No location is left in the programs.
"""

import collections
import pathlib
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from export_buckets import export_buckets

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "exports"
State = collections.namedtuple("State", ["count", "mu"])
if hasattr(jax.export, "register_namedtuple_serialization"):
    jax.export.register_namedtuple_serialization(State, serialized_name="State")
key = lambda seed: np.random.default_rng(seed)
f32 = lambda seed, *shape: key(seed).standard_normal(shape).astype(np.float32)


def mlp(params, x):
    for name in ("layer_0", "layer_1"):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return x


MLP_PARAMS = {
    "layer_0": {"kernel": f32(0, 4, 8), "bias": f32(1, 8)},
    "layer_1": {"kernel": f32(2, 8, 3), "bias": f32(3, 3)},
}


def nested(x, scale):
    return {"sum": x.sum(), "pair": (x * scale, [x - 1, None]), "empty": {}}


def keywords(x, *, shift, unused):
    return x + shift["by"][0]


def optimizer(params, state, grads):
    mu = jax.tree_util.tree_map(lambda m, g: 0.9 * m + 0.1 * g, state.mu, grads)
    params = jax.tree_util.tree_map(lambda p, m: p - 0.01 * m, params, mu)
    return params, State(state.count + 1, mu)


def constants(x):
    return x @ jnp.asarray(f32(9, 4, 4)) + jnp.arange(4)


PARAMS = {"w": f32(4, 3), "b": f32(5, 2)}
CASES = {
    "mlp": (mlp, (MLP_PARAMS, f32(6, 5, 4)), {}),
    "nested": (nested, (f32(7, 3), np.float32(2)), {}),
    "keywords": (keywords, (f32(8, 2),), {"shift": {"by": [f32(10, 2), f32(11, 2)]}, "unused": np.int32(3)}),
    "optimizer": (optimizer, (PARAMS, State(np.int32(1), PARAMS), PARAMS), {}),
    "constants": (constants, (f32(12, 2, 4),), {}),
}


def pooled(params, x, mask):
    y = jnp.tanh(x @ params["kernel"] + 1) * mask[..., None]
    return {"mean": y.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1), "rows": y}


def pooled_args(batch, length):
    s = jax.ShapeDtypeStruct
    return {"kernel": s((4, 3), jnp.float32)}, s((batch, length, 4), jnp.float32), s((batch, length), jnp.float32)


def flat(prefix, tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    part = lambda key: str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))))
    return {".".join([prefix, *map(part, path)]): np.asarray(leaf) for path, leaf in leaves}


def main():
    name = sys.argv[1]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*")
    except AttributeError:
        pass
    OUT.mkdir(parents=True, exist_ok=True)
    for case, (function, args, kwargs) in CASES.items():
        exported = jax.export.export(jax.jit(function))(*args, **kwargs)
        content = bytes(exported.serialize())
        assert str(pathlib.Path.home()).encode() not in content and b"site-packages" not in content, case
        (OUT / f"{name}-{case}.jaxexport").write_bytes(content)
        out = jax.jit(function)(*args, **kwargs)
        arrays = {**flat("args", args), **flat("kwargs", kwargs), **flat("out", out)}
        safetensors.numpy.save_file(arrays, OUT / f"{name}-{case}.safetensors")
    if name == "jax0120":
        b = jax.export.symbolic_shape("b")[0]
        symbolic = jax.export.export(jax.jit(lambda x: x * 2))(jax.ShapeDtypeStruct((b, 3), jnp.float32))
        (OUT / f"{name}-symbolic.jaxexport").write_bytes(symbolic.serialize())
        export_buckets(pooled, pooled_args, {"batch": [1, 4], "length": [2, 8]}, OUT / f"{name}-pooled.bundle")
        args = ({"kernel": f32(13, 4, 3)}, f32(14, 3, 5, 4), np.ones((3, 5), np.float32))
        arrays = {**flat("args", args), **flat("out", jax.jit(pooled)(*args))}
        safetensors.numpy.save_file(arrays, OUT / f"{name}-pooled.safetensors")
    print(name, jax.__version__, sum(path.stat().st_size for path in OUT.iterdir()))


if __name__ == "__main__":
    main()
