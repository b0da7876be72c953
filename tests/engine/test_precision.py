"""Which precision is taken, the loss scale of fp16, and whether hidden layers are recomputed."""

import json

import pytest
import torch

from ipt_fast.engine.config import ConfigError
from ipt_fast.engine.distributed import DistInfo
from ipt_fast.engine.precision import (
    LossScale,
    check_tf32,
    device_memory,
    hidden_bytes,
    matmul_arithmetic,
    resolve,
    resolve_precision,
    resolve_recompute,
)
from ipt_fast.model import IPT, IPTConfig, preset
from tests.engine.fakes import fake_degrade, make_trainer, micro_config
from tests.saved_tensors import saved_bytes

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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_weights_come_out_the_same(tmp_path, precision):
    trained = {}
    for choice in ("on", "off"):
        trainer = make_trainer(tmp_path / choice, micro_config(f"precision={precision}", f"recompute={choice}"))
        trainer.train()
        trained[choice] = trainer.model.state_dict()
        run = json.loads((tmp_path / choice / "config.json").read_text())["run"]
        assert run["recompute"] == (choice == "on")
    for name, value in trained["on"].items():
        assert torch.equal(value, trained["off"][name]), name


def test_auto_keeps_what_takes_up_to_a_sixth_of_the_memory():
    model = preset("base")
    memory = 6 * 32 * hidden_bytes(model, "bf16")
    assert not resolve_recompute("auto", model, 32, "bf16", memory)
    assert resolve_recompute("auto", model, 33, "bf16", memory)
    assert resolve_recompute("auto", model, 32, "fp32", memory)
    assert resolve_recompute("on", model, 1, "bf16", memory) and not resolve_recompute(
        "off", model, 999, "fp32", memory
    )


def test_ranks_share_the_memory_of_a_machine(monkeypatch):
    alone = device_memory(CPU)
    assert alone > 2**28
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert device_memory(CPU) == alone // 4


def test_a_rank_resolves_for_its_share_of_the_batch():
    model = preset("base")
    fits = device_memory(CPU) // 6 // hidden_bytes(model, "fp32")
    config = micro_config("precision=fp32", batch_size=4 * fits)
    config = type(config).from_dict({**config.to_dict(), "model": model.to_dict()})
    assert resolve(config, DistInfo(world_size=4)) == ("fp32", False)
    assert resolve(config, DistInfo(world_size=2)) == ("fp32", True)


@pytest.mark.parametrize("mlp", [True, False])
def test_hidden_bytes_are_what_is_kept_beside_the_rest(mlp):
    config = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=2, tasks=("sr2",), mlp=mlp)
    model = IPT(config)
    x = torch.rand(2, 3, 12, 12) * 255
    kept = {}
    for on in (True, False):
        model.set_recompute(on)
        kept[on] = saved_bytes(lambda: model(x, "sr2"))
    assert kept[False] - kept[True] == 2 * hidden_bytes(config, "fp32")


def test_tf32_is_refused_where_there_is_none(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"tf32=true needs an NVIDIA GPU of capability 8.0 or newer \(found cpu\)"):
        make_trainer(tmp_path, micro_config("tf32=true"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    for capability, refused in (((7, 0), True), ((8, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        if refused:
            with pytest.raises(ConfigError, match="found Tesla V100"):
                check_tf32(micro_config("tf32=true"), CUDA)
        else:
            check_tf32(micro_config("tf32=true"), CUDA)


@pytest.mark.parametrize("tf32", [True, False])
def test_sums_of_16_bit_gemms_are_float32_while_training_and_the_callers_afterwards(tf32):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def settings():
        reduced = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
        return (matmul.allow_tf32, cudnn.allow_tf32, *reduced)

    before = settings()
    inside = []
    with pytest.raises(IndexError), matmul_arithmetic(tf32):
        inside.append(settings()) or inside[1]
    assert inside == [(tf32, tf32, False, False)]
    assert settings() == before and before[2]


def test_a_step_runs_in_that_arithmetic(tmp_path):
    seen = []

    def degrade(*args, **options):
        seen.append(torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction)
        return fake_degrade(*args, **options)

    make_trainer(tmp_path, micro_config(steps=1), degrade=degrade).train()
    assert seen == [False] and torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
