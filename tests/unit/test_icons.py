"""Windows icons: their largest picture, as bitmap or PNG, and nothing larger than is said."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from xcite.data.decoding import decode
from xcite.errors import XciteError


def icon(*sides: int, form: str = "png") -> bytes:
    """An icon whose picture of side n is of grey n, the right half transparent."""
    pictures = []
    for side in sorted(sides, reverse=True):  # Pillow writes none larger than the first
        pixels = np.full((side, side, 4), min(side, 255), np.uint8)
        pixels[:, :, 3] = 255
        pixels[:, side // 2 :, 3] = 0
        pictures.append(Image.fromarray(pixels))
    file = io.BytesIO()
    pictures[0].save(
        file, "ICO", sizes=[(n, n) for n in sides], append_images=pictures[1:], bitmap_format=form
    )
    return file.getvalue()


@pytest.mark.parametrize("form", ["png", "bmp"])
def test_the_largest_picture_over_white(form: str) -> None:
    pixels = decode(icon(16, 48, 32, form=form))
    assert pixels.shape == (48, 48, 3)
    assert (pixels[:, :24] == 48).all()
    assert (pixels[:, 24:] == 255).all()


def test_a_side_of_256_is_written_as_0() -> None:
    assert decode(icon(256, 16)).shape == (256, 256, 3)


@pytest.mark.parametrize("form", ["png", "bmp"])
def test_a_picture_larger_than_the_table_says_is_counted_before_decoding(form: str) -> None:
    data = bytearray(icon(32, form=form))
    offset = struct.unpack_from("<I", data, 18)[0]
    if form == "png":
        struct.pack_into(">II", data, offset + 16, 20_000, 20_000)
        struct.pack_into(">I", data, offset + 29, zlib.crc32(data[offset + 12 : offset + 29]))
        says = "are more than the|decompression bomb"
    else:
        struct.pack_into("<II", data, offset + 4, 20_000, 40_000)
        says = "another size than its table"
    with pytest.raises(XciteError, match=says):
        decode(bytes(data))


def test_damage_is_an_error() -> None:
    whole = icon(32, 16, form="bmp")
    for end in (4, 5, 6, 20, 22, 30, 60, len(whole) // 2):
        with pytest.raises(XciteError):
            decode(whole[:end])
    rng = np.random.default_rng(0)
    for place in rng.integers(4, len(whole), 200):
        hurt = bytearray(whole)
        hurt[place] ^= 1 << int(rng.integers(8))
        try:
            assert decode(bytes(hurt)).ndim == 3
        except XciteError:
            continue
