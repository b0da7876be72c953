"""``ipt-fast eval`` as a new user tries it."""

import csv
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import save_network
from ipt_fast.cli import main
from tests.evaluation.backbones import write_backbone


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Set5 and CBSD68 of two clean pictures each, and Rain100L of two pairs."""
    root = tmp_path_factory.mktemp("sets")
    for name in ("Set5", "CBSD68", "Rain100L/norain", "Rain100L/rain"):
        (root / name).mkdir(parents=True)
        for seed in range(2):
            small = np.random.default_rng(seed).integers(30, 170, (5, 6, 3), dtype=np.uint8)
            pixels = np.array(Image.fromarray(small).resize((48, 36), Image.Resampling.BICUBIC))
            pixels[::6] += 50 * name.endswith("/rain")
            prefix = name.split("/")[1] + "-" if "/" in name else ""
            Image.fromarray(pixels).save(root / name / f"{prefix}{seed}.png")
    return root


def evaluate(*arguments):
    return main(["eval", *map(str, arguments)])


def rows(text):
    """Return the rows of every printed table, their cells without spaces."""
    lines = (line.strip() for line in text.splitlines() if line.startswith("│"))
    return [[cell.strip() for cell in line[1:-1].split("│")] for line in lines]


def test_the_input_alone_without_a_checkpoint(sets, capsys):
    assert evaluate("--task", "derain", "--data", sets / "Rain100L") == 0
    said = capsys.readouterr()
    assert "Rain100L, derain: 2 images (norain and rain)" in said.err
    _, method, psnr_y, psnr_rgb, ssim, seconds = next(row for row in rows(said.out) if row[0] == "norain-1")
    assert method == "input" and seconds == "" and 0 < float(ssim) < 1
    # 6 of 36 rows are 50 brighter; Y has 220/256 of a gray difference.
    assert float(psnr_rgb) == pytest.approx(20 * np.log10(255 / 50 * 6**0.5), abs=0.01)
    assert float(psnr_y) - float(psnr_rgb) == pytest.approx(20 * np.log10(256 / 219.859), abs=0.011)


def test_table_csv_and_json_agree(sets, checkpoint, tmp_path, capsys):
    files = ["--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json"]
    options = ["--task", "sr2", "--data", sets / "Set5", sets / "CBSD68", "--checkpoint", checkpoint]
    assert evaluate(*options, *files) == 0
    said = capsys.readouterr().out
    lines = list(csv.DictReader((tmp_path / "a.csv").open()))
    content = json.loads((tmp_path / "a.json").read_text())
    assert len(lines) == len(content["scores"]) == 8 and len(content["means"]) == 4
    assert [line["method"] for line in lines[:2]] == ["input", "IPT_pretrain.pt"]
    assert [float(line["psnr_y"]) for line in lines] == [score["psnr_y"] for score in content["scores"]]
    mean = content["means"][0]
    printed = next(row for row in rows(said) if row[0] == "mean")
    assert printed[1:4] == ["input", f"{mean['psnr_y']:.2f}", f"{mean['psnr_rgb']:.2f}"]
    assert printed[4:] == [f"{mean['ssim_y']:.4f}", ""]
    assert content["settings"]["task"] == "sr2" and content["settings"]["seed"] == 0


def test_noise_is_the_same_each_time_and_follows_the_seed(sets, tmp_path):
    results = []
    for number, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"{number}.json"
        assert evaluate("--task", "denoise50", "--data", sets / "CBSD68", "--seed", seed, "--json", path) == 0
        results.append(json.loads(path.read_text())["scores"])
    assert results[0] == results[1] != results[2]


def test_unseen_noise_and_two_checkpoints_of_one_name(sets, checkpoint, tmp_path, capsys):
    other = tmp_path / "other" / "IPT_pretrain.pt"
    other.parent.mkdir()
    shutil.copy(checkpoint, other)
    options = ["--task", "denoise70", "--data", sets / "CBSD68", "--brief", "--limit", "1"]
    assert evaluate(*options, "--checkpoint", checkpoint, other) == 0
    said = capsys.readouterr().out
    assert "other/IPT_pretrain.pt as denoise50" in said and said.count("as denoise50") == 2 and "mean" in said


def test_the_papers_tables(sets, checkpoint, tmp_path, capsys):
    torch.manual_seed(0)
    single = tmp_path / "IPT_sr2.pt"
    save_network(IPT(IPTConfig(n_feats=4, num_heads=12, num_layers=1, tasks=("sr2",))), single)
    path = tmp_path / "a.json"
    assert evaluate("--paper", "--data", sets, "--checkpoint", checkpoint, single, "--json", path, "--limit", 1) == 0
    out = capsys.readouterr().out
    assert all(f"Table {n}: " in out for n in (1, 2, 3, 4)) and "not found: Set14, B100, Urban100" in out
    printed = {(row[0], row[1]): row[2:] for row in rows(out)}
    means = {
        (m["image_set"], m["task"], m["method"]): f"{m['psnr_y']:.2f}" for m in json.loads(path.read_text())["means"]
    }
    assert len(printed) == 21
    ours = [means["Set5", "sr2", method] for method in ("input", "IPT_pretrain.pt", "IPT_sr2.pt")]
    assert printed["Set5", "sr2"] == ["38.11", "38.27", "38.37", *ours]
    assert printed["Set5", "sr3"][-1] == "" != printed["Set5", "sr3"][-2]  # the single-task file has no sr3
    assert printed["Urban100", "sr4"][3:] == ["", "", ""]
    served = means["CBSD68", "denoise10", "IPT_pretrain.pt as denoise30"]
    assert printed["CBSD68", "denoise10"][-2:] == [served, ""]
    assert "the first 1 images of each set alone" in out


def test_pairs_that_do_not_match_are_refused(sets, tmp_path, capsys):
    for folder in ("norain", "rain"):
        (tmp_path / folder).mkdir()
    Image.open(sets / "Rain100L/norain/norain-0.png").save(tmp_path / "norain/norain-0.png")
    Image.open(sets / "Rain100L/rain/rain-1.png").save(tmp_path / "rain/rain-0.png")
    assert evaluate("--task", "derain", "--data", tmp_path) == 2
    said = capsys.readouterr()
    assert "norain-0.png" in said.err and "rain/rain-0.png show different scenes" in said.err and not said.out


def test_a_damaged_image_costs_that_image(sets, tmp_path, capsys):
    shutil.copytree(sets / "Set5", tmp_path / "Set5")
    (tmp_path / "Set5/0b.png").write_bytes(b"no image")
    assert evaluate("--task", "denoise30", "--data", tmp_path / "Set5") == 1
    said = capsys.readouterr()
    assert [row[0] for row in rows(said.out)] == ["0", "1", "mean"]
    assert (
        "failed images, which the means leave out: 1" in said.err
        and "0b.png: not an image" in said.err.splitlines()[-1]
    )


def test_identical_images_leave_a_finite_mean_and_json_tells_inf_from_nan(sets, tmp_path, capsys):
    for folder in ("gt", "lq"):
        (tmp_path / "Mine" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "Mine" / folder / "small.png")
        pixels = np.array(Image.open(sets / "Set5/0.png"))
        pixels[0, 0] += 50 * (folder == "lq")
        Image.fromarray(pixels).save(tmp_path / "Mine" / folder / "photo.png")
    path = tmp_path / "a.json"
    assert evaluate("--task", "deblur", "--data", tmp_path / "Mine", "--json", path) == 0
    content = json.loads(path.read_text())
    small = next(score for score in content["scores"] if score["image"] == "small")
    assert (small["psnr_rgb"], small["ssim_y"]) == ("inf", "nan")
    (mean,) = content["means"]
    assert (mean["images"], mean["identical"]) == (2, 1)
    assert mean["psnr_rgb"] == content["scores"][0]["psnr_rgb"] and mean["ssim_y"] == content["scores"][0]["ssim_y"]
    assert (
        "Mine, deblur, input: 1 of 2 images equal their ground truth, left out of its mean PSNR"
        in capsys.readouterr().out
    )
    assert evaluate("--task", "deblur", "--data", tmp_path / "Mine", "--json", path) == 2
    assert "a.json is already there; --force overwrites" in capsys.readouterr().err


def test_outputs_are_saved_where_asked(sets, checkpoint, tmp_path, assert_refused):
    options = ["--task", "sr2", "--data", sets / "Set5", "--limit", 1, "--save", tmp_path, "--brief"]
    assert_refused("eval", options, "--save writes what networks make; give --checkpoint")
    assert evaluate(*options, "--checkpoint", checkpoint) == 0
    assert Image.open(tmp_path / "Set5_sr2/IPT_pretrain.pt/0.png").size == (48, 36)
    assert_refused("eval", [*options, "--checkpoint", checkpoint], "0.png is already there; --force overwrites", None)
    shutil.copytree(sets / "Set5", tmp_path / "Mine")
    Image.open(sets / "Set5/0.png").save(tmp_path / "Mine/0.bmp")
    options[3], options[5] = tmp_path / "Mine", 2
    assert_refused("eval", [*options, "--checkpoint", checkpoint], "over each other", None)


def test_stopped_it_prints_and_writes_the_scores_so_far(sets, checkpoint, tmp_path, monkeypatch, capsys):
    calls = []

    def restore(model, image, task, **options):
        calls.append(task)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return image

    monkeypatch.setattr("ipt_fast.evaluation.score.restore", restore)
    path = tmp_path / "a.csv"
    options = ["--task", "denoise30", "--data", sets / "Set5", "--checkpoint", checkpoint, "--csv", path]
    assert evaluate(*options) == 130
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "ipt-fast eval: stopped by Ctrl-C; images scored until then: 2"
    assert len(list(csv.DictReader(path.open()))) == 3 and "mean" in said.out


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--task": None}, "give either --task or --paper"),
        ({"--task": "sr5"}, "task 'sr5' is not known"),
        ({"--task": "derain"}, "derain needs pairs"),
        ({"--task": "deblur", "--data": "Rain100L"}, "deblur needs pairs"),
        ({"--data": "nowhere"}, "nowhere: no such folder"),
        ({"--data": "."}, "no images of a test set for sr2; it has the folders CBSD68, Rain100L, Set5"),
        ({"--limit": "0"}, "--limit must be at least 1"),
        ({"--json": "nowhere/a.json"}, "the folder nowhere is not there"),
        ({"--checkpoint": "none.pt"}, "none.pt: no such checkpoint"),
        ({"--overlap": "48"}, "--overlap must be 0 to 47"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(change, message, sets, checkpoint, assert_refused):
    options = {"--task": "sr2", "--data": "Set5", "--checkpoint": checkpoint, **change}
    options["--data"] = str(sets / options["--data"])
    words = [part for key, value in options.items() if value for part in (key, value)]
    assert_refused("eval", words, message, lines=None)


def test_a_checkpoint_without_the_task_and_sets_of_no_paper(sets, checkpoint, tmp_path, capsys):
    single = tmp_path / "IPT_sr2.pt"
    save_network(IPT(IPTConfig(n_feats=4, num_heads=12, num_layers=1, tasks=("sr2",))), single)
    assert evaluate("--task", "sr3", "--data", sets / "Set5", "--checkpoint", single) == 2
    assert "IPT_sr2.pt: has no task sr3; it has sr2" in capsys.readouterr().err
    assert evaluate("--paper", "--data", tmp_path) == 2
    assert "none of the paper's sets (Set5, " in capsys.readouterr().err
    assert evaluate("--task", "sr2", "--data", sets / "Set5", "--checkpoint", single, single) == 2
    assert "--checkpoint names a file twice" in capsys.readouterr().err


def test_lpips_and_dists_where_asked(sets, tmp_path, capsys):
    pytest.importorskip("torchmetrics", reason="needs the extra metrics")
    alexnet, vgg = (write_backbone(tmp_path / f"{name}.pth", name) for name in ("alexnet", "vgg16"))
    files = ["--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv"]
    assert evaluate("--task", "sr2", "--data", sets / "Set5", "--lpips", alexnet, "--dists", vgg, *files) == 0
    table = rows(capsys.readouterr().out)
    lines = list(csv.DictReader((tmp_path / "a.csv").open()))
    scores = json.loads((tmp_path / "a.json").read_text())["scores"]
    for row, score, line in zip(table, scores, lines, strict=False):
        assert score["lpips"] > 0 and score["dists"] > 0 and score["lpips"] != score["dists"]
        assert row[5:7] == [f"{score['lpips']:.4f}", f"{score['dists']:.4f}"]
        assert (float(line["lpips"]), float(line["dists"])) == (score["lpips"], score["dists"])
    assert evaluate("--task", "sr2", "--data", sets / "Set5", "--dists", vgg, "--csv", tmp_path / "b.csv") == 0
    assert "LPIPS" not in capsys.readouterr().out
    assert all(line["lpips"] == "" and line["dists"] for line in csv.DictReader((tmp_path / "b.csv").open()))


def test_lpips_of_an_image_too_small_is_left_empty(tmp_path, capsys):
    pytest.importorskip("torchmetrics", reason="needs the extra metrics")
    (tmp_path / "few").mkdir()
    Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(tmp_path / "few" / "a.png")
    weights = write_backbone(tmp_path / "alexnet.pth", "alexnet")
    assert evaluate("--task", "denoise30", "--data", tmp_path / "few", "--lpips", weights) == 0
    assert rows(capsys.readouterr().out)[0][5] == ""


def test_a_page_with_sliders(sets, checkpoint, tmp_path, assert_refused, capsys):
    options = ["--task", "sr2", "--data", sets / "Set5", "--checkpoint", checkpoint, "--html", tmp_path / "page"]
    assert evaluate(*options) == 0
    assert f"page: {tmp_path / 'page' / 'index.html'}" in capsys.readouterr().out
    text = (tmp_path / "page" / "index.html").read_text()
    assert text.count("<figure") == 2 and "IPT_pretrain.pt" in text and "ground truth" in text
    truth = np.asarray(Image.open(tmp_path / "page" / "images" / "0001" / "0.png"))
    assert np.array_equal(truth, np.asarray(Image.open(sets / "Set5" / "1.png")))
    assert_refused("eval", options, "there is something in this folder; give another, or --force")
    assert evaluate(*options, "--force") == 0
    capsys.readouterr()
    assert_refused("eval", [*options[:-1], checkpoint], "is a file; give a folder")
