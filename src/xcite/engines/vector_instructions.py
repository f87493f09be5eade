"""Which instructions Paddle's matrix products use."""

import os
from pathlib import Path


def use_vector_instructions() -> None:
    """Let the MKL of 2019 that Paddle carries use AVX2 on AMD's processors, where it else does not.

    Its matrix products take about half the time then. It reads the variable at its first call;
    a value that is already set stays. PyTorch's newer MKL does not know the variable.
    """
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return
    if "AuthenticAMD" in processor and "avx2" in processor:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
