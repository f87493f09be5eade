"""Encoded pictures to upright 8-bit pixels; whatever cannot be decoded is named in one error.

Conventions, the same in training, evaluation, prediction and the server:

- EXIF orientation is applied, so pixels are as a viewer shows them (torchvision's ImageFolder and
  PASSL ignore it; ImageNet's own pictures with such a tag are a handful).
- Transparent pictures are laid over white; dropping alpha would show whatever lies below it.
- 16-bit greyscale is scaled to 8 bits; palette, CMYK and bilevel are converted; an animation
  gives its first picture, an icon its largest.
"""

import errno
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, JpegImagePlugin

from xcite.data.icons import is_icon, largest_picture
from xcite.data.picture_limits import refuse_excess, refuse_tags
from xcite.errors import XciteError
from xcite.regular_files import read_regular

MAX_PIXELS = 178_956_970
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)
"""File names that listings take for pictures, in lower case."""

# Only raster formats that Pillow reads itself: EPS, for one, would start another program. MPO is
# opened by the JPEG reader.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
_MODES = {1: "L", 3: "RGB"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112

# What matters becomes an error below; remarks on bombs and odd EXIF data would only fill the log.
warnings.filterwarnings("ignore", module=r"PIL\.")

Picture = bytes | np.ndarray | str | os.PathLike[str] | Image.Image
Result = TypeVar("Result")


def decode(
    picture: Picture,
    *,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    origin: str = "",
    reduce_to: int | None = None,
) -> np.ndarray:
    """Decode one picture to uint8 (H, W, channels), 0..255.

    Args:
        picture: encoded bytes, a path, a uint8 array (H, W) or (H, W, C), or a Pillow picture.
        channels: 3 for RGB, 1 for greyscale.
        max_pixels: a picture with more is refused before its pixels are decoded.
        origin: what the picture is called in errors; a path names itself.
        reduce_to: JPEG may be decoded at 1/2, 1/4 or 1/8 while the shorter side keeps at least
            this many pixels. Changes pixels: for training only.

    Raises:
        XciteError: unreadable, not a picture, damaged, or too large; the message names it.
    """
    origin = origin or _name(picture)
    opened = Opened(picture, max_pixels=max_pixels, origin=origin)
    scale = opened.jpeg_scale(min(opened.size), reduce_to) if reduce_to else 1
    image = opened.pixels(channels=channels, scale=scale)
    pixels = _guarded(lambda: np.array(image), origin)
    return pixels.reshape(image.height, image.width, channels)


class Opened:
    """A checked picture, upright, which may not be decoded yet.

    Several crops of it cost one decoding.

    Attributes:
        size: width and height in pixels.
    """

    def __init__(self, picture: Picture, *, max_pixels: int = MAX_PIXELS, origin: str = "") -> None:
        """See `decode` for arguments and errors."""
        self._picture = picture
        self._origin = origin or _name(picture)
        self._max_pixels = max_pixels
        self._image = self._open()
        self._scale: int | None = None  # at which the pixels are decoded; None: not yet
        self.size = self._image.size

    def jpeg_scale(self, side: int, target: int) -> int:
        """The largest of 8, 4, 2, 1 by which ``side`` pixels may shrink and keep ``target``.

        1 for anything but an encoded JPEG that is stored upright.
        """
        if self._picture is self._image or not isinstance(
            self._image, JpegImagePlugin.JpegImageFile
        ):
            return 1
        return next(scale for scale in (8, 4, 2, 1) if side // scale >= target or scale == 1)

    def pixels(
        self, *, channels: int = 3, box: tuple[int, int, int, int] | None = None, scale: int = 1
    ) -> Image.Image:
        """A crop, or all, as mode L or RGB.

        Args:
            box: top, left, height, width in pixels of ``size``.
            scale: decode a JPEG at 1 / scale (see `jpeg_scale`); the box shrinks with it.
        """
        if channels not in _MODES:
            raise XciteError(f"pictures have 1 or 3 channels, not {channels}; see preprocessing")
        return _guarded(lambda: self._pixels(_MODES[channels], box, scale), self._origin)

    def _pixels(self, mode: str, box: tuple[int, int, int, int] | None, scale: int) -> Image.Image:
        if self._scale != scale:
            if self._scale is not None:
                self._image = self._open()
            if scale > 1:
                self._image.draft(None, (self.size[0] // scale, self.size[1] // scale))
            self._image.load()
            self._scale = scale
        image = self._image
        if box is not None:
            top, left, height, width = _shrunk(box, scale, image.size) if scale > 1 else box
            if (left, top, width, height) != (0, 0, *image.size):
                image = image.crop((left, top, left + width, top + height))
        return _as_mode(image, mode, self._origin)

    def _open(self) -> Image.Image:
        picture, origin = self._picture, self._origin
        if isinstance(picture, np.ndarray):
            image = _from_array(picture, origin)
        elif isinstance(picture, Image.Image):
            image = picture
        else:
            image = _guarded(lambda: _opened(picture, origin), origin)
        width, height = image.size
        if width * height > self._max_pixels:
            raise XciteError(
                f"{origin}: {width} x {height} pixels are more than the {self._max_pixels} that "
                "are allowed; raise data.max_pixels if the picture is meant"
            )
        if width == 0 or height == 0:
            raise XciteError(f"{origin}: the picture has no pixels")
        return _upright(image, origin)


def _shrunk(
    box: tuple[int, int, int, int], scale: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    top, left, height, width = box
    top, left = min(round(top / scale), size[1] - 1), min(round(left / scale), size[0] - 1)
    height = max(1, min(round(height / scale), size[1] - top))
    width = max(1, min(round(width / scale), size[0] - left))
    return top, left, height, width


def _as_mode(image: Image.Image, mode: str, origin: str) -> Image.Image:
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        image = _from_16_bits(image, origin)
    elif image.mode == "F":
        raise XciteError(f"{origin}: floating-point pictures have no range of grey; save as 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _from_16_bits(image: Image.Image, origin: str) -> Image.Image:
    values = np.asarray(image).astype(np.int64)  # (H, W)
    if values.min() < 0 or values.max() > 65535:
        raise XciteError(f"{origin}: grey values beyond 16 bits; save as 8 or 16 bits")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _from_array(pixels: np.ndarray, origin: str) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise XciteError(
            f"{origin}: an array must be uint8 (H, W) or (H, W, C), "
            f"not {pixels.dtype} {pixels.shape}"
        )
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        raise XciteError(f"{origin}: {pixels.shape[2]} channels; 1, 3 or 4 are understood")
    if pixels.size == 0:
        raise XciteError(f"{origin}: the picture has no pixels")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _upright(image: Image.Image, origin: str) -> Image.Image:
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        _guarded(image.load, origin)  # a PNG may carry its orientation behind its pixels
    if isinstance(exif := image.info.get("exif"), bytes):
        refuse_tags(exif, origin)
    try:
        # TIFF turns itself while loading and still keeps the tag in `getexif`
        tag = image.getexif().get(_ORIENTATION, 1) if "exif" in image.info else 1
        turn = _UPRIGHT.get(tag)
    except Exception:  # damaged EXIF is no reason to lose the picture
        turn = None
    return image if turn is None else _guarded(lambda: image.transpose(turn), origin)


def _opened(picture: bytes | str | os.PathLike[str], origin: str) -> Image.Image:
    data = picture if isinstance(picture, bytes) else read_regular(picture)
    formats: tuple[str, ...] = FORMATS
    if is_icon(data):
        data, formats = largest_picture(data), ("PNG", "ICO")
    refuse_excess(data, origin)
    return Image.open(io.BytesIO(data), formats=formats)


def _guarded(action: Callable[[], Result], origin: str) -> Result:
    try:
        return action()
    except XciteError:
        raise
    except MemoryError as error:
        raise XciteError(
            f"{origin}: not enough memory to decode it; lower data.max_pixels or data.workers"
        ) from error
    except Image.DecompressionBombError as error:
        raise XciteError(f"{origin}: too large, refused as a decompression bomb") from error
    except FileNotFoundError as error:
        raise XciteError(f"{origin}: no such file") from error
    except Image.UnidentifiedImageError as error:
        raise XciteError(f"{origin}: not a picture, or of a format that is not read") from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # no fault of this picture
            raise
        raise _damaged(error, origin) from error
    except Exception as error:  # decoders raise nearly anything on damaged data
        raise _damaged(error, origin) from error


def _damaged(error: Exception, origin: str) -> XciteError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return XciteError(f"{origin}: the picture is damaged ({reason[:120]})")


def _name(picture: Picture) -> str:
    return str(picture) if isinstance(picture, str | Path) else "picture"
