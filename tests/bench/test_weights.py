"""What makes the weights that ship: the start, the plain trainer beside the product's, the pack."""

import json

import pytest
import torch

from bench.baselines.plain_trainer import contrastive_loss
from bench.weights import ablations
from bench.weights.pack import hours, joined, read_log, read_rows, replace_block, thin_log
from bench.weights.pilots import start_run
from bench.weights.same_curve import SETTINGS, both_losses
from bench.weights.start import start_network
from ipt_fast.engine.config import recipe
from ipt_fast.model import IPTConfig
from ipt_fast.ops import patch_contrastive_loss
from tests.data.photo_files import write_jpegs

SMALL = ["model.n_feats=8", "model.patch_size=24", "model.num_heads=2", "batch_size=4"]


@pytest.mark.parametrize("changes", [{}, {"task_embed": False, "position_embed": False}, {"tasks": ("sr4",)}])
def test_the_start_hands_the_photo_on(changes):
    config = IPTConfig(n_feats=8, patch_size=12, num_heads=2, num_layers=2, **changes)
    model = start_network(config)
    x = torch.rand(2, 3, 12, 12) * 255
    for task in config.tasks:
        y = model(x, task)
        r = y.shape[-1] // 12
        assert torch.allclose(y, x.repeat_interleave(r, -1).repeat_interleave(r, -2), atol=1e-3)


def test_every_weight_of_the_start_learns_in_two_steps():
    """Zeros on both sides of a product would keep each other."""
    config = IPTConfig(n_feats=8, patch_size=12, num_heads=2, num_layers=1)
    model = start_network(config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        for task in config.tasks:
            y = model(torch.rand(2, 3, 12, 12) * 255, task)
            (y - 255 * torch.rand_like(y)).abs().mean().backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if p.requires_grad and not p.grad.any()] == []


def test_the_plain_contrastive_loss_is_eq_5():
    features = torch.randn(3, 5, 8, dtype=torch.float64)
    assert torch.allclose(contrastive_loss(features), patch_contrastive_loss(features), rtol=1e-10)


def test_first_twenty_steps_are_those_of_a_plain_trainer(tmp_path):
    config = recipe("tiny", [*SETTINGS, *SMALL, "steps=20", "warmup_steps=5"])
    write_jpegs(tmp_path, 6)
    losses = list(both_losses(config, tmp_path, 20))
    assert len({task for task, _, _ in losses}) >= 4
    for _, ours, plain in losses:
        assert ours == pytest.approx(plain, rel=2e-4)
    assert max(abs(ours - plain) for _, ours, plain in losses) > 0  # they are two programs


def record(step: int, **l1: float) -> dict:
    return {"step": step, "step_ms": 360.0, "lr": 1e-3, "contrastive": 0.0, "l1_of_task": l1}


def test_a_log_counts_every_step_once(tmp_path):
    """A killed run is resumed from before its last lines: those are of steps that were taken again."""
    lines = [record(1, sr2=9.0), record(20, sr2=8.0), record(40, sr2=7.0), record(30, sr2=5.0), record(50, sr3=4.0)]
    lines.insert(2, {"step": 20, "validation": {"psnr": 20.0}})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = read_log(tmp_path)
    assert [r["step"] for r in records] == [1, 20, 30, 50]
    assert hours(records, 1) == pytest.approx(50 * 0.36 / 3600)
    assert hours(records, 2) == pytest.approx(100 * 0.36 / 3600)


def test_a_thin_log_has_the_means():
    rows = thin_log([record(20 * (i + 1), sr2=float(i % 2), sr3=2.0) for i in range(1000)], ("sr2", "sr3", "sr4"), 8, 2)
    assert len(rows) == 50 and rows[-1]["step"] == 20_000 and rows[0]["step"] == 400
    assert rows[1]["sr2"] == pytest.approx(0.5) and rows[1]["sr3"] == 2.0 and rows[1]["sr4"] == ""
    assert rows[-1]["crops"] == 160_000 and rows[-1]["hours"] == pytest.approx(4.0)


def test_steps_and_hours_of_a_later_run_count_on(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "step,crops,hours,lr,contrastive,sr2,sr3\n20,80,0.002,0.001,0.0,9.0,\n40,160,0.004,0.001,0.0,8.0,7.5\n"
    )
    rows = joined(read_rows(path), thin_log([record(20, sr2=5.0), record(40, sr3=4.0)], ("sr2", "sr3"), 8, 2))
    assert [row["step"] for row in rows] == [20, 40, 60, 80]
    assert [row["crops"] for row in rows] == [80, 160, 320, 480]
    assert [row["hours"] for row in rows] == [0.002, 0.004, 0.008, 0.012]
    assert [row["sr2"] for row in rows] == [9.0, 8.0, 5.0, ""] and rows[0]["sr3"] == ""


def test_a_block_of_the_card_is_replaced_alone():
    page = "before\n<!-- a -->\nold\n<!-- /a -->\n<!-- b -->\nkept\n<!-- /b -->\n"
    changed = replace_block(page, "a", "new")
    assert changed == page.replace("old", "\nnew") and replace_block(changed, "a", "new") == changed
    with pytest.raises(ValueError, match="needs the marks <!-- c -->"):
        replace_block(page, "c", "new")


def test_a_run_that_was_stopped_is_not_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "start_run", lambda *args, **kwargs: (None, 1))
    monkeypatch.setattr(ablations, "end_run", lambda process, folder: 100)
    monkeypatch.setattr(ablations, "load_training_state", lambda path: {"step": 120})
    with pytest.raises(RuntimeError, match="stopped after step 120 of 200; start again"):
        ablations.run("x", {}, 0, 200, tmp_path, tmp_path, tmp_path)
    assert not ablations.is_done(tmp_path, "x seed 0")


def test_a_pilot_does_not_go_on_from_one_that_was_killed(tmp_path):
    """Its seconds of training would not be those of the others."""
    (tmp_path / "base").mkdir()
    with pytest.raises(FileExistsError, match="did not end; remove it"):
        start_run({}, tmp_path, tmp_path / "base")


def test_ablations_are_means_over_seeds_and_the_tasks_alone_are_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "PAGE", tmp_path / "page.md")

    def write(name: str, scores: dict) -> None:
        folder = tmp_path / ablations.slug(name)
        folder.mkdir()
        (folder / "pilot.json").write_text(json.dumps({"name": name, "steps": 1200, "scores": scores}))

    for seed in ablations.SEEDS:
        write(f"{ablations.FULL} seed {seed}", dict.fromkeys(ablations.SCORED, (20.0, 30.0 + seed)))
        for task in ablations.SCORED:
            write(f"{task} alone seed {seed}", {task: (20.0, 25.0)})
    write("no contrastive loss seed 0", dict.fromkeys(ablations.SCORED, (20.0, 30.0)))  # two seeds are to come
    for seed, score in zip(ablations.SEEDS, (30.5, 31.0, 33.0), strict=True):
        write(f"no task embedding seed {seed}", dict.fromkeys(ablations.SCORED, (20.0, score)))
    assert ablations.main(["--table", str(tmp_path)]) == 0
    rows = [line.split(" | ") for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| ")]
    assert [row[0].lstrip("| ") for row in rows[2:]] == [ablations.FULL, "no task embedding", ablations.ALONE]
    assert [cell.strip() for cell in rows[2][1:4]] == ["", "11.00 ± 1.00", "31.00 ± 1.00"]
    assert rows[3][1:3] == ["+0.50 ± 0.50", "11.50 ± 1.32"]  # by seed: +0.5, 0, +1
    assert rows[4][1:4] == ["-6.00 ± 1.00", "5.00 ± 0.00", "25.00 ± 0.00"]


def test_ablations_run_the_rows_that_are_named(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(ablations, "run", lambda *args: ran.append(args[:4]))
    folders = ["--data", str(tmp_path), "--sets", str(tmp_path), "--out", str(tmp_path)]
    ablations.main([ablations.FULL, ablations.ALONE, "--seeds", "1", "--steps", "600", *folders])
    assert ran[0] == (ablations.FULL, {}, 1, 600)
    assert [(name, changes["model.tasks"], *rest) for name, changes, *rest in ran[1:]] == [
        (f"{task} alone", task, 1, 100) for task in ablations.SCORED
    ]
    with pytest.raises(SystemExit):
        ablations.main(["no such row", *folders])
    assert "no row 'no such row'; there are as the paper" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        ablations.main(["--help"])
    assert "20 % of the photos" in capsys.readouterr().out
