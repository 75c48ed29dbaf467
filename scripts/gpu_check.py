#!/usr/bin/env python3
"""What `gpu_check.sh` runs: packs the check here, or carries it out on the machine with the device.

Each step has a time limit of its own, and one that fails stops no other. A step that makes no sense on the plugin says so,
and is not counted as held. DIR gets `log.txt`, what every command printed, and `results.json`, which is complete after each
step.
"""

import argparse
import concurrent.futures
import contextlib
import fcntl
import gzip
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
SCRIPTS = [
    "gpu_check.sh", "gpu_check.py", "gpu_programs.py", "gpu_rivals.py", "make_exports.py", "export_buckets.py"
]
TESTS = ["pjrt", "load_and_save", "load_routes", "programs", "tree", "exported", "accelerator"]
BENCHES = ["device", "latency"]

# What is compiled here and loaded there, at these sizes; and the plugin that is there, with what it needs to compile.
AHEAD = {"linear": "b=4", "attention": "b=2,t=5", "recurrence": "b=2,t=3"}
COMPILER = ["jax-cuda13-pjrt==0.11.2"] + [
    f"nvidia-{name}" for name in ["cuda-crt", "cuda-cupti", "cuda-nvcc", "cuda-nvrtc", "cuda-runtime", "nvjitlink", "nvvm"]
]


# Packing, on the machine that builds.


def compile_ahead(folder, plugin, targets):
    """Executables for the step `ahead`, of this plugin, in a file for each case."""
    (folder / "ahead").mkdir(exist_ok=True)
    kind = "cpu" if targets == ["cpu"] else "cuda"
    for case, sizes in AHEAD.items():
        artifact = folder / "tests/data/symbolic" / case / f"{case}.jaxexport"
        command = [folder / "bin/safejax", "compile", artifact, "--sizes", sizes, "--any-platform", "--plugin", plugin]
        command += ["--out", folder / "ahead" / f"{case}.{kind}", "--without-program"]
        command += [word for target in targets for word in ("--for", target)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def pack(with_ahead):
    root = HERE.parent
    folder = root / "target/gpu_check"
    shutil.rmtree(folder, ignore_errors=True)
    for part in ["bin", "tests", "examples", "tmp"]:
        (folder / part).mkdir(parents=True)
    wanted = ["--bin", "safejax", *(word for name in TESTS for word in ("--test", name))]
    wanted += [word for name in BENCHES for word in ("--bench", name)]
    command = ["cargo", "test", "--release", "--no-run", "--features", "bare", "--message-format=json", *wanted]
    output = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in output.splitlines():
        message = json.loads(line)
        name = message.get("target", {}).get("name")
        if message.get("executable") and name in [*TESTS, *BENCHES]:
            subprocess.run(["strip", "-o", folder / "bin" / name, message["executable"]], check=True)
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=root, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", root / "target"))
    subprocess.run(["strip", "-o", folder / "bin/safejax", target / "release/safejax"], check=True)
    shutil.copytree(root / "tests/data", folder / "tests/data")
    shutil.copytree(root / "examples/digits", folder / "examples/digits")
    for script in SCRIPTS:
        shutil.copy(HERE / script, folder)
    compile_ahead(folder, "cpu", ["cpu"])
    if with_ahead:
        library = root / "target/gpu_ahead"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", library, *COMPILER]
        subprocess.run(command, check=True)
        compile_ahead(folder, library / "jax_plugins/xla_cuda13/xla_cuda_plugin.so", ["h100", "h200"])
    missing = [name for name in ["safejax", *TESTS, *BENCHES] if not (folder / "bin" / name).exists()]
    if missing:
        sys.exit(f"not built: {', '.join(missing)}")
    for name in [*TESTS, *BENCHES]:
        binary = folder / "bin" / name
        with gzip.open(f"{binary}.gz", "wb", compresslevel=6) as packed:
            packed.write(binary.read_bytes())
        binary.unlink()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"packed {size / 2**20:.1f} MiB into {folder.relative_to(root)}")
    # What may travel is 64 MiB, with the working tree, which is 6.
    if size > 56 << 20:
        sys.exit("that is more than 56 MiB")


# Running commands.


class Failed(Exception):
    """A step that does not hold, and why."""


class NotHere(Exception):
    """A step that makes no sense here, and why."""


def end(process):
    """Ends a process that was started here, and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Machine:
    """The packed folder, the device, and the log of everything that is run."""

    def __init__(self, options):
        self.folder = HERE if (HERE / "bin/safejax").exists() else HERE.parent / "target/gpu_check"
        if not (self.folder / "bin/safejax").exists():
            sys.exit(f"{self.folder} has no bin/safejax: run `scripts/gpu_check.sh pack` first")
        for packed in self.folder.glob("bin/*.gz"):
            binary = packed.with_suffix("")
            binary.write_bytes(gzip.decompress(packed.read_bytes()))
            binary.chmod(0o755)
            packed.unlink()
        self.options, self.plugin, self.short = options, options.plugin, options.short
        self.lock = open(self.folder / "lock", "w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"another run is under way in {self.folder}")
        self.out = options.out.resolve()
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self.log = open(self.out / "log.txt", "w", buffering=1)
        except OSError as error:
            sys.exit(f"nothing can be written to {self.out}: {error.strerror}")
        self.tmp = self.folder / "tmp"
        shutil.rmtree(self.tmp, ignore_errors=True)
        self.tmp.mkdir()
        self.exports = self.tmp / "exports"
        # What JAX said of itself when it exported.
        self.jax = None
        self.is_cpu = "cpu" in self.plugin
        self.environment = {
            **os.environ,
            "SAFEJAX_PLUGIN": self.plugin,
            "SAFEJAX_TEST_PLUGIN": self.plugin,
            "SAFEJAX_TEST_ROOT": str(self.folder),
            "SAFEJAX_CACHE": str(self.tmp / "executables"),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "JAX_PLATFORMS": "cpu" if self.is_cpu else "cuda",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "RUST_BACKTRACE": "0",
        }

    def binary(self, name):
        return self.folder / "bin" / name

    def start(self, command, environment):
        command = [str(word) for word in command]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", env={**self.environment, **environment}, start_new_session=True,
        )

    def run(self, command, limit, fails=False, **environment):
        """What a command prints to stdout and stderr; it has to succeed."""
        words = " ".join(map(str, command))
        process = self.start(command, environment)
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            end(process)
            output, errors = process.communicate()
            self.log.write(f"\n$ {words}\n{output}{errors}[ended after {limit} s]\n")
            raise Failed(f"{pathlib.Path(command[0]).name} did not end within {limit} s") from None
        except BaseException:
            # Ctrl-C reaches this process alone.
            end(process)
            raise
        self.log.write(f"\n$ {words}\n{output}{errors}[exit code {process.returncode}]\n")
        if process.returncode != 0 and not fails:
            lines = [line for line in errors.splitlines() if line.strip()]
            said = [line for line in lines if "error" in line.lower()] or lines or output.splitlines() or ["nothing"]
            name = pathlib.Path(command[0]).name
            raise Failed(f"{name} ended with {process.returncode}: {said[-1][:200]}")
        return output, errors

    def python(self, script, *arguments, limit, **environment):
        return self.run([sys.executable, self.folder / script, *arguments], limit, **environment)[0]

    def events(self, command, limit):
        """The lines of JSON that a process prints, its memory on the host watched between `begin` and `end`."""
        self.log.write(f"\n$ {' '.join(map(str, command))}\n")
        process = self.start(command, {})
        timer = threading.Timer(limit, end, [process])
        errors = []
        reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
        timer.start()
        reader.start()
        events, watch = [], None
        try:
            for line in process.stdout:
                self.log.write(line)
                with contextlib.suppress(json.JSONDecodeError):
                    event = json.loads(line)
                    if not isinstance(event, dict) or "event" not in event:
                        continue
                    if event["event"] == "begin":
                        watch = Watch(process.pid)
                    elif watch and event["event"] == "end":
                        event["host_bytes"], event["taken_bytes"] = watch.end()
                        watch = None
                    events.append(event)
        except BaseException:
            timer.cancel()
            end(process)
            raise
        finally:
            if watch:
                watch.end()
        was_ended = not timer.is_alive()
        timer.cancel()
        reader.join()
        code = process.wait()
        self.log.write(f"{''.join(errors)}[exit code {code}]\n")
        if code != 0:
            lines = "".join(errors).strip().splitlines() or ["nothing was said"]
            raise Failed(f"did not end within {limit} s" if was_ended else lines[-1][:200])
        return events


class Watch:
    """The most anonymous and shared memory of a process since this began, and what the whole machine had less."""

    def __init__(self, pid):
        self.pid, self.most, self.is_over = pid, 0, False
        self.before, self.free = self.memory(), self.available()
        self.least = self.free
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def memory(self):
        with contextlib.suppress(OSError):
            text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
            return sum(int(kib) for kib in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", text)) * 1024
        return 0

    def available(self):
        return int(re.search(r"MemAvailable:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) * 1024

    def watch(self):
        while not self.is_over:
            self.most, self.least = max(self.most, self.memory() - self.before), min(self.least, self.available())
            time.sleep(0.004)

    def end(self):
        self.is_over = True
        self.thread.join()
        return self.most, self.free - self.least


# The steps. Each returns the figure that the table shows, and may keep more in the machine's results.


def devices(machine):
    said = json.loads(machine.run([machine.binary("safejax"), "devices", "--json"], 60)[0])
    machine.run([machine.binary("safejax"), "doctor"], 100)
    for command in [["nvidia-smi"], ["df", "-hT", machine.tmp], ["free", "-g"], ["nproc"], ["uname", "-r"]]:
        with contextlib.suppress(FileNotFoundError, Failed):
            machine.run(command, 20)
    device = said["devices"][0]
    if (said["platform"] == "cpu") != machine.is_cpu:
        raise Failed(f"the platform is {said['platform']}")
    machine.keep("device", said)
    kinds = ", ".join(memory["kind"] for memory in device["memories"])
    stats = device["memory_stats"] or {}
    limit = f", {stats['limit_bytes'] / 2**30:.1f} GiB to use" if stats.get("limit_bytes") else ""
    return f"{device['kind']}, API {said['api_version']}, memories {kinds}{limit}"


def exports(machine):
    """What real JAX exports here, for the tests and the programs."""
    machine.python("make_exports.py", "here", machine.exports, limit=120)
    short = ["--short"] if machine.short else []
    made = machine.python("gpu_programs.py", "make", machine.exports / "large", *short, limit=150)
    machine.jax = json.loads(made.splitlines()[-1])
    machine.keep("jax", machine.jax)
    return f"jax {machine.jax['jax']} on {machine.jax['device']}"


def large_exports(machine):
    """The directory of the larger programs, which the step `exports` makes."""
    if not machine.jax:
        raise Failed("it needs what the step `exports` makes, which did not hold or was left out")
    return machine.exports / "large"


def side_by_side(work, items):
    """The results of the work on each item, three at a time; they do not time anything."""
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        return list(pool.map(work, items))


def tests(machine):
    def test(name):
        """How many pass and how many say that they make no sense here, and what does not hold."""
        command = [machine.binary(name), "--nocapture", "--test-threads", "4"]
        environment = {} if machine.is_cpu else {"SAFEJAX_TEST_EXPORTS": str(machine.exports)}
        try:
            output, errors = machine.run(command, 120, fails=True, **environment)
        except Failed as failure:
            return 0, 0, [str(failure)]
        result = re.search(r"test result: \w+\. (\d+) passed; (\d+) failed", output)
        if not result:
            last = (errors.strip().splitlines() or ["nothing was said"])[-1][:120]
            return 0, 0, [f"{name} did not end: {last}"]
        names = re.findall(r"^    (\w+)$", output.rpartition("failures:")[2], re.M) if result[2] != "0" else []
        return int(result[1]), len(re.findall(r"^skipped ", errors, re.M)), [f"{name}::{test}" for test in names]

    outcomes = side_by_side(test, TESTS)
    skipped = sum(outcome[1] for outcome in outcomes)
    passed = sum(outcome[0] for outcome in outcomes) - skipped
    problems = [problem for outcome in outcomes for problem in outcome[2]]
    machine.keep("tests", {"passed": passed, "skipped": skipped, "problems": problems})
    if problems:
        raise Failed(f"{passed} pass, not {'; '.join(problems)}")
    return f"{passed} pass, {skipped} make no sense here"


# How far outputs may be from JAX's where another algorithm was chosen, as the norm of the difference over the norm.
TOLERANCES = {"deep_bf16": 2e-2, "fp8_dot": 2e-2}
TOLERANCE = 2e-3


def programs(machine):
    def run(artifact):
        """Both runs of a program, and what does not hold."""
        name, recorded = artifact.stem, artifact.with_suffix(".safetensors")
        out, runs, logs, problems = machine.tmp / f"{name}-out.safetensors", [], [], []
        try:
            paths = json.loads(machine.python("gpu_programs.py", "split", recorded, machine.tmp, limit=60))
            arguments = [word for index, path in enumerate(paths) for word in ("--arg", f"{index}={path}")]
            arguments += [] if machine.is_cpu else ["--option", "preallocate=false"]
            for _ in range(2):
                started = time.perf_counter()
                command = [machine.binary("safejax"), "run", artifact, *arguments, "--out", out, "-vv"]
                logs.append(machine.run(command, 90)[1])
                seconds = time.perf_counter() - started
                compared = machine.python("gpu_programs.py", "compare", out, recorded, limit=60)
                runs.append({**json.loads(compared), "seconds": seconds})
        except Failed as failure:
            return name, runs, [f"{name}: {failure}"]
        worst = max(run["distance"] for run in runs)
        if worst > TOLERANCES.get(name, TOLERANCE):
            problems.append(f"{name} is off by {worst:.1e}")
        # What compiles in no time is not kept.
        if "kept an executable" in logs[0] and "took an executable from the cache" not in logs[1]:
            problems.append(f"{name} was compiled twice")
        if "took an executable from the cache" in logs[1]:
            reused.append(name)
        return name, runs, problems

    reused = []
    outcomes = side_by_side(run, sorted(large_exports(machine).glob("*.jaxexport")))
    problems = [problem for _, _, problems in outcomes for problem in problems]
    if outcomes and not reused:
        problems.append("no program was found in the cache of executables")
    machine.keep("programs", {name: runs for name, runs, _ in outcomes})
    if problems or not outcomes:
        raise Failed("; ".join(problems) or "none were exported")
    runs = [run for _, runs, _ in outcomes for run in runs]
    same, worst = sum(run["is_same"] for run in runs), max(run["distance"] for run in runs)
    return f"{len(outcomes)} functions run twice, {same} of {len(runs)} bit for bit, the worst off by {worst:.1e}"


def checkpoint(path, tensors, shape, dtype):
    """A file of random numbers below 1.0 in tensors of this shape, none of which lies at a multiple of 64."""
    import numpy as np

    width = {"BF16": 2, "F32": 4}[dtype]
    length = width * int(np.prod(shape))
    entries = {
        f"layer_{index // 10}.w_{index % 10}": {
            "dtype": dtype, "shape": shape, "data_offsets": [index * length, (index + 1) * length]
        }
        for index in range(tensors)
    }
    header = json.dumps(entries).encode()
    header += b" " * ((24 - len(header)) % 64)
    mask = {"BF16": 0x3F7F, "F32": 0x3F7FFFFF}[dtype]
    kind = {"BF16": np.uint16, "F32": np.uint32}[dtype]
    block = np.random.default_rng(0).integers(0, mask, length // width, kind, endpoint=True) & kind(mask)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for index in range(tensors):
            file.write((block ^ kind(index % 64)).tobytes())


OUR_ROUTES = ["ours, not registered:registration=never", "ours, whole tensors:delivery=whole"]
SWEEP = [
    f"{chunks}x{size} MiB, {threads} threads{note}:staging={chunks}x{size},threads={threads}{setting}"
    for chunks, size, threads in [
        (12, 8, 8), (12, 8, 10), (12, 8, 12), (12, 8, 16), (16, 4, 8), (20, 4, 10), (20, 4, 14), (12, 16, 10), (16, 16, 14),
        (16, 8, 12), (24, 8, 16), (8, 8, 8),
    ]
    for note, setting in [("", "")]
]
RIVALS = {
    "torch": "`safetensors.torch.load_file`",
    "torch-pinned": "`safe_open`, `pin_memory`, copies that do not block (torch)",
    "device-put": "`safe_open` and `jax.device_put`",
    "flax": "`safetensors.flax.load_file`",
}


def ours(machine, file, rounds, cache, ways, *options):
    return machine.events([machine.binary("device"), *options, "loads", rounds, cache, file, *ways], 100)


def others(machine, files, rounds, cache, libraries=("torch", "jax")):
    """The loads of these files by others, by file; a library that does not run is left out."""
    found = {file: [] for file in files}
    for library in ["jax"] if machine.is_cpu else libraries:
        command = [sys.executable, machine.folder / "gpu_rivals.py", library, rounds, cache]
        try:
            for event in machine.events([*command, *files], 120):
                found[pathlib.Path(event["file"])].append(event)
        except Failed as failure:
            print(f"  no rows for {library}: {failure}", flush=True)
    return found


def rates(file, events):
    """Medians of seconds, and memory of the host, by way."""
    found, size = {}, file.stat().st_size
    for event in events:
        if event["event"] == "end":
            found.setdefault(RIVALS.get(event["way"], event["way"]), []).append(event)
    rows = {}
    for way, events in found.items():
        seconds = [event["seconds"] for event in events]
        rows[way] = {
            "first": seconds[0],
            "median": statistics.median(seconds),
            "rate": size / statistics.median(seconds) / 1e9,
            # Pinned memory of the driver's is not the process's, but the machine has it less.
            "host_bytes": max(max(event["host_bytes"], 0) for event in events),
            "taken_bytes": max(event["taken_bytes"] for event in events),
            "report": events[-1].get("report"),
        }
    return rows


def show(title, rows):
    print(f"\n  {title}\n\n  | | median s | first s | GB/s | host memory, MB | machine's memory, MB |")
    print("  | --- | --- | --- | --- | --- | --- |")
    for way, row in rows.items():
        memory = f"{row['host_bytes'] / 1e6:.0f} | {row['taken_bytes'] / 1e6:.0f}"
        print(f"  | {way} | {row['median']:.4f} | {row['first']:.4f} | {row['rate']:.1f} | {memory} |", flush=True)


def files(machine):
    """The checkpoints of the loads."""
    large, small = machine.tmp / "large.safetensors", machine.tmp / "small.safetensors"
    if not large.exists():
        checkpoint(large, *((20, [1024, 512]) if machine.short else (300, [13312, 1024])), "BF16")
        checkpoint(small, 500 if machine.short else 20_000, [64, 32], "F32")
    return large, small


def loads(machine):
    large, small = files(machine)
    rounds = 2 if machine.short else 5
    limits = {}
    if not machine.is_cpu:
        for event in machine.events([sys.executable, machine.folder / "gpu_rivals.py", "limit", 3], 60):
            limits.setdefault(event["way"], []).append(event["gigabytes_per_second"])
    limits = {way: statistics.median(values[1:]) for way, values in limits.items()}
    machine.keep("limits_gigabytes_per_second", limits)
    by_others = others(machine, [large, small], min(rounds, 3), "warm")
    tables = {}
    for file in [large, small]:
        name = file.stem
        events = ours(machine, file, rounds, "warm", ["ours"]) + ours(machine, file, 2, "warm", OUR_ROUTES)
        if not machine.is_cpu:
            # XLA takes three quarters of the card when it first allocates, which the first load waits for.
            growing = ["--option", "preallocate=false"]
            events += ours(machine, file, rounds, "warm", ["ours, the plugin's memory not preallocated"], *growing)
        tables[name] = rates(file, events + by_others[file])
        machine.keep(f"load_{name}", tables[name])
        show(f"load, {name}, {file.stat().st_size / 1e9:.2f} GB, in the page cache (limits {limits})", tables[name])
    if machine.options.sweep:
        sweep = rates(large, ours(machine, large, 4, "warm", SWEEP))
        machine.keep("sweep", sweep)
        show("sweep", sweep)
    if machine.is_cpu:
        return f"{tables['large']['ours']['rate']:.1f} GB/s; goals are a GPU's"
    rate, limit, problems = tables["large"]["ours"]["rate"], max(limits["h2d-1"], limits["h2d-2"]), []
    share = rate / limit
    figure = f"{rate:.1f} GB/s, {share:.0%} of the limit {limit:.1f}"
    if share < 0.9:
        problems.append("under 90 % of the limit")
    for name, table in tables.items():
        rivals_here = {way: row["rate"] for way, row in table.items() if not way.startswith("ours")}
        best = max(rivals_here, key=rivals_here.get)
        ratio = table["ours"]["rate"] / rivals_here[best]
        figure += f"; {name} {ratio:.1f} times {best.replace('`', '')}"
        if ratio < 1:
            problems.append(f"{name} is behind {best}")
    if problems:
        raise Failed(f"{figure}: {'; '.join(problems)}")
    return figure


def cold(machine):
    large = files(machine)[0]
    # What is not written yet cannot be taken out of the page cache.
    machine.run(["sync", large], 100)
    # The first to read the file can pay for what those after it find in a cache of the disk's: ours are first and last.
    growing = [] if machine.is_cpu else ["--option", "preallocate=false"]
    events = ours(machine, large, 1, "cold", ["ours"], *growing)
    events += others(machine, [large], 1, "cold", ["torch"])[large]
    events += ours(machine, large, 1, "cold", ["ours, after the others"], *growing)
    rows = rates(large, events)
    machine.keep("load_cold", rows)
    show("load, large, not in the page cache", rows)
    return f"{rows['ours']['rate']:.1f} GB/s, others " + ", ".join(
        f"{row['rate']:.1f}" for way, row in rows.items() if way != "ours"
    )


def saves(machine):
    large, rounds = files(machine)[0], 2 if machine.short else 2
    target, size, rows = machine.tmp / "saved.safetensors", large.stat().st_size, {}
    commands = {"ours": [machine.binary("device"), "saves", rounds, large, target]}
    for rival in ["flax-save"] if machine.is_cpu else ["flax-save", "torch-save"]:
        commands[rival] = [sys.executable, machine.folder / "gpu_rivals.py", rival, rounds, "warm", large, target]
    for way, command in commands.items():
        try:
            events = [event for event in machine.events(command, 60) if event["event"] == "end"]
        except Failed as failure:
            if way == "ours":
                raise
            print(f"  no row for {way}: {failure}", flush=True)
            continue
        seconds = [event["seconds"] for event in events]
        median = statistics.median(seconds)
        rows[way] = {
            "first": seconds[0], "median": median, "rate": size / median / 1e9,
            "host_bytes": max(event["host_bytes"] for event in events),
            "taken_bytes": max(event["taken_bytes"] for event in events),
        }
    machine.keep("save", rows)
    show("save, large, without fsync", rows)
    return f"{rows['ours']['rate']:.1f} GB/s, others " + ", ".join(
        f"{row['rate']:.1f}" for way, row in rows.items() if way != "ours"
    )


def calls(machine):
    names = ["tiny", "deep_f32", "deep_bf16"]
    large = large_exports(machine)
    paths = [large / f"{name}{ending}" for name in names for ending in (".jaxexport", ".safetensors")]
    seconds = 0.2 if machine.short else 0.6
    output = machine.run([machine.binary("latency"), f"--seconds={seconds}", *paths], 60)[0]
    lines = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("|")]
    header, rows = lines[0], lines[2:]
    found, figures = {}, []
    for row in rows:
        ours = dict(zip(header, row))
        theirs = machine.jax["times"][row[0]]
        found[row[0]] = {"ours": ours, "jax": theirs}
        figures.append(
            f"{row[0]} {ours['bound']} µs (JAX {theirs['whole_us']:.0f}), "
            f"enqueue {ours['enqueue']} ({theirs['enqueue_us']:.0f})"
        )
    machine.keep("calls", found)
    return "; ".join(figures)


def ahead(machine):
    """Executables that another machine compiled: loaded, run, and timed beside the program compiled here."""
    kind = "cpu" if machine.is_cpu else "cuda"
    files = sorted((machine.folder / "ahead").glob(f"*.{kind}"))
    if not files:
        raise NotHere("nothing was compiled for it; `pack --ahead` does")
    figures = []
    for file in files:
        case = machine.folder / "tests/data/symbolic" / file.stem
        said = json.loads((case / "meta.json").read_text())
        at = dict(size.split("=") for size in AHEAD[file.stem].split(","))
        one = next(run for run in said["cases"] if {name: str(size) for name, size in run["sizes"].items()} == at)
        arguments = [word for key, value in one["args"] for word in ("--arg", f"{key}={case / value}")]
        if len(one["outputs"]) == 1:
            arguments += ["--expect", case / one["outputs"][0]["file"], "--tolerance", "2e-2"]
        common = [*arguments, "--plugin", machine.plugin, "--json"]
        run = lambda program, *more: json.loads(machine.run([machine.binary("safejax"), "run", program, *more, *common], 60)[0])
        loaded = run(file, "--trust-executable")
        figure = f"{file.stem}: loaded in {loaded['compile_seconds'] * 1e3:.0f} ms, ran in {loaded['run_seconds'] * 1e3:.2f} ms"
        if machine.is_cpu:
            compiled = run(case / f"{file.stem}.jaxexport")
            figure += f" (compiled: {compiled['compile_seconds'] * 1e3:.0f}, {compiled['run_seconds'] * 1e3:.2f})"
        figures.append(figure)
    machine.keep("ahead", figures)
    return "; ".join(figures)


# What a flat line may rise by: what allocators keep for the threads.
SLACK_BYTES = 64 << 20


def soak(machine):
    file, large = machine.tmp / "soak.safetensors", large_exports(machine)
    checkpoint(file, 40, [64, 512] if machine.short else [1024, 1024], "F32")
    seconds = 4 if machine.short else 60
    command = [machine.binary("device"), "soak", seconds, file, large / "tiny.jaxexport", large / "tiny.safetensors"]
    samples = [event for event in machine.events([*command, machine.tmp], seconds + 40) if event["event"] == "sample"]
    machine.keep("soak", samples)
    half = [s["host_bytes"] for s in samples if seconds / 4 <= s["seconds"] < seconds / 2]
    last = [s["host_bytes"] for s in samples if s["seconds"] >= seconds * 3 / 4]
    rise = max(last) - max(half)
    figure = f"{samples[-1]['rounds']} rounds in {seconds} s, host {rise / 1e6:+.1f} MB from its second to its last quarter"
    problems = []
    if rise > SLACK_BYTES + max(half) // 20:
        problems.append("the host's memory rises")
    if samples[0]["device_bytes"] is not None:
        left = samples[-1]["device_bytes"] - samples[0]["device_bytes"]
        figure += f", device {left / 1e6:+.1f} MB at the end"
        if left > 1 << 20:
            problems.append("the device's memory is not given back")
    if problems:
        raise Failed(f"{figure}: {'; '.join(problems)}")
    return figure


def sanitizer(machine):
    if machine.is_cpu:
        raise NotHere("it watches GPUs")
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(tool):
        raise NotHere("compute-sanitizer is not installed")
    file, large = machine.tmp / "few.safetensors", large_exports(machine)
    checkpoint(file, 12, [256, 257], "BF16")
    paths = json.loads(machine.python("gpu_programs.py", "split", large / "conv.safetensors", machine.tmp, limit=60))
    arguments = [word for index, path in enumerate(paths) for word in ("--arg", f"{index}={path}")]
    small = ["--option", "preallocate=false"]
    for command in [["load", file, *small], ["run", large / "conv.jaxexport", *arguments, *small]]:
        watched = [tool, "--tool", "memcheck", "--error-exitcode", "9", machine.binary("safejax"), *command]
        output, errors = machine.run(watched, 60, fails=True)
        if "Device not supported" in output + errors:
            raise NotHere("compute-sanitizer does not support this device")
        summary = re.search(r"ERROR SUMMARY: (\d+) error", output + errors)
        if not summary:
            raise Failed(f"no summary for `{command[0]}`: {(output + errors).strip()[-150:]}")
        if summary[1] != "0":
            raise Failed(f"{summary[1]} errors in `{command[0]}`")
    return "no error over a load and a convolution"


STEPS = [devices, exports, tests, programs, loads, calls, ahead, saves, cold, soak, sanitizer]


def run(options):
    names = [step.__name__ for step in STEPS]
    wanted = options.only.split(",") if options.only else names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        sys.exit(f"there is no step {', '.join(unknown)}; there are {', '.join(names)}")
    machine = Machine(options)
    try:
        steps = carry_out(machine, wanted)
    finally:
        # Some of it is large.
        shutil.rmtree(machine.tmp, ignore_errors=True)
    print("\n| step | | figure |\n| --- | --- | --- |")
    for name, result in steps.items():
        print(f"| {name} | {result['outcome']} | {result['figure']} |")
    return int(any(result["outcome"] == "FAILS" for result in steps.values()))


def carry_out(machine, wanted):
    """What becomes of each step that is wanted."""
    results = {"plugin": machine.plugin, "short": machine.short, "steps": {}}

    def save():
        (machine.out / "results.json").write_text(json.dumps(results, indent=1))

    def keep(name, value):
        results[name] = value
        save()

    machine.keep = keep
    for step in STEPS:
        name = step.__name__
        if name not in wanted:
            continue
        print(f"== {name}", flush=True)
        machine.log.write(f"\n==== {name}\n")
        started = time.perf_counter()
        try:
            outcome, figure = "holds", step(machine)
        except NotHere as reason:
            outcome, figure = "not here", str(reason)
        except Failed as failure:
            outcome, figure = "FAILS", str(failure)
        except Exception as error:  # A step's own mistake is a failure of that step.
            outcome, figure = "FAILS", f"{type(error).__name__}: {error}"
            machine.log.write(traceback.format_exc())
        seconds = time.perf_counter() - started
        results["steps"][name] = {"outcome": outcome, "figure": figure, "seconds": seconds}
        save()
        print(f"  {outcome} ({seconds:.0f} s): {figure}", flush=True)
    return results["steps"]


def main():
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    here = commands.add_parser("pack", help="build what the other machine needs into target/gpu_check")
    here.add_argument("--ahead", action="store_true", help="with programs compiled for its card, by the plugin that is there")
    there = commands.add_parser("run", help="carry the check out")
    there.add_argument("--plugin", default="cuda13", help="a name or the path of a library")
    there.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu_check"), help="for log.txt and results.json")
    there.add_argument("--short", action="store_true", help="small sizes")
    there.add_argument("--only", help="some steps, separated by commas: " + ", ".join(step.__name__ for step in STEPS))
    there.add_argument("--sweep", action="store_true", help="with loads by many sizes of the staging ring")
    options = parser.parse_args()
    try:
        return pack(options.ahead) if options.command == "pack" else run(options)
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    sys.exit(main())
