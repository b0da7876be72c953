"""The Hub through the real huggingface_hub, which talks to a stand-in on this machine."""

import sys

import pytest
import torch

from ipt_fast import IPT, IPTConfig, load_checkpoint
from ipt_fast.checkpoint import CheckpointError
from ipt_fast.checkpoint.publish import push_network
from ipt_fast.cli import main
from tests.checkpoint.hub_server import Hub

huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the extra hub")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with Hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", "hf_nobody")
        yield hub
        hub.shutdown()


def network():
    return IPT(IPTConfig(n_feats=4, patch_size=12, num_heads=3, num_layers=1, tasks=("sr2", "derain")))


def test_what_is_pushed_is_loaded(hub):
    model = network()
    url = push_network(model, "me/tiny", private=True)
    assert url.startswith(f"{hub.url}/me/tiny/commit/") and hub.private == ["me/tiny"]
    loaded = load_checkpoint("hf://me/tiny")
    assert loaded.config == model.config
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert load_checkpoint("hf://me/tiny@main/model.safetensors", task="derain").config.tasks == ("derain",)


def test_a_card_is_written_once_and_kept(hub):
    push_network(network(), "me/tiny")
    assert b'load_checkpoint("hf://me/tiny")' in hub.repos["me/tiny"]["README.md"]
    hub.repos["me/tiny"]["README.md"] = b"mine"
    before = hub.repos["me/tiny"]["model.safetensors"]
    push_network(network(), "me/tiny", dtype=torch.float16)
    assert hub.repos["me/tiny"]["README.md"] == b"mine"
    assert len(hub.repos["me/tiny"]["model.safetensors"]) < 0.6 * len(before)


def test_the_commands(hub, tmp_path, checkpoint_file, capsys):
    assert main(["push", str(checkpoint_file), "me/tiny", "--task", "sr2"]) == 0
    assert capsys.readouterr().out.startswith(f"{hub.url}/me/tiny/commit/")
    assert main(["convert", "hf://me/tiny", "-o", str(tmp_path / "own.pt")]) == 0
    assert load_checkpoint(tmp_path / "own.pt").config.tasks == ("sr2",)


def test_notes_come_from_there_too(hub, tmp_path):
    from ipt_fast.checkpoint import read_notes, save_network

    path = save_network(network(), tmp_path / "net.safetensors", notes={"by": "me"})
    push_network(network(), "me/tiny")
    hub.repos["me/tiny"]["model.safetensors"] = path.read_bytes()
    assert read_notes("hf://me/tiny") == read_notes("hf://me/tiny/model.safetensors") == {"by": "me"}


@pytest.fixture
def checkpoint_file(tmp_path):
    from ipt_fast.checkpoint import save_network

    return save_network(network(), tmp_path / "net.pt")


def test_what_was_fetched_is_there_without_a_network(hub, monkeypatch):
    push_network(network(), "me/tiny")
    load_checkpoint("hf://me/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert load_checkpoint("hf://me/tiny").config.tasks == ("sr2", "derain")
    assert len(hub.requests) == asked
    with pytest.raises(CheckpointError, match=r"hf://me/other: the Hub cannot be reached and .* HF_HUB_OFFLINE"):
        load_checkpoint("hf://me/other")
    with pytest.raises(CheckpointError, match=r"me/tiny: the Hub cannot be reached .*HF_HUB_OFFLINE"):
        push_network(network(), "me/tiny")


@pytest.mark.parametrize(
    "address, message",
    [
        ("hf://me/nothing", r"hf://me/nothing: no such repository, or a private one; .* hf auth login"),
        ("hf://me/tiny/IPT.pt", r"has no IPT\.pt; name one: hf://me/tiny/FILE"),
        ("hf://me/tiny@v9", r"no revision v9; leave @v9 out"),
        ("hf://me", r"hf://me: no address; give hf://owner/name"),
        ("hf://me/-bad-", r"hf://me/-bad-: no address: Repo id"),
    ],
)
def test_errors_say_what_to_do(address, message, hub):
    hub.repos["me/tiny"] = {"model.safetensors": b""}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(address)


@pytest.mark.parametrize("status", [401, 403])
def test_a_push_that_is_not_allowed(status, hub):
    hub.status = status
    with pytest.raises(CheckpointError, match=rf"refuses \({status}\); log in .* hf auth login, or HF_TOKEN"):
        push_network(network(), "me/tiny")


def test_a_push_to_no_name_and_to_nobody(hub, monkeypatch):
    with pytest.raises(CheckpointError, match="tiny: no name of a repository; give owner/name"):
        push_network(network(), "tiny")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="the Hub cannot be reached"):
        push_network(network(), "me/tiny")


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"hf://me/tiny: needs huggingface_hub; pip install 'ipt-fast\[hub\]'"):
        load_checkpoint("hf://me/tiny")
    with pytest.raises(CheckpointError, match=r"ipt-fast\[hub\]"):
        push_network(network(), "me/tiny")
