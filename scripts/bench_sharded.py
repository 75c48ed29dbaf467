#!/usr/bin/env python3
"""Times loads onto several devices, and calls on them, by safejax and by JAX, in turn, and prints tables.

    venv/bin/python scripts/bench_sharded.py [--directory DIR] [--rounds 5]

Needs jax, safetensors and cargo. Makes, in DIR (target/bench), 1.36 GB of bfloat16 in 110 matrices of 12 llama-like layers, as
safetensors writes it and as safejax does (tensors at multiples of 64 bytes). Every row is a process of its own with four CPU
devices; the file is in the page cache. What is timed begins before the file is opened and ends when every shard is there.
JAX's way is `make_array_from_callback` over slices of `safe_open`. A call is timed until every shard of its output is there: JAX's of
the jitted function, with arguments that lie on the devices already, as ours do (benches/sharded_calls.rs).
"""

import json
import os
import statistics
import subprocess
import sys
import time

from bench_common import ROOT, SAFEJAX, llama_shapes, read_through, start

DEVICES = 4


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


def mlp(params, inputs):
    import jax

    return jax.nn.relu(inputs["x"] @ params["up"]) @ params["down"]


# Widths, and rows of the input.
CALLS = {"mlp, 64 wide": (64, 256, 8), "mlp, 512 wide": (512, 2048, 64)}


def calls(directory, rounds):
    """Exports each function on a mesh of 2 by 2, and times it in turn by both."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    import jax
    import numpy as np
    import safetensors.numpy
    from jax import export
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

    jax.config.update("jax_traceback_in_locations_limit", 0)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    named = lambda *spec: NamedSharding(mesh, P(*spec))
    shardings = ({"up": named(None, "model"), "down": named("model")}, {"x": named("data")})
    jitted = jax.jit(mlp, in_shardings=shardings, out_shardings=named("data"))
    bench = ["cargo", "bench", "--quiet", "--bench", "sharded_calls", "--"]
    print("\n| call on 4 devices, µs | safejax | safejax, bound | JAX |\n| --- | --- | --- | --- |")
    for title, (width, hidden, rows) in CALLS.items():
        ones = lambda *shape: np.ones(shape, np.float32)
        arguments = ({"up": ones(width, hidden), "down": ones(hidden, width)}, {"x": ones(rows, width)})
        artifact = directory / "call.jaxexport"
        artifact.write_bytes(export.export(jitted)(*arguments).serialize())
        files = [directory / f"call-{position}.safetensors" for position in range(2)]
        for argument, file in zip(arguments, files):
            safetensors.numpy.save_file(argument, file)
        placed = jax.device_put(arguments, shardings)
        ours, theirs = [], []
        for _ in range(rounds):
            done = subprocess.run([*bench, artifact, *files], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            ours.append([float(number) for number in done.stdout.split()[-2:]])
            theirs.append(python_call(jitted, placed))
        whole, bound = (statistics.median(column) for column in zip(*ours))
        print(f"| {title} | {whole:.0f} | {bound:.0f} | {statistics.median(theirs):.0f} |", flush=True)


def python_call(jitted, arguments, limit=3.0):
    import jax

    jax.block_until_ready(jitted(*arguments))
    began, times = time.perf_counter(), []
    while time.perf_counter() - began < limit:
        started = time.perf_counter()
        jax.block_until_ready(jitted(*arguments))
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def make(directory):
    import ml_dtypes
    import numpy as np
    import safetensors.numpy

    random = np.random.default_rng(0)
    bfloat16 = lambda shape: random.integers(0, 0x3F80, shape, np.uint16).view(ml_dtypes.bfloat16)
    tensors = {name: bfloat16(shape) for name, shape in llama_shapes()}
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
    options = start(python_load)
    plain, ours = make(options.directory)
    size = plain.stat().st_size
    all_rows = list(rows(plain, ours))
    times = {title: [] for title, _ in all_rows}
    for _ in range(options.rounds):
        for title, command in all_rows:
            # What other rows have driven out of the page cache comes back.
            for file in (plain, ours):
                read_through(file)
            times[title].append(seconds(command))
    print("| load | ms | GB/s |\n| --- | --- | --- |")
    for title, _ in all_rows:
        median = statistics.median(times[title])
        print(f"| {title} | {median * 1e3:.0f} | {size / median / 1e9:.2f} |", flush=True)
    calls(options.directory, options.rounds)


main()
