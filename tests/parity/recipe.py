"""What models.py and device.py both do with a model."""

LENGTH = 96  # tokens whose logits are compared: longer than the windows
NEW = 24  # tokens of a greedy continuation
TOLERANCE = 1e-4  # of f32 logits, whose size is about 1 to 5
NARROW = 0.05  # of bf16 logits, relative to the largest: some thirty roundings to 8 bits

# A few steps of both stages.
LINEARIZE = (
    "--data-limit 1 --data-format text --seq-len 32 --validation-chunks 2 --transfer-steps 3 --finetune-steps 8 --accumulate 2 "
    "--lora-rank 2 --finetune-lr 0.005 --eval-every 0 --save-every 0"
).split()
ATTENTIONS = {
    "terraced": "--attention hybrid --window-kind terraced --window-size 8 --softmax-layers 1".split(),
    "sliding": "--attention hybrid --window-kind sliding --window-size 8".split(),
    "linear": "--attention linear".split(),
    "softmax": "--attention softmax --stages finetune".split(),
}
