"""Signs of life of the workers of one server, in a file that all of them map."""

import mmap
import time
from pathlib import Path

INTERVAL = 10.0  # seconds between a worker's proofs
LATE = 30.0  # seconds without a proof after which /health says so; a restart takes less
HUNG = 60.0  # seconds without a proof after which a worker is ended and replaced

_BYTES = 8  # of one double


class Signs:
    """When each worker last proved that it answers pictures.

    Args:
        path: a file; made with room for ``count`` workers where it is not there.
    """

    def __init__(self, path: Path, count: int) -> None:
        if not path.exists():
            path.write_bytes(bytes(_BYTES * count))
        with path.open("r+b") as file:
            self._times = memoryview(mmap.mmap(file.fileno(), _BYTES * count)).cast("d")

    def give(self, worker: int) -> None:
        """The worker has just proved that it answers."""
        self._times[worker] = time.monotonic()  # one clock for all processes of a machine

    def silence(self, worker: int) -> float:
        """Seconds since the worker's last proof."""
        return time.monotonic() - self._times[worker]

    def trouble(self) -> str | None:
        """Which worker is late, in words; None while none is."""
        for worker in range(len(self._times)):
            if (seconds := self.silence(worker)) > LATE:
                count = len(self._times)
                return f"worker {worker + 1} of {count} has answered nothing for {seconds:.0f} s"
        return None
