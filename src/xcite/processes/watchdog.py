"""Ends a process that waits for another one in vain, even in the middle of compiled code.

Every process has a thread. That of process 0 keeps a line to each of the others, on which they
tell every few seconds that they live, and whether they are busy with something that the rest must
wait for. So three things are told apart: a process that is silent (stopped, or cut off), one that
has ended, and all of them being there without getting on.
"""

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from xcite.processes.line import end_now

# Before the first step ends, compiling and first reading may take so many times as long.
BEFORE_THE_FIRST_STEP = 3
# Seconds from the end of a process to the end of those that are still stuck waiting for it.
AFTER_AN_END = 30.0
_MOST_BYTES = 1 << 16


@dataclass
class _Peer:
    """The other end of a line, as last heard."""

    rank: int
    heard: float
    busy: bool = False
    ended: float | None = None  # when its line broke
    received: bytes = b""


class Watchdog:
    """Watches the processes of a run from within one of them; nothing to do for a single one.

    Args:
        seconds: that a process may be silent, or all of them get on with nothing.
        address: of process 0's machine.
        sum_over_all: the sum of an array over all processes; all of them call it here.
        advice: what ends the message, such as how to go on.
        record: takes the message before the process ends.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        seconds: float,
        address: str,
        sum_over_all: Callable[[np.ndarray], np.ndarray],
        *,
        advice: str,
        record: Callable[[str], None],
    ) -> None:
        self._rank, self._size, self._seconds = rank, size, seconds
        self._advice, self._record = advice, record
        self._interval = min(5.0, seconds / 6)
        self._moved = time.monotonic()
        self._steps = 0
        self._busy = 0
        self._closing = threading.Event()
        self._peers: dict[socket.socket, _Peer] = {}
        self._thread: threading.Thread | None = None
        if size == 1:
            return
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        if rank == 0:
            self._listener = socket.create_server(("", 0), backlog=size)
            self._selector.register(self._listener, selectors.EVENT_READ)
        self._token = self._meet(address, sum_over_all)
        self._thread = threading.Thread(target=self._watch, daemon=True, name="xcite watchdog")
        self._thread.start()

    def progress(self) -> None:
        """A step or a batch of an evaluation is done."""
        self._moved = time.monotonic()
        self._steps += 1

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Work of this process alone, however long, for which the others wait."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._moved = time.monotonic()

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop watching; the others learn whether this process ends in order."""
        self._closing.set()
        if self._thread is None:
            return
        self._thread.join(timeout=2 * self._interval)
        if kind is None:
            self._tell({"bye": True})
        for connection in self._peers:
            connection.close()
        if self._listener is not None:
            self._listener.close()

    def _meet(self, address: str, sum_over_all: Callable[[np.ndarray], np.ndarray]) -> int:
        """Open the lines: process 0 tells its port and a secret through the run's own exchange."""
        secret = int.from_bytes(np.random.default_rng().bytes(6), "big") if self._rank == 0 else 0
        port = self._listener.getsockname()[1] if self._listener else 0
        told = sum_over_all(np.array([port, secret], np.float64))
        port, secret = round(told[0]), round(told[1])
        if self._rank:
            with contextlib.suppress(OSError):
                connection = socket.create_connection((address, port), timeout=self._seconds)
                self._add(connection, 0)
                self._tell({"rank": self._rank, "secret": secret})
        return secret

    def _add(self, connection: socket.socket, rank: int) -> None:
        connection.setblocking(False)
        self._peers[connection] = _Peer(rank, time.monotonic())
        self._selector.register(connection, selectors.EVENT_READ)

    def _watch(self) -> None:
        looked = time.monotonic()
        said = 0.0
        while not self._closing.is_set():
            for key, _ in self._selector.select(min(0.5, self._interval)):
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    self._add(connection, -1)
                else:
                    self._hear(key.fileobj)  # type: ignore[arg-type]
            now = time.monotonic()
            if now - looked > 2 * self._interval:  # this process itself was stopped
                self._moved += now - looked
                for peer in self._peers.values():
                    peer.heard += now - looked
            looked = now
            if now - said >= self._interval:
                said = now
                self._tell({"busy": self._anybody_busy()})
            if message := self._problem(now):
                self._bark(message)

    def _anybody_busy(self) -> bool:
        return bool(self._busy) or (
            self._rank == 0 and any(peer.busy for peer in self._peers.values())
        )

    def _problem(self, now: float) -> str | None:
        """What is wrong, if anything is."""
        for peer in self._peers.values():
            if peer.rank < 0:
                continue
            name = f"process {peer.rank} of {self._size}"
            if peer.ended is not None and now - peer.ended > min(AFTER_AN_END, self._seconds):
                return f"{name} has ended, and this one waits for it in vain"
            if peer.ended is None and now - peer.heard > self._seconds:
                return (
                    f"{name} has not been heard of for {self._seconds:g} seconds "
                    "(run.process_timeout): it is stopped, or its machine or the network between "
                    "is down"
                )
        if self._busy or any(peer.busy for peer in self._peers.values()):
            self._moved = now
        limit = self._seconds * (1 if self._steps else BEFORE_THE_FIRST_STEP)
        if now - self._moved > limit + 2 * self._interval:
            return (
                f"no step has ended for {limit:g} seconds (run.process_timeout), though all "
                "processes live; set run.process_timeout higher if a step takes that long"
            )
        return None

    def _bark(self, what: str) -> None:
        message = f"{what}{self._advice}"
        self._tell({"end": what})
        with contextlib.suppress(Exception):
            self._record(message)
        end_now(message)

    def _tell(self, row: dict[str, object]) -> None:
        line = json.dumps(row).encode() + b"\n"
        for connection, peer in list(self._peers.items()):
            if peer.ended is None:
                with contextlib.suppress(BlockingIOError, OSError):
                    connection.send(line)

    def _hear(self, connection: socket.socket) -> None:
        peer = self._peers[connection]
        try:
            got = connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            got = b""
        if not got:
            peer.ended = time.monotonic()
            self._selector.unregister(connection)
            return
        *lines, peer.received = (peer.received + got).split(b"\n")
        for line in lines:
            try:
                row = json.loads(line)
                assert isinstance(row, dict)
            except (ValueError, AssertionError):
                self._drop(connection)
                return
            if peer.rank < 0:
                if row.get("secret") != self._token:
                    self._drop(connection)
                    return
                peer.rank = int(row["rank"])
            peer.heard = time.monotonic()
            peer.busy = bool(row.get("busy"))
            if row.get("bye"):
                self._drop(connection)
                return
            if isinstance(row.get("end"), str):
                self._bark(row["end"])
        if len(peer.received) > _MOST_BYTES:
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        """Hear no more of one that said good-bye, or does not belong here."""
        self._selector.unregister(connection)
        connection.close()
        del self._peers[connection]
