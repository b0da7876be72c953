"""What a person does with a trained network: load it, restore images."""

from ipt_fast.checkpoint import load_checkpoint
from ipt_fast.inference.prepare import prepare_for_inference
from ipt_fast.inference.restoration import restore

__all__ = ["load_checkpoint", "prepare_for_inference", "restore"]
