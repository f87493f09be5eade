"""The compiled operators, joined to the threads and matrix products that Paddle brings."""

import ctypes
from functools import cache
from pathlib import Path

import paddle
from paddle import Tensor

from xcite.choices import Choices
from xcite.engines.kernels.binding import Operators, library_for
from xcite.errors import XciteError


@cache
def available() -> bool:
    """Whether this machine can compile the operators and Paddle brings what they need."""
    return _operators() is not None


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
    operators = _operators()
    assert operators is not None  # see `usable`
    if not operators.call(name, *arguments):
        raise XciteError(f"oneDNN refused a matrix product of the compiled operator {name}")


@cache
def _operators() -> Operators | None:
    folder = Path(paddle.__file__).parent / "libs"
    try:
        runtime, products, mkl = (
            ctypes.CDLL(str(folder / name))
            for name in ("libiomp5.so", "libdnnl.so.3", "libmklml_intel.so")
        )
        threads, product = mkl.MKL_Get_Max_Threads, products.dnnl_sgemm
        parallel, set_threads = runtime.GOMP_parallel, runtime.omp_set_num_threads
    except (OSError, AttributeError):  # another build of Paddle
        return None
    library = library_for("paddle")
    if library is None:
        return None
    return Operators(library, threads, parallel, set_threads, product)
