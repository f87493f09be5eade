"""Float32 operators on a CPU that a compiler of this machine makes from C++ at first use.

`compiled` makes the library and keeps it in the user's cache, `binding` names its functions. An
engine's `kernels.library` joins it to the threads (and matrix products) that its framework brings;
its `kernels.operators` are what the fast layers call. Where anything is missing, they compute by
the framework's own kernels.
"""
