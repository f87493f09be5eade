"""Which packages are installed, told without importing them."""

import contextlib
import platform
from importlib import metadata

# Import names of what computes, and the distributions that bring it.
COMPUTING = {
    "paddle": ("paddlepaddle", "paddlepaddle-gpu"),
    "torch": ("torch",),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}


def version_of(*distributions: str) -> str | None:
    """The version of the first of these distributions that is installed; None without any."""
    for distribution in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return None


def versions_of(*distributions: str) -> dict[str, str]:
    """The versions of those of the distributions that are installed."""
    found = {distribution: version_of(distribution) for distribution in distributions}
    return {name: version for name, version in found.items() if version is not None}


def versions() -> dict[str, str]:
    """Versions of Xcite, Python, and the engines and runtimes that are installed."""
    from xcite import __version__

    found = {"xcite": __version__, "python": platform.python_version()}
    for name, distributions in COMPUTING.items():
        version = version_of(*distributions)
        if version is not None:
            found[name] = version
    return found
