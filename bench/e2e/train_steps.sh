#!/usr/bin/env bash
# Whole training steps of both stages on a real model: tokens per second and the share of the time inside GEMM.
#   bench/e2e/train_steps.sh MODEL_DIR TEXT_FILE RESULTS.jsonl [SEQ_LEN [BATCH [STEPS]]]
# Appends one JSON line a stage. The median step counts; the first steps warm the caches.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
model=$1 text=$2 results=$3 seq=${4:-512} batch=${5:-4} steps=${6:-8}
bin=build/cpu/bin; [ -x build/cuda/bin/train_lolcats ] && bin=build/cuda/bin
run=$(mktemp -d); trap 'rm -rf "$run"' EXIT
command="train_lolcats linearize --seq-len $seq --batch-size $batch --accumulate 1 --transfer-steps $steps --finetune-steps $steps --eval-every 0 --validation-chunks 1 --data-limit 4 --log-every 0 --profile"
# shellcheck disable=SC2086
"$bin/"${command} --model "$model" --data "$text" --out "$run/run" 2>"$run/log"

for stage in transfer finetune; do
    rate=$(grep "\"stage\":\"$stage\"" "$run/run/metrics.jsonl" | grep -o '"tokens_per_second":[0-9.]*' | cut -d: -f2 | sort -g |
           awk '{v[NR]=$1} END {print v[int((NR+1)/2)]}')
    share=$(sed -n "s/^$stage: .* steps of this process, \([0-9.]*\) % of it in gemm.*/\1/p" "$run/log")
    printf '{"bench":"e2e","stage":"%s","model":"%s","seq_len":%d,"batch":%d,"steps":%d,"dtype":"f32","tokens_per_second_median":%s,"gemm_share_percent":%s,"threads":%d,"cpu":"%s","load_average":"%s","commit":"%s","utc":"%s","cmd":"%s"}\n' \
        "$stage" "$(basename "$model")" "$seq" "$batch" "$steps" "$rate" "$share" "$(nproc)" \
        "$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -n 1)" "$(cut -d' ' -f1 /proc/loadavg)" \
        "$(git describe --always --dirty 2>/dev/null || echo unknown)" "$(date -u +%FT%TZ)" "$command" | tee -a "$results"
done
