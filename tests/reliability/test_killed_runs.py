"""SIGKILL at random moments: nothing is ever stuck, lost, changed or left behind.

XCITE_KILLS sets how many per engine (20), XCITE_SEED when they fall.
"""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from tiny_runs import SETTINGS, fingerprint, left_behind

from xcite import engines
from xcite.data.shared_memory import born
from xcite.errors import XciteError
from xcite.training import checkpoint
from xcite.training.run_folder import RunFolder

KILLS = int(os.environ.get("XCITE_KILLS", "20"))
SEED = int(os.environ.get("XCITE_SEED", "0"))

pytestmark = pytest.mark.slow


def start(engine: str, out: Path, teacher: Path | None = None) -> "subprocess.Popen[str]":
    """Training in ``out``, or, with a teacher, its answers going there."""
    words = ["train", "--auto-resume"]
    settings = SETTINGS
    if teacher:
        words, settings = ["teach"], [*SETTINGS, "distill.loss=soft", f"distill.teacher={teacher}"]
    for setting in settings:
        words += ["--set", setting]
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "xcite.cli",
            *words,
            "--engine",
            engine,
            "--out",
            str(out),
            "digits",
        ],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(engine: str, out: Path, teacher: Path | None = None) -> None:
    process = start(engine, out, teacher)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


def phase(folder: RunFolder) -> str:
    try:
        return str(json.loads(folder.status.read_text())["state"])
    except (OSError, ValueError):
        return "start-up"


def saved_step(folder: RunFolder, steps: int) -> int:
    try:
        found, problems = checkpoint.newest(folder)
    except XciteError as error:
        pytest.fail(f"a kill has damaged every checkpoint: {error}")
    assert not problems, "a kill has damaged a checkpoint"
    return found.position.epoch * steps + found.position.step if found else 0


def left_segments() -> set[str]:
    """Shared memory of dead owners; other processes of this machine may be at work."""
    names = (path.name.split("-") for path in Path("/dev/shm").iterdir())
    return {"-".join(n) for n in names if n[0] == "xcite" and born(int(n[2])) != int(n[3])}


@pytest.mark.parametrize("engine", engines.installed())
def test_killed_runs(engine: str, tmp_path: Path) -> None:
    moments = random.Random(SEED)
    began = time.monotonic()
    finish(engine, tmp_path / "whole")
    whole = time.monotonic() - began
    expected = fingerprint(tmp_path / "whole")
    steps = 1438 // 128
    phases: collections.Counter[str] = collections.Counter()
    kills, number, lost = 0, 0, []
    while kills < KILLS:
        folder = RunFolder(tmp_path / f"run{number}")
        process = start(engine, folder.path)
        # Half of them strike anywhere, half once training has begun.
        if moments.random() < 0.5:
            time.sleep(moments.uniform(0, whole))
        else:
            while process.poll() is None and phase(folder) in ("start-up", "starting"):
                time.sleep(0.005)
            time.sleep(moments.uniform(0, whole / 3))
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate(timeout=60)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, error
        else:
            kills += 1
            phases[phase(folder)] += 1
            last = max((r["step"] for r in folder.rows() if r["kind"] == "step"), default=0)
            lost.append(last - saved_step(folder, steps))
            if moments.random() < 0.6:
                continue  # kill the same run again
            finish(engine, folder.path)
        assert fingerprint(folder.path) == expected
        assert left_behind(folder.path) == []
        number += 1
    assert max(lost) <= 2, "one step that was being saved and the one after it"
    until = time.monotonic() + 10
    while left_segments() and time.monotonic() < until:
        time.sleep(0.1)
    finish(engine, tmp_path / "last")
    assert left_segments() == set()
    print(
        f"{engine}: {kills} kills ({dict(phases)}), {number} runs, at most {max(lost)} steps lost"
    )


@pytest.mark.parametrize("engine", engines.installed())
def test_killed_teachers(engine: str, tmp_path: Path) -> None:
    moments = random.Random(SEED)
    finish(engine, tmp_path / "run")
    teacher = RunFolder(tmp_path / "run").best
    began = time.monotonic()
    finish(engine, tmp_path / "whole", teacher)
    whole = time.monotonic() - began
    expected = contents(tmp_path / "whole")
    kills, begun, number = 0, 0, 0
    while kills < KILLS // 4:
        cache = tmp_path / f"cache{number}"
        process = start(engine, cache, teacher)
        time.sleep(moments.uniform(whole / 4, whole))
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate(timeout=60)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, error
        else:
            kills += 1
            begun += cache.exists()
            if moments.random() < 0.6:
                continue  # kill it again
            finish(engine, cache, teacher)
        assert contents(cache) == expected
        number += 1
    finish(engine, tmp_path / "last", teacher)
    assert left_segments() == set()
    print(f"{engine}: {kills} kills of a teacher, {begun} with a cache begun, {number} caches")


def contents(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    for path in folder.glob("*.safetensors"):
        found[path.name] = {name: a.tobytes() for name, a in sorted(load_file(path).items())}
    assert left_behind(folder) == []
    assert {path.name for path in folder.iterdir()} == {*found, "run.lock"}
    return found
