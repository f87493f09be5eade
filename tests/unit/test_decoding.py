"""Decoding: every kind of picture to the same 8-bit pixels, and one clear error for the rest."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from xcite.data.decoding import Opened, decode
from xcite.errors import XciteError


def smooth(height=24, width=40):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 9, (x + y) * 3], axis=2).clip(0, 255).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RGB = smooth()
GREY = RGB[:, :, 0]


def test_rgb_comes_back_as_it_is():
    pixels = decode(encoded(Image.fromarray(RGB)))
    np.testing.assert_array_equal(pixels, RGB)
    assert pixels.flags.writeable


def test_greyscale_becomes_three_equal_channels_or_one():
    data = encoded(Image.fromarray(GREY))
    np.testing.assert_array_equal(decode(data), np.repeat(GREY[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(decode(data, channels=1), GREY[:, :, None])


def test_colour_becomes_grey_by_luma():
    pixels = decode(encoded(Image.fromarray(RGB)), channels=1)
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    assert pixels.shape == (24, 40, 1)
    assert np.abs(pixels[:, :, 0] - luma).max() <= 1


def test_palette_and_bilevel():
    image = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(decode(encoded(image)), np.asarray(image.convert("RGB")))
    bilevel = Image.fromarray(GREY).convert("1")
    assert set(np.unique(decode(encoded(bilevel)))) == {0, 255}


def test_cmyk_jpeg():
    data = encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)
    # the naive CMYK round trip loses nothing but rounding and JPEG's own error
    assert np.abs(decode(data).astype(int) - RGB).mean() < 6


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.array([[0, 128, 257, 65535], [30000, 65534, 1, 256]], np.uint16)
    pixels = decode(encoded(Image.fromarray(values)), channels=1)[:, :, 0]
    np.testing.assert_array_equal(pixels, np.round(values / 257).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode):
    base = Image.fromarray(np.dstack([np.zeros_like(RGB), np.full(GREY.shape, 255, np.uint8)]))
    base.putpixel((3, 2), (0, 0, 0, 0))
    base.putpixel((5, 2), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", base.size)
        image.putpalette([0, 0, 0, 0, 0, 255])
        image.putpixel((3, 2), 1)
        image.putpixel((5, 2), 1)
        data = encoded(image, transparency=1)
    else:
        data = encoded(base.convert(mode))
    pixels = decode(data)
    assert pixels[2, 3].tolist() == pixels[2, 5].tolist() == [255, 255, 255]
    assert pixels[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    turns = {  # how an upright picture was stored, to be undone by the tag
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a[:, ::-1].transpose(1, 0, 2)[:, :],
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a[::-1].transpose(1, 0, 2),
    }
    upright = smooth(32, 48)
    stored = np.ascontiguousarray(turns[orientation](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}
    data = encoded(Image.fromarray(stored), kind, exif=exif, **lossless.get(kind, {}))
    pixels = decode(data)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < (3 if kind == "JPEG" else 0.01)


def test_damaged_exif_does_not_lose_the_picture():
    data = encoded(Image.fromarray(RGB), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode(data), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_truncated_pictures_are_named(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for share in (0.2, 0.6, 0.9):
        with pytest.raises(XciteError, match=r"cat\.jpg"):
            decode(data[: int(len(data) * share)], origin="cat.jpg")


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\xff\xd8\xff"]
)
def test_what_is_no_picture_is_named(data):
    with pytest.raises(XciteError, match=r"x\.jpg: (not a picture|the picture is damaged)"):
        decode(data, origin="x.jpg")


def png_of_size(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


@pytest.mark.parametrize(("width", "height"), [(12_000, 9_000), (60_000, 60_000), (2**31 - 1, 9)])
def test_bombs_are_refused_before_decoding(width, height):
    with pytest.raises(XciteError, match=r"bomb\.png"):
        decode(png_of_size(width, height), origin="bomb.png", max_pixels=100_000_000)


def test_limit_is_in_pixels_of_the_picture():
    data = encoded(Image.fromarray(RGB))
    assert decode(data, max_pixels=RGB.shape[0] * RGB.shape[1]).shape == RGB.shape
    with pytest.raises(XciteError, match=r"40 x 24 pixels .*max_pixels"):
        decode(data, max_pixels=RGB.shape[0] * RGB.shape[1] - 1)


def test_paths_arrays_and_pillow_pictures(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(Image.fromarray(RGB)))
    for picture in (path, str(path), RGB, Image.fromarray(RGB)):
        np.testing.assert_array_equal(decode(picture), RGB)
    np.testing.assert_array_equal(decode(GREY)[:, :, 1], GREY)
    with pytest.raises(XciteError, match=r"missing\.png: no such file"):
        decode(tmp_path / "missing.png")
    with pytest.raises(XciteError, match="uint8"):
        decode(RGB.astype(np.float32))
    with pytest.raises(XciteError, match="no pixels"):
        decode(np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(XciteError, match="has 3 channels, 2 are wanted"):
        decode(RGB, channels=2)


def test_jpeg_shrinks_while_decoding_only_as_far_as_allowed():
    data = encoded(Image.fromarray(smooth(240, 400)), "JPEG")
    assert decode(data, reduce_to=240).shape == (240, 400, 3)
    assert decode(data, reduce_to=120).shape == (120, 200, 3)
    assert decode(data, reduce_to=61).shape == (120, 200, 3)
    assert decode(data, reduce_to=30).shape == (30, 50, 3)
    assert decode(encoded(Image.fromarray(smooth(240, 400))), reduce_to=30).shape == (240, 400, 3)


def test_a_scaled_crop_shows_the_same_place():
    picture = smooth(240, 400)
    data = encoded(Image.fromarray(picture), "JPEG", quality=98, subsampling=0)
    box = (40, 100, 120, 160)
    opened = Opened(data)
    assert opened.jpeg_scale(120, 60) == 2
    crop = np.asarray(opened.pixels(box=box, scale=2)).astype(int)
    assert crop.shape == (60, 80, 3)
    halved = picture[40:160, 100:260].reshape(60, 2, 80, 2, 3).mean((1, 3))
    assert np.abs(crop - halved).mean() < 3


def test_several_crops_of_one_picture_do_not_depend_on_each_other():
    data = encoded(Image.fromarray(smooth(240, 400)), "JPEG")
    crops = [((40, 100, 120, 160), 2), ((0, 0, 240, 400), 4), ((10, 20, 30, 40), 1), (None, 2)]
    together = Opened(data)
    for box, scale in crops:
        alone = Opened(data).pixels(box=box, scale=scale)
        np.testing.assert_array_equal(together.pixels(box=box, scale=scale), alone)
