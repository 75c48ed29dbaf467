#!/usr/bin/env python3
"""Writes HDF5 files with h5py, and models with Keras, with what is in them: tests/data/hdf5.

    venv/bin/python scripts/make_hdf5.py [--directory DIR]

Needs h5py 3.16, keras 3.15.1 with jax, ml_dtypes and safetensors. NAME.h5 or NAME.keras lies beside NAME.safetensors, which has
every array by its path, joined with dots; elements of types that safetensors does not have are there as bytes (U8).
"""

import argparse
import io
import os
import pathlib
import zipfile

os.environ["KERAS_BACKEND"] = "jax"

import h5py
import ml_dtypes
import numpy as np
import safetensors.numpy

TYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]


def numbers(seed, *shape, dtype="float32"):
    values = np.random.default_rng(seed).integers(-8, 8, shape)
    return (values % 2 if dtype == "bool" else abs(values) if dtype.startswith("u") else values).astype(dtype)


def arrays(file):
    """What a file has that is an array of numbers, by its path, as h5py reads it."""
    found = {}

    def visit(group, path):
        for name in group:
            item, here = group.get(name), (*path, name)
            if isinstance(item, h5py.Group):
                visit(item, here)
            elif isinstance(item, h5py.Dataset) and item.dtype.kind not in "OSU":
                value = np.array(item)
                if value.dtype.kind == "V":
                    value = value.view(getattr(ml_dtypes, item.attrs["dtype"]))
                elif value.dtype.kind == "c":
                    value = value.view(np.uint8)
                else:
                    value = value.astype(value.dtype.newbyteorder("="))
                found[".".join(here)] = np.array(value, order="C")

    visit(file, ())
    return found


def save_expected(path):
    if path.suffix == ".keras":
        weights = zipfile.ZipFile(path).read("model.weights.h5")
        with h5py.File(io.BytesIO(weights)) as file:
            found = arrays(file)
    else:
        with h5py.File(path) as file:
            found = arrays(file)
    assert found, path
    safetensors.numpy.save_file(found, path.with_suffix(".safetensors"))


def write_layouts(path, libver, **arguments):
    """Every type, and every way in which a dataset can lie."""
    with h5py.File(path, "w", libver=libver, **arguments) as file:
        file.attrs["title"] = "a file"
        types = file.create_group("types")
        for index, dtype in enumerate(TYPES):
            types[dtype] = numbers(index, 3, 5, dtype=dtype)
        types["big_endian"] = numbers(30, 4, 3).astype(">f4")
        types["big_int"] = numbers(31, 4, 3).astype(">i2")
        types["complex64"] = numbers(32, 3, 2).astype(np.complex64)
        types["complex128"] = numbers(33, 3, 2).astype(np.complex128)
        opaque = types.create_dataset("bfloat16", data=numbers(34, 6, 2).astype(ml_dtypes.bfloat16).view("V2"))
        opaque.attrs["dtype"] = "bfloat16"
        types["scalar"] = np.float32(2.5)
        types["nothing"] = np.zeros((0, 3), np.float32)
        types["text"] = "a text"
        layouts = file.create_group("layouts")
        values = numbers(40, 23, 17)
        create = layouts.create_dataset
        create("plain", data=values)
        create("never_written", (3, 4), np.float32, fillvalue=7)
        create("chunked", data=values, chunks=(8, 5))
        create("one_chunk", data=values, chunks=values.shape)
        create("deflated", data=values, chunks=(8, 5), compression="gzip")
        create("shuffled", data=values, chunks=(8, 17), compression="gzip", shuffle=True, fletcher32=True)
        create("summed", data=values, chunks=(23, 4), fletcher32=True)
        create("big_endian_shuffled", data=values.astype(">f8"), chunks=(9, 9), compression="gzip", shuffle=True)
        grows = create("grows", data=values[:9], chunks=(4, 17), maxshape=(None, 17), compression="gzip")
        grows.resize((23, 17))
        grows[9:] = values[9:]
        both = create("grows_in_both", data=values, chunks=(7, 6), maxshape=(None, None))
        both.resize((15, 16))
        partly = create("partly_written", (20, 6), np.int16, chunks=(5, 6), fillvalue=-3)
        partly[5:10] = 1
        many = file.create_group("many")
        for index in range(40):
            many[f"array_{index}"] = numbers(60 + index, 2)
        file["links/hard"] = types["float32"]
        file["links/soft"] = h5py.SoftLink("/types/int16")
        file["links/nowhere"] = h5py.SoftLink("/types/missing")


def write_models(directory):
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(3, 3, name="convolution"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(4, dtype="bfloat16", name="head"),
        ]
    )
    model.compile("adam", "mse")
    model.fit(np.zeros((2, 6, 6, 1)), np.zeros((2, 4)), verbose=0)
    model.save(directory / "archive.keras")
    model.save_weights(directory / "weights.weights.h5")
    float_model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="first"), keras.layers.Dense(2, name="second")])
    float_model.save(directory / "whole.h5")


def write_odd(directory):
    """What is no array of numbers, or lies elsewhere, beside an array `w`: tests take it by name."""
    values = numbers(200, 3, 4)
    with h5py.File(directory / "odd.hdf5", "w") as file:
        file["w"] = values
        file["empty"] = h5py.Empty("f4")
        kind = h5py.h5t.STD_I32LE.copy()
        kind.set_precision(20)
        odd = h5py.h5d.create(file.id, b"twenty_bits", kind, h5py.h5s.create_simple((3,)))
        odd.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(3, dtype=np.int32))
        file.create_dataset("packed", data=values, chunks=(3, 4), compression="lzf")
    with h5py.File(directory / "virtual.hdf5", "w") as file:
        file["w"] = values
        layout = h5py.VirtualLayout((3, 4), np.float32)
        layout[:] = h5py.VirtualSource(".", "w", (3, 4))
        file.create_virtual_dataset("group/virtual", layout)
    with h5py.File(directory / "linked.hdf5", "w") as file:
        file["w"] = values
        file["elsewhere"] = h5py.ExternalLink("odd.hdf5", "/w")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=pathlib.Path, default=pathlib.Path("tests/data/hdf5"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    for name in ["earliest", "v108", "v110", "latest"]:
        write_layouts(directory / f"{name}.h5", name)
    write_layouts(directory / "user_block.h5", "earliest", userblock_size=1024)
    write_odd(directory)
    write_models(directory)
    for path in sorted(directory.iterdir()):
        if path.suffix in [".h5", ".keras"]:
            save_expected(path)


if __name__ == "__main__":
    main()
