#!/usr/bin/env python3
"""Makes exports for cli/tests/symbolic.rs in tests/data/symbolic: several platforms, donation, sizes of zero, two devices.

    venv/bin/python scripts/make_symbolic.py

Run with jax 0.10.2. The cases in the directories beside them were made by jax 0.12.0.1; scripts/symbolic_programs.py checks
many more, and keeps none.
"""

import os
import pathlib

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.sharding import NamedSharding, PartitionSpec as P

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/data/symbolic"


def write(name, function, *specs, platforms=None):
    exported = export.export(function, platforms=platforms)(*specs)
    (OUT / f"{name}.jaxexport").write_bytes(exported.serialize())


def shape(text):
    return jax.ShapeDtypeStruct(export.symbolic_shape(text), jnp.float32)


def by_platform(x):
    double = lambda x: x * 2.0
    return lax.platform_dependent(x, cpu=double, cuda=lambda x: x * 3.0, tpu=lambda x: x * 4.0).sum(0)


def main():
    jax.config.update("jax_traceback_in_locations_limit", 0)
    several = ["tpu", "cpu", "cuda"]
    write("platforms", jax.jit(by_platform), shape("b, 3"), platforms=several)
    write("static_platforms", jax.jit(lambda x: jnp.cumsum(x, axis=1)), jax.ShapeDtypeStruct((2, 40), jnp.float32), platforms=several)
    write("donated", jax.jit(lambda x, y: x + y.sum(), donate_argnums=0), *[shape("b, 2")] * 2)
    mesh = jax.make_mesh((2,), ("d",))
    rows, whole = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    centred = lambda x: (x - x.mean(0), x.sum())
    write("sharded", jax.jit(centred, in_shardings=rows, out_shardings=(rows, whole)), shape("2*b, 3"))
    write("zero", jax.jit(lambda x: (x * 2, x.sum())), shape("b - 1, 2"))


if __name__ == "__main__":
    main()
