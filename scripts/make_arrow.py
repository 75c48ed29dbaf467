#!/usr/bin/env python3
"""Writes Arrow's files, streams and tensors with what is in them: tests/data/arrow.

    venv/bin/python scripts/make_arrow.py [--directory DIR]

Needs pyarrow 26 and safetensors. NAME.arrow lies beside NAME.safetensors, which has every array by its column; of tensors by
themselves, by its number, and of one alone, without a name.
"""

import argparse
import pathlib

import numpy as np
import pyarrow as pa
import safetensors.numpy

TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]


def numbers(seed, *shape, dtype="float32"):
    values = np.random.default_rng(seed).integers(-8, 8, shape)
    values = values % 2 if dtype == "bool" else abs(values) if dtype.startswith("u") else values
    return values.astype(dtype)


def table():
    """A table, and what its columns are as arrays."""
    rows = 5
    arrays = {dtype: numbers(index, rows, dtype=dtype) for index, dtype in enumerate(TYPES)}
    columns = {name: pa.array(array) for name, array in arrays.items()}
    arrays["bool"] = numbers(20, rows, dtype="bool")
    columns["bool"] = pa.array(arrays["bool"])
    arrays["tensors"] = numbers(21, rows, 3, 4)
    columns["tensors"] = pa.FixedShapeTensorArray.from_numpy_ndarray(arrays["tensors"])
    # Its dimensions lie in another order than it has them.
    turned = pa.fixed_shape_tensor(pa.float32(), [2, 3, 4], permutation=[2, 0, 1])
    stored = numbers(22, rows, 2, 3, 4)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), 24)
    arrays["turned"] = stored.transpose(0, 3, 1, 2)
    columns["turned"] = pa.ExtensionArray.from_storage(turned, storage)
    arrays["lists"] = numbers(23, rows, 2, 3, dtype="int16")
    inner = pa.FixedSizeListArray.from_arrays(pa.array(arrays["lists"].ravel()), 3)
    columns["lists"] = pa.FixedSizeListArray.from_arrays(inner, 2)
    arrays |= {"struct.a": numbers(24, rows), "struct.b": numbers(25, rows, dtype="int8")}
    columns["struct"] = pa.StructArray.from_arrays([pa.array(arrays["struct.a"]), pa.array(arrays["struct.b"])], ["a", "b"])
    # Between columns that are arrays, others.
    texts = ["one", "two", "three", "four", None]
    columns["texts"] = pa.array(texts)
    columns["views"] = pa.array(texts, pa.string_view())
    columns["words"] = pa.array(texts).dictionary_encode()
    arrays["last"] = numbers(26, rows)
    columns["last"] = pa.array(arrays["last"])
    schema = pa.schema([(name, column.type) for name, column in columns.items()], metadata={"author": "nobody"})
    return pa.table(columns, schema=schema), arrays


def write(path, arrays, writer, rows=2):
    found, expected = arrays
    with writer as writer:
        writer.write_table(found, max_chunksize=rows)
    expected = {name: np.array(array, order="C") for name, array in expected.items()}
    safetensors.numpy.save_file(expected, path.with_suffix(".safetensors"))


def write_tensors(path, arrays):
    with pa.OSFile(str(path), "wb") as file:
        for array in arrays:
            pa.ipc.write_tensor(pa.Tensor.from_numpy(array), file)
    arrays = [np.array(array, order="C") for array in arrays]
    names = [""] if len(arrays) == 1 else map(str, range(len(arrays)))
    safetensors.numpy.save_file(dict(zip(names, arrays)), path.with_suffix(".safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("tests/data/arrow"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    schema = table()[0].schema
    for name, compression in [("file", None), ("zstd", "zstd"), ("lz4", "lz4")]:
        path = directory / f"{name}.arrow"
        write(path, table(), pa.ipc.new_file(path, schema, options=pa.ipc.IpcWriteOptions(compression=compression)))
    path = directory / "stream.arrow"
    write(path, table(), pa.ipc.new_stream(path, schema), rows=5)
    write_tensors(directory / "tensor.arrow", [numbers(30, 3, 4)])
    write_tensors(directory / "tensors.arrow", [numbers(31, 3, 4), np.asfortranarray(numbers(32, 2, 3, 2)), numbers(33, 7, dtype="int8")])
    # What is no array, among one that is.
    odd = pa.table({"w": pa.array([1.0, 2.0]), "missing": pa.array([1.0, None]), "ragged": pa.array([[1.0], [2.0, 3.0]])})
    with pa.ipc.new_file(directory / "odd.feather", odd.schema) as writer:
        writer.write_table(odd)
    # Many batches, each of which expands to little, and all to much: no more than one file of a stranger may.
    zeros = pa.table({"zeros": np.zeros(1 << 20, np.float32)})
    with pa.ipc.new_stream(directory / "expanding.feather", zeros.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for _ in range(80):
            writer.write_table(zeros)


if __name__ == "__main__":
    main()
