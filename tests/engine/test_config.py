"""Settings: recipes, --set, the learning rate at every step that matters, and messages that name the key."""

import itertools
import json

import pytest

from ipt_fast.engine.config import (
    RECIPES,
    ConfigError,
    TrainConfig,
    apply_changes,
    check,
    learning_rate,
    recipe,
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


def refused(*changes, name="base", ranks=1, pairs=False, total=None):
    """Check a recipe as the command line does: what is changed is asked for."""
    check(recipe(name, changes), ranks, pairs=pairs, given={c.partition("=")[0] for c in changes}, total=total)


@pytest.mark.parametrize(
    "changes, options, message",
    [
        (["contrastive=supcon", "lam=0"], {}, "contrastive=supcon is a setting of the contrastive loss, which lam=0"),
        (["contrastive_scope=global", "lam=0"], {}, "contrastive_scope=global is a setting .* or set lam"),
        (["rain=streaks", "model.tasks=sr2,denoise30"], {}, "task derain, and this run has sr2, denoise30; add derain"),
        (["rain=streaks", "model.tasks=derain"], {"pairs": True}, "rain=streaks needs clean photos"),
        (["loader=dali"], {"pairs": True}, "loader=dali .* read by the torch loader alone; leave it out"),
        (["prefetch=4", "workers=0"], {}, "prefetch=4 needs workers"),
        (["lr_drop_at=0.5", "schedule=cosine"], {}, "lr_drop_at=0.5 is of schedule=step"),
        (["lr_final=1e-6", "schedule=constant"], {}, "lr_final=1e-06 is never reached .* stays at lr=5e-05"),
        (["model.tasks=deblur"], {}, "no synthetic blur; fine-tune it on pairs"),
        (["batch_size=6"], {"ranks": 4}, "does not divide by 4 ranks; choose a multiple of 4"),
        (["batch_size=4", "contrastive_scope=local"], {"ranks": 4}, "needs at least 2, got 1 .*lam=0 to leave"),
        (["batch_size=1"], {}, "needs at least 2, got 1"),
    ],
)
def test_a_setting_without_effect_is_refused(changes, options, message):
    with pytest.raises(ConfigError, match=message):
        refused(*changes, **options)


@pytest.mark.parametrize(
    "changes, options",
    [
        ([], {}),
        (["lam=0"], {}),
        (["contrastive=supcon", "contrastive_scope=local"], {"ranks": 2}),
        (["rain=streaks"], {}),
        (["loader=torch", "augment=on", "data_fraction=0.5", "workers=2"], {"pairs": True}),
        (["loader=dali"], {}),
        (["workers=0"], {}),
        (["schedule=constant"], {"name": "tiny"}),
        (["schedule=constant", "lr=1e-3", "lr_final=1e-3"], {}),
        (["schedule=cosine", "lr_final=1e-6"], {}),
        (["model.tasks=deblur"], {"pairs": True}),
        (["batch_size=1", "lam=0"], {}),
        (["compile=on", "recompute=on"], {}),
    ],
)
def test_settings_that_go_together_are_taken(changes, options, caplog):
    refused(*changes, **options)
    assert not caplog.records


def test_another_value_than_the_default_counts_as_asked_for():
    """A library user builds the settings himself, without names on a command line."""
    with pytest.raises(ConfigError, match="contrastive=supcon is a setting"):
        check(TrainConfig(lam=0, contrastive="supcon"))
    check(TrainConfig(lam=0))


@pytest.mark.parametrize("steps, warned", [(100, True), (101, False)])
def test_a_warmup_without_end_is_warned_of(steps, warned, caplog):
    refused("warmup_steps=100", "lr=1e-3", total=steps)
    assert warned == ("warmup_steps=100 does not end within the 100 steps" in caplog.text)
    assert warned == ("set warmup_steps below 100, or 0" in caplog.text)
