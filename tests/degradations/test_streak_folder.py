"""Rain from a folder of streak pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast.degradations.streak_folder import StreakFolder


def unique_picture(number, height, width):
    """Every pixel of all pictures is found again by its value and its neighbours'."""
    return np.random.default_rng(number).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "deeper").mkdir()
    for number, (height, width) in enumerate([(90, 70), (64, 120), (33, 41)]):
        place = tmp_path / ("deeper" if number == 1 else "") / f"streaks{number}.png"
        Image.fromarray(unique_picture(number, height, width)).save(place)
    (tmp_path / "readme.txt").write_text("no picture")
    return tmp_path


def found(layer, picture):
    """Whether the layer is a cut of the picture."""
    height, width = layer.shape
    if picture.shape[0] < height or picture.shape[1] < width:
        return False
    windows = np.lib.stride_tricks.sliding_window_view(picture, (height, width))
    return bool((windows[:, :, 0] == layer[0]).all(-1).any() and (windows == layer).all((2, 3)).any())


def test_layers_are_cuts_of_all_pictures(folder):
    streaks = StreakFolder(folder)
    assert [path.name for path in streaks.paths] == ["streaks1.png", "streaks0.png", "streaks2.png"]
    layers = streaks(torch.arange(30), 32, 40)
    assert layers.shape == (30, 32, 40) and layers.dtype == torch.float32
    pictures = [np.array(Image.open(path)) for path in streaks.paths]
    which = [[found(layer, picture) for picture in pictures].index(True) for layer in layers.numpy()]
    assert set(which) == {0, 1, 2}


def test_cuts_reach_every_corner(tmp_path):
    Image.fromarray(unique_picture(0, 6, 5)).save(tmp_path / "a.png")
    layers = StreakFolder(tmp_path)(torch.arange(200), 4, 4).numpy()
    assert len(np.unique(layers.reshape(200, -1), axis=0)) == 3 * 2


def test_small_pictures_are_mirrored(tmp_path):
    picture = unique_picture(0, 6, 5)
    Image.fromarray(picture).save(tmp_path / "a.png")
    layer = StreakFolder(tmp_path)(torch.tensor([1]), 20, 7)[0].numpy()
    assert (layer == np.pad(picture, ((0, 14), (0, 2)), mode="symmetric")).all()


def test_same_seed_same_layer_whatever_the_batch(folder):
    streaks = StreakFolder(folder)
    seeds = torch.tensor([3, -7, 3, 1 << 60])
    layers = streaks(seeds, 48, 48)
    assert torch.equal(layers[0], layers[2]) and not torch.equal(layers[0], layers[1])
    assert torch.equal(layers[1:2], streaks(seeds[1:2], 48, 48))
    assert torch.equal(layers, StreakFolder(folder)(seeds, 48, 48))


def test_colour_pictures_become_gray(tmp_path):
    Image.fromarray(np.full((50, 50, 3), (10, 200, 30), np.uint8)).save(tmp_path / "a.png")
    layer = StreakFolder(str(tmp_path))(torch.tensor([1]), 48, 48)
    assert (layer == Image.fromarray(np.full((1, 1, 3), (10, 200, 30), np.uint8)).convert("L").getpixel((0, 0))).all()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is no folder; give a folder of streak pictures"):
        StreakFolder(tmp_path / "nowhere")


def test_a_folder_without_pictures_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"holds no picture \(\.jpg, "):
        StreakFolder(tmp_path)


@pytest.mark.parametrize("data", [b"", b"no picture", None])
def test_a_damaged_picture_is_named(folder, data):
    whole = (folder / "streaks0.png").read_bytes()
    (folder / "bad.png").write_bytes(whole[:200] if data is None else data)
    with pytest.raises(ValueError, match=r"streak picture .*bad\.png cannot be read: "):
        StreakFolder(folder)
