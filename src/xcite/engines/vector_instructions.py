"""Which instructions Paddle's matrix products use."""

import os

from xcite.processor import this_processor


def use_vector_instructions() -> None:
    """Make Paddle's MKL, which is of 2019, use AVX2 on AMD's processors too.

    Matrix products then take about half the time. MKL reads the variable at its first call; a value
    that is already set stays. PyTorch's newer MKL does not know the variable.
    """
    processor = this_processor()
    if processor.vendor == "AuthenticAMD" and "avx2" in processor.instructions:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
