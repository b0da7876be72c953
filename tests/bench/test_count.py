"""The counted training step: what it may ask of a device, held so that nothing lets it grow; counting counts."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from bench.count.__main__ import main, summary_row
from bench.count.predict import seconds_by_kind
from bench.count.pretend import HostFunctions, pretend_cuda
from bench.count.rates import DEVICES
from bench.count.restoration import trace_restore
from bench.count.trace import trace_step
from ipt_fast.engine.config import recipe


@pytest.fixture(scope="module")
def base():
    return trace_step(recipe("base", ["batch_size=8"]), "sr2", DEVICES["h100"])


def test_base_on_an_h100_asks_for_no_more_than_it_does(base):
    assert base.launches <= 869
    assert len(base.of("cast")) <= 6
    assert not any(op.is_large_cat for op in base.operations)
    assert sum(op.bytes for op in base.operations) <= 13.25e9
    assert base.waits == ()


def test_flops_are_those_of_the_network(base):
    # 33.3 GMAC a window forward, twice that backward; the contrastive loss and a little of the tail's composition more.
    network = sum(op.flops for op in base.operations if op.kind != "patch_contrastive_loss")
    assert 1.0 < network / (8 * 3 * 2 * 33.3e9) < 1.06


def test_the_ops_own_kernels_serve(base):
    assert len(base.of("patch_attention")) == 72 and len(base.of("patch_contrastive_loss")) == 6
    assert len(base.of("degrade")) == 1


def test_fewer_patches_take_fewer_bytes_and_as_many_launches(base):
    fewer = trace_step(recipe("base", ["batch_size=4"]), "sr2", DEVICES["h100"])
    assert fewer.launches == base.launches
    assert sum(seconds_by_kind(fewer, DEVICES["h100"]).values()) < sum(seconds_by_kind(base, DEVICES["h100"]).values())


def test_waits_are_seen():
    with pretend_cuda((9, 0), 80 << 30), HostFunctions() as host:
        x = torch.empty(4, 3, device="cuda")
        torch.tensor(3.0, device="cuda")
        torch.empty(3).to("cuda")
        torch.empty(3).to("cuda", non_blocking=True)  # from pinned memory, as the loader's batches are
        assert len(host.waits) == 2
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        assert len(host.waits) == 3


def test_a_photo_waits_for_its_result_alone():
    """And 117 windows take as many launches as 9, also outside the network."""
    large, small = (
        trace_restore("tiny", "sr2", size, DEVICES["h100"], torch.bfloat16) for size in ((321, 481), (80, 80))
    )
    assert large.waits == small.waits == ("synchronize",)
    assert large.launches == small.launches <= 92
    assert large.operations[-1].bytes == 2 * 3 * 642 * 962  # to the host, as uint8
    assert sum(op.bytes for op in large.operations) > 10 * sum(op.bytes for op in small.operations)


def test_a_list_of_small_photos_waits_once_and_shares_the_networks_launches():
    def count(photos):
        return trace_restore("tiny", "sr2", (64, 64), DEVICES["h100"], torch.bfloat16, 128, photos)

    alone, one, several = count(None), count(1), count(33)  # of 4 windows each: two batches
    assert several.waits == one.waits == ("synchronize",) and one.launches <= alone.launches + 2
    gemms = [sum(op.name in ("addmm", "mm") for op in counted.operations) for counted in (one, several)]
    assert gemms[0] > 0 and gemms[1] == 2 * gemms[0]


def test_a_photo_in_fp8():
    counted = trace_restore("tiny", "sr2", (80, 80), DEVICES["h100"], torch.float8_e4m3fn)
    assert counted.waits == ("synchronize",) and counted.launches <= 289
    assert sum(op.name == "_scaled_mm" for op in counted.operations) == 24


def test_mfu_is_against_the_rate_of_the_steps_own_gemms(base):
    h100 = DEVICES["h100"]
    *_, teraflops, device_ms, _, _, mfu = summary_row(base, h100, 8)
    rate = float(teraflops) * 1e12 / (float(device_ms) * 1e-3)
    assert float(mfu.removesuffix(" %")) == pytest.approx(100 * rate / h100.flops["bfloat16"], abs=1)


def test_command_writes_a_report_and_a_plot(tmp_path, capsys):
    arguments = ["--preset", "tiny", "--batch-size", "2", "--device", "h100", "a100", "--out", str(tmp_path)]
    assert main(arguments) == 0
    said, report = capsys.readouterr().out, (tmp_path / "count.md").read_text()
    assert "gemm" in said and "patches/s" in said
    assert "nothing was measured on a GPU" in report and report.count("## ") == 2
    assert (tmp_path / "count.png").stat().st_size > 10_000
