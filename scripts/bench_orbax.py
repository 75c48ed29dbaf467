#!/usr/bin/env python3
"""Times loads of Orbax checkpoints onto the CPU device by safejax, by Orbax and by bare TensorStore, in turn, and prints a table.

    venv/bin/python scripts/bench_orbax.py [--directory DIR] [--rounds 5]

Needs orbax-checkpoint 0.12.8, jax and cargo. Makes, in DIR (target/bench), four checkpoints of the same 1.36 GB of bfloat16 in 110 matrices
and norms of llama-like layers: zarr 2 and zarr 3, compressed as Orbax does by default and not at all. The numbers are normal, as weights
are. Every row is a process of its own; the files are in the page cache, or out of it (cold). What is timed begins before the
directory is opened and ends when every array is on the device. Memory is the most that the process held, less what it held before.
"""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

from bench_common import SAFEJAX, llama_shapes, read_through, start

CASES = {"zarr2": {}, "zarr2-plain": {"use_compression": False}, "zarr3": {"use_zarr3": True}, "zarr3-plain": {"use_zarr3": True, "use_compression": False}}


def make(directory):
    import jax.numpy as jnp
    import ml_dtypes
    import numpy as np
    import orbax.checkpoint as ocp

    random = np.random.default_rng(0)
    tree = None
    for case, options in CASES.items():
        path = (directory / f"orbax-{case}").resolve()
        if path.exists():
            continue
        tree = tree or {
            name: jnp.asarray(random.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16)) for name, shape in llama_shapes()
        }
        ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(path, args=ocp.args.PyTreeSave(tree))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(way, path):
    if way == "make":
        return make(pathlib.Path(path))
    import jax

    device = jax.devices()[0]
    jax.device_put(1.0, device).block_until_ready()
    if way == "orbax":
        import orbax.checkpoint as ocp

        checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        before, started = peak(), time.perf_counter()
        sharding = jax.sharding.SingleDeviceSharding(device)
        metadata = checkpointer.metadata(path).item_metadata.tree
        args = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=sharding), metadata)
        arrays = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=args))
    else:
        import tensorstore as ts

        driver = "zarr3" if "zarr3" in path else "zarr"
        before, started = peak(), time.perf_counter()
        store = lambda name: {"driver": driver, "kvstore": {"driver": "ocdbt", "base": f"file://{path}", "path": f"{name}/"}}
        opened = [ts.open(store(name), open=True) for name, _ in llama_shapes()]
        reads = [one.result().read() for one in opened]
        arrays = [jax.device_put(read.result(), device) for read in reads]
    jax.block_until_ready(arrays)
    print(json.dumps({"seconds": time.perf_counter() - started, "peak": peak() - before}))


def run(command):
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout)


def ours(path):
    """A load; the memory by the system's own account of the process."""
    command = [sys.executable, "-c", "import resource,subprocess,sys; subprocess.run(sys.argv[1:], check=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"]
    done = subprocess.run([*command, SAFEJAX, "load", path, "--plugin", "cpu", "--json"], check=True, capture_output=True, text=True)
    text, _, memory = done.stdout.strip().rpartition("\n")
    return {"seconds": json.loads(text)["seconds"], "peak": int(memory)}


def pages(path, are_cached):
    """Brings a checkpoint into the page cache, or out of it."""
    for file in path.rglob("*"):
        if file.is_file():
            if are_cached:
                read_through(file)
            else:
                with open(file, "rb", buffering=0) as opened:
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def take_memory():
    """Has the host of a virtual machine give it as much memory as a row needs: else the first row would wait for what the next ones
    find there."""
    code = "import mmap; mmap.mmap(-1, 4 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)"
    subprocess.run([sys.executable, "-c", code], check=True)


def main():
    options = start(child)
    # In a process of its own, which gives its memory back.
    subprocess.run([sys.executable, __file__, "--child", "make", options.directory], check=True)
    python = lambda way, path: run([sys.executable, __file__, "--child", way, str(path)])
    ways = {"safejax": ours, "Orbax": lambda path: python("orbax", path), "TensorStore": lambda path: python("tensorstore", path)}
    print("| checkpoint | | warm, ms | cold, ms | memory, GB |\n| --- | --- | --- | --- | --- |")
    for case in CASES:
        path = (options.directory / f"orbax-{case}").resolve()
        times = {way: {True: [], False: []} for way in ways}
        memory = dict.fromkeys(ways, 0)
        for _ in range(options.rounds):
            for is_warm in (True, False):
                for way, load in ways.items():
                    pages(path, is_warm)
                    take_memory()
                    found = load(path)
                    times[way][is_warm].append(found["seconds"])
                    memory[way] = max(memory[way], found["peak"])
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        for way in ways:
            warm, cold = (statistics.median(times[way][is_warm]) * 1e3 for is_warm in (True, False))
            print(f"| {case}, {size / 1e9:.2f} GB | {way} | {warm:.0f} | {cold:.0f} | {memory[way] / 1e9:.2f} |", flush=True)


main()
