#!/usr/bin/env bash
# The whole method on a small scale, from a bare machine: installs what is missing, builds, linearizes the Llama in
# assets/demo in both stages, prints the perplexities, and lets teacher and linearized model continue the same sentence.
# After the build about two minutes on two cores. The run stays in runs/demo.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

install_missing
choose_preset
configure "$preset" -DBUILD_TESTING=OFF "${architectures[@]}"
build "$preset"
bin=build/$preset/bin model=assets/demo/teacher run=runs/demo
rm -rf "$run"
start=$(date +%s)

say "the teacher: softmax attention, $(du -h "$model/model.safetensors" | cut -f1) of weights trained by this project's pretrain"
"$bin/train_lolcats" perplexity --model "$model" --text assets/demo/stories.txt --seq-len 256 --limit-chars 60000

say "linearize: attention transfer, then LoRA"
"$bin/train_lolcats" linearize --model "$model" --data assets/demo/stories.txt --out "$run" \
    --seq-len 256 --batch-size 8 --accumulate 1 --window-size 16 \
    --transfer-steps 100 --finetune-steps 60 --finetune-lr 1e-3 --eval-every 20 --validation-chunks 16 --log-every 20 --seed 1

number() { sed -n "s/^ *\"$1\": *\([-0-9.e+]*\),\{0,1\}$/\1/p" "$run/summary.json" | head -n 1; }
say "perplexity on held-out stories"
printf '  %-52s %8.2f\n' \
    "teacher (softmax attention)" "$(number teacher_ppl)" \
    "linearized, untrained (swapped)" "$(number swapped_ppl)" \
    "after stage 1, attention transfer" "$(number transferred_ppl)" \
    "after stage 2, LoRA" "$(number finetuned_ppl)" \
    "diagnosis: softmax window alone" "$(number window_only_ppl)" \
    "diagnosis: linear attention alone" "$(number linear_only_ppl)"

prompt="Once upon a time, there was a little dog named Max."
say "the teacher goes on"
"$bin/gen_lolcats" --model "$model" --prompt "$prompt" --max-new-tokens 120 --temperature 0.7 --top-p 0.9 --seed 7 --stats
say "the linearized model goes on (constant memory)"
"$bin/gen_lolcats" --model "$model" --run "$run" --prompt "$prompt" --max-new-tokens 120 --temperature 0.7 --top-p 0.9 --seed 7 --stats
say "done in $(($(date +%s) - start)) s after the build; the run is in $run"
