"""The table of frames a second: published sizes, and the command on a tiny frame."""

import json

import pytest
import torch

from bench import fps
from ipt_fast.model import preset


@pytest.mark.parametrize(
    "name, scale, millions",
    [("EDSR", 2, 40.73), ("RCAN", 4, 15.59), ("SwinIR-M", 2, 11.75)],
)
def test_the_structures_have_their_published_sizes(name, scale, millions):
    with torch.device("meta"):
        network = fps.OTHERS[name](scale).eval()
        assert network(torch.empty(1, 3, 16, 24)).shape == (1, 3, 16 * scale, 24 * scale)
    assert round(fps.parameters(network) / 1e6, 2) == millions


def test_flops_are_those_of_the_convolutions():
    expected = sum(  # of EDSR x2: each of these convolutions runs once a pixel, the last one four times
        n * m * 9 * times for n, m, times in [(3, 256, 1), *[(256, 256, 1)] * 65, (256, 1024, 1), (256, 3, 4)]
    )
    assert fps.flops_per_megapixel("EDSR", 2, 480, 640) == pytest.approx(2e6 * expected)
    ours = fps.flops_per_megapixel("tiny", 2, 48, 48)
    assert fps.flops_per_megapixel("tiny", 2, 86, 48) == pytest.approx(2 * ours * 48 / 86)  # two windows that overlap


def test_bytes_are_those_of_the_tensors_alive_at_once(monkeypatch):
    chain = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)), torch.nn.Flatten(2))
    monkeypatch.setitem(fps.OTHERS, "RCAN", lambda scale: chain.to("meta"))
    frame = 3 * 40 * 50
    assert fps.counted_bytes("RCAN", 2, 40, 50, "fp32") == 3 * 4 * frame  # the caller's, a layer's input and its output
    assert fps.counted_bytes("RCAN", 2, 40, 50, "bf16") == 3 * 2 * frame


@pytest.mark.parametrize("name", ["tiny", "EDSR"])
def test_parts_grow_up_to_the_frame(name):
    crops = fps.parts(name, 480, 640)
    areas = [h * w for h, w in crops]
    assert crops[-1] == (480, 640) and areas == sorted(set(areas))
    assert fps.window_count(preset("base"), 480, 640) == 13 * 17


def test_the_command_measures_two_networks_and_writes_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(fps.OTHERS, "RCAN", lambda scale: fps.RCAN(scale, n=16, groups=1, blocks=1))
    command = ["--networks", "tiny", "RCAN", "--scales", "2", "--frame", "64", "48", "--out", str(tmp_path)]
    assert fps.main(command) == 0
    rows = json.loads((tmp_path / "fps.json").read_text())
    assert [(row["network"], row["scale"], row["part"]) for row in rows] == [("tiny", 2, 1), ("RCAN", 2, 1)]
    assert all(row["cpu_s"] > 0 and row["wall_s"] > 0 and row["peak_bytes"] > 0 for row in rows)
    page = (tmp_path / "fps.md").read_text()
    assert "2 windows of 48 x 48" in page and page.count("| not measured | not measured |") == 2
    assert "RCAN" in capsys.readouterr().out


def test_a_frame_that_takes_too_long_is_run_in_part_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(fps.OTHERS, "RCAN", lambda scale: fps.RCAN(scale, n=16, groups=1, blocks=1))
    command = ["--networks", "RCAN", "--scales", "2", "--frame", "128", "128", "--seconds", "0", "--out", str(tmp_path)]
    assert fps.main(command) == 0
    (row,) = json.loads((tmp_path / "fps.json").read_text())
    assert row["part"] == 1 / 256 and "| 1/256 | " in (tmp_path / "fps.md").read_text()
