"""Which pictures count as nearly the same."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from xcite.data import near_duplicates
from xcite.data.overlap import copies, shared_pictures
from xcite.data.sources import open_source


def scene(seed: int) -> Image.Image:
    """A picture with shapes of its own, as photographs have."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((240, 180), Image.Resampling.BICUBIC)


def reencoded(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


CHANGES = {
    "smaller": lambda picture: picture.resize((90, 68)),
    "other compression": lambda picture: reencoded(picture, 40),
    "blurred": lambda picture: picture.filter(ImageFilter.GaussianBlur(2)),
    "a little brighter": lambda picture: picture.point(lambda value: min(255, value + 8)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "ab":
        (tmp_path / name).mkdir()
    for seed in range(6):
        scene(seed).save(tmp_path / "ab"[seed % 2] / f"{seed}.png")
    return tmp_path


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_belong_together_and_nothing_else(change: str, folder: Path) -> None:
    CHANGES[change](scene(0)).save(folder / "b" / "copy.png")
    source = open_source(folder)
    names = [Path(source.name(index)).name for index in range(len(source))]
    groups = dict(zip(names, near_duplicates.groups(source).tolist(), strict=True))
    assert groups["copy.png"] == groups["0.png"]
    assert len(set(groups.values())) == 6


def test_chains_belong_together(folder: Path) -> None:
    for step in range(1, 5):
        scene(0).point(lambda value, by=12 * step: min(255, value + by)).save(
            folder / "a" / f"burst{step}.png"
        )
    source = open_source(folder)
    groups = near_duplicates.groups(source)
    assert len(np.unique(groups)) == 6


def test_damaged_and_plain_pictures(folder: Path) -> None:
    for number, colour in enumerate(("white", "white", "red")):
        Image.new("RGB", (30, 30), colour).save(folder / "a" / f"plain{number}.png")
    (folder / "b" / "damaged.png").write_bytes(b"none")
    source = open_source(folder)
    names = [Path(source.name(index)).name for index in range(len(source))]
    groups = dict(zip(names, near_duplicates.groups(source).tolist(), strict=True))
    assert groups["plain0.png"] == groups["plain1.png"] != groups["plain2.png"]
    assert len(set(groups.values())) == 9


def test_shared_pictures_are_told_by_their_bytes(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    for name in "ab":
        (other / name).mkdir()
    scene(7).save(other / "a" / "new.png")
    (other / "b" / "renamed.png").write_bytes((folder / "a" / "4.png").read_bytes())
    one, two = open_source(folder), open_source(other)
    found = shared_pictures(one, two)
    assert [(Path(one.name(i)).name, Path(two.name(j)).name) for i, j in found] == [
        ("4.png", "renamed.png")
    ]
    assert shared_pictures(open_source("digits"), open_source("digits", split="validation")) == []


def test_copies_are_told_by_all_their_bytes(folder: Path) -> None:
    assert copies(open_source("digits")) == []
    source = open_source(folder)
    assert copies(source) == []
    data = (folder / "a" / "4.png").read_bytes()
    for place in ("a/copy.png", "b/copy.png"):
        (folder / place).write_bytes(data)
    for number in range(2):  # the same size and beginning, another end
        (folder / "b" / f"raw{number}.bmp").write_bytes(bytes(20_000) + bytes([number]))
    source = open_source(folder)
    names = [str(Path(source.name(index)).relative_to(folder)) for index in range(len(source))]
    pairs = [(names[one], names[other]) for one, other in copies(source)]
    assert pairs == [("a/4.png", "a/copy.png"), ("a/4.png", "b/copy.png")]
