"""``ipt-fast restore`` of videos: every frame, its time, and the sound."""

import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ipt_fast.cli import main
from ipt_fast.io.video import convert_video

av = pytest.importorskip("av", reason="needs the extra video")
RATE = Fraction(30000, 1001)


def clip(path, size=(48, 32), audio="aac", turned=0, colorspace=None):
    """Write five frames of sliding colours, with silence beside them."""
    fields = np.random.default_rng(0).integers(40, 216, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    picture = np.kron(fields, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=RATE, options={"crf": "1"})
        video.width, video.height, video.pix_fmt = *size, "yuv444p"
        if turned:
            video.set_display_rotation(turned)
        if colorspace is not None:
            video.codec_context.colorspace = colorspace
        sound = out.add_stream(audio, rate=44100, layout="stereo") if audio else None
        for shift in range(5):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, 8 * shift, 1), format="rgb24")
            out.mux(video.encode(frame.reformat(format="yuv444p", dst_colorspace=colorspace)))
        out.mux(video.encode())
        if sound is not None:
            silence = np.zeros((2, 7000), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="stereo")
            frame.rate = 44100
            out.mux(sound.encode(frame))
            out.mux(sound.encode())
    return path


def frames_of(path):
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
        return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.time for frame in frames]


def sound_of(path):
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(audio=0)]


def run(*arguments):
    return main(["restore", *map(str, arguments)])


@pytest.mark.parametrize("kind, colorspace", [(".mp4", None), (".mkv", 1)])
def test_frames_times_and_sound(kind, colorspace, tmp_path, checkpoint, capsys):
    path = clip(tmp_path / f"a{kind}", colorspace=colorspace)
    common = ["--task", "sr2", "--checkpoint", checkpoint]
    assert run(path, "-o", tmp_path / "out/", *common) == 0
    said = capsys.readouterr().err
    assert "48x32 -> " in said and f"out/a{kind} 96x64" in said and "(5 frames, H.264; audio copied)" in said
    frames, times = frames_of(tmp_path / f"out/a{kind}")
    given, given_times = frames_of(path)
    assert times == given_times and len(frames) == 5 and sound_of(tmp_path / f"out/a{kind}") == sound_of(path)
    with av.open(str(tmp_path / f"out/a{kind}")) as file:
        assert file.streams.video[0].average_rate == pytest.approx(RATE, rel=1e-3)
    Image.fromarray(given[3]).save(tmp_path / "frame.png")
    assert run(tmp_path / "frame.png", "-o", tmp_path / "alone.png", *common) == 0
    alone = np.array(Image.open(tmp_path / "alone.png")).astype(int)
    luma = [image @ [0.3, 0.6, 0.1] for image in (frames[3].astype(int), alone)]
    assert np.abs(luma[0] - luma[1]).mean() < 8  # H.264, with colours at half the resolution


def test_a_video_between_photos_that_share_batches(tmp_path, checkpoint, capsys):
    for name in ("a.png", "c.png"):
        Image.new("RGB", (40, 30), "teal").save(tmp_path / name)
    clip(tmp_path / "b.mp4")
    common = ["--task", "derain", "--checkpoint", checkpoint, "--batch-photos", 3]
    assert run(*(tmp_path / name for name in ("a.png", "b.mp4", "c.png")), "-o", tmp_path / "out", *common) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if " -> " in line]
    assert [line.split("/")[-1].split()[0] for line in lines] == ["a.png", "b.mp4", "c.png"]
    assert len(frames_of(tmp_path / "out/b.mp4")[0]) == 5


@pytest.mark.parametrize("colorspace", [None, 1, 5])
def test_colours_are_stored_by_the_matrix_that_the_file_names(colorspace, tmp_path):
    path = clip(tmp_path / "a.mp4", audio=None, colorspace=colorspace)
    red = (200, 40, 60)
    before, after, _ = convert_video(path, tmp_path / "b.mp4", lambda pixels: np.full_like(pixels, red))
    assert before == after == (48, 32)
    assert np.abs(frames_of(tmp_path / "b.mp4")[0][2] - np.array(red)).max() <= 4


def test_a_turned_clip_of_odd_size_without_sound(tmp_path, checkpoint, capsys):
    path = clip(tmp_path / "a.mp4", (48, 32), audio=None, turned=90)
    common = ["--task", "derain", "--checkpoint", checkpoint, "--outscale", "31/32", "-o", tmp_path / "b.mov"]
    assert run(path, *common) == 0
    said = capsys.readouterr().err
    assert "32x48 -> " in said and "31x47" in said and "odd sides" in said and "turned upright" in said
    assert frames_of(tmp_path / "b.mov")[0][0].shape == (47, 31, 3)


def test_what_is_no_video_costs_itself(tmp_path, checkpoint, capsys):
    whole = clip(tmp_path / "whole.mp4", audio=None)
    (tmp_path / "bad.mp4").write_bytes(whole.read_bytes()[:600])
    arguments = [tmp_path / "bad.mp4", whole, "-o", tmp_path / "out", "--task", "derain", "--checkpoint", checkpoint]
    assert run(*arguments) == 1
    assert "failed: " in (said := capsys.readouterr().err) and "bad.mp4: cannot be restored as a video" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole.mp4"]


def test_frames_beyond_max_pixels_are_refused(tmp_path, checkpoint, capsys):
    path = clip(tmp_path / "a.mp4", (48, 32), audio=None)
    arguments = [path, "-o", tmp_path / "b.mp4", "--task", "derain", "--checkpoint", checkpoint, "--max-pixels", "1534"]
    assert run(*arguments) == 1
    assert "a.mp4: cannot be read (1,536 pixels, more than 1,534; restore and eval have --max-pixels" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "b.mp4").exists()


@pytest.mark.parametrize(
    "names, message",
    [
        (["a.mp4", "b.png"], "a.mp4 is a video, "),
        (["b.png", "a.mp4"], "b.png is a photo and cannot become"),
        (["a.mp4", "c.avi"], "not a kind of image that can be written"),
        (["a.mp4", "c.mp4", "--compare"], "--compare is for photos"),
    ],
)
def test_photos_stay_photos_and_videos_videos(names, message, tmp_path, assert_refused):
    (tmp_path / names[0]).write_bytes(b"read later")
    assert_refused("restore", [tmp_path / names[0], "-o", tmp_path / names[1], *names[2:], "--force"], message)


def test_without_its_extra(tmp_path, checkpoint, monkeypatch, assert_refused):
    (tmp_path / "a.mp4").write_bytes(b"read later")
    monkeypatch.setitem(sys.modules, "av", None)
    arguments = [tmp_path / "a.mp4", "-o", tmp_path / "b.mp4", "--task", "derain", "--checkpoint", checkpoint]
    assert_refused("restore", arguments, "videos need PyAV; pip install 'ipt-fast[video]'")
