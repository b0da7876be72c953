"""Windows from buffers, as a CUDA graph takes them: the network's own outputs, whatever number is given."""

import copy

import pytest
import torch

from ipt_fast import IPT, IPTConfig, prepare_for_inference, restore
from ipt_fast.inference.graphs import WindowGraphs

CONFIG = IPTConfig(n_feats=8, num_heads=2, num_layers=1, tasks=("sr2", "denoise30"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return IPT(CONFIG).eval()


def test_windows_from_buffers_are_those_launched_one_by_one(model):
    prepared = prepare_for_inference(model)
    recorded = WindowGraphs(lambda x, t: prepared(x, t), 4, torch.device("cpu"))
    draw = torch.Generator().manual_seed(1)
    for count, t in ((4, 0), (3, 0), (9, 1), (1, 0), (4, 1)):
        x = torch.rand(count, 3, 48, 48, generator=draw) * 255
        wanted = prepared(x, t)
        torch.testing.assert_close(recorded(x, t), wanted, rtol=1e-5, atol=1e-3)


def test_graphs_without_cuda_are_refused(model):
    with pytest.raises(ValueError, match=r"graph_windows needs a CUDA device \(found cpu\)"):
        prepare_for_inference(model, graph_windows=4)


@pytest.mark.gpu
def test_recorded_on_a_gpu(model, device):
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    network = copy.deepcopy(model).to(device)
    plain, recorded = (prepare_for_inference(network, graph_windows=count) for count in (None, 4))
    draw = torch.Generator().manual_seed(1)
    for i in range(8):
        photo = torch.rand(3, 100, 60 + 20 * i, generator=draw) * 255
        for task in CONFIG.tasks:
            wanted = restore(plain, photo, task, batch_size=4)
            torch.testing.assert_close(restore(recorded, photo, task), wanted, rtol=1e-4, atol=1e-2)
    assert torch.equal(restore(copy.deepcopy(recorded), photo, "sr2"), restore(recorded, photo, "sr2"))
