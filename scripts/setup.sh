# Sourced by test.sh and demo.sh: installs what is missing, picks the preset, builds. Knows Debian 12 and Ubuntu 24.04.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

say() { printf '\n== %s\n' "$*"; }

install_missing() {
    local wanted=(build-essential cmake ninja-build pkg-config git libfmt-dev libcli11-dev nlohmann-json3-dev libpcre2-dev
                  libutf8proc-dev libxxhash-dev libopenblas-pthread-dev libgtest-dev libgmock-dev)
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        echo "This system has no apt. Install the equivalents of these packages, then run me again:"
        echo "  ${wanted[*]}"
        echo "(The libraries are looked up by CMake and pkg-config; if they are there, the build simply works.)"
        return 0
    fi
    local missing=() package
    for package in "${wanted[@]}"; do
        [ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "missing packages, and neither root nor sudo: ${missing[*]}"; exit 1; }
        as_root=(sudo)
    fi
    . /etc/os-release
    case "${ID:-}:${VERSION_ID:-}" in
        debian:12|ubuntu:24.04) ;;
        *) echo "note: tried on Debian 12 and Ubuntu 24.04; this is ${PRETTY_NAME:-unknown}" ;;
    esac
    say "installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# choose_preset [ARCHITECTURE]. Sets `preset`, and in `architectures` the option that compiles kernels for one GPU only: the one here, or
# where there is none ARCHITECTURE, Hopper unless said. (A plain `cmake --preset cuda` compiles for all.)
choose_preset() {
    preset=cpu architectures=()
    if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
        export PATH="/usr/local/cuda/bin:$PATH"
    fi
    command -v nvcc >/dev/null || return 0
    preset=cuda
    local architecture=${1:-90a-real}
    nvidia-smi -L >/dev/null 2>&1 && architecture=native
    architectures=(-DCMAKE_CUDA_ARCHITECTURES="$architecture")
}

# configure PRESET [cmake options]
configure() {
    local name=$1; shift
    say "configuring build/$name"
    local log="build/$name/configure.log"
    mkdir -p "build/$name"
    cmake --preset "$name" "$@" >"$log" 2>&1 || { cat "$log"; exit 1; }
    grep -E 'CUDA toolkit|openblas|utf8proc' "$log" || true
}

# build PRESET [options of cmake --build]
build() {
    local name=$1; shift
    say "building build/$name"
    cmake --build --preset "$name" "$@"
}
