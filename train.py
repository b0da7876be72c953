"""Pre-train or fine-tune: ``python train.py --help``; several GPUs: ``torchrun --nproc_per_node=8 train.py ...``."""

import sys

from ipt_fast.engine.run import main

if __name__ == "__main__":
    sys.exit(main())
