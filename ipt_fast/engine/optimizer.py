"""Adam: torch's, fused where the device has it, or the FusedAdam of NVIDIA Apex; a run resumes across the two.

Both take two numbers that stay on the device, by the protocol of ``torch.amp.GradScaler``: ``grad_scale``, which the
gradients are divided by, and ``found_inf``, which is 1 where the step is to be left out. Parameters without a gradient
are left alone, and their moments too.
"""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ipt_fast.engine.config import ConfigError, TrainConfig
from ipt_fast.model import IPT

_MOMENTS = "exp_avg", "exp_avg_sq"
_SOURCE = "build NVIDIA's from source, https://github.com/NVIDIA/apex, with --cpp_ext --cuda_ext"


def apex_missing() -> str | None:
    """Return None where Apex's FusedAdam can be used, otherwise the reason and what to do."""
    try:
        apex = importlib.import_module("apex")
    except ImportError:
        return f"NVIDIA Apex is not installed; {_SOURCE}, or take optimizer=torch"
    try:
        importlib.import_module("apex.optimizers")
        importlib.import_module("apex.multi_tensor_apply")
    except Exception as error:  # the namesake of PyPI has neither, and fails on import in its own ways
        where = f"the apex at {getattr(apex, '__file__', None)} is not NVIDIA's, but a package of that name on PyPI"
        return f"{where} ({error}); remove it and {_SOURCE}"
    try:
        importlib.import_module("amp_C")
    except ImportError as error:
        return f"NVIDIA Apex was built without its CUDA extensions ({error}); {_SOURCE}"
    return None


def make_optimizer(model: IPT, config: TrainConfig) -> "torch.optim.Optimizer | ApexAdam":
    """Return the optimizer of the recipe for the parameters of a network, on its device.

    Raises:
        ConfigError: ``optimizer=apex`` where it cannot be used; the message says why and what to do.
    """
    device = next(model.parameters()).device
    if config.optimizer == "apex":
        if device.type != "cuda":
            raise ConfigError(f"optimizer=apex needs a CUDA device (found {device.type}); take optimizer=torch")
        if reason := apex_missing():
            raise ConfigError(f"optimizer=apex: {reason}")
        return ApexAdam(model, config)
    settings: dict[str, Any] = {"betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay}
    settings["capturable"] = device.type == "cuda"  # it may be recorded (graphs.py)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.zero:
        from ipt_fast.engine.zero import ShardedAdam  # torch's own takes a while to import, and warns

        return ShardedAdam(parameters, lr=config.lr, **settings)
    return torch.optim.Adam(parameters, lr=config.lr, fused=True, **settings)


class ApexAdam:
    """Apex's FusedAdam with the steps, the state and the protocol of torch's Adam.

    Apex counts steps by the group, torch by the parameter: a head or tail that has no gradient in a step is not to be
    counted. So there is one FusedAdam for the parameters of each set of tasks, and only those with gradients step.
    """

    def __init__(self, model: IPT, config: TrainConfig):
        from apex.optimizers import FusedAdam

        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.param_groups: list[dict[str, Any]] = [
            {"lr": config.lr, "betas": config.betas, "eps": config.eps, "weight_decay": config.weight_decay,
             "params": self.parameters},
        ]  # fmt: skip
        self.grad_scale: Tensor | None = None
        self.found_inf: Tensor | None = None
        tasks_of: dict[nn.Parameter, list[int]] = {p: [] for p in self.parameters}
        for task in range(len(config.model.tasks)):
            for p in model.parameters_of(task):
                if p.requires_grad:
                    tasks_of[p].append(task)
        groups: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for p, tasks in tasks_of.items():
            groups.setdefault(tuple(tasks), []).append(p)
        settings = {key: value for key, value in self.param_groups[0].items() if key != "params"}
        self._parts = [FusedAdam(group, adam_w_mode=False, capturable=True, **settings) for group in groups.values()]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        for p in self.parameters:
            p.grad = None

    def step(self) -> None:
        """Take a step with the parameters that have gradients, as the protocol says."""
        for part in self._parts:
            group = part.param_groups[0]
            if any(p.grad is not None for p in group["params"]):
                group["lr"].fill_(self.param_groups[0]["lr"])
                part.step(grad_scaler=self)

    def _check_inf_per_device(self, part: Any) -> Mapping[torch.device, Tensor]:
        device = self.parameters[0].device
        return {device: torch.zeros((), device=device) if self.found_inf is None else self.found_inf}

    def _get_scale_async(self) -> Tensor:
        return torch.ones((), device=self.parameters[0].device) if self.grad_scale is None else self.grad_scale

    def state_dict(self) -> dict[str, Any]:
        """Return what torch's Adam would: the state of each parameter by its number."""
        index = {p: i for i, p in enumerate(self.parameters)}
        state: dict[int, dict[str, Tensor]] = {}
        for part in self._parts:
            for p, moments in part.state.items():
                # The count is put right only at the next step, where this one was left out.
                steps = part.param_groups[0]["step"] - (part._dummy_overflow_buf == 1).int()
                state[index[p]] = {"step": steps.float().reshape(()), **moments}
        group = {**self.param_groups[0], "params": list(range(len(self.parameters)))}
        return {"state": dict(sorted(state.items())), "param_groups": [group]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up the state of torch's Adam, or of another of these; settings stay those of this run."""
        index = {p: i for i, p in enumerate(self.parameters)}
        for part in self._parts:
            group, steps = part.param_groups[0], []
            for p in group["params"]:
                if (own := state_dict["state"].get(index[p])) is not None:
                    moments = {key: own[key].to(p.device, torch.float32, copy=True) for key in _MOMENTS}
                    part.state[p] = moments
                    steps.append(int(own["step"]))
            part._dummy_overflow_buf.zero_()
            if steps:
                group["step"] = torch.tensor([max(steps)], dtype=torch.int, device=group["params"][0].device)
