"""Settings: recipes, --set, and messages that name the key."""

import json

import pytest

from ipt_fast.engine.config import RECIPES, ConfigError, TrainConfig, apply_changes, recipe
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
        ("compile=false", "compile", False),
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
        ("xyzzy=3", "no such setting; known are epochs, steps"),
        ("lr", "write it as KEY=VALUE"),
        ("lr=fast", "--set lr=fast: must be a number"),
        ("batch_size=1.5", "--set batch_size=1.5: must be a whole number"),
        ("augment=maybe", "--set augment=maybe: must be true or false"),
        ("schedule=linear", "--set schedule=linear: must be one of step, cosine, constant"),
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
    with pytest.raises(ConfigError, match="choose one of tiny, small, base, deblur"):
        recipe("huge")
    with pytest.raises(ConfigError, match="one of them"):
        recipe("base", ["steps=3", "epochs=4"])
    with pytest.raises(ConfigError, match=r"unknown settings \['speed'\]"):
        TrainConfig.from_dict({"speed": 3})
