"""Single bits of a run's files flip: all are noticed or change nothing.

XCITE_FLIPS sets how many per file (100).
"""

import os
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_runs import SETTINGS, one_line

from xcite import engines
from xcite import recipe as recipes
from xcite.errors import XciteError
from xcite.training import checkpoint, loop
from xcite.training.run_folder import RunFolder
from xcite.weights import open_weights

FLIPS = int(os.environ.get("XCITE_FLIPS", "100"))

pytestmark = pytest.mark.slow


def _checkpoint(path: Path) -> Any:
    found = checkpoint.load(path)
    arrays = {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.state.items()}
    return arrays, found.position, found.identity


def _weights(path: Path) -> Any:
    found = open_weights(path)
    arrays = {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.tensors.items()}
    return arrays, found.metadata, found.architecture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    path = tmp_path_factory.mktemp("flips") / "run"
    engine = f"run.engine={engines.installed()[-1]}"
    recipe = recipes.load("digits", [*SETTINGS, engine, "data.workers=0", "optim.epochs=1"])
    return RunFolder(loop.train(recipe, path, console=Console(quiet=True)).folder)


@pytest.mark.parametrize(("name", "read"), [("checkpoint", _checkpoint), ("best", _weights)])
def test_flipped_bits(folder: RunFolder, name: str, read: Any, tmp_path: Path) -> None:
    whole = getattr(folder, name).read_bytes()
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(whole)
    expected = read(path)
    header = 8 + int.from_bytes(whole[:8], "little")
    places, noticed = random.Random(0), 0
    for number in range(FLIPS):
        # Half of them in the header, which is small beside the numbers.
        bit = places.randrange(8 * (header if number % 2 else len(whole)))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found = read(path)
        except XciteError as error:
            one_line(error)
            noticed += 1
        else:
            assert found == expected, f"bit {bit} changes the result in silence"
    print(f"{name}: {FLIPS} flips, {noticed} noticed, {FLIPS - noticed} without effect")
