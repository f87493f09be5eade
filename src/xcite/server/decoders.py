"""The processes that decode, as the server sees them: asked, watched, killed and replaced.

Decoders are C code on strangers' bytes, so they run in processes of their own that may be killed.
There are two kinds. Several take what is light, and one takes what is heavy, so that ordinary
pictures never wait behind pictures that take seconds. A light worker tells from the head of a
picture that it is heavy.
"""

import asyncio
import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xcite.errors import XciteError
from xcite.machine import known_signals, usable_cores
from xcite.preprocessing import Preprocessing
from xcite.server.batching import QueueFullError
from xcite.server.decoding_worker import LIGHT, Orders, receive, send
from xcite.server.limits import Limits

READY_SECONDS = 60.0  # for a process to start, on a machine that does much else
HEAVY_WAITING = 8  # heavy pictures that wait at most; more get 429
LIGHT_SECONDS = 1.0  # of processor time for a light picture
BYTES_PER_PIXEL = 32  # of memory: 16-bit grey takes most, while it is scaled to 8 bits
SPARE = 256 * 2**20  # bytes of memory besides
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    # Memory of ordinary pictures is kept for the next one: giving it back and fetching it again
    # would take half the time of decoding (glibc; up to 128 MiB a process).
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}
GRACE = 0.2  # seconds: work that nobody waits for may end by itself before it is killed


class DecodingStoppedError(Exception):
    """No process decodes: they do not start, or the server is stopping."""


@dataclass(frozen=True)
class Decoded:
    """One picture as the model will see it.

    Attributes:
        pixels: uint8 (h, w, C).
        height: of the whole picture, upright.
        width: of the whole picture, upright.
    """

    pixels: np.ndarray
    height: int
    width: int


class _Job:
    """One picture in one worker; the event loop may shorten its time while a thread waits."""

    def __init__(self, data: bytes, seconds: float) -> None:
        self.data = data
        self.deadline = 0.0
        self.given_up = False
        self._seconds = seconds

    def begin(self) -> None:
        self.deadline = time.monotonic() + (GRACE if self.given_up else self._seconds)

    def give_up(self) -> None:
        self.given_up = True
        self.deadline = min(self.deadline, time.monotonic() + GRACE)


class _TooSlowError(XciteError):
    """The time for a picture was over."""


class _Worker:
    """One process; started when first needed."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False

    def start(self) -> None:
        """Begin to start; again after the process has ended."""
        if self._process is not None and self._process.poll() is None:
            return
        self.stop()
        ours, theirs = socket.socketpair()
        secrets = {"XCITE_TOKEN"}  # a decoder that a picture takes over need not know them
        known = {name: text for name, text in os.environ.items() if name not in secrets}
        with theirs:
            # as this process finds its modules, also where it was told so after it started
            path = os.pathsep.join(folder for folder in sys.path if folder)
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "xcite.server.decoding_worker"),
                    *(str(theirs.fileno()), self._orders.text()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=known | ENVIRONMENT | {"PYTHONPATH": path},
            )
        self._channel = ours
        self._ready = False

    def wait_until_ready(self) -> None:
        """Wait for the first sign of life.

        Raises:
            DecodingStoppedError: the process does not start.
        """
        try:
            self.start()
            if not self._ready:
                self._channel.settimeout(READY_SECONDS)
                receive(self._channel)
                self._ready = True
        except (OSError, EOFError) as error:
            self.stop()
            raise DecodingStoppedError("the decoding processes do not start") from error

    def ask(self, job: _Job) -> bytearray:
        """One picture to the worker's message.

        Raises:
            TimeoutError: the job took too long, or was given up; the process is killed.
            EOFError, OSError: the process has ended.
        """
        job.begin()
        try:
            self._channel.settimeout(max(job.deadline - time.monotonic(), GRACE))
            send(self._channel, job.data)
            self._channel.settimeout(0.05)
            while True:
                try:
                    start = self._channel.recv(1, socket.MSG_PEEK)
                    break
                except TimeoutError:
                    if time.monotonic() > job.deadline:
                        raise
            if not start:
                raise EOFError
            self._channel.settimeout(READY_SECONDS)
            return receive(self._channel)
        except TimeoutError:
            self.stop()
            raise

    def out_of_time(self) -> bool:
        """Whether the kernel ended the process because its processor time was used up."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(5) in [-number for number in known_signals("SIGPROF")]
        return False

    @property
    def pid(self) -> int | None:
        """Number of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    def kill(self) -> None:
        """End the process, from any thread; who waits for its answer gets an EOFError."""
        if (process := self._process) is not None:
            process.kill()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._channel.close()
            self._process = None


class _Lane:
    """Workers of one kind, each asked by one thread at a time."""

    def __init__(self, orders: Orders, workers: int, name: str) -> None:
        self.workers = [_Worker(orders) for _ in range(workers)]
        self._seconds = orders.seconds
        self._too_slow = f"\0: decoding takes longer than the {orders.seconds:g} s allowed"
        # the one that was asked last first: its memory is warm
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self.workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=f"xcite-decode-{name}")
        self.closed = False

    async def answer(self, data: bytes) -> bytearray:
        """One picture to a worker's message; given up when the caller is cancelled.

        Raises:
            XciteError: it takes too long, or ends the process that decodes it.
            DecodingStoppedError: no process decodes.
        """
        if self.closed:
            raise DecodingStoppedError("the server is stopping")
        # wall-clock seconds are not the picture's fault alone, so they are more
        job = _Job(data, 3 * self._seconds + 2)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._answer, job
            )
        finally:
            job.give_up()

    def _answer(self, job: _Job) -> bytearray:
        worker = self._idle.get()
        try:
            for _ in range(2):  # a process may also end for reasons of the machine
                if self.closed:
                    raise DecodingStoppedError("the server is stopping")
                worker.wait_until_ready()
                try:
                    return worker.ask(job)
                except TimeoutError:
                    raise
                except (OSError, EOFError):
                    if worker.out_of_time():
                        raise _TooSlowError(self._too_slow) from None
            raise XciteError("\0: the picture is damaged (decoding it ends in a crash)")
        except TimeoutError:
            raise _TooSlowError(self._too_slow) from None
        finally:
            with contextlib.suppress(OSError):
                if not self.closed:
                    worker.start()
            self._idle.put(worker)

    def close(self) -> None:
        """End everything at once; nobody may wait for an answer any more."""
        self.closed = True
        for worker in self.workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self.workers:
            worker.stop()


class Decoders:
    """Encoded pictures to the model's input, in processes of their own."""

    def __init__(
        self, preprocessing: Preprocessing, size: tuple[int, int] | None, limits: Limits
    ) -> None:
        """``size`` is the height and width of the model's input, see `BundleInfo.size`."""
        heavy = Orders(
            preprocessing=preprocessing.model_dump(),
            size=size,
            heavy=True,
            max_pixels=limits.max_pixels,
            seconds=limits.decode_seconds,
            memory=SPARE + BYTES_PER_PIXEL * limits.max_pixels,
        )
        light = replace(
            heavy,
            heavy=False,
            seconds=min(LIGHT_SECONDS, limits.decode_seconds),
            memory=SPARE + BYTES_PER_PIXEL * min(LIGHT, limits.max_pixels),
        )
        workers = limits.decoders or min(max(2, usable_cores()), 8)
        self._light = _Lane(light, workers, "light")
        self._heavy = _Lane(heavy, 1, "heavy")
        self._heavy_waiting = 0

    def start(self) -> None:
        """Start every process and wait until they are ready.

        Raises:
            DecodingStoppedError: they do not start.
        """
        workers = [*self._light.workers, *self._heavy.workers]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait_until_ready()

    async def decode(self, data: bytes, spend: Callable[[int], None]) -> Decoded:
        """Decode, resize and crop one picture.

        Args:
            spend: told the pixels of the picture, of a heavy one before it is decoded; may raise.

        Raises:
            XciteError: not a picture, or one beyond the limits; "\0" stands for its name.
            QueueFullError: it is heavy, and enough heavy ones wait.
            DecodingStoppedError: no process decodes.
        """
        try:
            told, pixels = _parts(await self._light.answer(data))
        except _TooSlowError:  # not as light as it seemed, or a slow machine
            told = {"heavy": 0}
        if "heavy" in told:
            spend(told["heavy"])
            if self._heavy_waiting > HEAVY_WAITING:
                raise QueueFullError(5)
            self._heavy_waiting += 1
            try:
                told, pixels = _parts(await self._heavy.answer(data))
            finally:
                self._heavy_waiting -= 1
        elif "seen" in told:
            spend(told["height"] * told["width"])
        if "error" in told:
            raise XciteError(told["error"])
        array = np.frombuffer(pixels, np.uint8).reshape(told["seen"])
        return Decoded(array, told["height"], told["width"])

    def pids(self) -> list[int]:
        """Numbers of the processes that there are."""
        workers = [*self._light.workers, *self._heavy.workers]
        return [worker.pid for worker in workers if worker.pid is not None]

    def close(self) -> None:
        """End every process."""
        self._light.close()
        self._heavy.close()


def _parts(message: bytearray) -> tuple[dict[str, Any], memoryview]:
    end = message.index(b"\n")
    told: dict[str, Any] = json.loads(bytes(message[:end]))
    return told, memoryview(message)[end + 1 :]
