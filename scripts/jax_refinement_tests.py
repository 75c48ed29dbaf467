#!/usr/bin/env python3
"""Runs tests of JAX with its refinement of shapes replaced by safejax's.

    venv/bin/python scripts/jax_refinement_tests.py TEST_FILE [--refine target/release/examples/refine] [TEST ARGUMENTS]

TEST_FILE is tests/shape_poly_test.py or tests/export_test.py of JAX's repository, at the version that is installed. Needs
jax, absl-py and `cargo build --release --example refine`. What the tests call goes through a portable artifact to the
binary and back; at the end, how many modules were refined and how many not is printed. A module that ours refuses and that
JAX's own refines is a failure, whatever the test says.
"""

import argparse
import atexit
import collections
import pathlib
import re
import runpy
import subprocess
import sys

import jax
from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import hlo

ROOT = pathlib.Path(__file__).resolve().parent.parent
counts = collections.Counter()
refused = collections.Counter()
theirs = mlir.refine_polymorphic_shapes
binary = None


def refine(module):
    text = mlir.module_to_bytecode(module)
    artifact = hlo.serialize_portable_artifact_str(text, hlo.get_current_version())
    run = subprocess.run([binary], input=artifact, capture_output=True)
    if run.returncode == 0:
        counts["refined"] += 1
        with mlir.make_ir_context() as context:
            return hlo.deserialize_portable_artifact(context, run.stdout)
    problem = run.stderr.decode()
    try:
        theirs(module)
    except Exception as error:
        counts["refused by both"] += 1
        raise ValueError(f"Error refining shapes. {problem}") from error
    counts["refused"] += 1
    refused[re.sub(r"[0-9]+", "N", problem)[:300]] += 1
    raise ValueError(f"Error refining shapes. {problem}")


def report():
    print(f"jax {jax.__version__}: {dict(counts)}", file=sys.stderr)
    for problem, count in refused.most_common():
        print(f"{count} times: {problem}", file=sys.stderr)


def main():
    global binary
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("test", type=pathlib.Path)
    parser.add_argument("--refine", type=pathlib.Path, default=ROOT / "target/release/examples/refine")
    options, rest = parser.parse_known_args()
    binary = options.refine.resolve()
    mlir.refine_polymorphic_shapes = refine
    atexit.register(report)
    sys.argv = [str(options.test), *rest]
    sys.path.insert(0, str(options.test.parent))
    runpy.run_path(str(options.test), run_name="__main__")


if __name__ == "__main__":
    main()
