"""IPT: heads, body and tails (``model/ipt.py`` of the reference code, https://github.com/huawei-noah/Pretrained-IPT)."""

import math
from collections.abc import Iterator
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from ipt_fast.arguments import checked
from ipt_fast.model.config import IPTConfig
from ipt_fast.model.layers import Decoder, DecoderLayer, Encoder, EncoderLayer, FeedForward, MLPHead
from ipt_fast.model.tail import Tail
from ipt_fast.ops._common import check_dense, check_type
from ipt_fast.tasks import get_task

# Of DIV2K, as in EDSR; times 255 at use.
RGB_MEAN = (0.4488, 0.4371, 0.4040)


class MeanShift(nn.Module):
    """x + sign * 255 * mean for each colour, frozen. Kept in the shape of the released 1x1 convolution."""

    def __init__(self, sign: int):
        super().__init__()
        self.sign = sign
        self.weight = nn.Parameter(torch.empty(3, 3, 1, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(3), requires_grad=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the mean colour."""
        nn.init.dirac_(self.weight)
        for i, mean in enumerate(RGB_MEAN):  # no new tensor, which would follow torch's defaults
            self.bias[i] = float(np.float32(255.0 * self.sign) * np.float32(mean))

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
    """Return image [B, 3, S, S] -> features [B, n_feats, S, S]."""
    return nn.Sequential(nn.Conv2d(3, n_feats, 3, padding=1), ResBlock(n_feats), ResBlock(n_feats))


def to_tokens(x: Tensor, p: int) -> Tensor:
    """Cut features [B, C, S, S] to [B, N, C p p]: row-major tokens, channel-major inside (c p p + kh p + kw)."""
    B, C, height, width = x.shape
    x = x.reshape(B, C, height // p, p, width // p, p)  # [B, C, rows, p, cols, p]
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, (height // p) * (width // p), C * p * p)  # [B, N, D]


def to_features(tokens: Tensor, p: int, size: int) -> Tensor:
    """Invert ``to_tokens`` for a square of ``size`` pixels."""
    B, _, D = tokens.shape
    x = tokens.reshape(B, size // p, size // p, D // (p * p), p, p)  # [B, rows, cols, C, p, p]
    return x.permute(0, 3, 1, 4, 2, 5).reshape(B, D // (p * p), size, size)  # [B, C, S, S]


class PositionEncoding(nn.Module):
    """A learned vector for each token. The buffer of indices is in the released files, so it is kept."""

    position_ids: Tensor

    def __init__(self, num_tokens: int, dim: int):
        super().__init__()
        self.pe = nn.Embedding(num_tokens, dim)
        self.register_buffer("position_ids", torch.empty(1, num_tokens, dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the indices."""
        self.position_ids.copy_(torch.arange(self.position_ids.shape[1], device=self.position_ids.device)[None])


class Body(nn.Module):
    """The transformer between head and tail (``model/ipt.py``, VisionTransformer, of the reference code)."""

    def __init__(self, config: IPTConfig):
        super().__init__()
        D, N, ffn_dim = config.embed_dim, config.num_tokens, config.ffn_ratio * config.embed_dim
        self.config = config
        if config.mlp:
            self.linear_encoding = nn.Linear(D, D)
            self.mlp_head = MLPHead(D, ffn_dim)
        if config.task_embed:
            self.query_embed = nn.Embedding(len(config.tasks), N * D)
        if config.position_embed:
            self.position_encoding = PositionEncoding(N, D)
        self.encoder = Encoder(D, config.num_heads, ffn_dim, config.num_layers)
        self.decoder = Decoder(D, config.num_heads, ffn_dim, config.num_layers, config.memory_norm)

    def task_embedding(self, index: int) -> Tensor | None:
        """Return E_t [N, D], or None where the network has none."""
        if not self.config.task_embed:
            return None
        return self.query_embed.weight[index].view(self.config.num_tokens, self.config.embed_dim)

    def forward(self, x: Tensor, task_index: int) -> tuple[Tensor, Tensor]:
        """Features [B, n_feats, S, S] -> (features of the same shape, contrastive features [B, N, D])."""
        p, size = self.config.patch_dim, self.config.patch_size
        x = to_tokens(x, p)  # [B, N, D]
        if self.config.mlp:
            x = self.linear_encoding(x) + x
        if self.config.position_embed:
            x = x + self.position_encoding.pe.weight.to(x.dtype)
        x = self.encoder(x)
        x = decoded = self.decoder(x, x, self.task_embedding(task_index))
        if self.config.mlp:
            x = self.mlp_head(x) + x
        feats = decoded if self.config.features_from == "decoder" else x
        return to_features(x, p, size), feats


def init_weights(module: nn.Module) -> None:
    """Initialise one module, for ``network.apply``: PyTorch's defaults; the reference's own for attention."""
    if isinstance(module, EncoderLayer):
        nn.init.kaiming_uniform_(module.self_attn.in_proj_weight, a=math.sqrt(5))
    elif isinstance(module, DecoderLayer):
        nn.init.xavier_uniform_(module.self_attn.in_proj_weight)
        nn.init.xavier_uniform_(module.multihead_attn.in_proj_weight)
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()


@checked
class IPT(nn.Module):
    """The Image Processing Transformer.

    ``model(x, task)``: x [B, 3, S, S] float, pixels 0..255, S = config.patch_size -> [B, 3, rS, rS] with the task's
    scale r; not clamped; float32 or wider whatever the weights' dtype. ``return_features=True`` adds the features of
    the contrastive loss [B, N, D]. The state dict has the released keys and shapes.

    It computes from its parameters as they are at the call; ``prepare_for_inference`` gives a faster network for
    parameters that stay. ``torch.compile``, ``torch.export`` and ``torch.jit.trace`` take it; ``torch.jit.script`` and
    ``torch.fx.symbolic_trace`` cannot follow its checks: use ``torch.export``. Layers are initialised independently.
    (The reference deep-copies one layer twelve times, so that all layers of its encoder, and of its decoder, start
    equal.)
    """

    def __init__(self, config: IPTConfig | None = None):
        super().__init__()
        self.config = config = config or IPTConfig()
        device = torch.get_default_device()
        with torch.device("meta"):  # nothing is initialised twice
            self.sub_mean = MeanShift(-1)
            self.add_mean = MeanShift(1)
            self.head = nn.ModuleList(make_head(config.n_feats) for _ in config.tasks)
            self.body = Body(config)
            self.tail = nn.ModuleList(Tail(config.n_feats, get_task(task).scale) for task in config.tasks)
        if device.type != "meta":
            self.to_empty(device=device).apply(init_weights)

    @checked
    def set_recompute(self, on: bool) -> None:
        """Set whether the backward recomputes hidden layers and norms, as it does at first, or they are kept for it.

        Gradients are the same. To recompute them is a twelfth of a step's operations; to keep them takes half to two
        thirds as much memory again as all else that is kept (bench/notes/block.md). Compiled networks recompute the
        norms always. A feed-forward network with a replaced or parametrized layer keeps what its modules keep.
        """
        for module in self.modules():
            if isinstance(module, FeedForward | MLPHead):
                module.recompute = on

    def task_index(self, task: str | int) -> int:
        """Return the index of head, tail and embedding of a task, given by name or index.

        Raises:
            TypeError: neither a name nor an index.
            ValueError: the network has no such task.
        """
        names = self.config.tasks
        if not isinstance(task, (str, int)) or isinstance(task, bool):
            raise TypeError(f"IPT: task must be a name or an index (got {type(task).__name__})")
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
        """See the class. Raises ValueError on a wrong shape, dtype or task, TypeError on what is none."""
        check_input(x, self.config.patch_size)
        check_type("IPT", "return_features", return_features, bool, "True or False")
        index = self.task_index(task)
        x = self.sub_mean(x).to(next(self.head[index].parameters()).dtype)
        x = self.head[index](x)  # [B, n_feats, S, S]
        y, feats = self.body(x, index)
        y = self.add_mean(self.tail[index](y + x))  # [B, 3, rS, rS]
        return (y, feats) if return_features else y


def check_input(x: Tensor, size: int) -> None:
    """Refuse what is no batch of windows [B, 3, size, size] with a ValueError, what is no tensor with a TypeError."""
    check_dense("IPT", "x", x, f"a tensor [B, 3, {size}, {size}]")
    if x.ndim != 4 or x.shape[1:] != (3, size, size):
        raise ValueError(
            f"IPT: needs x of shape [B, 3, {size}, {size}], got {list(x.shape)}; "
            "use ipt_fast.restore for images of other sizes"
        )
    if not x.is_floating_point():
        raise ValueError(f"IPT: needs a floating-point x with pixels 0..255, got {x.dtype}; use x.float()")
