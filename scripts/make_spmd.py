#!/usr/bin/env python3
"""Makes tests/data/spmd: functions exported by jax.export for several devices, with their arguments and what JAX computes.

    venv/bin/python scripts/make_spmd.py NAME       with the jax of that name's version
    GSPMD=1 venv/bin/python scripts/make_spmd.py NAME

Run with jax 0.4.38 (NAME jax0438), 0.10.2 (jax0102) and 0.10.2 with GSPMD's shardings (jax0102gspmd), and safetensors. Each case
is NAME-CASE.jaxexport and NAME-CASE.safetensors, which holds the whole arguments as `args.…` and the whole outputs as `out.…`,
by the paths of their leaves. Its metadata has the key `slices`: for each leaf of the arguments and outputs the slice of each
device in the order of the mesh, [start, stop] a dimension; and `devices`, the mesh's devices. No location is left in the programs.
"""

import json
import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "spmd"
f32 = lambda seed, *shape: (np.random.default_rng(seed).standard_normal(shape) * 0.3).astype(np.float32)


def shard_map(function, mesh, in_specs, out_specs):
    if hasattr(jax, "shard_map"):
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    from jax.experimental.shard_map import shard_map as old

    return old(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_rep=False)


def mesh_of(sizes, names, order=None):
    count = int(np.prod(sizes))
    devices = [jax.devices()[place] for place in (order or range(count))]
    return Mesh(np.array(devices).reshape(sizes), names)


def attention(params, x, mesh):
    """A block whose heads are over `model` and whose batch is over `data`."""
    q, k, v = (jnp.einsum("btd,dhe->bhte", x, params[name]) for name in "qkv")
    scores = jnp.einsum("bhte,bhse->bhts", q, k) / 2.0
    out = jnp.einsum("bhts,bhse,hed->btd", jax.nn.softmax(scores), v, params["o"])
    x = lax.with_sharding_constraint(x + out, NamedSharding(mesh, P("data", None, None)))
    return {"y": jnp.tanh(x @ params["up"]) @ params["down"], "last": x[:, -1]}


def attention_case():
    mesh = mesh_of((2, 2), ("data", "model"))
    params = {name: f32(seed, 8, 4, 2) for seed, name in enumerate("qkv")}
    params |= {"o": f32(3, 4, 2, 8), "up": f32(4, 8, 16), "down": f32(5, 16, 8)}
    heads = P(None, "model", None)
    specs = {"q": heads, "k": heads, "v": heads, "o": P("model"), "up": P(None, "model"), "down": P("model", None)}
    return mesh, lambda p, x: attention(p, x, mesh), (params, f32(6, 4, 6, 8)), (specs, P("data")), {}


def fsdp_case():
    """The gradient of a loss whose params, and their donated moments, are each over all devices."""
    mesh = mesh_of((4,), ("fsdp",))
    params = {"w": f32(10, 8, 12), "b": f32(11, 12)}
    specs = {"w": P("fsdp"), "b": P("fsdp")}

    def step(params, moments, x, y):
        loss = lambda p: jnp.mean((jnp.tanh(x @ p["w"] + p["b"]) - y) ** 2)
        value, grads = jax.value_and_grad(loss)(params)
        moments = jax.tree_util.tree_map(lambda m, g: 0.9 * m + 0.1 * g, moments, grads)
        return value, jax.tree_util.tree_map(lambda p, m: p - 0.1 * m, params, moments), moments

    args = (params, {"w": f32(12, 8, 12), "b": f32(13, 12)}, f32(14, 8, 8), f32(15, 8, 12))
    out = (P(), specs, specs)
    return mesh, step, args, (specs, specs, P("fsdp"), P("fsdp")), {"donate_argnums": (0, 1), "out": out}


def collectives_case():
    mesh = mesh_of((4,), ("x",))

    def body(a, b):
        place = lax.axis_index("x")
        total, gathered = lax.psum(a, "x"), lax.all_gather(a, "x", axis=0, tiled=True)
        scattered = lax.psum_scatter(jnp.tile(a, (1, 4)), "x", scatter_dimension=1, tiled=True)
        passed = lax.ppermute(a, "x", [(one, (one + 1) % 4) for one in range(4)]) + place
        exchanged = lax.all_to_all(b, "x", split_axis=1, concat_axis=0, tiled=True)
        return total, gathered.sum(0)[None], scattered, passed, exchanged, (lax.pmax(a.sum(), "x") + place)[None]

    function = shard_map(
        body, mesh, (P("x", None), P("x", None)), (P(), P("x"), P("x", None), P("x"), P("x", None), P("x"))
    )
    args = (f32(20, 8, 6), np.arange(64, dtype=np.int32).reshape(8, 8))
    return mesh, function, args, (P("x", None), P("x", None)), {}


def cache_case():
    """A scan over tokens with a cache whose heads are over two devices."""
    mesh = mesh_of((2,), ("model",))

    def decode(params, cache, tokens):
        def one(cache, token):
            x = params["embed"][token]
            cache = jnp.concatenate([cache[1:], (x @ params["k"]).reshape(1, 2, 4)])
            return cache, jnp.einsum("the,he->h", cache, x.reshape(2, 4))

        return lax.scan(one, cache, tokens)

    params = {"embed": f32(30, 5, 8), "k": f32(31, 8, 8)}
    args = (params, f32(32, 6, 2, 4), np.array([1, 4, 2], np.int32))
    specs = ({"embed": P(None, "model"), "k": P(None, "model")}, P(None, "model", None), P())
    return mesh, decode, args, specs, {"out": (P(None, "model", None), P())}


def free_case():
    """Outputs that nobody gave a sharding, on a mesh whose devices are in another order."""
    mesh = mesh_of((2, 2), ("data", "model"), [3, 1, 0, 2])

    def function(w, x):
        y = lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P("data", "model")))
        return y, jnp.sin(y).T, y.sum()

    return mesh, function, (f32(40, 6, 8), f32(41, 4, 6)), (P(None, "model"), P("data", None)), {}


def axes_case():
    """Several axes on one dimension, in both orders, transposed, with copies; scalars, and types that are no float32."""
    mesh = mesh_of((2, 2, 2), ("a", "b", "c"))
    specs = {
        "ab": P(("a", "b"), None), "ba": P(("b", "a"), None), "cab": P(("c", "a", "b")), "t": P("c", "a"),
        "inner": P(None, None, "c"), "bc": P(("b", "c"), None, "a"), "scalar": P(), "half": P("a", "c"), "flags": P("b"),
    }
    args = {
        "ab": f32(50, 8, 4), "ba": f32(51, 8, 4), "cab": f32(52, 16), "t": f32(53, 6, 4), "inner": f32(54, 3, 5, 4),
        "bc": f32(55, 4, 3, 6), "scalar": np.float32(1.5).reshape(()), "half": f32(56, 4, 4).astype(jnp.bfloat16),
        "flags": np.array([True, False, True, True]),
    }

    def function(p):
        return {
            "x": p["ab"] @ p["ba"].T * p["scalar"], "y": p["cab"].reshape(4, 4) @ p["t"].T,
            "z": p["inner"].sum(1), "w": p["bc"] * 2, "half": p["half"] + 1, "flags": ~p["flags"],
        }

    out = {"x": P("b", ("c", "a")), "y": P(("c", "b")), "z": P(), "w": P(None, None, "a"), "half": P("c"), "flags": P("b")}
    return mesh, function, (args,), (specs,), {"out": out}


CASES = {
    "attention": attention_case, "fsdp": fsdp_case, "collectives": collectives_case, "cache": cache_case,
    "free": free_case, "axes": axes_case,
}


def slices_of(tree, root, devices):
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        map_ = leaf.sharding.devices_indices_map(leaf.shape)
        name = ".".join([root] + [str(getattr(key, "key", getattr(key, "idx", None))) for key in path])
        found[name] = [[list(one.indices(size)[:2]) for one, size in zip(map_[device], leaf.shape)] for device in devices]
    return found


def arrays_of(tree, root):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = lambda path: ".".join([root] + [str(getattr(key, "key", getattr(key, "idx", None))) for key in path])
    return {name(path): np.asarray(leaf).copy(order="C") for path, leaf in leaves}


def main():
    name = sys.argv[1]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*")
    except AttributeError:
        pass
    if os.environ.get("GSPMD"):
        jax.config.update("jax_use_shardy_partitioner", False)
    OUT.mkdir(parents=True, exist_ok=True)
    for label, make in CASES.items():
        mesh, function, args, specs, options = make()
        is_spec = lambda node: isinstance(node, P)
        sharding = lambda specs: jax.tree_util.tree_map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)
        out = {"out_shardings": sharding(options.pop("out"))} if "out" in options else {}
        jitted = jax.jit(function, in_shardings=sharding(specs), **out, **options)
        placed = jax.tree_util.tree_map(jax.device_put, args, sharding(specs))
        exported = jax.export.export(jitted)(*placed)
        (OUT / f"{name}-{label}.jaxexport").write_bytes(exported.serialize())
        plain = jax.jit(function, in_shardings=sharding(specs), **out)
        outputs = plain(*placed)
        devices = list(mesh.devices.flat)
        slices = slices_of(placed, "args", devices) | slices_of(outputs, "out", devices)
        arrays = arrays_of(args, "args") | arrays_of(outputs, "out")
        metadata = {"slices": json.dumps(slices), "devices": json.dumps([device.id for device in devices])}
        safetensors.numpy.save_file(arrays, OUT / f"{name}-{label}.safetensors", metadata)
        print(name, label, exported.nr_devices, exported.calling_convention_version)


main()
