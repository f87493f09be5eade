"""What is held out of the training pictures, and that a run keeps it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from noise_runs import make_pictures
from PIL import Image

from xcite.data.sources import Source, open_source
from xcite.errors import XciteError
from xcite.training import splitting


def names(source: Source | None) -> set[str]:
    assert source is not None
    return {"/".join(source.name(index).split("/")[-2:]) for index in range(len(source))}


def test_every_class_gives_its_share(tmp_path: Path) -> None:
    make_pictures(tmp_path, 20)
    make_pictures(tmp_path, 3, classes="d")
    make_pictures(tmp_path, 1, classes="e")
    source = open_source(tmp_path)
    split = splitting.draw(source, 0.25, seed=0)
    assert split.validation is not None
    assert np.bincount(split.validation.labels, minlength=5).tolist() == [5, 5, 5, 1, 0]
    assert names(split.train).isdisjoint(names(split.validation))
    assert len(split.train) + len(split.validation) == len(source)
    assert split.train.class_names == split.validation.class_names == list("abcde")
    again, other = (splitting.draw(source, 0.25, seed=seed) for seed in (0, 1))
    assert again.held_out == split.held_out
    assert other.held_out != split.held_out


def test_near_duplicates_stay_together(tmp_path: Path) -> None:
    make_pictures(tmp_path, 12)
    for number in range(12):
        picture = Image.open(tmp_path / "a" / f"{number}.png")
        picture.save(tmp_path / "a" / f"{number}.jpg", quality=85)
    source = open_source(tmp_path)
    for seed in range(4):
        split = splitting.draw(source, 0.3, seed=seed)
        held = {name for name in split.held_out if name.startswith("a/")}
        assert 6 <= len(held) <= 12
        for number in range(12):
            assert (f"a/{number}.png" in held) == (f"a/{number}.jpg" in held)
        assert any("12 pictures are near-duplicates" in note for note in split.notes)


def test_a_class_of_copies_stays_in_training(tmp_path: Path) -> None:
    make_pictures(tmp_path, 6, classes="ab")
    for number in range(1, 6):
        shutil.copyfile(tmp_path / "a" / "0.png", tmp_path / "a" / f"{number}.png")
    split = splitting.draw(open_source(tmp_path), 0.2, seed=0)
    assert split.held_out
    assert all(name.startswith("b/") for name in split.held_out)


def test_too_few_pictures_to_hold_any_out(tmp_path: Path) -> None:
    make_pictures(tmp_path, 1, classes="ab")
    split = splitting.draw(open_source(tmp_path), 0.2, seed=0)
    assert (len(split.train), split.validation, split.held_out) == (2, None, [])
    assert split.notes == ["no picture could be held out for validation: too few, or too alike"]


def test_the_kept_split_outlives_moves_and_new_pictures(tmp_path: Path) -> None:
    make_pictures(tmp_path / "data", 8)
    file = tmp_path / "split.json"
    split = splitting.draw(open_source(tmp_path / "data"), 0.25, seed=3)
    assert splitting.read(open_source(tmp_path / "data"), file) is None
    split.write(file)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").rename(tmp_path / "elsewhere" / "moved")
    moved = tmp_path / "elsewhere" / "moved"
    odd = moved / "a" / "new\nline.png"
    shutil.copyfile(moved / "a" / "1.png", odd)
    first = sorted(names(split.validation))[0]
    (moved / first).unlink()
    again = splitting.read(open_source(moved), file)
    assert again is not None
    assert names(again.validation) == names(split.validation) - {first}
    assert "a/new\nline.png" in names(again.train)
    assert "1 pictures that" in again.notes[1]
    assert "are gone" in again.notes[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"held_out": [1]}', "no list of names"),
        ('{"held_out": ["x/1.png"]}', "none of the 1 pictures .* x/1.png"),
    ],
)
def test_a_file_that_is_no_split(text: str, message: str, tmp_path: Path) -> None:
    make_pictures(tmp_path / "data", 2)
    file = tmp_path / "split.json"
    file.write_text(text)
    with pytest.raises(XciteError, match=message):
        splitting.read(open_source(tmp_path / "data"), file)


def test_names_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    make_pictures(tmp_path / "data", 4, classes="ab")
    odd = bytes(tmp_path / "data" / "a") + b"/caf\xe9.png"
    (tmp_path / "data" / "a" / "0.png").rename(Path(odd.decode(errors="surrogateescape")))
    source = open_source(tmp_path / "data")
    everything = splitting.relative_names(source)
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"held_out": everything[-4:]}))
    split = splitting.read(source, file)
    assert split is not None
    assert split.held_out == everything[-4:]
    split.write(file)
    assert splitting.read(source, file).held_out == everything[-4:]  # type: ignore[union-attr]
