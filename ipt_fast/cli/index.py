"""``ipt-fast index``: check every image of the data folders once and write the index that training uses."""

import argparse
from collections import Counter

from ipt_fast.cli import CommandError
from ipt_fast.data.index import NoImagesError, build_index

EXAMPLE = "example: ipt-fast index photos/train more-photos"
# Files named for each kind of refusal, unless --refused asks for all.
_NAMED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast index``."""
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
    formats = ", ".join(f"{count} {name}" for name, count in Counter(e.format for e in index.usable).most_common())
    print(f"usable   {len(index.usable):8} photos ({formats})")
    print(f"refused  {len(index.refused):8}")
    for kind, entries in index.refusals().items():
        print(f"         {len(entries):8} {kind}")
        shown = entries if args.refused else entries[:_NAMED]
        for entry in shown:
            details = entry.reason.partition(": ")[2]
            print(f"{'':20}{entry.path}" + (f" ({details})" if details else ""))
        if len(entries) > len(shown):
            print(f"{'':20}and {len(entries) - len(shown)} more; --refused names them all")
    if notes := index.notes():
        print("served all the same")
        for note, count in notes.items():
            print(f"         {count:8} {note}")
    for path, reason in index.unreadable:
        print(f"not readable: {path} ({reason})")
    if index.others:
        print(f"others   {index.others:8} files are no images by their names")
    print(f"checked  {index.checked:8} new or changed files in {index.seconds:.1f} s")
    for place in index.files:
        print(f"index at {place}")
    return 0
