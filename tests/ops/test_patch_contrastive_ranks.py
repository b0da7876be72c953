"""scope="global": gloo ranks that hold a slice each equal one process that holds the whole batch."""

import types
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ipt_fast.ops import patch_contrastive_loss
from tests.ranks import run_ranks

IMAGES, N, D = 2, 5, 7  # IMAGES a rank
IMPLS = ("eager", "gemm")
MODES = ("paper", "supcon")
WEIGHTS = (0.3, -2.0, 1.5, 0.7, 4.0, 1.1, -0.2, 0.9)  # of the values per image, for reduction="none"


def whole_batch(ranks):
    return torch.randn(ranks * IMAGES, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def projection():
    layer = nn.Linear(D, D, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(8)))
        layer.bias.zero_()
    return layer


def losses(features, weights, **options):
    """Value and gradient with respect to ``features``, for every reduction."""
    found = {}
    for reduction in ("mean", "sum", "none"):
        f = features.clone().requires_grad_()
        loss = patch_contrastive_loss(f, reduction=reduction, **options)
        (loss @ weights if reduction == "none" else loss).backward()
        found[reduction] = loss.detach(), f.grad
    return found


def ddp_gradient(features, impl):
    """In a function of its own, so that DDP is gone before the process group: the last to hold a gloo group joins a
    worker thread, and DDP would do that while it holds the interpreter lock that the worker may be waiting for.
    """
    model = nn.parallel.DistributedDataParallel(projection())
    patch_contrastive_loss(model(features), scope="global", impl=impl).backward()
    return model.module.weight.grad.clone()


def traffic(features):
    """Bytes sent by one forward and backward of "gemm", and buffers it made for what other ranks send."""
    sent, received = 0, []
    original = dist.batch_isend_irecv

    def counting(transfers):
        nonlocal sent
        sent += sum(t.tensor.nbytes for t in transfers if t.op is dist.isend)
        received.extend(t.tensor for t in transfers if t.op is dist.irecv)  # kept, so that no address comes twice
        return original(transfers)

    dist.batch_isend_irecv = counting
    f = features.clone().requires_grad_()
    patch_contrastive_loss(f, scope="global", impl="gemm").backward()
    dist.batch_isend_irecv = original
    return sent, len({t.data_ptr() for t in received})


@contextmanager
def little_memory(mode):
    """Make "gemm" keep no statistics, sum for some images and positions at a time, and send an image's tokens alone."""
    gemm = "ipt_fast.ops._patch_contrastive_loss_gemm"
    images, positions, partners = (1, 3, 2) if mode == "paper" else (4, 1, 1)
    sizes = {"images": images, "positions": positions, "partners": partners}
    plan = types.SimpleNamespace(rows=4, cosines=60, held=False, **sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{gemm}._KEPT", 0)
        patch.setattr(f"{gemm}._VISIT", N * D * torch.float64.itemsize)
        patch.setattr(f"{gemm}._plan", lambda *_: plan)
        yield


def rank_main(rank, ranks):
    mine = slice(rank * IMAGES, (rank + 1) * IMAGES)
    features, weights = whole_batch(ranks)[mine], torch.tensor(WEIGHTS[mine], dtype=torch.float64)
    found = {}
    for impl in IMPLS:
        for mode in MODES:
            found[impl, mode] = losses(features, weights, mode=mode, scope="global", impl=impl)
        found[impl, "ddp"] = ddp_gradient(features, impl)
        if ranks > 1:
            found[impl, "one image a rank"] = patch_contrastive_loss(features[:1], scope="global", impl=impl)
    for mode in MODES:
        with little_memory(mode):
            found["gemm in little memory", mode] = losses(features, weights, mode=mode, scope="global", impl="gemm")
    found["local"] = patch_contrastive_loss(features, scope="local")
    found["traffic"] = traffic(features)
    return found


@pytest.fixture(scope="module", params=[1, 2, 3, 4], ids="{} ranks".format)
def results(request, tmp_path_factory):
    return run_ranks(rank_main, request.param, tmp_path_factory.mktemp("ranks"))


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("impl", [*IMPLS, "gemm in little memory"])
@pytest.mark.parametrize("mode", MODES)
def test_ranks_equal_one_process(results, mode, impl):
    ranks = len(results)
    features, weights = whole_batch(ranks), torch.tensor(WEIGHTS[: ranks * IMAGES], dtype=torch.float64)
    want = losses(features, weights, mode=mode, impl="eager")
    got = [result[impl, mode] for result in results]
    # The mean over ranks is the loss of the whole batch, and gradients averaged over ranks are its gradients.
    close(torch.stack([g["mean"][0] for g in got]).mean(), want["mean"][0])
    close(torch.cat([g["mean"][1] for g in got]) / ranks, want["mean"][1])
    for reduction in ("sum", "none"):
        close(torch.cat([g[reduction][1] for g in got]), want[reduction][1])
    close(torch.stack([g["sum"][0] for g in got]).sum(), want["sum"][0])
    close(torch.cat([g["none"][0] for g in got]), want["none"][0])


@pytest.mark.parametrize("impl", IMPLS)
def test_ddp_has_the_gradients_of_one_process_on_every_rank(results, impl):
    layer = projection()
    patch_contrastive_loss(layer(whole_batch(len(results))), impl="eager").backward()
    for result in results:
        close(result[impl, "ddp"], layer.weight.grad)


@pytest.mark.parametrize("impl", IMPLS)
def test_one_image_a_rank_has_the_other_ranks_as_negatives(results, impl):
    if len(results) == 1:
        pytest.skip("one image has no negatives")
    whole = whole_batch(len(results))[::IMAGES]
    got = torch.stack([result[impl, "one image a rank"] for result in results])
    close(got, patch_contrastive_loss(whole, reduction="none", impl="eager"))


def test_a_rank_sends_its_share_and_makes_no_more_buffers_for_more_ranks(results):
    ranks, number = len(results), torch.float64.itemsize
    features, statistics, weights = IMAGES * N * D * number, IMAGES * N * N * number, IMAGES * number
    for result in results:
        sent, buffers = result["traffic"]
        assert sent == (ranks - 1) * (2 * features + statistics + weights)
        # Features forward; features, statistics and weights backward: those in use and those on their way
        assert buffers == min(2, ranks - 1) * (1 + 3)


def test_local_scope_ignores_the_other_ranks(results):
    for whole, result in zip(whole_batch(len(results)).split(IMAGES), results, strict=True):
        close(result["local"], patch_contrastive_loss(whole))


def test_without_a_process_group_global_is_local():
    features = whole_batch(2)
    close(patch_contrastive_loss(features, scope="global"), patch_contrastive_loss(features))
