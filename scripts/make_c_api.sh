#!/usr/bin/env bash
# Writes tests/simulator/src/c_api.rs from the real C header of PJRT. Run with bindgen 0.73.2 (cargo install bindgen-cli) on
# the header of the package tensorflow-cpu 2.21.0 (C API 0.90), which scripts/xla_extension.sh fetches.
set -euo pipefail
cd "$(dirname "$0")/.."
header=${1:-target/xla_extension.parts/wheel/tensorflow/include/xla/pjrt/c/pjrt_c_api.h}
out=tests/simulator/src/c_api.rs
bindgen --no-doc-comments --no-layout-tests --no-prepend-enum-name --no-recursive-allowlist \
  --default-enum-style=consts --allowlist-item 'PJRT_.*' "$header" |
  # The path of the header would be that of a machine.
  sed '1s|.*|//! The ABI of the PJRT C API 0.90, as scripts/make_c_api.sh writes it from the header.|' > "$out"
rustfmt --edition 2024 "$out"
