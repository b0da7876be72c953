"""Recipes as files: what is written is read again, unknown keys are refused, the committed ones are what they say."""

import json
from pathlib import Path

import pytest
import yaml

from ipt_fast.cli import main
from ipt_fast.engine.config import ConfigError, apply_changes, finetune_recipe, recipe
from ipt_fast.engine.recipe_file import read_changes, read_recipe, recipe_schema, write_recipe
from ipt_fast.engine.run import main as train
from ipt_fast.model import PRESETS, preset

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", PRESETS)
def test_written_recipes_are_read_again(name, tmp_path):
    config = recipe(name, ["seed=5", "betas=0.8,0.95", "model.task_embed=false"])
    (tmp_path / "own.yaml").write_text(write_recipe(config))
    assert read_recipe(tmp_path / "own.yaml") == config
    assert read_recipe(tmp_path / "own.yaml", ["lr=1e-5"]).lr == 1e-5


def test_settings_left_out_are_those_of_the_preset(tmp_path):
    (tmp_path / "own.yaml").write_text("preset: tiny\nlr: 5e-4\nmodel:\n  tasks: [sr2, denoise25]\n")
    config = read_recipe(tmp_path / "own.yaml")
    assert config == recipe("tiny", ["lr=5e-4", "model.tasks=sr2,denoise25"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("warmup_step: 4", "own.yaml: warmup_step: no such setting; did you mean warmup_steps"),
        ("lr: fast", "own.yaml: lr=fast: must be a number"),
        ("preset: huge", "own.yaml: preset 'huge' is not known; choose one of tiny"),
        ("- lr", "own.yaml: needs settings, a line each, as in lr: 1e-4 (got list)"),
        ("lr: [", "own.yaml: not a YAML file"),
        ("model: 6", "own.yaml: model needs settings of its own"),
    ],
)
def test_what_is_wrong_is_named(text, message, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/") as raised:
        read_recipe(tmp_path / "own.yaml")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_committed_files_are_what_the_command_writes():
    for name in ("tiny", "pocket", "small", "deblur"):
        assert read_recipe(CONFIGS / f"pretrain_{name}.yaml") == recipe(name)
    assert read_recipe(CONFIGS / "pretrain.yaml") == recipe("base")
    assert read_recipe(CONFIGS / "ablation_no_contrastive.yaml") == recipe("base", ["lam=0"])
    assert read_recipe(CONFIGS / "ablation_data_40.yaml") == recipe("base", ["data_fraction=0.4"])
    for path in CONFIGS.glob("finetune_*.yaml"):
        config = finetune_recipe(preset("base"), path.stem.removeprefix("finetune_"))
        name, settings = read_changes(path)
        assert name is None and apply_changes(config, settings) == config


def test_every_committed_file_names_known_settings_alone():
    known = recipe_schema()["properties"]
    assert json.loads((CONFIGS / "schema.json").read_text()) == recipe_schema()
    for path in CONFIGS.glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        assert set(values) <= set(known) and set(values.get("model", {})) <= set(known["model"]["properties"])


def test_every_setting_is_described():
    known = recipe_schema()["properties"]
    assert all(len(value["description"]) >= 8 for key, value in known.items() if key != "model")
    assert "one of the two" in known["steps"]["description"]


def test_the_commands(tmp_path, capsys):
    assert main(["config", "--preset", "tiny", "--set", "steps=7"]) == 0
    (tmp_path / "own.yaml").write_text(capsys.readouterr().out)
    assert main(["config", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema()
    assert (
        train(["--config", str(tmp_path / "none.yaml"), "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    )
    assert "none.yaml" in capsys.readouterr().err
    (tmp_path / "own.yaml").write_text("lr: fast")
    assert train(["--config", str(tmp_path / "own.yaml"), "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert f"{tmp_path}/own.yaml: lr=fast: must be a number" in capsys.readouterr().err  # not "--set", nobody gave it
