"""From a benchmark's times to shares, factors and files."""

import csv
import json

import pytest

from bench import report, results_io
from bench.ceilings import Ceilings, highest
from bench.results_io import Run

CEILINGS = Ceilings("Test CPU", 2, copy_bandwidth=1e9, matmul_rate={"float32": 1e11})


def case(contender, data, dtype="float32", shape="N=4", **changes):
    info = {
        "op": "op",
        "contender": contender,
        "shape": shape,
        "dtype": dtype,
        "direction": "forward",
        "baseline": "eager",
        "device": "cpu",
        "flops": 1e9,
        "bytes": 1e6,
        "calls_per_round": 10,
        "cuda_graph": False,
        "peak_bytes": 1000,
    }
    return {"stats": {"data": data}, "extra_info": info | changes}


@pytest.fixture
def read(tmp_path):
    def read(*cases):
        path = tmp_path / "times.jsonl"
        path.write_text("".join(json.dumps(case) + "\n" for case in cases))
        return results_io.read_benchmarks(path, CEILINGS)

    return read


def test_times_are_of_one_call_and_quantiles_are_of_rounds(read):
    (result,) = read(case("eager", [0.5, 0.1, 0.2, 0.3, 0.4, 0.6]))
    assert result.median == pytest.approx(0.035)
    assert (result.q20, result.q80) == (pytest.approx(0.02), pytest.approx(0.05))
    assert result.rounds == 6


def test_shares_of_the_ceilings(read):
    (result,) = read(case("eager", [0.2]))  # 20 ms: 1e6 bytes against 1e9/s, 1e9 FLOP against 1e11/s
    assert result.copy == pytest.approx(0.05)
    assert result.matmul == pytest.approx(0.5)


def test_a_dtype_without_a_ceiling_has_no_share(read):
    (result,) = read(case("eager", [0.2], dtype="float64"))
    assert result.matmul is None
    assert result.copy is not None


def test_gemms_in_another_dtype_count_against_their_own_ceiling(tmp_path):
    path = tmp_path / "times.jsonl"
    path.write_text(json.dumps(case("eager", [0.2], gemm_dtype="bfloat16")))
    both = Ceilings("Test CPU", 2, 1e9, {"float32": 1e11, "bfloat16": 4e11})
    assert results_io.read_benchmarks(path, both)[0].matmul == pytest.approx(0.125)


def test_ceilings_are_the_highest_and_say_how_steady_they_were():
    measured = [Ceilings("Test CPU", 2, copy, {"float32": rate}) for copy, rate in ((1e9, 4e11), (9e8, 1e11))]
    best = highest(measured)
    assert (best.copy_bandwidth, best.matmul_rate, best.steady) == (1e9, {"float32": 4e11}, 0.25)
    assert "down to 25% of these" in report.ceilings_line(best)
    assert "left alone" not in report.ceilings_line(CEILINGS)


def test_faster_is_against_the_baseline_of_the_same_shape_and_dtype(read):
    results = read(
        case("eager", [1.0]),
        case("eager", [0.8], dtype="bfloat16"),
        case("fused", [0.2], dtype="bfloat16"),
        case("fused", [0.5]),
        case("eager", [9.0], shape="N=8"),
    )
    assert [r.faster for r in results] == pytest.approx([1.0, 1.0, 4.0, 2.0, 1.0])


def test_a_baseline_may_bind_the_dtype(read):
    results = read(
        case("eager", [1.0], baseline="eager float32"),
        case("eager", [0.5], dtype="bfloat16", baseline="eager float32"),
    )
    assert results[1].faster == pytest.approx(2.0)


def test_without_a_baseline_there_is_no_factor(read):
    (result,) = read(case("fused", [0.2]))
    assert result.faster is None
    assert "x" not in result.row()[5]


def test_cases_of_others_are_left_out(read):
    assert read({"stats": {"data": [1.0]}, "extra_info": {}}) == []


@pytest.fixture
def run(read):
    results = read(case("eager", [1.0, 1.1]), case("fused", [0.5], peak_bytes=None))
    skipped = [{"case": "bench/b.py::bench_x[triton]", "reason": "needs a CUDA device"}]
    return Run({"device": "cpu", "torch": "2"}, CEILINGS, results, skipped)


def test_files_are_written_and_read_back(run, tmp_path):
    folder = tmp_path / "new" / "results"
    report.write_run(run, folder)
    again = results_io.read_run(folder)
    assert again.ceilings == run.ceilings
    assert [r.row() for r in again.results] == [r.row() for r in run.results]
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert [row["contender"] for row in rows] == ["eager", "fused"]
    assert [float(row["median"]) for row in rows] == pytest.approx([r.median for r in run.results])
    assert "data" not in (folder / "results.json").read_text()


def test_markdown_says_what_was_not_measured_and_that_no_gpu_was_there(run):
    text = report.markdown(run)
    assert "| bench_x[triton] | needs a CUDA device |" in text
    assert "No GPU was at hand" in text
    assert "2.10x" in text


def test_plots_are_drawn(run, tmp_path):
    pytest.importorskip("matplotlib")
    from bench.plots import draw_run

    paths = draw_run(run, tmp_path)
    assert [p.name for p in paths] == ["op_forward.png", "roofline.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


def test_a_sheet_puts_together_what_is_compared(read):
    pytest.importorskip("matplotlib")
    from bench.plots import sheet_rows

    both = [case(name, [1.0], dtype=dtype) for name in ("eager", "fused") for dtype in ("float32", "bfloat16")]
    apart = ["N=4, float32", "eager", "fused", "N=4, bfloat16", "eager", "fused"]
    assert [row.label for row in sheet_rows(read(*both))] == apart
    for each in both:
        each["extra_info"]["baseline"] = "eager float32"
    together = ["N=4", "eager float32", "eager bfloat16", "fused float32", "fused bfloat16"]
    assert [row.label for row in sheet_rows(read(*both))] == together


def test_a_folder_without_results_is_a_usage_error(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert report.main([str(tmp_path)]) == 2
    assert "no results.json" in capsys.readouterr().err


def test_skips_and_failures_are_kept_with_their_reasons(monkeypatch):
    from types import SimpleNamespace

    from bench import conftest

    kept: list[dict[str, str]] = []
    monkeypatch.setattr(conftest, "SKIPPED", kept)
    skip = SimpleNamespace(
        skipped=True, failed=False, nodeid="b.py::x[triton]", longrepr=("b.py", 3, "Skipped: no GPU")
    )
    fail = SimpleNamespace(skipped=False, failed=True, nodeid="b.py::y", longrepr="trace\nE   RuntimeError: no")
    done = SimpleNamespace(skipped=False, failed=False, nodeid="b.py::z", longrepr=None)
    for outcome in (skip, fail, done):
        conftest.pytest_runtest_logreport(outcome)
    assert kept == [
        {"case": "b.py::x[triton]", "reason": "no GPU"},
        {"case": "b.py::y", "reason": "failed: E   RuntimeError: no"},
    ]
