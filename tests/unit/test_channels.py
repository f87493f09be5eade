"""Pictures of any number of channels, and numbers of more than 8 bits."""

import io

import numpy as np
import pytest
from PIL import Image
from tiffs import tiff

from xcite import recipe as recipes
from xcite.data import transforms
from xcite.data.augmentation import Augmentation
from xcite.data.bands import Bands
from xcite.data.decoding import Opened, decode
from xcite.data.formats import dimensions
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing

RNG = np.random.default_rng(3)
EIGHT = RNG.integers(0, 256, (20, 13, 5)).astype(np.uint8)
SIXTEEN = RNG.integers(0, 65536, (20, 13, 5)).astype(np.uint16)
SCALED = np.rint(SIXTEEN / 257).astype(np.uint8)


def encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("packed", [{}, {"deflate": True}, {"deflate": True, "differences": True}])
def test_every_layout_of_a_tiff_gives_its_channels(order, planar, tile, packed):
    for pixels, expected in ((EIGHT, EIGHT), (SIXTEEN, SCALED)):
        data = tiff(pixels, order=order, planar=planar, tile=tile, **packed)
        np.testing.assert_array_equal(decode(data, channels=5), expected)
    assert dimensions(data) == (13, 20, "TIFF")


def test_two_channels_and_orientation():
    np.testing.assert_array_equal(decode(tiff(EIGHT[..., :2]), channels=2), EIGHT[..., :2])
    turned = Opened(tiff(EIGHT, turn=6))
    assert turned.size == (20, 13)
    np.testing.assert_array_equal(
        turned.pixels(channels=5, box=(2, 3, 4, 5)).pixels(), np.rot90(EIGHT, -1)[2:6, 3:8]
    )


def test_floating_point_is_read_from_black_to_white():
    values = RNG.random((9, 7, 6)).astype(np.float32)
    expected = np.rint(values * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode(tiff(values), channels=6), expected)
    np.testing.assert_array_equal(decode(tiff(values[..., :1]), channels=1), expected[..., :1])
    np.testing.assert_array_equal(
        decode(tiff(values[..., :3], photometric=2), channels=3), expected[..., :3]
    )
    pfm = b"Pf\n7 9\n-1.0\n" + np.ascontiguousarray(values[::-1, :, 0]).tobytes()
    np.testing.assert_array_equal(decode(pfm, channels=1), expected[..., :1])
    for wrong, named in ((values * 200, r"from 0\.\d* to \d+.*0 \(black\) to 1"), (values - 2, "")):
        with pytest.raises(XciteError, match=f"floating-point pixels {named}"):
            decode(tiff(wrong), channels=6)
    with pytest.raises(XciteError, match="floating-point pixels from nan"):
        decode(tiff(values * np.float32(np.nan)), channels=6)


def test_numbers_that_would_be_read_wrongly_are_scaled_or_refused():
    grey = SIXTEEN[..., :1]
    np.testing.assert_array_equal(
        decode(tiff(grey, photometric=0), channels=1), 255 - SCALED[..., :1]
    )
    np.testing.assert_array_equal(decode(tiff(grey))[..., 1], SCALED[..., 0])
    with pytest.raises(XciteError, match="1 channels of 8 bits, sample format 2"):
        decode(tiff(EIGHT[..., :1].astype(np.int8)))
    twelve = bytes.fromhex("000fff800400")  # 0, 4095, 2048, 1024 in 12 bits each
    data = tiff(np.zeros((1, 4, 1), np.uint8)).replace(bytes(4), b"", 0)
    at = data.index(bytes.fromhex("020104000100000008000000"))  # bits per sample: 8
    data = data[: at + 8] + b"\x0c" + data[at + 9 :]
    at = data.index(bytes.fromhex("110104000100000008000000"))  # where the strip lies
    data = data[: at + 8] + len(data).to_bytes(4, "little") + data[at + 12 :] + twelve
    at = data.index(bytes.fromhex("170104000100000004000000"))  # its length
    data = data[: at + 8] + b"\x06" + data[at + 9 :]
    assert decode(data, channels=1).ravel().tolist() == [0, 255, 128, 64]


@pytest.mark.parametrize(
    ("data", "present", "wanted"),
    [
        (tiff(EIGHT), 5, 3),
        (tiff(EIGHT, photometric=2, extra=[0, 0]), 5, 3),  # Pillow would drop two of them
        (tiff(EIGHT), 5, 4),
        (tiff(EIGHT[..., :3], photometric=2), 3, 4),
        (encoded(EIGHT[..., :3]), 3, 5),
        (encoded(EIGHT[..., :3], "JPEG"), 3, 4),
        (encoded(EIGHT[..., :3]), 3, 2),
        (EIGHT, 5, 3),
    ],
)
def test_other_channels_than_wanted_are_refused_with_both_numbers(data, present, wanted):
    with pytest.raises(XciteError, match=f"has {present} channels, {wanted} are wanted"):
        decode(data, channels=wanted)


def test_four_channels_are_colour_and_alpha():
    rgba = EIGHT[..., :4]
    for data in (encoded(rgba), rgba, tiff(rgba, photometric=2, extra=[2])):
        np.testing.assert_array_equal(decode(data, channels=4), rgba)
    opaque = decode(encoded(EIGHT[..., :3]), channels=4)
    np.testing.assert_array_equal(opaque[..., :3], EIGHT[..., :3])
    assert (opaque[..., 3] == 255).all()
    # RGB and another band that is no alpha: four channels, or the three that are named
    data = tiff(rgba, photometric=2, extra=[0])
    np.testing.assert_array_equal(decode(data, channels=4), rgba)
    np.testing.assert_array_equal(decode(data, channels=3), rgba[..., :3])
    np.testing.assert_array_equal(
        decode(encoded(EIGHT[..., :2].copy().view(np.uint8)), channels=2), EIGHT[..., :2]
    )


def test_a_tiff_that_unpacks_to_more_than_is_allowed_is_refused():
    blank = tiff(np.zeros((64, 64, 200), np.uint8), deflate=True)
    assert decode(blank, channels=200, max_pixels=64 * 64 * 13).shape == (64, 64, 200)
    with pytest.raises(XciteError, match="64 x 64 pixels of 200 channels are more than"):
        decode(blank, channels=200, max_pixels=64 * 64 * 12)
    with pytest.raises(XciteError, match=r"data\.max_pixels"):
        decode(blank, channels=200, max_pixels=64 * 63)


def test_bands_are_cut_and_resized_as_grey_pictures_are():
    pixels = RNG.integers(0, 256, (40, 30, 3)).astype(np.uint8)
    for crop in (1.0, 0.8):
        wanted = Preprocessing(size=(20, 24), crop_ratio=crop)
        coloured = transforms.evaluation_pixels(pixels, wanted)
        banded = transforms.resize_to_cover(Bands.of(pixels), wanted)
        banded = transforms.centre_crop(banded, wanted.size)
        np.testing.assert_array_equal(banded.pixels(), coloured)


@pytest.mark.parametrize("crop", ["random_resized", "padded", "none"])
def test_geometry_of_training_is_that_of_colour_pictures(crop):
    settings = [
        f"augment.crop={crop}", "augment.randaugment=null", "preprocessing.size=[16, 24]",
        "augment.flip=1",
    ]  # fmt: skip
    colour = recipes.parse("", "colour", settings)
    six = "[0.5, 0.5, 0.5, 0.5, 0.5, 0.5]"
    more = [f"preprocessing.mean={six}", f"preprocessing.std={six}"]
    many = recipes.parse("", "many", settings + more)
    pixels = RNG.integers(0, 256, (40, 30, 6)).astype(np.uint8)
    found = [
        Augmentation(recipe)(Opened(part), np.random.default_rng(1))
        for recipe, part in (
            (colour, pixels[..., :3]), (colour, pixels[..., 3:]), (many, pixels)
        )
    ]  # fmt: skip
    assert found[2].shape == (16, 24, 6)
    np.testing.assert_array_equal(np.concatenate(found[:2], axis=2), found[2])


def test_colour_operations_on_other_channels_are_refused_by_the_recipe():
    five = "[0.5, 0.5, 0.5, 0.5, 0.5]"
    settings = [f"preprocessing.mean={five}", f"preprocessing.std={five}"]
    with pytest.raises(XciteError, match=r"augment\.randaugment .*5 values; .*to null"):
        recipes.parse("", "x", settings)
    settings += ["augment.randaugment=null"]
    with pytest.raises(XciteError, match=r"augment\.color_jitter .*to 0"):
        recipes.parse("", "x", [*settings, "augment.color_jitter=0.3"])
    assert recipes.parse("", "x", settings).preprocessing.channels == 5
