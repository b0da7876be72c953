"""The compile gate: all registered kernels pass it, and it refuses what it must."""

import pytest

pytest.importorskip("triton", reason="kernels cannot be compiled without triton")

from bench import offline
from bench.offline_cases import OfflineCase
from bench.ptx_facts import PtxFacts


@pytest.fixture(scope="module")
def fixture_outcomes():
    return {(o.kernel_name, o.capability): o for o in offline.run(["tests.bench.gate_fixture_kernels"])}


def test_every_registered_kernel_passes():
    modules = offline.case_modules()
    if not modules:
        pytest.skip("no op has registered kernels")
    outcomes = offline.run(modules)
    assert {o.op for o in outcomes} and len(outcomes) >= len(modules)
    assert [o.row() for o in outcomes if o.problem] == []


@pytest.mark.parametrize("kernel", ["good", "memory"])
@pytest.mark.parametrize("capability", [80, 90])
def test_good_kernels_pass(fixture_outcomes, kernel, capability):
    outcome = fixture_outcomes[kernel, capability]
    assert outcome.problem is None
    assert outcome.facts.arch.startswith(f"sm_{capability}")
    assert outcome.facts.registers > 0
    assert (outcome.facts.mma > 0) == (kernel == "good")


@pytest.mark.parametrize(
    "kernel, reason",
    [
        ("spilling", "spills"),
        ("narrow", "32-bit offsets into Y"),
        ("no tensor cores", "no tensor-core instruction"),
        ("too much shared", "shared memory over the limit of 166912"),
        ("misnamed", r"without a type or constant: ['K']"),
    ],
)
def test_the_gate_has_teeth(fixture_outcomes, kernel, reason):
    assert reason in fixture_outcomes[kernel, 80].problem


def test_wide_offsets_pass_also_where_a_loop_carries_the_pointer(fixture_outcomes):
    assert fixture_outcomes["wide", 80].problem is None
    assert fixture_outcomes["wide", 80].facts.narrow == ()
    assert fixture_outcomes["narrow", 80].facts.narrow == ("X", "Y")  # of which one is said to be small


def test_a_kernel_that_spills_fails():
    spilling = PtxFacts("sm_120a", 255, 0, 1, 64)
    assert offline.judge(spilling, 1024, True) == "spills 64 bytes"


def test_interpreter_in_the_environment_does_not_reach_the_compiler(monkeypatch):
    import os

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    outcomes = {o.kernel_name: o for o in offline.run(["tests.bench.gate_fixture_kernels"], workers=1)}
    assert outcomes["good"].facts is not None
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_a_broken_case_file_fails_by_name():
    (outcome,) = offline.run(["bench.offline_cases.not_there"], workers=1)
    assert outcome.op == "not_there"
    assert "ModuleNotFoundError" in outcome.problem


def test_markdown_holds_every_kernel(fixture_outcomes, tmp_path):
    path = tmp_path / "results" / "offline.md"
    offline.write_markdown(list(fixture_outcomes.values()), path)
    text = path.read_text()
    assert "triton" in text
    assert text.count("| fixture |") == len(fixture_outcomes) == 10


def test_cuda_kernels_are_judged_by_the_same_measure(monkeypatch, tmp_path):
    def refused(source, arch):
        raise RuntimeError("no such instruction")

    facts = [PtxFacts("sm_80", 100, 1024, mma, spills) for mma, spills in ((8, 0), (0, 0), (8, 64))]
    compilers = {"good": ((80,), lambda *_: facts[0]), "slow": ((80,), lambda *_: facts[1]),
                 "spilling": ((80,), lambda *_: facts[2]), "broken": ((80,), refused)}  # fmt: skip
    monkeypatch.setattr(offline.csrc_facts, "compilers", lambda: compilers)
    monkeypatch.setattr(offline.csrc_facts, "sources", lambda: [tmp_path / "op.cu"])
    assert [o.problem for o in offline.check_csrc()] == [
        None,
        "no tensor-core instruction",
        "spills 64 bytes",
        "does not compile: no such instruction",
    ]


def test_a_long_reason_is_printed_once_below_the_table(fixture_outcomes):
    rows, notes = offline.shortened([*fixture_outcomes.values()] * 2)
    assert len(rows) == 20
    assert len(notes) == len(set(notes)) >= 1
    assert "without a type or constant" in notes[-1]
    assert sum(str(row[-1]) == f"fails, see [{len(notes)}]" for row in rows) == 2
    assert sum(row[-1] == "ok" for row in rows) == 10


def test_label_is_made_from_types_and_constants():
    case = OfflineCase("op", "k", None, types={"X": "*bf16", "n": "i32"}, consts={"N": 256, "CAUSAL": False})
    assert case.describe() == "bf16 N=256"


def test_unknown_op_is_a_usage_error(capsys):
    assert offline.main(["--check", "--only", "nothing_such"]) == 2
    assert "no cases for 'nothing_such'" in capsys.readouterr().err
