"""The index of the training images: each file is checked once, as a whole; verdicts are kept on disk as JSON lines."""

import hashlib
import io
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from ipt_fast.arguments import checked
from ipt_fast.data.cores import cpu_cores
from ipt_fast.data.decode import is_jpeg, simplejpeg, to_rgb
from ipt_fast.io.atomic import atomic_write
from ipt_fast.io.images import DECODE_ERRORS, decode_reason, silence_pillow_warnings
from ipt_fast.io.progress import progress_bar
from ipt_fast.io.scan import ImageFile, find_images, read_bytes

_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image. ``path`` is absolute (``shard.tar::member`` in a shard), ``width`` and ``height`` are as stored.

    ``verdict`` is "ok" or "refused"; ``reason`` begins with the kind of refusal, a colon and details. ``notes`` name
    what is unusual and served all the same: gray, cmyk, 16-bit, alpha, exif-rotated, renamed. ``offset`` is the place
    of the bytes in a tar shard, -1 for a file of its own.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    verdict: str = "ok"
    reason: str = ""
    notes: tuple[str, ...] = ()
    offset: int = -1

    def refused(self, reason: str) -> "ImageEntry":
        """Return the entry of an image that training cannot use."""
        return replace(self, verdict="refused", reason=reason)


def check_image(file: ImageFile, data: bytes, min_size: int) -> ImageEntry:
    """Decode all of an image file's bytes. Never raises on what the bytes hold."""
    entry = ImageEntry(file.path, file.size_bytes, file.mtime_ns, offset=file.offset)
    if not data:
        return entry.refused("zero-byte: the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            entry = replace(entry, format=image.format or "", width=width, height=height, mode=image.mode)
            if min(width, height) < min_size:
                return entry.refused(f"too small: {width}x{height}, needs {min_size} a side")
            notes = _notes(image, file.path)
            if simplejpeg is not None and is_jpeg(data) and image.mode in ("RGB", "L"):
                # Strict also refuses data left over after the last row: damage in the middle shows as just that.
                simplejpeg.decode_jpeg(data, "RGB", strict=True)
            else:
                to_rgb(image)
    except UnidentifiedImageError:
        return entry.refused("not an image: no known image format in its bytes")
    except Image.DecompressionBombError as error:
        return entry.refused(f"too large: {decode_reason(error)}")
    except DECODE_ERRORS as error:
        text = decode_reason(error)
        kind = "truncated" if "truncated" in text.lower() or "premature end" in text.lower() else "corrupt"
        return entry.refused(f"{kind}: {text}")
    return replace(entry, notes=notes)


def _notes(image: Image.Image, name: str) -> tuple[str, ...]:
    mode = image.mode
    named = Image.registered_extensions().get("." + name.rpartition(".")[2].lower(), image.format)
    notes = {
        "gray": mode in ("1", "L", "LA", "La") or mode.startswith("I"),
        "cmyk": mode == "CMYK",
        "16-bit": mode.startswith("I"),
        "alpha": mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
        "exif-rotated": image.getexif().get(_ORIENTATION, 1) != 1,
        "renamed": named not in (image.format, "MPO"),
    }
    return tuple(note for note, applies in notes.items() if applies)


INDEX_NAME = ".ipt_fast_index.jsonl"
_FORMAT = "ipt-fast-index/1"
# Files checked in a row, so that the queue of the threads stays short for millions of files.
_CHUNK = 4096


class NoImagesError(ValueError):
    """A data folder holds no image that training can use."""


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """All images of the data folders with their verdicts, in the order of their paths.

    ``unreadable`` names folders that could not be listed, with the reason; ``others`` counts files that are no images
    by name; ``checked`` says how many files this run had to look at (the rest was known from the index file).
    """

    entries: list[ImageEntry]
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    others: int = 0
    checked: int = 0
    min_size: int = 48
    files: tuple[str, ...] = ()
    seconds: float = 0.0

    @cached_property
    def usable(self) -> list[ImageEntry]:
        return [entry for entry in self.entries if entry.verdict == "ok"]

    @property
    def refused(self) -> list[ImageEntry]:
        return [entry for entry in self.entries if entry.verdict != "ok"]

    def refusals(self) -> dict[str, list[ImageEntry]]:
        """Return kind of refusal -> its files, the most frequent first."""
        kinds: dict[str, list[ImageEntry]] = {}
        for entry in self.refused:
            kinds.setdefault(entry.reason.split(":")[0], []).append(entry)
        return dict(sorted(kinds.items(), key=lambda kind: len(kind[1]), reverse=True))

    def notes(self, crop: int = 208) -> dict[str, int]:
        """Count what is out of the ordinary and served all the same -> number of photos.

        ``crop`` is the largest side of a crop: photos smaller than that are mirror-padded for it.
        """
        counts = Counter(note for entry in self.usable for note in entry.notes)
        smaller = sum(min(entry.width, entry.height) < crop for entry in self.usable)
        if smaller:
            counts[f"a side under {crop} px (mirror-padded for the largest crops)"] = smaller
        return dict(counts.most_common())


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    with warnings.catch_warnings():
        silence_pillow_warnings()
        yield


@checked(workers=1, min_size=1)
@_quiet_pillow()
def build_index(
    paths: Sequence[str | os.PathLike] | str | os.PathLike,
    *,
    index_file: str | os.PathLike | None = None,
    workers: int | None = None,
    min_size: int = 48,
    progress: bool = True,
) -> ImageIndex:
    """Check all images under the paths (folders, tar shards, single files) and keep the verdicts in an index file.

    Files whose size and modification time are those of the index file are not read again, nor are those that a run
    had checked which was interrupted. The index file lies in each
    folder as ``.ipt_fast_index.jsonl``, or in the user's cache folder where the folder is read-only; ``index_file``
    puts the index of all paths into one file of that name.

    Args:
        workers: threads; None for one a core.
        min_size: images with a side under this many pixels are refused.
        progress: show a bar on stderr.

    Raises:
        FileNotFoundError: a path does not exist.
        NoImagesError: a path holds no usable image; the message names it and counts what was refused.
    """
    started = time.monotonic()
    roots = [Path(path).absolute() for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not roots:
        raise ValueError("build_index: paths is empty; name at least one data folder")
    for root in roots:
        if not root.exists():
            raise FileNotFoundError(f"data folder {root} does not exist")
    single = Path(index_file).absolute() if index_file is not None else None
    entries: dict[str, ImageEntry] = {}
    unreadable: list[tuple[str, str]] = []
    files, others, checked = [], 0, 0
    for place, group in [(single, roots)] if single else [(_default_place(root), [root]) for root in roots]:
        known = _read_index_file(place, min_size)
        found: dict[str, ImageEntry] = {}
        changed = 0
        for root in group:
            scan = find_images(root)
            part: list[ImageEntry] = []
            try:
                fresh = _check_all(scan.images, part, known, min_size, workers, progress and str(root))
            except BaseException:
                with suppress(OSError):  # what is checked by now stays known
                    seen = known | found | {entry.path: entry for entry in part}
                    write_index_file(place, list(seen.values()), min_size, fallback=None if single else group[0])
                raise
            _require_usable(root, ImageIndex(part, scan.unreadable, scan.others))
            found.update((entry.path, entry) for entry in part)
            unreadable += scan.unreadable
            others += scan.others
            changed += fresh
        if changed or len(found) != len(known):
            in_order = [found[path] for path in sorted(found)]
            place = write_index_file(place, in_order, min_size, fallback=None if single else group[0])
        files.append(str(place))
        checked += changed
        entries |= found
    seconds = time.monotonic() - started
    ordered = [entries[path] for path in sorted(entries)]
    return ImageIndex(ordered, unreadable, others, checked, min_size, tuple(files), seconds)


def _check_all(
    found: list[ImageFile],
    entries: list[ImageEntry],
    known: dict[str, ImageEntry],
    min_size: int,
    workers: int | None,
    title: str | bool,
) -> int:
    """Append the entries of all files; returns how many of them were not known already."""
    fresh = []
    for item in found:
        entry = known.get(item.path)
        if entry and (entry.size_bytes, entry.mtime_ns, entry.offset) == (item.size_bytes, item.mtime_ns, item.offset):
            entries.append(entry)
        else:
            fresh.append(item)
    bar = progress_bar(f"checking images of {title}" if title and fresh else None, len(fresh))
    pool = ThreadPoolExecutor(max(1, cpu_cores() if workers is None else workers))  # decoders release Python's lock
    with bar as advance, pool:
        try:
            for start in range(0, len(fresh), _CHUNK):
                for entry in pool.map(partial(_check_one, min_size=min_size), fresh[start : start + _CHUNK]):
                    entries.append(entry)
                    advance()
        finally:
            pool.shutdown(cancel_futures=True)
    return len(fresh)


def _check_one(item: ImageFile, min_size: int) -> ImageEntry:
    try:
        data = read_bytes(item)
    except OSError as error:
        unread = ImageEntry(item.path, item.size_bytes, item.mtime_ns, offset=item.offset)
        return unread.refused(f"unreadable: {error.strerror or error}")
    return check_image(item, data, min_size)


def _require_usable(root: Path, index: ImageIndex) -> None:
    if index.usable:
        return
    seen = [f"{len(entries)} {kind}" for kind, entries in index.refusals().items()]
    seen += [f"{index.others} other files"] if index.others else []
    seen += [f"unreadable folder {path}: {reason}" for path, reason in index.unreadable[:3]]
    raise NoImagesError(
        f"no usable image under {root} ({'; '.join(seen) if seen else 'it is empty'}); "
        "give a folder with JPEG, PNG, WebP, BMP, TIFF or PPM photos, or tar shards of them"
    )


# ---- the file: a header and one line an image, written whole or not at all


def _default_place(root: Path) -> Path:
    """Return the place beside the photos, or in the cache folder where an index lies there and none here."""
    beside = root / INDEX_NAME if root.is_dir() else root.with_name(f".{root.name}{INDEX_NAME}")
    cached = _cache_place(root)
    return cached if cached.exists() and not beside.exists() else beside


def _cache_place(root: Path) -> Path:
    """Return where the index of a folder lies that cannot be written to: the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return cache / "ipt-fast" / f"index-{digest}.jsonl"


def _read_index_file(place: Path, min_size: int) -> dict[str, ImageEntry]:
    """Return path -> entry; empty where there is no index, or a damaged one, or one made with other demands."""
    entries = {}
    try:
        with open(place, encoding="utf-8") as lines:
            if json.loads(next(lines)) != {"format": _FORMAT, "min_size": min_size}:
                return {}
            for line in lines:
                values = json.loads(line)
                path = os.path.join(place.parent, values["path"])
                entries[path] = ImageEntry(**values | {"path": path, "notes": tuple(values.get("notes", ()))})
    except (OSError, ValueError, TypeError, KeyError, StopIteration):
        return {}  # whatever is wrong with it, checking again repairs it
    return entries


def write_index_file(place: Path, entries: Sequence[ImageEntry], min_size: int, fallback: Path | None = None) -> Path:
    """Write atomically and return where. ``fallback``: the data folder whose cache place serves if this one does not.

    Paths below the file's own folder are relative, so that a data folder may move together with its index.

    Raises:
        OSError: neither place can be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place, "w") as out:
            out.write(json.dumps({"format": _FORMAT, "min_size": min_size}) + "\n")
            for entry in entries:
                values = {key: value for key, value in asdict(entry).items() if value not in ("", (), -1)}
                out.write(json.dumps(values | {"path": entry.path.removeprefix(f"{place.parent}{os.sep}")}) + "\n")
    except OSError:
        if fallback is None:
            raise
        return write_index_file(_cache_place(fallback), entries, min_size)
    return place
