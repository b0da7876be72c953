"""Others' networks are trained for a time, run on whole images, and come into one table with ours."""

import csv

import pytest
import torch

from bench.weights import compare, others
from bench.weights.classical import in_levels
from ipt_fast.tasks import get_task
from tests.data.photo_files import write_jpegs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    photos, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("others")
    write_jpegs(photos, 4)
    for task in ("sr2", "denoise50"):
        others.main(["edsr", "--tasks", task, "--data", str(photos), "--seconds", "0.2", "--out", str(out)])
    return out


def test_a_trained_network_comes_back_and_takes_any_size(trained):
    network, notes = others.load(trained / "edsr_sr2.pt")
    assert notes["steps"] >= 1 and notes["seconds"] == 0.2
    lq = torch.rand(1, 3, 13, 18) * 255
    output = compare.whole(network)(lq, get_task("sr2"))
    assert output.shape == (1, 3, 26, 36)
    padded = torch.nn.functional.pad(lq, (0, 6, 0, 3), mode="reflect")
    assert (output - network(padded)[..., :26, :36]).abs().max() < 4  # bfloat16


def test_a_classical_method_gets_units_and_gives_levels():
    seen = []
    method = in_levels(lambda image, sigma: seen.append((image.max(), sigma)) or image[::-1])
    lq = torch.arange(48.0).view(1, 3, 4, 4)
    assert torch.allclose(method(lq, get_task("denoise50")), lq.flip(-2), atol=1e-4)
    assert seen == [(pytest.approx(47 / 255), pytest.approx(50 / 255))]


def test_what_is_scored_stays_and_what_is_new_is_added(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "TASKS", ("sr2", "denoise50"))
    monkeypatch.setattr(compare, "CLASSICAL", {"mirror": in_levels(lambda image, sigma: image[::-1])})
    for name in ("Set5", "CBSD68"):
        write_jpegs(tmp_path / name, 1, 48, 48)
    out = tmp_path / "out"
    assert compare.main([str(trained), "--sets", str(tmp_path), "--out", str(out)]) == 0
    rows = list(csv.reader((out / "compare.csv").read_text().splitlines()))
    names = [(row[0], row[1], row[2]) for row in rows[1:]]
    assert names[:3] == [("sr2", "", "bicubic"), ("sr2", "", "EDSR of 32 features"), ("sr2", "", compare.SHIPS)]
    assert len(names) == 3 + 2 * 4
    kept = [row[:5] + ["99.99", *row[6:]] if row[2] == "mirror" else row for row in rows]
    with open(out / "compare.csv", "w", newline="") as file:
        csv.writer(file).writerows([row for row in kept if row[2] != compare.SHIPS])
    assert compare.main([str(trained), "--sets", str(tmp_path), "--out", str(out)]) == 0
    page = (out / "compare.md").read_text()
    assert page.count("99.99") == 2 and page.count(compare.SHIPS) == 3
    assert (out / "compare.png").stat().st_size > 10_000
    assert compare.main([str(tmp_path / "gone"), "--sets", str(tmp_path), "--out", str(out)]) == 0
    assert (out / "compare.md").read_text() == page  # what was trained elsewhere stays in the table
