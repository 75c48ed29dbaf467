#!/usr/bin/env bash
# Makes a directory that the `xla` crate (0.5.4) builds and runs against, on Debian x86_64, from packages alone:
#
#     scripts/xla_extension.sh [DIRECTORY]        (by default target/xla_extension)
#
# The XLA inside is that of TensorFlow's wheel, for the CPU only: right for development and tests. Programs that are
# shipped are better built against a released xla_extension archive, see docs/xla-rs.md.
#
# Needs python3 with pip, apt-get and dpkg (nothing is installed), and a C++ compiler. Downloads 330 MB, and leaves 1.1 GB in
# DIRECTORY.parts.
set -euo pipefail

TENSORFLOW=2.21.0
TENSORFLOW_SHA256=dcc8afd32930e42d5296b6ee19078b773706830af4ea97fbe503b9f5e0f820cb
# The LLVM that this TensorFlow's MLIR headers are written for; those of other versions do not compile.
LLVM=22
# The only Debian suites that have it.
SUITES="forky sid"

say() { printf '== %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
need() { command -v "$1" >/dev/null 2>&1 || fail "$1 is missing; install $2"; }

[ "$(uname -sm)" = "Linux x86_64" ] || fail "TensorFlow's wheel is taken for Linux x86_64, and this is $(uname -sm)"
target=$(realpath -m "${1:-"$(dirname "$0")/../target/xla_extension"}")
work=$target.parts

need python3 "python3 with pip"
need apt-get "apt (or use a released xla_extension archive, see docs/xla-rs.md)"
need dpkg "dpkg"
need c++ "g++ or clang"
versions="tensorflow-cpu $TENSORFLOW, LLVM $LLVM"
# It is links into the parts, which somebody may have removed.
if [ "$(cat "$target/made_of" 2>/dev/null)" = "$versions" ] && [ -d "$target/include/xla" ] &&
  [ -e "$target/lib/libtensorflow_cc.so.2" ]; then
  say "$target is complete"
  echo "$target"
  exit
fi
if [ -e "$target" ] && [ ! -e "$target/made_of" ] && [ -n "$(ls -A "$target")" ]; then
  fail "$target holds something else; give a directory that is empty or does not exist"
fi
rm -rf "$target/include" "$target/lib"
mkdir -p "$target"
echo "begun" >"$target/made_of"
mkdir -p "$target/include" "$target/lib" "$work/apt/lists/partial" "$work/apt/archives/partial"

say "tensorflow-cpu $TENSORFLOW (274 MB)"
if [ "$(cat "$work/wheel/version" 2>/dev/null)" != "$TENSORFLOW" ]; then
  rm -rf "$work/wheel" "$work/download"
  echo "tensorflow-cpu==$TENSORFLOW --hash=sha256:$TENSORFLOW_SHA256" >"$work/requirements.txt"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --python-version 3.12 --implementation cp --abi cp312 --platform manylinux_2_27_x86_64 \
    --dest "$work/download" --requirement "$work/requirements.txt" >&2 ||
    fail "pip could not download tensorflow-cpu $TENSORFLOW"
  python3 -m zipfile -e "$work"/download/tensorflow_cpu-*.whl "$work/wheel" || fail "the wheel could not be unpacked"
  rm -rf "$work/download"
  echo "$TENSORFLOW" >"$work/wheel/version"
fi
tensorflow=$work/wheel/tensorflow

say "headers of LLVM $LLVM (50 MB)"
if [ "$(cat "$work/llvm/version" 2>/dev/null)" != "$LLVM" ]; then
  rm -rf "$work/llvm"
  # The mirror that this machine uses already.
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(LABEL)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' |
    sed -n 's/ Debian$//p' | sed -n 1p)
  [ -n "$mirror" ] || fail "apt knows no Debian mirror: on Debian, run apt-get update; elsewhere, use a released archive"
  apt=(-o "Dir::Etc::SourceList=$work/apt/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$work/apt/lists"
    -o "Dir::Cache::Archives=$work/apt/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=
    -o Acquire::Languages=none -o APT::Sandbox::User=root -o Debug::NoLocking=1)
  for suite in $SUITES; do
    echo "deb [arch=amd64] $mirror $suite main" >"$work/apt/sources.list"
    if apt-get "${apt[@]}" -qq update >&2 &&
      (cd "$work/apt" && apt-get "${apt[@]}" -qq download "llvm-$LLVM-dev" >&2); then
      break
    fi
    say "no llvm-$LLVM-dev in Debian $suite"
  done
  deb=$(find "$work/apt" -maxdepth 1 -name "llvm-$LLVM-dev_*.deb" | head -n 1)
  [ -n "$deb" ] || fail "llvm-$LLVM-dev is in none of Debian's suites $SUITES at $mirror"
  dpkg -x "$deb" "$work/llvm" || fail "$deb could not be unpacked"
  rm -rf "$work/apt"
  echo "$LLVM" >"$work/llvm/version"
fi

say "headers"
link() { # link NAME PATH: $target/include/NAME is a link to PATH
  [ -e "$2" ] || fail "$2 is missing: the package is not laid out as it was in TensorFlow $TENSORFLOW"
  mkdir -p "$(dirname "$target/include/$1")"
  ln -sfn "$2" "$target/include/$1"
}
for name in absl google tsl xla tensorflow third_party ml_dtypes Eigen unsupported; do
  link "$name" "$tensorflow/include/$name"
done
external=$tensorflow/include/external
link highwayhash "$external/highwayhash/highwayhash"
link farmhash.h "$external/farmhash_archive/src/farmhash.h"
link grpc "$external/com_github_grpc_grpc/include/grpc"
link grpcpp "$external/com_github_grpc_grpc/include/grpcpp"
link stablehlo "$external/stablehlo/stablehlo"
link shardy "$external/shardy/shardy"
link mlir "$external/llvm-project/mlir/include/mlir"
link llvm "$work/llvm/usr/include/llvm-$LLVM/llvm"
link llvm-c "$work/llvm/usr/include/llvm-c-$LLVM/llvm-c"

say "libraries"
for name in libtensorflow_cc.so.2 libtensorflow_framework.so.2; do
  [ -e "$tensorflow/$name" ] || fail "$tensorflow/$name is missing"
  ln -sfn "$tensorflow/$name" "$target/lib/$name"
done
# The four functions that the crate calls and TensorFlow does not export: loading a plugin is not to be had here.
cat >"$work/shim.cc" <<'CPP'
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "xla/pjrt/c/pjrt_c_api.h"

namespace pjrt {
namespace {
absl::Status Missing() {
  return absl::UnimplementedError(
      "this xla_extension was made from TensorFlow's wheel, which has no registry of plugins");
}
}  // namespace

absl::StatusOr<const PJRT_Api*> PjrtApi(absl::string_view) { return Missing(); }
absl::StatusOr<const PJRT_Api*> LoadPjrtPlugin(absl::string_view, absl::string_view) { return Missing(); }
absl::StatusOr<bool> IsPjrtPluginInitialized(absl::string_view) { return Missing(); }
absl::Status InitializePjrtPlugin(absl::string_view) { return Missing(); }
}  // namespace pjrt
CPP
c++ -std=c++17 -O1 -fPIC -shared -w -DNDEBUG -I"$target/include" "$work/shim.cc" -o "$target/lib/libxla_shim.so" ||
  fail "the four missing functions could not be compiled"
echo "INPUT(-lxla_shim -l:libtensorflow_cc.so.2 -l:libtensorflow_framework.so.2)" >"$target/lib/libxla_extension.so"

echo "$versions" >"$target/made_of"
say "done; build with XLA_EXTENSION_DIR set to what follows (bindgen, which the crate uses, needs libclang)"
echo "$target"
