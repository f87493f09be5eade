"""Float32 operators on a CPU that a compiler of this machine makes from C++ at first use.

`compiled` makes the library and keeps it in the user's cache, `library` joins it to the threads and
the matrix products that Paddle brings, `operators` are what the fast layers call. Where anything is
missing, they compute by Paddle's own kernels.
"""
