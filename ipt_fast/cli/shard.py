"""``ipt-fast shard``: pack folders of photos into tar shards, with an index and checksums."""

import argparse
import time

from ipt_fast.cli import user_errors
from ipt_fast.data.index import NoImagesError, build_index
from ipt_fast.data.shards import CHECKSUMS, write_shards

EXAMPLE = "example: ipt-fast shard photos/train shards/train"
# Files named for each kind of trouble.
_NAMED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``ipt-fast shard``."""
    parser.add_argument("data", nargs="+", metavar="DIR", help="folder of photos, nested or flat")
    parser.add_argument("out", metavar="OUT", help="new folder for the shards; training takes it as --data")
    parser.add_argument("--shard-mb", type=float, default=256, help="size of a shard in MB (default: %(default)s)")
    parser.add_argument("--min-size", type=int, default=48, help="leave out images with a side under this many pixels")
    parser.add_argument("--workers", type=int, help="threads that check the photos (default: one a core)")


def run(args: argparse.Namespace) -> int:
    """Check the photos and pack the usable ones."""
    started = time.monotonic()
    with user_errors(OSError, NoImagesError, ValueError):
        index = build_index(args.data, min_size=args.min_size, workers=args.workers)
        done = write_shards(index, args.out, roots=args.data, shard_bytes=int(args.shard_mb * 1e6))
    seconds = time.monotonic() - started
    print(f"packed   {done.photos:8} photos, {done.bytes / 1e6:.1f} MB, in {seconds:.1f} s")
    print(f"shards   {len(done.files):8} in {done.files[0].parent}")
    for kind, entries in index.refusals().items():
        print(f"left out {len(entries):8} {kind}")
        for entry in entries[:_NAMED]:
            print(f"{'':20}{entry.path}")
    if done.skipped:
        print(f"left out {len(done.skipped):8} became unreadable while packing")
        for path, reason in done.skipped[:_NAMED]:
            print(f"{'':20}{path} ({reason})")
    print(f"check    sha256sum -c {CHECKSUMS}, in that folder")
    print(f"train    python train.py --data {args.out}")
    return 0
