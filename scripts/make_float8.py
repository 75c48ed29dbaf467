#!/usr/bin/env python3
"""Writes `tests/data/float8.json`: the value of every pattern of eight bits in every 8-bit float of ml_dtypes (0.5.4).

    venv/bin/python scripts/make_float8.py

A value is the bits of its float64 as a whole number; NaN is null.
"""

import json
import math
import pathlib

import ml_dtypes
import numpy as np

NAMES = [
    "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
    "float8_e5m2fnuz", "float8_e8m0fnu",
]


def bits(value):
    return None if math.isnan(value) else int(np.float64(value).view(np.uint64))


patterns = np.arange(256, dtype=np.uint8)
table = {
    name: [bits(value) for value in patterns.view(getattr(ml_dtypes, name)).astype(np.float64)]
    for name in NAMES
}
out = pathlib.Path(__file__).resolve().parent.parent / "tests/data/float8.json"
out.write_text(json.dumps(table) + "\n")
