"""Which precision is taken, and the loss scale of fp16."""

import pytest
import torch

from ipt_fast.engine.config import ConfigError
from ipt_fast.engine.precision import LossScale, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "choice, device, capability, precision",
    [
        ("auto", CPU, False, "fp32"),
        ("auto", CPU, True, "bf16"),
        ("fp32", CPU, True, "fp32"),
        ("bf16", CPU, None, "bf16"),
        ("auto", CUDA, (7, 0), "fp16"),
        ("auto", CUDA, (7, 5), "fp16"),
        ("auto", CUDA, (8, 0), "bf16"),
        ("auto", CUDA, (9, 0), "bf16"),
        ("fp16", CUDA, (9, 0), "fp16"),
    ],
)
def test_precision_follows_the_device(monkeypatch, choice, device, capability, precision):
    monkeypatch.setattr("ipt_fast.ops._common.has_fast_bf16", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision(choice, device) == precision


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        resolve_precision("fp16", CPU)
    with pytest.raises(ConfigError, match="choose one of auto, fp32, bf16, fp16"):
        resolve_precision("fp8", CUDA)


def test_the_scale_halves_on_a_bad_step_and_doubles_after_many_good_ones():
    scale = LossScale(True, CPU, start=8.0, interval=2)
    factors = []
    for bad in (True, False, True, False, False, False, False):
        scale.update(torch.tensor(bad))
        factors.append((float(scale.used), float(scale.factor)))
    assert factors == [(8, 4), (4, 4), (4, 2), (2, 2), (2, 4), (4, 4), (4, 8)]
    other = LossScale(True, CPU)
    other.load_state_dict(scale.state_dict())
    assert other.state_dict() == scale.state_dict()


def test_no_scale_without_fp16():
    scale = LossScale(False, CPU)
    scale.update(torch.tensor(True))
    assert float(scale.factor) == 1
    scale.load_state_dict(LossScale(True, CPU).state_dict())
    assert float(scale.factor) == 1
