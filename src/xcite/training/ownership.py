"""Who writes in a run folder or teacher cache: one process, and a dead one keeps nothing."""

import contextlib
import importlib
import json
import os
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from xcite.data.shared_memory import born
from xcite.errors import XciteError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has msvcrt instead
    fcntl = None

FILE = "run.lock"
PATIENCE = 2.0  # seconds: a killed owner with much memory takes a moment to be gone
# Where a file system has no locks, an owner on another machine counts as dead after this silence.
SILENCE = 600.0
_LOCKED_BYTE = 1 << 30  # behind the text, which others must be able to read (Windows)


@dataclass(frozen=True)
class Owner:
    """The process that writes in a folder.

    Attributes:
        born: when the kernel started it, in its own ticks; None where it does not say.
        since: when it took the folder, in words.
    """

    host: str
    pid: int
    born: int | None
    since: str

    def in_words(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class Ownership:
    """The lock on a folder; the kernel gives it back when its owner ends, however it ends.

    Processes that the owner starts do not inherit it. Locks by ``flock`` hold on one machine and,
    with Linux' NFS and most cluster file systems, between machines. Where there are none, the
    owner's name in the file decides: by its process on this machine, by its silence on others and
    where the system does not tell which processes live.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @classmethod
    def take(cls, folder: Path, *, patience: float = PATIENCE) -> "Ownership":
        """Own ``folder``.

        Raises:
            XciteError: another process owns it, or nothing can be written there.
        """
        try:
            handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise XciteError(f"cannot write {folder / FILE}: {error.strerror}") from error
        until = time.monotonic() + patience
        while not _locked(handle, shared=False):
            if time.monotonic() >= until:
                owner = _read(handle)
                os.close(handle)
                raise _owned_error(folder, owner)
            time.sleep(0.05)
        owner = Owner(
            socket.gethostname(), os.getpid(), born(os.getpid()), time.strftime("%Y-%m-%d %H:%M:%S")
        )
        try:
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, json.dumps(asdict(owner)).encode())
        except OSError as error:
            os.close(handle)
            raise XciteError(f"cannot write {folder / FILE}: {error.strerror}") from error
        return cls(handle)

    def alive(self) -> None:
        """Tell other machines that the owner lives, where only its silence could tell them."""
        if os.utime in os.supports_fd:
            with contextlib.suppress(OSError):
                os.utime(self._handle)

    def place(self) -> Path | None:
        """Where the folder is now; None if it was deleted, or the system does not say."""
        try:
            if os.fstat(self._handle).st_nlink == 0:
                return None
            if sys.platform == "darwin":
                told = fcntl.fcntl(self._handle, fcntl.F_GETPATH, bytes(1024))
                return Path(os.fsdecode(told.rstrip(b"\0"))).parent
            return Path(os.readlink(f"/proc/self/fd/{self._handle}")).parent
        except OSError:
            return None

    def owns(self, folder: Path) -> bool:
        """Whether the folder of that name is still the one that was taken."""
        try:
            return os.path.samestat(os.stat(folder / FILE), os.fstat(self._handle))
        except OSError:
            return False

    def release(self) -> None:
        """Give the folder free."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = -1


def owner_of(folder: Path) -> Owner | None:
    """The living owner of a folder; None if nobody writes there."""
    try:
        handle = os.open(folder / FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if _locked(handle, shared=True) else _read(handle)
    finally:
        os.close(handle)


def refuse_owned(folder: Path) -> None:
    """Raise XciteError, with its name, while another process writes in the folder."""
    owner = owner_of(folder)
    if owner is not None:
        raise _owned_error(folder, owner)


def is_leftover(path: Path) -> bool:
    """Whether a file is what a start that was killed at once leaves."""
    return path.name == FILE or (path.name.startswith(".") and path.name.endswith(".part"))


def remove_leftovers(folder: Path) -> None:
    """Remove what a dead owner had begun to write; only for who owns the folder."""
    for path in folder.iterdir():
        if is_leftover(path) and path.name != FILE:
            path.unlink(missing_ok=True)


def _owned_error(folder: Path, owner: Owner | None) -> XciteError:
    return XciteError(
        f"{folder} is in use by {owner.in_words() if owner else 'another process'}; "
        f"wait for it or stop it (`xcite status {folder}` shows where a run is)"
    )


def _locked(handle: int, *, shared: bool) -> bool:
    """Whether the lock was got."""
    try:
        _lock(handle, shared)
        return True
    except (BlockingIOError, PermissionError):  # Windows says the latter
        return False
    except OSError:  # this file system has no locks
        owner = _read(handle)
        return owner is None or not _lives(owner, os.fstat(handle).st_mtime)


def _lock(handle: int, shared: bool) -> None:
    if fcntl is not None:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    elif os.name == "nt":
        windows: Any = importlib.import_module("msvcrt")
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        windows.locking(handle, windows.LK_NBLCK, 1)
    else:
        raise OSError("this system has no locks")


def _lives(owner: Owner, heard: float) -> bool:
    if owner.host == socket.gethostname():
        if owner.pid == os.getpid():
            return False
        if owner.born is not None:
            return born(owner.pid) == owner.born
    return time.time() - heard < SILENCE


def _read(handle: int) -> Owner | None:
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        values: dict[str, Any] = json.loads(os.read(handle, 4096))
        return Owner(str(values["host"]), int(values["pid"]), values["born"], str(values["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
