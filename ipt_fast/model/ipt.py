"""IPT: heads, body and tails (``model/ipt.py`` of the reference code, https://github.com/huawei-noah/Pretrained-IPT)."""

from collections.abc import Iterator
from typing import Literal, overload

import torch
from torch import Tensor, nn

from ipt_fast.acceleration import accelerate
from ipt_fast.model.blocks import DecoderLayer, EncoderLayer
from ipt_fast.model.body import Body
from ipt_fast.model.config import IPTConfig
from ipt_fast.tasks import get_task

# Of DIV2K, as in EDSR; times 255 at use.
RGB_MEAN = (0.4488, 0.4371, 0.4040)


class MeanShift(nn.Module):
    """x + sign * 255 * mean for each colour, frozen. Kept in the shape of the released 1x1 convolution."""

    def __init__(self, sign: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3).view(3, 3, 1, 1), requires_grad=False)
        self.bias = nn.Parameter(sign * 255.0 * torch.tensor(RGB_MEAN), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 3, H, W]; never in less than float32, where a level of 255 would be rounded."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        gain = self.weight.diagonal().view(1, 3, 1, 1).to(dtype)
        return x.to(dtype) * gain + self.bias.view(1, 3, 1, 1).to(dtype)


class ResBlock(nn.Module):
    """conv5x5, ReLU, conv5x5, + x."""

    def __init__(self, n_feats: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(n_feats, n_feats, 5, padding=2), nn.ReLU(), nn.Conv2d(n_feats, n_feats, 5, padding=2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [B, n_feats, S, S] -> the same shape."""
        return self.body(x) + x


def make_head(n_feats: int) -> nn.Sequential:
    """Image [B, 3, S, S] -> features [B, n_feats, S, S]."""
    return nn.Sequential(nn.Conv2d(3, n_feats, 3, padding=1), ResBlock(n_feats), ResBlock(n_feats))


def make_tail(n_feats: int, scale: int) -> nn.Sequential:
    """Features [B, n_feats, S, S] -> image [B, 3, scale S, scale S].

    No activation: the whole tail is linear, and runs as one convolution, in training too.
    """
    stages: list[nn.Module] = []
    for r in {1: (), 2: (2,), 3: (3,), 4: (2, 2)}[scale]:
        stages += [nn.Conv2d(n_feats, n_feats * r * r, 3, padding=1), nn.PixelShuffle(r)]
    tail = nn.Sequential(nn.Sequential(*stages), nn.Conv2d(n_feats, 3, 3, padding=1))
    accelerate(tail)
    return tail


class IPT(nn.Module):
    """The Image Processing Transformer.

    ``model(x, task)``: x [B, 3, S, S] float, pixels 0..255, S = config.patch_size -> [B, 3, rS, rS] with the task's
    scale r; not clamped; float32 or wider whatever the weights' dtype. ``return_features=True`` adds the features of
    the contrastive loss [B, N, D]. The state dict has the released keys and shapes.

    Each layer is drawn on its own. (The reference deep-copies one layer twelve times, so that all layers of its
    encoder, and of its decoder, start equal.)
    """

    def __init__(self, config: IPTConfig | None = None):
        super().__init__()
        self.config = config = config or IPTConfig()
        self.sub_mean = MeanShift(-1)
        self.add_mean = MeanShift(1)
        self.head = nn.ModuleList(make_head(config.n_feats) for _ in config.tasks)
        self.body = Body(config)
        self.tail = nn.ModuleList(make_tail(config.n_feats, get_task(task).scale) for task in config.tasks)

    def set_recompute(self, on: bool) -> None:
        """Whether the backward makes the hidden layers again, as it does at first, or they are kept for it.

        Gradients are the same. To make them again is a twelfth of a step's operations; to keep them takes a third to
        a half as much memory again as all else that is kept (bench/notes/block.md).
        """
        for module in self.modules():
            if isinstance(module, Body | EncoderLayer | DecoderLayer):
                module.recompute = on

    def task_index(self, task: str | int) -> int:
        """Index of head, tail and embedding of a task, given by name or index.

        Raises:
            ValueError: the network has no such task.
        """
        names = self.config.tasks
        if isinstance(task, int) and 0 <= task < len(names):
            return task
        if task in names:
            return names.index(str(task))
        raise ValueError(f"IPT: task {task!r} is not in this network, which has {', '.join(names)}")

    def parameters_of(self, task: str | int) -> Iterator[nn.Parameter]:
        """Return the parameters that a batch of this task uses: all but the heads and tails of other tasks.

        They come in the order of ``parameters()``.
        """
        index = self.task_index(task)
        unused = [part for parts in (self.head, self.tail) for i, part in enumerate(parts) if i != index]
        others = {p for part in unused for p in part.parameters()}
        return (p for p in self.parameters() if p not in others)

    @overload
    def forward(self, x: Tensor, task: str | int, return_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, task: str | int, return_features: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, task: str | int, return_features: bool = False):
        """See the class. Raises ValueError on a wrong shape, dtype or task."""
        size = self.config.patch_size
        if x.ndim != 4 or x.shape[1:] != (3, size, size):
            raise ValueError(
                f"IPT: needs x of shape [B, 3, {size}, {size}], got {list(x.shape)}; "
                "use ipt_fast.restore for images of other sizes"
            )
        if not x.is_floating_point():
            raise ValueError(f"IPT: needs a floating-point x with pixels 0..255, got {x.dtype}; use x.float()")
        index = self.task_index(task)
        x = self.sub_mean(x).to(next(self.head[index].parameters()).dtype)
        x = self.head[index](x)  # [B, n_feats, S, S]
        y, feats = self.body(x, index)
        y = self.add_mean(self.tail[index](y + x))  # [B, 3, rS, rS]
        return (y, feats) if return_features else y
