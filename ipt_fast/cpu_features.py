"""What the processor can do, asked when it matters and never at import."""

import torch


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 faster than float32 (AVX512-BF16 or AMX)."""
    return _has("_is_avx512_bf16_supported") or has_amx()


def has_amx() -> bool:
    """Whether this CPU has tile instructions."""
    return _has("_is_amx_tile_supported")


def _has(probe: str) -> bool:
    return getattr(torch.cpu, probe, bool)()
