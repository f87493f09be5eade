"""`xcite train --processes`: as with one process, and what happens when one is lost."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import run, small

from xcite import engines
from xcite.training import checkpoint
from xcite.training.run_folder import RunFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
LONG = ("data.workers=0", "optim.epochs=4000", "run.checkpoint_minutes=1e-6")
Started = subprocess.Popen[str]


def start(folder: Path, engine: str, *settings: str, options: tuple[str, ...] = ()) -> Started:
    command = [sys.executable, "-m", "xcite.cli", "train", "digits", "--engine", engine]
    command += ["--out", str(folder), *options, *small(*settings)]
    return subprocess.Popen(
        command if "--processes" in options else [*command, "--processes", "2"],
        cwd=folder.parent,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def workers(folder: Path) -> dict[int, int]:
    """The living processes that train in a folder: rank to process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"xcite.commands.launched" not in words or str(folder).encode() not in words:
                continue
            pairs = (entry / "environ").read_bytes().split(b"\0")
            variables = dict(pair.split(b"=", 1) for pair in pairs if b"=" in pair)
            rank = variables.get(b"RANK", variables.get(b"PADDLE_TRAINER_ID"))
            if rank is not None and (entry / "stat").read_text().split()[2] != "Z":
                found[int(rank)] = pid
    return found


def family(folder: Path) -> list[int]:
    """Every process whose command or environment names the folder's run."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if str(folder).encode() in (entry / "cmdline").read_bytes() and int(entry.name):
                found.append(int(entry.name))
    return found


@contextlib.contextmanager
def training(
    folder: Path, engine: str, *settings: str, **more: tuple[str, ...]
) -> Iterator[Started]:
    """A run that has done some steps; nothing of it is left afterwards."""
    process = start(folder, engine, *LONG, *settings, **more)
    try:
        await_rows(process, folder, 2)
        yield process
    finally:
        process.kill()
        for pid in workers(folder).values():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def await_rows(process: Started, folder: Path, rows: int) -> None:
    until = time.monotonic() + 120
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def gone(folder: Path, seconds: float) -> bool:
    """Whether nothing of the run lives after so many seconds at most."""
    until = time.monotonic() + seconds
    while family(folder) and time.monotonic() < until:
        time.sleep(0.1)
    return not family(folder)


def ended_in_one_line(process: Started, folder: Path, seconds: float) -> str:
    """The one line of an error, at the end of which stands how to go on."""
    _, error = process.communicate(timeout=seconds)
    assert process.returncode == 2, error
    (line,) = error.splitlines()
    assert line.startswith("xcite: "), line
    assert f"go on with: xcite train --resume {folder}" in line
    assert line.endswith("--processes 2")
    assert gone(folder, 10)
    assert not (folder.parent / "log").exists()
    return line


@pytest.mark.parametrize("engine", engines.installed())
def test_two_processes_are_one_run(engine: str, tmp_path: Path) -> None:
    process = start(tmp_path / "run", engine, "data.workers=0")
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert error == ""
    assert out.count("Validate Epoch [2]") == 1
    assert "LAUNCH" not in out
    rows = RunFolder(tmp_path / "run").rows()
    assert [r["step"] for r in rows if r["kind"] == "step"] == list(range(1, 11))
    assert round(rows[-1]["acc1"] * 359 / 100, 6).is_integer()  # every picture counts once
    told = json.loads((tmp_path / "run" / "environment.json").read_text())["sessions"][0]
    assert told["command"][-2:] == ["--processes", "2"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_error_of_all_is_said_once(tmp_path: Path) -> None:
    process = start(tmp_path / "run", engines.installed()[-1], "optim.batch=5000")
    out, error = process.communicate(timeout=300)
    assert process.returncode == 2
    (line,) = error.splitlines()
    assert line.startswith("xcite: optim.batch 5000 is larger than the data")
    assert out == ""
    assert not (tmp_path / "run").exists()
    assert gone(tmp_path / "run", 10)


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines.installed())
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run(engine: str, rank: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder, engine) as process:
        os.kill(workers(folder)[rank], signal.SIGKILL)
        line = ended_in_one_line(process, folder, 90)
        assert f"process {rank} of 2 on " in line
        assert "was killed by SIGKILL" in line
    assert checkpoint.load(folder / "checkpoint.safetensors").position.done > 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines.installed())
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_is_given_up(engine: str, rank: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder, engine, "run.process_timeout=6") as process:
        os.kill(workers(folder)[rank], signal.SIGSTOP)
        line = ended_in_one_line(process, folder, 100)
        assert f"process {rank} of 2 has not been heard of for 6 seconds" in line
    assert "has not been heard of" in (folder / "log.txt").read_text() or rank == 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines.installed())
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_end_the_run_saved(engine: str, number: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder, engine) as process:
        os.killpg(process.pid, number)
        out, error = process.communicate(timeout=90)
        assert process.returncode == 130, error
        assert error == ""
        assert f"xcite train --resume {folder} --processes 2" in out
        assert gone(folder, 10)
    last = max(row["step"] for row in RunFolder(folder).rows())
    assert checkpoint.load(folder / "checkpoint.safetensors").position.done == last


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines.installed())
def test_a_signal_before_the_run_begins(engine: str, tmp_path: Path) -> None:
    process = start(tmp_path / "run", engine, *LONG)
    time.sleep(3)
    process.terminate()
    _, error = process.communicate(timeout=90)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert gone(tmp_path / "run", 10)


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines.installed())
def test_a_killed_launcher_leaves_nobody_behind(engine: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder, engine) as process:
        kept = {*Path(tempfile.gettempdir()).glob("xcite-launch-*")}
        process.kill()
        assert gone(folder, 70)
        assert len(kept) == 1 + len([path for path in kept if path.exists()])
    last = max(row["step"] for row in RunFolder(folder).rows())
    assert checkpoint.load(folder / "checkpoint.safetensors").position.done == last


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines.installed())
def test_a_killed_process_is_replaced(engine: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training(folder, engine, options=("--processes", "2", "--restarts", "1")) as process:
        before = workers(folder)
        os.kill(before[1], signal.SIGKILL)
        history, until = folder / "history.jsonl", time.monotonic() + 120
        while '"event": "resumed"' not in history.read_text():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until, history.read_text()
            time.sleep(0.1)
        after = workers(folder)
        assert set(before) == set(after) == {0, 1}
        assert not set(before.values()) & set(after.values())
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=90)
        assert process.returncode == 130, error
        assert error.count("a process of this run was lost") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes", "none"], "give a number, or auto"),
        (["--restarts", "1"], "need --processes"),
        (["--processes", "2", "--hosts", "2"], "needs --rendezvous HOST:PORT"),
        (["--processes", "2", "--hosts", "3:2"], "a range, 2:4"),
        (["--processes", "2", "--hosts", "2", "--rendezvous", "here"], "give HOST:PORT"),
        (["--processes", "2", "--hosts", "2", "--rendezvous", "127.0.0.1:29400"], "need --out"),
        (["--processes", "auto"], "there is none here"),
    ],
)
def test_refusals(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run("train", "digits", "--engine", engines.installed()[-1], *options) == 2
    assert message in capsys.readouterr().err
    assert [*tmp_path.rglob("*")] in ([], [tmp_path / "runs"])
