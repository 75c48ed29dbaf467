#!/usr/bin/env python3
"""Times loads of one tree of arrays from every format, by safejax straight onto a device and by what else there is.

    venv/bin/python scripts/bench_formats.py [--directory DIR] [--rounds 5] [--torch PYTHON]

Needs jax, flax, safetensors, cargo and, in the same or another environment (--torch), torch. Makes, in DIR (target/bench),
6 llama-like layers in float32 (1.49 GB) as npz, Flax msgpack, PyTorch's zip file, and safetensors in one file and in several
of at most 192 MB. Rows are processes of their own and take turns, as in scripts/bench_load.py, which says more.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from bench_load import ROOT, Rows, build, child_timed, make, run_load

SHARD = "192MB"


def child(mode, file):
    if mode == "torch":
        import torch

        # Mapped: what is used later is read then. The sum uses all of it.
        tensors = child_timed(lambda: torch.load(file, mmap=True, weights_only=True))
        child_timed(lambda: [tensor.sum() for tensor in tensors.values()])
        return
    import jax
    import numpy as np

    jax.device_put(1.0).block_until_ready()

    def npz():
        with np.load(file) as archive:
            return jax.block_until_ready(jax.device_put({name: archive[name] for name in archive.files}))

    def msgpack():
        import flax.serialization

        tree = flax.serialization.msgpack_restore(pathlib.Path(file).read_bytes())
        return jax.block_until_ready(jax.device_put(tree))

    def shards():
        import safetensors.flax

        index = json.loads(pathlib.Path(file).read_text())
        arrays = {}
        for name in sorted(set(index["weight_map"].values())):
            arrays |= safetensors.flax.load_file(pathlib.Path(file).with_name(name))
        return jax.block_until_ready(arrays)

    child_timed({"npz": npz, "msgpack": msgpack, "shards": shards}[mode])


def make_formats(directory, safejax, torch):
    source = directory / "float-aligned.safetensors"
    paths = {name: directory / f"float.{name}" for name in ("npz", "msgpack", "pt")}
    paths["index"] = directory / "shards" / "float.safetensors.index.json"
    paths["one"] = source
    if not paths["npz"].exists():
        import numpy as np
        import safetensors.numpy

        np.savez(paths["npz"], **safetensors.numpy.load_file(source))
    if not paths["msgpack"].exists():
        subprocess.run([safejax, "convert", source, paths["msgpack"]], check=True, stdout=subprocess.DEVNULL)
    if not paths["pt"].exists():
        code = "import sys, torch; from safetensors.torch import load_file; torch.save(load_file(sys.argv[1]), sys.argv[2])"
        subprocess.run([torch, "-c", code, source, paths["pt"]], check=True)
    if not paths["index"].exists():
        paths["index"].parent.mkdir(exist_ok=True)
        target = paths["index"].with_name("float.safetensors")
        command = [safejax, "convert", source, target, "--max-shard-size", SHARD]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=pathlib.Path, default=ROOT / "target/bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch", default=sys.executable, help="a Python with torch and safetensors")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    ours, _, safejax = build(False)
    make(options.directory, safejax)
    paths = make_formats(options.directory, safejax, options.torch)
    this = pathlib.Path(__file__)
    commands = {
        "safejax, one safetensors file": ([ours, "ours", paths["one"]], paths["one"]),
        "safejax, 8 shards": ([ours, "ours", paths["index"]], paths["one"]),
        "safejax, npz": ([ours, "ours", paths["npz"]], paths["npz"]),
        "safejax, Flax msgpack": ([ours, "ours", paths["msgpack"]], paths["msgpack"]),
        "safejax, PyTorch": ([ours, "ours", paths["pt"]], paths["pt"]),
        "safejax, one safetensors file, copied": ([ours, "ours-copy", paths["one"]], paths["one"]),
        "safejax, 8 shards, copied": ([ours, "ours-copy", paths["index"]], paths["one"]),
        "safejax, npz, copied": ([ours, "ours-copy", paths["npz"]], paths["npz"]),
        "safejax, PyTorch, copied": ([ours, "ours-copy", paths["pt"]], paths["pt"]),
        "`safetensors.flax.load_file` per shard": ([sys.executable, this, "child", "shards", paths["index"]], paths["one"]),
        "`np.load` then `device_put`": ([sys.executable, this, "child", "npz", paths["npz"]], paths["npz"]),
        "`flax.serialization` then `device_put`": (
            [sys.executable, this, "child", "msgpack", paths["msgpack"]], paths["msgpack"]),
        "`torch.load(mmap=True)`, then a sum": ([options.torch, this, "child", "torch", paths["pt"]], paths["pt"]),
    }
    rows = Rows("Formats", paths["one"].stat().st_size)
    rows.measure(
        {name: lambda c=command, f=file: run_load(c, f, False) for name, (command, file) in commands.items()},
        options.rounds,
    ).print()


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3])
    else:
        main()
