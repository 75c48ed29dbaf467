#!/usr/bin/env python3
"""Makes exports for cli/tests/compilers.rs in tests/data/ahead, with what JAX's own ahead-of-time compile says of them.

    TPU_SKIP_MDS_QUERY=1 TPU_LIBRARY_PATH=… venv/bin/python scripts/make_ahead.py

Run with jax 0.10.2 and libtpu 0.0.51, the one that `safejax plugin install tpu` installs (`safejax plugin path tpu` is
TPU_LIBRARY_PATH). Needs no TPU. Each function is exported for tpu, cuda and cpu, and compiled by JAX for the topologies below;
numbers.json has the memory and the cost that JAX reports.
"""

import json
import os
import pathlib

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=64"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, SingleDeviceSharding

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/data/ahead"
TOPOLOGIES = ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"]
SPEC = jax.ShapeDtypeStruct


def mlp(params, x):
    for weights in params:
        x = jax.nn.relu(x @ weights)
    return jax.nn.softmax(x)


def attention(q, k, v):
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / 8.0
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(mask, scores, -1e9)), v)


def convolution(w, x):
    return lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).mean((1, 2))


def loop(w, x):
    return lax.scan(lambda c, _: (jnp.tanh(c @ w), c.sum()), x, None, length=9)


def update(params, gradients):
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)


def sharded(w, x):
    return jax.nn.softmax(x @ w)


def wide(params, x):
    return jax.nn.relu(x @ params["up"]) @ params["down"]


def specs(shape, dtype=jnp.float32):
    return SPEC(shape, dtype)


CASES = {
    "mlp": (mlp, [[specs((256, 512)), specs((512, 10))], specs((32, 256))], {}),
    "attention": (attention, [specs((2, 64, 4, 64), jnp.bfloat16)] * 3, {}),
    "convolution": (convolution, [specs((3, 3, 8, 16)), specs((4, 32, 32, 8))], {}),
    "loop": (loop, [specs((128, 128)), specs((16, 128))], {}),
    "update": (update, [{"w": specs((512, 512)), "b": specs((512,))}] * 2, {"donate_argnums": 0}),
}
SHARDED = ([specs((1024, 2048)), specs((256, 1024))], [P(None, "m"), P("d", None)], P("d", "m"))

WIDE = (
    [{"up": specs((512, 2048), jnp.bfloat16), "down": specs((2048, 512), jnp.bfloat16)}, specs((64, 512), jnp.bfloat16)],
    [{"up": P(None, "m"), "down": P("m", None)}, P("d", None)],
    P("d", None),
)


def sharding_options(case, devices, shape):
    mesh = Mesh(np.array(devices[: shape[0] * shape[1]]).reshape(shape), ("d", "m"))
    named = lambda spec: NamedSharding(mesh, spec)
    is_spec = lambda node: isinstance(node, P)
    return {"in_shardings": tuple(jax.tree.map(named, case[1], is_leaf=is_spec)), "out_shardings": named(case[2])}


def numbers(compiled):
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "flops": cost.get("flops"),
        "bytes": cost.get("bytes accessed"),
    }


# Linear algebra, of which a plugin for the CPU alone has nothing; with a place in a source that has no path.
DECOMPOSED = """
def decompose(x):
    q = jnp.linalg.qr(x)[0]
    return q @ x
"""


def decomposed():
    names = {"jnp": jnp}
    exec(compile(DECOMPOSED, "model.py", "exec"), names)
    # Names of files without their folders.
    jax.config.update("jax_hlo_source_file_canonicalization_regex", ".*/")
    exported = export.export(jax.jit(names["decompose"]), platforms=["cpu"])(specs((4, 4)))
    (OUT / "decomposed.jaxexport").write_bytes(exported.serialize())


def main():
    decomposed()
    jax.config.update("jax_traceback_in_locations_limit", 0)
    OUT.mkdir(exist_ok=True)
    platforms = ["tpu", "cuda", "cpu"]
    found = {}
    for name, (function, arguments, options) in CASES.items():
        exported = export.export(jax.jit(function, **options), platforms=platforms)(*arguments)
        (OUT / f"{name}.jaxexport").write_bytes(exported.serialize())
    for function, case, shape in [(sharded, SHARDED, (2, 2)), (wide, WIDE, (8, 8))]:
        jitted = jax.jit(function, **sharding_options(case, jax.devices("cpu"), shape))
        exported = export.export(jitted, platforms=platforms)(*case[0])
        (OUT / f"{function.__name__}.jaxexport").write_bytes(exported.serialize())
    for topology in TOPOLOGIES:
        devices = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
        one = SingleDeviceSharding(devices[0])
        for name, (function, arguments, options) in CASES.items():
            jitted = jax.jit(function, in_shardings=one, out_shardings=one, **options)
            found.setdefault(name, {})[topology] = numbers(jitted.lower(*arguments).compile())
        jitted = jax.jit(sharded, **sharding_options(SHARDED, devices, (2, 2)))
        found.setdefault("sharded", {})[topology] = numbers(jitted.lower(*SHARDED[0]).compile())
    devices = topologies.get_topology_desc(topology_name="v5e:8x8", platform="tpu").devices
    jitted = jax.jit(wide, **sharding_options(WIDE, devices, (8, 8)))
    found["wide"] = {"v5e:8x8": numbers(jitted.lower(*WIDE[0]).compile())}
    (OUT / "numbers.json").write_text(json.dumps({"jax": jax.__version__, "libtpu": "0.0.51", "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
