"""Engines by name; a framework is imported only when its engine is asked for."""

import contextlib
import importlib
import importlib.util
import logging
import signal
import warnings
from typing import TYPE_CHECKING, Any

from xcite.errors import XciteError
from xcite.lazy_modules import lazy_modules

if TYPE_CHECKING:
    from types import ModuleType

    from xcite.engines.interface import Engine
    from xcite.variants import Architecture

NAMES = ("paddle", "torch")


def installed() -> list[str]:
    """Engines whose framework can be imported, the default first."""
    return [name for name in NAMES if importlib.util.find_spec(name) is not None]


def engine_package(name: str) -> "ModuleType":
    """The engine's package, whose ``__all__`` is the same for every engine.

    Raises:
        XciteError: unknown engine, or its framework is not installed.
    """
    if name not in NAMES:
        raise XciteError(f"unknown engine {name!r}; choose {' or '.join(NAMES)}")
    if importlib.util.find_spec(name) is None:
        others = [other for other in installed() if other != name]
        instead = f", or use --engine {others[0]}" if others else ""
        raise XciteError(f"engine {name!r} is not installed: pip install 'xcite[{name}]'{instead}")
    return quietly_imported(f"xcite.engines.{name}")


def quietly_imported(name: str) -> "ModuleType":
    """A module that imports Paddle, without what Paddle does to messages and signals then.

    It misses ccache, which concerns only those who build extensions, has the root logger print
    what any library notes about itself, and replaces the handler of SIGTERM by one that prints a
    page and may wait for ever, so that a pool of processes cannot end.
    """
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No ccache found")
        try:
            return importlib.import_module(name)
        finally:
            root.setLevel(level)
            root.handlers[:] = handlers
            with contextlib.suppress(ValueError):  # in another thread than the main one
                signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


def create_engine(name: str, architecture: "Architecture", **options: Any) -> "Engine":
    """Build an engine; ``options`` are those of `xcite.engines.interface.Engine`."""
    engine: Engine = engine_package(name).Engine(architecture, **options)
    return engine


if not TYPE_CHECKING:
    __getattr__ = lazy_modules(__name__)
