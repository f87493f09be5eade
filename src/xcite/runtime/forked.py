"""Programs in a forked process: their threads stayed behind in the parent.

What waits for such a thread waits for ever. A runtime does so when it runs, when it is destroyed,
and ONNX Runtime even when the process ends. So in the child a program of the parent is never run
(`xcite.runtime.predictor` loads another), never freed, and the process ends without destructors of
C++.
"""

import ctypes
import os
import sys
import weakref
from typing import Any

from xcite.machine import end_without_destructors, use_one_openmp_thread

_loaded: "weakref.WeakSet[Any]" = weakref.WeakSet()
_found_paddle = False  # in the parent of this forked process


def leave_behind_in_children(program: Any) -> None:
    """Take care that no process forked from this one frees ``program``."""
    _loaded.add(program)


def threads_that_work(threads: int, kind: str) -> int:
    """How many compute threads a bundle of this format may have in this process.

    Paddle's OpenMP forgets in a forked process to wake its threads, now and then (3 of 10 times
    where two programs run in turn); alone it needs nobody to wake.
    """
    return 1 if kind == "paddle" and _found_paddle else threads


def _in_child() -> None:
    global _found_paddle
    _found_paddle = "paddle" in sys.modules
    programs = list(_loaded)
    for program in programs:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(program))  # which nobody gives back
    if programs:
        if _found_paddle:  # GNU's OpenMP, which PyTorch brings along, waits for the threads it had
            use_one_openmp_thread()
        end_without_destructors()
    _loaded.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork either
    os.register_at_fork(after_in_child=_in_child)
