"""The bounds of the kernels: the arithmetic by hand for one, and no kernel forgotten."""

import importlib

import pytest

pytest.importorskip("triton", reason="the kernels need triton")

from bench import offline
from bench.bounds.__main__ import OPS, bounds, launches, main
from bench.bounds.bound import Bound
from bench.bounds.launch import Launch, Work
from bench.bounds.model import pipe_seconds, resident_blocks, unevenness, waves
from bench.count.rates import PEAKS
from bench.ptx_facts import PtxFacts
from ipt_fast.cuda.kernels import kernel_of


def test_attention_backward_by_hand():
    # 64 images, 12 heads, 256 queries and keys of 48: 768 programs of a head each. A bfloat16 [256, 48] is 24,576
    # bytes, a float32 a row 1,024.
    (launch,) = (a for a in launches("patch_attention", 64, "h100") if a.kernel == "backward q k v")
    assert (launch.programs, launch.warps, launch.times) == (768, 8, 1)
    assert launch.work.hbm == 768 * (8 * 24_576 + 2 * 1_024) + 2 * 12 * 24_576 == 153_157_632
    assert launch.work.tensor == 768 * 5 * 2 * 256 * 256 * 48 == 24_159_191_040
    assert launch.work.exp == 768 * 65_536 == 50_331_648
    seconds = pipe_seconds(launch, PEAKS["h100"])
    assert seconds["HBM"] == pytest.approx(153_157_632 / 3.35e12)  # 45.7 us
    # 768 programs on 132 SMs: the busiest has 6, of 31,457,280 FLOPs each, at 4,096 a clock of 1.83 GHz.
    assert seconds["tensor"] == pytest.approx(6 * 31_457_280 / 4_096 / 1.83e9)  # 25.2 us
    assert seconds["exp"] == pytest.approx(6 * 65_536 / 16 / 1.83e9)
    bound = Bound(launch, "h100", PtxFacts("sm_90a", 226, 81_152, 0, 0), seconds, None)
    assert bound.limit == "HBM" and bound.bound == seconds["HBM"]
    assert bound.row()[-1] == "not measured" and "8 (1 x 8)" in bound.row()


@pytest.mark.parametrize(
    "device, registers, shared, warps, blocks",
    [
        ("h100", 226, 81_152, 8, 1),  # 8 warps x 32 x 232 registers: one quarter has two warps
        ("h100", 157, 65_536, 4, 3),  # both: 3 warps a quarter, and 3 x 66,560 of 233,472 bytes
        ("a100", 185, 65_536, 4, 2),  # 16,384 / (32 x 192) = 2 warps a quarter
        ("v100", 168, 23_552, 4, 3),
        ("h100", 32, 0, 8, 8),  # 64 warps
        ("h100", 16, 0, 1, 32),  # 32 blocks
    ],
)
def test_resident_blocks(device, registers, shared, warps, blocks):
    assert resident_blocks(PtxFacts("", registers, shared, 0, 0), warps, PEAKS[device]) == blocks


def test_last_wave_counts():
    one = Launch("op", "k", "", 1, 133, 4, Work(1, 1), kernel_of("forward", 48, 70))
    assert unevenness(one, PEAKS["h100"]) == 264 / 133  # one SM has two programs
    assert waves(one, 2, PEAKS["h100"]) == 133 / 264


def test_peak_rates_are_those_of_the_data_sheets():
    teraflops = {name: peak.sms * peak.tensor * peak.clock / 1e12 for name, peak in PEAKS.items()}
    assert {name: round(rate) for name, rate in teraflops.items()} == {"v100": 125, "a100": 312, "h100": 989}


def test_no_registered_kernel_is_forgotten():
    cases = [case for module in offline.case_modules() for case in importlib.import_module(module).offline_cases()]
    registered = {(case.op, case.kernel_name) for case in cases}
    bound = {(a.op, a.kernel) for op in OPS if op != "csrc" for a in launches(op, 64, "a100")}
    assert registered == bound
    assert {a.kernel for a in launches("csrc", 64, "v100")} == {"csrc forward", "csrc backward"}


@pytest.mark.parametrize("device", PEAKS)
def test_every_launch_has_work(device):
    found = [a for op in OPS for B in (1, 8, 64, 256) for a in launches(op, B, device)]
    assert found
    for a in found:
        assert a.programs > 0 and a.times > 0 and a.work.hbm > 0 and a.work.l2 > 0, (a.op, a.kernel)


def test_a_compiled_kernel_gets_its_facts(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    facts = PtxFacts("sm_90a", 100, 1024, 8, 0)
    asked = []
    monkeypatch.setattr("bench.bounds.__main__.compile_case", lambda case, arch: asked.append(arch) or facts)
    found = list(bounds(["pixelshuffle_tail"], [8, 64], "h100", []))
    assert [(b.launch.shape, b.launch.B) for b in found][:3] == [("x2", 8), ("x2", 64), ("x3", 8)]
    assert asked == [90, 90, 90] and all(b.facts is facts for b in found)  # once a kernel, not once a batch size


def test_the_interpreter_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main([]) == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err
