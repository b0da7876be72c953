"""``ipt-fast index``: check every image of the data folders once and write the index that training uses."""

import argparse
from collections import Counter

from ipt_fast.cli import CommandError
from ipt_fast.data.index import ImageIndex, NoImagesError, build_index

EXAMPLE = "example: ipt-fast index photos/train more-photos"
# Files named for each kind of refusal, unless --refused asks for all.
_NAMED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ipt-fast index``."""
    parser.add_argument("data", nargs="+", metavar="DIR", help="folder of photos, nested or flat, or a tar shard")
    parser.add_argument("--index-file", metavar="FILE", help="one index for all folders (default: one in each folder)")
    parser.add_argument("--min-size", type=int, default=48, help="refuse images with a side under this many pixels")
    parser.add_argument("--workers", type=int, help="threads (default: one a core)")
    parser.add_argument("--refused", action="store_true", help="name every refused file")


def run(args: argparse.Namespace) -> int:
    """Check the photos, write the index, print what was refused and why."""
    try:
        index = build_index(args.data, index_file=args.index_file, min_size=args.min_size, workers=args.workers)
    except (FileNotFoundError, NoImagesError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"the index cannot be written: {error}") from error
    print("\n".join(summary(index, None if args.refused else _NAMED)))
    return 0


def summary(index: ImageIndex, named: int | None = _NAMED) -> list[str]:
    """Return what the index holds, what was refused and why, as lines; ``named`` files a kind, None for all."""
    formats = ", ".join(f"{count} {name}" for name, count in Counter(e.format for e in index.usable).most_common())
    lines = [
        f"usable   {len(index.usable):8} photos ({formats})",
        f"refused  {len(index.refused):8}",
    ]
    for kind, entries in index.refusals().items():
        lines.append(f"         {len(entries):8} {kind}")
        for entry in entries[:named]:
            details = entry.reason.partition(": ")[2]
            lines.append(f"{'':20}{entry.path}" + (f" ({details})" if details else ""))
        if named is not None and len(entries) > named:
            lines.append(f"{'':20}and {len(entries) - named} more; --refused names them all")
    notes = index.notes()
    if notes:
        lines.append("served all the same")
        lines += [f"         {count:8} {note}" for note, count in notes.items()]
    for path, reason in index.unreadable:
        lines.append(f"not readable: {path} ({reason})")
    if index.others:
        lines.append(f"others   {index.others:8} files are no images by their names")
    lines.append(f"checked  {index.checked:8} new or changed files in {index.seconds:.1f} s")
    lines += [f"index at {place}" for place in index.files]
    return lines
