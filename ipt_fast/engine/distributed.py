"""Several ranks: the process group, and the mean of the gradients over it.

One task a batch means that most heads and tails have no gradient in a step. Adam must leave those alone, which it does
for a gradient of None; DistributedDataParallel would have to search the graph for them in every step. Here the unused
ones are known from the task, so only the used ones are exchanged, in fixed buckets, while backward is still running.
"""

import os
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

# Here, before any process group: imported later it keeps the group alive, and the process ends with SIGABRT.
import torch.distributed.nn
from torch import Tensor, nn

from ipt_fast.model import IPT

_BUCKET_BYTES = 25 * 2**20
# The other ranks wait while rank 0 checks every image of a new data folder.
_TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class DistInfo:
    """This process among all of them."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Return True on the rank that writes files and logs."""
        return self.rank == 0


def init_distributed() -> DistInfo:
    """Join the ranks that ``torchrun`` describes in the environment; one rank without it. gloo on CPU, nccl on GPUs.

    Raises:
        RuntimeError: more ranks on this machine than GPUs; or several machines with restarts, and ranks that would meet
            in a store that outlives them.
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
        _join("nccl" if cuda else "gloo", device if cuda else None)
    return DistInfo(dist.get_rank(), dist.get_world_size(), device)


def _join(backend: str, device: torch.device | None) -> None:
    """Join the process group, under keys of this start of the ranks.

    Ranks leave their addresses in a store. That of torchrun's agent lives on when ``--max-restarts`` starts them again:
    they would call the addresses of dead ranks, or wait for them. The agents of several machines count their restarts
    apart, so there the count makes no key.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if shared and restarts and int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise RuntimeError(
            f"--max-restarts={restarts} on several machines: ranks that are started again would find the addresses of "
            "dead ones; start torchrun with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment of every machine"
        )
    store, rank, world_size = next(iter(dist.rendezvous("env://", timeout=_TIMEOUT)))
    store.set_timeout(_TIMEOUT)
    if shared:
        store = dist.PrefixStore(os.environ["TORCHELASTIC_RESTART_COUNT"], store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT, device_id=device)


def destroy_process_group() -> None:
    """End the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class GradientAllReduce:
    """Averages the gradients of the parameters that a step uses over all ranks, while backward is running.

    ``begin(task)`` before backward, ``finish()`` after it. Buckets of parameters are sent in the order in which
    backward completes them, the same on all ranks and in every run, so that a resumed run is bit-equal.
    """

    def __init__(self, model: IPT, world_size: int):
        self.model, self.world_size = model, world_size
        self._buckets_of: dict[int, list[list[nn.Parameter]]] = {}  # per task
        self._buckets: list[list[nn.Parameter]] = []  # of the step
        self._bucket_of: dict[nn.Parameter, int] = {}
        self._pending: list[int] = []  # per bucket, the gradients that are not there yet
        self._next = 0  # bucket to send
        # Buckets on their way: gradients, the flat copy that is summed over the ranks, the running collective.
        self._sent: list[tuple[list[Tensor], Tensor, dist.Work]] = []
        if world_size > 1:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(self._on_grad)

    def begin(self, task: int) -> None:
        """Prepare for the backward of a batch of this task."""
        if self.world_size == 1:
            return
        if task not in self._buckets_of:
            used = [p for p in self.model.parameters_of(task) if p.requires_grad]
            self._buckets_of[task] = _split(used[::-1])
        self._buckets = self._buckets_of[task]
        self._bucket_of = {p: i for i, bucket in enumerate(self._buckets) for p in bucket}
        self._pending = [len(bucket) for bucket in self._buckets]
        self._next, self._sent = 0, []

    def finish(self) -> None:
        """Send what is left, wait, and put the means into ``grad``."""
        if self.world_size == 1:
            return
        while self._next < len(self._buckets):
            self._send()
        for grads, flat, work in self._sent:
            work.wait()
            flat /= self.world_size
            parts = flat.split([grad.numel() for grad in grads])
            torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])

    def _on_grad(self, parameter: nn.Parameter) -> None:
        if parameter in self._bucket_of:
            self._pending[self._bucket_of[parameter]] -= 1
            while self._next < len(self._buckets) and self._pending[self._next] == 0:
                self._send()

    def _send(self) -> None:
        """Begin the all-reduce of the next bucket. What the graph did not reach has no gradient on any rank."""
        grads = [p.grad for p in self._buckets[self._next] if p.grad is not None]
        self._next += 1
        if grads:
            flat = torch.cat([grad.reshape(-1) for grad in grads])
            self._sent.append((grads, flat, dist.all_reduce(flat, async_op=True)))


def _split(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        size += parameter.nbytes
        if not buckets or size > _BUCKET_BYTES:
            buckets.append([])
            size = parameter.nbytes
        buckets[-1].append(parameter)
    return buckets


def broadcast_parameters(model: nn.Module, world_size: int) -> None:
    """Give rank 0's weights and buffers to all ranks."""
    if world_size > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def any_rank(flag: bool, dist_info: DistInfo) -> bool:
    """Return whether the flag is set on any rank. All ranks must call."""
    if dist_info.world_size > 1:
        count = torch.tensor(float(flag), device=dist_info.device)
        dist.all_reduce(count)
        flag = bool(count)
    return flag


def lost_rank(error: RuntimeError) -> bool:
    """Return whether an error of a collective says that another rank is gone. Those of gloo have no class."""
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in ("by peer", "Broken pipe"))
