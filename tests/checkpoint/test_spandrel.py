"""A converted file of the paper's 12 heads loads in spandrel as it is, and gives the same image."""

import pytest
import torch

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import save_network

spandrel = pytest.importorskip("spandrel", reason="needs spandrel, which brings torchvision")


def loaded(model, path, layout=None):
    save_network(model, path, layout)
    return spandrel.ModelLoader().load_from_file(path)


def network(*tasks, heads=12):
    torch.manual_seed(0)
    return IPT(IPTConfig(n_feats=4, num_heads=heads, num_layers=1, tasks=tasks)).eval()


def error(descriptor, model, task):
    """Return the largest difference of one window, colours 0..1."""
    x = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        return (descriptor(x) - (model(x * 255, task) / 255).clamp(0, 1)).abs().max().item()


@pytest.mark.parametrize("name, layout", [("a.safetensors", None), ("a.pt", None), ("a.pth", "released")])
@pytest.mark.parametrize("task, scale", [("sr2", 2), ("denoise30", 1)])
def test_one_task_loads_in_spandrel_as_it_is(task, scale, name, layout, tmp_path):
    model = network(task)
    descriptor = loaded(model, tmp_path / name, layout)
    assert (descriptor.architecture.id, descriptor.scale) == ("IPT", scale)
    assert error(descriptor, model, task) < 1e-5


def test_of_several_tasks_it_takes_the_one_that_enlarges_most(tmp_path):
    model = network("sr2", "sr4", "denoise30")
    descriptor = loaded(model, tmp_path / "a.safetensors")
    assert descriptor.scale == 4 and error(descriptor, model, "sr4") < 1e-5


def test_it_takes_any_other_number_of_heads_for_12(tmp_path):
    """What the documentation warns of: when this fails, spandrel has learnt better."""
    model = network("sr2", heads=4)
    assert error(loaded(model, tmp_path / "a.safetensors"), model, "sr2") > 1e-2
