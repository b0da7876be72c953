"""Which image ``ipt-fast restore`` writes where: everything that can be said before the first one is read."""

import glob
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ipt_fast.cli import CommandError, check_output
from ipt_fast.io.images import SUFFIXES
from ipt_fast.io.scan import find_images
from ipt_fast.io.video import WRITABLE_VIDEOS, is_video
from ipt_fast.io.write import WRITABLE, has_quality


@dataclass(frozen=True)
class Job:
    """An image, the file that it becomes, and the picture that compares the two, where one is asked for."""

    source: Path
    target: Path
    compare: Path | None

    def written(self) -> list[Path]:
        """Return all files that the job writes."""
        return [self.target] if self.compare is None else [self.target, self.compare]


@dataclass
class Plan:
    """What is to be done; ``notes`` say what is not, ``unreadable`` which folders could not be looked into and why."""

    jobs: list[Job] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Naming:
    """How outputs are named: ``NAME<suffix><ext>``; the ext "same" is the input's, where that can be written."""

    suffix: str = ""
    ext: str = ".png"
    compare: bool = False

    def target(self, out: Path, place: Path, tag: str = "") -> Path:
        """Return the output of an image whose place below its folder is ``place``."""
        kind = place.suffix.lower()
        if is_video(place):
            return out / place.with_name(f"{place.stem}{tag}{self.suffix}{kind if kind in WRITABLE_VIDEOS else '.mp4'}")
        ext = self.ext if self.ext != "same" else place.suffix if kind in WRITABLE else ".png"
        return out / place.with_name(f"{place.stem}{tag}{self.suffix}{ext}")


def make_plan(
    inputs: list[str],
    target: str,
    naming: Naming,
    *,
    force: bool = False,
    skip_existing: bool = False,
    quality: int | None = None,
) -> Plan:
    """Plan the outputs of files, folders and globs.

    Images of a folder keep their place below it. Neither OUT itself, where it lies in the folder, nor the outputs of
    an earlier run beside their inputs are taken as inputs. A single file may be given the name of its output. Of images
    that would become one file, such as a.jpg and a.png, each keeps its kind in its name.

    Raises:
        CommandError: nothing found, a name that is no image, an output that is there, that is an input, that two
            images share, or that cannot have what was asked for.
    """
    plan, out = Plan(), Path(target)
    found = _find(inputs, out, naming, plan)
    if _names_a_file(target):
        if len(found) > 1:
            raise CommandError(f"{len(found)} images cannot all go to {out}; give -o a folder, with a / at its end")
        if naming.suffix or naming.ext != ".png":
            raise CommandError(f"-o {out} names the output; --suffix and --ext are for a folder")
        targets = [(source, out) for source in found]
    else:
        targets = _targets(found, out, naming)
    for source, written in targets:
        compare = written.with_name(f"{written.stem}.compare.png") if naming.compare else None
        plan.jobs.append(Job(source, written, compare))
        _check_kind(plan.jobs[-1])
    _check_distinct(plan.jobs)
    if quality is not None and plan.jobs and not any(has_quality(job.target) for job in plan.jobs):
        raise CommandError(
            f"--quality is for .jpg, .webp and .avif, and {plan.jobs[0].target} is none; give --ext .jpg"
        )
    if skip_existing:
        before = len(plan.jobs)
        plan.jobs = [job for job in plan.jobs if not job.target.exists()]
        plan.notes.append(f"skipped: {before - len(plan.jobs)} images whose output is there")
    for job in plan.jobs:
        for path in job.written():
            check_output(path, force, job.source)
    return plan


def _find(inputs: list[str], out: Path, naming: Naming, plan: Plan) -> dict[Path, Path]:
    """Return each image with its place below OUT."""
    found: dict[Path, Path] = {}
    kinds: Counter[str] = Counter()
    earlier = 0
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            scan = find_images(path, shards=False)
            plan.unreadable += scan.unreadable
            kinds += scan.kinds
            inside = {image: image.relative_to(path) for image in (Path(image.path) for image in scan.images)}
            if out.is_dir() and out.samefile(path):
                if inside and not naming.suffix:
                    raise CommandError(
                        f"-o {out} is the input folder itself; give another, or a --suffix for the outputs"
                    )
                inside, outputs = _without_outputs(inside, out, naming)
                earlier += outputs
            else:
                where = out.resolve()
                inside = {p: place for p, place in inside.items() if where not in (p.parent.resolve() / p.name).parents}
            if not inside and not scan.unreadable:
                raise CommandError(f"{path}: no images in this folder ({', '.join(SUFFIXES)})")
            for image, place in inside.items():
                found.setdefault(image, place)
        elif os.path.lexists(path):
            found.setdefault(path, Path(path.name))
        elif matches := sorted(Path(match) for match in glob.glob(text, recursive=True)):
            images = [p for p in matches if (p.suffix.lower() in SUFFIXES or is_video(p)) and not p.is_dir()]
            kinds.update(p.suffix.lower() for p in matches if p not in images and not p.is_dir())
            if not images:
                raise CommandError(f"{text}: none of the {len(matches)} files found is an image")
            for image in images:
                found.setdefault(image, Path(image.name))
        else:
            raise CommandError(f"{text}: no such file or folder")
    if kinds:
        listed = ", ".join(f"{count} {kind or 'without suffix'}" for kind, count in kinds.most_common())
        plan.notes.append(f"left out, no images by their names: {listed}")
    if earlier:
        plan.notes.append(f"left out: {earlier} outputs of an earlier run")
    return found


def _without_outputs(inside: dict[Path, Path], out: Path, naming: Naming) -> tuple[dict[Path, Path], int]:
    """Leave out images that are outputs of others, or compare them."""
    targets = [target for _, target in _targets(inside, out, naming)]
    outputs = {*targets, *(target.with_name(f"{target.stem}.compare.png") for target in targets)}
    kept = {image: place for image, place in inside.items() if out / place not in outputs}
    return kept, len(inside) - len(kept)


def _targets(found: dict[Path, Path], out: Path, naming: Naming) -> list[tuple[Path, Path]]:
    alike = Counter(naming.target(out, place) for place in found.values())
    return [
        (source, naming.target(out, place, f"_{place.suffix[1:]}" if alike[naming.target(out, place)] > 1 else ""))
        for source, place in found.items()
    ]


def _check_kind(job: Job) -> None:
    """Refuse a photo that would become a video, and the other way round."""
    if is_video(job.source) and not is_video(job.target):
        raise CommandError(f"{job.source} is a video, {job.target} is none; give it one of {' '.join(WRITABLE_VIDEOS)}")
    if is_video(job.target) and not is_video(job.source):
        raise CommandError(f"{job.source} is a photo and cannot become {job.target}; take .png")
    if is_video(job.source) and job.compare is not None:
        raise CommandError(f"{job.source} is a video, and --compare is for photos")


def _check_distinct(jobs: list[Job]) -> None:
    """Refuse a file that two jobs would write, and one that another reads."""
    inputs = {os.path.realpath(job.source): job.source for job in jobs}  # unlike resolve(), at ease with loops
    writers: dict[Path, Path] = {}
    for job in jobs:
        for path in job.written():
            if other := writers.get(path):
                raise CommandError(
                    f"{other} and {job.source} would both become {path}; give the folder above both, or restore them "
                    "one by one"
                )
            writers[path] = job.source
            read = inputs.get(os.path.realpath(path))
            if read is not None and read != job.source:
                raise CommandError(f"{path}, an output of {job.source}, is an input as well; choose another -o")


def _names_a_file(target: str) -> bool:
    out = Path(target)
    if target.endswith(os.sep) or out.is_dir() or not out.suffix:
        if out.is_file():
            raise CommandError(f"-o {out} is a file; give a folder")
        return False
    if out.suffix.lower() not in (*WRITABLE, *WRITABLE_VIDEOS):
        why = {".gif": "a GIF holds 256 colours", ".pgm": "a PGM holds gray alone"}.get(
            out.suffix.lower(), "not a kind of image that can be written"
        )
        raise CommandError(f"-o {out}: {why}; take .png, or for a folder end it with a /")
    return True
