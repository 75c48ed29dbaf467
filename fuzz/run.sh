#!/usr/bin/env bash
# Runs fuzz targets: fuzz/run.sh [TARGET [SECONDS]]. All of them for a minute each without arguments.
set -euo pipefail
cd "$(dirname "$0")"

targets=(header source program record key_path)
[ $# -ge 1 ] && targets=("$1")
seconds=${2:-60}
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing"
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
# With the target named, build scripts are not instrumented.
cargo +nightly build --release --target "$host" --bins

seeds() {
  case $1 in
    header) find ../tests/data ../examples -name '*.safetensors' ;;
    source) find ../tests/data ../examples \( -name '*.safetensors' -o -name '*.pkl' -o -name '*.pickle*' -o -name '*.np[yz]' \
              -o -name '*.msgpack' -o -name '*.pt' \) ;;
    program) find ../tests/data ../examples \( -name '*.jaxexport' -o -name '*.stablehlo' -o -name '*.mlir' -o -name '*.pb' \
              -o -path '*exports*' -type f \) ;;
  esac
}

for target in "${targets[@]}"; do
  mkdir -p "corpus/$target" "artifacts/$target"
  seeds "$target" | while read -r file; do
    [ "$(stat -c %s "$file")" -le 1000000 ] && cp "$file" "corpus/$target/$(echo "$file" | tr / _)"
  done || true
  echo "== $target, $seconds s"
  "target/$host/release/$target" "corpus/$target" -artifact_prefix="artifacts/$target/" -max_total_time="$seconds" \
    -max_len=1000000 -rss_limit_mb=1500 -timeout=10 -print_final_stats=1
done
