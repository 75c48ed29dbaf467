#!/usr/bin/env python3
"""Loads and saves by what else there is, and the limit that the hardware sets, for `gpu_check.py`, which watches.

    python gpu_rivals.py torch|jax ROUNDS warm|cold FILE...
    python gpu_rivals.py torch-save|flax-save ROUNDS warm FILE TARGET
    python gpu_rivals.py limit ROUNDS

Prints, like benches/device.rs, a line of JSON when a measurement begins, and one when it has ended.
"""

import json
import os
import sys
import time


def say(event, **values):
    print(json.dumps({"event": event, **values}), flush=True)


def evict(file):
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def torch_loads():
    import safetensors
    import safetensors.torch
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.ones(1, device=device)

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    def direct(file):
        tensors = safetensors.torch.load_file(file, device=device)
        wait()
        return tensors

    def by_hand(file):
        with safetensors.safe_open(file, framework="pt", device="cpu") as opened:
            tensors = {
                name: opened.get_tensor(name).pin_memory().to(device, non_blocking=True) for name in opened.keys()
            }
        wait()
        return tensors

    return {"torch": direct, "torch-pinned": by_hand}


def jax_loads():
    import jax
    import safetensors
    import safetensors.flax

    jax.device_put(1.0).block_until_ready()

    def flax(file):
        return jax.block_until_ready(safetensors.flax.load_file(file))

    def device_put(file):
        with safetensors.safe_open(file, framework="numpy") as opened:
            arrays = {name: jax.device_put(opened.get_tensor(name)) for name in opened.keys()}
        return jax.block_until_ready(arrays)

    return {"flax": flax, "device-put": device_put}


def saves(mode, file, target):
    if mode == "torch-save":
        import safetensors.torch

        tensors = torch_loads()["torch"](file)
        return lambda: safetensors.torch.save_file(tensors, target)
    import safetensors.flax

    arrays = jax_loads()["flax"](file)
    return lambda: safetensors.flax.save_file(arrays, target)


def limit(rounds):
    """Copies between pinned memory and the device, by one stream and by two."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    size = 1 << 30
    host = [torch.randint(0, 255, (size,), dtype=torch.uint8).pin_memory() for _ in range(2)]
    device = [torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]

    def copies(count, to_device):
        for index in range(4):
            which = index % count
            with torch.cuda.stream(streams[which]):
                pair = (device[which], host[which]) if to_device else (host[which], device[which])
                pair[0].copy_(pair[1], non_blocking=True)
        torch.cuda.synchronize()

    for _ in range(rounds + 1):
        for way in ["h2d-1", "h2d-2", "d2h-1", "d2h-2"]:
            direction, count = way.split("-")
            started = time.perf_counter()
            copies(int(count), direction == "h2d")
            say("rate", way=way, gigabytes_per_second=4 * size / (time.perf_counter() - started) / 1e9)


def measured(way, work, **values):
    say("begin", way=way, **values)
    started = time.perf_counter()
    work()
    say("end", way=way, seconds=time.perf_counter() - started, **values)


def main():
    mode, rounds, *rest = sys.argv[1:]
    rounds = int(rounds)
    if mode == "limit":
        return limit(rounds)
    cache, *files = rest
    if mode.endswith("-save"):
        file, target = files
        save = saves(mode, file, target)
        for _ in range(rounds):
            measured(mode, save)
            os.unlink(target)
        return
    for way, load in (torch_loads if mode == "torch" else jax_loads)().items():
        for file in files:
            for _ in range(rounds):
                if cache == "cold":
                    evict(file)
                # What is loaded goes before the next round.
                measured(way, lambda: load(file), file=file)


if __name__ == "__main__":
    main()
