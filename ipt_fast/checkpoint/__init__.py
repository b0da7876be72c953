"""Files that hold weights or training state: the released ones, our own, and safetensors."""

from ipt_fast.checkpoint.errors import CheckpointError
from ipt_fast.checkpoint.load import keep_one_task, load_checkpoint, nearest_task
from ipt_fast.checkpoint.pretrained import PRETRAINED
from ipt_fast.checkpoint.read import FORMAT, check_weights, read_notes
from ipt_fast.checkpoint.training_state import (
    BEST,
    LATEST,
    PREVIOUS,
    generator_states,
    keep_best,
    load_training_state,
    newest_good,
    restore_generators,
    save_checkpoint,
)
from ipt_fast.checkpoint.write import LAYOUTS, Layout, save_network

__all__ = [
    "BEST", "FORMAT", "LATEST", "LAYOUTS", "PRETRAINED", "PREVIOUS", "CheckpointError", "Layout", "check_weights",
    "generator_states", "keep_best", "keep_one_task", "load_checkpoint", "load_training_state", "nearest_task",
    "newest_good", "read_notes", "restore_generators", "save_checkpoint", "save_network",
]  # fmt: skip
