"""The network."""

from ipt_fast.model.config import PRESETS, IPTConfig, preset
from ipt_fast.model.ipt import IPT

__all__ = ["IPT", "PRESETS", "IPTConfig", "preset"]
