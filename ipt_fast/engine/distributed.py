"""Several ranks: the process group, and the mean of the gradients over it.

One task a batch means that most heads and tails have no gradient in a step. Adam must leave those alone, which it does
for a gradient of None; DistributedDataParallel would have to search the graph for them in every step. Here the unused
ones are known from the task, so only the used ones are exchanged, in fixed groups, while backward is still running.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

_BUCKET_BYTES = 25 * 2**20
# The other ranks wait while rank 0 checks every image of a new data folder.
_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class DistInfo:
    """This process among all of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """True on the rank that writes files and speaks."""
        return self.rank == 0


def init_distributed() -> DistInfo:
    """The world that ``torchrun`` describes in the environment; a world of one without it. gloo on CPU, nccl on GPUs.

    Raises:
        RuntimeError: more ranks on this machine than GPUs.
    """
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return DistInfo(device=torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda and local >= torch.cuda.device_count():
        raise RuntimeError(
            f"rank {local} of this machine has no GPU of its own: {torch.cuda.device_count()} found; start torchrun "
            f"with --nproc_per_node={torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=_TIMEOUT, device_id=device if cuda else None)
    return DistInfo(dist.get_rank(), dist.get_world_size(), device)


def destroy_process_group() -> None:
    """End the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class GradientAllReduce:
    """Averages the gradients of the parameters that a step uses over all ranks.

    ``begin(task)`` before backward, ``finish()`` after it. Groups of parameters are sent in the order in which backward
    completes them, the same on all ranks and in every run, so that a resumed run is bit-equal.
    """

    def __init__(self, model: nn.Module, world_size: int):
        self.world_size = world_size
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.plans: dict[int, list[list[nn.Parameter]]] = {}
        self.buckets: list[list[nn.Parameter]] = []
        self.place: dict[nn.Parameter, int] = {}
        self.waiting: list[int] = []  # per bucket, parameters whose gradient is not there yet
        self.sent: list[tuple[list[nn.Parameter], Tensor, dist.Work | None]] = []
        if world_size > 1:
            for _, parameter in self.named:
                parameter.register_post_accumulate_grad_hook(self._ready)

    def begin(self, task: int) -> None:
        """Backward of a batch of this task comes next."""
        if self.world_size == 1:
            return
        if task not in self.plans:
            used = [p for name, p in reversed(self.named) if _uses(name, task)]
            self.plans[task] = list(_split(used))
        self.buckets = self.plans[task]
        self.place = {p: i for i, bucket in enumerate(self.buckets) for p in bucket}
        self.waiting = [len(bucket) for bucket in self.buckets]
        self.sent = []

    def finish(self) -> None:
        """Send what is left, wait, and put the means into ``grad``."""
        if self.world_size == 1:
            return
        while len(self.sent) < len(self.buckets):
            self._send()
        for parameters, flat, work in self.sent:
            if work is None:
                continue
            work.wait()
            flat /= self.world_size
            grads = [p.grad for p in parameters if p.grad is not None]
            parts = flat.split([grad.numel() for grad in grads])
            torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])

    def _ready(self, parameter: nn.Parameter) -> None:
        if parameter not in self.place:
            return
        self.waiting[self.place[parameter]] -= 1
        while len(self.sent) < len(self.buckets) and self.waiting[len(self.sent)] == 0:
            self._send()

    def _send(self) -> None:
        """Exchange the next bucket. A parameter that the graph did not reach has no gradient on any rank."""
        parameters = [p for p in self.buckets[len(self.sent)] if p.grad is not None]
        if not parameters:
            self.sent.append(([], torch.empty(0), None))
            return
        flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
        self.sent.append((parameters, flat, dist.all_reduce(flat, async_op=True)))


def _uses(name: str, task: int) -> bool:
    part, _, rest = name.partition(".")
    return part not in ("head", "tail") or rest.startswith(f"{task}.")


def _split(parameters: Iterable[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and size + parameter.nbytes > _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket


def broadcast_parameters(model: nn.Module, world_size: int) -> None:
    """Rank 0's weights and buffers to all ranks."""
    if world_size > 1:
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, 0)
