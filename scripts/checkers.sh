#!/usr/bin/env bash
# Runs the tests on the simulated accelerator under AddressSanitizer and ThreadSanitizer, and the command under valgrind:
# scripts/checkers.sh [address|thread|valgrind]. The sanitizers need the nightly toolchain. Five minutes each on two cores.
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

# The command as users have it: a load, a call and saves, without an access that is wrong or memory that is lost.
run_commands() {
  local plugin=target/release/libsafejax_simulator.so digits=examples/digits/params.safetensors directory
  directory=$(mktemp -d)
  cat >"$directory/identity.mlir" <<'EOF'
module @sim_identity {
  func.func public @main(%arg0: tensor<4xf32>) -> (tensor<4xf32>) {
    return
  }
}
EOF
  local checked=(valgrind --quiet --error-exitcode=9 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite
    target/release/safejax)
  "${checked[@]}" load "$digits" --plugin "$plugin"
  "${checked[@]}" run "$directory/identity.mlir" --plugin "$plugin" --arg 0='[1.0, 2.0, 3.0, 4.0]' --out "$directory/out.npy"
  "${checked[@]}" convert "$digits" "$directory/one.safetensors" --digests
  "${checked[@]}" convert "$digits" "$directory/several.safetensors" --max-shard-size 40kB
  "${checked[@]}" verify "$directory/several.safetensors.index.json"
  rm -rf "$directory"
}
case ${1:-all} in
  valgrind | all)
    echo "== valgrind"
    cargo build --release -p safejax-cli -p safejax-simulator
    run_commands
    ;;
esac
