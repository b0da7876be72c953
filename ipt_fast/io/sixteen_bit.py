"""Colour of 16 bits a channel, of which Pillow itself reads and writes 8: PNG and TIFF; float TIFF is written, too."""

import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, TiffTags

from ipt_fast.io.metadata import Metadata

_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}


def is_sixteen_bit_colour(image: Image.Image) -> bool:
    """Return whether a file that is opened, and not yet loaded, holds 16-bit colour."""
    return ";16" in str(getattr(image, "tile", "")) and not image.mode.startswith("I")


def is_misread(image: Image.Image) -> bool:
    """Return whether Pillow would take the two bytes of a channel for two pixels: colours in planes, uncompressed."""
    tags = getattr(image, "tag_v2", {})
    planes, compression = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION), tags.get(TiffImagePlugin.COMPRESSION)
    return planes == 2 and compression == 1 and tags.get(TiffImagePlugin.BITSPERSAMPLE, (8,))[0] == 16


def low_bytes(image: Image.Image) -> bool:
    """Let such a file load the lower byte of each channel where Pillow takes the upper: the other byte order's.

    Returns:
        False where its kind cannot be read so; it loads as before then.
    """
    tiles = []
    for tile in image.tile:  # type: ignore[attr-defined]
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if image.mode not in ("RGB", "RGBA") or args[0][:-1] not in ("RGB;16", "RGBA;16"):
            return False
        swapped = (args[0][:-1] + _OTHER_BYTE[args[0][-1]], *args[1:])
        tiles.append(tile._replace(args=swapped if isinstance(tile.args, tuple) else swapped[0]))
    image.tile = tiles  # type: ignore[attr-defined]
    return True


def write_png(path: Path, pixels: np.ndarray, metadata: Metadata) -> None:
    """Write uint16 [H, W, 3 or 4] as a PNG."""
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels, ">u2").view(np.uint8).reshape(height, -1)
    lines = np.empty((height, rows.shape[1] + 1), np.uint8)
    lines[:, 0] = 1  # each byte is stored as its difference from the same byte of the pixel to the left
    lines[:, 1:] = rows
    lines[:, 1 + 2 * channels :] -= rows[:, : -2 * channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0))]
    if metadata.icc_profile:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(metadata.icc_profile)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif.removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b"")]
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in chunks:
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def write_tiff(path: Path, pixels: np.ndarray, metadata: Metadata) -> None:
    """Write uint16 or float32 [H, W, 3 or 4] as a TIFF, deflated in one strip."""
    height, width, channels = pixels.shape
    data = zlib.compress(pixels.astype(pixels.dtype.newbyteorder("<")).tobytes(), 6)
    directory = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
    if metadata.exif:
        exif = Image.Exif()
        exif.load(metadata.exif)
        for tag in exif:
            directory[tag] = exif.get_ifd(tag) if tag in TiffTags.TAGS_V2_GROUPS else exif[tag]
    layout = {
        TiffImagePlugin.IMAGEWIDTH: width,
        TiffImagePlugin.IMAGELENGTH: height,
        TiffImagePlugin.BITSPERSAMPLE: (8 * pixels.itemsize,) * channels,
        TiffImagePlugin.SAMPLEFORMAT: (3 if pixels.dtype.kind == "f" else 1,) * channels,
        TiffImagePlugin.COMPRESSION: 8,  # deflate
        TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: 2,  # RGB
        TiffImagePlugin.SAMPLESPERPIXEL: channels,
        TiffImagePlugin.ROWSPERSTRIP: height,
        TiffImagePlugin.STRIPBYTECOUNTS: len(data),
        TiffImagePlugin.STRIPOFFSETS: 0,  # counted from the end of the directory
        TiffImagePlugin.PLANAR_CONFIGURATION: 1,
    }
    if channels == 4:
        layout[TiffImagePlugin.EXTRASAMPLES] = 2  # alpha, colours not multiplied by it
    for tag, value in layout.items():
        directory[tag] = value
    if metadata.icc_profile:
        directory.tagtype[TiffImagePlugin.ICCPROFILE] = TiffTags.UNDEFINED
        directory[TiffImagePlugin.ICCPROFILE] = metadata.icc_profile
    with open(path, "wb") as file:
        directory.save(file)
        file.write(data)
