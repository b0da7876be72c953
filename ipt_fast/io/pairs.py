"""Pairs of image files by their names: a clean one (GT) and its degraded partner (LQ), in two folders."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

# What sets put around the name that both images of a pair share: rain-001 and norain-001, baby_HR and babyx2.
_CLEAN, _DEGRADED = "norain|clean|sharp|target|gt|hr", "rainy|rain|noisy|blurry|blurred|blur|input|lq|lr"
_WORDS = f"{_CLEAN}|{_DEGRADED}"
_AROUND = re.compile(rf"^(?:{_WORDS})(?:[-_]|(?=\d))|[-_](?:{_WORDS})$")


class PairError(ValueError):
    """Images that are no pairs; the message names files of both sides."""


def match_pairs(
    gt: Sequence[str], lq: Sequence[str], scale: int = 1, *, gt_root: str = "", lq_root: str = ""
) -> list[tuple[str, str]]:
    """Match the images of two folders, in the order of ``lq``. Every image must have exactly one partner.

    Partners are, first, those of equal paths below their roots (kinds of file aside); of the others those of one
    folder whose names are equal but for what sets put around them; at last those of such names in folders of any name.

    Args:
        gt: paths of the clean images.
        lq: paths of the degraded images, or ones ``scale`` times smaller, whose names may end in ``x<scale>``.
        scale: how many times larger the clean images are.
        gt_root: what the paths of ``gt`` begin with.
        lq_root: what the paths of ``lq`` begin with.

    Raises:
        PairError: an image has no partner, or several that could be; never a guess.
    """
    below_gt, below_lq = ({p: _below(p, root) for p in paths} for paths, root in ((gt, gt_root), (lq, lq_root)))
    partner: dict[str, str] = {}  # degraded -> clean

    def match(names: Callable[[str], set[str]], certain: bool) -> None:
        taken = set(partner.values())
        by_name: dict[str, set[str]] = defaultdict(set)
        for path in gt:
            if path not in taken:
                for name in names(below_gt[path]):
                    by_name[name].add(path)
        wanted: dict[str, list[str]] = defaultdict(list)
        for path in lq:
            if path in partner:
                continue
            found = sorted({p for name in names(below_lq[path]) for p in by_name.get(name, ())})
            if len(found) > 1 and certain:
                raise PairError(f"{found[0]} and {found[1]} would both be the clean image of {path}; remove one")
            if len(found) == 1:
                wanted[found[0]].append(path)
        for clean, degraded in wanted.items():
            if len(degraded) > 1 and certain:
                raise PairError(f"{degraded[0]} and {degraded[1]} would both be the partner of {clean}; remove one")
            if len(degraded) == 1:
                partner[degraded[0]] = clean

    match(lambda name: {name}, certain=True)
    match(lambda name: _shared_names(name, scale), certain=True)
    match(lambda name: _shared_names(os.path.basename(name), scale), certain=False)
    matched = set(partner.values())
    for path, others in [(p, lq) for p in gt if p not in matched] + [(p, gt) for p in lq if p not in partner]:
        if not others:
            raise PairError(f"{path} has no partner, there are no images on the other side")
        names = ", ".join(os.path.basename(p) for p in others[:3])
        raise PairError(
            f"{path} has no partner in {os.path.dirname(others[0])}, which holds {names}{', ...' * (len(others) > 3)}; "
            "partners have the same name"
        )
    return [(partner[path], path) for path in lq]


def split_sides(paths: Sequence[str], root: str) -> tuple[list[str], list[str]]:
    """Return the clean and the degraded images of one folder with both, as in ``scene/sharp`` and ``scene/blur``.

    Raises:
        PairError: one of the sides is not there.
    """
    folders = {path: set(os.path.dirname(_below(path, root)).split(os.sep)) for path in paths}
    clean, degraded = ([p for p in paths if folders[p] & set(words.split("|"))] for words in (_CLEAN, _DEGRADED))
    if not clean or not degraded:
        raise PairError(
            f"{root}: is no folder with both sides of pairs, each under a folder with a name such as sharp and blur; "
            "give the two folders"
        )
    return clean, degraded


def _below(path: str, root: str) -> str:
    """``root/scene/001.png`` -> ``scene/001``; small letters."""
    return os.path.splitext(path[len(root) :] if path.startswith(root) else path)[0].lstrip("/\\:").lower()


def _shared_names(below: str, scale: int) -> set[str]:
    """All that may be the shared part of a name: itself, and without the words or the scale around it.

    Of the folders those count that are no such words themselves: ``scene/sharp/1`` and ``scene/blur/1`` share scene/1.
    """
    folder, name = os.path.split(below)
    folder = os.sep.join(part for part in folder.split(os.sep) if part not in _WORDS.split("|"))
    plain = re.sub(rf"[-_]?(?:lrbi|lr|hr)?[-_]?x{scale}m?$", "", name) if scale > 1 else name
    return {os.path.join(folder, n) for n in (name, _AROUND.sub("", name), _AROUND.sub("", plain), plain) if n}
