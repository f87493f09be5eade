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

from xcite.errors import XciteError
from xcite.machine import end_without_destructors

_loaded: "weakref.WeakSet[Any]" = weakref.WeakSet()
_found_paddle = False  # in the parent of this forked process


def leave_behind_in_children(program: Any) -> None:
    """Take care that no process forked from this one frees ``program``."""
    _loaded.add(program)


def refuse_what_would_hang(kind: str, bundle: object) -> None:
    """Refuse a bundle of this format whose runtime waits for ever in this forked process.

    Where PyTorch's OpenMP serves Paddle, too, it does so always: GNU's waits for its old threads.

    Raises:
        XciteError: a bundle of Paddle's format, and Paddle was loaded when this process was forked.
    """
    if kind == "paddle" and _found_paddle:
        raise XciteError(
            f"bundle {bundle} cannot run here: this process was forked from one that had loaded "
            "PaddlePaddle, which can hang in such a process; start processes by spawn "
            "(multiprocessing.get_context('spawn')), load Paddle in the child alone, or export "
            "the bundle to OpenVINO or ONNX"
        )


def _in_child() -> None:
    global _found_paddle
    _found_paddle = "paddle" in sys.modules
    programs = list(_loaded)
    for program in programs:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(program))  # which nobody gives back
    if programs:
        end_without_destructors()
    _loaded.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork either
    os.register_at_fork(after_in_child=_in_child)
