"""Photos on disk to batches of clean crops: the index, the plan of what is drawn, and the loaders that decode it."""

from ipt_fast.data.factory import make_loader, make_pair_loader
from ipt_fast.data.index import ImageEntry, ImageIndex, NoImagesError, build_index
from ipt_fast.data.loader import CropLoader
from ipt_fast.data.plan import SR_MARGIN
from ipt_fast.data.source import Batch

__all__ = [
    "SR_MARGIN",
    "Batch",
    "CropLoader",
    "ImageEntry",
    "ImageIndex",
    "NoImagesError",
    "build_index",
    "make_loader",
    "make_pair_loader",
]
