"""The compiled operators, joined to the threads that PyTorch brings."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from xcite.choices import Choices
from xcite.engines.kernels.binding import Operators, library_for


@cache
def available() -> bool:
    """Whether this machine can compile the operators and PyTorch brings what they need."""
    return _operators() is not None


def usable(choices: Choices, *tensors: Tensor) -> bool:
    """Whether the compiled operators are chosen and may take these tensors."""
    if not choices.compiled or torch.compiler.is_compiling():
        return False
    fit = all(t.dtype == torch.float32 and t.device.type == "cpu" and t.numel() for t in tensors)
    return fit and available()


def call(name: str, *arguments: int | float | Tensor | None) -> None:
    """Run an operator on as many threads as PyTorch's own.

    Tensors are float32, dense, on the CPU, and as large as kernels.cpp says.
    """
    operators = _operators()
    assert operators is not None  # see `usable`
    operators.call(name, *arguments)


@cache
def _operators() -> Operators | None:
    try:
        # Found in whichever OpenMP this build of PyTorch was linked with.
        runtime = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel, set_threads = runtime.GOMP_parallel, runtime.omp_set_num_threads
    except (OSError, AttributeError):  # another system, or a build without OpenMP
        return None
    library = library_for("torch")
    if library is None:
        return None
    return Operators(library, torch.get_num_threads, parallel, set_threads)
