#!/usr/bin/env python3
"""Makes tests/data/exports: functions exported by jax.export, with their arguments and what JAX computes.

    venv/bin/python scripts/make_exports.py NAME [DIR]      with the jax of that name's version

Run with jax 0.4.38 (NAME jax0438; with dm-haiku 0.0.17), 0.10.2 (jax0102) and 0.12.0.1 (jax0120), flatbuffers and
safetensors. Each case is NAME-CASE.jaxexport and NAME-CASE.safetensors, which holds the arguments as `args.…` and
`kwargs.…` and the outputs as `out.…`, by the paths of their leaves. No location is left in the programs. With NAME
`here`, whatever jax is there exports them for the device that it uses, into DIR.
"""

import collections
import dataclasses
import os
import pathlib
import sys
import typing

# The sharded case needs two devices.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.flax

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


def transformer(params, x):
    def norm(layer, x):
        y = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
        return y * layer["scale"] + layer["bias"]

    def attend(layer, x):
        q, k, v = jnp.moveaxis(jnp.einsum("btd,dshe->btshe", x, layer["qkv"]), 2, 0)
        scores = jnp.einsum("bthe,bshe->bhts", q, k) / np.sqrt(q.shape[-1]).astype(x.dtype)
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e9)
        return jnp.einsum("bhts,bshe,hed->btd", jax.nn.softmax(scores), v, layer["out"])

    x = x + attend(params["attention"], norm(params["norm_0"], x))
    return x + jax.nn.gelu(norm(params["norm_1"], x) @ params["mlp"]["up"]) @ params["mlp"]["down"]


TRANSFORMER_PARAMS = {
    "attention": {"qkv": f32(20, 8, 3, 2, 4) / 3, "out": f32(21, 2, 4, 8) / 3},
    "mlp": {"up": f32(22, 8, 16) / 3, "down": f32(23, 16, 8) / 4},
    "norm_0": {"scale": f32(24, 8), "bias": f32(25, 8)},
    "norm_1": {"scale": f32(26, 8), "bias": f32(27, 8)},
}


def keys(key, x):
    first, second = jax.random.split(key)
    return {"noisy": x + jax.random.normal(first, x.shape), "key": second}


def platforms(x):
    return jax.lax.platform_dependent(x, cpu=lambda x: x + 1, default=lambda x: x - 1)


def cnn(params, x):
    for layer in params["conv"]:
        x = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + layer["bias"])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jax.nn.log_softmax(x.reshape(x.shape[0], -1) @ params["dense"])


CNN_PARAMS = {
    "conv": [{"kernel": f32(30, 3, 3, 1, 4), "bias": f32(31, 4)}, {"kernel": f32(32, 3, 3, 4, 4), "bias": f32(33, 4)}],
    "dense": f32(34, 16, 5) / 4,
}


def resnet():
    """A small ResNet of Haiku. It is run as in evaluation, which uses neither the key nor the state's counters."""
    import haiku as hk

    def forward(x, is_training):
        sizes = {"blocks_per_group": (1, 1, 1, 1), "channels_per_group": (4, 4, 8, 8), "bottleneck": False}
        return hk.nets.ResNet(num_classes=3, use_projection=(True,) * 4, **sizes)(x, is_training)

    model = hk.transform_with_state(forward)
    x = f32(40, 2, 16, 16, 3)
    params, state = model.init(jax.random.PRNGKey(0), x, True)
    return Case(lambda params, state, key, x: model.apply(params, state, key, x, False)[0],
                (params, state, jax.random.PRNGKey(1), x))


@dataclasses.dataclass
class Case:
    function: typing.Callable
    args: tuple
    kwargs: dict = dataclasses.field(default_factory=dict)
    jit: dict = dataclasses.field(default_factory=dict)
    export: dict = dataclasses.field(default_factory=dict)
    vjp_order: int = 0


bf16 = lambda tree: jax.tree_util.tree_map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), tree)
PARAMS = {"w": f32(4, 3), "b": f32(5, 2)}
OPTIMIZER = (PARAMS, State(np.int32(1), PARAMS), PARAMS)
SHIFT = {"by": [f32(10, 2), f32(11, 2)]}
CASES = {
    "mlp": Case(mlp, (MLP_PARAMS, f32(6, 5, 4)), vjp_order=1),
    "mlp_bf16": Case(mlp, bf16((MLP_PARAMS, f32(6, 5, 4)))),
    "nested": Case(nested, (f32(7, 3), np.float32(2))),
    "keywords": Case(keywords, (f32(8, 2),), {"shift": SHIFT, "unused": np.int32(3)}),
    "optimizer": Case(optimizer, OPTIMIZER),
    "donated": Case(optimizer, OPTIMIZER, jit={"donate_argnums": (0, 1)}),
    "constants": Case(constants, (f32(12, 2, 4),)),
    "transformer": Case(transformer, (TRANSFORMER_PARAMS, f32(28, 2, 6, 8))),
    "keys": Case(keys, (jax.random.key(7), f32(29, 3))),
    "platforms": Case(platforms, (f32(35, 3),), export={"platforms": ["cuda", "cpu"]}),
    "cnn": Case(cnn, (CNN_PARAMS, f32(36, 2, 8, 8, 1))),
}


def gradient(exported, case):
    """The gradient of a function that was exported with it. It takes and returns leaves, without their trees."""
    leaves = jax.tree_util.tree_leaves
    out = jnp.ones_like(jax.jit(case.function)(*case.args))
    return exported.vjp(), (*leaves(case.args), out), leaves(jax.vjp(case.function, *case.args)[1](out))


def sharded():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    laid = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", None))
    function = jax.jit(lambda x: x * 2, in_shardings=laid, out_shardings=laid)
    return jax.export.export(function)(jax.ShapeDtypeStruct((4, 3), jnp.float32))


def pooled(params, x, mask):
    y = jnp.tanh(x @ params["kernel"] + 1) * mask[..., None]
    return {"mean": y.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1), "rows": y}


def pooled_args(batch, length):
    s = jax.ShapeDtypeStruct
    return {"kernel": s((4, 3), jnp.float32)}, s((batch, length, 4), jnp.float32), s((batch, length), jnp.float32)


def flat(prefix, tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    part = lambda key: str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))))
    is_key = lambda leaf: jax.dtypes.issubdtype(getattr(leaf, "dtype", np.int32), jax.dtypes.prng_key)
    array = lambda leaf: jnp.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return {".".join([prefix, *map(part, path)]): array(leaf) for path, leaf in leaves}


def write(name, exported, vjp_order=0, **trees):
    content = bytes(exported.serialize(vjp_order=vjp_order))
    assert str(pathlib.Path.home()).encode() not in content and b"site-packages" not in content, name
    (OUT / f"{name}.jaxexport").write_bytes(content)
    if trees:
        save(name, **trees)


def save(name, **trees):
    arrays = {path: array for root, tree in trees.items() for path, array in flat(root, tree).items()}
    safetensors.flax.save_file(arrays, OUT / f"{name}.safetensors")


def main():
    global OUT
    name = sys.argv[1]
    is_newest = name in ("jax0120", "here")
    OUT = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else OUT
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*")
    except AttributeError:
        pass
    OUT.mkdir(parents=True, exist_ok=True)
    cases = dict(CASES)
    if name == "jax0438":
        # It cannot export typed keys; Haiku does not work with the newer ones.
        cases |= {"keys": Case(keys, (jax.random.PRNGKey(7), f32(29, 3))), "resnet": resnet()}
    for label, case in cases.items():
        function = jax.jit(case.function, **case.jit)
        # Not from the function that donates: it would take the arguments.
        out = jax.jit(case.function)(*case.args, **case.kwargs)
        exported = jax.export.export(function, **case.export)(*case.args, **case.kwargs)
        write(f"{name}-{label}", exported, case.vjp_order, args=case.args, kwargs=case.kwargs, out=out)
        if case.vjp_order:
            exported, args, out = gradient(exported, case)
            write(f"{name}-{label}_gradient", exported, args=args, out=out)
    if len(jax.devices()) > 1:
        write(f"{name}-sharded", sharded())
    if is_newest:
        b = jax.export.symbolic_shape("b")[0]
        symbolic = jax.export.export(jax.jit(lambda x: x * 2))(jax.ShapeDtypeStruct((b, 3), jnp.float32))
        write(f"{name}-symbolic", symbolic)
        export_buckets(pooled, pooled_args, {"batch": [1, 4], "length": [2, 8]}, OUT / f"{name}-pooled.bundle")
        args = ({"kernel": f32(13, 4, 3)}, f32(14, 3, 5, 4), np.ones((3, 5), np.float32))
        save(f"{name}-pooled", args=args, out=jax.jit(pooled)(*args))
    print(name, jax.__version__, sum(path.stat().st_size for path in OUT.iterdir()))


if __name__ == "__main__":
    main()
