#!/usr/bin/env python3
"""Writes small checkpoints of Orbax and databases of TensorStore, with what is in them, to a directory: tests/data/orbax.

    venv/bin/python scripts/make_orbax.py [--directory DIR] [CASE...]

Needs orbax-checkpoint 0.12.8, jax 0.10.2 and safetensors; the cases that begin with `orbax05` and `orbax02` are made with orbax-checkpoint
0.5.3 (jax 0.4.30) and 0.2.3 (jax 0.4.14), where they are asked for by name. A case is CASE/checkpoint and CASE/expected.safetensors,
which has every array by its name; elements of types that safetensors does not have are there as bytes (U8).
"""

import argparse
import os
import pathlib
import shutil

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

jax.config.update("jax_enable_x64", True)

# Types that the expected file has as they are.
PLAIN = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64", "bfloat16"]
# The others: their bytes.
BYTES = ["complex64", "complex128", "int4", "float8_e3m4", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]


def numbers(seed, *shape, dtype=np.float32):
    dtype = np.dtype(getattr(ml_dtypes, dtype)) if isinstance(dtype, str) and hasattr(ml_dtypes, dtype) else np.dtype(dtype)
    values = np.random.default_rng(seed).integers(-8, 8, shape)
    if dtype.name == "float8_e8m0fnu":
        return (2.0 ** (values % 4)).astype(dtype)
    return (values % 2 if dtype == bool else abs(values) if dtype.kind == "u" else values).astype(dtype)


def laid(array, *spec):
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    return jax.device_put(array, NamedSharding(Mesh(devices, ("x", "y")), P(*spec)))


def tree():
    types = {name: jnp.asarray(numbers(index, 2, 6, dtype=name)) for index, name in enumerate(PLAIN + BYTES)}
    return {
        "types": types,
        "split": {
            "rows": laid(numbers(50, 8, 6), "x"),
            "columns": laid(numbers(51, 6, 8), None, "y"),
            "both": laid(numbers(52, 4, 4, 3, dtype="bfloat16"), "x", "y"),
        },
        "list": [jnp.asarray(numbers(60, 3)), (jnp.asarray(numbers(61, 2)), None)],
        "numpy": numbers(62, 5, 3, dtype=np.int16),
        "empty": {},
        "rate": 0.25,
        "steps": 7,
        "is_done": True,
        "name": "a name",
    }


def named(value, path=()):
    """Every array of a tree by its name."""
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, (list, tuple)):
        children = enumerate(value)
    elif value is None or isinstance(value, str):
        return
    else:
        is_key = hasattr(jax.dtypes, "prng_key") and jnp.issubdtype(getattr(value, "dtype", None), jax.dtypes.prng_key)
        yield ".".join(map(str, path)), np.asarray(jax.random.key_data(value) if is_key else value)
        return
    for key, child in children:
        yield from named(child, (*path, key))


def expect(directory, value):
    arrays = {}
    for name, array in named(value):
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype.name not in PLAIN:
            width = array.dtype.itemsize
            array = np.frombuffer(array.tobytes(), np.uint8).reshape(*array.shape, *([width] if width > 1 else []))
            if name.endswith("int4"):
                array = array & 15
        arrays[name] = array
    safetensors.numpy.save_file(arrays, directory / "expected.safetensors")


def fresh(root, case):
    directory = root / case
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def v0(root, case, value, **options):
    import orbax.checkpoint as ocp

    directory = fresh(root, case)
    save = {key: options.pop(key) for key in ("save_args", "ocdbt_target_data_file_size") if key in options}
    handler = ocp.PyTreeCheckpointHandler(**options)
    ocp.Checkpointer(handler).save(directory.resolve() / "checkpoint", args=ocp.args.PyTreeSave(value, **save))
    expect(directory, value)


def zarr3_chunks(root):
    import orbax.checkpoint as ocp

    value = {"a": jnp.asarray(numbers(1, 12, 10)), "b": laid(numbers(2, 8, 8), "x", "y")}
    args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=64), value)
    v0(root, "zarr3_chunks", value, use_zarr3=True, save_args=args)


def several_items(root):
    import orbax.checkpoint as ocp

    directory = fresh(root, "several_items")
    value = {"w": jnp.asarray(numbers(3, 4, 2))}
    with ocp.CheckpointManager(directory.resolve() / "checkpoint", item_names=("params", "state", "facts")) as manager:
        for step in (2, 10):
            scaled = jax.tree.map(lambda w: w * step, value)
            items = {"params": ocp.args.StandardSave(scaled), "state": ocp.args.StandardSave({"step": jnp.asarray(step)}), "facts": ocp.args.JsonSave({"a": 1})}
            manager.save(step, args=ocp.args.Composite(**items))
    # One that was never finished.
    shutil.copytree(directory / "checkpoint" / "10", directory / "checkpoint" / "20.orbax-checkpoint-tmp-1")
    expect(directory, {"step": np.asarray(10)})


def random_key(root):
    v0(root, "random_key", {"key": jax.random.key(3), "keys": jax.random.split(jax.random.key(4, impl="rbg"), 3), "w": jnp.ones(2)})


def optimizer(root, case="optimizer", **options):
    import typing

    class State(typing.NamedTuple):
        count: jax.Array
        mu: dict

    class Empty(typing.NamedTuple):
        pass

    value = {"params": {"w": jnp.asarray(numbers(4, 3))}, "opt": (State(jnp.asarray(5), {"w": jnp.asarray(numbers(5, 3))}), Empty())}
    v0(root, case, value, **options)
    expect(root / case, {"params": value["params"], "opt": [{"count": value["opt"][0].count, "mu": value["opt"][0].mu}]})


def rich_types(root):
    """Its tuples and named tuples are told from lists and dictionaries."""
    from orbax.checkpoint._src.metadata.pytree_metadata_options import PyTreeMetadataOptions

    optimizer(root, "rich_types", pytree_metadata_options=PyTreeMetadataOptions(support_rich_types=True))


def nnx(root):
    """A state of NNX: each variable has its array under the key `value`."""
    layer = lambda seed: {"kernel": {"value": jnp.asarray(numbers(seed, 3, 2))}, "bias": {"value": jnp.asarray(numbers(seed + 1, 2))}}
    v0(root, "nnx", {"layers": {"0": layer(80), "1": layer(82)}, "count": {"value": jnp.asarray(3)}})
    bare = lambda seed: {"kernel": numbers(seed, 3, 2), "bias": numbers(seed + 1, 2)}
    expect(root / "nnx", {"layers": {"0": bare(80), "1": bare(82)}, "count": np.asarray(3)})


def one_array(root):
    v0(root, "one_array", jnp.asarray(numbers(6, 3, 3)))
    safetensors.numpy.save_file({"": numbers(6, 3, 3)}, root / "one_array" / "expected.safetensors")


def pytree_serialization(root):
    from jax.experimental.array_serialization import pytree_serialization as serialization

    directory = fresh(root, "pytree_serialization")
    value = {"a": [jnp.asarray(numbers(7, 4, 3)), None], "b": jnp.asarray(numbers(8, 2, dtype="bfloat16"))}
    serialization.save(value, directory.resolve() / "checkpoint")
    expect(directory, value)


def tensorstore(root):
    """Databases and arrays as others than Orbax make them."""
    import tensorstore as ts

    directory = fresh(root, "tensorstore")
    path = str(directory.resolve() / "checkpoint")
    arrays = {}

    def store(name, driver, array, schema=(), fill=None, write=None, base=None):
        spec = {"driver": driver, "kvstore": {"driver": "ocdbt", "base": f"file://{path}", "path": f"{name}/", **(base or {})}, "metadata": dict(schema)}
        dtype = array.dtype.name
        opened = ts.open(spec, create=True, dtype=ts.dtype(dtype), shape=array.shape, **({"fill_value": fill} if fill is not None else {})).result()
        (opened if write is None else opened[write]).write(array if write is None else array[write]).result()
        arrays[name] = opened.read().result()

    # Nodes of a few keys, so that the tree is several levels high, and manifests with numbers.
    base = {"config": {"max_decoded_node_bytes": 300, "max_inline_value_bytes": 20, "manifest_kind": "numbered", "version_tree_arity_log2": 1}}
    store("v2.fortran", "zarr", numbers(10, 7, 5), {"order": "F", "chunks": [3, 2], "compressor": None}, base=base)
    store("v2.gzip", "zarr", numbers(11, 7, 5), {"compressor": {"id": "gzip"}, "chunks": [4, 5]})
    store("v2.zlib", "zarr", numbers(12, 7, 5, dtype=np.int64), {"compressor": {"id": "zlib"}, "chunks": [7, 2], "dtype": ">i8"})
    store("v2.slash", "zarr", numbers(13, 6, 6, dtype=np.uint8), {"compressor": {"id": "zstd"}, "chunks": [4, 4], "dimension_separator": "/"})
    store("v2.missing", "zarr", numbers(14, 6, 6), {"compressor": {"id": "zstd"}, "chunks": [2, 2], "dtype": "<f4", "fill_value": 2.5}, write=np.s_[2:4])
    store("v2.rows", "zarr", numbers(15, 7, 4), {"compressor": None, "chunks": [2, 4]})
    grid = lambda *shape: {"name": "regular", "configuration": {"chunk_shape": list(shape)}}
    little, crc = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}
    store("v3.turned", "zarr3", numbers(16, 4, 5, 6), {"chunk_grid": grid(2, 5, 4), "codecs": [{"name": "transpose", "configuration": {"order": [2, 0, 1]}}, {"name": "bytes", "configuration": {"endian": "big"}}, {"name": "zstd", "configuration": {"level": 3}}, crc]})
    shard = lambda location: {"name": "sharding_indexed", "configuration": {"chunk_shape": [2, 3], "codecs": [little, {"name": "gzip", "configuration": {"level": 1}}], "index_codecs": [little, crc], "index_location": location}}
    store("v3.start", "zarr3", numbers(17, 9, 7, dtype="bfloat16"), {"chunk_grid": grid(4, 6), "codecs": [shard("start")]})
    store("v3.end", "zarr3", numbers(18, 9, 7), {"chunk_grid": grid(6, 9), "codecs": [shard("end")]}, fill=1.0, write=np.s_[:5])
    store("v3.keys", "zarr3", numbers(19, 5, dtype=np.int32), {"chunk_grid": grid(2), "codecs": [little], "chunk_key_encoding": {"name": "v2", "configuration": {"separator": "/"}}})
    # Older versions are in the file still.
    store("gone", "zarr", numbers(20, 3), {"compressor": None})
    ts.KvStore.open({"driver": "ocdbt", "base": f"file://{path}"}).result().delete_range(ts.KvStore.KeyRange("gone/", "gone0")).result()
    del arrays["gone"]
    for manifest in sorted((directory / "checkpoint").glob("manifest.0*"))[:-2]:
        manifest.unlink()
    nested = {}
    for name, array in arrays.items():
        version, name = name.split(".")
        nested.setdefault(version, {})[name] = array
    expect(directory, nested)


def numbers_of_old(seed):
    return {"params": {"w": jnp.asarray(numbers(seed, 4, 3)), "b": jnp.asarray(numbers(seed + 1, 3, dtype="bfloat16"))}, "layers": [jnp.asarray(numbers(seed + 2, 2))], "step": 3, "none": None, "empty": {}}


def old(root, case, **options):
    import orbax.checkpoint as ocp

    directory = fresh(root, case)
    value = numbers_of_old(30)
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)).save(directory.resolve() / "checkpoint", value)
    expect(directory, value)


def t5x_like(root):
    """Arrays that are in the old `checkpoint` file itself."""
    import orbax.checkpoint as ocp

    directory = fresh(root, "orbax05_aggregate")
    value = numbers_of_old(40)
    args = jax.tree_util.tree_map(lambda _: ocp.SaveArgs(aggregate=True), value)
    args["params"]["w"] = ocp.SaveArgs()
    ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)).save(directory.resolve() / "checkpoint", value, save_args=args)
    expect(directory, value)


CASES = {
    "default": lambda root: v0(root, "default", tree()),
    "uncompressed": lambda root: v0(root, "uncompressed", {**tree(), "large": jnp.asarray(numbers(70, 32, 32))}, use_compression=False),
    "zarr3": lambda root: v0(root, "zarr3", tree(), use_zarr3=True),
    "directories": lambda root: v0(root, "directories", tree(), use_ocdbt=False),
    "zarr3_chunks": zarr3_chunks,
    "several_items": several_items,
    "random_key": random_key,
    "optimizer": optimizer,
    "rich_types": rich_types,
    "nnx": nnx,
    "one_array": one_array,
    "pytree_serialization": pytree_serialization,
    "tensorstore": tensorstore,
    "orbax05": lambda root: old(root, "orbax05", use_ocdbt=True),
    "orbax05_aggregate": t5x_like,
    "orbax02": lambda root: old(root, "orbax02"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent / "tests/data/orbax")
    parser.add_argument("cases", nargs="*", default=[case for case in CASES if not case.startswith("orbax0")])
    options = parser.parse_args()
    for case in options.cases:
        print(case, flush=True)
        CASES[case](options.directory)
        # They say where the checkpoint was made.
        for mark in (options.directory / case).rglob("commit_success.txt"):
            mark.write_text("")


main()
