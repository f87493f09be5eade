"""What an operating system may lack, and what is done without it.

Linux has all of it. macOS has no ``sched_getaffinity``; Windows has neither ``resource`` and
``fcntl`` nor most signals and timers.
"""

import atexit
import contextlib
import ctypes
import os
import shutil
import signal
import stat
import sys
import tempfile
from pathlib import Path
from types import ModuleType

resource: ModuleType | None
try:
    import resource
except ImportError:
    resource = None


def usable_cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_temporary: list[Path] = []  # the home that `provide_home` gave, if it did


def is_temporary(path: Path) -> bool:
    """Whether a file at ``path`` goes when this program ends, with the home that it was given."""
    return any(path.is_relative_to(home) for home in _temporary)


def provide_home() -> None:
    """Give a user who has no home, or one that takes no file, a temporary one; it goes at the end.

    Libraries keep things there: Paddle the code that it traces, matplotlib its list of fonts. What
    lies in the ``.cache`` of the user's own home is still found.
    """
    try:
        own = Path.home()
    except RuntimeError:
        own = Path(os.sep)
        os.environ["HOME"] = os.sep
    place = next(folder for folder in (own, *own.parents) if folder.exists())
    if os.access(place, os.W_OK | os.X_OK):
        return
    try:
        folder = tempfile.mkdtemp(prefix="xcite-home-")
    except OSError:  # nothing can be written anywhere; many commands need not
        return
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _temporary.append(Path(folder))
    os.environ["HOME"] = folder
    if (own / ".cache").is_dir():
        os.environ.setdefault("XDG_CACHE_HOME", str(own / ".cache"))
        os.environ.setdefault("MPLCONFIGDIR", folder)


def only_ours(path: Path) -> bool:
    """Whether nobody but this user may write it; Windows keeps a user's folders to the user."""
    found = path.stat()
    own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return own and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def known_signals(*names: str) -> tuple[signal.Signals, ...]:
    """Those of the named signals that there are here."""
    return tuple(signal.Signals[name] for name in names if hasattr(signal, name))


def most_memory() -> int:
    """The most memory that this process has held, in MiB; 0 where the system does not say."""
    if resource is None:
        return 0
    held: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def open_files_limit() -> int | None:
    """How many files this process may have open; None without a known limit."""
    if resource is None:
        return None
    soft: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files to ``count``, as far as the system lets it."""
    limit = open_files_limit()
    if resource is None or limit is None or limit >= count:
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    with contextlib.suppress(OSError, ValueError):  # macOS has a bound of its own below "infinity"
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, wanted), hard))


def set_timer(name: str, seconds: float) -> None:
    """Have ``ITIMER_REAL`` or ``ITIMER_PROF`` end this process; where there is none, nothing."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(getattr(signal, name), seconds)


def end_without_destructors() -> None:
    """Let this process end without C++ destructors, once Python has flushed and cleaned up.

    Only the GNU C library knows ``on_exit``. It calls the handler with the exit status, which is
    just what ``_exit`` takes, and before the handlers that were registered earlier.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        system = ctypes.CDLL(None)
        system.on_exit(system._exit, None)
