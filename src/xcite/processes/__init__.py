"""Several processes of one run: which one this is, how they are started, watched and ended.

No framework is imported here; `engines/*/launcher.py` calls the frameworks' own launchers.
"""

from typing import TYPE_CHECKING

from xcite.lazy_modules import lazy_modules

if not TYPE_CHECKING:
    __getattr__ = lazy_modules(__name__)
