"""Random settings of the recipe, as ``--set`` gives them: a recipe that says what was asked, or a clear refusal."""

import contextlib
import io
import logging
import random
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

from PIL import Image

from ipt_fast.engine import run
from ipt_fast.engine.config import TrainConfig, learning_rate, recipe, total_steps
from ipt_fast.engine.contradictions import check
from ipt_fast.model import PRESETS, IPTConfig
from tests.api.world import photo
from tests.fuzz.verdict import AGREED, REFUSED, FaultError, refused

_NUMBERS = ["0", "1", "2", "3", "7", "8", "16", "48", "1e-4", "0.5", "-1", "1e9", "nan", "inf", "1.5", "2000", "", "x"]
_WORDS = ["true", "false", "none", "auto", "step", "cosine", "constant", "paper", "supcon", "local", "global", "torch"]
_MORE = [
    "on",
    "off",
    "fp32",
    "bf16",
    "fp16",
    "dali",
    "sr2",
    "sr2,derain",
    "denoise30",
    "deblur",
    "(0.9,0.99)",
    "0.9",
    "[1]",
]


def _changes(rng: random.Random) -> list[str]:
    keys = [f.name for f in fields(TrainConfig) if f.name not in ("model", "preset", "rain")]
    keys += [f"model.{f.name}" for f in fields(IPTConfig)]
    hints = get_type_hints(TrainConfig)
    changes = []
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(keys) if rng.random() < 0.95 else rng.choice(["lrr", "model.depth", "n_feat", "", "steps "])
        number = hints.get(key, int) in (int, float, int | None, float | None)
        pool = _NUMBERS[1:10] if number and rng.random() < 0.8 else [*_NUMBERS, *_WORDS, *_MORE]
        changes.append(f"{key}={rng.choice(pool)}" if rng.random() < 0.97 else key)
    return changes


def random_recipe(rng: random.Random) -> str:
    """Parse and check settings; in one of thirty cases let ``train.py --dry-run`` say what it would do."""
    name, changes = rng.choice(list(PRESETS)), _changes(rng)
    logging.disable(logging.WARNING)
    try:
        if rng.random() < 1 / 30:
            return _dry_run(changes)
        config = recipe(name, changes)
        total = total_steps(config, rng.choice([1, 10, 1000]))
        check(config, rng.choice([1, 1, 2, 8]), pairs=rng.choice([None, False]), given=[])
        rates = [learning_rate(config, step, total) for step in sorted({0, total // 2, total - 1})]
    except FaultError:
        raise
    except Exception as error:
        words = [
            w for change in changes for w in (change.partition("=")[0].strip(), change.split(".")[-1].split("=")[0])
        ]
        return refused(error, [*filter(None, words), "batch_size", "task", "patch_dim", "num_heads", "steps", "KEY"])
    finally:
        logging.disable(logging.NOTSET)
    if not all(0 < rate <= max(config.lr, config.lr_final) for rate in rates):
        raise FaultError(f"{changes}: learning rates {rates}")
    if recipe(name, changes) != config or TrainConfig.from_dict(config.to_dict()) != config:
        raise FaultError(f"{changes}: the settings do not come back from their own dictionary")
    return AGREED


def _dry_run(changes: list[str]) -> str:
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        (Path(folder) / "photos").mkdir()
        for i in range(2):
            Image.fromarray(photo(52, 60, i)).save(Path(folder) / "photos" / f"{i}.png")
        said = io.StringIO()
        arguments = ["--data", f"{folder}/photos", "--out", f"{folder}/run", "--preset", "tiny", "--dry-run"]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = run.main([*arguments, "--set", *changes])
        if (Path(folder) / "run").exists() or code not in (0, 2):
            raise FaultError(f"{changes}: a dry run left a folder, or the exit code {code}")
        if code == 2 and "train.py: " not in said.getvalue():
            raise FaultError(f"{changes}: exit code 2 without a reason")
        return REFUSED if code else AGREED
