#!/usr/bin/env python3
"""Times processes from their start to the first result: compiled at start, from the cache, from a file of executables.

    venv/bin/python scripts/bench_ahead.py [--rounds N]

Needs what bench_symbolic.py leaves in target/bench/symbolic, and a release build. The rows take turns; the table has medians, in
milliseconds, of `safejax run` on the CPU plugin.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FUNCTIONS = ["mlp", "cnn", "transformer"]


def milliseconds(command, **environment):
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    return 1e3 * (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    directory = ROOT / "target/bench/symbolic"
    safejax = ROOT / "target/release/safejax"
    print("| | compiled at start | from the cache | from a file of executables |\n| --- | --- | --- | --- |")
    for name in FUNCTIONS:
        artifact, arguments = directory / f"{name}-static.jaxexport", []
        arguments += ["--arg", f"0={directory / f'{name}-params.safetensors'}", "--arg", f"1={directory / f'{name}-x.npy'}"]
        with tempfile.TemporaryDirectory() as folder:
            file, cache = pathlib.Path(folder) / "executables", pathlib.Path(folder) / "cache"
            out = ["--out", pathlib.Path(folder) / "out.npy", "--device", "cpu"]
            subprocess.run([safejax, "compile", artifact, "--for", "cpu", "--out", file], check=True, stdout=subprocess.DEVNULL)
            kept = {"SAFEJAX_CACHE": str(cache), "SAFEJAX_CACHE_MIN_SECONDS": "0"}
            ways = [
                lambda: milliseconds([safejax, "run", artifact, *arguments, *out], SAFEJAX_CACHE="off"),
                lambda: milliseconds([safejax, "run", artifact, *arguments, *out], **kept),
                lambda: milliseconds([safejax, "run", file, "--trust-executable", *arguments, *out]),
            ]
            for way in ways:
                way()
            taken = [[way() for way in ways] for _ in range(rounds)]
            medians = [statistics.median(column) for column in zip(*taken)]
        print(f"| {name} | " + " | ".join(f"{median:.0f}" for median in medians) + " |")


if __name__ == "__main__":
    main()
