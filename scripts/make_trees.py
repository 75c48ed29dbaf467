#!/usr/bin/env python3
"""Makes tests/data/trees.json: random pytrees, and how real JAX flattens them.

    venv/bin/python scripts/make_trees.py           (the venv of scripts/requirements-digits.txt)

Written with jax 0.12.0.1. Each entry has the structure record, the leaves' paths as `keystr` prints them in
JAX's order, and the names on disk.
"""

import collections
import json
import pathlib
import random

import jax

import safejax_tree

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "trees.json"
COUNT = 300
Point = collections.namedtuple("Point", ["x", "y"])
ALPHABET = ["a", "b", "B", "_", "-", "~", "/", "::", "'", '"', "\n", "é", "中", "😀", "0", "10", "9", " ", "\\", "."]


@jax.tree_util.register_pytree_with_keys_class
class Box:
    """A registered type, as Equinox modules are: attributes for keys."""

    def __init__(self, content, extra):
        self.content, self.extra = content, extra

    def tree_flatten_with_keys(self):
        keys = (jax.tree_util.GetAttrKey("content"), jax.tree_util.GetAttrKey("extra"))
        return tuple(zip(keys, (self.content, self.extra))), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


CUSTOM = {Box: lambda box: ([({"attribute": "content"}, box.content), ({"attribute": "extra"}, box.extra)], None)}


def key(chance):
    return "".join(chance.choice(ALPHABET) for _ in range(chance.randint(0, 3)))


def tree(chance, depth):
    kinds = ["leaf", "leaf", "none", "scalar"]
    if depth > 0:
        kinds += ["dict", "dict", "dict", "int dict", "odict", "list", "tuple", "namedtuple", "box", "empty"]
    kind = chance.choice(kinds)
    below = lambda: tree(chance, depth - 1)
    count = chance.randint(1, 4)
    match kind:
        case "leaf":
            return 0.0
        case "none":
            return None
        case "scalar":
            return chance.choice([3, True, 1.5, 2j])
        case "dict":
            return {key(chance): below() for _ in range(count)}
        case "int dict":
            return {chance.randint(-12, 12): below() for _ in range(count)}
        case "odict":
            return collections.OrderedDict((key(chance), below()) for _ in range(count))
        case "list":
            return [below() for _ in range(count)]
        case "tuple":
            return tuple(below() for _ in range(count))
        case "namedtuple":
            return Point(below(), below())
        case "box":
            return Box(below(), below())
        case "empty":
            return chance.choice([{}, [], ()])


def main():
    chance = random.Random(0)
    entries, seen = [], set()
    while len(entries) < COUNT:
        candidate = tree(chance, 4)
        structure, leaves = safejax_tree.record(candidate, CUSTOM)
        encoded = json.dumps(structure)
        if encoded in seen or len(encoded) > 600:
            continue
        seen.add(encoded)
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(candidate)[0]]
        names = [".".join(path) for path, _ in leaves]
        entries.append({"record": structure, "paths": paths, "names": names})
    OUT.write_text("[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]\n")
    print(OUT.name, len(entries), OUT.stat().st_size)


if __name__ == "__main__":
    main()
