"""Settings: recipes, --set, the learning rate at every step that matters, and messages that name the key."""

import itertools
import json
import re
from dataclasses import fields

import pytest

from ipt_fast.engine.config import (
    RECIPES,
    ConfigError,
    TrainConfig,
    apply_changes,
    learning_rate,
    recipe,
    settings_help,
    total_steps,
)
from ipt_fast.model import PRESETS


def test_base_is_the_papers_recipe():
    config = recipe("base")
    assert (config.lr, config.lr_final, config.schedule, config.epochs) == (5e-5, 2e-5, "step", 300)
    assert (config.batch_size, config.lam, config.betas, config.augment) == (256, 0.1, (0.9, 0.999), False)
    assert config.model == PRESETS["base"] and config.contrastive == "paper"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_recipe_that_survives_json(name):
    config = recipe(name)
    assert name in RECIPES
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "change, key, value",
    [
        ("lr=1e-4", "lr", 1e-4),
        ("batch_size=8", "batch_size", 8),
        ("augment=yes", "augment", True),
        ("compile=False", "compile", False),
        ("compile=on", "compile", True),
        ("compile=layers", "compile", "layers"),
        ("schedule=cosine", "schedule", "cosine"),
        ("workers=none", "workers", None),
        ("workers=3", "workers", 3),
        ("betas=0.9,0.99", "betas", (0.9, 0.99)),
    ],
)
def test_values_are_parsed_by_the_type_of_their_key(change, key, value):
    assert getattr(recipe("base", [change]), key) == value


def test_the_network_is_set_with_a_prefix():
    config = recipe("base", ["model.num_layers=2", "model.tasks=sr2,derain", "model.memory_norm=on"])
    assert (config.model.num_layers, config.model.tasks, config.model.memory_norm) == (2, ("sr2", "derain"), True)


def test_the_last_length_wins():
    config = recipe("base", ["steps=100"])
    assert (config.steps, config.epochs) == (100, None)
    config = apply_changes(config, ["epochs=2"])
    assert (config.steps, config.epochs) == (None, 2)


@pytest.mark.parametrize(
    "change, message",
    [
        ("lamda=1", "--set lamda: no such setting; did you mean lam"),
        ("num_layers=3", r"did you mean model\.num_layers"),
        ("layers=3", r"did you mean model\.num_layers"),
        ("learning_rate=1", "--set learning_rate: no such setting; did you mean lr?"),
        ("batch-size=1", r"did you mean batch_size\?"),
        ("num_workers=1", r"did you mean workers\?"),
        ("heads=1", r"did you mean model\.num_heads\?"),
        ("xyzzy=3", "no such setting; known are epochs, steps"),
        ("lr", "write it as KEY=VALUE"),
        ("lr=fast", "--set lr=fast: must be a number"),
        ("batch_size=1.5", "--set batch_size=1.5: must be a whole number"),
        ("augment=maybe", "--set augment=maybe: must be true or false"),
        ("schedule=linear", "--set schedule=linear: must be one of step, cosine, constant"),
        ("compile=body", "--set compile=body: must be one of false, true, layers"),
        ("lr=-1", r"--set lr=-1: lr must be positive and finite \(got -1\.0\)"),
        ("batch_size=0", "batch_size must be at least 1"),
        ("data_fraction=1.5", "data_fraction must be in"),
        ("betas=0.9", "betas must be two numbers"),
        ("model.num_heads=7", "num_heads=7 does not divide"),
        ("model.tasks=sr5", "task 'sr5' is not known"),
    ],
)
def test_errors_name_the_key(change, message):
    with pytest.raises(ConfigError, match=message):
        recipe("base", [change])


def test_unknown_presets_and_lengths():
    with pytest.raises(ConfigError, match="choose one of tiny, pocket, small, base, deblur"):
        recipe("huge")
    with pytest.raises(ConfigError, match="one of them"):
        recipe("base", ["steps=3", "epochs=4"])
    with pytest.raises(ConfigError, match=r"unknown settings \['step'\]; did you mean steps"):
        TrainConfig.from_dict({"step": 3})


def test_a_shorter_run_has_a_shorter_warmup():
    assert [recipe("tiny", changes).warmup_steps for changes in ([], ["steps=20"], ["steps=4000"])] == [100, 1, 100]
    assert recipe("tiny", ["steps=20", "warmup_steps=7"]).warmup_steps == 7


def test_every_setting_is_explained():
    said = settings_help()
    assert all(re.search(rf"^ +(\w+, )*{f.name}(, \w+)*:", said, re.MULTILINE) for f in fields(TrainConfig)[2:])


@pytest.mark.parametrize("name", ["schedule", "contrastive", "contrastive_scope", "loader", "precision", "recompute"])
def test_choices_are_checked_however_they_are_given(name):
    with pytest.raises(ValueError, match=rf"{name} must be one of .* \(got 'linear'\)"):
        TrainConfig(**{name: "linear"})


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
