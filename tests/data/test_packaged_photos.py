"""The demo's photos are where the packages put them, and held-out ones are never trained on."""

import pytest

pytest.importorskip("skimage", reason="the demo's photos come with scikit-image: pip install 'ipt-fast[demo]'")
pytest.importorskip("sklearn", reason="the demo's photos come with scikit-learn: pip install 'ipt-fast[demo]'")

from ipt_fast.data import packaged_photos as photos
from ipt_fast.io.images import read_rgb


def test_training_photos_are_copied_once(tmp_path):
    folder = photos.copy_training_photos(tmp_path / "photos")
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in photos.packaged_photos(photos.TRAIN)}
    kept = folder / "astronaut.png"
    kept.write_bytes(b"mine")
    photos.copy_training_photos(folder)
    assert kept.read_bytes() == b"mine"


def test_held_out_photos_are_not_trained_on():
    held_out = {path.name for path in photos.packaged_photos(photos.HELD_OUT)}
    assert len(held_out) == 3
    assert held_out.isdisjoint(path.name for path in photos.packaged_photos(photos.TRAIN))


def test_every_photo_is_large_enough_for_x4():
    for path in photos.packaged_photos(photos.TRAIN):
        assert min(read_rgb(path).shape[1:]) >= 4 * 52, path.name


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"scikit-image.*ipt-fast\[demo\]"):
        photos.held_out_photos()
