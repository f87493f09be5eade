"""The process that decodes strangers' pictures, one at a time, within limits the kernel keeps.

    python -m xcite.server.decoding_worker SOCKET ORDERS

It hears encoded pictures on a socket and answers each with one message: a line of JSON, and behind
it the pixels of the model's input. It ends when the other side of the socket is closed. Nothing
that it answers is ever executed by the server, so a decoder that a picture takes over gains little.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xcite.data.decoding import decode
from xcite.data.formats import dimensions
from xcite.data.jpeg_scans import jpeg_scans
from xcite.errors import XciteError
from xcite.machine import known_signals, resource, set_timer
from xcite.preprocessing import Preprocessing
from xcite.runtime.predictor import input_pixels

LIGHT = 16_000_000  # pixels times scans: a worker for light pictures takes no more
_SLOW = {"JPEG2000": 4, "JXL": 4, "AVIF": 2, "HEIF": 2}  # times a PNG's seconds for a pixel


@dataclass(frozen=True)
class Orders:
    """What a worker does and how far it may go.

    Attributes:
        preprocessing: fields of `Preprocessing`.
        size: height and width of the model's input; None for the square of the preprocessing.
        heavy: take pictures of any permitted cost, with low priority.
        max_pixels: of one picture.
        seconds: processor time for one picture.
        memory: bytes of address space besides what the program itself takes.
    """

    preprocessing: dict[str, Any]
    size: tuple[int, int] | None
    heavy: bool
    max_pixels: int
    seconds: float
    memory: int

    def text(self) -> str:
        return json.dumps(asdict(self))


def send(channel: socket.socket, message: bytes) -> None:
    """Send one message, its length before it."""
    channel.sendall(struct.pack(">Q", len(message)))
    channel.sendall(message)


def receive(channel: socket.socket) -> bytearray:
    """Receive one message.

    Raises:
        EOFError: the other side is gone.
    """
    (length,) = struct.unpack(">Q", _exactly(channel, 8))
    return _exactly(channel, length)


def _exactly(channel: socket.socket, length: int) -> bytearray:
    message = bytearray(length)
    rest = memoryview(message)
    while rest:
        try:
            done = channel.recv_into(rest)
        except ConnectionResetError as error:  # what we sent last was not read
            raise EOFError from error
        if not done:
            raise EOFError
        rest = rest[done:]
    return message


class _Decoding:
    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._preprocessing = Preprocessing.model_validate(orders.preprocessing)

    def answer(self, data: bytes) -> bytes:
        """One picture to one message."""
        told: dict[str, Any]
        pixels = b""
        try:
            told = self._cost(data)
            if not told:
                channels = self._preprocessing.channels
                picture = decode(
                    data, channels=channels, max_pixels=self._orders.max_pixels, origin="\0"
                )
                seen = input_pixels(picture, self._preprocessing, self._orders.size)
                told = {"height": picture.shape[0], "width": picture.shape[1], "seen": seen.shape}
                pixels = seen.tobytes()
        except (XciteError, MemoryError) as error:
            told = {"error": str(error) or "\0: not enough memory to decode it"}
        return json.dumps(told).encode() + b"\n" + pixels

    def _cost(self, data: bytes) -> dict[str, Any]:
        """Why the picture is not decoded here; nothing when it is.

        Only its head is read.
        """
        orders = self._orders
        try:
            width, height, kind = dimensions(data, orders.max_pixels)
        except Exception:  # `decode` says what is wrong with it
            return {}
        pixels = width * height
        scans = jpeg_scans(data) if kind in ("JPEG", "MPO") else 1
        cost = pixels * scans * _SLOW.get(kind or "", 1)
        if pixels <= orders.max_pixels and cost > LIGHT and not orders.heavy:
            return {"heavy": pixels}
        return {}


def _limit_memory(more: int) -> None:
    """Limit this process's address space to what it has now and ``more`` bytes (Linux)."""
    if resource is None:
        return
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Decode until the server closes its side."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    orders = Orders(**json.loads(sys.argv[2]))
    # A signal to the whole group must not take the decoder away from requests still to be answered.
    for number in known_signals("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(number, signal.SIG_IGN)
    if orders.heavy and hasattr(os, "nice"):
        os.nice(10)
    decoding = _Decoding(orders)
    decoding.answer(b"")  # imports the decoders
    _limit_memory(orders.memory)
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        send(channel, b"ready")
        while True:
            data = bytes(receive(channel))
            # The kernel ends this process when the time is up, whatever a decoder is doing.
            set_timer("ITIMER_PROF", orders.seconds)
            message = decoding.answer(data)
            set_timer("ITIMER_PROF", 0)
            send(channel, message)
    except (EOFError, OSError):
        pass


if __name__ == "__main__":
    main()
