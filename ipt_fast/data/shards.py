"""Pack the usable photos of an index into tar shards (webdataset's layout), with an index and checksums beside them.

A shard holds one file a photo, byte for byte as it was, under a name that is its key: nothing is encoded again. Photos
are in a fixed shuffled order, so that readers which go through shards in sequence meet all folders. The same photos
give the same bytes in every shard, so that a copy can be told from its checksums.
"""

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ipt_fast.arguments import checked
from ipt_fast.data.index import INDEX_NAME, ImageEntry, ImageIndex, write_index_file
from ipt_fast.data.plan import shard_order
from ipt_fast.data.source import PhotoTable, UnreadablePhotoError
from ipt_fast.io.atomic import atomic_write
from ipt_fast.io.progress import progress_bar
from ipt_fast.io.scan import MEMBER

CHECKSUMS = "SHA256SUMS"
_BLOCK = 512
# A photo is stored under the extension of what it is, whatever it was called.
_EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "BMP": "bmp",
    "TIFF": "tif",
    "PPM": "ppm",
    "JPEG2000": "jp2",
}


@dataclass
class Shards:
    """What was written. ``skipped``: (path, reason) of photos that became unreadable since they were indexed."""

    files: list[Path] = field(default_factory=list)
    photos: int = 0
    bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


@checked
def write_shards(
    index: ImageIndex,
    out: str | os.PathLike,
    *,
    roots: Sequence[str | os.PathLike] = (),
    shard_bytes: int = 256_000_000,
    progress: bool = True,
) -> Shards:
    """Write ``shard-000000.tar`` and so on, ``SHA256SUMS`` (for ``sha256sum -c``) and the index that training uses.

    Either all of it is written or, where anything fails, nothing.

    Args:
        roots: folders that the names of the photos are given relative to.
        shard_bytes: a shard ends with the photo that reaches this size.

    Raises:
        ValueError: ``shard_bytes`` is not positive, the index holds no usable photo, or ``out`` lies in one of
            ``roots``, so that the next index would find each photo twice.
        FileExistsError: ``out`` holds shards or an index already.
        OSError: ``out`` cannot be written, or its disk has too little room.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes is {shard_bytes}; it has to be at least 1")
    if not index.usable:
        raise ValueError("the index holds no usable image; see its refusals")
    out, folders = Path(out).absolute(), [Path(root).absolute() for root in roots]
    for folder in folders:
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{out} lies in {folder}, whose index would hold each photo twice; choose another place")
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    held = sorted(item.name for item in out.iterdir() if item.suffix == ".tar" or item.name in (CHECKSUMS, INDEX_NAME))
    if held:
        raise FileExistsError(f"{out} already holds {held[0]}; give a new folder, or remove what is there")
    try:
        needed, free = sum(entry.size_bytes + 2 * _BLOCK for entry in index.usable), shutil.disk_usage(out).free
        if needed > free:
            raise OSError(f"the shards need {needed / 1e9:.1f} GB and {out} has room for {free / 1e9:.1f} GB")
        done, entries = _write_all(index.usable, out, folders, shard_bytes, progress)
        with atomic_write(out / CHECKSUMS, "w") as sums:
            sums.writelines(f"{_sha256(file)}  {file.name}\n" for file in done.files)
        write_index_file(out / INDEX_NAME, entries, index.min_size)
    except BaseException:
        for file in (*out.glob("shard-*.tar"), out / CHECKSUMS):
            file.unlink(missing_ok=True)
        if new:
            out.rmdir()
        raise
    return done


def _write_all(
    photos: list[ImageEntry], out: Path, roots: list[Path], shard_bytes: int, progress: bool
) -> tuple[Shards, list[ImageEntry]]:
    """All shards, and the entries of their members in the order of the paths."""
    done = Shards()
    entries: list[ImageEntry] = []
    taken: set[str] = set()
    with progress_bar(f"packing {len(photos)} photos into {out}" if progress else None, len(photos)) as advance:
        readable = _read_all(photos, done.skipped, advance)
        following = next(readable, None)
        while following is not None:
            file = out / f"shard-{len(done.files):06}.tar"
            members: list[ImageEntry] = []
            with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tar:
                while following is not None and tar.offset < shard_bytes:
                    photo, data = following
                    members.append(_add(tar, file, photo, _unique_name(photo, roots, taken), data))
                    following = next(readable, None)
            status = file.stat()
            done.files.append(file)
            done.bytes += status.st_size
            entries += [replace(member, mtime_ns=status.st_mtime_ns) for member in members]
    if not entries:
        raise ValueError(f"none of the {len(photos)} photos can be read any more, the first: {done.skipped[0][1]}")
    done.photos = len(entries)
    return done, sorted(entries, key=lambda entry: entry.path)


def _read_all(
    photos: list[ImageEntry], skipped: list[tuple[str, str]], advance: Callable[[], None]
) -> Iterator[tuple[ImageEntry, bytes]]:
    """Yield (photo, its bytes) in the order of shards; name those that cannot be read in ``skipped``."""
    table = PhotoTable(photos)
    for image in shard_order(len(photos)).tolist():
        try:
            data = table.read(image)
        except UnreadablePhotoError as error:
            skipped.append((error.path, error.reason))
        else:
            yield photos[image], data
        advance()


def _add(tar: tarfile.TarFile, file: Path, photo: ImageEntry, name: str, data: bytes) -> ImageEntry:
    header = tarfile.TarInfo(name)  # owner, time and rights are the same for all
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))
    offset = tar.offset - -(-len(data) // _BLOCK) * _BLOCK
    notes = tuple(note for note in photo.notes if note != "renamed")
    return replace(photo, path=f"{file}{MEMBER}{name}", size_bytes=len(data), offset=offset, notes=notes)


def _unique_name(photo: ImageEntry, roots: list[Path], taken: set[str]) -> str:
    """Return a name that is a key in webdataset's sense: up to the first dot of the file name it occurs once."""
    path = Path(photo.path.replace(MEMBER, "/"))
    under = next((root for root in roots if path.is_relative_to(root)), path.parent)
    stem, extension = os.path.splitext(path.relative_to(under).as_posix())
    folder, _, base = stem.rpartition("/")
    key = "/".join(filter(None, (folder, re.sub(r"[.\s]", "_", base))))
    unique, number = key, 1
    while unique in taken:
        number += 1
        unique = f"{key}-{number}"
    taken.add(unique)
    return f"{unique}.{_EXTENSIONS.get(photo.format, extension.lower().lstrip('.'))}"


def _sha256(file: Path) -> str:
    with open(file, "rb") as data:
        digest = hashlib.sha256()
        while block := data.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
