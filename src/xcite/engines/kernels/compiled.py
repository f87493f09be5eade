"""A library from C++, compiled once for a compiler and processor, kept in the user's cache."""

import contextlib
import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from xcite.machine import only_ours
from xcite.processor import this_processor
from xcite.user_cache import user_cache

COMPILERS = ("c++", "g++", "clang++")
# Loops marked so become vector instructions; no OpenMP library is needed for that.
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-fopenmp-simd"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
SECONDS = 60.0


def load(folder: Path, owner: str) -> ctypes.CDLL | None:
    """The library of the folder's one .cpp file; None where it cannot be made.

    Its name in the cache says what it was made of: the sources, the flags, and all that the
    compiler says of itself and of this processor. Any number of processes may ask at once.

    Args:
        owner: gets a copy of its own, with what it keeps in it apart from others'.
    """
    cache = _private_folder()
    compiler = _compiler()
    if cache is None or not compiler:
        return None
    flags = [*FLAGS, *_without_hidden_instructions()]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        about = _run([*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull], cache)
        key = hashlib.sha256(repr((compiler, flags, owner)).encode() + about)
        for path in sorted(folder.iterdir()):
            if path.suffix in (".cpp", ".h"):
                key.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        library = cache / f"{key.hexdigest()[:32]}.so"
        if not library.is_file():
            (source,) = folder.glob("*.cpp")
            _compile([*compiler, *flags, str(source.resolve())], library)
        if only_ours(library):
            try:
                return ctypes.CDLL(str(library))
            except OSError:  # a power cut, or a compiler that wrote none: made anew next time
                library.unlink(missing_ok=True)
    return None


def _compile(command: list[str], library: Path) -> None:
    handle, name = tempfile.mkstemp(suffix=".part", dir=library.parent)
    os.close(handle)
    aside = Path(name)
    try:
        _run([*command, "-o", name], library.parent)
        aside.chmod(0o700)
        aside.replace(library)
    finally:
        aside.unlink(missing_ok=True)


def _run(command: list[str], folder: Path) -> bytes:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=SECONDS,
    )
    return done.stdout


def _compiler() -> list[str]:
    """The command named by CXX, or the first known one that is installed."""
    named = os.environ.get("CXX", "").strip()
    for command in [shlex.split(named)] if named else [[name] for name in COMPILERS]:
        found = shutil.which(command[0])
        if found:
            return [found, *command[1:]]
    return []


def _without_hidden_instructions() -> list[str]:
    """Leave AVX-512 out where it is hidden from the other libraries (ONEDNN_MAX_CPU_ISA)."""
    instructions = this_processor().instructions
    return ["-mno-avx512f"] if "avx2" in instructions and "avx512bw" not in instructions else []


def _private_folder() -> Path | None:
    """Where libraries are kept; None if anybody else could put one there."""
    folder = user_cache("kernels")
    if folder is None:
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if only_ours(folder) else None
    except OSError:
        return None
