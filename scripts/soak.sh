#!/usr/bin/env bash
# Long runs, whose figures are in docs/reliability.md: scripts/soak.sh [sweeps|kills|threads|fuzz]... (all without arguments).
# SECONDS_OF_THREADS (600) and SECONDS_OF_FUZZING (1800, for each target) say for how long.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# -ge 1 ] || set -- sweeps kills threads fuzz
for run in "$@"; do
  echo "== $run"
  case $run in
    # Every call of the functions and system calls that are swept, in every way.
    sweeps)
      SAFEJAX_SWEEP=all cargo test --release -p safejax --test fault_sweep
      SAFEJAX_NO_SKIPS=1 SAFEJAX_SWEEP=all cargo test --release -p safejax-cli --test system_faults -- --nocapture
      ;;
    # Saves that are killed, to one file and to several.
    kills) SAFEJAX_KILLS=${KILLS:-300} cargo test --release -p safejax-cli --test interrupts killed -- --nocapture ;;
    # Eight threads load, call, save and drop, and what the process has in use stays the same.
    threads)
      cargo bench --no-run --bench device
      directory=$(mktemp -d)
      cargo run --quiet --release -p safejax-cli -- plugin install cpu
      export SAFEJAX_PLUGIN=cpu
      data=tests/data/exports/jax0120-cnn
      cargo bench --quiet --bench device -- soak "${SECONDS_OF_THREADS:-600}" examples/digits/params.safetensors \
        "$data.jaxexport" "$data.safetensors" "$directory" | python3 -c '
import json, sys
samples = [json.loads(line) for line in sys.stdin if line.startswith("{")]
samples = [one for one in samples if one.get("event") == "sample"]
for one in (samples[len(samples) // 10], samples[len(samples) // 2], samples[-1]):
    print(json.dumps(one))'
      rm -rf "$directory"
      ;;
    fuzz) for target in header source program record key_path; do fuzz/run.sh "$target" "${SECONDS_OF_FUZZING:-1800}"; done ;;
    *) echo "there is no such run: $run" >&2; exit 2 ;;
  esac
done
