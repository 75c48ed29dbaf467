"""Writes tests/data/shardings.json: what JAX makes of random shapes, meshes and partition specs.

Each case has a mesh (axes and the order of its devices), a spec, a shape, and either the slice of each device of the mesh,
row by row ([start, stop] a dimension) and the serialised xla.OpSharding, or the reason why JAX refuses it. Run with jax 0.10.2:

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python scripts/make_shardings.py tests/data/shardings.json
"""

import json
import random
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

SHAPES = [(), (1,), (6,), (8,), (5,), (0,), (4, 6), (8, 3), (16, 12), (7, 2), (0, 4), (2, 3, 4), (12, 1, 8), (4, 4, 4, 4)]
MESHES = [
    (1,), (2,), (3,), (4,), (6,), (8,), (1, 1), (2, 1), (1, 2), (2, 2), (2, 3), (3, 2), (4, 2), (2, 4), (2, 2, 2), (1, 4, 2), (2, 1, 3),
]


def random_spec(random_source, names, rank):
    """A spec of some of the axes, sometimes one that is refused."""
    names = list(names)
    random_source.shuffle(names)
    entries = []
    for _ in range(random_source.randint(0, rank + (random_source.random() < 0.05))):
        count = random_source.choice([0, 0, 1, 1, 1, 2])
        taken, names = names[:count], names[count:]
        entries.append(taken)
    return entries


def case(random_source):
    sizes = random_source.choice(MESHES)
    names = ["data", "model", "seq"][: len(sizes)]
    count = int(np.prod(sizes))
    order = list(range(count))
    if random_source.random() < 0.3:
        random_source.shuffle(order)
    devices = np.array([jax.devices()[id] for id in order]).reshape(sizes)
    shape = random_source.choice(SHAPES)
    entries = random_spec(random_source, names, len(shape))
    spec = PartitionSpec(*[None if not axes else axes[0] if len(axes) == 1 else tuple(axes) for axes in entries])
    case = {"axes": list(zip(names, sizes)), "order": order, "spec": str(spec).replace("PartitionSpec", "P"), "shape": shape}
    try:
        sharding = NamedSharding(Mesh(devices, names), spec)
        sharding.check_compatible_aval(shape)
        slices = sharding.devices_indices_map(shape)
        ranges = lambda index: [list(one.indices(size)[:2]) for one, size in zip(index, shape)]
        by_id = {device.id: ranges(index) for device, index in slices.items()}
        case["slices"] = [by_id[id] for id in order]
        case["op"] = sharding._to_xla_hlo_sharding(len(shape)).to_proto().SerializeToString().hex()
    except ValueError as error:
        case["refusal"] = str(error).splitlines()[0]
    return case


def main():
    random_source = random.Random(20)
    cases, seen = [], set()
    while len(cases) < 400:
        one = case(random_source)
        key = json.dumps(one)
        if key not in seen:
            seen.add(key)
            cases.append(one)
    with open(sys.argv[1], "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(one, separators=(",", ":")) for one in cases) + "\n]\n")


main()
