"""One training step through the product's own code, and a line for each operation that a device would be given."""

import importlib
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from triton.runtime.jit import JITFunction

from bench.count.pretend import HostFunctions, pretend_cuda
from bench.count.rates import Device
from ipt_fast.data import SR_MARGIN, Batch
from ipt_fast.engine.config import TrainConfig
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.engine.step import TrainStep
from ipt_fast.kernels.patch_attention import plan_backward
from ipt_fast.model import IPT
from ipt_fast.ops import degrade
from ipt_fast.tasks import get_task

_LARGE = 1 << 20  # bytes of a "large" cat
# Launches of the ops' own kernels, forward and backward; kernels/*.py and csrc/ say so.
_OWN_LAUNCHES = {
    "patch_attention": (1, 1),
    "pixelshuffle_tail": (1, 0),
    "degrade": (1, 0),
}
_MADE_OF_OTHERS = ("layernorm_linear", "ffn", "patch_contrastive_loss")  # GEMMs, and several kernels
_KINDS = {
    "gemm": ("mm", "addmm", "bmm", "baddbmm", "addmm_", "_addmm_activation", "_scaled_mm"),
    "convolution": ("convolution", "convolution_backward"),
    "norm": ("native_layer_norm", "native_layer_norm_backward", "norm_kernel", "norm_backward_kernel"),
    "add": ("add", "add_", "sub", "sub_"),
    "relu backward": ("threshold_backward", "relu_backward_kernel"),
    "sum": ("sum", "mean", "sum_parts_kernel", "_foreach_norm", "linalg_vector_norm", "amax"),
    "cat": ("cat", "stack"),
    "patch_contrastive_loss": tuple(f"{of}_kernel" for of in ("unit", "sums", "logs", "weights", "unit_backward")),
    "optimizer": ("_fused_adam_", "_foreach_lerp_"),
}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
_NO_LAUNCH = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "detach", "alias",
    "promote_types", "_unsafe_view", "_reshape_alias", "_record_function_enter_new", "_record_function_exit",
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """What a device is given: ``bytes`` read and written, multiply-adds count two ``flops`` in ``dtype``."""

    kind: str
    name: str
    launches: int
    bytes: int
    flops: int
    dtype: str

    @property
    def is_large_cat(self) -> bool:
        """Return whether it joins more than a megabyte."""
        return self.kind == "cat" and self.bytes > 2 * _LARGE


@dataclass(frozen=True)
class Counted:
    """The operations of a step, in order, and what made the host wait for the device."""

    operations: tuple[Operation, ...]
    waits: tuple[str, ...]

    @property
    def launches(self) -> int:
        """Return the launches of all operations."""
        return sum(op.launches for op in self.operations)

    def of(self, kind: str) -> list[Operation]:
        """Return the operations of a kind."""
        return [op for op in self.operations if op.kind == kind]


class Recorder(TorchDispatchMode):
    """Notes operations; of a ``kind`` of device alone, where one is given."""

    def __init__(self, kind: str | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "prim":  # a fake CPU tensor is asked for its device
            return function(*args, **kwargs)
        name = function._schema.name.partition("::")[2]
        op = name.removesuffix("_backward")
        if function.namespace == "ipt_fast" and (args[-1] not in ("triton", "cuda") or op in _MADE_OF_OTHERS):
            return self._inside(op, name != op, args)
        with self:
            result = function.decompose(*args, **kwargs)  # linear, matmul: what they are made of is what is launched
        if result is not NotImplemented:
            return result
        result = function(*args, **kwargs)
        counts = not _is_view(function) and name not in _NO_LAUNCH and not _is_moved_nowhere(name, args, result)
        if counts and (self.kind is None or self._lies_there((args, kwargs, result))):
            self.operations.append(_operation(function, name, args, kwargs, result))
        return result

    def _lies_there(self, values: Any) -> bool:
        return any(t.device.type == self.kind for t in tree_leaves(values) if isinstance(t, Tensor))

    def _inside(self, op: str, backward: bool, args: Sequence[Any]) -> Any:
        """Run the op's backend, which is made of PyTorch's operations, instead of asking for its shapes."""
        backend = importlib.import_module(f"ipt_fast.ops.{op}").BACKENDS[args[-1]]
        launch = backend.backward if backward else backend.forward
        with self:
            return launch(*args[:-1])

    @property
    def kernel(self) -> Any:
        """Return what stands for ``kernel[grid]`` of Triton: it is launched once, over the tensors that it is given."""
        return lambda kernel, grid: self._launcher(kernel)

    def _launcher(self, kernel: Any) -> Any:

        def launch(*args: Any, **constants: Any) -> None:
            name = kernel.fn.__name__
            tensors = [t for t in args if isinstance(t, Tensor)]
            tensors += tensors[:1] if name == "relu_backward_kernel" else []  # in place: read and written
            dtype = str(tensors[0].dtype).removeprefix("torch.")
            given, flops = sum(map(_bytes, tensors)), 0
            if name in ("sums_kernel", "weights_kernel"):
                given, flops = _contrastive_work(name, args, constants)
            self.operations.append(Operation(_KIND_OF[name], name, 1, given, flops, dtype))

        return launch


def _is_view(function: Any) -> bool:
    returns = function._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _is_moved_nowhere(name: str, args: Any, result: Any) -> bool:
    """Return whether a tensor is "copied" to where it lies already, which to C++ is another place (pretend.py)."""
    return name == "_to_copy" and (args[0].device, args[0].dtype, args[0].stride()) == (
        result.device, result.dtype, result.stride()
    )  # fmt: skip


def _operation(function: Any, name: str, args: Any, kwargs: Any, result: Any) -> Operation:
    inputs = [t for t in tree_leaves((args, {**kwargs, "out": None})) if isinstance(t, Tensor)]
    outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
    if not outputs:  # foreach and fused: what is written is among the inputs
        written = (args[0], args[2], args[3]) if name == "_fused_adam_" else args[:1]  # weights and moments
        outputs = [t for t in tree_leaves(written) if isinstance(t, Tensor)]
    flops, launches = 0, 1
    if function.namespace == "ipt_fast":
        op = name.removesuffix("_backward")
        launches = _OWN_LAUNCHES[op][name.endswith("_backward")]
        if name == "patch_attention_backward":
            launches = _launches_of_backward(args)
        kind, flops = op, _own_flops(name, args)
    else:
        kind = _KIND_OF.get(name, "other")
        packet = function.overloadpacket
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=result)
        elif name == "_addmm_activation":
            flops = 2 * args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
    dtypes = [t.dtype for t in inputs if t.is_floating_point()]
    if name in ("_to_copy", "copy_", "_foreach_copy_"):
        kinds = {t.dtype for t in (*inputs, *outputs)}
        kind = "cast" if len(kinds) > 1 else "copy"
    if name in ("copy_", "_foreach_copy_"):  # what is written over is not read
        inputs = [t for t in tree_leaves(args[1]) if isinstance(t, Tensor)]
    read = sum(_bytes(t) for t in inputs)
    written = sum(_bytes(t) for t in outputs)
    dtype = str(dtypes[0]).removeprefix("torch.") if dtypes else "none"
    return Operation(kind, name, launches, read + written, int(flops), dtype)


def _bytes(t: Tensor) -> int:
    """Return the bytes that are there: a dimension of stride 0 is one element."""
    count = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        count *= size if stride or size == 1 else 1
    return count * t.element_size()


def _launches_of_backward(args: Sequence[Any]) -> int:
    """Return how many kernels the attention's backward takes: Triton's are two where a head does not fit on chip."""
    (_, N, D), M = args[1].shape, args[2].shape[1]
    one = plan_backward(N, M, D // args[8], args[1].dtype, (8, 0)).one  # alike on every GPU that has Triton's
    return 2 if args[-1] == "triton" and not one else 1


def _own_flops(name: str, args: Sequence[Any]) -> int:
    if name in ("patch_attention", "patch_attention_backward"):
        q, k = (args[0], args[1]) if name == "patch_attention" else (args[1], args[2])
        products = 2
        if name == "patch_attention_backward":
            # kernels/_patch_attention_backward.py, csrc/patch_attention_backward.cu
            # Scores, dv, dp, dk and dq; two kernels, of which one makes dq, both compute scores and dp.
            products = 5 if _launches_of_backward(args) == 1 else 7
        return 2 * products * q.shape[0] * q.shape[1] * k.shape[1] * q.shape[2]
    return 0


def _contrastive_work(name: str, args: Sequence[Any], constants: Mapping[str, Any]) -> tuple[int, int]:
    """Return bytes and FLOPs of a launch over tiles of cosines: of the tiles that it takes, not of all tokens."""
    block, DP = constants["BLOCK"], constants["DP"]
    if name == "sums_kernel":
        u, negatives, sums, _, a_chunks, _, c_chunks, N = args
        count = math.ceil(N / (block // constants["IMAGES"]))
        pairs = count * (count + 1) // 2 if constants["OWN"] else count**2
        given = _bytes(u) + (0 if negatives is u else _bytes(negatives)) + _bytes(sums)
        return given, 2 * pairs * a_chunks * c_chunks * block**2 * DP
    u, negatives, own, others, _, _, w, _, _, rows, columns, *_ = args
    part = rows * block / len(u), columns * block / len(negatives)  # of the tokens
    given = _bytes(w) + (rows + columns) * block * DP * u.element_size()
    given += int(part[0] * part[1] * (_bytes(own) + _bytes(others)))
    tiles = rows * (rows + 1) // 2 if constants["SYMMETRIC"] else rows * columns
    return given, 2 * tiles * block**2 * DP


def trace_step(config: TrainConfig, task: str, device: Device) -> Counted:
    """Count the second step of a run on ``device`` (the first one makes the optimizer's state).

    Args:
        config: a recipe; its ``batch_size`` is this one rank's.
        task: of the batch.
        device: pretended; the CPU is fake tensors as well.
    """
    config = replace(config, graphs="off")  # launched one by one
    with torch.device("meta"):
        model = IPT(config.model)
    host = HostFunctions() if device.capability else None
    with (
        pretend_cuda(device.capability, device.memory) if device.capability else FakeTensorMode(),
        host or nullcontext(),
    ):
        kind = "cuda" if device.capability else "cpu"
        materialise(model, kind)
        step = TrainStep(model, config, DistInfo(device=torch.device(kind)), degrade)
        for _ in range(2):
            if host:
                host.begin_step()
            recorder = Recorder()
            kernels = mock.patch.object(JITFunction, "__getitem__", recorder.kernel)
            with kernels, recorder:
                x, target = step.prepare(_batch(config, task)) if host else _prepared(config, task)
                step(x, target, task, config.lr)
    return Counted(tuple(recorder.operations), tuple(host.waits) if host else ())


def materialise(model: nn.Module, kind: str) -> None:
    """Give a network on the meta device tensors on that kind of device."""

    def real(t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device=kind)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(real(parameter), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else real(buffer)


def _prepared(config: TrainConfig, task: str) -> tuple[Tensor, Tensor]:
    side, B = config.model.patch_size, config.batch_size
    return torch.empty(B, 3, side, side), torch.empty(B, 3, side * get_task(task).scale, side * get_task(task).scale)


def _batch(config: TrainConfig, task: str) -> Batch:
    t = get_task(task)
    side = config.model.patch_size * t.scale + (2 * SR_MARGIN * t.scale if t.kind == "sr" else 0)
    gt = torch.empty(config.batch_size, 3, side, side, dtype=torch.uint8)
    seeds = torch.empty(config.batch_size, dtype=torch.int64)
    return Batch(gt=gt, lq=None, task=task, seeds=seeds, epoch=0, step=0)
