#!/usr/bin/env bash
# One training on two CPU ranks. The batch is split, the result is that of one rank, to rounding. Usage: two_ranks.sh PHOTOS OUT
set -euo pipefail
OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node=2 train.py \
    --data "$1" --preset tiny --out "$2" \
    --set steps=3 batch_size=4 warmup_steps=0 model.n_feats=4 model.num_layers=1 workers=0
