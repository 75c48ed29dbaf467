#!/usr/bin/env python3
"""Functions that a GPU is for, exported and timed by the JAX of this machine, and what ours computed held against JAX's.

    python gpu_programs.py make DIR [--short]       exports them for JAX's device into DIR; prints JAX's times as JSON
    python gpu_programs.py split FILE DIR           each positional argument of a recorded call, as a file of its own
    python gpu_programs.py compare OURS RECORDED    prints as JSON how far the outputs are from the recorded ones

Like the exports of `make_exports.py`, each is CASE.jaxexport and CASE.safetensors with `args.…` and `out.…`.
"""

import json
import pathlib
import statistics
import sys
import time

import ml_dtypes  # noqa: F401  numpy gets its types from it
import numpy as np
import safetensors.numpy


def make(directory, short):
    import jax
    import jax.numpy as jnp

    import make_exports

    jax.config.update("jax_traceback_in_locations_limit", 0)
    make_exports.OUT = directory
    directory.mkdir(parents=True, exist_ok=True)
    f32 = make_exports.f32
    layers, width, heads, tokens, batch = (2, 64, 4, 16, 2) if short else (12, 768, 12, 128, 8)

    def layer(seed):
        def weight(offset, *shape):
            return f32(1000 + 10 * seed + offset, *shape) * np.float32(shape[0] ** -0.5)

        return {
            "attention": {
                "qkv": weight(0, width, 3, heads, width // heads),
                "out": weight(1, heads, width // heads, width) * np.float32(heads**0.5 / width**0.5),
            },
            "mlp": {"up": weight(2, width, 4 * width), "down": weight(3, 4 * width, width)},
            "norm_0": {"scale": np.ones(width, np.float32), "bias": weight(4, width)},
            "norm_1": {"scale": np.ones(width, np.float32), "bias": weight(5, width)},
        }

    def deep(params, x):
        for layer in params["layers"]:
            x = make_exports.transformer(layer, x)
        return x

    deep_args = ({"layers": [layer(seed) for seed in range(layers)]}, f32(50, batch, tokens, width))
    channels, side = (8, 12) if short else (64, 56)

    def conv(params, x):
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, params["first"], (2, 2), "SAME", dimension_numbers=dimensions)
        y = jax.lax.conv_general_dilated(jax.nn.relu(y), params["second"], (1, 1), "SAME", dimension_numbers=dimensions)
        return y.mean(axis=(1, 2))

    conv_args = (
        {"first": f32(60, 3, 3, 3, channels) / 5, "second": f32(61, 3, 3, channels, channels) / (3 * channels**0.5)},
        f32(62, batch, side, side, 3),
    )

    def scan(params, xs):
        def step(h, x):
            h = jnp.tanh(h @ params["h"] + x @ params["x"])
            return h, h.sum()

        return jax.lax.scan(step, jnp.zeros(params["h"].shape[0]), xs)

    def prng(key):
        a, b, c = jax.random.split(key, 3)
        return {
            "normal": jax.random.normal(a, (64, 33)),
            "bits": jax.random.bits(b, (1001,)),
            "order": jax.random.permutation(c, 500),
        }

    def fp8_dot(params, x):
        # safetensors.flax has no 8-bit floats, so that they come as bytes.
        w = jax.lax.bitcast_convert_type(params["w"], jnp.float8_e4m3fn)
        y = jax.lax.dot_general(
            x.astype(jnp.float8_e4m3fn), w, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return y * params["scale"]

    fp8 = np.asarray(f32(70, 128, 64)).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)

    def gather_scatter(params, ids, values):
        rows = params["table"][ids]
        sums = jnp.zeros_like(params["table"]).at[ids].add(values)
        best, where = jax.lax.top_k(values.sum(-1), 5)
        return {"rows": rows, "sums": sums, "best": best, "where": where, "running": jnp.cumsum(values, axis=0)}

    ids = np.random.default_rng(71).permutation(97)[:40].astype(np.int32)
    gather_args = ({"table": f32(72, 97, 24)}, ids, f32(73, 40, 24))

    cases = {
        "tiny": (lambda x: x * 2 + 1, (f32(80, 16),), {}),
        "deep_f32": (deep, deep_args, {}),
        "deep_bf16": (deep, make_exports.bf16(deep_args), {}),
        "conv": (conv, conv_args, {}),
        "scan": (scan, ({"h": f32(63, 32, 32) / 6, "x": f32(64, 8, 32)}, f32(65, 50, 8)), {}),
        "prng": (prng, (jax.random.PRNGKey(7),), {}),
        "fp8_dot": (fp8_dot, ({"w": fp8, "scale": np.float32(0.5)}, f32(74, 32, 128)), {}),
        "gather_scatter": (gather_scatter, gather_args, {}),
        "donating": (make_exports.optimizer, make_exports.OPTIMIZER, {"donate_argnums": (0, 1)}),
    }
    times = {}
    for name, (function, args, jit) in cases.items():
        compiled = jax.jit(function)
        on_device = jax.device_put(args)
        out = jax.block_until_ready(compiled(*on_device))
        exported = jax.export.export(jax.jit(function, **jit))(*args)
        make_exports.write(name, exported, args=args, out=out)
        if name in TIMED:
            times[name] = time_calls(lambda: compiled(*on_device), jax.block_until_ready)
    print(json.dumps({"jax": jax.__version__, "device": jax.devices()[0].device_kind, "times": times}))


# The calls of these are timed.
TIMED = ["tiny", "deep_f32", "deep_bf16"]


def time_calls(call, wait):
    """Medians in microseconds: of a call until its outputs are there, and until it returns."""
    whole, enqueued = [], []
    until = time.perf_counter() + 1.5
    while time.perf_counter() < until:
        started = time.perf_counter()
        out = call()
        enqueued.append(time.perf_counter() - started)
        wait(out)
        whole.append(time.perf_counter() - started)
    return {"whole_us": statistics.median(whole) * 1e6, "enqueue_us": statistics.median(enqueued) * 1e6}


def split(file, directory):
    arguments = {}
    for name, array in safetensors.numpy.load_file(file).items():
        if name.startswith("args."):
            position, _, path = name.removeprefix("args.").partition(".")
            arguments.setdefault(int(position), {})[path] = array
    paths = []
    for position, leaves in sorted(arguments.items()):
        path = directory / f"{file.stem}-{position}"
        if set(leaves) == {""}:
            # A leaf by itself. Numpy writes bfloat16 as bytes without a type, which `run` takes for what is expected.
            path = path.with_suffix(".npy")
            array = leaves[""]
            np.save(path, array.view("V2") if array.dtype.name == "bfloat16" else array)
        else:
            path = path.with_suffix(".safetensors")
            safetensors.numpy.save_file(leaves, path)
        paths.append(str(path))
    print(json.dumps(paths))


def compare(ours, recorded):
    ours = safetensors.numpy.load_file(ours)
    theirs = {
        name.removeprefix("out").removeprefix("."): array
        for name, array in safetensors.numpy.load_file(recorded).items()
        if name == "out" or name.startswith("out.")
    }
    if len(theirs) == 1 and len(ours) == 1:
        ours = dict(zip(theirs, ours.values()))
    if set(ours) != set(theirs):
        sys.exit(f"the outputs are {sorted(ours)}, not {sorted(theirs)}")
    is_same, worst = True, 0.0
    for name, expected in theirs.items():
        found = ours[name]
        if (found.dtype, found.shape) != (expected.dtype, expected.shape):
            sys.exit(f"{name} is {found.dtype}{found.shape}, not {expected.dtype}{expected.shape}")
        if found.tobytes() == expected.tobytes():
            continue
        is_same = False
        a, b = found.astype(np.float64), expected.astype(np.float64)
        distance = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
        worst = max(worst, float("inf") if np.isnan(distance) else float(distance))
    print(json.dumps({"is_same": is_same, "distance": worst}))


if __name__ == "__main__":
    command, *paths = [argument for argument in sys.argv[1:] if argument != "--short"]
    paths = [pathlib.Path(path) for path in paths]
    if command == "make":
        make(paths[0], "--short" in sys.argv)
    else:
        {"split": split, "compare": compare}[command](*paths)
