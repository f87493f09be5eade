"""Takes from every Python process that finds this on its path what Linux alone, or POSIX, has.

What stays is what macOS and Windows have, too. Libraries below Xcite that need more keep it: they
are imported by what is left.
"""

import os
import signal
import sys

for _name in (
    "sched_getaffinity",
    "sched_setaffinity",
    "sync",
    "fork",
    "forkpty",
    "pread",
    "pwrite",
    "posix_fadvise",
    "posix_fallocate",
    "sendfile",
    "nice",
    "killpg",
    "setsid",
    "O_NONBLOCK",
    "O_CLOEXEC",
    "O_NOFOLLOW",
    "O_DIRECTORY",
):
    if hasattr(os, _name):
        delattr(os, _name)

for _name in (
    "SIGHUP",
    "SIGUSR1",
    "SIGUSR2",
    "SIGBUS",
    "SIGPROF",
    "SIGALRM",
    "pthread_sigmask",
    "setitimer",
    "getitimer",
    "ITIMER_REAL",
    "ITIMER_PROF",
):
    if hasattr(signal, _name):
        delattr(signal, _name)

for _name in ("fcntl", "resource"):
    sys.modules[_name] = None  # type: ignore[assignment]
