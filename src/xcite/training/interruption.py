"""Signals that ask a run to stop, obeyed between two steps.

Beside Ctrl-C and SIGTERM these are a closed terminal and what batch systems send before they
requeue a job (SLURM's ``--signal``).
"""

import signal
import threading
from types import FrameType

from xcite.engines.interface import Engine
from xcite.machine import known_signals
from xcite.training.together import anywhere

SIGNALS = known_signals("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class StopRequest:
    """A signal is noted and obeyed at the next step boundary; a second Ctrl-C at once.

    Any other second signal changes nothing: batch systems send several while a run is saving.
    A hang-up that the caller ignores (``nohup``) stays ignored.

    Attributes:
        signal: the signal that this process got; None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        # Only the main thread may set handlers; elsewhere the caller's own are in charge.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def anywhere(self, engine: Engine) -> bool:
        """Whether any of the engine's processes got a signal: all stop after the same step."""
        return anywhere(engine, self.signal is not None)


class Stopped(Exception):
    """Leaves an evaluation in its middle; its epoch is evaluated again after resuming."""
