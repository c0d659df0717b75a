#!/usr/bin/env bash
# Decoding against context: the softmax model and its linearization, tokens drawn on the device.
#   bench/e2e/decode_table.sh RESULTS.jsonl [MODEL_CONFIG [DEVICE]]
# For each context both models with one sequence, both with the batch at which keys and values fill the card, and the linearized one
# with the batch that is best for it. Then, with LONG=1, 4096 new tokens after prompts of 128. Appends one JSON line a case; what does not
# fit into memory is said and left out. Then: bench plot RESULTS.jsonl --svg FILE.
#   CASES    context:batch of the softmax model that fills a card of 141 GB with the keys and values of Llama-3-8B
#   BEST     batch of the linearized model, states in bf16
# On an H200 some 5 s a case: 100 s; LONG adds 18, 50 and 180 s.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,9p' "$0"; exit 2; }
cd "$(dirname "$0")/../.."
results=$1 model=${2:-bench/e2e/llama-3-8b.json} device=${3:-cuda}
bench=build/cuda/bin/bench; [ -x $bench ] || bench=build/cpu/bin/bench
cases=${CASES-1024:768 4096:200 16384:52 65536:13} best=${BEST:-1024}

run() {  # attention, batch, more
    "$bench" e2e --model-config "$model" --stage decode --device "$device" --warmup 16 --sample greedy --out "$results" \
        --attention "$1" --batch "$2" "${@:3}" || echo "left out: $*"
}

for case in $cases; do
    at="--context ${case%:*} --new-tokens 96" full=${case#*:}
    for batch in 1 "$full"; do
        # shellcheck disable=SC2086
        run softmax "$batch" $at
        # shellcheck disable=SC2086
        run hybrid "$batch" $at
    done
    # shellcheck disable=SC2086
    run hybrid "$best" $at --state-dtype bf16
done
[ "${LONG:-0}" = 1 ] || exit 0
for batch in 1 256; do run hybrid "$batch" --prompt 128 --new-tokens 4096; done
run hybrid "$best" --prompt 128 --new-tokens 4096 --state-dtype bf16
