"""`xcite evaluate`: some of a model's classes, ReaL, suites, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from noise_runs import make_pictures
from PIL import Image
from small_runs import run

from xcite import engines
from xcite.canonical import initial_weights
from xcite.preprocessing import Preprocessing
from xcite.variants import XCiTArchitecture
from xcite.weights import Metadata, save_weights
from xcite.weights.imagenet import imagenet_classes, imagenet_wnids

WNIDS = imagenet_wnids()
QUICK = ("--workers", 0)


def saved(path: Path, class_names: list[str]) -> Path:
    small = XCiTArchitecture(16, 16, 1, 2, num_classes=len(class_names))
    preprocessing = Preprocessing(size=16)
    metadata = Metadata(architecture=small, class_names=class_names, preprocessing=preprocessing)
    save_weights(path, initial_weights(small), metadata)
    return path


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "w.safetensors", imagenet_classes())


def pictures(folder: Path, *classes: str, name: str = "a.png") -> Path:
    for number, class_name in enumerate(classes):
        (folder / class_name).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / class_name / name, format="PNG")
    return folder


def test_some_classes_are_counted_twice_and_the_absent_named(imagenet, tmp_path, capsys) -> None:
    data = pictures(tmp_path / "data", WNIDS[3], WNIDS[999])
    out = tmp_path / "out.json"
    assert run("evaluate", imagenet, "--data", data, "--json", out, *QUICK) == 0
    output = capsys.readouterr().out
    assert output.startswith("2 pictures of 2 classes, 1 each, sides of 20 pixels")
    assert "gives 2 of the 1000 classes of" in output
    assert "no pictures of 998 classes: tench, goldfish, great white shark" in output
    assert "among all 1000 classes; among the 2 classes present: top-1" in output
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert (figures["pictures"], figures["classes_present"]) == (2, 2)
    assert len(figures["absent"]) == 998
    assert figures["acc1_present"] >= figures["acc1"]
    assert figures["acc5_present"] == 100


def test_all_classes_are_counted_once(tmp_path, capsys) -> None:
    weights = saved(tmp_path / "w.safetensors", ["cat", "dog"])
    data = pictures(tmp_path / "data", "dog", "cat")
    assert run("evaluate", weights, "--data", data, *QUICK) == 0
    output = capsys.readouterr().out
    assert "present" not in output
    assert "no pictures of" not in output


def test_an_extra_class_is_refused_by_name_unless_it_shall_be_left_out(tmp_path, capsys) -> None:
    weights = saved(tmp_path / "w.safetensors", ["cat", "dog"])
    data = pictures(tmp_path / "data", "cat", "cow", "dog")
    assert run("evaluate", weights, "--data", data, *QUICK) == 2
    assert "does not know cow; its classes: cat, dog" in capsys.readouterr().err
    assert run("evaluate", weights, "--data", data, "--ignore-extra", *QUICK) == 0
    output = capsys.readouterr().out
    assert "1 pictures of classes that" in output
    assert "2 pictures on" in output


def test_loose_pictures_are_no_set(imagenet, tmp_path, capsys) -> None:
    pictures(tmp_path / "data", "x")
    assert run("evaluate", imagenet, "--data", tmp_path / "data" / "x", *QUICK) == 2
    assert "nothing says what its 1 pictures show" in capsys.readouterr().err


def test_real(imagenet, tmp_path, capsys) -> None:
    val = pictures(tmp_path / "val", WNIDS[3], name="ILSVRC2012_val_00000002.JPEG")
    labels = tmp_path / "real.json"
    labels.write_text(json.dumps([[], list(range(1000))]), encoding="utf-8")
    out = tmp_path / "out.json"
    command = ("evaluate", imagenet, "--data", val, "--real", labels, "--json", out)
    assert run(*command, *QUICK) == 0
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert (figures["acc1"], figures["pictures"], figures["unlabelled"]) == (100, 1, 0)
    labels.write_text(json.dumps([[1], []]), encoding="utf-8")
    assert run(*command, *QUICK) == 2
    assert "has no label for any of the 1 pictures" in capsys.readouterr().err


def test_a_failing_set_stops_no_suite(imagenet, tmp_path, capsys) -> None:
    pictures(tmp_path / "suite" / "imagenet-a", WNIDS[3], WNIDS[5])
    pictures(tmp_path / "suite" / "imagenet-r", WNIDS[3], "n99999999")
    damaged = pictures(tmp_path / "suite" / "sketch", WNIDS[7])
    (damaged / WNIDS[7] / "a.png").write_bytes(b"no picture")
    val = pictures(tmp_path / "suite" / "val", WNIDS[9], name="ILSVRC2012_val_00000001.JPEG")
    (tmp_path / "suite" / "real.json").write_text("[[9, 8]]", encoding="utf-8")
    out = tmp_path / "out.json"
    assert run("evaluate", imagenet, "--suite", tmp_path / "suite", "--json", out, *QUICK) == 2
    output = capsys.readouterr().out
    assert "does not know n99999999" in output
    assert output.count(" failed") == 2
    sets = {row["set"]: row for row in json.loads(out.read_text(encoding="utf-8"))["sets"]}
    assert list(sets) == [
        "ImageNet-A",
        "ImageNet-R",
        "ImageNet-Sketch",
        "ImageNet",
        "ImageNet ReaL",
    ]
    assert (sets["ImageNet-A"]["pictures"], sets["ImageNet-A"]["classes_present"]) == (2, 2)
    assert "n99999999" in sets["ImageNet-R"]["error"]
    assert "a.png" in sets["ImageNet-Sketch"]["error"]
    assert sets["ImageNet"]["path"] == sets["ImageNet ReaL"]["path"] == str(val)
    assert sets["ImageNet ReaL"]["acc1"] >= sets["ImageNet"]["acc1"]
    assert len(output.splitlines()[-6:]) == 6


def test_any_number_of_damaged_pictures_is_left_out_where_that_is_asked_for(
    tmp_path, capsys
) -> None:
    weights = saved(tmp_path / "w.safetensors", ["cat", "dog"])
    data = pictures(tmp_path / "data", "cat", "dog")
    for number in range(30):  # more than a training run would skip
        (data / "cat" / f"bad{number:02}.png").write_bytes(b"no picture")
    assert run("evaluate", weights, "--data", data, *QUICK) == 2
    assert "bad00.png: not a picture" in capsys.readouterr().err
    assert run("evaluate", weights, "--data", data, "--skip", *QUICK) == 0
    assert "2 pictures on" in (output := capsys.readouterr().out)
    assert ", 30 left out: top-1" in output


def test_a_run_knows_its_pictures(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_pictures(Path("d/train"), 4)
    make_pictures(Path("d/val"), 2, classes="bc", seed=1)
    widths = ("model.embed_dim=16", "model.depth=1", "model.num_heads=2")
    small = [part for setting in widths for part in ("--set", setting)]
    out = ("--engine", engines.installed()[-1], "--epochs", 1, "--out", "r")
    assert run("train", "d", *out, *small) == 0
    shutil.rmtree("d/train")
    capsys.readouterr()
    assert run("evaluate", "r", "--json", "r.json", *QUICK) == 0
    output = capsys.readouterr().out
    assert output.startswith("4 pictures of ")
    assert "no pictures of 1 classes: a" in output
    figures = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert (figures["data"], figures["pictures"]) == ("validation pictures of r", 4)
    assert figures["absent"] == ["a"]
    # its recipe skips damaged pictures, as training did
    Path("d/val/b/0.png").write_bytes(b"no picture")
    assert run("evaluate", "r", *QUICK) == 0
    assert "3 pictures on" in (output := capsys.readouterr().out)
    assert ", 1 left out" in output
    assert run("predict", "r", "--json") == 2
    answers = json.loads(capsys.readouterr().out)
    assert [Path(answer["picture"]).parent.name for answer in answers] == ["b", "b", "c", "c"]
    assert ["error" in answer for answer in answers] == [True, False, False, False]


def test_contradictions_are_refused_before_the_model_is_opened(tmp_path, capsys) -> None:
    missing = tmp_path / "none.safetensors"
    assert run("evaluate", missing, "--suite", tmp_path, "--data", "digits") == 2
    assert "leave --data, --real, --confusion out" in capsys.readouterr().err
    assert run("evaluate", missing) == 2
    assert "say what to evaluate" in capsys.readouterr().err
    assert run("evaluate", missing, "--real", tmp_path / "real.json") == 2
    assert "say what to evaluate" in capsys.readouterr().err
