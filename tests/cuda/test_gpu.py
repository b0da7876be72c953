"""The CUDA C++ attention on a real GPU, against float64."""

import pytest
import torch

from bench.csrc_cases import CASES, attend, draw, errors
from ipt_fast.ops.patch_attention import backend_status, patch_attention


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_within_twice_the_eager_one(case):
    if reason := backend_status("cuda", torch.float16)["cuda"]:
        pytest.skip(f'impl="cuda" {reason}')
    tensors = [None if x is None else x.cuda() for x in draw(case)]
    found = attend(tensors, case.H, case.scale, "cuda", torch.float16)
    for name, error, allowed in errors(found, tensors, case.H, case.scale):
        assert error <= allowed, (name, error, allowed)
    again = attend(tensors, case.H, case.scale, "cuda", torch.float16)
    assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True))


@pytest.mark.gpu
def test_it_runs_on_the_current_stream_and_in_a_graph():
    if reason := backend_status("cuda", torch.float16)["cuda"]:
        pytest.skip(f'impl="cuda" {reason}')
    q = torch.randn(2, 64, 96, device="cuda", dtype=torch.float16)
    expected = patch_attention(q, q, q, num_heads=2, impl="cuda")
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.graph(graph, stream=stream):
        out = patch_attention(q, q, q, num_heads=2, impl="cuda")
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
