"""Which packages are installed, told without importing them."""

import platform
from importlib import metadata

# Import names of what computes, and the distributions that bring it.
COMPUTING = {
    "paddle": ("paddlepaddle", "paddlepaddle-gpu"),
    "torch": ("torch",),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}


def versions() -> dict[str, str]:
    """Versions of Xcite, Python, and the engines and runtimes that are installed."""
    from xcite import __version__

    found = {"xcite": __version__, "python": platform.python_version()}
    for name, distributions in COMPUTING.items():
        for distribution in distributions:
            try:
                found[name] = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
            break
    return found
