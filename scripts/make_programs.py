#!/usr/bin/env python3
"""Makes tests/data: one small function in every format that a program can have.

    venv/bin/python scripts/make_programs.py        (the venv of scripts/requirements-digits.txt)

Written with jax 0.12.0.1. Locations are left out, so that no path of the machine is in the files.
"""

import pathlib

import jax
import jax.export
import jax.numpy as jnp

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"


def affine(w, x, b):
    """Three arguments of different shapes, so that a mix-up shows."""
    return {"y": x @ w + b, "norm": jnp.sqrt((x * x).sum())}


def main():
    jax.config.update("jax_traceback_in_locations_limit", 0)
    w = jax.ShapeDtypeStruct((3, 2), jnp.float32)
    x = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    b = jax.ShapeDtypeStruct((2,), jnp.float32)
    OUT.mkdir(parents=True, exist_ok=True)
    lowered = jax.jit(affine).lower(w, x, b)
    (OUT / "affine.mlir").write_text(str(lowered.compiler_ir("stablehlo")))
    hlo = lowered.compiler_ir("hlo")
    (OUT / "affine.hlo.pb").write_bytes(hlo.as_serialized_hlo_module_proto())
    exported = jax.export.export(jax.jit(affine))(w, x, b)
    (OUT / "affine.stablehlo").write_bytes(exported.mlir_module_serialized)
    half = jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)
    exported = jax.export.export(jax.jit(lambda x: x * 2))(half)
    (OUT / "double_bf16.stablehlo").write_bytes(exported.mlir_module_serialized)
    for path in sorted(OUT.glob("*")):
        content = path.read_bytes()
        assert str(pathlib.Path.home()).encode() not in content and b"site-packages" not in content, path
        print(path.name, len(content))


if __name__ == "__main__":
    main()
