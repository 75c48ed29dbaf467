#!/usr/bin/env python3
"""Exports functions with symbolic dimensions, and runs them by safejax at several sizes against JAX.

    venv/bin/python scripts/symbolic_programs.py [--safejax target/release/safejax] [--only NAMES] [--keep DIR]

Needs jax of any version from 0.4.38 on, and numpy. Each function is exported once, called by JAX at each set of sizes, and
run by `safejax run --expect` on the same arguments. Exits with 1 if one differs.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Absolute; safejax's plugin and jax's are different builds of XLA.
TOLERANCE = 0.001
OF_16_BITS = {"bfloat16": 0.01}
F, I, B = jnp.float32, jnp.int32, jnp.bool_
BF, U, H = jnp.bfloat16, jnp.uint32, jnp.float16


def mlp(x, w1, w2):
    return jax.nn.relu(x @ w1) @ w2


def attention(q, k, v):
    scores = jnp.einsum("bqd,bkd->bqk", q, k) / jnp.sqrt(q.shape[-1])
    mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
    return jax.nn.softmax(jnp.where(mask, scores, -1e9)) @ v


def convolved(x, w):
    y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return lax.reduce_window(jax.nn.gelu(y), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def transposed_conv(x, w):
    return lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def scanned(x, w):
    def step(carry, row):
        carry = jnp.tanh(carry @ w + row)
        return carry, carry.sum(-1)

    return lax.scan(step, jnp.zeros_like(x[:, 0]), jnp.swapaxes(x, 0, 1))


def looped(x):
    return lax.while_loop(lambda s: s[0] < x.shape[0], lambda s: (s[0] + 1, s[1] * 0.5 + 1), (0, x))


def switched(x, i):
    return lax.switch(i, [lambda y: y + y.shape[0], lambda y: y * 2, jnp.sin], x)


def updated(x, y):
    return x.at[1::2].set(y[: x[1::2].shape[0]]), x.at[jnp.array([0, 0])].add(1.0)


def split(x):
    return jnp.split(x, [1], axis=0) + jnp.split(x[:4], 2, axis=1)


def resized(x):
    return jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 3), "linear")


def gradient(x, w):
    return jax.grad(lambda w: (mlp(x, w, w.T) ** 2).mean())(w)


def windows(x):
    return lax.reduce_window(x, 0.0, lax.add, (3, x.shape[1]), (1, 1), "SAME")


def batched_update(x, i):
    return jax.vmap(lambda row, j: row.at[j].set(7.0))(x, i)


def dynamic_slices(x, i):
    return lax.dynamic_slice(x, (i, 0), (2, x.shape[1])), lax.dynamic_update_slice(x, x[:1] * 2, (i, 0))


def slice_of_symbolic_size(x, i):
    return lax.dynamic_slice(x, (i, 0), (x.shape[0] - 1, x.shape[1]))


def rotary(x):
    t = jnp.arange(x.shape[1])[:, None] / 10.0 ** jnp.arange(x.shape[2] // 2)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * jnp.cos(t) - b * jnp.sin(t), a * jnp.sin(t) + b * jnp.cos(t)], axis=-1)


def rematerialised(x, w):
    return jax.grad(lambda w: jax.checkpoint(lambda y: jnp.sin(y @ w))(x).sum())(w)


def random(key, x):
    return jax.random.normal(key, x.shape) + x, jax.random.uniform(key, (x.shape[0], 2)), jax.random.bits(key, x.shape)


def select_and_scatter(x):
    pool = lambda y: lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").sum()
    return jax.grad(pool)(x)


def dimension_arithmetic(x):
    b, t = x.shape
    return jnp.full((b + t,), b * t // 2 % 5), jnp.ones((max(b, t) if False else b * t,)), jnp.int32(b) * 3 - t


# Name, function, specifications with their types, sets of sizes.
S = [{"b": 2, "t": 6}, {"b": 1, "t": 4}, {"b": 6, "t": 6}]
N = [{"b": 3}, {"b": 1}, {"b": 8}]
CASES = [
    ("mlp", mlp, [("b, 3", F), ("3, 5", F), ("5, 2", F)], N),
    ("attention", attention, [("b, t, 4", F)] * 3, S),
    ("convolved", convolved, [("b, 2*t, 2*t, 2", F), ("3, 3, 2, 4", F)], S),
    ("conv_strided", lambda x, w: lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")), [("b, t, t+1, 2", F), ("3, 3, 2, 4", F)], S),
    ("conv_1d_dilated", lambda x, w: lax.conv_general_dilated(x, w, (1,), "VALID", rhs_dilation=(2,), dimension_numbers=("NWC", "WIO", "NWC")), [("b, t, 2", F), ("2, 2, 4", F)], S),
    ("transposed_conv", transposed_conv, [("b, t, t, 2", F), ("3, 3, 2, 4", F)], S),
    ("conv_depthwise", lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2), [("b, t, t, 2", F), ("3, 3, 1, 2", F)], S),
    ("scan", scanned, [("b, t, 3", F), ("3, 3", F)], S),
    ("while", looped, [("b, 3", F)], N),
    ("fori", lambda x: lax.fori_loop(0, x.shape[0], lambda i, y: y + x[i], jnp.zeros(x.shape[1])), [("b, t", F)], S),
    ("cond", lambda x, p: lax.cond(p, lambda y: y.sum(0), lambda y: y[0], x), [("b, t", F), ("", B)], S),
    ("switch", switched, [("b, t", F), ("", I)], S),
    ("gather", lambda x, i: x[i], [("b, t", F), ("t", I)], S),
    ("take_along", lambda x, i: jnp.take_along_axis(x, i, axis=1), [("b, t", F), ("b, 2", I)], S),
    ("scatter", updated, [("b+1, 3", F), ("b+1, 3", F)], N),
    ("sort", lambda x: (jnp.sort(x, axis=1), jnp.argsort(x, axis=0)), [("b, t", F)], S),
    ("top_k", lambda x: lax.top_k(x, 3), [("b, t+2", F)], S),
    ("top_k_symbolic", lambda x: lax.top_k(x, x.shape[1] - 1), [("b, t", F)], S),
    ("top_k_int", lambda x: lax.top_k(x, x.shape[0]), [("t", I)], S),
    ("approx_top_k", lambda x: lax.approx_max_k(x, 2), [("b, t+1", F)], S),
    ("argmax", lambda x: (jnp.argmax(x, 1), jnp.argmin(x, 0)), [("b, t", F)], S),
    ("cumsum", lambda x: jnp.cumsum(x, axis=1), [("b, t", F)], S),
    ("cumulative", lambda x: (lax.cummax(x, axis=0), lax.cumprod(x, axis=1), lax.cumlogsumexp(x, axis=1)), [("b, t", F)], S),
    ("associative_scan", lambda x: lax.associative_scan(jnp.add, x, axis=0), [("8, b", F)], N),
    ("windows", windows, [("b, t", F)], S),
    ("concatenate", lambda x, y: jnp.concatenate([x, y, x], axis=0), [("b, t", F), ("2, t", F)], S),
    ("stack", lambda x: jnp.stack([x, x * 2], axis=1), [("b, t", F)], S),
    ("pad", lambda x: jnp.pad(x, ((0, x.shape[1]), (1, 2)), constant_values=3.0), [("b, t", F)], S),
    ("pad_reflect", lambda x: jnp.pad(x, ((0, 0), (1, 1)), mode="reflect"), [("b, t+3", F)], S),
    ("interior_pad", lambda x: lax.pad(x, 0.0, ((1, -1, 2), (0, 0, 1))), [("b, t", F)], S),
    ("slices", lambda x: (x[1:, ::2], x[:, -2:], x[::-1]), [("b, t", F)], S),
    ("dynamic_slices", dynamic_slices, [("b+1, t", F), ("", I)], S),
    ("moving_slice", slice_of_symbolic_size, [("b+1, t", F), ("", I)], S),
    ("roll", lambda x: (jnp.roll(x, 1, axis=1), jnp.roll(x, x.shape[0] - 1, axis=0)), [("b, t", F)], S),
    ("reshape", lambda x: (x.reshape(-1), x.reshape(x.shape[0], 2, -1)), [("b, 4", F)], N),
    ("transpose", lambda x: (x.T, jnp.swapaxes(x[None], 0, 2)), [("b, t", F)], S),
    ("broadcast", lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], x.shape[0] + 1, x.shape[1])), [("b, t", F)], S),
    ("arange", lambda x: (jnp.arange(x.shape[0]), jnp.arange(x.shape[1])[::-1] * x), [("b, t", F)], S),
    ("linspace", lambda x: x + jnp.linspace(0, 1, 5), [("b, 5", F)], N),
    ("eye", lambda x: jnp.eye(x.shape[0], x.shape[1]) + x, [("b, t", F)], S),
    ("tri", lambda x: (jnp.tril(x), jnp.triu(x, 1)), [("b, t", F)], S),
    ("repeat", lambda x: jnp.repeat(x, 3, axis=1), [("b, t", F)], S),
    ("tile", lambda x: jnp.tile(x, (2, 3)), [("b, t", F)], S),
    ("split", split, [("b+1, 4", F)], N),
    ("fft", lambda x: (jnp.fft.rfft(x), jnp.fft.irfft(jnp.fft.rfft(x), 8), jnp.fft.fft(x)), [("b, 8", F)], N),
    ("einsum", lambda x, y: jnp.einsum("bij,bjk->ik", x, y), [("b, t, 3", F), ("b, 3, t", F)], S),
    ("dot_batch", lambda x, y: lax.dot_general(x, y, (((2,), (1,)), ((0,), (0,)))), [("b, t, 3", F), ("b, 3, t+1", F)], S),
    ("reductions", lambda x: (x.mean(0), x.var(), x.max(1), jnp.prod(x), (x > 0).any(1), (x > 0).all()), [("b, t", F)], S),
    ("norms", lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5), [("b, t", F)], S),
    ("softmax_twice", lambda x, y: (jax.nn.softmax(x), jax.nn.softmax(y), jax.nn.log_softmax(x.T)), [("b, 3", F), ("t, 3", F)], S),
    ("unary", lambda x: [f(x) for f in (jnp.sin, jnp.cos, jnp.tan, jnp.exp, jnp.expm1, jnp.tanh, jnp.abs, jnp.sign, jnp.floor, jnp.ceil, jnp.round, lax.rsqrt, jax.nn.sigmoid, lax.erf, jnp.cbrt, lax.is_finite)], [("b, t", F)], S),
    ("special", lambda x: [f(jnp.abs(x) + 0.1) for f in (jnp.log, jnp.log1p, jnp.sqrt, jnp.sinh, jnp.cosh, jnp.arctan, lax.erf_inv, lax.lgamma, lax.digamma, lax.erfc)], [("b, t", F)], S),
    ("integers", lambda x: (x // 3, x % 3, x & 6, x | 1, x ^ 5, ~x, x << 1, x >> 1, lax.population_count(x), lax.clz(x)), [("b", I)], N),
    ("unsigned", lambda x: (x // 3, x % 3, x.astype(F), lax.bitcast_convert_type(x, F)), [("b", U)], N),
    ("bitcast", lambda x: (lax.bitcast_convert_type(x, jnp.uint16), lax.bitcast_convert_type(x, jnp.uint8)), [("b, 2", F)], N),
    ("complex", lambda x: (jnp.abs(lax.complex(x, x)), (lax.complex(x, -x) ** 2).imag), [("b, t", F)], S),
    ("bfloat16", lambda x, w: (x @ w).astype(F), [("b, 4", BF), ("4, 2", BF)], N),
    ("float16", lambda x: x * 2 + x.mean(), [("b, t", H)], S),
    ("clip", lambda x: (jnp.clip(x, -0.5, 0.5), jnp.where(x > 0, x, 0), jnp.maximum(x, 0)), [("b, t", F)], S),
    ("gradient", gradient, [("b, 3", F), ("3, 5", F)], N),
    ("rematerialised", rematerialised, [("b, 3", F), ("3, 3", F)], N),
    ("vmap", batched_update, [("b, t", F), ("b", I)], S),
    ("select_and_scatter", select_and_scatter, [("b, 2*t, 2*t, 1", F)], S),
    ("resize", resized, [("b, t, 3", F)], S),
    ("rotary", rotary, [("b, t, 4", F)], S),
    ("random", random, [("2", U), ("b, t", F)], S),
    ("dimensions", dimension_arithmetic, [("b, t", F)], S),
    ("floordiv", lambda x: x[: x.shape[0] // 2], [("b, 3", F)], [{"b": 4}, {"b": 3}, {"b": 2}]),
    ("one_hot", lambda i: jax.nn.one_hot(i, 5), [("b", I)], N),
    ("segment_sum", lambda x, i: jax.ops.segment_sum(x, i, num_segments=4), [("b, t", F), ("b", I)], S),
    ("nested_jit", lambda x, y: jax.jit(lambda a: jax.jit(jnp.sum)(a) * a)(x) + jax.jit(lambda a: a.sum())(y), [("b, t", F), ("t, b", F)], S),
    ("custom_jvp", lambda x: jax.grad(lambda y: jax.nn.softplus(y).sum())(x), [("b, t", F)], S),
    ("tree", lambda p, x: {"y": p["w"] * x, "z": (x.sum(), p["b"])}, None, N),
]


def argument(spec, rng):
    shape, dtype = spec.shape, np.dtype(spec.dtype)
    if dtype == bool:
        return rng.integers(0, 2, shape).astype(bool)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def specs_of(name, case):
    if case is not None:
        shapes = [shape for shape, _ in case]
        scope = export.SymbolicScope()
        return [jax.ShapeDtypeStruct(export.symbolic_shape(s, scope=scope) if s else (), d) for s, d in zip(shapes, [d for _, d in case])]
    scope = export.SymbolicScope()
    b = export.symbolic_shape("b", scope=scope)
    return [{"w": jax.ShapeDtypeStruct(b, F), "b": jax.ShapeDtypeStruct((), F)}, jax.ShapeDtypeStruct(b, F)]


def at(spec, sizes):
    return jax.ShapeDtypeStruct([d if isinstance(d, int) else int(d._evaluate(sizes)) for d in spec.shape], spec.dtype)


def save(path, tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    if len(leaves) == 1 and not leaves[0][0]:
        np.save(path.with_suffix(".npy"), as_numpy(leaves[0][1]))
        return path.with_suffix(".npy")
    from safetensors.numpy import save_file

    key = lambda k: str(getattr(k, "key", getattr(k, "idx", k)))
    arrays = {".".join(map(key, path)): as_numpy(value) for path, value in leaves}
    save_file({name: array.copy(order="C") for name, array in arrays.items()}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def as_numpy(value):
    return np.asarray(value)


def check(safejax, name, function, case, sizes_list, directory):
    specs = specs_of(name, case)
    exported = export.export(jax.jit(function))(*specs)
    artifact = directory / f"{name}.jaxexport"
    artifact.write_bytes(exported.serialize())
    problems = []
    for number, sizes in enumerate(sizes_list):
        rng = np.random.default_rng(number)
        args = jax.tree.map(lambda s: argument(at(s, sizes), rng), specs)
        folder = directory / f"{name}-{number}"
        folder.mkdir(exist_ok=True)
        expected = save(folder / "expected", jax.jit(function)(*args))
        command = [str(safejax), "run", str(artifact), "--expect", str(expected), "--tolerance", str(OF_16_BITS.get(name, TOLERANCE))]
        for position, value in enumerate(args):
            command += ["--arg", f"{position}={save(folder / f'in_{position}', value)}"]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0:
            problems.append(f"{sizes}: {(run.stderr or run.stdout).strip()[-600:]}")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--safejax", type=pathlib.Path, default=ROOT / "target/release/safejax")
    parser.add_argument("--only")
    parser.add_argument("--keep", type=pathlib.Path)
    options = parser.parse_args()
    jax.config.update("jax_traceback_in_locations_limit", 0)
    wanted = options.only.split(",") if options.only else None
    unknown = set(wanted or []) - {name for name, *_ in CASES}
    if unknown:
        parser.error(f"there is no function {', '.join(sorted(unknown))}")
    failed = runs = 0
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.keep or pathlib.Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        for name, function, case, sizes in CASES:
            if wanted and name not in wanted:
                continue
            try:
                problems = check(options.safejax, name, function, case, sizes, directory)
            except Exception as error:  # What JAX itself cannot export.
                print(f"skip {name}: {type(error).__name__}: {str(error)[:200]}")
                continue
            runs += len(sizes)
            failed += len(problems)
            print("ok  " if not problems else "FAIL", name, *problems, sep=" ")
    print(f"jax {jax.__version__}: {runs} runs, {failed} differ or fail")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
