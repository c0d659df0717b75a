#!/usr/bin/env bash
# How assets/demo was made: a tokenizer and a small Llama trained on a text, then a corpus sampled from that Llama.
#   scripts/make_demo_assets.sh TEXT_FILE OUT_DIR      needs a build; the training takes 10 seconds on an H100, half an hour on two cores
# TEXT_FILE: stories separated by <|endoftext|> (the repository's assets: a 2 MiB sample of TinyStories).
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 2 ] || { sed -n '2,4p' "$0"; exit 2; }
text=$1 out=$2
bin=build/cpu/bin; [ -x build/cuda/bin/train_lolcats ] && bin=build/cuda/bin
mkdir -p "$out"

"$bin/train_lolcats" train-tokenizer --text "$text" --vocab-size 2048 --out "$out/tokenizer.json"
"$bin/train_lolcats" pretrain --model-config assets/demo/model-config.json --tokenizer "$out/tokenizer.json" --data "$text" \
    --seq-len 256 --batch-size 16 --steps 1000 --lr 3e-3 --eval-every 100 --log-every 100 --dtype f32 --out "$out/pretrain" --resume auto
mkdir -p "$out/teacher"
cp "$out"/pretrain/{config.json,generation_config.json,model.safetensors,tokenizer.json} "$out/teacher/"

# One story a seed, from an empty prompt (BOS only).
for seed in $(seq 1 400); do
    "$bin/gen_lolcats" --model "$out/teacher" --prompt "" --max-new-tokens 400 --temperature 0.8 --seed "$seed"
    printf '\n<|endoftext|>\n'
done >"$out/stories.txt"
