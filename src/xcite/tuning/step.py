"""The time of a piece of work on this machine, with any choices."""

import time
from dataclasses import replace

from xcite.choices import Choices
from xcite.engines import create_engine
from xcite.evaluation.throughput import work_of
from xcite.families import Architecture, XCiTArchitecture
from xcite.tuning.knobs import Work

# Blocks that are timed: all are alike, and a few show what whole ones do to each other's caches.
BLOCKS = 3


def shortened(architecture: Architecture) -> Architecture:
    """The same with `BLOCKS` XCA blocks at most."""
    if isinstance(architecture, XCiTArchitecture):
        return replace(architecture, depth=min(architecture.depth, BLOCKS))
    return architecture


class Timed:
    """Calls are seconds of one training step or forward pass of random pictures.

    Args:
        whole: with all blocks of the model.

    Raises:
        XciteError: the engine is missing, or has no such precision here.
    """

    def __init__(self, work: Work, *, whole: bool = False) -> None:
        architecture = work.architecture if whole else shortened(work.architecture)
        self._engine = create_engine(
            work.engine, architecture, precision=work.precision, attention=work.attention
        )
        self._run = work_of(
            self._engine,
            architecture,
            batch=work.batch,
            height=work.height,
            width=work.width,
            train=work.kind == "train",
        )
        self._run()

    @property
    def choices(self) -> Choices:
        """Those of the engine now; at first the default of this processor."""
        return self._engine.choices

    def __call__(self, choices: Choices) -> float:
        if choices != self.choices:
            self._engine.choose(choices)
            self._run()  # what is built at the first call is no part of the time
        start = time.perf_counter()
        self._run()
        return time.perf_counter() - start
