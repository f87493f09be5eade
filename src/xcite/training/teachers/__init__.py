"""Teachers: where the answers come from that a student learns by.

A `live` teacher is an engine (RegNet or XCiT, always in evaluation mode) or a program of any
runtime. It sees the student's own input, augmented, erased and mixed, in its own normalisation and
size. A `cached` teacher repeats answers that were computed once (`computing`).

The pictures of a batch, and how they are mixed, are a pure function of (seed, epoch, index). So a
teacher's answers are one too, whichever teacher gives them and whenever.
"""

from typing import TYPE_CHECKING

from xcite.lazy_modules import lazy_modules

if not TYPE_CHECKING:
    __getattr__ = lazy_modules(__name__)
