"""`xcite predict`: all ways to name pictures, a bad one among many, every form of answer."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import run

from xcite.canonical import initial_weights
from xcite.data.given_pictures import given_pictures
from xcite.data.sources import Found
from xcite.preprocessing import Preprocessing
from xcite.runtime.bundle import bundle_folder
from xcite.variants import XCiTArchitecture
from xcite.weights import Metadata, save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    small = XCiTArchitecture(16, 32, 1, 2, num_classes=3)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    preprocessing = Preprocessing(size=32)
    metadata = Metadata(
        architecture=small, class_names=["cat", "dog", "emu"], preprocessing=preprocessing
    )
    save_weights(path, initial_weights(small), metadata)
    return path


def picture(path: Path, form: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(str(path))).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(values).save(path, format=form)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b.png", "a.JPG", "sub/c.png", "sub/deep/d.webp", ".hidden.png", "__MACOSX/x.png"):
        picture(folder / name)
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    (folder / "sub" / "circle").symlink_to(folder)
    return folder


PICTURES = ["a.JPG", "b.png", "bad.png", "sub/c.png", "sub/deep/d.webp"]


def named(*arguments: object) -> list[str]:
    return [given.name for given in given_pictures(map(str, arguments), Found())]


def test_a_folder_is_walked_in_order_and_what_is_left_out_is_counted(photos: Path) -> None:
    found = Found()
    names = [given.name for given in given_pictures([str(photos)], found)]
    assert names == [str(photos / name) for name in PICTURES]
    assert found.left_out == {
        "hidden files": 1,
        "system folders": 1,
        ".txt files": 1,
        "links to a folder they lie in": 1,
    }


def test_a_folder_is_listed_when_its_turn_comes(photos: Path) -> None:
    given = given_pictures([str(photos), str(photos / "later")], Found())
    assert next(given).name.endswith("a.JPG")
    picture(photos / "later" / "e.png")
    assert [one.name for one in given][-1].endswith("e.png")


def test_patterns(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named(f"{photos}/*.png") == [str(photos / n) for n in ("b.png", "bad.png")]
    assert named(f"{photos}/**/*.png") == [
        str(photos / n) for n in ("b.png", "bad.png", "sub/c.png")
    ]
    assert named(f"{photos}/**/deep/**") == [str(photos / "sub/deep/d.webp")]
    assert named(f"{photos}/s*") == [str(photos / n) for n in ("sub/c.png", "sub/deep/d.webp")]
    (missing,) = given_pictures([f"{photos}/*.bmp"], Found())
    assert missing.error is not None
    assert "none that matches" in missing.error
    picture(photos / "[1] x.png")
    assert named(photos / "[1] x.png") == [str(photos / "[1] x.png")]
    monkeypatch.setenv("HOME", str(photos))
    assert named("~/b.png") == [str(photos / "b.png")]
    monkeypatch.chdir(photos)
    assert named("**/*.webp") == ["sub/deep/d.webp"]


def test_archives_and_digits_are_sources(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        archive.add(photos / "b.png", "pets/b.png")
    (inside,) = given_pictures([str(tmp_path / "some.tar")], Found())
    assert inside.name.endswith("some.tar:pets/b.png")
    assert inside.picture == (photos / "b.png").read_bytes()
    assert len(named("digits")) == 359


def test_one_bad_picture_stops_nothing(weights, photos, tmp_path, capsys) -> None:
    icon = picture(tmp_path / "i.ico")
    code = run("predict", weights, photos, tmp_path / "none.png", icon, tmp_path, "--json")
    output, errors = capsys.readouterr()
    assert code == 2
    answers = json.loads(output)
    assert output == json.dumps(answers, indent=1) + "\n"
    expected = [str(photos / name) for name in PICTURES]
    expected += [str(tmp_path / "none.png"), str(icon)]
    assert [answer["picture"] for answer in answers][: len(expected)] == expected
    wrong = [answer["picture"] for answer in answers if "error" in answer]
    assert wrong == [expected[2], expected[5], expected[2]]
    assert all(len(answer["classes"]) == 3 for answer in answers if "classes" in answer)
    assert "left out: 2 .txt files" in errors


def test_csv(weights, photos, tmp_path, capsys) -> None:
    assert run("predict", weights, photos, "--csv", tmp_path / "out.csv", "--top", 2) == 2
    output, errors = capsys.readouterr()
    assert output == f"5 pictures, 1 of them unreadable: {tmp_path / 'out.csv'}\n"
    assert "bad.png: not a picture" in errors
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    assert [row["picture"] for row in rows] == [str(photos / name) for name in PICTURES]
    assert list(rows[0]) == ["picture", "class", "probability", "class_2", "probability_2", "error"]
    assert rows[0]["class"] in ("cat", "dog", "emu")
    assert float(rows[0]["probability"]) >= float(rows[0]["probability_2"]) > 0
    assert (rows[2]["class"], "not a picture" in rows[2]["error"]) == ("", True)
    assert run("predict", weights, photos, "--csv", "-", "--top", 2) == 2
    assert list(csv.DictReader(io.StringIO(capsys.readouterr().out))) == rows
    assert run("predict", weights, photos, "--csv", "-", "--json") == 2
    assert "choose one" in capsys.readouterr().err


def test_nothing_to_look_at(weights, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert run("predict", weights, tmp_path / "empty", "--json") == 2
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["error"].endswith("empty: no pictures in this folder or below it")
    assert run("predict", weights) == 2
    assert "say what" in capsys.readouterr().err


def piped(command: str, *arguments: object, data: bytes = b"") -> tuple[int, str, str]:
    shell = f'set -o pipefail; "$@" {command}'
    xcite = [sys.executable, "-m", "xcite.cli", *map(str, arguments)]
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *xcite],
        input=data,
        capture_output=True,
        env=os.environ,
        timeout=240,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_standard_input_is_one_picture(weights, photos) -> None:
    data = (photos / "b.png").read_bytes()
    code, output, errors = piped("", "predict", weights, "-", "--json", data=data)
    assert (code, errors) == (0, "")
    (answer,) = json.loads(output)
    assert answer["picture"] == "-"
    code, _, errors = piped("", "predict", weights, "-", "--json")
    assert code == 2


def test_a_reader_that_goes_away_is_no_error(weights, photos) -> None:
    (photos / "bad.png").unlink()
    code, output, errors = piped("| head -n 1", "predict", weights, photos, "digits")
    assert (code, output) == (0, f"{photos / 'a.JPG'}\n")
    assert "Traceback" not in errors
    assert "Broken" not in errors


def test_a_file_of_a_bundle_stands_for_it(tmp_path: Path) -> None:
    for name in ("bundle.json", "model.xml", "model.bin", "README.md"):
        (tmp_path / name).write_text("{}")
    for name in ("bundle.json", "model.xml", "model.bin", ""):
        assert bundle_folder(tmp_path / name) == tmp_path
    assert bundle_folder(tmp_path / "README.md") is None
    assert bundle_folder(tmp_path / "none") is None


@pytest.mark.parametrize("name", ["model.onnx", "model.xml", "other.onnx"])
def test_a_program_without_its_bundle_is_named(tmp_path, capsys, name: str) -> None:
    (tmp_path / name).write_bytes(b"program")
    assert run("predict", tmp_path / name, "digits") == 2
    assert f"{name} is a program without the bundle.json" in capsys.readouterr().err
