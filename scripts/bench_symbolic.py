#!/usr/bin/env python3
"""Times functions with symbolic dimensions by safejax and by JAX, and prints tables.

    venv/bin/python scripts/bench_symbolic.py [--directory DIR]

Needs jax, safetensors, flatbuffers and cargo. Exports, to DIR (target/bench/symbolic), an MLP, a CNN and 12 layers of a
transformer, with symbolic sizes and with known ones. JAX refines the module that a call of the artifact lowers to, by its C++
passes; the last table is of whole processes: read the artifact, give it an argument, write the output.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax._src.interpreters import mlir
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
F = np.float32


def mlp(params, x):
    for weights in params:
        x = jax.nn.relu(x @ weights)
    return x


def cnn(params, x):
    for weights in params:
        x = lax.conv_general_dilated(x, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = lax.reduce_window(jax.nn.relu(x), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.mean((1, 2))


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)


def transformer(params, x):
    for p in params:
        b, t, d = x.shape
        q, k, v = (normalised(x) @ p[name] for name in "qkv")
        split = lambda y: y.reshape(b, t, 4, d // 4).transpose(0, 2, 1, 3)
        scores = split(q) @ split(k).swapaxes(-1, -2) / 4.0
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e9)
        x = x + (jax.nn.softmax(scores) @ split(v)).transpose(0, 2, 1, 3).reshape(b, t, d) @ p["o"]
        x = x + jax.nn.gelu(normalised(x) @ p["up"]) @ p["down"]
    return x


def models():
    random = np.random.default_rng(0)
    draw = lambda *shape: (random.standard_normal(shape) / 8).astype(F)
    yield "mlp", mlp, [draw(64, 128), draw(128, 128), draw(128, 10)], "b, 64", {"b": 8}
    yield "cnn", cnn, [draw(3, 3, 3, 16), draw(3, 3, 16, 16), draw(3, 3, 16, 16)], "b, 8*n, 8*n, 3", {"b": 4, "n": 4}
    layer = lambda: {**{name: draw(64, 64) for name in "qkvo"}, "up": draw(64, 256), "down": draw(256, 64)}
    yield "transformer", transformer, [layer() for _ in range(12)], "b, t, 64", {"b": 2, "t": 32}


def flat(tree):
    key = lambda k: str(getattr(k, "key", getattr(k, "idx", k)))
    return {".".join(["args", *map(key, path)]): np.asarray(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def theirs(artifact, args):
    """The time of the refinement within the lowering of a call, and of the first call."""
    spent = []
    refine = mlir.refine_polymorphic_shapes

    def timed(module):
        start = time.perf_counter()
        result = refine(module)
        spent.append(time.perf_counter() - start)
        return result

    mlir.refine_polymorphic_shapes = timed
    for _ in range(20):
        jax.clear_caches()
        jax.jit(artifact.call).lower(*args).compile()
    mlir.refine_polymorphic_shapes = refine
    jax.clear_caches()
    start = time.perf_counter()
    call = jax.jit(artifact.call)
    jax.block_until_ready(call(*args))
    first = time.perf_counter() - start
    calls = []
    for _ in range(2000):
        start = time.perf_counter()
        jax.block_until_ready(call(*args))
        calls.append(time.perf_counter() - start)
    return statistics.median(spent), first, statistics.median(calls)


PROCESS = """
import sys, numpy, jax, jax.export
from safetensors.numpy import load_file
artifact = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
leaves = load_file(sys.argv[2])
keys = sorted(leaves, key=lambda k: [int(p) if p.isdigit() else p for p in k.split(".")])
tree = jax.tree_util.tree_unflatten(artifact.in_tree, [leaves[k] for k in keys])
numpy.save(sys.argv[3], artifact.call(*tree[0], **tree[1]))
"""


def process(command, rounds=7):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "SAFEJAX_CACHE": "off"})
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=pathlib.Path, default=ROOT / "target/bench/symbolic")
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_traceback_in_locations_limit", 0)
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    cases, command = {}, []
    for name, function, params, shape, sizes in models():
        specs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        dims = export.symbolic_shape(shape)
        x = np.ones([d if isinstance(d, int) else int(d._evaluate(sizes)) for d in dims], F)
        symbolic = export.export(jax.jit(function))(specs, jax.ShapeDtypeStruct(dims, F))
        fixed = export.export(jax.jit(function))(specs, jax.ShapeDtypeStruct(x.shape, F))
        files = [directory / f"{name}.jaxexport", directory / f"{name}-static.jaxexport", directory / f"{name}.safetensors"]
        files[0].write_bytes(symbolic.serialize())
        files[1].write_bytes(fixed.serialize())
        save_file(flat((params, x)), files[2])
        text = ",".join(f"{key}={value}" for key, value in sizes.items())
        command += [*map(str, files), text]
        np.save(directory / f"{name}-x.npy", x)
        save_file({name.removeprefix("args.0."): leaf for name, leaf in flat((params, x)).items() if name.startswith("args.0.")}, directory / f"{name}-params.safetensors")
        cases[name] = (symbolic, (params, x), text, len(symbolic.mlir_module_serialized))
    bench = ["cargo", "bench", "--quiet", "--bench", "symbolic", "--", *command]
    run = subprocess.run(bench, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "SAFEJAX_CACHE": "off"})
    ours = {row["name"]: row for row in map(json.loads, run.stdout.splitlines())}
    print("| function | module | refined by safejax | by JAX's C++ | first call | JAX's | call at a size seen | the static artifact's | JAX's |")
    print("| --- |" + " --- |" * 8)
    for name, (artifact, args, sizes, size) in cases.items():
        row, (refine, first, call) = ours[name], theirs(artifact, args)
        ms = lambda seconds: f"{seconds * 1e3:.2f} ms"
        us = lambda seconds: f"{seconds * 1e6:.1f} us"
        print(f"| {name} at {sizes} | {size / 1e3:.0f} kB | {ms(row['refine'])} | {ms(refine)} | {ms(row['first'])} | {ms(first)} | {us(row['call'])} | {us(row['static'])} | {us(call)} |")
    print("\n| whole process | safejax | Python |\n| --- | --- | --- |")
    for name in cases:
        ours_command = [ROOT / "target/release/safejax", "run", directory / f"{name}.jaxexport", "--arg", f"0={directory / f'{name}-params.safetensors'}", "--arg", f"1={directory / f'{name}-x.npy'}", "--out", directory / "out.npy"]
        python = [sys.executable, "-c", PROCESS, directory / f"{name}.jaxexport", directory / f"{name}.safetensors", directory / "out.npy"]
        print(f"| {name} | {process(ours_command):.3f} s | {process(python):.3f} s |")


if __name__ == "__main__":
    main()
