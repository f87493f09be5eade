"""The line between `xcite train --processes` and each process that it has had started.

A socket in a private folder. The process says who it is; the first of all gets the terminal in
return, so that it prints as a single process would. At its end it says how it ended. When the line
breaks, its supervisor is dead, and the process stops, saved.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

VARIABLE = "XCITE_LINE"  # names the folder with the socket
SOCKET = "line"
ENDS = "ends.json"  # rank to exit code, by `engines/*/launcher.py`
# Seconds from a request to stop to the end by force: time to save a large model.
GRACE = 60.0
# A process that failed stays so long, for the others to say what they met: it may be the same.
PATIENCE = 10.0


@dataclass(frozen=True)
class Hello:
    """Who calls."""

    rank: int
    size: int
    pid: int
    host: str


@dataclass(frozen=True)
class End:
    """How a process ended.

    Attributes:
        code: exit code of the same command in a single process.
        message: of an error, in one line.
        lost: whether it ended because another process was gone.
    """

    code: int
    message: str = ""
    lost: bool = False


class Line:
    """The end of the line in the process that trains."""

    def __init__(self, connection: socket.socket, folder: Path) -> None:
        self._connection = connection
        self._folder = folder
        self._said = threading.Lock()
        self._ended = False
        self._released = threading.Event()

    @classmethod
    def open(cls, rank: int, size: int) -> "Line":
        """Call the supervisor, take over its terminal as the first process, hide as another.

        Raises:
            OSError: there is no supervisor any more.
        """
        folder = Path(os.environ[VARIABLE])
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(folder / SOCKET))
        hello = Hello(rank, size, os.getpid(), socket.gethostname())
        connection.sendall(json.dumps(asdict(hello)).encode() + b"\n")
        _, handles, _, _ = socket.recv_fds(connection, 1, 2)
        sys.stdout.flush()
        sys.stderr.flush()
        if not handles:
            hidden = os.open(_log(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            handles = [hidden, os.dup(hidden)]
        for standard, handle in zip((1, 2), handles, strict=True):
            os.dup2(handle, standard)
            os.close(handle)
        sys.stdout, sys.stderr = _written(1, sys.stdout), _written(2, sys.stderr)
        line = cls(connection, folder)
        threading.Thread(target=line._listen, daemon=True, name="xcite line").start()
        return line

    def ended(self, end: End) -> None:
        """Say how this process ends, once; waits a moment after a failure."""
        with self._said:
            if self._ended:
                return
            self._ended = True
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(asdict(end)).encode() + b"\n")
            if end.code not in (0, 130):
                self._released.wait(PATIENCE)

    def _listen(self) -> None:
        """Stop when the supervisor is gone; go on to the end when it has heard everybody."""
        with contextlib.suppress(OSError):
            if self._connection.recv(1):
                self._released.set()
                return
        if self._ended:
            self._released.set()
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(GRACE)
        os._exit(2)


def _written(handle: int, before: TextIO) -> TextIO:
    """A stream on what a handle leads to now; the one before may take a terminal for a file."""
    lines = handle == 2 or os.isatty(handle)
    return open(  # it stays open to the end
        handle,
        "w",
        buffering=1 if lines else -1,
        encoding=before.encoding,
        errors=before.errors,
        closefd=False,
    )


_line: Line | None = None


def join(rank: int, size: int) -> Line:
    """Open this process's line; `end_now` uses it."""
    global _line
    _line = Line.open(rank, size)
    return _line


def end_now(message: str) -> None:
    """End this process at once, whatever its main thread is stuck in, and say why."""
    if _line is not None:
        _line.ended(End(2, message, lost=True))
    else:
        os.write(2, f"xcite: {message}\n".encode(errors="backslashreplace"))
    os._exit(2)


@contextlib.contextmanager
def hidden_errors() -> Iterator[None]:
    """Keep what compiled code writes to standard error meanwhile from the terminal."""
    sys.stderr.flush()
    shown, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(shown, 2)
        os.close(shown)
        os.close(nowhere)


def last_words(folder: Path, rank: int) -> str:
    """The last line that a process wrote to its hidden output; "" if none."""
    with contextlib.suppress(OSError):
        text = _log(folder, rank).read_bytes()[-4096:].decode(errors="replace").strip()
        return text.splitlines()[-1].strip() if text else ""
    return ""


def _log(folder: Path, rank: int) -> Path:
    return folder / f"output-{rank}.log"
