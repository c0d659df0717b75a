#!/usr/bin/env bash
# Everything from a bare machine to tested: installs what is missing, builds, runs all tests, then the whole CPU suite again
# under AddressSanitizer and UndefinedBehaviorSanitizer. `--quick` leaves the sanitizer build out.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install_missing
choose_preset
architectures=()
if [ "$preset" = cuda ]; then  # one architecture is enough here: that of the GPU, or Hopper's where there is none to run on
    architectures=(-DCMAKE_CUDA_ARCHITECTURES="$(nvidia-smi -L >/dev/null 2>&1 && echo native || echo 90a-real)")
fi
build "$preset" -DBUILD_TESTING=ON "${architectures[@]}"  # demo.sh configures without
say "tests ($preset)"
ctest --preset "$preset" -j "$(nproc)"
if [ "${1:-}" != --quick ]; then
    build asan
    say "tests (AddressSanitizer, UBSan)"
    ctest --preset asan -j "$(nproc)" -LE "slow|no_sanitizer"
fi
if [ "$preset" = cpu ]; then echo "nvcc was not found: the CPU side was built and tested, no CUDA code was compiled."; fi
