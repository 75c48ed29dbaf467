#!/usr/bin/env bash
# Runs the tests on the simulated accelerator under AddressSanitizer and ThreadSanitizer: scripts/checkers.sh [address|thread].
# Needs the nightly toolchain. Five minutes each on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

host=$(rustc +nightly -vV | sed -n 's/^host: //p')
tests=(--test simulated --test fault_sweep)

check() {
  # check SANITIZER CARGO_OPTIONS... -- TEST_OPTIONS...
  echo "== $1"
  # The plugin that the tests load has to find the sanitizer in the program.
  RUSTFLAGS="-Zsanitizer=$1 -Clink-arg=-rdynamic" cargo +nightly test --target "$host" --target-dir "target/$1" \
    "${tests[@]}" "${@:2}"
}

case ${1:-all} in
  # Where a plugin will not say when it is done with memory, or does not unregister it, that is given up for good.
  address | all)
    export SAFEJAX_SWEEP_SKIP=PJRT_Client_DmaUnmap
    check address -- --skip memory_stays_where_a_plugin --skip a_load_ends_where_a_plugin
    unset SAFEJAX_SWEEP_SKIP
    ;;
esac
case ${1:-all} in
  thread | all)
    rustup component add rust-src --toolchain nightly
    check thread -Zbuild-std
    ;;
esac
