"""A bundle over HTTP."""

from typing import TYPE_CHECKING

from xcite.lazy_modules import lazy_modules

if not TYPE_CHECKING:
    __getattr__ = lazy_modules(__name__)
