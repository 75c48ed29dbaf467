#!/usr/bin/env bash
# Tells in one run whether safejax holds on a real device, and how fast it is there.
#
#   scripts/gpu_check.sh pack                      here: builds what the other machine needs into target/gpu_check
#   scripts/gpu_check.sh run [--plugin cuda13]     there: needs this folder, the plugin, and a Python with jax; no Rust, no
#                            [--out DIR]           network. Logs and results go to DIR; the last lines are a table, and the
#                            [--short] [--only STEP,…] [--sweep]      exit code is 0 only if every step holds.
#
# PYTHON says which Python has jax. The work is in gpu_check.py.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu_check.py" "$@"
