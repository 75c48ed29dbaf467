#!/usr/bin/env python3
"""Exports one function at several sizes of its dimensions into one file, a bundle that safejax runs.

    venv/bin/python scripts/export_buckets.py MODULE:FUNCTION ARGS BUCKETS OUT
    venv/bin/python scripts/export_buckets.py model:apply model:args 'batch=1,8 length=16,64' model.bundle

FUNCTION is a function of MODULE (a file or an importable name), jitted or not. ARGS is a function that is called
with the sizes as keywords (`args(batch=8, length=64)`) and returns the tuple of positional arguments: arrays or
jax.ShapeDtypeStruct. BUCKETS lists the sizes of each dimension; all their combinations are exported. A call uses
the smallest that fits, pads the arguments with zeros at the end, and cuts the outputs back: the function must not
let what is padded touch the rest (masks do that).

Needs jax, flatbuffers and safetensors. As a module: `export_buckets(function, args, {"batch": [1, 8]}, path)`.
"""

import argparse
import importlib
import importlib.util
import itertools
import json
import pathlib
import sys

import jax
import jax.export
import numpy as np
import safetensors.numpy

VERSION = 1


def shapes(avals):
    return [tuple(int(size) for size in aval.shape) for aval in avals]


def named_shapes(dims, buckets, shapes_of_buckets):
    """For each leaf its shape, with a dimension's name where the size is that dimension's in every bucket."""

    def named(sizes, where):
        if len(set(sizes)) == 1:
            return sizes[0]
        for position, dim in enumerate(dims):
            if list(sizes) == [bucket[position] for bucket in buckets]:
                return dim
        raise ValueError(f"{where} has the sizes {list(sizes)}, which are those of no dimension: {buckets}")

    leaves = zip(*shapes_of_buckets, strict=True)
    return [
        [named(sizes, f"dimension {axis} of leaf {leaf}") for axis, sizes in enumerate(zip(*shapes, strict=True))]
        for leaf, shapes in enumerate(leaves)
    ]


def export_buckets(function, args, sizes, path, platforms=None):
    """Writes `function` at every combination of `sizes` (name -> list of sizes) to `path`."""
    jax.config.update("jax_traceback_in_locations_limit", 0)
    # A dimension of one size is no dimension of the bundle's.
    fixed = {name: values[0] for name, values in sizes.items() if len(values) == 1}
    sizes = {name: values for name, values in sizes.items() if name not in fixed}
    dims = list(sizes)
    buckets = list(itertools.product(*sizes.values()))
    function = function if hasattr(function, "lower") else jax.jit(function)
    exported = []
    for bucket in buckets:
        given = args(**fixed, **dict(zip(dims, bucket)))
        exported.append(jax.export.export(function, platforms=platforms)(*given))
    description = {
        "version": VERSION,
        "dims": dims,
        "buckets": buckets,
        "in": named_shapes(dims, buckets, [shapes(one.in_avals) for one in exported]),
        "out": named_shapes(dims, buckets, [shapes(one.out_avals) for one in exported]),
    }
    artifacts = {str(i): np.frombuffer(one.serialize(), np.uint8) for i, one in enumerate(exported)}
    safetensors.numpy.save_file(artifacts, path, metadata={"safejax.bundle": json.dumps(description)})


def find(name):
    module, _, attribute = name.rpartition(":")
    if module.endswith(".py"):
        spec = importlib.util.spec_from_file_location(pathlib.Path(module).stem, module)
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = loaded
        spec.loader.exec_module(loaded)
    else:
        sys.path.insert(0, ".")
        loaded = importlib.import_module(module)
    return getattr(loaded, attribute)


def parse_sizes(text):
    pairs = (part.split("=") for part in text.split())
    return {name: [int(size) for size in values.split(",")] for name, values in pairs}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("function", metavar="MODULE:FUNCTION")
    parser.add_argument("args", metavar="MODULE:ARGS")
    parser.add_argument("buckets", metavar="BUCKETS", type=parse_sizes)
    parser.add_argument("out", metavar="OUT", type=pathlib.Path)
    parser.add_argument("--platforms", help="such as cpu,cuda", type=lambda text: text.split(","))
    options = parser.parse_args()
    export_buckets(find(options.function), find(options.args), options.buckets, options.out, options.platforms)


if __name__ == "__main__":
    main()
