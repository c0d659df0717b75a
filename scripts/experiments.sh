#!/usr/bin/env bash
# The ablations of docs/results: one model, one text, one budget, several ways to linearize.
#   scripts/experiments.sh [--paper] [--jobs N] [--gpus N] MODEL_DIR TEXT_FILE OUT_DIR [options for every `linearize`]
# Four rows, or with --paper those of the paper's Tables 1 and 5 and of its window and rank studies. --jobs N runs that many at a
# time (they share a GPU well when the model is small), --gpus N deals them out to cuda:0 ... cuda:N-1. Needs a build
# (scripts/test.sh or scripts/demo.sh make one). Prints a Markdown table; each row's run stays in OUT_DIR, and a row whose run is
# complete is not run again.
set -euo pipefail
usage() { sed -n '2,7p' "$0"; exit 2; }
paper='' jobs=1 gpus=0
while :; do
    case "${1:-}" in
        --paper) paper=1; shift ;;
        --jobs) jobs=${2:-}; shift 2 || usage ;;
        --gpus) gpus=${2:-}; shift 2 || usage ;;
        *) break ;;
    esac
done
[ $# -ge 3 ] || usage
model=$1 text=$2 out=$3; shift 3
root=$(cd "$(dirname "$0")/.." && pwd)
bin=$root/build/cpu/bin; [ -x "$root/build/cuda/bin/train_lolcats" ] && bin=$root/build/cuda/bin
mkdir -p "$out"

# name | what | options
rows=(
    "hybrid|hybrid: Hedgehog maps, window, both stages|"
    "no_transfer|the same without attention transfer|--stages finetune"
    "linear|pure linear attention, Hedgehog maps|--attention linear"
    "t2r|hybrid, T2R maps|--feature-map t2r"
)
if [ -n "$paper" ]; then
    layers=$(sed -n 's/.*"num_hidden_layers": *\([0-9]*\).*/\1/p' "$model/config.json")
    half=$(seq -s, 0 $((layers / 2 - 1)))
    rows=(
        "control|softmax attention, the same LoRA (control)|--attention softmax --stages finetune"
        "hedgehog_swap|Hedgehog: swap and finetune|--attention linear --stages finetune"
        "hedgehog_transfer|Hedgehog: + transfer|--attention linear"
        "hybrid|Hedgehog: + window and transfer (LoLCATs)|"
        "hedgehog_window|Hedgehog: + window, no transfer|--stages finetune"
        "t2r_swap|T2R: swap and finetune|--attention linear --feature-map t2r --stages finetune"
        "t2r_transfer|T2R: + transfer|--attention linear --feature-map t2r"
        "t2r_hybrid|T2R: + window and transfer|--feature-map t2r"
        "t2r_window|T2R: + window, no transfer|--feature-map t2r --stages finetune"
        "rank4|LoLCATs, LoRA rank 4|--lora-rank 4 --lora-alpha 8"
        "rank32|LoLCATs, LoRA rank 32|--lora-rank 32 --lora-alpha 64"
        "window16|LoLCATs, window 16|--window-size 16"
        "window128|LoLCATs, window 128|--window-size 128"
        "sliding|LoLCATs, sliding window 64|--window-kind sliding"
        "kv_maps|LoLCATs, key maps per KV head|--feature-map-heads kv"
        "half_softmax|LoLCATs, first half of the layers kept softmax|--softmax-layers $half"
    )
fi

# number KEY FILE: the value of a top-level number in a summary
number() { sed -n "s/^ *\"$1\": *\([-0-9.e+]*\),\{0,1\}$/\1/p" "$2" | head -n 1; }

run() {  # run NAME options...
    local name=$1; shift
    [ -e "$out/$name/summary.json" ] && return
    "$bin/train_lolcats" linearize --model "$model" --data "$text" --out "$out/$name" --resume auto "$@" >"$out/$name.log" 2>&1 ||
        { echo "row $name failed:" >&2; tail -n 3 "$out/$name.log" >&2; }
}
cell() {  # cell KEY FILE: two digits, or a dash where the run has no such number
    local value; value=$(number "$1" "$2")
    if [ -n "$value" ]; then printf '%.2f' "$value"; else printf -- '-'; fi
}

turn=0
for row in "${rows[@]}"; do
    IFS='|' read -r name _ options <<<"$row"
    [ "$gpus" -gt 0 ] && options+=" --device cuda:$((turn++ % gpus))"
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    # shellcheck disable=SC2086
    run "$name" "$@" $options &
done
wait

echo "| attention | teacher | swapped | transferred | finetuned | window only | linear only |"
echo "| --- | --- | --- | --- | --- | --- | --- |"
for row in "${rows[@]}"; do
    IFS='|' read -r name what _ <<<"$row"
    summary=$out/$name/summary.json
    [ -e "$summary" ] || { echo "| $what | failed | | | | | |"; continue; }
    line="| $what |"
    for key in teacher_ppl swapped_ppl transferred_ppl finetuned_ppl window_only_ppl linear_only_ppl; do
        line+=" $(cell "$key" "$summary") |"
    done
    echo "$line"
done
