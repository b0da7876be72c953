"""The proof: each stage keeps to its time, none stops another, and the report says what happened."""

import gzip
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import ROOT
from bench.ceilings import Ceilings
from bench.proof import __main__ as proof_main
from bench.proof import photos, report, run, stages, training
from bench.proof.run import StageError
from bench.results_io import Result, Run

CPU = torch.device("cpu")


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "stage.log"
    path.write_text("")
    return path


def python(program):
    return [sys.executable, "-c", program]


def test_a_command_leaves_its_code_and_its_output(log):
    assert run.execute(python("print('said'); raise SystemExit(3)"), log, 20) == 3
    assert log.read_text() == "said\n"


def test_a_command_that_takes_too_long_is_asked_to_end(log):
    program = "import signal, time; signal.signal(signal.SIGTERM, lambda *a: exit(print('saved'))); time.sleep(60)"
    start = time.monotonic()
    assert run.execute(python(program), log, 1.0) is None
    assert time.monotonic() - start < 15
    assert log.read_text() == "saved\n"


def test_what_a_command_left_running_is_ended(log, tmp_path):
    child = f"import time; time.sleep(1.5); open({str(tmp_path / 'alive')!r}, 'w')"
    run.execute(python(f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])"), log, 20)
    time.sleep(2)
    assert not (tmp_path / "alive").exists()


def test_logs_name_no_folder_of_this_machine(log):
    log.write_text(f"\x1b[1mFile {ROOT}/bench/x.py\x1b[0m, {sys.base_prefix}/lib/y.py")
    run.clean(log)
    assert log.read_text() == "File ./bench/x.py, python/lib/y.py"


def test_the_last_line_that_matches(log):
    log.write_text("== 3 passed in 1.0s ==\n\nwarning\n")
    assert run.last_line(log, r" in [\d.]+s") == "3 passed in 1.0s"
    assert run.last_line(log) == "warning"
    assert run.last_line(log, "nothing") == ""


@pytest.fixture
def write_tests(tmp_path):
    programs = {
        "good": "def test_a(): pass\ndef test_b(): pass",
        "bad": "def test_a(): assert 0",
        "dies": "import os\ndef test_a(): os.abort()",
        "slow": "import time\nimport pytest\n@pytest.mark.parametrize('i', range(9))\ndef test_a(i): time.sleep(1)",
    }
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    for name, program in programs.items():
        (tmp_path / f"test_{name}.py").write_text(program + "\n")
    return lambda *names: [tmp_path / f"test_{name}.py" for name in names]


def test_a_file_that_dies_costs_no_other_file_its_tests(write_tests, log):
    with pytest.raises(
        StageError, match=r"1 failed, 2 passed; .*test_bad.py \(exit code 1\), test_dies.py \(exit"
    ) as e:
        run.pytest_files(write_tests("bad", "dies", "good"), log, 60)
    assert "test_good.py" not in str(e.value)
    assert "def test_a(): assert 0" in log.read_text()


def test_what_does_not_begin_in_time_is_counted_as_skipped(write_tests, log):
    line = run.pytest_files(write_tests("slow"), log, 5.0)
    passed, skipped, late = (int(part.split()[0]) for part in line.split(", "))
    assert passed + skipped == 9
    assert skipped == late >= 4
    assert line.endswith("of the skipped out of time")
    assert "out of time: it did not begin within" in log.read_text()


def test_no_file_is_said(log):
    assert run.pytest_files([], log, 10) == "no test of that kind"


def line(step, **changes):
    values = {"step_ms": 10.0, "patches_per_s": 100.0, "data_stall_pct": 0.0, "degrade_ms": 1.0}
    return {"step": step, "memory_gib": 1.0, "loss": 100.0 - step, **values, **changes}


def test_training_is_summarised_after_the_first_steps():
    lines = [line(1, data_stall_pct=90.0), line(10, data_stall_pct=50.0), line(20), line(30, step_ms=30.0,
             data_stall_pct=8.0, patches_per_s=60.0, decode_ms=4.0)]  # fmt: skip
    found = training.summarise(lines, warm_up=10)
    assert found["steps"] == 20
    assert found["step_ms"] == 20.0
    assert found["data_stall_pct"] == pytest.approx(6.0)  # 8 % of 300 ms in 400 ms
    assert found["patches_per_s"] == pytest.approx(70.0)
    assert (found["first_loss"], found["last_loss"], found["decode_ms"]) == (99.0, 70.0, 4.0)


def test_a_training_that_ended_too_early_has_no_summary():
    assert training.summarise([line(1), line(10)], warm_up=10) == {}


def event(name, ts, dur, cat="cpu_op", tid=1):
    return {"ph": "X", "name": name, "ts": ts, "dur": dur, "cat": cat, "tid": tid}


def test_on_a_gpu_the_trace_counts_kernels(tmp_path):
    path = tmp_path / "trace.json.gz"
    events = [event("op", 0, 9000), event("gemm", 1, 3000, "kernel"), event("gemm", 5000, 1000, "kernel"),
              event("copy", 7000, 1000, "gpu_memcpy"), {"ph": "M", "name": "process_name"}]  # fmt: skip
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert training.heaviest(path) == [("gemm", 2, 4.0, 0.8), ("copy", 1, 1.0, 0.2)]


def test_on_a_cpu_the_trace_counts_each_operator_without_those_inside(tmp_path):
    path = tmp_path / "trace.json"
    events = [event("linear", 0, 1000), event("mm", 100, 700), event("mm", 0, 300, tid=2), event("add", 1000, 500)]
    path.write_text(json.dumps({"traceEvents": events}))
    assert training.heaviest(path) == [
        ("mm", 2, 1.0, 1.0 / 1.8),
        ("add", 1, 0.5, 0.5 / 1.8),
        ("linear", 1, 0.3, 0.3 / 1.8),
    ]


@pytest.mark.parametrize("packaged", [True, False])
def test_photos_are_there_without_fetching(packaged, tmp_path, monkeypatch):
    if not packaged:
        monkeypatch.setattr(photos, "found_photos", list)
    elif not photos.found_photos():
        pytest.skip("none of the packages with photos is installed")
    about = photos.write_photos(tmp_path, 3)
    assert about.startswith("3 JPEG files of 500x375, ")
    assert ("packaged" in about) == packaged
    sizes = []
    for path in sorted(tmp_path.glob("*.jpg")):
        with Image.open(path) as image:
            assert image.size == photos.SIZE
            low, high = image.convert("L").getextrema()
            assert high - low > 60
        sizes.append(path.stat().st_size)
    assert len(sizes) == 3 and min(sizes) > 5_000


@pytest.fixture
def proof(tmp_path):
    made = stages.Proof(CPU, tmp_path / "results", small=True)
    yield made
    made.close()


def test_a_stage_that_fails_stops_no_other(proof, capsys):
    def fails(proof, seconds):
        raise StageError("2 failed")

    def breaks(proof, seconds):
        raise KeyError("gone")

    def works(proof, seconds):
        return f"up to {seconds:.0f}"

    todo = [stages.Stage(f.__name__, "what", 100, 5, f) for f in (fails, breaks, works)]
    outcomes = proof_main.run_stages(proof, todo, limit=60)
    assert [o.passed for o in outcomes] == [False, False, True]
    assert [o.line for o in outcomes] == ["2 failed", "KeyError: 'gone'", "up to 5"]
    text = (proof.folder / "proof.md").read_text()
    assert "| fails | what | FAILED | 0 | 2 failed |" in text
    assert "| works | what | passed | 0 | up to 5 |" in text
    assert "No GPU was at hand" in text


def test_on_a_gpu_the_last_stage_gets_the_time_that_is_left(tmp_path):
    made = stages.Proof(CPU, tmp_path, small=False)
    # Two digits: a busy machine takes a second or two for the first stage
    todo = [stages.Stage(name, "", 100, 5, lambda proof, seconds: f"{seconds:.2g}") for name in ("a", "b")]
    assert [o.line for o in proof_main.run_stages(made, todo, limit=300)] == ["1e+02", "3e+02"]
    made.close()


def test_photos_are_made_by_each_command(proof):
    proof.found["photos"] = "of an earlier command"
    assert any(proof.photos().iterdir()) and proof.found["photos"].startswith("48 JPEG files")


def test_no_stage_gets_more_than_what_is_left(tmp_path):
    made = stages.Proof(CPU, tmp_path, small=False)

    def slow(proof, seconds):
        time.sleep(0.5)
        return str(seconds)

    todo = [stages.Stage(name, "", 100, 5, slow) for name in ("a", "b", "c")]
    budgets = [float(o.line) for o in proof_main.run_stages(made, todo, limit=3)]
    assert 0 < budgets[0] <= 3 and budgets[1] <= 2.5 and budgets[2] <= 2
    made.close()


@pytest.mark.parametrize("failing, code", [((), 0), (("decoding",), 1)])
def test_the_exit_code_says_whether_all_passed(failing, code, tmp_path, monkeypatch, capsys):
    def stage(name):
        def body(proof, seconds):
            if name in failing:
                raise StageError("no")
            return "yes"

        return stages.Stage(name, "", 1, 1, body)

    monkeypatch.setattr(proof_main, "PARTS", {"correctness": (stage("decoding"),), "speed": (stage("training"),)})
    assert proof_main.main(["--cpu", "--out", str(tmp_path)]) == code
    assert capsys.readouterr().out.splitlines()[-1].endswith("failed: decoding" if failing else "all passed")


def test_without_a_gpu_and_without_the_option_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert proof_main.main([]) == 2
    assert "--cpu" in capsys.readouterr().err


def test_decoding_of_both_loaders(tmp_path):
    from bench.proof import decode

    photos.write_photos(tmp_path / "photos", 4)
    path = tmp_path / "decoding.json"
    assert decode.main([str(tmp_path / "photos"), "--device", "cpu", "--seconds", "0.2", "--json", str(path)]) == 0
    torch_row, dali_row = json.loads(path.read_text())
    assert torch_row["crops_per_s"] > 1
    if "why_not" in dali_row:
        assert "DALI is not installed" in dali_row["why_not"]
    else:
        assert dali_row["equal_bytes"] == 1.0 and dali_row["largest_difference"] == 0


def test_cuda_attention_is_judged_by_its_error_budget(tmp_path, monkeypatch, capsys):
    from bench.proof import csrc

    path = tmp_path / "csrc.json"
    monkeypatch.setattr(csrc, "CASES", csrc.CASES[2:4])
    command = ["--device", "cpu", "--impl", "cpu", "--json", str(path)]
    assert csrc.main(command) == 0
    good = json.loads(path.read_text())["cases"]
    assert len(good) == 2 and all(0 < row["share"] <= 1 and row["same_bits"] for row in good)
    real = csrc.attend
    for wrong in (lambda x: x * 1.01, lambda x: x + torch.nan, lambda x: x + 1e-3 * torch.rand_like(x)):
        monkeypatch.setattr(csrc, "attend", lambda *args, w=wrong: (*(real(*args)[:-1]), w(real(*args)[-1])))
        assert csrc.main(command) == 1
        assert "FAILED" in capsys.readouterr().out


def test_cuda_attention_that_cannot_be_had_is_said(tmp_path, capsys):
    from bench.proof import csrc

    path = tmp_path / "csrc.json"
    assert csrc.main(["--device", "cpu", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["why_not"] in capsys.readouterr().out


def row(share, same_bits=True):
    return {"case": {}, "worst": "dq", "share": share, "same_bits": same_bits}


@pytest.mark.parametrize(
    "code, cases, why_not, line",
    [
        (0, [row(0.5), row(0.25)], None, r'impl="cpu": 2 cases, at most 0\.50 of the error'),
        (0, [], "needs cuda-core", 'not run: impl="cpu" needs cuda-core'),
        (1, [row(0.5), row(1.2)], None, "1 of 2 cases failed"),
        (1, [row(float("nan"))], None, "1 of 1 cases failed"),
        (1, [row(0.1, same_bits=False)], None, "1 of 1 cases failed"),
        (1, None, None, "left with 1: no such thing"),
        (-11, [row(0.5)], None, "left with -11"),
        (None, None, None, "out of time"),
    ],
)
def test_stage_csrc(proof, monkeypatch, code, cases, why_not, line):
    def execute(command, log, seconds, env=None):
        log.write_text("no such thing")
        if cases is not None:
            (proof.folder / "csrc.json").write_text(json.dumps({"why_not": why_not, "cases": cases}))
        return code

    monkeypatch.setattr(stages, "execute", execute)
    if code == 0:
        assert re.search(line, stages.csrc(proof, 10))
        return
    with pytest.raises(StageError, match=line):
        stages.csrc(proof, 10)


def test_the_path_of_a_v100_is_the_registry_s():
    path = stages.v100_path(CPU)
    assert path["patch_attention"][0] == "sdpa"  # "cuda" comes before it where there is a GPU
    assert "triton" not in {names[0] for names in path.values()}


@pytest.mark.parametrize(
    "code, losses, skipped, failure",
    [
        (0, [80.0, 70.0], 0, None),
        (1, [80.0, 70.0], 0, "patch_attention=sdpa.*left with 1"),
        (0, [80.0], 0, "1 of 2 steps"),
        (0, [80.0, float("nan")], 0, "losses"),
        (0, [80.0, 70.0], 1, "1 skipped"),
    ],
)
def test_stage_v100(proof, monkeypatch, code, losses, skipped, failure):
    seen = []

    def execute(command, log, seconds, env=None):
        seen.append(env["IPT_FAST_IMPL"])
        out = Path(command[command.index("--out") + 1])
        out.mkdir()
        lines = [json.dumps({"step": n, "loss": loss, "skipped": skipped}) for n, loss in enumerate(losses, 1)]
        (out / "log.jsonl").write_text("\n".join(lines) + "\n")
        return code

    monkeypatch.setattr(stages, "execute", execute)
    if failure is None:
        assert stages.v100(proof, 10) == "2 steps in fp32: sdpa loss 80.00 to 70.00"
    else:
        with pytest.raises(StageError, match=failure):
            stages.v100(proof, 10)
    (impl,) = seen
    assert "patch_attention=sdpa" in impl and "patch_contrastive_loss=" in impl and "degrade=eager" in impl


def result(contender, ms, dtype="bfloat16", shape="B=64", op="patch_attention"):
    return Result(
        op, "forward", shape, contender, dtype, "eager", 1e-3 * ms, 0.99e-3 * ms, 1.01e-3 * ms, 9, 1.0, 1.0, True, None
    )


def page(**changes):
    ceilings = Ceilings("X", 2, 2e12, {"bfloat16": 8e14})
    results = [result("eager", 9), result("torch cudnn", 2), result("triton", 1), result("cpu", 5)]
    results += [result(name, ms, shape="B=1") for name, ms in (("eager", 1), ("triton", 2))]
    results += [result(name, ms, shape="B=2") for name, ms in (("eager", 1), ("triton", 1.01))]
    found = {
        "photos": "4 JPEG files",
        "training": {"steps": 100, "patches_per_s": 1234.5, "data_stall_pct": 0.126},
        "trace": [("gemm", 3, 1.5, 0.75)],
        "decoding": [{"loader": "torch loader", "crops_per_s": 900.0}, {"loader": "DALI loader", "why_not": "absent"}],
        "checks": {"throughput": [
            {"case": "a", "passed": True, "found": "", "values":
             {"contender": "ipt_fast", "B": 64, "patches_per_s": 900.0, "step_ms": 71.0, "mfu": 0.41, "busy": 0.93}},
            {"case": "b", "passed": True, "found": "", "values":
             {"contender": "official network", "B": 64, "patches_per_s": 450.0, "step_ms": 142.0}},
            {"case": "c", "passed": None, "found": "does not fit", "values": None},
        ]},
    }  # fmt: skip
    parts = {
        "correctness": [
            report.Outcome("ops", "Is every op right?", False, 3, "1 of 9 failed: ffn"),
            report.Outcome("sanitizer", "Any race?", True, 0, "not run: compute-sanitizer is not installed"),
        ],
        "speed": [report.Outcome("attention", "Is attention faster?", True, 9, "8 results")],
    }
    run = Run({"device": "cuda"}, ceilings, results, [{"case": "x::bench[flex]", "reason": "out of time"}])
    return report.Page(**{"title": "X", "machine": {"device": "cuda", "torch": "2"}, "parts": parts, "found": found,
                          "run": run, **changes})  # fmt: skip


def test_the_page_says_what_was_asked_who_won_and_what_was_not_measured(tmp_path):
    report.write_page(page(), tmp_path)
    text = (tmp_path / "proof.md").read_text()
    assert (tmp_path / "verdicts.png").stat().st_size > 5000 and (tmp_path / "throughput.png").stat().st_size > 5000
    assert "0 of 2 stages passed, 1 could not be run here. **Failed: Is every op right? 1 of 9 failed: ffn**" in text
    assert "of 3 comparisons ours won 1, lost 1; 1 are level. The widest loss: attention, forward, B=1" in text
    assert "| attention, forward, B=64 | bfloat16 | triton, 1 ms | torch cudnn, 2 ms | **ours, 2.00x** |" in text
    assert "other, by 2.00x" in text and "level (0.99x)" in text
    assert "ipt_fast 900.0 patches/s, 2.00x of official network 450.0 patches/s, 41.0%" in text
    assert "the GPU busy 93% of the time" in text
    not_measured = text.partition("## Not measured")[2].partition("## ")[0]
    for what in ("out of time", "does not fit", "compute-sanitizer is not installed", "absent"):
        assert what in not_measured
    assert "copy 2,000.0 GB/s; matmul bfloat16 800,000 GFLOP/s" in text
    assert "| data stall, % of the time | 0.13 |" in text
    assert "| gemm | 3 | 1.50 | 75.0% |" in text
    assert "No GPU" not in text


def test_the_page_of_a_part_alone_says_what_is_still_to_be_asked():
    text = report.markdown(page(parts={"correctness": page().parts["correctness"], "speed": []}, run=None, found={}))
    assert "Is it fast? Not asked yet: `bash bench/gpu_proof.sh speed`." in text
    assert "Who won" not in text


def test_each_command_keeps_what_the_other_found(proof, monkeypatch):
    made = {name: stages.Stage(name, f"{name}?", 9, 9, lambda proof, seconds: "yes") for name in ("ops", "attention")}
    monkeypatch.setattr(proof_main, "PARTS", {"correctness": (made["ops"],), "speed": (made["attention"],)})
    for part in ("correctness", "speed"):
        assert proof_main.main([part, "--cpu", "--out", str(proof.folder)]) == 0
    text = (proof.folder / "proof.md").read_text()
    assert text.index("| ops |") < text.index("| attention |")
    assert proof_main.main(["speed", "--cpu", "--only", "ops", "--out", str(proof.folder)]) == 2


def test_the_script_finds_no_python_and_says_what_to_do():
    done = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu_proof.sh"), "--cpu"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": "no-such-python"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert "name one with PYTHON=" in done.stderr
