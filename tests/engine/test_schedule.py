"""The learning rate at every step that matters."""

import itertools

import pytest

from ipt_fast.engine.config import recipe
from ipt_fast.engine.schedule import learning_rate, total_steps


def test_the_papers_schedule_drops_at_epoch_200_of_300():
    config = recipe("base")
    steps_per_epoch = 5004  # ImageNet in batches of 256
    total = total_steps(config, steps_per_epoch)
    assert total == 300 * steps_per_epoch
    assert learning_rate(config, 0, total) == 5e-5
    assert learning_rate(config, 200 * steps_per_epoch - 1, total) == 5e-5
    assert learning_rate(config, 200 * steps_per_epoch, total) == 2e-5
    assert learning_rate(config, total - 1, total) == 2e-5


def test_cosine_starts_after_the_warmup_and_ends_at_lr_final():
    config = recipe("base", ["schedule=cosine", "warmup_steps=10", "lr=1e-3", "lr_final=1e-5", "steps=111"])
    rates = [learning_rate(config, step, 111) for step in range(111)]
    assert rates[0] == pytest.approx(1e-4) and rates[9] == pytest.approx(1e-3) and rates[10] == pytest.approx(1e-3)
    assert rates[60] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[110] == pytest.approx(1e-5)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_constant_and_lengths():
    config = recipe("base", ["schedule=constant", "epochs=0.5"])
    assert total_steps(config, 100) == 50
    assert {learning_rate(config, step, 50) for step in range(50)} == {5e-5}
    assert total_steps(recipe("base", ["steps=7"]), 100) == 7
    assert total_steps(recipe("base", ["epochs=0.001"]), 100) == 1
