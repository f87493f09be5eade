"""`xcite train` and `xcite status` when a run is stopped, killed, left alone or started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import run, small

from xcite import engines
from xcite.training import checkpoint
from xcite.training.run_folder import RunFolder

ENGINE = engines.installed()[-1]
TRAIN = [sys.executable, "-m", "xcite.cli", "train", "digits", "--engine", ENGINE]


def start(folder: Path, *settings: str, options: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*TRAIN, "--out", str(folder), *options, *small(*settings)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def await_steps(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Wait until a step has been recorded."""
    metrics, until = folder / "metrics.jsonl", time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_the_whole_group_end_saved(number: int, tmp_path: Path) -> None:
    process = start(tmp_path / "run", "data.workers=1", "optim.epochs=200")
    await_steps(process, tmp_path / "run")
    os.killpg(process.pid, number)
    out, error = process.communicate(timeout=200)
    assert process.returncode == 130, error
    assert f"xcite train --resume {tmp_path / 'run'}" in out
    assert "Traceback" not in error
    position = checkpoint.load(tmp_path / "run" / "checkpoint.safetensors").position
    last = max(row["step"] for row in RunFolder(tmp_path / "run").rows())
    assert position.epoch * 5 + position.step == last


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    process = start(tmp_path / "run", "data.workers=0")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    assert process.wait(timeout=200) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "nobody reads the output any more" in log
    assert "best: top-1" in log


def test_started_again_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    settings = small("data.workers=0", "optim.epochs=40", "run.checkpoint_minutes=1e-6")
    again = ["train", "digits", "--engine", ENGINE, "--out", str(folder), *settings]
    process = start(
        folder,
        "data.workers=0",
        "optim.epochs=40",
        "run.checkpoint_minutes=1e-6",
        options=("--auto-resume",),
    )
    await_steps(process, folder)

    assert run("status", folder) == 0
    assert f"process {process.pid} on " in capsys.readouterr().out
    for arguments in ([*again, "--auto-resume"], ["train", "--resume", str(folder)]):
        assert run(*arguments) == 2
        assert f"is in use by process {process.pid} on " in capsys.readouterr().err

    process.kill()
    process.communicate()
    assert run("status", folder, "--watch") == 0
    out = capsys.readouterr().out
    assert "killed" in out
    assert f"xcite train --resume {folder}" in out

    assert run(*again) == 2
    assert "already exists" in capsys.readouterr().err
    short = ["--set", "optim.epochs=2"]
    assert run(*again, *short, "--auto-resume") == 2
    assert "optim.epochs is 40 in this run and would be 2" in capsys.readouterr().err
    assert run(*again, *short, "--auto-resume", "--allow-changes") == 0
    assert "resumed on" in capsys.readouterr().out
    assert run(*again, *short, "--auto-resume") == 0
    assert "is complete: 2 epochs are done" in capsys.readouterr().out
    assert run("status", folder) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--auto-resume"], "--auto-resume needs --out"),
        (["--resume", "x", "--auto-resume"], "leave out RECIPE"),
        (["digits", "--auto-resume", "--out", "."], "already exists"),
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
    (tmp_path / "something").touch()
    assert run("train", *arguments) == 2
    assert message in capsys.readouterr().err
    assert run("status", "absent") == 2
    assert "there is no run folder absent" in capsys.readouterr().err
