"""Several serving processes on one socket: started, watched, replaced and stopped.

All of them accept from the same queue of the kernel, so what a dead one had not accepted yet is
answered by the others. They form sessions of their own: Ctrl-C reaches only the process that
watches, which stops them in order.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from xcite.control_characters import visible
from xcite.errors import XciteError
from xcite.machine import usable_cores
from xcite.server.connections import STOP_SECONDS, refuse_new_connections
from xcite.server.decoding_worker import receive, send
from xcite.server.serving import Settings
from xcite.server.signs import HUNG, Signs

START_SECONDS = 300.0  # for a worker to load its bundle, on a machine that does much else
LOOK_SECONDS = 0.2  # between two looks at the workers
LONGEST_PAUSE = 30.0  # seconds before a worker that keeps ending is started again
LASTING = 60.0  # seconds after which a worker's end is not one of a row any more


class _Worker:
    """One process and its history."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.ready = False
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None
        self.started = 0.0
        self.ends = 0  # in a row
        self.again = 0.0  # when it may be started

    def start(self, listener: socket.socket, folder: str, count: int, settings: Settings) -> None:
        ours, theirs = socket.socketpair()
        path = os.pathsep.join(part for part in sys.path if part)
        known = {name: text for name, text in os.environ.items() if name != "XCITE_TOKEN"}
        numbers = [theirs.fileno(), listener.fileno()]
        with theirs:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "xcite.server.worker", *map(str, numbers)),
                    *(folder, str(self.number), str(count)),
                ],
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                env=known | {"PYTHONPATH": path},
                start_new_session=True,
            )
        self.channel, self.ready, self.started = ours, False, time.monotonic()
        with contextlib.suppress(OSError):  # it has ended at once, which is noticed later
            send(ours, settings.text().encode())

    def message(self) -> dict[str, int | str] | None:
        """What it has said about its start, without waiting for it.

        Raises:
            EOFError, OSError: it has ended.
        """
        assert self.channel is not None
        self.channel.settimeout(0)
        try:
            if not self.channel.recv(1, socket.MSG_PEEK):
                raise EOFError
        except BlockingIOError:
            return None
        self.channel.settimeout(10)
        told: dict[str, int | str] = json.loads(receive(self.channel))
        return told

    def ended(self) -> str | None:
        """How the process has ended, in words; None while it runs."""
        assert self.process is not None
        if (code := self.process.poll()) is None:
            return None
        if code >= 0:
            return f"ended with status {code}"
        known = -code in signal.valid_signals()
        return f"was ended by {signal.Signals(-code).name if known else f'signal {-code}'}"

    def kill(self) -> None:
        """End it with its decoders."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.channel is not None:
            self.channel.close()


class Workers:
    """The workers of one server.

    Args:
        listener: bound and listening; each worker gets it.
        settings: of the whole server; cores and decoders are divided among the workers, all other
            limits are each worker's own.
    """

    def __init__(self, settings: Settings, listener: socket.socket, count: int) -> None:
        cores = usable_cores()
        decoders = settings.limits.decoders or max(1, min(max(2, cores), 8) // count)
        self._settings = replace(
            settings,
            threads=max(1, cores // count),
            limits=replace(settings.limits, decoders=decoders),
        )
        self._listener = listener
        self._workers = [_Worker(number) for number in range(count)]
        self._woken = threading.Event()
        self._signals = 0

    def run(self, announce: Callable[[list[int]], None]) -> None:
        """Serve until SIGTERM or SIGINT; a second one ends everything at once.

        Args:
            announce: told once, when all workers are ready, the bytes of memory of each.

        Raises:
            XciteError: the workers do not start.
        """
        self._folder = _shared_folder()
        self._signs = Signs(Path(self._folder) / "signs", len(self._workers))

        def signalled(*_: object) -> None:
            self._signals += 1
            self._woken.set()

        numbers = (signal.SIGTERM, signal.SIGINT)
        previous = {number: signal.signal(number, signalled) for number in numbers}
        try:
            for worker in self._workers:
                self._start(worker)
            memory = self._wait_until_ready()
            if not self._signals:
                announce(memory)
            while not self._signals:
                for worker in self._workers:
                    self._look(worker)
                self._woken.wait(LOOK_SECONDS)
            self._stop()
        finally:
            for worker in self._workers:
                worker.kill()
            for number, handler in previous.items():
                signal.signal(number, handler)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, worker: _Worker) -> None:
        worker.start(self._listener, self._folder, len(self._workers), self._settings)

    def _wait_until_ready(self) -> list[int]:
        """The memory of each worker in bytes; less of them when a signal comes first."""
        memory = []
        for worker in self._workers:
            while not self._signals:
                try:
                    told = worker.message()
                except (EOFError, OSError) as error:
                    assert worker.process is not None
                    worker.process.wait(10)
                    words = f"a worker {worker.ended()} while it started"
                    raise XciteError(words) from error
                if told is not None:
                    if "error" in told:
                        raise XciteError(str(told["error"]))
                    memory.append(int(told["memory"]))
                    worker.ready = True
                    break
                if time.monotonic() - worker.started > START_SECONDS:
                    raise XciteError(f"a worker was not ready within {START_SECONDS:.0f} s")
                self._woken.wait(0.05)
        return memory

    def _look(self, worker: _Worker) -> None:
        """Note that a worker is ready, end it when it hangs, start it again when it has ended."""
        now = time.monotonic()
        if worker.again:
            if now >= worker.again:
                self._start_again(worker)
            return
        words = worker.ended()
        if words is None:
            if not worker.ready:
                with contextlib.suppress(EOFError, OSError):
                    told = worker.message()
                    worker.ready = told is not None and "memory" in told
                    if told and "error" in told:
                        _tell(f"worker {worker.number + 1}: {told['error']}")
            silence = self._signs.silence(worker.number) if worker.ready else now - worker.started
            if silence <= (HUNG if worker.ready else START_SECONDS):
                return
            words = f"answered nothing for {silence:.0f} s"
        worker.kill()
        worker.ends = 1 if now - worker.started > LASTING else worker.ends + 1
        pause = 0.0 if worker.ends == 1 else min(2.0 ** (worker.ends - 2), LONGEST_PAUSE)
        worker.again = now + pause
        _tell(f"worker {worker.number + 1} {words}; another is started in {pause:g} s")

    def _start_again(self, worker: _Worker) -> None:
        try:
            self._start(worker)
            worker.again = 0.0
        except OSError as error:  # too many processes, or no memory for one more
            worker.again = time.monotonic() + LONGEST_PAUSE
            _tell(f"worker {worker.number + 1} cannot be started: {error.strerror or error}")

    def _stop(self) -> None:
        """Have every request that was sent answered, within `STOP_SECONDS`."""
        end = time.monotonic() + STOP_SECONDS - 0.5
        refuse_new_connections(self._listener)
        running = [one.process for one in self._workers if one.process and not one.ended()]
        for process in running:
            process.send_signal(signal.SIGTERM)
        while self._signals < 2 and time.monotonic() < end:
            if all(process.poll() is not None for process in running):
                return
            time.sleep(0.02)


def _shared_folder() -> str:
    """A new folder for what the workers share, in memory where there is such a place."""
    for place in ("/dev/shm", None):
        with contextlib.suppress(OSError):
            return tempfile.mkdtemp(prefix="xcite-serve-", dir=place)
    raise XciteError(
        "several workers need a folder to count in, and neither /dev/shm nor a temporary folder "
        "can be written; give one (docker: --tmpfs /tmp), or serve with --workers 1"
    )


def _tell(words: str) -> None:
    print(f"xcite: {visible(words)}", file=sys.stderr, flush=True)
