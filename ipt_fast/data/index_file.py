"""The index on disk: JSON lines, a header and one line an image; written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ipt_fast.io.atomic import atomic_write

INDEX_NAME = ".ipt_fast_index.jsonl"
FORMAT = "ipt-fast-index/1"


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One image. ``path`` is absolute (``shard.tar::member`` in a shard), ``width`` and ``height`` are as stored.

    ``verdict`` is "ok" or "refused"; ``reason`` begins with the kind of refusal. ``notes`` name what is unusual and
    served all the same. ``offset`` is the place of the bytes in a tar shard, -1 for a file of its own.
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


def default_index_file(root: Path) -> Path:
    """Return the place beside the photos, or in the cache folder where an index lies there and none here."""
    beside = (root if root.is_dir() else root.parent) / (INDEX_NAME if root.is_dir() else f".{root.name}{INDEX_NAME}")
    cached = cache_index_file(root)
    return cached if cached.exists() and not beside.exists() else beside


def cache_index_file(root: Path) -> Path:
    """Return where the index of a folder lies that cannot be written to: the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return cache / "ipt-fast" / f"index-{digest}.jsonl"


def read_index_file(place: Path, min_size: int) -> dict[str, ImageEntry]:
    """Return path -> entry; empty where there is no index, or a damaged one, or one made with other demands."""
    entries = {}
    try:
        with open(place, encoding="utf-8") as lines:
            header = json.loads(next(lines))
            if header != {"format": FORMAT, "min_size": min_size}:
                return {}
            for line in lines:
                values = json.loads(line)
                values["path"] = _absolute(values["path"], place.parent)
                values["notes"] = tuple(values.get("notes", ()))
                entries[values["path"]] = ImageEntry(**values)
    except (OSError, ValueError, TypeError, KeyError, StopIteration):
        return {}  # whatever is wrong with it, checking again repairs it
    return entries


def write_index_file(place: Path, entries: Sequence[ImageEntry], min_size: int, fallback: Path | None = None) -> Path:
    """Write atomically and return where. ``fallback``: the data folder whose cache place serves if this one does not.

    Raises:
        OSError: neither place can be written.
    """
    try:
        _write(place, entries, min_size)
    except OSError:
        if fallback is None:
            raise
        place = cache_index_file(fallback)
        _write(place, entries, min_size)
    return place


def _write(place: Path, entries: Sequence[ImageEntry], min_size: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(place, "w") as out:
        out.write(json.dumps({"format": FORMAT, "min_size": min_size}) + "\n")
        for entry in entries:
            values = {key: value for key, value in asdict(entry).items() if value not in ("", (), -1)}
            values["path"] = _relative(entry.path, place.parent)
            out.write(json.dumps(values) + "\n")


def _relative(path: str, folder: Path) -> str:
    """Relative below the index's own folder, so that a data folder may move together with its index."""
    prefix = str(folder) + os.sep
    return path[len(prefix) :] if path.startswith(prefix) else path


def _absolute(path: str, folder: Path) -> str:
    return os.path.join(folder, path)
