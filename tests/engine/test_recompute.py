"""Hidden layers made again or kept: the same weights, and the choice of "auto"."""

import json

import pytest
import torch

from ipt_fast.engine import recompute
from ipt_fast.engine.recompute import hidden_bytes, resolve_recompute
from ipt_fast.model import IPT, IPTConfig, preset
from tests.engine.fakes import make_trainer, micro_config
from tests.saved_tensors import saved_bytes

CPU = torch.device("cpu")


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


def test_auto_keeps_what_takes_up_to_a_sixth_of_the_memory(monkeypatch):
    model = preset("base")
    monkeypatch.setattr(recompute, "_memory", lambda device: 6 * 32 * hidden_bytes(model, "bf16"))
    assert not resolve_recompute("auto", model, 32, "bf16", CPU)
    assert resolve_recompute("auto", model, 33, "bf16", CPU)
    assert resolve_recompute("auto", model, 32, "fp32", CPU)
    assert resolve_recompute("on", model, 1, "bf16", CPU) and not resolve_recompute("off", model, 999, "fp32", CPU)


def test_ranks_share_the_memory_of_a_machine(monkeypatch):
    alone = recompute._memory(CPU)
    assert alone > 2**28
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert recompute._memory(CPU) == alone // 4


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
