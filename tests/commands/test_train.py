"""`xcite train` as people use it: dry run, refusals, a real Ctrl-C in a process of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import run, small

from xcite import engines
from xcite.training import checkpoint


def test_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", "digits", "--dry-run") == 0
    out = capsys.readouterr().out
    for text in ("1,438 pictures", "359 pictures", "10: 0, 1, 2", "learning rate", "GiB", "cosine"):
        assert text in out, text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a recipe"),
        (["digts"], "did you mean 'digits'"),
        (["digits", "--set", "optim.lrate=3"], "optim.lr"),
        (["digits", "--engine", "jax"], "run.engine"),
        (["digits", "--resume", "absent"], "leave out RECIPE"),
        (["--resume", "absent"], "there is no run folder absent"),
        (["digits", "--out", "used"], "already exists"),
        (["digits", "--set", "optim.batch=2000"], "optim.batch 2000 is larger"),
        (["imagenet"], "imagenet/train"),
        (["digits", "--out", "used/file/run"], "used/file/run"),
    ],
)
def test_refusals(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("something")
    assert run("train", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.count("\n") == 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("engine", engines.installed()[-1:])
def test_control_c_and_resume(
    engine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = [sys.executable, "-m", "xcite.cli", "train"]
    arguments = ["digits", "--engine", engine, *small("data.workers=1")]
    process = subprocess.Popen(
        [*train, *arguments, "--out", "broken"],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    metrics = tmp_path / "broken" / "metrics.jsonl"
    until = time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the loader's processes, too
    out, error = process.communicate(timeout=200)
    assert process.returncode == 130, error
    assert "xcite train --resume broken" in out
    assert "Traceback" not in error
    monkeypatch.chdir(tmp_path)
    assert run("train", "--resume", "broken") == 0
    assert run("train", *arguments, "--out", "whole") == 0
    one, other = (
        checkpoint.load(tmp_path / run / "checkpoint.safetensors").state
        for run in ("whole", "broken")
    )
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name
    assert Image.open(tmp_path / "broken" / "curves.png").size[0] > 1000
    assert run("train", "--resume", "broken", "--set", "optim.lr=1") == 2
    assert "optim.lr is" in capsys.readouterr().err


@pytest.mark.parametrize("engine", engines.installed()[-1:])
def test_a_full_disk_ends_in_one_line(engine: str, tmp_path: Path) -> None:
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "from xcite.cli import main; main(sys.argv[1:])"
    )
    train = ["train", "digits", "--engine", engine, "--out", "run"]
    result = subprocess.run(
        [sys.executable, "-c", limited, *train, *small("data.workers=0", "optim.epochs=1")],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert result.returncode == 2
    assert "cannot write" in result.stderr
    assert "Traceback" not in result.stderr
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert not [name for name in names if name.endswith(".part") or "safetensors" in name]


@pytest.mark.parametrize("engine", engines.installed()[-1:])
def test_train_evaluate_predict(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", "digits", "--engine", engine, *small("data.workers=0")) == 0
    assert "Validate Epoch [2] acc1 (" in capsys.readouterr().out
    files = ["--json", "accuracy.json", "--confusion", "confusion.png", "--workers", "0"]
    on = ["--engine", engine]
    assert run("evaluate", "runs/digits-1", "--data", "digits", *on, *files) == 0
    out = capsys.readouterr().out
    figures = json.loads(Path("accuracy.json").read_text())
    assert f"top-1 {figures['acc1']:.2f} %" in out
    assert figures["pictures"] == sum(map(sum, figures["confusion"])) == 359
    lines = Path("runs/digits-1/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    best = max(max(r.get("acc1", 0), r.get("ema_acc1", 0)) for r in rows)
    assert figures["acc1"] == pytest.approx(best), "the same pictures, the same figure"
    assert Image.open("confusion.png").size[0] > 400

    # the same pictures as a folder whose classes sort differently: matched by name
    rng = np.random.default_rng(0)
    for name in "9876543210":
        Path("folder", name).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(f"folder/{name}/x.png")
    assert run("evaluate", "runs/digits-1", "--data", "folder", *on, "--workers", "0") == 0
    Path("list.txt").write_text("folder/7/x.png 7\nfolder/3/x.png 3\n")
    assert run("evaluate", "runs/digits-1", "--data", "list.txt", *on, "--workers", "0") == 0
    assert "2 pictures on" in capsys.readouterr().out
    Path("folder/9").rename("folder/nine")
    assert run("evaluate", "runs/digits-1", "--data", "folder", *on) == 2
    error = capsys.readouterr().err
    assert "runs/digits-1 does not know nine; its classes: 0, 1, 2" in error
    assert "folder: 0, 1, 2, 3, 4, 5, 6, 7, 8, nine" in error
    shutil.rmtree("folder/nine")
    assert run("evaluate", "runs/digits-1", "--data", "folder", *on, "--workers", "0") == 0
    assert "folder has 9 of the 10 classes of runs/digits-1" in capsys.readouterr().out

    Path("broken.png").write_bytes(b"no picture")
    pictures = ["folder/0/x.png", "broken.png", "absent.png", "folder", "folder/1/x.png"]
    capsys.readouterr()
    assert run("predict", "runs/digits-1", *pictures, *on) == 2
    out, error = capsys.readouterr()
    assert out.count("%") == 55, "five names for two good pictures and the nine of a folder"
    assert len(error.strip().splitlines()) == 2
    assert run("predict", "runs/digits-1", *pictures[:1], "--json", "--top", "3", *on) == 0
    answer = json.loads(capsys.readouterr().out)[0]
    assert [len(answer["classes"]), answer["picture"]] == [3, "folder/0/x.png"]
    shares = [row["probability"] for row in answer["classes"]]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("command", ["evaluate absent --data digits", "predict absent x.png"])
def test_no_such_model(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*command.split()) == 2
    assert "absent" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("torch" not in engines.installed(), reason="started as torchrun does")
def test_two_processes_write_one_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xcite.cli", "train", "digits", "--engine", "torch"]
    started = [
        subprocess.Popen(
            [*command, "--out", "run", *small("data.workers=0")],
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(2)
    ]
    (out, error), (silent, other) = [process.communicate(timeout=500) for process in started]
    assert [process.returncode for process in started] == [0, 0], error + other
    assert out.count("Validate Epoch [2]") == 1
    assert silent == ""
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    # of 359 pictures every one counts once, whichever process saw it
    assert round(last["acc1"] * 359 / 100, 6).is_integer()
    steps = [row["step"] for row in map(json.loads, lines) if row["kind"] == "step"]
    assert steps == list(range(1, 11)), "five steps of 256 pictures in each of two epochs"
