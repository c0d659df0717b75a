#!/usr/bin/env bash
# usage: install_test.sh BUILD_DIR SOURCE_DIR: installs the build into an empty prefix, builds a consumer against it, runs it.
set -euo pipefail
build=$1 source=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cmake --install "$build" --prefix "$work/prefix" >"$work/install.log"
cmake -S "$source/tests/install" -B "$work/consumer" -G Ninja -DCMAKE_BUILD_TYPE=Release \
      -DCMAKE_PREFIX_PATH="$work/prefix" ${3:+-DCMAKE_EXE_LINKER_FLAGS="$3"} >"$work/configure.log" ||
    { cat "$work/configure.log"; exit 1; }
cmake --build "$work/consumer" >"$work/build.log" || { cat "$work/build.log"; exit 1; }
"$work/consumer/consumer"
for program in train_lolcats gen_lolcats; do
    "$work/prefix/bin/$program" --help >/dev/null
done
echo "install tree works"
