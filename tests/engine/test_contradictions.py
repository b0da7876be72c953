"""Settings that do not go together: what is refused, what is warned of, and what is taken."""

import re

import pytest

from ipt_fast.engine.config import ConfigError, TrainConfig, recipe
from ipt_fast.engine.contradictions import check, warn


def refused(*changes, name="base", ranks=1, pairs=False):
    """Check a recipe as the command line does: what is changed is asked for."""
    check(recipe(name, changes), ranks, pairs=pairs, given={c.partition("=")[0] for c in changes})


@pytest.mark.parametrize(
    "changes, options, message",
    [
        (["contrastive=supcon", "lam=0"], {}, "contrastive=supcon is a setting of the contrastive loss, which lam=0"),
        (["contrastive_scope=global", "lam=0"], {}, "contrastive_scope=global is a setting .* or set lam"),
        (["rain=streaks", "model.tasks=sr2,denoise30"], {}, "task derain, and this run has sr2, denoise30; add derain"),
        (["rain=streaks", "model.tasks=derain"], {"pairs": True}, "rain=streaks needs clean photos"),
        (["loader=dali"], {"pairs": True}, "loader=dali .* read by the torch loader alone; leave it out"),
        (["workers=0", "loader=dali"], {}, "workers=0 has no threads left to decode"),
        (["prefetch=4", "workers=0"], {}, "prefetch=4 needs workers"),
        (["lr_drop_at=0.5", "schedule=cosine"], {}, "lr_drop_at=0.5 is of schedule=step"),
        (["lr_final=1e-6", "schedule=constant"], {}, "lr_final=1e-06 is never reached .* stays at lr=5e-05"),
        (["model.tasks=deblur"], {}, "no synthetic blur; fine-tune it on pairs"),
        (["batch_size=6"], {"ranks": 4}, "does not divide by 4 ranks; choose a multiple of 4"),
        (["batch_size=4", "contrastive_scope=local"], {"ranks": 4}, "needs at least 2, got 1 .*lam=0 to leave"),
        (["batch_size=1"], {}, "needs at least 2, got 1"),
        (["checkpoint_every=9", "checkpoint_minutes=5"], {}, "no effect beside checkpoint_minutes=5; give one of"),
        (["allreduce=bf16"], {}, "allreduce=bf16 needs several ranks"),
        (["zero=true"], {}, "zero=True needs several ranks"),
        (["zero=true", "optimizer=apex"], {"ranks": 2}, "zero=True splits torch's Adam"),
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
        (["checkpoint_minutes=5"], {"name": "tiny"}),
        (["allreduce=bf16", "zero=true", "compile=layers"], {"ranks": 2}),
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


@pytest.mark.parametrize(
    "changes, total, warning",
    [
        (["warmup_steps=100"], 100, "warmup_steps=100 does not end within the 100 steps of the run: .* ends at 5e-05"),
        (["warmup_steps=80"], 100, "warmup_steps=80 ends after the drop to lr_final at step 67"),
        (["lr_final=1e-6", "lr_drop_at=1"], 100, "lr_final=1e-06 is never reached: lr_drop_at=1 is the end"),
        (["lr_final=1e-4"], 100, "lr_final=0.0001 is above lr=5e-05"),
        (["checkpoint_every=101"], 100, "checkpoint_every=101 is more than the 100 steps .* a killed run loses all"),
        (["log_every=101"], 100, "log_every=101 is more than the 100 steps"),
        (["keep_every=11"], 100, "keep_every=11 epochs are more than the run's 10"),
        (["ema=0.999"], 100, "ema=0.999 leaves 90% of the untrained weights .* set ema below 0.955, or 0"),
    ],
)
def test_a_contradiction_is_warned_of(changes, total, warning, caplog):
    warn(recipe("base", changes), total, 10, {change.partition("=")[0] for change in changes})
    assert len(caplog.messages) == 1 and re.match(warning, caplog.messages[0]), caplog.messages


@pytest.mark.parametrize("name, changes", [("tiny", ["steps=20"]), ("base", ["ema=0.9", "warmup_steps=99"])])
def test_what_a_recipe_brings_along_is_no_contradiction(name, changes, caplog):
    warn(recipe(name, changes), 150, 10, {change.partition("=")[0] for change in changes})
    assert not caplog.messages
