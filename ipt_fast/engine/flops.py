"""FLOPs of a training step by arithmetic, and the peak of the device that they are a share of (MFU).

Counted is the network as written: nothing for the loss, recomputation, or what a faster form of a layer saves.
"""

import torch

from ipt_fast.engine.config import TrainConfig
from ipt_fast.gpus import find_gpu
from ipt_fast.model import IPTConfig
from ipt_fast.model.tail import SCALES
from ipt_fast.tasks import get_task

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def forward_flops(model: IPTConfig, task: str) -> int:
    """Return the FLOPs of one patch's forward pass."""
    D, N, C, S = model.embed_dim, model.num_tokens, model.n_feats, model.patch_size**2
    ffn = 4 * N * D * model.ffn_ratio * D
    attention = 8 * N * D * D + 4 * N * N * D  # projections; scores and their sums
    layers = model.num_layers * (3 * attention + 2 * ffn)  # one attention in an encoder layer, two in a decoder layer
    ends = model.mlp * (2 * N * D * D + ffn)
    head = 2 * S * (9 * 3 * C + 4 * 25 * C * C)
    tail = 0
    for r in SCALES[get_task(task).scale]:
        tail += 2 * S * 9 * C * C * r * r
        S *= r * r
    return layers + ends + head + tail + 2 * S * 9 * C * 3


def step_flops(model: IPTConfig, task: str, patches: int) -> int:
    """Return the FLOPs of a step: the backward is two forwards."""
    return 3 * forward_flops(model, task) * patches


def peak_flops(config: TrainConfig, precision: str, device: torch.device) -> float | None:
    """Return the FLOP/s of a large GEMM: those that ``peak_tflops`` states, or of a GPU that is known; else None."""
    if config.peak_tflops:
        return config.peak_tflops * 1e12
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return gpu.gemm.get(_DTYPES[precision]) if gpu is not None and not config.tf32 else None
