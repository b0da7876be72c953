"""Videos, frame by frame, through PyAV (extra: video)."""

from collections import deque
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ipt_fast.io.atomic import atomic_path
from ipt_fast.io.images import ImageError, refuse_too_many

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
WRITABLE_VIDEOS = (".mp4", ".m4v", ".mov", ".mkv")  # those that hold H.264
_CODEC, _QUALITY = "libx264", {"crf": "16"}
_UNSPECIFIED = 2  # of what a file says of its colours


def is_video(path: Path) -> bool:
    """Return whether a file of this name is a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def load_av() -> ModuleType:
    """Import PyAV.

    Raises:
        ImportError: it is not there; the message says how to install it.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV; pip install 'ipt-fast[video]'") from error
    if _CODEC not in av.codecs_available:
        raise ImportError(f"this PyAV has no {_CODEC}, which writes H.264; pip install av, whose wheels have it")
    return av


def convert_video(
    source: Path,
    target: Path,
    change: Callable[[np.ndarray], np.ndarray],
    *,
    force: bool = True,
    progress: Callable[[float, int], None] | None = None,
) -> tuple[tuple[int, int], tuple[int, int], tuple[str, ...]]:
    """Write a video, whole or not at all, of which each frame is what ``change`` made of the source's.

    Frames keep their times, audio is copied. Frames are held one at a time, as 8-bit RGB.

    Args:
        source: the file.
        target: a name that ends in one of ``WRITABLE_VIDEOS``; H.264.
        change: uint8 [H, W, 3] -> uint8 [rH, rW, 3], the same r each time.
        force: replace a file that is there.
        progress: called after each frame with its share of the video, as far as that is known, and its pixels.

    Returns:
        Size (width, height) of the source's frames and of those written, and notes.

    Raises:
        ImageError: the source is no video, a damaged one, or one of too large frames.
        ImportError: as ``load_av``.
        OSError: it cannot be written.
    """
    av = load_av()
    with atomic_path(target, force=force) as temporary:
        try:
            with av.open(str(source)) as given, av.open(str(temporary), "w") as out:
                return _Conversion(given, out, change, progress).run()
        except av.error.FFmpegError as error:
            raise ImageError(f"{source}: cannot be restored as a video ({error.strerror or error})") from error


class _Conversion:
    """One video into another."""

    def __init__(self, given: Any, out: Any, change: Callable[[np.ndarray], np.ndarray], progress: Any) -> None:
        if not given.streams.video:
            raise ImageError(f"{given.name}: a video without pictures")
        self.given, self.out, self.change, self.progress = given, out, change, progress
        self.video = given.streams.video[0]
        refuse_too_many(given.name, self.video.width * self.video.height)
        self.rate = self.video.average_rate or self.video.guessed_rate or Fraction(25)
        self.encoder: Any = None
        self.audio: dict[int, Any] = {}
        self.early: deque[Any] = deque()  # audio before the first frame is done, when nothing can be written
        seconds = self.video.duration * self.video.time_base if self.video.duration else 0
        frames = self.video.frames or float(seconds * self.rate)
        self.share = 1 / frames if frames else 0.0  # of a frame; not every kind of file tells
        self.count = 0
        self.sizes = (0, 0), (0, 0)
        self.notes: list[str] = []

    def run(self) -> tuple[tuple[int, int], tuple[int, int], tuple[str, ...]]:
        self.video.thread_type = "AUTO"
        kept = [stream for stream in self.given.streams.audio if stream.codec_context.name in self.out.supported_codecs]
        for packet in self.given.demux(self.video, *kept):
            if packet.stream is self.video:
                for frame in packet.decode():
                    self._take(frame, kept)
            elif packet.dts is not None:  # the last packet of a stream is none
                self.early.append(packet)
            if self.encoder is not None:
                self._copy_audio()
        if self.encoder is None:
            raise ImageError(f"{self.given.name}: a video without frames")
        self.out.mux(self.encoder.encode())
        return *self.sizes, (f"{self.count} frames, H.264", *self._left_out(kept), *self.notes)

    def _take(self, frame: Any, kept: list[Any]) -> None:
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
        result = np.ascontiguousarray(self.change(np.ascontiguousarray(pixels)))
        if self.encoder is None:
            self._begin(frame, pixels, result, kept)
        av_frame = type(frame).from_ndarray(result, format="rgb24")
        marked = frame.colorspace != _UNSPECIFIED
        encoded = av_frame.reformat(format=self.encoder.pix_fmt, dst_colorspace=frame.colorspace if marked else None)
        encoded.time_base = self.video.time_base
        encoded.pts = round(self.count / self.rate / self.video.time_base) if frame.pts is None else frame.pts
        self.out.mux(self.encoder.encode(encoded))
        self.count += 1
        if self.progress is not None:
            self.progress(self.share, pixels[..., 0].size)

    def _begin(self, frame: Any, pixels: np.ndarray, result: np.ndarray, kept: list[Any]) -> None:
        """Set up the streams of the output, whose size is known from its first frame on."""
        height, width = result.shape[:2]
        self.sizes = (pixels.shape[1], pixels.shape[0]), (width, height)
        even = height % 2 == width % 2 == 0
        self.encoder = self.out.add_stream(_CODEC, rate=self.rate, options=dict(_QUALITY))
        self.encoder.width, self.encoder.height = width, height
        self.encoder.pix_fmt = "yuv420p" if even else "yuv444p"
        context, source = self.encoder.codec_context, self.video.codec_context
        context.time_base = self.video.time_base
        for name in ("colorspace", "color_primaries", "color_trc"):
            if (value := getattr(source, name)) != _UNSPECIFIED:
                setattr(context, name, value)
        if source.sample_aspect_ratio and not frame.rotation:
            context.sample_aspect_ratio = source.sample_aspect_ratio
        self.audio = {stream.index: self.out.add_stream_from_template(stream) for stream in kept}
        if not even:
            self.notes.append("odd sides, so colours are stored in full (4:4:4), which some players lack")
        if frame.format.components[0].bits > 8:
            self.notes.append(f"{frame.format.components[0].bits} bits a channel, taken as 8")
        if frame.rotation:
            self.notes.append("turned upright")

    def _copy_audio(self) -> None:
        while self.early:
            packet = self.early.popleft()
            packet.stream = self.audio[packet.stream.index]
            self.out.mux(packet)

    def _left_out(self, kept: list[Any]) -> list[str]:
        """Say what became of the other streams."""
        names = [f"{stream.codec_context.name} audio" for stream in self.given.streams.audio if stream not in kept]
        others = [s for s in self.given.streams if s.type != "audio" and s is not self.video]
        names += [stream.type for stream in others]
        said = ["audio copied"] * bool(kept)
        return said + [f"left out: {', '.join(names)}"] * bool(names)
