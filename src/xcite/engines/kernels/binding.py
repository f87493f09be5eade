"""The functions of kernels.cpp, joined to a framework's threads and matrix products."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xcite.engines.kernels import compiled

# Arguments of each function: i int, n 64 bits, f float, p pointer to float32
ARGUMENTS = {
    "gelu": "in pp",
    "gelu_back": "in ppp",
    "activate": "inn ppp",
    "activate_back": "inn pppp",
    "layer_norm": "inn f pppppp",
    "layer_norm_back": "inn ppppp pppp",
    "local": "innnn i f ppppppppppp",
    "local_back": "innnn i f pppppppp ppppppp pp",
    "mlp": "innnn i pppppppp",
    "mlp_back": "innnn ppppp pp ppppp",
    "products": "in ii nnn pppp",
    "convolve": "innnnnn ppp",
    "convolve_back": "innnnnn ppppp",
    "row_sums": "innn pp",
    "attend": "innnn pppppp",
    "attend_back": "innnn pppppp pp",
}
# Those that multiply matrices return 0 if all went well.
FALLIBLE = {"mlp", "mlp_back", "products", "convolve", "convolve_back", "attend", "attend_back"}
KINDS = {"i": ctypes.c_int, "n": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}


class Operators:
    """The compiled functions, on as many threads as the framework would use.

    Args:
        library: from `compiled.load`, this framework's own copy: it holds what is attached.
        threads: how many there are now.
        parallel, set_threads: GOMP_parallel and omp_set_num_threads of the framework's OpenMP.
        product: as BLAS's sgemm, for row-major matrices; None if no function that needs it is used.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        threads: Callable[[], int],
        parallel: Any,
        set_threads: Any,
        product: Any = None,
    ) -> None:
        self._library, self._threads = library, threads
        for name, kinds in ARGUMENTS.items():
            function = getattr(library, name)
            function.argtypes = [KINDS[kind] for kind in kinds if kind != " "]
            function.restype = ctypes.c_int if name in FALLIBLE else None
        given = (parallel, set_threads, product)
        library.attach(*(f and ctypes.cast(f, ctypes.c_void_p) for f in given))

    def call(self, name: str, *arguments: Any) -> bool:
        """Run a function on numbers and objects with ``data_ptr()``; False if it was refused.

        Tensors are float32, dense, on the CPU, and as large as kernels.cpp says.
        """
        given = (a.data_ptr() if hasattr(a, "data_ptr") else a for a in arguments)
        return not getattr(self._library, name)(self._threads(), *given)


def fit(found: list[Any], expected: list[Any]) -> None:
    """Past this, wrong shapes would reach into others' memory.

    Raises:
        ValueError: they differ.
    """
    if found != expected:
        raise ValueError(f"shapes that do not fit together: {found} instead of {expected}")


def library_for(engine: str) -> ctypes.CDLL | None:
    """This engine's copy; None where it cannot be made, or XCITE_KERNELS says off."""
    if os.environ.get("XCITE_KERNELS") == "off":
        return None
    return compiled.load(Path(__file__).parent, engine)
