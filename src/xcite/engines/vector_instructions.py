"""Which instructions Paddle's matrix products use."""

import os
from pathlib import Path


def use_vector_instructions() -> None:
    """Make Paddle's MKL, which is of 2019, use AVX2 on AMD's processors too.

    Matrix products then take about half the time. MKL reads the variable at its first call; a value
    that is already set stays. PyTorch's newer MKL does not know the variable.
    """
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return
    if "AuthenticAMD" in processor and "avx2" in processor:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
