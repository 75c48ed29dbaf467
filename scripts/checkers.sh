#!/usr/bin/env bash
# Runs the tests on the simulated accelerator under AddressSanitizer, ThreadSanitizer and Miri, the command under valgrind, and
# the models of the locks under loom: scripts/checkers.sh [address|thread|miri|loom|valgrind]. The sanitizers and Miri need the
# nightly toolchain. On two cores Miri takes ten minutes, the others five.
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

# The whole binding on a plugin that is linked in: every pointer that either side uses.
case ${1:-all} in
  miri | all)
    echo "== miri"
    rustup component add miri rust-src --toolchain nightly
    # Files and the clock are the system's; the C API passes handles as numbers.
    MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-permissive-provenance" \
      cargo +nightly miri test --target-dir target/miri --test linked_plugin
    ;;
esac

# Every order of the threads' steps, with up to three switches where nobody has to wait.
case ${1:-all} in
  loom | all)
    echo "== loom"
    RUSTFLAGS="--cfg safejax_loom" LOOM_MAX_PREEMPTIONS=3 \
      cargo test --release --target-dir target/loom -p safejax --lib loom_
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
