#!/usr/bin/env bash
# Everything from a bare machine to tested: installs what is missing, builds, runs all tests, then the whole CPU suite again
# under AddressSanitizer and UndefinedBehaviorSanitizer.
#   --quick   leaves the sanitizer build out
#   --ci      runs each test once, for machines with two cores and half an hour: the op cases, the programs and the benchmarks as
#             they are released, everything else under the sanitizers; without a GPU kernels are compiled as far as PTX, since machine
#             code is half of nvcc's work
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install_missing
targets=() selection=() op_tests=ON
if [ "${1:-}" = --ci ]; then
    choose_preset 90a-virtual
    targets=(--target train_lolcats gen_lolcats test_ops test_gpu test_e2e bench)
    op_tests=OFF
    selection=(-R '^(ops\.|test_e2e|install_consumer|bench_smoke)')
else
    choose_preset
fi
configure "$preset" -DBUILD_TESTING=ON "${architectures[@]}"  # demo.sh configures without
build "$preset" "${targets[@]}"
say "tests ($preset)"
ctest --preset "$preset" -j "$(nproc)" "${selection[@]}"
if [ "${1:-}" != --quick ]; then
    configure asan -DLOLCATS_OP_TESTS="$op_tests"
    build asan
    say "tests (AddressSanitizer, UBSan)"
    ctest --preset asan -j "$(nproc)" -LE "slow|no_sanitizer"
fi
if [ "$preset" = cpu ]; then echo "nvcc was not found: the CPU side was built and tested, no CUDA code was compiled."; fi
