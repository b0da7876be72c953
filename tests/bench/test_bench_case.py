"""Measuring one contender: what is noted, how memory is counted."""

import pytest
import torch

from bench.case import Work, measure_call, peak_bytes
from bench.ceilings import measure_ceilings
from ipt_fast.ops._registry import assume

CPU = torch.device("cpu")


class Benchmark:
    """Stands in for pytest-benchmark's fixture."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, function, rounds, warmup_rounds, iterations):
        self.rounds = rounds
        function()


def test_what_was_measured_is_noted():
    benchmark, calls = Benchmark(), []
    x = torch.ones(64, 64)
    measure_call(
        benchmark,
        lambda: calls.append(x @ x),
        device=CPU,
        small=True,
        op="op",
        contender="eager",
        shape="64",
        dtype=torch.float32,
        work=Work(flops=2 * 64**3, bytes=3 * x.nbytes),
    )
    info = benchmark.extra_info
    assert (info["op"], info["contender"], info["dtype"], info["direction"]) == ("op", "eager", "float32", "forward")
    assert (info["flops"], info["bytes"]) == (524288, 49152)
    assert info["peak_bytes"] >= x.nbytes
    assert 2 <= benchmark.rounds <= 10
    assert len(calls) == 3 + info["calls_per_round"]


def test_peak_counts_what_is_held_at_once():
    x = torch.ones(1000, 1000)

    def one_after_another():
        (x + 1).sum()
        (x + 2).sum()

    def together():
        return x + 1, x + 2

    assert peak_bytes(one_after_another, CPU) == pytest.approx(x.nbytes, rel=0.05)
    assert peak_bytes(together, CPU) == pytest.approx(2 * x.nbytes, rel=0.05)


def test_ceilings_are_rates():
    ceilings = measure_ceilings(CPU, seconds=0.01, side=256)
    assert ceilings.copy_bandwidth > 1e8
    assert {"float32", "bfloat16"} == set(ceilings.matmul_rate)
    assert all(rate > 1e8 for rate in ceilings.matmul_rate.values())


@pytest.mark.parametrize("dtype, words", [(torch.float16, None), (torch.bfloat16, "cuda has float16 kernels alone")])
def test_attention_skips_a_backend_that_has_no_kernel_of_the_dtype(dtype, words):
    from bench.bench_patch_attention import skip_where_it_cannot_run

    with assume((9, 0)):
        if words is None:
            skip_where_it_cannot_run(torch.device("cuda"), "cuda", dtype, 8, 256)
            return
        with pytest.raises(pytest.skip.Exception, match=words):
            skip_where_it_cannot_run(torch.device("cuda"), "cuda", dtype, 8, 256)
