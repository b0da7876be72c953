"""One task out of a network: what is kept, what is dropped, and where new tasks start."""

import pytest
import torch

from ipt_fast.checkpoint import keep_one_task, nearest_task
from ipt_fast.model import IPT, IPTConfig
from ipt_fast.tasks import TASKS


@pytest.fixture
def six():
    torch.manual_seed(1)
    return IPT(IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1))


@pytest.mark.parametrize(
    "task, tasks, wanted",
    [(name, TASKS, name) for name in TASKS]
    + [
        ("denoise70", TASKS, "denoise50"),
        ("denoise10", TASKS, "denoise30"),
        ("denoise40", TASKS, "denoise30"),
        ("deblur", TASKS, "derain"),
        ("sr3", ("sr2", "derain"), "sr2"),
        ("derain", ("sr2", "denoise30"), "denoise30"),
    ],
)
def test_new_tasks_start_from_the_nearest(task, tasks, wanted):
    assert nearest_task(task, tasks) == wanted


@pytest.mark.parametrize("task", TASKS)
def test_one_head_tail_and_embedding_are_kept(six, task):
    own, source = keep_one_task(six, task)
    assert source == task and own.config.tasks == (task,)
    assert len(own.head) == len(own.tail) == 1 and own.body.query_embed.weight.shape[0] == 1
    x = torch.rand(2, 3, 12, 12) * 255
    with torch.no_grad():
        assert torch.equal(own(x, task), six(x, task))


def test_nothing_is_shared_with_the_network_it_came_from(six):
    before = {key: value.clone() for key, value in six.state_dict().items()}
    own, _ = keep_one_task(six, "sr2")
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in six.state_dict().items())


@pytest.mark.parametrize("task, source", [("denoise70", "denoise50"), ("deblur", "derain")])
def test_a_new_task_computes_what_its_source_did(six, task, source):
    own, told = keep_one_task(six, task)
    x = torch.rand(2, 3, 12, 12) * 255
    with torch.no_grad():
        assert told == source and torch.equal(own(x, task), six(x, source))


def test_a_tail_of_another_scale_is_drawn_anew(six):
    sr2, _ = keep_one_task(six, "sr2")
    sr4, source = keep_one_task(sr2, "sr4")
    assert source == "sr2" and sr4(torch.rand(1, 3, 12, 12), "sr4").shape == (1, 3, 48, 48)
    same = [torch.equal(a, b) for a, b in zip(sr4.head.parameters(), sr2.head.parameters(), strict=True)]
    assert all(same) and torch.equal(sr4.body.query_embed.weight, sr2.body.query_embed.weight)
    assert not any(torch.equal(sr4.tail[0][0][0].weight, other) for other in sr2.tail[0].parameters())


def test_networks_without_embeddings_are_kept_whole():
    six = IPT(IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1, task_embed=False, position_embed=False))
    own, _ = keep_one_task(six, "derain")
    assert not any("embed" in key for key in own.state_dict())
