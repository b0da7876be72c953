"""Adam of torch and of Apex: the same steps, one state for both, and what is said where Apex cannot be had.

Apex needs CUDA. Here its kernel is a stand-in that computes on the CPU what ``multi_tensor_adam_capturable`` does, and
its Python is the installed one or, without it, a stand-in that keeps the same books.
"""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from ipt_fast.checkpoint import load_training_state
from ipt_fast.engine.config import ConfigError
from ipt_fast.engine.optimizer import ApexAdam, apex_missing, make_optimizer
from ipt_fast.model import IPT
from tests.engine.fakes import MICRO, make_trainer, micro_config


def adam_kernel(chunk, noop, lists, lr, beta1, beta2, eps, step, adam_w, bias_correction, decay, inv_scale):
    """Do what csrc/multi_tensor_adam.cu of Apex says, one tensor after the other."""
    if int(noop) == 1:
        return
    correction = [1 - beta ** int(step) if bias_correction else 1.0 for beta in (beta1, beta2)]
    for g, p, m, v in zip(*lists, strict=True):
        g.mul_(inv_scale)
        grad = g if adam_w else g + decay * p
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        update = (m / correction[0]) / ((v / correction[1]).sqrt() + eps)
        p.sub_(lr * (update + decay * p if adam_w else update))


class FusedAdam(torch.optim.Optimizer):
    """Steps counted by the group, one overflow flag, moments in float32: the books of Apex's."""

    def __init__(self, params, lr, betas, eps, weight_decay, adam_w_mode, capturable):
        assert capturable
        super().__init__(params, {"lr": torch.tensor(lr), "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.adam_w_mode, self._dummy_overflow_buf = int(adam_w_mode), torch.tensor([0], device="cuda")

    def step(self, grad_scaler):
        for group in self.param_groups:
            if "step" in group:
                group["step"] += (self._dummy_overflow_buf != 1).int()
            else:
                group["step"] = torch.tensor([1], dtype=torch.int)
            lists = [], [], [], []
            for p in group["params"]:
                if p.grad is not None:
                    if not self.state[p]:
                        self.state[p].update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                    for part, value in zip(lists, (p.grad, p.data, *self.state[p].values()), strict=True):
                        part.append(value)
            self._dummy_overflow_buf.copy_(grad_scaler._check_inf_per_device(self)[torch.device("cpu")])  # noqa: SLF001
            scale = grad_scaler._get_scale_async().double().reciprocal().float()  # noqa: SLF001
            adam_kernel(0, self._dummy_overflow_buf, lists, group["lr"], *group["betas"], group["eps"], group["step"],
                        self.adam_w_mode, 1, group["weight_decay"], scale)  # fmt: skip


def module(name, **contents):
    made = ModuleType(name)
    made.__dict__.update(contents)
    return made


@pytest.fixture
def apex(monkeypatch):
    """Return Apex on a CPU."""
    kernels = dict.fromkeys(("multi_tensor_adam", "multi_tensor_adam_capturable", "multi_tensor_adam_capturable_2",
                             "multi_tensor_adam_capturable_master"), adam_kernel)  # fmt: skip
    monkeypatch.setitem(sys.modules, "amp_C", module("amp_C", **kernels))
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *args, device=None, **options: tensor(*args, **options))
    if importlib.util.find_spec("apex") is None:
        monkeypatch.setitem(sys.modules, "apex", module("apex", __path__=[]))
        monkeypatch.setitem(sys.modules, "apex.multi_tensor_apply", module("apex.multi_tensor_apply"))
        monkeypatch.setitem(sys.modules, "apex.optimizers", module("apex.optimizers", FusedAdam=FusedAdam))
    assert apex_missing() is None
    monkeypatch.setattr("ipt_fast.engine.step.make_optimizer", choose)


def choose(model, config):
    """Leave the device out of the choice."""
    return ApexAdam(model, config) if config.optimizer == "apex" else make_optimizer(model, config)


def distance(a, b):
    return max((value - b.state_dict()[key]).abs().max().item() for key, value in a.state_dict().items())


@pytest.mark.parametrize("changes", [[], ["weight_decay=0.1", "clip_grad=0.01"], ["betas=0.8,0.9", "eps=1e-4"]])
def test_twenty_steps_are_those_of_torch(apex, tmp_path, changes):
    """Over three tasks, so that heads and tails have steps of their own."""
    runs = [
        make_trainer(tmp_path / name, micro_config(*changes, f"optimizer={name}", steps=20))
        for name in ("torch", "apex")
    ]
    for run in runs:
        run.train()
    assert distance(*(run.model for run in runs)) < 1e-5


@pytest.mark.parametrize("first, second", [("torch", "apex"), ("apex", "torch"), ("apex", "apex")])
def test_a_run_resumes_across_the_two(apex, tmp_path, first, second):
    changes = ["schedule=constant", "log_every=20", "checkpoint_every=20"]
    whole = make_trainer(tmp_path / "whole", micro_config(*changes, steps=8))
    whole.train()
    make_trainer(tmp_path / "part", micro_config(*changes, f"optimizer={first}", steps=4)).train()
    rest = make_trainer(tmp_path / "part", micro_config(*changes, f"optimizer={second}", steps=8))
    assert rest.resume("auto")
    rest.train()
    assert distance(whole.model, rest.model) < 1e-5
    states = [
        load_training_state(tmp_path / name / "checkpoint.pt")["optimizer"]["state"] for name in ("whole", "part")
    ]
    mine, theirs = ({key: float(own["step"]) for key, own in state.items()} for state in states)
    assert mine == theirs


def test_a_step_that_is_left_out_counts_in_neither(apex):
    torch.manual_seed(0)
    models = [IPT(MICRO) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    configs = [micro_config("lr=1e-2", f"optimizer={name}") for name in ("torch", "apex")]
    optimizers = [choose(model, config) for model, config in zip(models, configs, strict=True)]
    for bad in (1, 0, 1, 0, 0, 1):
        grads = [torch.randn_like(p) for p in models[0].parameters()]
        for model, optimizer in zip(models, optimizers, strict=True):
            for p, grad in zip(model.parameters(), grads, strict=True):
                p.grad = grad.clone() * 4 if p.requires_grad else None
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(float(bad))
            optimizer.step()
    assert distance(*models) < 1e-5
    steps = [{float(s["step"]) for s in optimizer.state_dict()["state"].values()} for optimizer in optimizers]
    assert steps == [{3.0}, {3.0}]


def test_apex_is_told_from_its_namesake(monkeypatch):
    model = IPT(MICRO)
    with pytest.raises(ConfigError, match=r"optimizer=apex needs a CUDA device \(found cpu\); take optimizer=torch"):
        make_optimizer(model, micro_config("optimizer=apex"))
    monkeypatch.setitem(sys.modules, "apex", None)
    assert apex_missing().startswith("NVIDIA Apex is not installed; build NVIDIA's from source")
    monkeypatch.setitem(sys.modules, "apex", module("apex", __file__="/site-packages/apex/__init__.py"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", None)
    assert "apex/__init__.py is not NVIDIA's, but a package of that name on PyPI" in apex_missing()
    for name in ("apex.optimizers", "apex.multi_tensor_apply"):
        monkeypatch.setitem(sys.modules, name, module(name))
    monkeypatch.setitem(sys.modules, "amp_C", None)
    assert apex_missing().startswith("NVIDIA Apex was built without its CUDA extensions")
