"""Which encoded pictures are read, how each is recognised, and who opens it."""

import importlib
import importlib.util
import io
import struct
from collections.abc import Iterator
from typing import Any

from PIL import Image, TgaImagePlugin, UnidentifiedImageError

from xcite.data.icons import is_icon, largest_picture
from xcite.data.jxl_header import is_jxl, jxl_size
from xcite.data.picture_limits import MAX_PIXELS, refuse_excess
from xcite.data.pillow_scope import PillowScope
from xcite.data.tiff_channels import tiff_channels
from xcite.errors import XciteError

# Only raster formats that Pillow reads itself: EPS, for one, would start another program. MPO is
# opened by the JPEG reader.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
WITH_ALPHA = frozenset({"PNG", "WEBP", "GIF", "JPEG2000", "AVIF", "TGA", "HEIF", "JXL"})
"""Formats that know transparency: a picture without it is opaque."""

PLUGINS = {".heic": "pillow_heif", ".heif": "pillow_heif", ".hif": "pillow_heif"} | {
    ".jxl": "pillow_jxl"
}
"""File names that are pictures where a library of ``xcite[formats]`` is installed."""

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".tga"),
    *(suffix for suffix, library in PLUGINS.items() if importlib.util.find_spec(library)),
)
"""File names that listings take for pictures, in lower case."""

_HEAVY = 3  # JPEG 2000 and JPEG XL take many times the memory and time of others, pixel by pixel
_PNG = b"\x89PNG\r\n\x1a\n"
_XMP = b"XML:com.adobe.xmp\0\0"
_LARGEST_XMP = 1 << 20
_TGA_FOOTER = b"TRUEVISION-XFILE.\0"


def is_picture(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return name.lower().endswith(SUFFIXES)


def open_encoded(data: bytes, origin: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture without decoding it where the format allows; only JPEG XL's does not.

    The caller has looked at it with `refuse_excess`.

    Raises:
        XciteError: of no format that is read, more pixels than ``max_pixels``, or a library is
            missing that it needs.
    """
    formats: tuple[str, ...] = FORMATS
    if is_icon(data):
        data, formats = largest_picture(data), ("PNG", "ICO")
        refuse_excess(data, origin, max_pixels)
    if is_jxl(data):
        refuse_size(jxl_size(data), origin, max_pixels, _HEAVY)
        image = _library("pillow_jxl", "JPEG XL", origin).JXLImageFile(io.BytesIO(data))
        if not image.jpeg:
            image.info.pop("exif", None)  # the decoder has turned the picture already
    elif _is_heif(data):
        image = _library("pillow_heif", "HEIC", origin).HeifImageFile(io.BytesIO(data))
    elif _is_tga(data):
        image = TgaImagePlugin.TgaImageFile(io.BytesIO(data))
    else:
        try:
            image = Image.open(io.BytesIO(_without_remarks(data)), formats=formats)
        except UnidentifiedImageError as error:
            raise XciteError(f"{origin}: {_what_else(data)}") from error
    refuse_size(image.size, origin, max_pixels, _HEAVY if image.format == "JPEG2000" else 1)
    if image.format == "TGA" and image.mode == "RGBA" and not data[17] & 0x0F:
        return image.convert("RGB")  # 32 bits without transparency
    return image


def _what_else(data: bytes) -> str:
    """What a file is that is no picture, where its beginning says so."""
    start = data[:512].lstrip().lower()
    if not data:
        return "not a picture but an empty file"
    if start.startswith((b"<!doctype html", b"<html")):
        return "not a picture but a web page: has the download been refused?"
    if start.startswith(b"version https://git-lfs"):
        return "not a picture but a pointer of Git LFS; fetch the pictures with `git lfs pull`"
    if b"<svg" in start:
        return "not a picture of pixels but an SVG drawing; save it as PNG"
    return "not a picture, or of a format that is not read"


def dimensions(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int, str | None]:
    """Width, height and format of an encoded picture as it is stored, by its head alone.

    Raises:
        Exception: nearly any, for what is no picture or a damaged one.
    """
    refuse_excess(data, "picture", max_pixels)
    if is_jxl(data):
        return *jxl_size(data), "JXL"
    tiff = tiff_channels(data)
    if tiff is not None:
        return *tiff.size, "TIFF"
    with PillowScope(max_pixels):
        image = open_encoded(data, "picture", max_pixels)
    return *image.size, image.format


def refuse_size(size: tuple[int, int], origin: str, max_pixels: int, weight: int = 1) -> None:
    """Raise XciteError for a picture of no pixels or more than are allowed.

    Args:
        weight: how many times a pixel of this format counts.
    """
    width, height = size
    pixels = weight * width * height
    if pixels > max_pixels:
        counted = f", which count {weight} times," if weight > 1 else ""
        raise XciteError(
            f"{origin}: {width} x {height} pixels{counted} are more than the {max_pixels} that are "
            "allowed; raise data.max_pixels if the picture is meant",
            remedy=f"--set data.max_pixels={pixels}",
        )
    if not pixels:
        raise XciteError(f"{origin}: the picture has no pixels")


def _library(name: str, kind: str, origin: str) -> Any:
    try:
        library = importlib.import_module(name)
    except ImportError as error:
        raise XciteError(
            f"{origin}: {kind} pictures need {name.replace('_', '-')}: pip install 'xcite[formats]'"
        ) from error
    return library.JpegXLImagePlugin if name == "pillow_jxl" else library


def _is_heif(data: bytes) -> bool:
    """Whether a container holds HEVC pictures; one of AVIF is Pillow's."""
    if data[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(data[:4], "big"), 1024)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, length, 4))}
    if brands & {b"avif", b"avis"}:
        return False
    return bool(brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def _is_tga(data: bytes) -> bool:
    """Whether the head is one that a program writes: the format has no mark at its beginning."""
    if len(data) <= 18:
        return False
    _, palette, kind, first, entries, depth_of_entry, *_ = struct.unpack_from("<BBBHHB", data)
    width, height, depth, flags = struct.unpack_from("<HHBB", data, 12)
    if not (width and height) or flags & 0xC0:
        return False
    if kind in (1, 9):
        return palette == 1 and depth == 8 and depth_of_entry in (16, 24, 32) and entries <= 256
    plain = palette == 0 and (first, entries, depth_of_entry) == (0, 0, 0)
    depths = {2: (16, 24, 32), 10: (16, 24, 32), 3: (8, 16), 11: (8, 16)}
    told = data.endswith(_TGA_FOOTER) or plain
    return told and depth in depths.get(kind, ())


def _without_remarks(data: bytes) -> bytes:
    """A PNG without texts and colour profile: unused here, and limited or inflated by Pillow."""
    if not data.startswith(_PNG):
        return data
    cuts = list(_remarks(data))
    if not cuts:
        return data
    kept, position = [], 0
    for start, stop in cuts:
        kept.append(data[position:start])
        position = stop
    return b"".join([*kept, data[position:]])


def _remarks(data: bytes) -> Iterator[tuple[int, int]]:
    """Where chunks of text and profile lie; XMP of usual length may hold the orientation."""
    position = len(_PNG)
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data) or kind == b"IEND":
            return  # the decoder's to judge
        orientation = length <= _LARGEST_XMP and data.startswith(_XMP, position + 8)
        if kind in (b"tEXt", b"zTXt", b"iCCP") or (kind == b"iTXt" and not orientation):
            yield position, end
        position = end
