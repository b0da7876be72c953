"""save_network: every layout is read again as it was."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import LAYOUTS, load_checkpoint, save_network

SIX = IPTConfig(n_feats=4, num_heads=12, num_layers=1)


@pytest.fixture(scope="module")
def six():
    torch.manual_seed(0)
    return IPT(SIX).eval()


def same_weights(a, b):
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_again(six, layout, tmp_path):
    path = tmp_path / ("a.safetensors" if layout == "safetensors" else "a.pt")
    assert save_network(six, path, layout) == path
    again = load_checkpoint(path, num_heads=12)  # which the released layout does not say
    assert again.config == SIX and same_weights(six, again)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name, keys", [("a.safetensors", None), ("a.pt", {"format", "config", "model"})])
def test_the_name_decides_the_layout(six, name, keys, tmp_path):
    save_network(six, tmp_path / name)
    if keys:
        assert set(torch.load(tmp_path / name, weights_only=True)) == keys
    else:
        with safe_open(tmp_path / name, "pt") as file:
            assert IPTConfig.from_dict(json.loads(file.metadata()["config"])) == SIX


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_may_be_read_by_those_who_may_read_any_new_file(six, layout, tmp_path):
    (tmp_path / "any").touch()
    path = save_network(six, tmp_path / "a", layout)
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_sizes_that_weights_do_not_tell_are_kept(tmp_path):
    """Heads, names of tasks, and where the contrastive features are taken."""
    config = IPTConfig(n_feats=4, num_heads=3, num_layers=1, tasks=("derain", "denoise70"), features_from="decoder")
    for name in ("a.pt", "a.safetensors"):
        assert load_checkpoint(save_network(IPT(config), tmp_path / name)).config == config


def test_released_layout_has_the_released_keys(six, shared, tmp_path):
    names = set(json.loads((shared / "golden/ipt_pretrain_keys.json").read_text()))
    save_network(six, tmp_path / "a.pt", "released")
    keys = set(torch.load(tmp_path / "a.pt", weights_only=True))
    # One layer of the twelve.
    assert keys == {key for key in names if ".layers." not in key or ".layers.0." in key}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_half_precision_files(six, dtype, name, tmp_path):
    save_network(six, tmp_path / name, dtype=dtype)
    content = load_file(tmp_path / name) if "safe" in name else torch.load(tmp_path / name, weights_only=True)["model"]
    assert content["head.0.0.weight"].dtype == dtype
    assert content["body.position_encoding.position_ids"].dtype == torch.int64
    again = load_checkpoint(tmp_path / name)
    assert torch.equal(again.head[0][0].weight, six.head[0][0].weight.to(dtype).float())
    assert torch.equal(again.sub_mean.bias, six.sub_mean.bias)


@pytest.mark.parametrize(
    "changes, message",
    [({"num_heads": 3}, "take for 12; this network has 3"), ({"tasks": ("sr2", "derain")}, "one task or the six")],
)
def test_released_layout_refuses_what_it_cannot_say(changes, message, tmp_path):
    model = IPT(IPTConfig(**{"n_feats": 4, "num_heads": 12, "num_layers": 1, **changes}))
    with pytest.raises(ValueError, match=message):
        save_network(model, tmp_path / "a.pt", "released")
    with pytest.raises(ValueError, match="layout must be one of"):
        save_network(model, tmp_path / "a.pt", "zip")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_full_disk_is_an_os_error_that_names_the_file(name, six, tmp_path, small_files):
    path = tmp_path / name
    path.write_text("precious")
    with small_files(20_000), pytest.raises(OSError, match=rf"{tmp_path}/{name}"):
        save_network(six, path)
    assert path.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1
