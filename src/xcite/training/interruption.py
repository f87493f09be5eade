"""Ctrl-C and SIGTERM, obeyed between two steps."""

import signal
import threading
from types import FrameType

import numpy as np

from xcite.engines.interface import Engine


class StopRequest:
    """Ctrl-C or SIGTERM: noted, and obeyed at the next step boundary; a second one at once.

    Attributes:
        signal: the signal that this process got; None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        # Only the main thread may set handlers; elsewhere the caller's own are in charge.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def anywhere(self, engine: Engine) -> bool:
        """Whether any of the engine's processes got a signal; all of them must ask together."""
        asked = self.signal is not None
        if engine.world_size > 1:
            # All processes stop after the same step, whichever of them got the signal.
            asked = bool(engine.average(np.array([float(asked)]))[0] > 0)
        return asked


class Stopped(Exception):
    """Leaves an evaluation in its middle; its epoch is evaluated again after resuming."""
