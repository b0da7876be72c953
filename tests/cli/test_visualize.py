"""``ipt-fast visualize``, and the figures behind its pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast import IPT, IPTConfig
from ipt_fast.checkpoint import save_network
from ipt_fast.cli import main
from ipt_fast.evaluation.visualization import (
    NothingToDrawError,
    as_mosaic,
    draw_positions,
    neighbours_and_rest,
    position_similarity,
    task_position_similarity,
    task_similarity,
)

pytest.importorskip("matplotlib", reason="drawing needs matplotlib")


def network(**switches):
    torch.manual_seed(0)
    return IPT(IPTConfig(**{"n_feats": 4, "patch_size": 12, "num_heads": 3, "num_layers": 1, **switches}))


def visualize(*arguments):
    return main(["visualize", *map(str, arguments)])


def test_position_similarity_is_the_cosine():
    model = network()
    rows = model.body.position_encoding.pe.weight.detach()
    wanted = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    assert torch.allclose(position_similarity(model), wanted, atol=1e-6)


def test_task_similarities_read_the_embedding_task_by_task():
    model = network()
    with torch.no_grad():
        E = model.body.query_embed.weight.view(6, 16, 36)
        E[1] = 2 * E[0]
        E[4] = -E[0]
        E[2] = E[2, :1]
    between, inside = task_similarity(model), task_position_similarity(model)
    assert between.shape == (6, 6) and inside.shape == (6, 16, 16)
    assert between[0, 1].item() == pytest.approx(1) and between[0, 4].item() == pytest.approx(-1)
    assert torch.allclose(inside[2], torch.ones(16, 16)) and torch.allclose(inside[0], inside[4], atol=1e-6)


def test_a_mosaic_has_each_token_at_its_place():
    similarity = torch.arange(81.0).view(9, 9)
    picture = as_mosaic(similarity)
    assert picture.shape == (11, 11) and picture[3].isnan().all() and picture[:, 7].isnan().all()
    assert torch.equal(picture[4:7, 8:11], similarity[5].view(3, 3))


def test_neighbours_are_those_that_touch():
    side = 4
    place = torch.arange(16)
    distance = (place[:, None] // side - place // side).abs() + (place[:, None] % side - place % side).abs()
    near, rest = neighbours_and_rest((distance == 1).float(), side)
    assert near == 1 and rest == pytest.approx(48 / 240)


def test_both_pictures_of_a_checkpoint(tmp_path, capsys):
    checkpoint = save_network(network(), tmp_path / "a.pt")
    assert visualize(checkpoint, "-o", tmp_path / "pictures") == 0
    written = capsys.readouterr().out.splitlines()
    assert [path.split("/")[-1] for path in written] == ["position_embedding.png", "task_embedding.png"]
    for path in written:
        pixels = np.array(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 400 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    assert visualize(checkpoint, "-o", tmp_path / "pictures") == 2
    assert "already there; --force overwrites" in capsys.readouterr().err
    assert visualize(checkpoint, "-o", tmp_path / "pictures", "--force") == 0


@pytest.mark.parametrize("tasks", [("sr2",), ("sr2", "derain"), ("sr2", "sr3", "sr4", "derain")])
def test_any_number_of_tasks(tasks, tmp_path):
    checkpoint = save_network(network(tasks=tasks), tmp_path / "a.safetensors")
    assert visualize(checkpoint, "-o", tmp_path) == 0
    assert (tmp_path / "task_embedding.png").is_file()


def test_what_a_network_lacks_is_said(tmp_path, capsys):
    one = save_network(network(position_embed=False), tmp_path / "one.pt")
    assert visualize(one, "-o", tmp_path / "one") == 0
    assert "has no position embedding" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["task_embedding.png"]
    none = save_network(network(position_embed=False, task_embed=False), tmp_path / "none.pt")
    assert visualize(none, "-o", tmp_path / "none") == 2
    said = capsys.readouterr().err
    assert "no position embedding" in said and "no task embedding" in said and said.count("\n") == 1


def test_equal_embeddings_can_be_drawn(tmp_path):
    model = network()
    model.body.position_encoding.pe.weight.data.fill_(1.0)
    assert draw_positions(model, tmp_path / "a.png").is_file()


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(NothingToDrawError, match=r"needs matplotlib: pip install 'ipt-fast\[train\]'"):
        draw_positions(network(), tmp_path / "a.png")


@pytest.mark.parametrize(
    "words, message",
    [(["none.pt"], "none.pt: no such checkpoint"), (["FILE", "-o", "FILE"], "is a file; give a folder")],
)
def test_errors_are_one_line_and_exit_code_2(words, message, tmp_path, assert_refused):
    checkpoint = str(save_network(network(), tmp_path / "a.pt"))
    assert_refused("visualize", [checkpoint if word == "FILE" else word for word in words], message)
