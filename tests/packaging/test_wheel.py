"""Sdist and wheel are complete, and each engine works where the other is not installed."""

import functools
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from xcite import engines

ROOT = Path(__file__).parents[2]

# Hides a framework from a fresh interpreter as if it had never been installed.
HIDE = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {hidden!r}:
            raise ModuleNotFoundError(name)

import importlib.util
_find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == {hidden!r} else _find(name, *a)
sys.meta_path.insert(0, Hidden())
"""

WORK = """
import numpy as np
import xcite

assert xcite.__file__.startswith({folder!r}), xcite.__file__
model = xcite.create_model("xcit_nano_12_p16", engine={engine!r}, depth=1, num_classes=5)
weights = xcite.read_weights(model)
xcite.load_weights(model, weights)
from xcite.engines import create_engine
engine = create_engine({engine!r}, model.architecture)
assert engine.predict(np.zeros((2, 3, 32, 48), np.float32)).shape == (2, 5)
try:
    xcite.create_model("xcit_nano_12_p16", engine={hidden!r})
except xcite.XciteError as error:
    assert "pip install" in str(error), error
else:
    raise AssertionError("the hidden engine was found")
assert {hidden!r} not in sys.modules
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, built from a clean copy of the sources, and the wheel, built from that sdist.

    A copy, because setuptools takes what it finds in an old `build` or `*.egg-info` folder too.
    """
    folder = tmp_path_factory.mktemp("wheel")
    rubbish = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "copy/src", ignore=rubbish)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "copy")
    build = "from setuptools import build_meta; build_meta.build_{0}({1!r})"
    run = functools.partial(subprocess.run, check=True, capture_output=True)
    python = [sys.executable, "-c"]
    run([*python, build.format("sdist", str(folder))], cwd=folder / "copy")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (sources,) = (folder / "sdist").iterdir()
    run([*python, build.format("wheel", str(folder))], cwd=sources)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return sources / "src", folder / "unpacked"


@pytest.fixture(scope="module")
def unpacked(archives: tuple[Path, Path]) -> Path:
    return archives[1]


def files(package: Path) -> set[str]:
    return {
        path.relative_to(package).as_posix()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_sdist_and_wheel_hold_every_file(archives: tuple[Path, Path]) -> None:
    """No module and no data file is left out, and nothing else is in there."""
    expected = files(ROOT / "src/xcite")
    for archive in archives:
        assert files(archive / "xcite") == expected


def test_every_folder_with_modules_is_a_package() -> None:
    """Without `__init__.py` setuptools leaves a folder out, though it imports from the sources."""
    folders = {path.parent for path in (ROOT / "src/xcite").rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize(("engine", "hidden"), [("paddle", "torch"), ("torch", "paddle")])
def test_one_engine_is_enough(unpacked: Path, engine: str, hidden: str) -> None:
    if engine not in engines.installed():
        pytest.skip(f"{engine} is not installed")
    code = HIDE.format(hidden=hidden) + WORK.format(
        engine=engine, hidden=hidden, folder=str(unpacked)
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
