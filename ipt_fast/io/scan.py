"""Find images under a path: folders of any depth, flat folders, single files, and tar shards.

An image inside a tar is named ``shard.tar::member``; it is read straight from its place in the tar. Files and folders
whose names begin with a dot are never taken.
"""

import os
import stat
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ipt_fast.io.images import SUFFIXES

MEMBER = "::"


@dataclass(frozen=True)
class ImageFile:
    """One image file. ``offset`` is its place in its tar shard, -1 for a file of its own."""

    path: str
    size_bytes: int
    mtime_ns: int
    offset: int = -1


@dataclass
class ScanResult:
    """What lies under a path: images, folders (or shards) that could not be read, and other files by their suffix."""

    images: list[ImageFile] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def others(self) -> int:
        """Return how many other files there are."""
        return self.kinds.total()


def find_images(root: Path, *, recursive: bool = True, shards: bool = True) -> ScanResult:
    """Find all images under a folder, or the one that the path names, in the order of their paths.

    Links are followed, each folder is entered once.

    Args:
        root: a folder or a file.
        recursive: enter the folders inside.
        shards: look into tar files.
    """
    scan = ScanResult()

    def unreadable(error: OSError) -> None:
        scan.unreadable.append((error.filename, error.strerror or str(error)))

    if not root.is_dir():
        _add_file(str(root), os.stat(root), scan, shards)
    seen = set()
    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        for path in [os.path.join(folder, name) for name in names if not name.startswith(".")]:
            # A link to nowhere or to itself is a file that cannot be read.
            _add_file(path, os.stat(path) if os.path.exists(path) else os.lstat(path), scan, shards)
    scan.images.sort(key=lambda image: image.path)
    return scan


def image_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """List the image files in a folder, by name.

    Raises:
        OSError: the folder, or one inside it, cannot be read.
    """
    scan = find_images(folder, recursive=recursive, shards=False)
    for path, reason in scan.unreadable:
        raise OSError(f"{path}: {reason}")
    return [Path(image.path) for image in scan.images]


def _add_file(path: str, status: os.stat_result, scan: ScanResult, shards: bool) -> None:
    if shards and path.lower().endswith(".tar"):
        _scan_shard(path, status.st_mtime_ns, scan)
    elif path.lower().endswith(SUFFIXES) and (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        scan.images.append(ImageFile(path, status.st_size, status.st_mtime_ns))
    else:
        scan.kinds[os.path.splitext(path)[1].lower()] += 1


def _scan_shard(path: str, mtime_ns: int, scan: ScanResult) -> None:
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if not member.isfile() or os.path.basename(member.name).startswith("."):
                    continue
                if member.name.lower().endswith(SUFFIXES):
                    name = f"{path}{MEMBER}{member.name}"
                    scan.images.append(ImageFile(name, member.size, mtime_ns, member.offset_data))
                else:
                    scan.kinds[os.path.splitext(member.name)[1].lower()] += 1
    except (OSError, tarfile.TarError) as error:
        scan.unreadable.append((path, f"damaged tar shard: {error}"))


def read_bytes(image: ImageFile) -> bytes:
    """Read all bytes of an image file or of a shard's member.

    Raises:
        OSError: it cannot be read, or it is shorter than it was.
    """
    if image.offset < 0:
        with open(image.path, "rb", buffering=0) as file:
            return file.readall()
    with open(image.path.split(MEMBER)[0], "rb", buffering=0) as file:
        data = os.pread(file.fileno(), image.size_bytes, image.offset)
    if len(data) != image.size_bytes:
        raise OSError(f"{image.path} ends before its {image.size_bytes} bytes do")
    return data
