#!/usr/bin/env bash
# The ablation of docs/results: one model, one text, one budget, four ways to linearize.
#   scripts/experiments.sh MODEL_DIR TEXT_FILE OUT_DIR [options for every `train_lolcats linearize`]
# Needs a build (scripts/test.sh or scripts/demo.sh make one). Prints a Markdown table; each row's run stays in OUT_DIR.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 3 ] || { sed -n '2,4p' "$0"; exit 2; }
model=$1 text=$2 out=$3; shift 3
bin=build/cpu/bin; [ -x build/cuda/bin/train_lolcats ] && bin=build/cuda/bin

# number KEY FILE: the value of a top-level number in a summary
number() { sed -n "s/^ *\"$1\": *\([-0-9.e+]*\),\{0,1\}$/\1/p" "$2" | head -n 1; }

run() {  # run NAME options...
    local name=$1; shift
    [ -e "$out/$name/summary.json" ] || "$bin/train_lolcats" linearize --model "$model" --data "$text" --out "$out/$name" "$@" >&2
}
cell() {  # cell KEY FILE: two digits, or a dash where the run has no such number
    local value; value=$(number "$1" "$2")
    if [ -n "$value" ]; then printf '%.2f' "$value"; else printf -- '-'; fi
}
row() {
    local summary="$out/$1/summary.json" key line="| $2 |"
    for key in teacher_ppl swapped_ppl transferred_ppl finetuned_ppl window_only_ppl linear_only_ppl; do
        line+=" $(cell "$key" "$summary") |"
    done
    echo "$line"
}

run hybrid "$@"
run no_transfer "$@" --stages finetune
run linear "$@" --attention linear
run t2r "$@" --feature-map t2r

echo "| attention | teacher | swapped | transferred | finetuned | window only | linear only |"
echo "| --- | --- | --- | --- | --- | --- | --- |"
row hybrid "hybrid, Hedgehog maps, both stages"
row no_transfer "the same without attention transfer"
row linear "pure linear attention, Hedgehog maps"
row t2r "hybrid, T2R maps"
