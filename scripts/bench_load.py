#!/usr/bin/env python3
"""Times loads and saves of checkpoints by safejax and by what else there is, in turn, and prints tables.

    venv/bin/python scripts/bench_load.py [--directory DIR] [--rounds 5] [--only TITLES] [--cold] [--xla] [--chart FILE.svg]

Needs jax, safetensors and cargo; builds benches/checkpoint.rs and benches/candle. Makes, in DIR (target/bench), a
checkpoint of 12 llama-like layers (110 tensors, 1.36 GB of bfloat16) as safetensors writes it and as safejax does, one of
6 layers in float32, and one of 20,000 small tensors.

Every row is a process of its own, which says `ready`, waits, loads, and says what that took; then a compiled
reduction over every tensor runs, so that bytes that were only mapped are paid for. Meanwhile this script watches the
process's anonymous memory. The rows take turns, round by round, and the medians are printed. With --cold, the file is
taken out of the page cache before each load. Saves are without fsync, as the others', but for the row that says so; their
processes stay, and save again and again in turn, so that each takes the memory that the file before gave back.
"""

import argparse
import mmap
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = {
    "ours": "safejax",
    "ours-populate": "safejax, pages populated",
    "ours-copy": "safejax, copied to an arena",
    "ours-stream": "safejax, staging ring (transfer manager)",
    "ours-whole": "safejax, staging ring (whole tensors)",
    "ours-bf16": "safejax, cast to bfloat16",
    "bare": "bare loop over `BufferFromHostBuffer`",
    "limit": "limit: parallel reads into huge pages",
    "flax": "`safetensors.flax.load_file`",
    "safe_open": "`safe_open` per tensor (flax)",
    "numpy": "`safetensors.numpy` then `device_put`",
    "candle-load": "candle `safetensors::load`",
    "candle-map": "candle `MmapedSafetensors`",
    "xla": "xla-rs, map and `buffer_from_host_raw_bytes`",
    "ours-xla": "safejax on xla-rs's client",
}


# What the Python rows run.


def child_timed(work):
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit()
    started = time.perf_counter()
    result = work()
    print(f"done {time.perf_counter() - started}", flush=True)
    return result


def reduce(tree):
    import jax
    import jax.numpy as jnp

    return jax.tree.map(lambda leaf: jnp.sum(leaf, dtype=jnp.float32), tree)


def child(mode, file, target):
    import jax
    import safetensors
    import safetensors.flax
    import safetensors.numpy

    def flax():
        return jax.block_until_ready(safetensors.flax.load_file(file))

    def safe_open():
        with safetensors.safe_open(file, framework="flax") as opened:
            return jax.block_until_ready({name: opened.get_tensor(name) for name in opened.keys()})

    def through_numpy():
        return jax.block_until_ready(jax.device_put(safetensors.numpy.load_file(file)))

    jax.device_put(1.0).block_until_ready()
    if mode == "flax-save":
        arrays = flax()
        while True:
            child_timed(lambda: safetensors.flax.save_file(arrays, target))
    if not target:
        # Over so many tensors, a reduction takes minutes to compile.
        child_timed({"flax": flax, "safe_open": safe_open, "numpy": through_numpy}[mode])
        return
    work = {"flax": flax, "safe_open": safe_open, "numpy": through_numpy}[mode]
    with safetensors.safe_open(file, framework="numpy") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}
        dtypes = {"BF16": "bfloat16", "F32": "float32"}
        specs = {n: jax.ShapeDtypeStruct(s.get_shape(), dtypes[s.get_dtype()]) for n, s in slices.items()}
    compiled = jax.jit(reduce).lower(specs).compile()
    arrays = child_timed(work)
    child_timed(lambda: jax.device_get(compiled(arrays)))


# What makes the files.


def make(directory, safejax):
    import jax
    import jax.export
    import ml_dtypes
    import numpy as np
    import safetensors.numpy

    from export_minilm import nested

    jax.config.update("jax_traceback_in_locations_limit", 0)
    random = np.random.default_rng(0)

    def bfloat16(*shape):
        # Any pattern of bits below 1.0, so that sums are finite.
        return random.integers(0, 0x3F80, shape, np.uint16).view(ml_dtypes.bfloat16)

    def float32(*shape):
        return random.random(shape, np.float32)

    def save_unaligned(arrays, path):
        # What alignment a file has is the chance of its header's length, of which 8 bytes are certain.
        for padding in range(0, 64, 8):
            safetensors.numpy.save_file(arrays, path, metadata={"padding": "x" * padding} if padding else None)
            with open(path, "rb") as file:
                if (8 + int.from_bytes(file.read(8), "little")) % 64:
                    return

    def llama(layers, draw, hidden=2048, inner=5632, vocabulary=32000):
        arrays = {"embed": draw(vocabulary, hidden), "norm": draw(hidden)}
        for layer in range(layers):
            shapes = {name: (hidden, hidden) for name in "qkvo"}
            shapes |= {"gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}
            shapes |= {"norm_1": (hidden,), "norm_2": (hidden,)}
            arrays |= {f"layers_{layer}.{name}": draw(*shape) for name, shape in shapes.items()}
        return arrays

    def small():
        return {f"block_{i // 100}.{i % 100}": float32(64, 32) for i in range(20_000)}

    for name, arrays in [
        ("llama", lambda: llama(12, bfloat16)),
        ("float", lambda: llama(6, float32)),
        ("small", small),
    ]:
        unaligned, aligned = directory / f"{name}.safetensors", directory / f"{name}-aligned.safetensors"
        if not aligned.exists():
            made = arrays()
            save_unaligned(made, unaligned)
            specs = nested({n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in made.items()})
            if name != "small":
                exported = jax.export.export(jax.jit(reduce))(specs)
                (directory / f"{name}.jaxexport").write_bytes(exported.serialize())
            subprocess.run([safejax, "convert", unaligned, aligned], check=True, stdout=subprocess.DEVNULL)
    os.sync()


# What runs and watches them.


class Watched:
    """A process whose anonymous memory is watched."""

    def __init__(self, command):
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
        # Old OpenBLAS kernels are not what is measured.
        for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
            environment.pop(variable, None)
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def anonymous(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return 0

    def wait_for(self, word):
        for line in self.process.stdout:
            if line.startswith(word):
                return line.split()[1:]
        raise RuntimeError(f"a process ended with {self.process.wait()} before it was {word}")

    def part(self):
        take_memory(free_memory() * 3 // 4).close()
        return self.watched_part()

    def watched_part(self):
        """Seconds that the next part takes, and the most anonymous memory it adds, in bytes."""
        before, most, is_done = self.anonymous(), 0, False

        def watch():
            nonlocal most
            while not is_done:
                most = max(most, self.anonymous() - before)
                time.sleep(0.003)

        watcher = threading.Thread(target=watch)
        watcher.start()
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        try:
            seconds = float(self.wait_for("done")[0])
            most = max(most, self.anonymous() - before)
        finally:
            is_done = True
            watcher.join()
        return seconds, most

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def free_memory():
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def take_memory(size):
    """Memory on huge pages, every page of it touched. What a virtual machine has not used for a while can be with its host,
    and comes back slowly, which would be counted for whoever happens to be next. So most of the free memory is taken before
    everything that is measured, and given back; and all but POOL for as long as this runs, so that it does not take long."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for position in range(0, size, 1 << 21):
        memory[position] = 1
    return memory


# Free memory that is left to what is measured.
POOL = 6 << 30


def uncache(path):
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def run_load(command, file, cold):
    watched = Watched(command)
    watched.wait_for("ready")
    if cold:
        uncache(file)
    loaded, most = watched.part()
    reduced = None
    if any(line.startswith("ready") for line in watched.process.stdout):
        reduced = loaded + watched.part()[0]
    watched.end()
    return loaded, most, reduced


class Saver:
    """A process that saves whenever it is asked to, or a command that does."""

    def __init__(self, command, target):
        self.target = target
        self.command = list(map(str, command)) if command[0] == "cp" else None
        self.watched = None if self.command else Watched(command)

    def __call__(self):
        self.target.unlink(missing_ok=True)
        # The pages that the one before left to be written are not to slow this one down.
        os.sync()
        if self.command:
            started = time.perf_counter()
            subprocess.run(self.command, check=True)
            return time.perf_counter() - started, 0, None
        self.watched.wait_for("ready")
        return *self.watched.watched_part(), None

    def end(self):
        if self.watched:
            self.watched.end()


class Rows:
    """Commands that take turns."""

    def __init__(self, title, payload):
        self.title, self.payload, self.rows = title, payload, {}

    def measure(self, runs, rounds):
        results = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                results[name].append(run())
        for name, measured in results.items():
            columns = zip(*measured)
            self.rows[name] = [statistics.median(c) if None not in c else None for c in columns]
        return self

    def print(self):
        print(f"\n{self.title}\n")
        print("| | seconds | GB/s | peak anonymous memory, of the payload | to the end of the reduction |")
        print("| --- | --- | --- | --- | --- |")
        for name, (seconds, most, reduced) in self.rows.items():
            after = "" if reduced is None else f"{reduced:.3f}"
            rate = self.payload / seconds / 1e9
            print(f"| {name} | {seconds:.4f} | {rate:.1f} | {most / self.payload:.3f} | {after} |", flush=True)


def chart(rows, path):
    """A bar a row, longest last."""
    entries = sorted((seconds, name) for name, (seconds, *_) in rows.rows.items())
    longest, height = max(entries)[0], 26
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height * len(entries) + 40}" '
           'font-family="sans-serif" font-size="13">',
           '<rect width="100%" height="100%" fill="#ffffff"/>',
           f'<text x="10" y="22" font-weight="bold">{rows.title}: seconds</text>']
    for index, (seconds, name) in enumerate(entries):
        y = 36 + height * index
        name = name.replace("`", "")
        colour = "#2f6fde" if name.startswith("safejax") else "#8f8f8f" if name.startswith("limit") else "#c9a15a"
        out.append(f'<text x="290" y="{y + 14}" text-anchor="end" fill="#222222">{name}</text>')
        out.append(f'<rect x="300" y="{y}" width="{max(1, 380 * seconds / longest):.1f}" height="18" fill="{colour}"/>')
        out.append(f'<text x="{306 + 380 * seconds / longest:.1f}" y="{y + 14}" fill="#222222">{seconds:.3f}</text>')
    path.write_text("\n".join([*out, "</svg>"]) + "\n")


def build(with_xla):
    cargo = ["cargo", "build", "--release", "--quiet"]
    subprocess.run(cargo, cwd=ROOT, check=True)
    subprocess.run([*cargo, "--manifest-path", "benches/candle/Cargo.toml"], cwd=ROOT, check=True)
    command = ["cargo", "bench", "--bench", "checkpoint", "--no-run", *(["--features", "xla"] if with_xla else [])]
    output = subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.PIPE, text=True).stderr
    binary = next(line for line in output.splitlines() if "Executable" in line).rsplit("(", 1)[1].rstrip(")")
    return ROOT / binary, ROOT / "benches/candle/target/release/safejax-bench-candle", ROOT / "target/release/safejax"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=pathlib.Path, default=ROOT / "target/bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="loads of files that are not in the page cache, only")
    parser.add_argument("--xla", action="store_true", help="with xla-rs; needs XLA_EXTENSION_DIR")
    parser.add_argument("--only", help="tables whose titles begin so, separated by commas")
    parser.add_argument("--chart", type=pathlib.Path)
    options = parser.parse_args()
    directory = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    ours, candle, safejax = build(options.xla)
    make(directory, safejax)
    ballast = take_memory(max(mmap.PAGESIZE, free_memory() - POOL))

    def is_wanted(title):
        return not options.only or any(title.startswith(part) for part in options.only.split(","))

    def command(mode, file, other=None):
        # The reduction takes the types of the file.
        other = [other] if other and mode != "ours-bf16" else []
        if mode.startswith("candle-"):
            return [candle, mode.removeprefix("candle-"), file]
        if mode in ("flax", "safe_open", "numpy"):
            return [sys.executable, __file__, "child", mode, file, *other]
        return [ours, mode, file, *other]

    def loads(title, name, modes, cold=False, rounds=options.rounds):
        file = directory / f"{name}.safetensors"
        artifact = directory / f"{name.removesuffix('-aligned')}.jaxexport"
        artifact = artifact if artifact.exists() else None
        if not is_wanted(title):
            return None
        # Also warms up memory and page cache.
        run = lambda mode: run_load(command(mode, file, artifact), file, cold)
        run(modes[0])
        rows = Rows(title, file.stat().st_size)
        rows.measure({NAMES[mode]: lambda mode=mode: run(mode) for mode in modes}, rounds).print()
        return rows

    others = ["flax", "safe_open", "numpy", "candle-load", "candle-map", *(["xla"] if options.xla else []), "bare"]
    ours_on_xla = ["ours-xla"] if options.xla else []
    if options.cold:
        modes = ["ours", "ours-direct", "limit", *others]
        NAMES["ours-direct"] = "safejax, direct reads"
        loads("Unaligned, cold cache", "llama", modes, cold=True)
        NAMES["ours"] = "safejax, in place (bytes are read when they are used)"
        loads("Aligned, cold cache", "llama-aligned", ["ours", "ours-populate"], cold=True)
        return
    unaligned = loads("Unaligned", "llama", ["ours", *ours_on_xla, "ours-stream", "ours-whole", "limit", *others])
    loads("Aligned", "llama-aligned", ["ours", "ours-populate", "ours-copy", "limit", "flax", "candle-map", "bare"])
    loads("Float32, cast", "float", ["ours", "ours-bf16"])
    loads("20,000 small tensors, unaligned", "small", ["ours", "ours-stream", "limit", *others])
    loads("20,000 small tensors, aligned", "small-aligned", ["ours", "flax", "safe_open", "candle-map", "bare"])

    source, target = directory / "llama-aligned.safetensors", directory / "saved.safetensors"
    saves = {
        "safejax": [ours, "save", source, target],
        "safejax, with fsync": [ours, "save-fsync", source, target],
        "`safetensors.flax.save_file`": [sys.executable, __file__, "child", "flax-save", source, target],
        "candle `safetensors::save`": [candle, "save", source, target],
        "`cp`": ["cp", source, target],
    }
    if is_wanted("Save"):
        rows = Rows("Save", source.stat().st_size)
        savers = {name: Saver(command, target) for name, command in saves.items()}
        # Everybody's first goes uncounted.
        for saver in savers.values():
            saver()
        rows.measure(savers, options.rounds).print()
        for saver in savers.values():
            saver.end()
        target.unlink(missing_ok=True)
    if options.chart and unaligned:
        chart(unaligned, options.chart)
    ballast.close()
    print(f"\nPython {sys.version.split()[0]}; free space on the disk {shutil.disk_usage(directory).free >> 30} GiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None)
    else:
        main()
