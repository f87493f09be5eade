"""Encoded pictures to upright 8-bit pixels; whatever cannot be decoded is named in one error.

Conventions, the same in training, evaluation, prediction and the server:

- EXIF orientation is applied, so pixels are as a viewer shows them (torchvision's ImageFolder and
  PASSL ignore it; ImageNet's own pictures with such a tag are a handful).
- For one or three channels transparent pictures are laid over white; dropping alpha would show
  whatever lies below it. Palette, CMYK and bilevel are converted; an animation gives its first
  picture, an icon its largest. Two channels are grey and alpha, four are RGB and alpha, or what a
  TIFF has; any other number must be the picture's own (a TIFF or an array).
- 16 bits are scaled to 8; floating point is taken as 0 to 1.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, JpegImagePlugin

from xcite.data.bands import Bands, Raster
from xcite.data.formats import FORMATS, SUFFIXES, WITH_ALPHA, open_encoded, refuse_size
from xcite.data.picture_limits import MAX_PIXELS, refuse_excess, refuse_tags
from xcite.data.pillow_scope import PillowScope
from xcite.data.tiff_channels import TiffChannels, tiff_channels, to_eight_bits
from xcite.errors import XciteError
from xcite.regular_files import read_regular

__all__ = ["FORMATS", "MAX_PIXELS", "SUFFIXES", "Opened", "Picture", "decode"]

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
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
        channels: 3 for RGB, 1 for greyscale; more, or two, as the module says.
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
    if isinstance(image, Bands):
        return image.pixels()
    pixels = _guarded(lambda: np.array(image), origin, max_pixels)
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
        self._layers: _Layers | None = None
        self._bands: Bands | None = None  # of the layers, once they are decoded
        self._white = 65535  # of 16 bits
        self._image = self._guarded(self._open)
        self._opaque = self._image is not None and self._image.format in WITH_ALPHA
        self._scale: int | None = None  # at which the pixels are decoded; None: not yet
        if self._image is not None:
            self._image = self._upright(self._image)
            self.size = self._image.size
        elif self._layers is not None:
            self.size = self._layers.size

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
    ) -> Raster:
        """A crop, or all: mode L or RGB for one or three channels, else bands.

        Args:
            box: top, left, height, width in pixels of ``size``.
            scale: decode a JPEG at 1 / scale (see `jpeg_scale`); the box shrinks with it.

        Raises:
            XciteError: damaged, or a picture of other channels.
        """
        return self._guarded(lambda: self._pixels(channels, box, scale))

    def _guarded(self, action: Callable[[], Result]) -> Result:
        return _guarded(action, self._origin, self._max_pixels)

    def _pixels(self, channels: int, box: tuple[int, int, int, int] | None, scale: int) -> Raster:
        layers = self._layers
        if layers and (self._image is None or channels == layers.samples not in (1, 3)):
            image = self._layered(layers, channels)
        else:
            image = self._decoded(scale)
        if box is not None:
            top, left, height, width = _shrunk(box, scale, image.size) if scale > 1 else box
            if (left, top, width, height) != (0, 0, *image.size):
                image = image.crop((left, top, left + width, top + height))
        return image if isinstance(image, Bands) else self._with_channels(image, channels)

    def _decoded(self, scale: int) -> Image.Image:
        """The whole picture as Pillow reads it."""
        image = self._image
        if self._scale is not None and self._scale != scale:
            image = self._open()
        assert image is not None
        if self._scale != scale:
            if scale > 1:
                image.draft(None, (self.size[0] // scale, self.size[1] // scale))
            image.load()
            self._image, self._scale = image, scale
        return image

    def _layered(self, layers: "_Layers", channels: int) -> Raster:
        """The whole picture with the channels that are stored, and as many must be wanted.

        Grey and colour become each other, as they do elsewhere.
        """
        colours = layers.samples in (1, 3) and channels in (1, 3)
        if layers.samples != channels and not colours:
            raise _other_channels(self._origin, layers.samples, channels)
        if self._bands is None:
            self._bands = layers.decode()
        return Image.merge(_MODES[layers.samples], self._bands.bands) if colours else self._bands

    def _with_channels(self, image: Image.Image, channels: int) -> Raster:
        if channels in (1, 3):
            return _as_mode(image, _MODES[channels], self._origin, self._white)
        grey = image.mode in ("1", "L", "LA")
        alpha = image.has_transparency_data or self._opaque
        if channels not in _MODES or not alpha or (channels == 2 and not grey):
            raise _other_channels(self._origin, len(image.getbands()), channels)
        return Bands(image.convert(_MODES[channels]).split())

    def _open(self) -> Image.Image | None:
        """The picture; None where only its layers can be read."""
        picture, origin, most = self._picture, self._origin, self._max_pixels
        if isinstance(picture, Image.Image):
            refuse_size(picture.size, origin, most)
            return picture
        if isinstance(picture, np.ndarray):
            return self._open_array(picture)
        data = picture if isinstance(picture, bytes) else read_regular(picture)
        refuse_excess(data, origin, most)
        tiff = tiff_channels(data)
        if tiff is not None:
            self._white = 4095 if tiff.bits == 12 else 65535
            if tiff.beyond_pillow or not tiff.alpha:
                self._layers = _Layers.of_tiff(tiff, origin, most)
            if tiff.beyond_pillow:
                refuse_size(tiff.size, origin, most)
                return None
        return open_encoded(data, origin, most)

    def _open_array(self, pixels: np.ndarray) -> Image.Image | None:
        _check_array(pixels, self._origin)
        if pixels.ndim == 3 and pixels.shape[2] == 1:
            pixels = pixels[:, :, 0]
        height, width = pixels.shape[:2]
        refuse_size((width, height), self._origin, self._max_pixels)
        if pixels.ndim == 2 or pixels.shape[2] in (3, 4):
            return Image.fromarray(np.ascontiguousarray(pixels))
        self._layers = _Layers((width, height), pixels.shape[2], lambda: Bands.of(pixels))
        return None

    def _upright(self, image: Image.Image) -> Image.Image:
        if not isinstance(image, JpegImagePlugin.JpegImageFile):
            self._guarded(image.load)  # a PNG may carry its orientation behind its pixels
        if image.mode == "F":
            values = np.asarray(image)
            image = Image.fromarray(self._guarded(lambda: to_eight_bits(values, self._origin)))
        if "exif" not in image.info:  # TIFF turns itself while loading and keeps the tag
            return image
        if isinstance(exif := image.info["exif"], bytes):
            refuse_tags(exif, self._origin)
        try:
            with PillowScope(self._max_pixels):
                tag = image.getexif().get(_ORIENTATION, 1)
            turn = _UPRIGHT.get(tag)
        except Exception:  # damaged EXIF is no reason to lose the picture
            turn = None
        return image if turn is None else self._guarded(lambda: image.transpose(turn))


@dataclass(frozen=True)
class _Layers:
    """The channels of a picture as they are stored, whatever they mean.

    Attributes:
        size: width and height, upright.
        samples: channels.
    """

    size: tuple[int, int]
    samples: int
    decode: Callable[[], Bands]

    @classmethod
    def of_tiff(cls, tiff: TiffChannels, origin: str, max_pixels: int) -> "_Layers":
        turn = _UPRIGHT.get(tiff.orientation)

        def decode() -> Bands:
            bands = Bands.of(tiff.pixels(origin, max_pixels))
            return bands if turn is None else bands.transpose(turn)

        return cls(tiff.size[::-1] if tiff.orientation >= 5 else tiff.size, tiff.samples, decode)


def _other_channels(origin: str, present: int, wanted: int) -> XciteError:
    return XciteError(
        f"{origin}: the picture has {present} channel{'s' * (present != 1)}, {wanted} are wanted; "
        "preprocessing.mean and std have one value for each channel"
    )


def _shrunk(
    box: tuple[int, int, int, int], scale: int, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    top, left, height, width = box
    top, left = min(round(top / scale), size[1] - 1), min(round(left / scale), size[0] - 1)
    height = max(1, min(round(height / scale), size[1] - top))
    width = max(1, min(round(width / scale), size[0] - left))
    return top, left, height, width


def _as_mode(image: Image.Image, mode: str, origin: str, white: int) -> Image.Image:
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        image = _from_16_bits(image, origin, white)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _from_16_bits(image: Image.Image, origin: str, white: int) -> Image.Image:
    values = np.asarray(image).astype(np.int64)  # (H, W)
    if values.min() < 0 or values.max() > white:
        raise XciteError(f"{origin}: grey values beyond 16 bits; save as 8 or 16 bits")
    return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


def _check_array(pixels: np.ndarray, origin: str) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise XciteError(
            f"{origin}: an array must be uint8 (H, W) or (H, W, C), "
            f"not {pixels.dtype} {pixels.shape}"
        )
    if pixels.size == 0:
        raise XciteError(f"{origin}: the picture has no pixels")


def _guarded(action: Callable[[], Result], origin: str, max_pixels: int) -> Result:
    try:
        with PillowScope(max_pixels):
            return action()
    except XciteError:
        raise
    except MemoryError as error:
        raise XciteError(
            f"{origin}: not enough memory to decode it; lower data.max_pixels or data.workers"
        ) from error
    except Image.DecompressionBombError as error:
        raise XciteError(
            f"{origin}: far more than the {max_pixels} pixels that are allowed, refused as a "
            "decompression bomb; raise data.max_pixels if the picture is meant"
        ) from error
    except FileNotFoundError as error:
        raise XciteError(f"{origin}: no such file") from error
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
