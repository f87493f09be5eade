"""The wheel is complete, and each engine works where the other is not installed."""

import os
import subprocess
import sys
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
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sources and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--quiet", "--wheel-dir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_wheel_holds_everything(unpacked: Path) -> None:
    """Every file of the package that git knows is in the wheel."""
    sources = ROOT / "src" / "xcite"
    expected = {
        str(path.relative_to(sources))
        for path in sources.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {
        str(path.relative_to(unpacked / "xcite"))
        for path in (unpacked / "xcite").rglob("*")
        if path.is_file()
    }
    assert expected - found == set()


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
