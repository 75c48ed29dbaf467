"""What the benches of sharded loads and of Orbax checkpoints have in common: their options, their model, and the page cache."""

import argparse
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAFEJAX = ROOT / "target" / "release" / "safejax"


def llama_shapes():
    """The names and shapes of 12 llama-like layers: 1.36 GB of bfloat16 in 110 matrices and norms."""
    yield "embed", (32000, 2048)
    yield "norm", (2048,)
    for layer in range(12):
        for name in "qkvo":
            yield f"layers.{layer}.{name}", (2048, 2048)
        for name, shape in (("gate", (2048, 5632)), ("up", (2048, 5632)), ("down", (5632, 2048))):
            yield f"layers.{layer}.{name}", shape
        for name in ("norm_0", "norm_1"):
            yield f"layers.{layer}.{name}", (2048,)


def read_through(file):
    """Brings a file into the page cache."""
    with open(file, "rb", buffering=0) as opened:
        while opened.read(1 << 24):
            pass


def start(child):
    """The options. Where this process is one row of a bench, runs `child` and ends; else builds the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=pathlib.Path, default=ROOT / "target" / "bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        sys.exit()
    subprocess.run(["cargo", "build", "--release", "-p", "safejax-cli"], check=True, cwd=ROOT)
    return options
