"""Find images under a path: folders of any depth, flat folders, single files, and tar shards.

An image inside a tar is named ``shard.tar::member``; it is read straight from its place in the tar.
"""

import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

EXTENSIONS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2")
)
MEMBER = "::"


@dataclass(frozen=True)
class Found:
    """One image file. ``offset`` is its place in its tar shard, -1 for a file of its own."""

    path: str
    size_bytes: int
    mtime_ns: int
    offset: int = -1


@dataclass
class Walk:
    """What lies under a path: images, folders (or shards) that could not be read, and a count of all other files."""

    found: list[Found] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    others: int = 0


def find_images(root: Path) -> Walk:
    """All images under a folder (links followed, hidden files left out), or the one that the path names."""
    walk = Walk()
    if root.is_dir():
        _enter(str(root), walk, set())
    else:
        _take(str(root), root.name, os.stat(root), walk)
    walk.found.sort(key=lambda found: found.path)
    return walk


def _enter(folder: str, walk: Walk, seen: set[tuple[int, int]]) -> None:
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as items:
            inside = sorted(items, key=lambda item: item.name)
    except OSError as error:
        walk.unreadable.append((folder, error.strerror or str(error)))
        return
    for item in inside:
        if item.name.startswith("."):
            continue
        if item.is_dir():
            _enter(item.path, walk, seen)
            continue
        try:
            status = item.stat()
        except OSError:  # a link to nowhere: index it as a file that cannot be read
            status = item.stat(follow_symlinks=False)
        _take(item.path, item.name, status, walk)


def _take(path: str, name: str, status: os.stat_result, walk: Walk) -> None:
    extension = os.path.splitext(name)[1].lower()
    if extension == ".tar":
        _open_shard(path, status.st_mtime_ns, walk)
    elif extension in EXTENSIONS:
        walk.found.append(Found(path, status.st_size, status.st_mtime_ns))
    else:
        walk.others += 1


def _open_shard(path: str, mtime_ns: int, walk: Walk) -> None:
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if not member.isfile():
                    continue
                if os.path.splitext(member.name)[1].lower() in EXTENSIONS:
                    name = f"{path}{MEMBER}{member.name}"
                    walk.found.append(Found(name, member.size, mtime_ns, member.offset_data))
                else:
                    walk.others += 1
    except (OSError, tarfile.TarError) as error:
        walk.unreadable.append((path, f"damaged tar shard: {error}"))


def read_found(item: Found) -> bytes:
    """All bytes of an image file or of a shard's member.

    Raises:
        OSError: it cannot be read, or it is shorter than it was.
    """
    return read_image(item.path, item.size_bytes, item.offset)


def read_image(path: str, size_bytes: int, offset: int) -> bytes:
    """The bytes of an image: the whole file, or ``size_bytes`` of a shard from ``offset``."""
    if offset < 0:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    with open(path.split(MEMBER)[0], "rb", buffering=0) as file:
        data = os.pread(file.fileno(), size_bytes, offset)
    if len(data) != size_bytes:
        raise OSError(f"{path} ends before its {size_bytes} bytes do")
    return data
