"""Where test sets and training photos come from, and whether a folder holds what it should."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ipt_fast.io.scan import image_files


@dataclass(frozen=True)
class DataSet:
    """One set as its authors publish it.

    Attributes:
        name, use: what it is called, and what it serves for here.
        images: of its clean folder; of all folders below it where the set has classes or scenes.
        source: the page to get it from; its terms are stated there.
        folders: names of the clean folder inside of the set, in any layout that is around; the set itself without them.
        sizes: (width, height) of its images, either way round; empty where they differ.
    """

    name: str
    use: str
    images: int
    source: str
    folders: tuple[str, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()


_BENCHMARK = "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"
_HR = ("HR", "GTmod12", "GT", "original")
_SET5 = ((512, 512), (288, 288), (256, 256), (280, 280), (228, 344))
_BSD = ((481, 321),)
DATASETS = {
    data.name.lower(): data
    for data in (
        DataSet("ImageNet", "pre-training", 1_281_167, "https://www.image-net.org/download.php", ("train",)),
        DataSet("DIV2K", "fine-tuning, sr", 800, "https://data.vision.ee.ethz.ch/cvl/DIV2K/", ("DIV2K_train_HR",)),
        DataSet("Set5", "sr", 5, _BENCHMARK, _HR, _SET5),
        DataSet("Set14", "sr", 14, _BENCHMARK, _HR),
        DataSet("B100", "sr", 100, _BENCHMARK, _HR),
        DataSet("Urban100", "sr, denoise", 100, _BENCHMARK, _HR),
        DataSet(
            "CBSD68", "denoise", 68, "https://github.com/clausmichele/CBSD68-dataset",
            ("original_png", "original"), _BSD,
        ),
        DataSet("Kodak24", "denoise", 24, "https://r0k.us/graphics/kodak/", (), ((768, 512),)),
        DataSet(
            "Rain100L", "derain", 100, "https://www.icst.pku.edu.cn/struct/Projects/joint_rain_removal.html",
            ("norain",), _BSD,
        ),
        DataSet(
            "GoPro", "deblur, fine-tuning", 2103, "https://seungjunnah.github.io/Datasets/gopro",
            ("train/sharp", "sharp"), ((1280, 720),),
        ),
        DataSet(
            "REDS", "deblur, fine-tuning", 24_000, "https://seungjunnah.github.io/Datasets/reds",
            ("train/train_sharp", "train_sharp"), ((1280, 720),),
        ),
    )
}  # fmt: skip


def check_dataset(data: DataSet, folder: Path) -> list[str]:
    """Compare a folder with the set: number and sizes of its clean images.

    Sizes are read off the headers, up to 200 images spread over the set.

    Returns:
        What is wrong, a sentence each; empty where all is as published.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; {data.name} comes from {data.source}")
    inside = [folder / name for name in data.folders if (folder / name).is_dir()]
    clean = inside[0] if inside else folder
    files = image_files(clean) or image_files(clean, recursive=True)
    said = []
    if len(files) != data.images:
        kind = "missing" if len(files) < data.images else "too many"
        said.append(
            f"{clean}: {len(files):,} images, {data.name} has {data.images:,}: {abs(data.images - len(files)):,} {kind}"
        )
    if data.folders and not inside and not files:
        said.append(f"{folder}: none of the folders {', '.join(data.folders)} is there")
    known = {size for pair in data.sizes for size in (pair, pair[::-1])}
    wrong = Counter[tuple[int, int]]()
    for path in files[:: max(1, len(files) // 200)] if known else ():
        with Image.open(path) as image:
            if image.size not in known:
                wrong[image.size] += 1
    for (width, height), count in wrong.most_common(3):
        needed = " or ".join(f"{w}x{h}" for w, h in data.sizes)
        said.append(f"{clean}: {count} of the images looked at are {width}x{height}, {data.name} has {needed}")
    return said
