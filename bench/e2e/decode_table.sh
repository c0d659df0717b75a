#!/usr/bin/env bash
# Decoding against batch and context: the softmax model and its linearizations, tokens drawn on the device.
#   bench/e2e/decode_table.sh RESULTS.jsonl [MODEL_CONFIG [DEVICE]]
# Appends one JSON line a case; what does not fit into memory is said and left out. Then: bench plot RESULTS.jsonl --svg FILE.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,4p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
results=$1 model=${2:-bench/e2e/llama-3-8b.json} device=${3:-cuda}
bench=build/cuda/bin/bench; [ -x $bench ] || bench=build/cpu/bin/bench
batches=${BATCHES:-1 16 64 256} contexts=${CONTEXTS:-1024 4096 16384 65536}

run() {  # attention, batch, context, more
    "$bench" e2e --model-config "$model" --stage decode --device "$device" --attention "$1" --batch "$2" --context "$3" \
        --new-tokens 96 --warmup 16 --sample greedy --out "$results" "${@:4}" || echo "left out: $*"
}

for context in $contexts; do
    for batch in $batches; do
        run softmax "$batch" "$context"
        run hybrid "$batch" "$context"
        run hybrid "$batch" "$context" --state-dtype bf16
    done
done
