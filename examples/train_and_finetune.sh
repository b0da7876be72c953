#!/usr/bin/env bash
# Train on your photos, go on where it stopped, fine-tune on pairs, score. Usage: train_and_finetune.sh PHOTOS GT LQ OUT
# The settings after --set make it a matter of seconds; leave them out for a real run, and choose --preset base.
set -euo pipefail
photos=$1 gt=$2 lq=$3 out=$4

python -m ipt_fast.cli index "$photos"

tiny=(steps=4 batch_size=2 warmup_steps=0 model.n_feats=4 model.num_layers=1 workers=0)
python train.py --data "$photos" --preset tiny --out "$out/pretrain" --set "${tiny[@]}"
python train.py --data "$photos" --preset tiny --out "$out/pretrain" --resume auto --set "${tiny[@]}" steps=6

python -m ipt_fast.cli finetune deblur --init "$out/pretrain/checkpoint.pt" --pairs "$gt" "$lq" --out "$out/deblur" \
    --set steps=2 batch_size=2 workers=0

python -m ipt_fast.cli restore "$lq" -o "$out/restored" --task deblur --checkpoint "$out/deblur/checkpoint.pt"
