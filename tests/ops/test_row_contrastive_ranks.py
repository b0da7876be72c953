"""scope="global" of row_contrastive_loss: gloo ranks that hold a slice each equal one process that holds all rows."""

import pytest
import torch
from torch import nn

from ipt_fast.ops import row_contrastive_loss
from tests.ranks import run_ranks

B, D = 5, 7  # pairs a rank
IMPLS = ("eager", "gemm")
MODES = ("softmax", "sigmoid")


def everything(ranks):
    """Rows of x and of y, and the weights of their values."""
    return torch.randn(3, ranks * B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


class Towers(nn.Module):
    """Two linear layers and the numbers of a loss."""

    def __init__(self, mode):
        super().__init__()
        generator = torch.Generator().manual_seed(8)
        self.weights = nn.Parameter(torch.randn(2, D, D, dtype=torch.float64, generator=generator))
        numbers = torch.tensor([1.3, -0.7], dtype=torch.float64)
        self.numbers = nn.Parameter(numbers[: 1 if mode == "softmax" else 2])

    def forward(self, x, y):
        return x @ self.weights[0], y @ self.weights[1], *self.numbers


def ddp_gradients(x, y, mode, impl):
    """In a function of its own, so that DDP is gone before the process group."""
    model = nn.parallel.DistributedDataParallel(Towers(mode))
    loss = row_contrastive_loss(*model(x, y), mode=mode, scope="global", impl=impl)
    loss.backward()
    return loss.detach(), *(p.grad.clone() for p in model.module.parameters())


def values_and_gradients(x, y, weights, **options):
    """Values per pair, and the gradients of their weighted sum."""
    inputs = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    values = row_contrastive_loss(*inputs, 1.3, reduction="none", **options)
    return values.detach(), *torch.autograd.grad(values @ weights[:, 0], inputs)


def rank_main(rank, ranks):
    x, y, weights = everything(ranks)[:, rank * B : (rank + 1) * B]
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ipt_fast.ops._row_contrastive_loss_gemm._CPU_TILE", (2, 3))
        for impl in IMPLS:
            for mode in MODES:
                options = {"mode": mode, "impl": impl}
                found[impl, mode] = values_and_gradients(x, y, weights, scope="global", **options)
                found[impl, mode, "ddp"] = ddp_gradients(x, y, **options)
        found["local"] = row_contrastive_loss(x, y, 1.3)
    return found


@pytest.fixture(scope="module", params=[1, 3], ids="{} ranks".format)
def results(request, tmp_path_factory):
    return run_ranks(rank_main, request.param, tmp_path_factory.mktemp("ranks"))


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mode", MODES)
def test_ranks_equal_one_process(results, mode, impl):
    want = values_and_gradients(*everything(len(results)), mode=mode, impl="eager")
    for got, w in zip(zip(*(result[impl, mode] for result in results), strict=True), want, strict=True):
        close(torch.cat(got), w)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mode", MODES)
def test_ddp_has_the_gradients_of_one_process_those_of_scale_and_bias_as_well(results, mode, impl):
    model, (x, y, _) = Towers(mode), everything(len(results))
    loss = row_contrastive_loss(*model(x, y), mode=mode, impl="eager")
    loss.backward()
    close(torch.stack([result[impl, mode, "ddp"][0] for result in results]).mean(), loss.detach())
    for result in results:
        for got, parameter in zip(result[impl, mode, "ddp"][1:], model.parameters(), strict=True):
            close(got, parameter.grad)


def test_local_scope_ignores_the_other_ranks(results):
    x, y, _ = everything(len(results))
    for rank, result in enumerate(results):
        mine = slice(rank * B, (rank + 1) * B)
        close(result["local"], row_contrastive_loss(x[mine], y[mine], 1.3))


def test_without_a_process_group_global_is_local():
    x, y, _ = everything(2)
    close(row_contrastive_loss(x, y, 2.0, scope="global"), row_contrastive_loss(x, y, 2.0))
