"""Where a user's caches lie."""

import os
from pathlib import Path


def user_cache(name: str) -> Path | None:
    """The folder ``xcite/name`` under XDG_CACHE_HOME, else LOCALAPPDATA on Windows, else ~/.cache.

    None for a user without a home. The folder need not exist, nor be one that can be written.
    """
    base = os.environ.get("XDG_CACHE_HOME") or (os.name == "nt" and os.environ.get("LOCALAPPDATA"))
    try:
        return (Path(base) if base else Path.home() / ".cache") / "xcite" / name
    except RuntimeError:
        return None
