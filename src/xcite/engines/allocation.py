"""How the C library hands memory out, for both engines."""

import ctypes
import os
import sys

# Names of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 32 * 2**20  # more glibc does not allow


def keep_freed_memory() -> None:
    """Reuse the memory of freed tensors instead of giving it back and asking for it again.

    Fresh memory costs a page fault for every 4 KiB, which takes longer than an element-wise
    operation on it. Tensors above 32 MiB still go back at once. Does nothing without glibc, or
    where the environment says how to allocate (MALLOC_...).
    """
    if not sys.platform.startswith("linux") or any(n.startswith("MALLOC_") for n in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
