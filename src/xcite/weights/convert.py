"""Translate a weights file to another dialect, and prove that nothing changed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xcite.errors import XciteError
from xcite.families import Architecture
from xcite.preprocessing import Preprocessing
from xcite.weights import dialects
from xcite.weights.catalog import file_sha256
from xcite.weights.distributed_writer import write_distributed
from xcite.weights.opening import WeightFile, locate, open_weights, save_weights
from xcite.weights.paddle_files import write_paddle
from xcite.weights.safetensors_files import write_safetensors
from xcite.weights.shards import shards_of
from xcite.weights.timm_hub import write_timm_hub
from xcite.weights.torch_writer import write_torch

_TORCH = (".pth", ".pt", ".bin")
SUFFIXES = {
    "xcite": (".safetensors",),
    "official": _TORCH,
    "timm": (".safetensors", *_TORCH),
    "passl": (".pdparams",),
    "ppcls": (".pdparams",),
    "paddlevit": (".pdparams",),
}
TIMM_HUB = "timm-hub"  # timm's dialect in a folder, with what travels with it
# What is written as a folder, and the dialect in it; dcp is torch.distributed.checkpoint.
FOLDERS = {TIMM_HUB: "timm", "official-dcp": "official", "timm-dcp": "timm"}
TARGETS = (*SUFFIXES, *FOLDERS)


@dataclass(frozen=True)
class Conversion:
    """What a conversion did: the source as read, and the new file.

    Attributes:
        to: as asked for, a key of `SUFFIXES` or `FOLDERS`.
        dialect: of the names in the new file.
    """

    source: WeightFile
    path: Path
    to: str
    dialect: str
    tensors: int


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    dialect: str | None = None,
    part: str | None = None,
    architecture: Architecture | None = None,
    strict: bool = False,
    class_names: Callable[[int], list[str]] | None = None,
    weights_dir: str | Path | None = None,
) -> Conversion:
    """Write the weights of ``source`` in another dialect, then read them back and compare.

    Args:
        to: a key of `SUFFIXES`; it decides names and layout, the target's suffix the container. Or
            one of `FOLDERS`: the target is a folder.
        part: "weights", "ema", "student" or "teacher", see `open_weights`; so is ``strict``.
        class_names: gives those of so many classes, in place of what the source says; for Xcite's
            files and `TIMM_HUB`.

    Raises:
        XciteError: unreadable source, unknown dialect, a suffix the dialect does not use, or (a
            fault of ours) a difference after reading back.
    """
    target = Path(target)
    if to not in TARGETS:
        raise XciteError(f"unknown dialect {to!r}; choose one of {', '.join(TARGETS)}")
    if to in SUFFIXES and target.suffix not in SUFFIXES[to]:
        raise XciteError(f"{target}: {to} weights are kept as {' or '.join(SUFFIXES[to])}")
    if class_names is not None and to not in ("xcite", TIMM_HUB):
        raise XciteError(f"{to} files name no classes; leave --classes out, or write {TIMM_HUB}")
    path = locate(source, weights_dir=weights_dir)
    opened = open_weights(
        path, dialect=dialect, part=part, architecture=architecture, strict=strict
    )
    if class_names is not None:
        opened.metadata.class_names = class_names(opened.architecture.num_classes)
    if target.exists() and any(target.samefile(p) for p in (path, path.parent)):
        raise XciteError(f"{target} is the file to convert; name another")
    if to == "xcite":
        opened.metadata.provenance.setdefault("sha256", file_sha256(*shards_of(path)))
        save_weights(target, opened.tensors, opened.metadata)
        count = len(opened.tensors)
    elif to == TIMM_HUB:
        count = write_timm_hub(target, opened)
        _compare_words(opened, target)
    else:
        count = _write(target, to, opened)
    written = FOLDERS.get(to, to)
    compare(opened, target, written)
    return Conversion(opened, target, to, written, count)


def _write(target: Path, to: str, opened: WeightFile) -> int:
    dialect = FOLDERS.get(to, to)
    tensors = dialects.express(opened.tensors, dialect, opened.architecture)
    # timm keeps a bare state dict; the official files one level more, which loaders ask for.
    wrap = "model" if dialect == "official" else None
    if to in FOLDERS:
        write_distributed(target, tensors, wrap=wrap)
    elif target.suffix == ".pdparams":
        write_paddle(target, tensors)
    elif target.suffix == ".safetensors":
        write_safetensors(target, tensors, {"format": "pt"})
    else:
        write_torch(target, tensors, wrap=wrap)
    return len(tensors)


def compare(opened: WeightFile, target: Path, to: str) -> None:
    """Read the written file and compare every tensor exactly, bit for bit.

    Counters of batches are compared where the dialect has them: Paddle's have none.
    """
    again = open_weights(target, architecture=opened.architecture, dialect=to)
    counters = dialects.TABLES[opened.architecture.kind][to].counters
    different = [
        name
        for name, array in opened.tensors.items()
        if (counters or not name.endswith("num_batches_tracked"))
        and not _same(array, again.tensors[name])
    ]
    if different:
        raise XciteError(
            f"{target} differs from its source after reading it back: {', '.join(different[:6])}"
        )


def _compare_words(opened: WeightFile, folder: Path) -> None:
    """Read the folder as a stranger would: what travels with the weights must be the same."""
    again = open_weights(folder)
    told = opened.metadata.preprocessing or Preprocessing.assumed(opened.architecture.in_chans)
    pairs = {
        "architecture": (again.architecture, opened.architecture.without_dropout()),
        "class names": (again.metadata.class_names, opened.metadata.class_names or None),
        "preprocessing": (again.metadata.preprocessing, told),
    }
    different = [name for name, (found, wanted) in pairs.items() if found != wanted]
    if different:
        raise XciteError(
            f"{folder} differs from its source after reading it back: {', '.join(different)}"
        )


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in every bit, so that NaN equals itself and -0.0 differs from 0.0."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
