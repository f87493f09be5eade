"""What the processes of one run decide together: none goes on where another cannot."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from xcite.engines.interface import Engine
from xcite.errors import XciteError

T = TypeVar("T")


def anywhere(engine: Engine, here: bool) -> bool:
    """Whether something is so in any of the engine's processes; all of them must ask."""
    if engine.world_size == 1:
        return here
    return bool(engine.average(np.array([float(here)]))[0] > 0)


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
