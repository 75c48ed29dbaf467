#!/usr/bin/env python3
"""The Python side of cli/tests/interop.rs: writes and compares files with the real libraries.

    interop.py same A B                 the two safetensors files hold the same tensors, bit for bit
    interop.py write OUT                writes one of every type; prints the types
    interop.py write-floats OUT         writes floats that are hard to round
    interop.py is-cast IN OUT DTYPE     OUT is IN cast by ml_dtypes
    interop.py write-npy DIRECTORY      writes npy files; prints their names and specs
    interop.py same-npy A B             the two npy files hold the same array
    interop.py write-shards IN OUT      writes IN to the directory OUT in several files, as the hub's library shares it out
    interop.py same-shards FILE INDEX   the files of the index hold what FILE holds, each what the index says

Run with the packages of requirements-numpy.txt.
"""

import json
import pathlib
import sys

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy


def tensors(path):
    """Name to (dtype, shape, bytes), by the library's own reader."""
    entries = safetensors.deserialize(pathlib.Path(path).read_bytes())
    return {name: (info["dtype"], info["shape"], bytes(info["data"])) for name, info in entries}


def same(a, b):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    for name in a:
        assert a[name] == b[name], name


TYPES = [
    "bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "bfloat16",
    "float32", "float64", "complex64", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e4m3fnuz",
    "float8_e5m2fnuz",
]  # fmt: skip


def write(out):
    random = np.random.default_rng(0)
    data, written = {}, []
    for name in TYPES:
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        arrays = {}
        for shape in ([], [3], [2, 3], [0, 4]):
            count = int(np.prod(shape))
            top = 2 if name == "bool" else 256
            raw = random.integers(0, top, count * dtype.itemsize, dtype=np.uint8).tobytes()
            arrays[f"{name}.{len(shape)}.{count}"] = np.frombuffer(raw, dtype).reshape(shape)
        try:
            safetensors.numpy.save(arrays)
        except (KeyError, ValueError, safetensors.SafetensorError) as error:
            print(f"the library does not write {name}: {error}", file=sys.stderr)
            continue
        data.update(arrays)
        written.append(name)
    safetensors.numpy.save_file(data, out, {"writer": "safetensors"})
    print("\n".join(written))


def write_floats(out):
    random = np.random.default_rng(0)
    any_double = random.integers(0, 2**64, 20000, dtype=np.uint64).view(np.float64)
    # Near the range of the half-width types, and exactly between their values.
    near = (random.standard_normal(20000) * 10.0 ** random.integers(-8, 6, 20000)).astype(np.float64)
    middle = near.astype(np.float32).view(np.uint32) & 0xFFFF0000 | 0x8000
    doubles = np.concatenate([any_double[np.isfinite(any_double)], near, middle.view(np.float32).astype(np.float64)])
    data = {"f64": doubles, "f32": doubles.astype(np.float32), "f16": doubles.astype(np.float16)}
    data["i32"] = np.arange(3, dtype=np.int32)
    safetensors.numpy.save_file(data, out)


def is_cast(source, out, dtype):
    source = safetensors.numpy.load_file(source)
    raw = tensors(out)
    target = np.dtype(dtype) if dtype != "bfloat16" else np.dtype(ml_dtypes.bfloat16)
    for name, array in source.items():
        ours = raw[name][2]
        if name == "i32":
            assert ours == array.tobytes()
            continue
        if array.dtype == np.float64 and target == np.dtype(ml_dtypes.bfloat16):
            # ml_dtypes goes through float32, which rounds twice; those that it would are left out here.
            exact = array.astype(np.float32).astype(np.float64) == array
        else:
            exact = np.ones(array.shape, bool)
        ours = np.frombuffer(ours, target)
        theirs = array.astype(target)
        width = f"u{target.itemsize}"
        assert (ours.view(width)[exact] == theirs.view(width)[exact]).all(), name


def write_npy(directory):
    arrays = {
        "scalar": np.float32(3.5),
        "matrix": np.arange(6, dtype=np.int64).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(24, dtype=np.float64).reshape(2, 3, 4)),
        "big": np.arange(5, dtype=">u2"),
        "complex": np.array([1 + 2j, 3 - 4j], dtype=">c16"),
        "bool": np.array([[True, False]]),
        "empty": np.zeros((0, 3), np.float16),
        "bfloat16": np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16),
    }
    for name, array in arrays.items():
        np.save(pathlib.Path(directory) / f"{name}.npy", array)
        array = np.asarray(array)
        print(f"{name}.npy {array.dtype.newbyteorder('=').name}[{','.join(map(str, array.shape))}]")


def same_npy(a, b):
    a, b = np.load(a), np.load(b)
    assert a.shape == b.shape and a.dtype.newbyteorder("=") == b.dtype, (a.dtype, b.dtype)
    assert a.astype(b.dtype).tobytes() == b.tobytes()


def write_shards(source, out):
    import huggingface_hub

    arrays = safetensors.numpy.load_file(source)
    split = huggingface_hub.split_state_dict_into_shards_factory(
        arrays,
        get_storage_size=lambda array: array.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=64_000,
    )
    assert split.is_sharded
    out = pathlib.Path(out)
    for name, keys in split.filename_to_tensors.items():
        safetensors.numpy.save_file({key: arrays[key] for key in keys}, out / name, {"format": "pt"})
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))


def same_shards(file, index):
    """Reads as the hub's loaders do: each file once, whole, and every tensor of it must be the index's."""
    index = pathlib.Path(index)
    document = json.loads(index.read_text())
    found = {}
    for name in sorted(set(document["weight_map"].values())):
        shard = tensors(index.with_name(name))
        assert {key for key, file in document["weight_map"].items() if file == name} == shard.keys(), name
        found |= shard
    assert found == tensors(file)
    assert document["metadata"]["total_size"] == sum(len(data) for _, _, data in found.values())


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    functions = {
        "same": same, "write": write, "write-floats": write_floats, "is-cast": is_cast,
        "write-npy": write_npy, "same-npy": same_npy,
        "write-shards": write_shards, "same-shards": same_shards,
    }  # fmt: skip
    functions[command](*arguments)
