"""Connections: how many there may be, how long they may be silent, and how the last are answered.

uvicorn limits the time between requests on a connection, but neither the time for a request's head
nor the number of silent connections. Its graceful stop closes connections whose request has arrived
but was not read yet. `LimitedServer` adds what is missing, from outside its protocols.
"""

import asyncio
import contextlib
import ctypes
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, cast

import uvicorn

from xcite.machine import set_timer
from xcite.server.limits import Limits

STOP_SECONDS = 10  # from the signal to the end, whatever is running
ANSWER_SECONDS = 6  # of these for requests that were accepted
SETTLE_SECONDS = 0.5  # of these for requests that are on their way
SWEEP_SECONDS = 0.5


@dataclass
class _Stage:
    """What a connection has been doing, and since when."""

    cycle: Any
    waiting: bool
    since: float


class LimitedServer(uvicorn.Server):
    """uvicorn's server with limits on connections and an end within `STOP_SECONDS`.

    Args:
        stop_work: called when the server stops, with the seconds that requests have left.
    """

    def __init__(
        self, config: uvicorn.Config, limits: Limits, stop_work: Callable[[float], None]
    ) -> None:
        super().__init__(config)
        self._limits = limits
        self._stop_work = stop_work
        self._stages: dict[Any, _Stage] = {}
        self._swept = 0.0

    @property
    def _connections(self) -> set[Any]:
        return cast("set[Any]", self.server_state.connections)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; the kernel ends the process if that takes too long."""
        stop_in_time()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Watch every connection from its first moment."""
        usual, arrived = self.config.http_protocol_class, self._arrived

        class Watched(usual):  # type: ignore[misc, valid-type]
            def connection_made(self, transport: asyncio.Transport) -> None:
                super().connection_made(transport)
                arrived(self)

        self.config.http_protocol_class = Watched
        await super().startup(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Close what has been silent for too long."""
        if time.monotonic() - self._swept > SWEEP_SECONDS:
            self._sweep()
        return await super().on_tick(counter)

    def _arrived(self, connection: Any) -> None:
        self._stages[connection] = _Stage(None, True, time.monotonic())
        if len(self._stages) > self._limits.connections:
            # of those not closed yet: there is always one, the new connection
            oldest = min(filter(_waits, self._stages), key=lambda one: self._stages[one].since)
            self._close(oldest)

    def _close(self, connection: Any) -> None:
        """Close without waiting for what cannot be sent."""
        del self._stages[connection]
        connection.transport.abort()

    def _sweep(self) -> None:
        now = self._swept = time.monotonic()
        connections = self._connections
        self._stages = {one: stage for one, stage in self._stages.items() if one in connections}
        for one, stage in list(self._stages.items()):
            cycle, waiting = one.cycle, _waits(one)
            if stage.cycle is not cycle or stage.waiting != waiting:
                self._stages[one] = _Stage(cycle, waiting, now)
                continue
            # A body and an answer have the time of the request; a client that does not fetch its
            # answer has a little more.
            under_way = cycle is not None and not cycle.response_complete
            most = self._limits.timeout + 10 if under_way else self._limits.silence
            if now - stage.since > most:
                self._close(one)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connection, answer every request that was sent on the others, then end."""
        self._stop_work(ANSWER_SECONDS)
        for listener in sockets or []:
            refuse_new_connections(listener)
        end = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < end:
            await asyncio.sleep(0.02)
            for one in list(self._connections):
                if one.cycle is not None and not one.cycle.response_complete:
                    one.shutdown()  # close behind this answer
        for one in list(self._connections):
            if one.cycle is None or one.cycle.response_complete:
                one.transport.close()
        await asyncio.sleep(0)
        await super().shutdown(sockets)


def _waits(connection: Any) -> bool:
    """Whether it is the client's turn: for a request's head or body."""
    cycle = connection.cycle
    return cycle is None or cycle.response_complete or cycle.more_body


def stop_in_time() -> None:
    """Have the kernel end this process in `STOP_SECONDS`, if it does not end before."""
    if hasattr(signal, "getitimer") and signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        set_timer("ITIMER_REAL", STOP_SECONDS)


def refuse_new_connections(listener: socket.socket) -> None:
    """Let no new connection begin, while those that have begun may still be accepted.

    Closing a listener resets connections that wait to be accepted, with requests that were sent on
    them. A packet filter that drops SYN (Linux; it needs no rights) ends new ones before that.
    """
    if not sys.platform.startswith("linux"):
        return
    # flags of the TCP header; SYN without ACK is dropped, all else passes
    program = [(0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (6, 0, 0, 0)]
    program.append((6, 0, 0, 0xFFFFFFFF))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    attach = getattr(socket, "SO_ATTACH_FILTER", 26)
    with contextlib.suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, attach, struct.pack("HP", len(program), ctypes.addressof(code))
        )
