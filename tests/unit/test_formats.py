"""Formats beyond the usual: recognised, read where a library is there, bounded."""

import importlib.util
import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from xcite.data import formats
from xcite.data.decoding import decode
from xcite.data.jpeg2000_packets import jpeg2000_packets
from xcite.data.jxl_header import jxl_size
from xcite.data.pillow_scope import PillowScope
from xcite.errors import XciteError

Y, X = np.mgrid[:24, :40]
RGB = np.stack([X * 6, Y * 9, (X + Y) * 3], axis=2).clip(0, 255).astype(np.uint8)


def encoded(kind, image=None, **options):
    file = io.BytesIO()
    (image or Image.fromarray(RGB)).save(file, kind, **options)
    return file.getvalue()


def chunk(kind, body):
    crc = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + crc


# A picture of 24 x 40 pixels of one grey, written by libjxl; its head alone is looked at here.
JXL = bytes.fromhex("ff0a") + (1 | 2 << 1 | 0 << 6 | 4 << 9).to_bytes(2, "little")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "x: not a picture but an empty file"),
        (b"\n<!DOCTYPE html><html>404", "x: not a picture but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "`git lfs pull`"),
        (b"<?xml version='1.0'?><svg/>", "an SVG drawing"),
        (b"something else", "not a picture, or of a format"),
    ],
)
def test_what_is_no_picture_is_named(data, told):
    with pytest.raises(XciteError, match=told):
        decode(data, origin="x")


@pytest.mark.parametrize("options", [{}, {"compression": "tga_rle"}])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_tga_is_recognised_by_its_head(mode, options):
    image = Image.fromarray(RGB).convert(mode)
    data = encoded("TGA", image, **options)
    np.testing.assert_array_equal(decode(data), np.asarray(image.convert("RGB")))


def test_tga_of_32_bits_without_alpha_bits_is_not_transparent():
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 4, 3, 32, 0x20)
    data = head + bytes([10, 20, 30, 0]) * 12
    assert decode(data).reshape(-1, 3).tolist() == [[30, 20, 10]] * 12
    assert (decode(data[:17] + b"\x28" + data[18:]) == 255).all()  # 8 bits of alpha, all 0


@pytest.mark.parametrize(
    "text", [b"no picture at all, but some text that is long enough", bytes(99)]
)
def test_what_has_no_mark_is_not_taken_for_tga(text):
    with pytest.raises(XciteError, match="not a picture"):
        decode(text)


def test_jpeg_by_other_names_and_jpeg_2000():
    assert {".jfif", ".tga", ".jp2", ".avif"} <= set(formats.SUFFIXES)
    np.testing.assert_array_equal(decode(encoded("JPEG2000")), RGB)
    np.testing.assert_array_equal(decode(encoded("JPEG2000", no_jp2=True)), RGB)


@pytest.mark.parametrize(("name", "library"), [("heic", "pillow_heif"), ("jxl", "pillow_jxl")])
def test_formats_of_a_missing_library_name_it(monkeypatch, name, library):
    data = JXL + bytes(20) if name == "jxl" else b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(9)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(XciteError, match=r"pip install 'xcite\[formats\]'"):
        decode(data)
    installed = importlib.util.find_spec
    suffixes = subprocess.run(
        [sys.executable, "-c",
         "import importlib.util as u; u.find_spec = lambda name: None\n"
         "from xcite.data.formats import SUFFIXES; print(SUFFIXES)"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert name not in suffixes
    assert installed is importlib.util.find_spec


@pytest.mark.parametrize(("kind", "library"), [("HEIF", "pillow_heif"), ("JXL", "pillow_jxl")])
def test_formats_of_a_library(kind, library):
    plugin = pytest.importorskip(library)
    if kind == "HEIF":
        plugin.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(kind, quality=95, exif=exif.tobytes())
    turned = np.rot90(RGB, -1)
    found = decode(data)
    upright = found.shape == turned.shape
    assert np.abs(found.astype(int) - (turned if upright else RGB)).mean() < 4
    assert upright == (kind == "HEIF")  # libjxl's encoder does not take EXIF's orientation over
    assert decode(data, channels=4)[..., 3].min() == 255
    with pytest.raises(XciteError, match=r"data\.max_pixels"):
        decode(data, max_pixels=500)
    with pytest.raises(XciteError, match="damaged"):
        decode(data[: len(data) // 2])


def test_the_size_of_jpeg_xl_is_known_before_it_is_decoded():
    assert jxl_size(JXL) == (40, 24)
    # 13 bits for each of the sides, in a container whose codestream is cut into parts
    bits = 0 | 1 << 1 | 2999 << 3 | 0 << 16 | 1 << 19 | 3999 << 21
    stream = b"\xff\x0a" + bits.to_bytes(8, "little")
    parts = b"".join(
        struct.pack(">I4sI", 12 + len(part), b"jxlp", n) + part
        for n, part in enumerate((stream[:3], stream[3:]))
    )
    container = b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">I4s", 12, b"ftyp") + b"jxl " + parts
    assert jxl_size(stream) == jxl_size(container) == (4000, 3000)
    with pytest.raises(
        XciteError,
        match=r"4000 x 3000 pixels, which count 3 times, are more than the 10000000 .*max_pix",
    ):
        decode(container, max_pixels=10_000_000)
    for damaged in (container[:20], container[:12] + bytes(30)):
        with pytest.raises(XciteError, match="damaged"):
            decode(damaged)


def test_text_and_colour_profile_of_any_size_are_passed_over():
    data = encoded("PNG")
    large = zlib.compress(bytes(90 << 20), 1)  # a bomb, which nobody opens
    remarks = [
        chunk(b"iCCP", b"x\0\0" + large), chunk(b"zTXt", b"k\0\0" + large),
        chunk(b"tEXt", b"k\0" + b"x" * (5 << 20)), chunk(b"iTXt", b"k\0\1\0\0\0" + large),
    ]  # fmt: skip
    for remark in remarks:
        np.testing.assert_array_equal(decode(data[:33] + remark + data[33:]), RGB)
        np.testing.assert_array_equal(decode(data[:-12] + remark + data[-12:]), RGB)
    np.testing.assert_array_equal(decode(data[:33] + b"".join(remarks) + data[33:]), RGB)


def test_more_pixels_are_read_where_more_are_allowed(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded("PNG")
    assert decode(data, max_pixels=960).shape == (24, 40, 3)
    assert decode(data, max_pixels=960, channels=1).shape == (24, 40, 1)
    with pytest.raises(
        XciteError, match=r"24 pixels are more than the 959 .*raise data.max_pixels"
    ):
        decode(data, max_pixels=959)
    with pytest.raises(XciteError, match=r"far more than the 400 pixels .*raise data.max_pixels"):
        decode(data, max_pixels=400)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_scans_follow_the_pixels_that_are_allowed(monkeypatch):
    from xcite.data import picture_limits

    data = encoded("JPEG", progressive=True)  # ten scans of 960 pixels
    monkeypatch.setattr(picture_limits, "MOST_SCANNED", 9_000)
    with pytest.raises(XciteError, match="scans of 960 pixels"):
        picture_limits.refuse_excess(data, "x", 500)
    picture_limits.refuse_excess(data, "x", 960)


def test_pillow_is_left_as_it_was():
    before, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with PillowScope(10**9), PillowScope(10**10):
        assert Image.MAX_IMAGE_PIXELS == 10**10
    assert limit == Image.MAX_IMAGE_PIXELS
    assert warnings.filters == before
    script = (
        "import warnings; before = list(warnings.filters)\n"
        "import numpy, PIL.Image; between = list(warnings.filters)\n"
        "import xcite.data.pipeline; assert warnings.filters == between"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_packets_of_jpeg_2000_are_counted():
    grey = Image.new("L", (900, 600))
    assert jpeg2000_packets(encoded("JPEG2000", grey)) == (1, 6)
    assert jpeg2000_packets(encoded("JPEG2000", grey, tile_size=(128, 128))) == (40, 240)
    layers = {"quality_layers": [90, 50, 20], "num_resolutions": 3}
    data = encoded("JPEG2000", grey, **layers)
    assert jpeg2000_packets(data) == (1, 9)
    at = data.index(b"\xff\x52") + 6
    many = data[:at] + b"\xff\xff" + data[at + 2 :]
    assert jpeg2000_packets(many) == (1, 3 * 65535)
    small = {"tile_size": (4, 4), "num_resolutions": 1}
    with pytest.raises(XciteError, match=r"22500 tiles .*bomb"):
        decode(encoded("JPEG2000", Image.new("L", (600, 600)), **small))
    data = encoded("JPEG2000", Image.new("L", (100, 100)), **small)
    at = data.index(b"\xff\x52") + 6
    with pytest.raises(XciteError, match=r"625 tiles and 40959375 packets .*bomb"):
        decode(data[:at] + b"\xff\xff" + data[at + 2 :])
