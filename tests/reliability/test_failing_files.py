"""Every operation on files fails once: the run ends in one line and goes on from a good state."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
from rich.console import Console
from tiny_runs import SETTINGS, fingerprint, left_behind, one_line

from xcite import engines
from xcite import recipe as recipes
from xcite.errors import XciteError
from xcite.recipe import Recipe
from xcite.training import loop

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
READS = [(pathlib.Path, "open"), (os, "open"), (os, "stat")]


@contextlib.contextmanager
def failing(place: Any, name: str, number: int) -> Iterator[list[int]]:
    """The call with this number, counted from 1, fails once; 0 only counts."""
    real, calls = getattr(place, name), [0]

    def call(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
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


def test_every_write_fails_once(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path / "whole")
    expected = fingerprint(tmp_path / "whole")
    tried = 0
    for place, name in WRITES:
        with failing(place, name, 0) as calls:
            train(recipe, tmp_path / f"count-{name}")
        # The first ones are all different; later ones repeat, step by step.
        for number in sorted({*range(1, min(calls[0], 30) + 1), calls[0] - 1, calls[0]} - {0, -1}):
            folder, finished = tmp_path / f"{name}-{number}", False
            with failing(place, name, number):
                try:
                    finished = train(recipe, folder).finished
                except XciteError as error:
                    one_line(error)
            if not finished:
                assert train(recipe, folder).finished
            assert fingerprint(folder) == expected, (name, number)
            assert left_behind(folder) == [], (name, number)
            tried += 1
    print(f"{tried} failing operations")


def test_every_read_of_a_resume_fails_once(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path / "whole")
    expected = fingerprint(tmp_path / "whole")
    tried = 0
    for place, name in READS:
        number = 0
        while True:
            number += 1
            folder = tmp_path / f"{name}-{number}"
            with failing(os, "replace", 40), contextlib.suppress(XciteError):
                train(recipe, folder)
            with failing(place, name, number) as calls:
                try:
                    train(recipe, folder)
                except XciteError as error:
                    one_line(error)
            if calls[0] < number or number > 30:
                break
            assert train(recipe, folder).finished
            assert fingerprint(folder) == expected, (name, number)
            tried += 1
    print(f"{tried} failing reads")
