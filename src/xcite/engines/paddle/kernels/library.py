"""The compiled operators, joined to the threads and matrix products that Paddle brings."""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor

from xcite.choices import Choices
from xcite.engines.paddle.kernels import compiled
from xcite.errors import XciteError

# Arguments of each function: i int, n 64 bits, f float, p tensor
ARGUMENTS = {
    "gelu": "in pp",
    "gelu_back": "in ppp",
    "layer_norm": "inn f pppppp",
    "layer_norm_back": "inn pppppppp",
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


@cache
def available() -> bool:
    """Whether this machine can compile the operators and Paddle brings what they need."""
    return _library() is not None


def usable(choices: Choices, *tensors: Tensor) -> bool:
    """Whether the compiled operators are chosen and may take these tensors."""
    if not choices.compiled or not paddle.in_dynamic_mode() or paddle.is_autocast_enabled():
        return False
    fit = all(t.dtype == paddle.float32 and t.place.is_cpu_place() for t in tensors)
    return fit and available()


def call(name: str, *arguments: int | float | Tensor | None) -> None:
    """Run an operator on as many threads as Paddle's matrix products use.

    Tensors are float32, dense, on the CPU, and as large as kernels.cpp says.

    Raises:
        XciteError: a matrix product was refused.
    """
    attached = _library()
    assert attached is not None  # see `usable`
    given = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    if getattr(attached.operators, name)(attached.threads(), *given):
        raise XciteError(f"oneDNN refused a matrix product of the compiled operator {name}")


class _Attached:
    def __init__(self, operators: ctypes.CDLL, threads: Callable[[], int]) -> None:
        self.operators, self.threads = operators, threads


@cache
def _library() -> _Attached | None:
    if os.environ.get("XCITE_KERNELS") == "off":
        return None
    folder = Path(paddle.__file__).parent / "libs"
    try:
        runtime, products, mkl = (
            ctypes.CDLL(str(folder / name))
            for name in ("libiomp5.so", "libdnnl.so.3", "libmklml_intel.so")
        )
        needed: list[Any] = [
            *(runtime.GOMP_parallel, runtime.omp_set_num_threads, products.dnnl_sgemm)
        ]
        threads = mkl.MKL_Get_Max_Threads
    except (OSError, AttributeError):  # another build of Paddle
        return None
    operators = compiled.load(Path(__file__).parent)
    if operators is None:
        return None
    for name, kinds in ARGUMENTS.items():
        function = getattr(operators, name)
        function.argtypes = [KINDS[kind] for kind in kinds if kind != " "]
        function.restype = ctypes.c_int if name in FALLIBLE else None
    operators.attach(*(ctypes.cast(function, ctypes.c_void_p) for function in needed))
    return _Attached(operators, threads)
