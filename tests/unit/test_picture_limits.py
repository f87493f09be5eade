"""Bombs of every format are refused, or harmless, within bounded time and memory."""

import contextlib
import io
import struct
import subprocess
import sys
import textwrap
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from xcite.data.decoding import Opened, decode
from xcite.errors import XciteError


def smooth(side=64):
    y, x = np.mgrid[:side, :side]
    return Image.fromarray(np.stack([x, y, (x + y) // 2], axis=2).astype(np.uint8))


def encoded(kind, image=None, **options):
    file = io.BytesIO()
    (image or smooth()).save(file, kind, **options)
    return file.getvalue()


def refused(data, match):
    started = time.process_time()
    with pytest.raises(XciteError, match=rf"bomb: .*{match}"):
        decode(data, origin="bomb")
    assert time.process_time() - started < 3


def harmless(data, side=64):
    started = time.process_time()
    assert decode(data).shape == (side, side, 3)
    assert time.process_time() - started < 3


def segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def chunk(kind, body):
    crc = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + crc


def tags(count, size, order="<", at=8):
    """A TIFF directory whose tags all share the bytes from 8 on."""
    entries = b"".join(
        struct.pack(f"{order}HHLL", 40_000 + number, 1, size, at) for number in range(count)
    )
    begin = b"II*\0" if order == "<" else b"MM\0*"
    filling = b"x" * size
    return (
        begin
        + struct.pack(f"{order}L", 8 + size)
        + filling
        + struct.pack(f"{order}H", count)
        + entries
        + bytes(4)
    )


def progressive(side, repeats):
    data = encoded("JPEG", Image.new("RGB", (side, side), "red"), progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * repeats + b"\xff\xd9"


def test_scans_of_a_progressive_jpeg_are_counted():
    harmless(progressive(64, 50))
    refused(progressive(64, 200), "more than 100 scans of 4096 pixels")
    refused(progressive(7_000, 3_000), "more than 61 scans of 49000000 pixels")


def test_scans_behind_the_only_one_of_a_sequential_jpeg_are_not_decoded():
    data = encoded("JPEG", Image.new("RGB", (4_000, 4_000)))
    last = data.rfind(b"\xff\xda")
    started = time.process_time()
    with contextlib.suppress(XciteError):
        decode(data[:-2] + data[last:-2] * 300 + b"\xff\xd9")
    assert time.process_time() - started < 3
    lone = data.replace(b"\xff\xda\0\x0c\x03\1\0", b"\xff\xda\0\x08\1\1\0\0\x3f\0\0\0", 1)
    assert lone != data
    last = lone.rfind(b"\xff\xda")
    refused(lone[:-2] + lone[last:-2] * 300 + b"\xff\xd9", "more than 100 scans of 16000000")


def test_as_many_scans_as_are_allowed_take_seconds():
    side = 8_000
    data = progressive(side, 3_000_000_000 // side**2 - 11)
    started = time.process_time()
    decode(data)
    assert time.process_time() - started < 60


def test_what_looks_like_scans_behind_the_picture_is_none():
    harmless(encoded("JPEG", progressive=True) + b"\xff\xda\0\x08" * 10_000)
    thumbnail = segment(0xE1, b"Exif\0\0" + encoded("JPEG")[:600] + b"\xff\xda" * 1000)
    whole = encoded("JPEG")
    harmless(whole[:2] + thumbnail + whole[2:])


def test_segments_of_a_jpeg():
    whole = encoded("JPEG")
    harmless(whole[:2] + segment(0xFE, b"c" * 60_000) * 500 + whole[2:])
    refused(whole[:2] + segment(0xFE, b"") * 1_000_000 + whole[2:], "more than 1000 segments")
    refused(whole[:2] + b"\xff" * 10_000_000 + whole[2:], "between the segments")
    refused(whole[:2] + b"\x11" * 10_000_000 + whole[2:], "between the segments")


def test_tags_that_lie_over_each_other():
    whole = encoded("JPEG")
    exif = b"Exif\0\0" + tags(4_000, 10_000)
    refused(whole[:2] + segment(0xE1, exif) + whole[2:], "tags of 40000000 bytes")
    refused(whole[:2] + segment(0xE2, b"MPF\0" + tags(2000, 30_000)) + whole[2:], "tags of")
    refused(tags(25_000, 100_000), "tags of 2500000000 bytes")
    refused(tags(25_000, 100_000, ">"), "tags of 2500000000 bytes")
    png = encoded("PNG")
    refused(png[:33] + chunk(b"eXIf", tags(25_000, 100_000)) + png[33:], "tags of")
    refused(encoded("WEBP", exif=tags(25_000, 100_000)), "tags of")
    # a directory that another one names counts as well
    inner = tags(25_000, 100_000)
    outer = struct.pack("<HHHLL", 1, 0x8769, 4, 1, 8 + 100_000) + bytes(4)
    nested = inner[:4] + struct.pack("<L", len(inner)) + inner[8:] + outer
    refused(nested, "tags of 2500000000 bytes")


def test_a_camera_and_its_tags_pass():
    exif = Image.Exif()
    for number in range(300):
        exif[40_000 + number] = "x" * 100
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        harmless(encoded(kind, exif=exif))


def test_chunks_of_a_png():
    png = encoded("PNG")
    harmless(png[:33] + chunk(b"tEXt", b"a\0b") * 900 + png[33:])
    refused(png[:33] + chunk(b"tEXt", b"a\0b") * 100_000 + png[33:], "more than 1000 chunks")
    refused(png[:33] + chunk(b"IDAT", b"") * 300_000 + png[33:], "pixels in more than 250000")
    refused(png[:33] + chunk(b"prVt", bytes(1 << 20)) * 70 + png[33:], "beside the pixels")
    bomb = zlib.compress(bytes(100_000_000), 9)
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0")):
        data = png[:33] + chunk(kind, head + bomb) + png[33:]
        started = time.process_time()
        with contextlib.suppress(XciteError):
            decode(data)
        assert time.process_time() - started < 3


def test_comments_of_a_gif():
    gif = encoded("GIF", smooth().quantize(16))
    at = gif.index(b",", 13 + 3 * 16)
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 1000 + b"\0"
    harmless(gif[:at] + comment + gif[at:])
    refused(gif[:at] + comment * 100 + gif[at:], "before the pixels")
    refused(gif[:at] + b"!\xfe\0" * 1_000_000 + gif[at:], "before the pixels")
    refused(gif[:at] + b"\0" * 10_000_000 + gif[at:], "before the pixels")
    refused(gif[:at] + b"\x11" * 10_000_000 + gif[at:], "before the pixels")


def test_a_header_of_a_ppm():
    refused(b"P6\n#" + b"c" * 10_000_000 + b"\n1 1 255\nabc", "PPM header")
    harmless(b"P6\n# by hand\n64 64\n255\n" + bytes(64 * 64 * 3))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_picture_of_an_animation_costs_anything(kind):
    frames = [Image.new("RGB", (64, 64), (n % 256, n // 256, 7)) for n in range(3_000)]
    options = {"duration": 20} if kind != "TIFF" else {}
    data = encoded(kind, frames[0], save_all=True, append_images=frames[1:], **options)
    started = time.process_time()
    assert decode(data)[0, 0].tolist()[:2] == [0, 0] or kind == "WEBP"
    assert time.process_time() - started < 0.5


def test_a_picture_for_which_memory_does_not_suffice(monkeypatch):
    opened = Opened(encoded("JPEG"), origin="big.jpg")

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("xcite.data.decoding._as_mode", fail)
    with pytest.raises(XciteError, match=r"big\.jpg: not enough memory .* data\.max_pixels"):
        opened.pixels()


def test_under_a_memory_limit_a_picture_fails_by_name(tmp_path):
    path = tmp_path / "large.png"
    Image.new("RGB", (12_000, 12_000)).save(path)
    script = """
        import resource, sys
        from xcite.data.decoding import decode
        from xcite.errors import XciteError
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
        try:
            decode(sys.argv[1])
        except XciteError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "large.png: not enough memory" in done.stdout, done.stderr
    assert done.returncode == 0
