"""The image index: every photo of the data folders checked once, kept on disk, refreshed where files changed."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from ipt_fast.data.check import Finding, check_image
from ipt_fast.data.cores import cpu_cores
from ipt_fast.data.index_file import ImageEntry, default_index_file, read_index_file, write_index_file
from ipt_fast.io.images import silence_pillow_warnings
from ipt_fast.io.progress import progress_bar
from ipt_fast.io.scan import ImageFile, find_images, read_bytes


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
        kinds = Counter(entry.reason.split(":")[0] for entry in self.refused)
        return {kind: [e for e in self.refused if e.reason.split(":")[0] == kind] for kind, _ in kinds.most_common()}

    def notes(self, crop: int = 208) -> dict[str, int]:
        """Count what is out of the ordinary and served all the same -> number of photos.

        ``crop`` is the largest side of a crop: photos smaller than that are mirror-padded for it.
        """
        counts = Counter(note for entry in self.usable for note in entry.notes)
        smaller = sum(min(entry.width, entry.height) < crop for entry in self.usable)
        if smaller:
            counts[f"a side under {crop} px (mirror-padded for the largest crops)"] = smaller
        return dict(counts.most_common())


def build_index(
    paths: Sequence[str | os.PathLike] | str | os.PathLike,
    *,
    index_file: str | os.PathLike | None = None,
    workers: int | None = None,
    min_size: int = 48,
    progress: bool = True,
) -> ImageIndex:
    """Check all images under the paths (folders, tar shards, single files) and keep the verdicts in an index file.

    Files whose size and modification time are those of the index file are not read again. The index file lies in each
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
    silence_pillow_warnings()
    roots = [Path(path).absolute() for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not roots:
        raise ValueError("no data folder was given; name at least one")
    for root in roots:
        if not root.exists():
            raise FileNotFoundError(f"data folder {root} does not exist")
    single = Path(index_file).absolute() if index_file is not None else None
    entries: dict[str, ImageEntry] = {}
    unreadable: list[tuple[str, str]] = []
    files, others, checked = [], 0, 0
    known = read_index_file(single, min_size) if single else {}
    for root in roots:
        place = single or default_index_file(root)
        if not single:
            known = read_index_file(place, min_size)
        scan = find_images(root)
        part, n_checked = _check_all(scan.images, known, min_size, workers, progress and str(root))
        _require_usable(root, part, scan.unreadable, scan.others)
        if not single:
            if n_checked or len(part) != len(known):
                place = write_index_file(place, part, min_size, fallback=root)
            files.append(str(place))
        entries.update((entry.path, entry) for entry in part)
        unreadable += scan.unreadable
        others += scan.others
        checked += n_checked
    ordered = [entries[path] for path in sorted(entries)]
    if single:
        if checked or len(ordered) != len(known):
            write_index_file(single, ordered, min_size)
        files.append(str(single))
    seconds = time.monotonic() - started
    return ImageIndex(ordered, unreadable, others, checked, min_size, tuple(files), seconds)


def _check_all(
    found: Iterable[ImageFile], known: dict[str, ImageEntry], min_size: int, workers: int | None, title: str | bool
) -> tuple[list[ImageEntry], int]:
    """Entries of all files, and how many of them were not known already."""
    entries, fresh = [], []
    for item in found:
        entry = known.get(item.path)
        if entry and (entry.size_bytes, entry.mtime_ns, entry.offset) == (item.size_bytes, item.mtime_ns, item.offset):
            entries.append(entry)
        else:
            fresh.append(item)
    workers = workers if workers is not None else cpu_cores()
    with progress_bar(f"checking images of {title}" if title and fresh else None, len(fresh)) as advance:
        entries += _map_threads(partial(_check_one, min_size=min_size), fresh, max(1, workers), advance)
    entries.sort(key=lambda entry: entry.path)
    return entries, len(fresh)


def _map_threads(check: Callable, items: list, workers: int, advance: Callable) -> list[ImageEntry]:
    """Check in threads (decoders release the interpreter lock); chunks keep the queue short for millions of files."""
    results = []
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), 4096):
            for entry in pool.map(check, items[start : start + 4096]):
                results.append(entry)
                advance()
    return results


def _check_one(item: ImageFile, min_size: int) -> ImageEntry:
    try:
        data = read_bytes(item)
    except OSError as error:
        finding = Finding("refused", f"unreadable: {error.strerror or error}")
    else:
        finding = check_image(data, item.path, min_size)
    return ImageEntry(item.path, item.size_bytes, item.mtime_ns, offset=item.offset, **vars(finding))


def _require_usable(root: Path, entries: list[ImageEntry], unreadable: list[tuple[str, str]], others: int) -> None:
    if any(entry.verdict == "ok" for entry in entries):
        return
    refused = Counter(entry.reason.split(":")[0] for entry in entries)
    seen = [f"{count} {kind}" for kind, count in refused.most_common()]
    seen += [f"{others} other files"] if others else []
    seen += [f"unreadable folder {path}: {reason}" for path, reason in unreadable[:3]]
    raise NoImagesError(
        f"no usable image under {root} ({'; '.join(seen) if seen else 'it is empty'}); "
        "give a folder with JPEG, PNG, WebP, BMP, TIFF or PPM photos, or tar shards of them"
    )
