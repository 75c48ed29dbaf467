"""Pytrees from and to safejax's files, from Python: one file, to be copied where it is needed.

    tree = safejax_tree.load_file("params.safetensors")
    safejax_tree.save_file(tree, "params.safetensors")

The format is specified in docs/tree-record.md. Needs numpy and safetensors; ml_dtypes for bfloat16 and float8.
Nodes may be dicts (all keys strings, or all integers), lists, tuples, None, named tuples and OrderedDicts, and
any type given in `custom`; leaves may be arrays (NumPy's, JAX's) and Python's bool, int, float and complex.

A named tuple is read back as one of the types in `namedtuples`, by name, or else as one made up here.
"""

import collections
import json

import numpy as np
import safetensors
import safetensors.numpy

FORMAT = "1"
SCALARS = {"bool": bool, "int": int, "float": float, "complex": complex}
SCALAR_DTYPES = {"bool": np.bool_, "int": np.int64, "float": np.float64, "complex": np.complex64}


def _dtype(name):
    """The NumPy type that a safetensors header names."""
    special = {
        "BOOL": "bool", "BF16": "bfloat16", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn",
        "F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    }  # fmt: skip
    kinds = {"I": "int", "U": "uint", "F": "float", "C": "complex"}
    plain = special.get(name) or kinds[name[0]] + name[1:]
    try:
        return np.dtype(plain)
    except TypeError:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, plain))


def _is_namedtuple(node):
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _sorted_items(node):
    return sorted(node.items())  # raises for keys of several kinds, as JAX does


def record(tree, custom=None):
    """The structure record of a tree, as the value that becomes JSON, and its leaves as (path, leaf).

    `custom` maps a type to a function that returns its children as (key, child) and its auxiliary data; a key
    is {"key": k}, {"index": i} or {"attribute": a}.
    """
    leaves = []

    def walk(node, path):
        child = lambda key, value: walk(value, path + (str(key),))
        if node is None:
            return None
        if custom and type(node) in custom:
            children, auxiliary = custom[type(node)](node)
            name = f"{type(node).__module__}.{type(node).__qualname__}"
            nodes = [[key, child(next(iter(key.values())), value)] for key, value in children]
            return {"$custom": name, "auxiliary": auxiliary, "children": nodes}
        if isinstance(node, collections.OrderedDict):
            return {"$odict": [[k, child(k, v)] for k, v in node.items()]}
        if isinstance(node, dict):
            items = [(k, child(k, v)) for k, v in _sorted_items(node)]
            for key, _ in items:
                if type(key) not in (str, int):
                    raise TypeError(f"a key of type {type(key).__name__} has no place in a file: {key!r}")
            if all(isinstance(k, str) and not k.startswith("$") for k, _ in items):
                return dict(items)
            return {"$dict": [[k, v] for k, v in items]}
        if _is_namedtuple(node):
            fields = [[f, child(f, getattr(node, f))] for f in node._fields]
            return {"$namedtuple": type(node).__name__, "fields": fields}
        if isinstance(node, (list, tuple)):
            kind = "$list" if isinstance(node, list) else "$tuple"
            return {kind: [child(i, v) for i, v in enumerate(node)]}
        if isinstance(node, str):
            return {"$str": str(node)}
        if isinstance(node, bytes):
            return {"$bytes": node.hex()}
        leaves.append((path, node))
        for kind, scalar in SCALARS.items():
            if type(node) is scalar:
                return {"$leaf": kind}
        return "*"

    return walk(tree, ()), leaves


def save(tree, metadata=None, custom=None):
    """The bytes of a file that holds this tree."""
    structure, leaves = record(tree, custom)
    arrays = {}
    for path, leaf in leaves:
        name = ".".join(path)
        if name in arrays:
            raise ValueError(f"two leaves have the name {name!r}")
        scalar = next((kind for kind, scalar in SCALARS.items() if type(leaf) is scalar), None)
        array = np.asarray(leaf, SCALAR_DTYPES[scalar] if scalar else None)
        if array.dtype == object or array.dtype.kind in "USO":
            raise TypeError(f"the leaf {name!r} is no array and no number: {leaf!r}")
        # (np.ascontiguousarray would make a scalar an array of one.)
        arrays[name] = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    if any(len(path) > 1 for path, _ in leaves):
        for name in arrays:
            parts = name.split(".")
            above = [".".join(parts[:count]) for count in range(1, len(parts))]
            for node in above:
                if node in arrays:
                    raise ValueError(f"{node!r} is a leaf, and also a node on the way to {name!r}")
    header = {**(metadata or {}), "safejax.format": FORMAT, "safejax.tree": json.dumps(structure)}
    return safetensors.numpy.save(arrays, header)


def save_file(tree, filename, metadata=None, custom=None):
    """Writes a tree to a file."""
    with open(filename, "wb") as file:
        file.write(save(tree, metadata, custom))


def load(data, namedtuples=None, custom=None):
    """The tree in the bytes of a file. `custom` maps a type's name to a function of (children, auxiliary)."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    arrays = {}
    for name, info in safetensors.deserialize(data):
        arrays[name] = np.frombuffer(info["data"], _dtype(info["dtype"])).reshape(info["shape"])
    if "safejax.tree" not in metadata:
        raise ValueError("the file has no structure record; load it with safetensors")
    if metadata.get("safejax.format") != FORMAT:
        raise ValueError(f"the record is of version {metadata.get('safejax.format')}, not {FORMAT}")
    types = {**{t.__name__: t for t in namedtuples or ()}}

    def build(node, path):
        child = lambda key, value: build(value, path + (str(key),))
        if node is None:
            return None
        if node == "*":
            return arrays.pop(".".join(path))
        if not any(key.startswith("$") for key in node):
            return {k: child(k, v) for k, v in sorted(node.items())}
        if "$str" in node:
            return node["$str"]
        if "$bytes" in node:
            return bytes.fromhex(node["$bytes"])
        if "$leaf" in node:
            return SCALARS[node["$leaf"]](arrays.pop(".".join(path)).item())
        if "$dict" in node:
            return {k: child(k, v) for k, v in node["$dict"]}
        if "$odict" in node:
            return collections.OrderedDict((k, child(k, v)) for k, v in node["$odict"])
        if "$list" in node:
            return [child(i, v) for i, v in enumerate(node["$list"])]
        if "$tuple" in node:
            return tuple(child(i, v) for i, v in enumerate(node["$tuple"]))
        if "$namedtuple" in node:
            name, fields = node["$namedtuple"], node["fields"]
            make = types.get(name) or collections.namedtuple(name, [f for f, _ in fields])
            return make(**{f: child(f, v) for f, v in fields})
        if "$custom" in node:
            children = [(key, child(next(iter(key.values())), v)) for key, v in node["children"]]
            if not custom or node["$custom"] not in custom:
                raise ValueError(f"no way is given to make a {node['$custom']}: pass it in `custom`")
            return custom[node["$custom"]](children, node.get("auxiliary"))
        raise ValueError(f"a node of an unknown kind: {sorted(node)}")

    tree = build(json.loads(metadata["safejax.tree"]), ())
    if arrays:
        raise ValueError(f"tensors that have no place in the tree: {sorted(arrays)}")
    return tree


def load_file(filename, namedtuples=None, custom=None):
    """The tree in a file."""
    with open(filename, "rb") as file:
        return load(file.read(), namedtuples, custom)
