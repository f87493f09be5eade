"""Every operation on files fails once: the run ends in one line and goes on from a good state.

XCITE_CALLS sets how many calls of each kind, from the first on (30).
"""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.numpy
from rich.console import Console
from tiny_runs import SETTINGS, fingerprint, left_behind, one_line

from xcite import engines
from xcite import recipe as recipes
from xcite.errors import XciteError
from xcite.recipe import Recipe
from xcite.training import loop

CALLS = int(os.environ.get("XCITE_CALLS", "30"))

pytestmark = pytest.mark.slow

WRITES = [
    (os, "write"),
    (os, "fsync"),
    (os, "open"),
    (os, "replace"),
    (os, "mkdir"),
    (os, "ftruncate"),
    (os, "pwrite"),
    (pathlib.Path, "write_text"),
    (pathlib.Path, "chmod"),
    (safetensors.numpy, "save_file"),
]
READS = [(pathlib.Path, "open"), (os, "open"), (safetensors, "safe_open")]


@contextlib.contextmanager
def failing(place: Any, name: str, number: int, below: str = "") -> Iterator[list[int]]:
    """The call with this number, counted from 1, fails once; 0 only counts.

    Args:
        below: only calls count whose first argument is a path below this one.
    """
    real, calls = getattr(place, name), [0]

    def call(*arguments: Any, **options: Any) -> Any:
        calls[0] += str(arguments[0]).startswith(below)
        if str(arguments[0]).startswith(below) and calls[0] == number:
            raise OSError(errno.ENOSPC, "No space left on device (simulated)")
        return real(*arguments, **options)

    setattr(place, name, call)
    try:
        yield calls
    finally:
        setattr(place, name, real)


def train(recipe: Recipe, folder: Path) -> loop.Outcome:
    resume = (folder / "recipe.yaml").is_file()
    return loop.train(recipe, folder, resume=resume, console=Console(quiet=True))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    engine = f"run.engine={engines.installed()[-1]}"
    return recipes.load("digits", [*SETTINGS, engine, "data.workers=0", "run.evaluate_every=3"])


@pytest.fixture(scope="module")
def expected(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(recipe, folder)
    return fingerprint(folder)


@pytest.mark.parametrize(("place", "name"), WRITES, ids=[name for _, name in WRITES])
def test_every_write_fails_once(
    place: Any, name: str, recipe: Recipe, expected: dict[str, str], tmp_path: Path
) -> None:
    with failing(place, name, 0) as calls:
        train(recipe, tmp_path / "counted")
    # The first ones are all different; later ones repeat, step by step.
    numbers = {*range(1, min(calls[0], CALLS) + 1), calls[0] - 1, calls[0]} - {0, -1}
    for number in sorted(numbers):
        folder, finished = tmp_path / f"{number}", False
        with failing(place, name, number):
            try:
                finished = train(recipe, folder).finished
            except XciteError as error:
                one_line(error)
        if not finished:
            assert train(recipe, folder).finished
        assert fingerprint(folder) == expected, number
        assert left_behind(folder) == [], number
    print(f"{name}: {len(numbers)} of {calls[0]} failed")


@pytest.mark.parametrize(
    ("place", "name"), READS, ids=[f"{place.__name__}.{name}" for place, name in READS]
)
def test_every_read_of_a_resume_fails_once(
    place: Any, name: str, recipe: Recipe, expected: dict[str, str], tmp_path: Path
) -> None:
    tried = 0
    for number in range(1, CALLS + 1):
        folder = tmp_path / f"{number}"
        with failing(os, "replace", 40), contextlib.suppress(XciteError):
            train(recipe, folder)
        with failing(place, name, number, str(folder)) as calls:
            try:
                train(recipe, folder)
            except XciteError as error:
                one_line(error)
        if calls[0] < number:
            break
        assert train(recipe, folder).finished
        assert fingerprint(folder) == expected, number
        tried += 1
    print(f"{name}: {tried} failed")
