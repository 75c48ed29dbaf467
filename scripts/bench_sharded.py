#!/usr/bin/env python3
"""Times loads onto several devices by safejax and by JAX, in turn, and prints a table.

    venv/bin/python scripts/bench_sharded.py [--directory DIR] [--rounds 5]

Needs jax, safetensors and cargo. Makes, in DIR (target/bench), 1.36 GB of bfloat16 in 110 matrices of 12 llama-like layers, as
safetensors writes it and as safejax does (tensors at multiples of 64 bytes). Every row is a process of its own with four CPU
devices; the file is in the page cache. What is timed begins before the file is opened and ends when every shard is there.
JAX's way is `make_array_from_callback` over slices of `safe_open`.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEVICES = 4
SAFEJAX = ROOT / "target" / "release" / "safejax"


def python_load(file, spec):
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    import jax
    import numpy as np
    import safetensors
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

    mesh = Mesh(np.array(jax.devices()), ("model",))
    sharding = NamedSharding(mesh, P(None, "model") if spec == "last" else P("model"))
    jax.device_put(1.0).block_until_ready()
    started = time.perf_counter()
    with safetensors.safe_open(file, framework="numpy") as opened:
        arrays = {}
        for name in opened.keys():
            part = opened.get_slice(name)
            shape = tuple(part.get_shape())
            spread = sharding if len(shape) == 2 else NamedSharding(mesh, P())
            arrays[name] = jax.make_array_from_callback(shape, spread, lambda index, part=part: part[index])
        jax.block_until_ready(arrays)
    print(time.perf_counter() - started)


def make(directory):
    import ml_dtypes
    import numpy as np
    import safetensors.numpy

    random = np.random.default_rng(0)
    bfloat16 = lambda *shape: random.integers(0, 0x3F80, shape, np.uint16).view(ml_dtypes.bfloat16)
    tensors = {"embed": bfloat16(32000, 2048), "norm": bfloat16(2048)}
    for layer in range(12):
        for name in "qkvo":
            tensors[f"layers.{layer}.{name}"] = bfloat16(2048, 2048)
        for name, shape in (("gate", (2048, 5632)), ("up", (2048, 5632)), ("down", (5632, 2048))):
            tensors[f"layers.{layer}.{name}"] = bfloat16(*shape)
        for name in ("norm_0", "norm_1"):
            tensors[f"layers.{layer}.{name}"] = bfloat16(2048)
    directory.mkdir(parents=True, exist_ok=True)
    plain, ours = directory / "sharded.safetensors", directory / "sharded-aligned.safetensors"
    safetensors.numpy.save_file(tensors, plain)
    subprocess.run([SAFEJAX, "convert", plain, ours, "--no-sync"], check=True, stdout=subprocess.DEVNULL)
    return plain, ours


def seconds(command):
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    text = done.stdout.strip()
    return json.loads(text)["seconds"] if text.startswith("{") else float(text.splitlines()[-1])


def rows(plain, ours):
    two_axes = {"last": "P(None, model)", "first": "P(model)"}
    load = lambda file, *extra: [SAFEJAX, "load", file, "--plugin", "cpu", "--json", *extra]
    python = lambda file, spec: [sys.executable, __file__, "--child", str(file), spec]
    # Norms have one dimension, and are on every device.
    mesh = lambda spec: ("--mesh", f"model={DEVICES}", "--rule", "*norm*=P()", "--rule", f"*={two_axes[spec]}")
    yield "one device, safejax", load(plain)
    yield "one device, safejax, aligned file, copied", load(ours, "--copy")
    for spec in ("first", "last"):
        yield f"4 devices, {two_axes[spec]}, safejax", load(plain, *mesh(spec))
        yield f"4 devices, {two_axes[spec]}, safejax, aligned file", load(ours, *mesh(spec))
        yield f"4 devices, {two_axes[spec]}, JAX", python(plain, spec)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=pathlib.Path, default=ROOT / "target" / "bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        return python_load(*options.child)
    subprocess.run(["cargo", "build", "--release", "-p", "safejax-cli"], check=True, cwd=ROOT)
    plain, ours = make(options.directory)
    size = plain.stat().st_size
    all_rows = list(rows(plain, ours))
    times = {title: [] for title, _ in all_rows}
    for _ in range(options.rounds):
        for title, command in all_rows:
            times[title].append(seconds(command))
    print("| load | ms | GB/s |\n| --- | --- | --- |")
    for title, _ in all_rows:
        median = statistics.median(times[title])
        print(f"| {title} | {median * 1e3:.0f} | {size / median / 1e9:.2f} |")


main()
