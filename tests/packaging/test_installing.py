"""What pip resolves for the wheel and each of its extras, in new environments without constraints.

    pytest -m slow tests/packaging/test_installing.py

PYTHONS names further interpreters, such as ``PYTHONS="python3.12 python3.13"``.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
PYTHONS = [sys.executable, *os.environ.get("PYTHONS", "").split()]
# Without a version pip takes builds for GPUs, of several gigabytes.
LOCKED = (ROOT / "constraints.txt").read_text().splitlines()
TORCH = next(line for line in LOCKED if line.startswith("torch=="))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "out"))
    shutil.copytree(ROOT / "src", source / "src")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, source], check=True
    )
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module", params=PYTHONS)
def python(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([request.param, "-m", "venv", place], check=True)
    return place / "bin" / "python"


@pytest.mark.parametrize("extras", ["", *EXTRAS, ",".join(EXTRAS)])
def test_an_extra_resolves(wheel, python, extras):
    more = [TORCH] if {"torch", "deploy"} & {*extras.split(",")} else []
    asked = f"{wheel}[{extras}]" if extras else str(wheel)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--dry-run", "-q", asked, *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
