"""What the processes of one run decide together: none goes on where another cannot."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from xcite.data.sources import Source
from xcite.engines.interface import Engine
from xcite.errors import XciteError
from xcite.language import tr
from xcite.processes.watchdog import Watchdog
from xcite.recipe import Recipe
from xcite.training.run_folder import RunFolder, resume_command

T = TypeVar("T")


def anywhere(engine: Engine, here: bool) -> bool:
    """Whether something is so in any of the engine's processes; all of them must ask."""
    if engine.world_size == 1:
        return here
    return bool(engine.average(np.array([float(here)]))[0] > 0)


def everywhere(engine: Engine, source: Source | None, skipped: dict[str, str]) -> dict[str, str]:
    """The pictures that were skipped in any of the engine's processes; all of them must ask.

    Args:
        skipped: name to reason of those skipped here; what another process met has its own there.
    """
    if engine.world_size == 1 or source is None or not anywhere(engine, bool(skipped)):
        return skipped
    names = [source.name(index) for index in range(len(source))]
    here = np.array([name in skipped for name in names], np.float32)
    there = np.flatnonzero(engine.average(here) > 0)
    other = tr("met by another process of the run")
    return {names[index]: skipped.get(names[index], other) for index in there.tolist()}


def watched(engine: Engine, recipe: Recipe, folder: RunFolder, first_host: str) -> Watchdog:
    """A watch over the run's other processes, for a ``with``; what it says is in the log, too.

    Args:
        first_host: address of process 0's machine; "" for a single process.
    """

    def record(message: str) -> None:
        if engine.rank == 0:
            folder.write_log(message)

    return Watchdog(
        engine.rank,
        engine.world_size,
        recipe.run.process_timeout,
        first_host,
        lambda array: engine.average(array) * engine.world_size,
        advice="; the run stays as its last checkpoint left it; go on with: "
        + resume_command(folder.path),
        record=record,
    )


def together(engine: Engine, action: Callable[[], T]) -> T:
    """What ``action`` gives in this process, once it has succeeded in all of them.

    Raises:
        Exception: what it raised here; XciteError where it failed in another process only.
    """
    try:
        result = action()
    except Exception:
        anywhere(engine, True)
        raise
    if anywhere(engine, False):
        raise XciteError("another process of this run cannot go on; its message says why")
    return result
