"""The network that a step calls, compiled: whole, or encoder and decoder layers one by one.

All layers of a kind run the same code, whatever the task, where a whole network is compiled anew for every task. Hooks
on a layer stay outside of its code, and parameters keep their names.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ipt_fast.engine.config import TrainConfig
from ipt_fast.model import IPT


def compiled(network: nn.Module, model: IPT, config: TrainConfig) -> Callable[..., Any]:
    """Return what is to be called in the place of ``network``, which is the model or calls it."""
    if config.compile is True:
        return torch.compile(network)
    if not config.compile:
        return network
    for layer in (*model.body.encoder.layers, *model.body.decoder.layers):
        layer.compile()

    def call(*args: Any, **options: Any) -> Any:
        # Layers that share code may differ in the hooks on their parts: the compiler does not look at these by default.
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
            return network(*args, **options)

    return call
