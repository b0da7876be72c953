"""Several ranks: the process group, and the mean of the gradients over it.

One task a batch means that most heads and tails have no gradient in a step, and Adam leaves those alone. Which ones is
known from the task, so that nothing searches the graph for them: DistributedDataParallel has the body, which every
batch uses and which is 97 % of ``base``, and the head and tail of the task follow it.
"""

import os
import weakref
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Here, before any process group: imported later it keeps the group alive, and the process ends with SIGABRT.
import torch.distributed.nn
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from ipt_fast.engine.config import ConfigError
from ipt_fast.model import IPT

_COMPRESSION = {"bf16": default_hooks.bf16_compress_hook, "fp16": default_hooks.fp16_compress_hook}
_USERS: "weakref.WeakSet[DistributedDataParallel]" = weakref.WeakSet()  # of the process group
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
    """End the process group, if there is one; what averages gradients by it does so no more.

    The reducers have to let go of it first. One that outlives it would end it while holding Python's lock, which a
    thread of the group may be waiting for, and wait for that thread for ever.
    """
    if dist.is_available() and dist.is_initialized():
        for ddp in _USERS:
            ddp.reducer = ddp.logger = ddp.process_group = None  # type: ignore[assignment]
        dist.destroy_process_group()


class _Body(nn.Module):
    """The network for DistributedDataParallel, as if it had nothing but the parameters of its body."""

    def __init__(self, model: IPT):
        super().__init__()
        self.parameters_of_all_tasks = nn.ParameterList(model.body.parameters())
        self._network = (model,)  # a tuple, so that heads and tails are not registered

    def forward(self, *args: Any, **options: Any) -> Any:
        return self._network[0](*args, **options)


class GradientAllReduce:
    """Averages the gradients of a step over all ranks: the body's while backward is running, then head and tail.

    ``module`` is to be called in the model's place; ``finish()`` follows the backward.

    Args:
        model: on its device, with the same weights on all ranks, which all have to call.
        world_size: number of ranks; with one the module is the model.
        dtype: "bf16" or "fp16" send the body's gradients in 16 bits, "fp32" as they are.

    Raises:
        ConfigError: bf16 on CPUs.
    """

    def __init__(self, model: IPT, world_size: int, dtype: str = "fp32"):
        self.world_size = world_size
        self.module: nn.Module = model
        self._apart = [p for part in (model.head, model.tail) for p in part.parameters()]
        if world_size == 1:
            return
        if dtype == "bf16" and next(model.parameters()).device.type != "cuda":
            raise ConfigError("allreduce=bf16 needs GPUs: the ranks of CPUs do not add in it; take fp16 or fp32")
        ddp = DistributedDataParallel(_Body(model), init_sync=False, gradient_as_bucket_view=True)
        _USERS.add(ddp)
        if dtype != "fp32":
            ddp.register_comm_hook(None, _COMPRESSION[dtype])
        self.module = ddp
        self._settle_buckets(ddp, model)

    def _settle_buckets(self, ddp: DistributedDataParallel, model: IPT) -> None:
        """Take a step that changes nothing: DDP lays its buckets out anew after its first backward.

        How the numbers of three ranks and more round depends on their place in a bucket: a resumed run would not be
        bit-equal.
        """
        config, device = model.config, next(model.parameters()).device
        y = ddp(torch.zeros(1, 3, config.patch_size, config.patch_size, device=device), config.tasks[0])
        y.sum().backward()
        model.zero_grad(set_to_none=True)

    def finish(self) -> None:
        """Put the means of head and tail into ``grad``."""
        grads = [p.grad for p in self._apart if p.grad is not None]
        if self.world_size == 1 or not grads:
            return
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= self.world_size
        parts = flat.split([grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])


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
