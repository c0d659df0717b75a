#!/usr/bin/env bash
# Fuzzes targets (default: all, one after the other) until 2 million executions or 15 minutes each, or the first finding, and packs
# what was learned into the committed corpora. Needs `cmake --preset fuzz && cmake --build --preset fuzz`.
#
#   tests/fuzz/fuzz.sh [TARGET...]      RUNS=2000000 SECONDS_EACH=900 WORK=build/fuzz/work
#
# A finding stays as $WORK/TARGET/finding-*: mend it, and commit the file as regressions/TARGET-what.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=$here/../../build/fuzz/bin work=${WORK:-$here/../../build/fuzz/work}
mkdir -p "$work"
"$bin/fuzz_seeds" "$work/seeds"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(ls "$work/seeds")
status=0
for target in "${targets[@]}"; do
    folder=$work/$target
    mkdir -p "$folder/corpus" "$folder/smaller" "$folder/known"
    [ ! -f "$here/corpus/$target.zip" ] || python3 -m zipfile -e "$here/corpus/$target.zip" "$folder/known"
    export LC_FUZZ_TARGET=$target
    limits=(-max_len=8192 -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=256)
    "$bin/fuzz" "$folder/corpus" "$work/seeds/$target" "$folder/known" "${limits[@]}" -runs="${RUNS:-2000000}" \
        -max_total_time="${SECONDS_EACH:-900}" -print_final_stats=1 -artifact_prefix="$folder/finding-" >"$folder/log" 2>&1 || status=1
    echo "$target: $(grep -E '^Done|SUMMARY' "$folder/log" | tail -1) $(grep -c . <(ls "$folder" | grep finding-) || true) findings"
    rm -rf "$folder/smaller"/*
    # The seeds, then the smallest inputs that add coverage: an archive of stored files, the same for the same inputs.
    "$bin/fuzz" -merge=1 "${limits[@]}" "$folder/smaller" "$work/seeds/$target" "$folder/corpus" "$folder/known" >"$folder/merge.log" 2>&1
    python3 - "$work/seeds/$target" "$folder/smaller" "$here/corpus/$target.zip" "${LIMIT:-16000}" <<'PACK'
import sys, zipfile
from pathlib import Path
seeds, smaller, target, limit = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
target.parent.mkdir(exist_ok=True)
found = {path.read_bytes() for path in smaller.iterdir()} - {path.read_bytes() for path in seeds.iterdir()}
members = [(path.name, path.read_bytes()) for path in sorted(seeds.iterdir())]
for data in sorted(found, key=lambda data: (len(data), data)):
    if sum(len(d) + 100 for _, d in members) + len(data) > limit:
        break
    members.append((f"{len(members):04}", data))
with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
    for name, data in members:
        archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
print(f"  {target.name}: {len(members)} inputs of {len(found)} that were found, {target.stat().st_size} bytes")
PACK
done
exit $status
