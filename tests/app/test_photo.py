"""What the page does with a photo, without Gradio and without a browser."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ipt_fast import IPT, IPTConfig, restore
from ipt_fast.app.photo import PhotoError, label, preview, read_photo, restore_photo
from ipt_fast.app.visits import ClosedError, Visits
from ipt_fast.io.images import on_white, read_image

TASKS = ("sr2", "sr4", "derain", "denoise30", "deblur")


@pytest.fixture(scope="module")
def model() -> IPT:
    torch.manual_seed(0)
    return IPT(IPTConfig(n_feats=4, num_heads=4, num_layers=1, patch_size=12, tasks=("sr2", "sr4", "denoise30")))


def noise(width, height, mode="RGB"):
    return Image.effect_noise((width, height), 60).convert(mode)


def test_every_task_has_a_name_of_its_own():
    names = [label(task) for task in TASKS]
    assert names == ["Enlarge ×2", "Enlarge ×4", "Remove rain", "Remove noise (σ 30)", "Remove blur"]


def test_the_answer_is_what_restore_gives(model, tmp_path):
    noise(30, 20).save(tmp_path / "a.png")
    photo, shares = read_photo(tmp_path / "a.png", 600), []
    answer = restore_photo(model, photo, "sr2", tmp_path, "a", shares.append)
    assert answer.full == tmp_path / "a_sr2.png" and "30 × 20 → 60 × 40" in answer.text
    expected = restore(model, photo.pixels, "sr2")
    assert np.array_equal(np.asarray(Image.open(answer.full)), expected)
    assert np.array_equal(np.asarray(Image.open(answer.after)), expected)
    before = Image.open(tmp_path / "a.png").resize((60, 40), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(Image.open(answer.before)), np.asarray(before))
    assert sum(shares) == pytest.approx(1)


def test_alpha_profile_and_sixteen_bits_go_with_the_download(model, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise(14, 12, "RGBA").save(tmp_path / "a.png", icc_profile=profile)
    answer = restore_photo(model, read_photo(tmp_path / "a.png", 10**6), "denoise30", tmp_path, "a")
    for path, mode in ((answer.full, "RGBA"), (answer.after, "RGB"), (answer.before, "RGB")):
        with Image.open(path) as image:
            assert (image.mode, image.size, image.info["icc_profile"]) == (mode, (14, 12), profile)
    deep = np.arange(14 * 12, dtype=np.uint16).reshape(12, 14) * 300
    Image.fromarray(deep).save(tmp_path / "deep.png")
    answer = restore_photo(model, read_photo(tmp_path / "deep.png", 10**6), "denoise30", tmp_path, "deep")
    assert read_image(answer.full, deep=True).pixels.dtype == np.uint16


def test_a_large_answer_is_shown_as_a_smaller_copy(model, tmp_path):
    noise(600, 4).save(tmp_path / "a.png")
    answer = restore_photo(model, read_photo(tmp_path / "a.png", 10**6), "sr4", tmp_path, "a")
    sizes = [Image.open(path).size for path in (answer.full, answer.before, answer.after)]
    assert sizes == [(2400, 16), (2048, 14), (2048, 14)] and "smaller copy" in answer.text


def test_transparent_pixels_are_shown_on_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert np.asarray(on_white(image)).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_the_preview_of_a_tiff_is_a_small_png(tmp_path):
    noise(1500, 30).save(tmp_path / "a.tif")
    with Image.open(preview(read_photo(tmp_path / "a.tif", 10**6), tmp_path / "p.png")) as shown:
        assert (shown.format, shown.size) == ("PNG", (1024, 20))


def damaged() -> bytes:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "PNG")
    return buffer.getvalue()[:1500]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"^a.png cannot be opened: the file is empty \(zero bytes\)\.$"),
        (b"<html>", r"^a.png cannot be opened: not an image\.$"),
        (damaged(), r"^a.png cannot be opened: cannot be read \(.+\)\.$"),
        (None, "^The photo is no longer here. Please drop it again.$"),
    ],
    ids=["empty", "text", "damaged", "gone"],
)
def test_what_cannot_be_read_is_said_in_a_sentence(content, message, tmp_path):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PhotoError, match=message):
        read_photo(tmp_path / "a.png", 10**6)


def test_a_photo_over_the_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("1", (2000, 1000)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:60])  # its head alone
    said = r"^a.png is too large: 2000 × 1000 pixels \(2 megapixels\); up to 1.5 megapixels are taken here\.$"
    with pytest.raises(PhotoError, match=said):
        read_photo(path, 1_500_000)
    path.write_bytes(whole)
    assert read_photo(path, 2_000_000).pixels.shape == (1000, 2000, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900_000)  # Pillow refuses twice as many
    with pytest.raises(PhotoError, match=r"^a.png has far too many pixels; up to 1.5 megapixels are taken here.$"):
        read_photo(path, 1_500_000)


def test_each_page_has_a_folder_that_goes_with_it(tmp_path):
    visits = Visits(tmp_path)
    upload = tmp_path / "upload"
    upload.mkdir()
    first, other = visits.renew("../../etc", upload), visits.renew("other")
    assert first.parent == other.parent == tmp_path and first != other
    visits.check("../../etc", first)
    again = visits.renew("../../etc")
    assert not first.exists() and not upload.exists() and again.exists() and other.exists()
    with pytest.raises(ClosedError):
        visits.check("../../etc", first)
    visits.close("../../etc")
    visits.close("nobody")
    assert list(tmp_path.iterdir()) == [other] and visits.folder("../../etc") is None


def test_the_same_upload_again_is_not_deleted_under_the_page(tmp_path):
    visits, upload = Visits(tmp_path), tmp_path / "upload"
    upload.mkdir()
    visits.renew("a", upload)
    visits.renew("a", upload)
    assert upload.exists()
    visits.close("a")
    assert not list(tmp_path.iterdir())
