"""From a folder of pictures to a bundle, in commands without options; and what odd folders give."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from noise_runs import make_pictures, tensors
from small_runs import run

from xcite import engines
from xcite import recipe as recipes
from xcite.errors import XciteError
from xcite.training.run_data import open_data, open_validation

WIDTHS = ("model.embed_dim=16", "model.depth=1", "model.num_heads=2")
SMALL = [*(part for setting in WIDTHS for part in ("--set", setting)), "--epochs", "2"]
ENGINE = engines.installed()[-1]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("XCITE_WEIGHTS_DIR", raising=False)
    return tmp_path


def test_a_folder_of_class_folders(capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(Path("my photos"), 8)
    assert run("train", "my photos", "--engine", ENGINE, *SMALL) == 0
    out = capsys.readouterr().out
    folder = Path("runs/my-photos-1")
    for text in (
        "recipe scratch, because no weights are named",
        "fitted to 19 training pictures of 3 classes",
        "training: 24 pictures of 3 classes, 8 each, sides of 20 to 24 pixels",
        "6 of 24 pictures are held out for validation (data.holdout 0.2, seed 0",
        "Validate Epoch [2]",
    ):
        assert text in out, text
    saved = recipes.load(str(folder))
    assert (saved.data.train, saved.data.holdout, saved.optim.epochs) == ("my photos", 0.2, 2)
    held = json.loads((folder / "split.json").read_text())["held_out"]
    validation = open_validation(folder)
    assert [name.split("my photos/")[1] for name in map(validation.name, range(6))] == held

    # the same pictures are held out wherever the folder is by now, and whatever has come since
    Path("my photos").rename("moved")
    with pytest.raises(XciteError, match="my photos: no such folder"):
        open_validation(folder)
    Path("my photos").symlink_to("moved")
    shutil.copyfile("my photos/a/0.png", "my photos/a/new.png")
    assert len(open_validation(folder)) == 6
    assert not any("new.png" in open_validation(folder).name(index) for index in range(6))

    assert run("report", str(folder), "--pictures", "1") == 0
    assert "6 pictures of held-out pictures" in (folder / "report.html").read_text()
    capsys.readouterr()
    assert run("export", str(folder)) == 0
    assert "xcite serve runs/my-photos-1/bundle" in capsys.readouterr().out
    assert (folder / "bundle" / "bundle.json").is_file()


def test_interrupted_and_whole_runs_hold_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from noise_runs import interrupt

    make_pictures(Path("d"), 8)
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        assert run("train", "d", "--engine", ENGINE, *SMALL, "--out", "broken") == 130
    split = Path("broken/split.json").read_bytes()
    Path("broken/split.json").unlink()  # as a kill before it was written
    again = ["train", "d", "--engine", ENGINE, *SMALL, "--out", "broken", "--auto-resume"]
    assert run(*again) == 0
    assert Path("broken/split.json").read_bytes() == split
    assert run("train", "d", "--engine", ENGINE, *SMALL, "--out", "whole") == 0
    one, other = (tensors(Path(name, "checkpoint.safetensors")) for name in ("broken", "whole"))
    assert one == other


def test_train_and_val_folders_are_taken_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(Path("d/train"), 8)
    make_pictures(Path("d/val"), 2, classes="ab", seed=1)
    shutil.copyfile("d/train/a/0.png", "d/val/a/seen.png")
    assert run("train", "d", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "24 pictures (d)" in out
    assert "5 pictures (d)" in out
    assert "warning: no validation pictures of c" in out
    assert "warning: 1 validation pictures are training pictures, such as " in out
    assert "held out" not in out
    assert not Path("runs").exists()


def test_a_table_beside_loose_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(Path("plain"), 8)
    Path("d/train").mkdir(parents=True)
    rows = []
    for picture in sorted(Path("plain").rglob("*.png")):
        name = f"{picture.parent.name}_{picture.name}"
        shutil.copy(picture, Path("d/train") / name)
        rows.append(json.dumps({"file_name": name, "label": picture.parent.name}))
    Path("d/train/metadata.jsonl").write_text("\n".join(rows))
    assert run("train", "d", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "24 pictures of 3 classes, 8 each" in said
    assert "classes          3: a, b, c" in said
    counted = (f"{number} plain/{path}" for number, path in enumerate(["a/0.png", "b/0.png"], 1))
    Path("images.txt").write_text("\n".join(counted))  # as CUB-200 has it
    assert run("train", "images.txt", "--dry-run") == 2
    assert "only count the lines" in capsys.readouterr().err


def test_validation_pictures_need_no_training_pictures() -> None:
    make_pictures(Path("d/train"), 8)
    make_pictures(Path("d/val"), 2, classes="bc", seed=1)
    settings = [*SMALL, "--set", "data.validation=d/val"]
    assert run("train", "d/train", "--engine", ENGINE, *settings, "--out", "r") == 0
    shutil.rmtree("d/train")
    assert open_validation("r").class_names == ["a", "b", "c"]
    assert open_validation("r").labels.tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["d", "--epochs", "3", "--set", "optim.epochs=4"], "give one"),
        (["d", "--lr", "1e-3", "--set", "optim.lr=2e-3"], "give one"),
        (["d", "--batch", "30"], "optim.batch 30 is larger than the data"),
        (["d", "--batch", "1", "--size", "4"], "leaves BatchNorm a single value"),
        (["d/a"], "d/a"),
        (["."], "would lie among the pictures"),
        (["d", "--out", "d/run"], "would lie among the pictures"),
        (["one"], "at least two"),
        (["nowhere"], "nor pictures of that name"),
        (["./nowhere"], "nor pictures of that name"),
        (["tiny.txt"], "larger than the data"),  # a recipe under another name
        (["open.yaml"], "does not say which pictures to train on"),
        (["d", "--device", "tpu"], "run.device"),
        (["d", "--auto-resume"], "--auto-resume needs --out"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(Path("d"), 8)
    make_pictures(Path("one"), 8, classes="a")
    Path("tiny.txt").write_text(
        "data: {train: digits}\noptim: {epochs: 1, warmup_epochs: 0, batch: 9999}\n"
    )
    Path("open.yaml").write_text("optim: {epochs: 9}\n")
    assert run("train", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0
    assert not Path("runs").exists()


def test_options_that_agree_with_settings(capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(Path("d"), 8)
    same = ["--lr", "0.001", "--set", "optim.lr=1e-3", "--size", "32", "--workers", "0"]
    assert run("train", "d", *same, "--device", "cpu", "--dry-run") == 0
    assert "input            3 x 32 x 32" in capsys.readouterr().out


def test_a_folder_that_is_called_like_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(Path("digits"), 8)
    assert run("train", "digits", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "note: digits is taken for the shipped recipe; ./digits names the pictures" in out
    assert "1,438 pictures" in out
    assert run("train", "./digits", "--dry-run") == 0
    assert "19 training pictures" in capsys.readouterr().out


@pytest.mark.parametrize("engine", engines.installed())
def test_two_pictures(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(Path("d"), 1, classes="ab")
    assert run("train", "d", "--engine", engine, *SMALL) == 0
    out = capsys.readouterr().out
    assert "warning: a single training picture of a, b" in out
    assert "no picture could be held out for validation" in out
    with pytest.raises(XciteError, match="without validation pictures"):
        open_validation("runs/d-1")


@pytest.mark.parametrize("engine", engines.installed())
def test_no_gpu_is_said(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    module = importlib.import_module(engine)
    there = module.cuda.is_available() if engine == "torch" else module.device.cuda.device_count()
    if there:
        pytest.skip("there is a GPU")
    make_pictures(Path("d"), 2)
    assert run("train", "d", "--engine", engine, *SMALL, "--device", "gpu") == 2
    assert "finds no GPU on this machine; set run.device to cpu" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_digits_are_not_held_out_twice() -> None:
    recipe = recipes.load("digits")
    data = open_data(recipe)
    assert data.split is None
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (1438, 359)
    assert np.bincount(data.validation.labels).min() > 30
