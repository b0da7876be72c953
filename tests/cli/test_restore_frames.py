"""``ipt-fast restore`` of animations: every frame, its duration, and how often they play."""

import numpy as np
import pytest
from PIL import Image

from ipt_fast.cli import main

DURATIONS = [40, 50, 60, 300]


def picture(number, mode="RGB"):
    size = (12, 16, len(mode))
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8))


def animation(path, mode="RGB", **options):
    frames = [picture(number, mode) for number in range(4)]
    more = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=DURATIONS, **options, **more)
    return path


def frames_of(path):
    frames, durations = [], []
    with Image.open(path) as opened:
        for number in range(opened.n_frames):
            opened.seek(number)
            opened.load()
            frames.append(opened.convert("RGBA" if "A" in opened.mode else "RGB"))
            durations.append(opened.info.get("duration"))
        return frames, durations, opened.info.get("loop")


def run(*arguments):
    return main(["restore", *map(str, arguments)])


@pytest.mark.parametrize(
    "source, target, loop, plays",
    [
        (".gif", ".png", None, 1),
        (".gif", ".webp", 2, 3),  # repetitions and plays
        (".webp", ".png", 0, 0),
    ],
)
def test_every_frame_is_what_it_is_alone(source, target, loop, plays, tmp_path, checkpoint, capsys):
    path = animation(tmp_path / f"a{source}", **({} if loop is None else {"loop": loop}))
    common = ["--task", "sr2", "--checkpoint", checkpoint, "--outscale", "1.5"]
    assert run(path, "-o", tmp_path / f"out{target}", *common, "--compare") == 0
    assert "(4 frames" in capsys.readouterr().err
    frames, durations, loops = frames_of(tmp_path / f"out{target}")
    assert durations == DURATIONS and loops == plays and [frame.size for frame in frames] == 4 * [(24, 18)]
    frames_of(path)[0][2].save(tmp_path / "third.png")
    assert run(tmp_path / "third.png", "-o", tmp_path / "alone.png", *common) == 0
    assert np.array_equal(np.array(frames[2]), np.array(Image.open(tmp_path / "alone.png")))
    assert Image.open(tmp_path / "out.compare.png").size[1] == 18 + 34


def test_alpha_of_frames_and_a_still_before_them(tmp_path, checkpoint):
    path = animation(tmp_path / "a.png", "RGBA", default_image=True)
    assert run(path, "-o", tmp_path / "out.webp", "--task", "derain", "--checkpoint", checkpoint) == 0
    frames, durations, _ = frames_of(tmp_path / "out.webp")
    assert durations == frames_of(path)[1][1:]
    assert len(frames) == 3 and all(frame.mode == "RGBA" for frame in frames)
    assert np.array_equal(np.array(frames[1])[..., 3], np.array(picture(2, "RGBA"))[..., 3])


def test_other_kinds_of_files_get_the_first_frame_and_say_so(tmp_path, checkpoint, capsys):
    path = animation(tmp_path / "a.gif")
    assert run(path, "-o", tmp_path / "out.jpg", "--task", "derain", "--checkpoint", checkpoint) == 0
    assert "first of 4 frames" in capsys.readouterr().err


def test_a_damaged_or_endless_animation_costs_itself(tmp_path, checkpoint, capsys):
    (tmp_path / "in").mkdir()
    whole = animation(tmp_path / "in/large.webp").read_bytes()
    (tmp_path / "in/cut.webp").write_bytes(whole[: len(whole) * 2 // 3])
    picture(0).save(tmp_path / "in/still.png")
    common = ["--task", "derain", "--checkpoint", checkpoint, "--max-pixels", "700"]
    assert run(tmp_path / "in", "-o", tmp_path / "out", *common) == 1
    said = capsys.readouterr().err
    assert "large.webp: 4 frames of 16x12 pixels are more than 700; restore has --max-pixels" in said
    assert "cut.webp: cannot be read" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["still.png"]
