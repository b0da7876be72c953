"""restore of a list: what each image becomes alone, in batches that are full."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from ipt_fast import IPT, TASKS, IPTConfig, restore


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return IPT(IPTConfig(n_feats=4, num_heads=2, num_layers=1)).eval()


def images(tmp_path):
    """Return an image of every kind, of other sizes each: smaller than a window, one window, and many."""
    rng = np.random.default_rng(0)
    array, deep, gray = (
        rng.integers(0, high, size).astype(dtype)
        for high, size, dtype in ((256, (64, 64, 3), "uint8"), (65536, (20, 90, 3), "uint16"), (256, (70, 9), "uint8"))
    )
    Image.fromarray(array[:50, :40]).save(tmp_path / "in.png")
    clear = Image.fromarray(rng.integers(0, 256, (48, 48, 4), dtype=np.uint8))
    large = torch.from_numpy(rng.random((3, 130, 100), dtype=np.float32) * 255)
    return [array, deep, gray, tmp_path / "in.png", clear, large, torch.full((3, 1, 1), 9, dtype=torch.uint8)]


def pixels(image):
    return image if isinstance(image, (torch.Tensor, np.ndarray)) else np.array(image)


@pytest.mark.parametrize("task", TASKS)
def test_each_becomes_what_it_becomes_alone(model, task, tmp_path):
    given = images(tmp_path)
    together = restore(model, given, task, batch_size=5)
    assert len(together) == len(given)
    for image, out in zip(given, together, strict=True):
        alone = restore(model, image, task)
        assert type(out) is type(alone)
        if isinstance(out, torch.Tensor):
            torch.testing.assert_close(out, alone, rtol=0, atol=1e-3)  # of 255, float32
        else:  # rounding may fall to the other side
            assert pixels(out).dtype == pixels(alone).dtype and pixels(out).shape == pixels(alone).shape
            assert np.abs(pixels(out).astype(int) - pixels(alone)).max() <= 1
    again = restore(model, tuple(given), task, batch_size=5)
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(together, again, strict=True))


def test_a_self_ensemble_of_several(model, tmp_path):
    given, shares = images(tmp_path)[4:], []
    together = restore(model, given, "derain", batch_size=4, self_ensemble=True, progress=shares.append)
    assert sum(shares) == pytest.approx(1) and len(shares) > 8
    alone = [restore(model, image, "derain", self_ensemble=True) for image in given]
    assert np.abs(np.array(together[0]).astype(int) - np.array(alone[0])).max() <= 1
    for out, wanted in zip(together[1:], alone[1:], strict=True):
        torch.testing.assert_close(out, wanted, rtol=0, atol=1e-3)


class Recorder(torch.nn.Module):
    """Note how many windows come at once; run out of memory with more than ``most``."""

    def __init__(self, model, most=1000):
        super().__init__()
        self.model, self.config, self.task_index, self.most, self.seen = model, model.config, model.task_index, most, []

    def forward(self, x, task):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("allocation failed")
        self.seen.append(len(x))
        return self.model(x, task)


def test_batches_are_full_over_rows_and_images(model):
    given = [torch.rand(3, *size) * 255 for size in ((64, 64), (48, 48), (100, 130), (30, 70))]  # 4 + 1 + 12 + 2
    recorder = Recorder(model)
    restore(recorder, given, "derain", batch_size=8)
    assert recorder.seen == [8, 8, 3]
    with pytest.warns(ResourceWarning, match="out of memory with 8 windows at once, going on with 4"):
        outputs = restore(small := Recorder(model, most=6), given, "derain", batch_size=8)
    assert small.seen == [4, 4, 4, 4, 3]
    for image, out in zip(given, outputs, strict=True):
        torch.testing.assert_close(out, restore(model, image, "derain"), rtol=0, atol=1e-3)


def test_none_at_all(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restore(model, [], "sr2") == [] and restore(model, (), "sr2", self_ensemble=True) == []
    with pytest.raises(ValueError, match="'blur' is not in this network"):
        restore(model, [], "blur")


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (torch.zeros(2, 3, 9, 9), ValueError, r"image\[1\] of 2: a list holds tensors \[3, H, W\], got \[2, 3, 9, 9\]"),
        (np.zeros((5, 5, 4), np.uint8), ValueError, r"image\[1\] of 2: needs an image of 1 or 3 channels"),
        ([torch.zeros(3, 9, 9)], ValueError, r"image\[1\] of 2: image must be a path, .* got list"),
        ("none.png", FileNotFoundError, "none.png: no such file"),
    ],
)
def test_errors_say_which_one(model, wrong, error, message):
    with pytest.raises(error, match=message):
        restore(model, [torch.zeros(3, 9, 9), wrong], "sr2")
