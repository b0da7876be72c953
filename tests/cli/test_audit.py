"""``ipt-fast audit``, and its verdict in the file that ``ipt-fast convert`` writes."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import read_notes, save_network
from ipt_fast.cli import main


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with a safe network, one that overflows, and a folder with a photo."""
    folder = tmp_path_factory.mktemp("audit")
    torch.manual_seed(0)
    model = IPT(IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1, tasks=("sr2", "denoise30")))
    save_network(model, folder / "safe.safetensors")
    with torch.no_grad():
        model.body.encoder.layers[0].linear2.weight.fill_(6e4)  # float16 holds it, but not what comes out
    save_network(model, folder / "black.pt")
    (folder / "photos").mkdir()
    pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(folder / "photos" / "a.png")
    return folder


def audit(*arguments):
    return main(["audit", *map(str, arguments), "--device", "cpu"])


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


def test_a_safe_network_is_told(files, capsys):
    assert audit(files / "safe.safetensors", "--data", files / "photos", "--windows", 2) == 0
    said = capsys.readouterr().out
    assert "float16 is safe: largest |x|" in said and "15 of 37 layers, 2 windows a task" in said and "tail.1.1" in said


def test_an_overflow_is_told_and_drawn(files, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="drawing needs matplotlib")
    picture = tmp_path / "audit.png"
    assert audit(files / "black.pt", "--data", files / "photos", "--all", "-o", picture) == 1
    said = capsys.readouterr().out
    assert "float16 is not safe" in said and "body.encoder.layers.0.linear2" in said and str(picture) in said
    with Image.open(picture) as image:
        assert image.width > 800


def test_the_packaged_photos_are_the_default(files, capsys):
    pytest.importorskip("skimage", reason="the photos come with scikit-image")
    pytest.importorskip("sklearn", reason="the photos come with scikit-learn")
    assert audit(files / "safe.safetensors") == 0
    assert "16 windows a task" in capsys.readouterr().out


def test_convert_writes_the_verdict_and_keeps_it(files, tmp_path, capsys):
    pytest.importorskip("skimage", reason="the photos come with scikit-image")
    pytest.importorskip("sklearn", reason="the photos come with scikit-learn")
    first, second, one = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "one"))
    assert convert(files / "black.pt", "-o", first, "--audit") == 0
    assert "float16 is not safe" in capsys.readouterr().out
    assert convert(first, "-o", second, "--dtype", "fp16") == 0
    assert "not known" not in capsys.readouterr().out
    with safe_open(str(second), framework="pt") as file:
        note = json.loads(file.metadata()["fp16_audit"])
    assert (
        note["safe"] is False
        and note["layer"].split(".")[0] in ("body", "tail")
        and note["windows"] == 16
        and note["margin"] == 4
    )
    # of one task alone it would say too much
    assert convert(first, "-o", one, "--task", "sr2", "--dtype", "fp16") == 0
    assert "is not known: ipt-fast audit says" in capsys.readouterr().out and read_notes(one) == {}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--windows", "0"], "--windows must be at least 1, got 0"),
        (["--data", "nowhere"], "nowhere"),
        (["-o", "nowhere/a.png"], "is not there"),
    ],
)
def test_refusals(files, assert_refused, arguments, message):
    assert_refused("audit", [files / "safe.safetensors", *arguments], message)


def test_convert_refuses_an_audit_that_it_cannot_keep(files, tmp_path, assert_refused):
    message = "--audit writes into the header of a safetensors file"
    assert_refused("convert", [files / "safe.safetensors", "-o", tmp_path / "a.pt", "--audit"], message)
