"""The plain contender is the same network: outputs, features and gradients of ipt_fast.IPT."""

from dataclasses import replace

import pytest
import torch

from bench.baselines.plain_ipt import PlainIPT, plain_copy
from ipt_fast.losses import pretrain_loss
from ipt_fast.model import IPT, IPTConfig

CONFIG = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=2, tasks=("sr2", "sr3", "sr4", "denoise30"))


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("task", CONFIG.tasks)
@pytest.mark.parametrize("need_weights", [False, True])
def test_same_output_and_features(task, need_weights):
    model = IPT(CONFIG).double().eval()
    plain = plain_copy(model, need_weights)
    x = torch.rand(2, 3, 12, 12, dtype=torch.float64) * 255
    with torch.no_grad():
        y, feats = model(x, task, return_features=True)
        plain_y, plain_feats = plain(x, task, return_features=True)
    assert relative(plain_y, y) < 1e-12
    assert relative(plain_feats, feats) < 1e-12


@pytest.mark.parametrize(
    "changes",
    [
        {"position_embed": False, "task_embed": False},
        {"mlp": False},
        {"memory_norm": True},
        {"features_from": "decoder"},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_same_with_every_switch(changes):
    model = IPT(replace(CONFIG, **changes)).double()
    plain = plain_copy(model)
    x = torch.rand(1, 3, 12, 12, dtype=torch.float64) * 255
    with torch.no_grad():
        expected, found = model(x, "sr2", return_features=True), plain(x, "sr2", return_features=True)
    assert [relative(a, b) < 1e-12 for a, b in zip(found, expected, strict=True)] == [True, True]


def test_same_gradients_of_a_training_step():
    model = IPT(CONFIG).double()
    plain = plain_copy(model)
    x = torch.rand(3, 3, 12, 12, dtype=torch.float64) * 255
    target = torch.rand(3, 3, 24, 24, dtype=torch.float64) * 255
    for network in (model, plain):
        y, feats = network(x, "sr2", return_features=True)
        pretrain_loss(y, target, feats)[0].backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert [name for name in expected if relative(found[name], expected[name]) > 1e-10] == []


def test_it_is_pytorchs_own_attention_throughout():
    plain = PlainIPT(CONFIG)
    attentions = [m for m in plain.modules() if isinstance(m, torch.nn.MultiheadAttention)]
    assert len(attentions) == 3 * CONFIG.num_layers


def test_copy_keeps_dtype_and_mode():
    plain = plain_copy(IPT(CONFIG).bfloat16().eval())
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert not plain.training
