"""Files that hold weights or training state: the released ones, our own, and safetensors."""

from ipt_fast.checkpoint.load import load_checkpoint
from ipt_fast.checkpoint.read import FORMAT, CheckpointError
from ipt_fast.checkpoint.resume import generator_states, restore_generators, restore_state
from ipt_fast.checkpoint.tasks import keep_one_task, nearest_task
from ipt_fast.checkpoint.training_state import (
    LATEST,
    PREVIOUS,
    load_training_state,
    newest_good,
    save_checkpoint,
)
from ipt_fast.checkpoint.write import LAYOUTS, Layout, save_network

__all__ = [
    "FORMAT",
    "LATEST",
    "LAYOUTS",
    "PREVIOUS",
    "CheckpointError",
    "Layout",
    "generator_states",
    "keep_one_task",
    "load_checkpoint",
    "load_training_state",
    "nearest_task",
    "newest_good",
    "restore_generators",
    "restore_state",
    "save_checkpoint",
    "save_network",
]
