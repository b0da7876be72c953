"""Fine-tuning: what is kept, what is dropped, where new tasks start, and that the paper's settings are used."""

import json

import pytest
import torch

from ipt_fast.checkpoint import keep_one_task
from ipt_fast.data import make_pair_loader
from ipt_fast.engine.config import apply_changes, finetune_recipe
from ipt_fast.inference import load_checkpoint
from ipt_fast.model import IPT, IPTConfig
from tests.data.test_pairs import write_pair
from tests.engine.fakes import FakeLoader, make_trainer

SIX = IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1)


@pytest.fixture
def six():
    torch.manual_seed(1)
    return IPT(SIX)


def test_the_papers_settings():
    for task, augment in [("sr3", True), ("derain", True), ("denoise70", False), ("deblur", False)]:
        recipe = finetune_recipe(SIX, task)
        assert (recipe.lr, recipe.lr_final, recipe.schedule, recipe.epochs) == (2e-5, 2e-5, "constant", 30)
        assert recipe.model.tasks == (task,) and recipe.augment == augment and recipe.lam == 0


def config_for(task, *changes):
    small = ["steps=3", "batch_size=4", "precision=fp32", "log_every=1", "checkpoint_every=3", *changes]
    return apply_changes(finetune_recipe(SIX, task), small)


def test_training_on_pairs_learns_what_is_between_them(six, tmp_path):
    """The clean photos are 100 levels brighter: the loss falls to where the network adds them."""
    for number in range(3):
        write_pair(tmp_path, number)
    config = config_for("deblur", "steps=60", "lr=2e-3", "lr_final=2e-3")
    loader = make_pair_loader(
        tmp_path / "GT", tmp_path / "LQ", "deblur", batch_size=4, patch_size=12, workers=0, progress=False
    )
    model, _ = keep_one_task(six, "deblur")
    make_trainer(tmp_path / "run", config, loader=loader, model=model).train()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    again = load_checkpoint(tmp_path / "run/checkpoint.pt")
    assert again.config.tasks == ("deblur",)
    assert not torch.equal(again.body.query_embed.weight, six.body.query_embed.weight[3:4])


def test_flips_and_rotations_reach_input_and_target_alike(six, tmp_path):
    for number in range(3):
        write_pair(tmp_path, number, 2)
    loader = make_pair_loader(
        tmp_path / "GT", tmp_path / "LQ", "sr2", batch_size=16, patch_size=12, workers=0, progress=False
    )
    batch = next(loader)
    model, _ = keep_one_task(six, "sr2")
    trainer = make_trainer(tmp_path / "run", config_for("sr2", "batch_size=16"), loader=loader, model=model)
    x, target = trainer.training.prepare(batch)
    assert torch.equal(target, x.repeat_interleave(2, 2).repeat_interleave(2, 3) + 100)
    transposed = (x[:, 0].diff(dim=2) != 0).flatten(1).any(1)  # red is the row: in these it changes along a row
    assert 2 < transposed.sum() < 14


def test_synthetic_degradation_serves_as_well(six, tmp_path):
    config = config_for("denoise70")
    model, _ = keep_one_task(six, "denoise70")
    trainer = make_trainer(tmp_path, config, loader=FakeLoader(4, tasks=("denoise70",)), model=model)
    assert trainer.train().finished
    assert load_checkpoint(tmp_path / "checkpoint.pt").config.tasks == ("denoise70",)
