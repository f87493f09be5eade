"""Open any weights file as canonical arrays; write Xcite's own files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from xcite import canonical
from xcite.errors import XciteError
from xcite.variants import Architecture
from xcite.weights.metadata import Metadata, metadata_from_json
from xcite.weights.safetensors_files import read_safetensors, write_safetensors

METADATA_KEY = "xcite"


@dataclass
class WeightFile:
    """The contents of a weights file in canonical form.

    Attributes:
        tensors: canonical name to float32 array (BatchNorm's counters are int64).
        architecture: as given, as the metadata says, or as read from the shapes.
        dialect: the ecosystem whose names the file uses.
        metadata: the file's own, or what its name and shapes tell.
        missing: head tensors left out because of ``reset_head``; the model keeps its own.
    """

    tensors: canonical.Weights
    architecture: Architecture
    dialect: str
    metadata: Metadata
    missing: list[str] = field(default_factory=list)


def save_weights(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Metadata) -> None:
    """Write canonical arrays and metadata as Xcite safetensors, whole or not at all.

    Raises:
        XciteError: the folder cannot be written, or the tensors do not fit the described architecture.
    """
    architecture = metadata.described_architecture()
    if architecture is not None:
        canonical.check(tensors, architecture)
    write_safetensors(Path(path), tensors, {METADATA_KEY: metadata.model_dump_json()})


def open_weights(
    source: str | Path,
    *,
    architecture: Architecture | None = None,
    dialect: str | None = None,
    part: str | None = None,
    reset_head: bool = False,
    weights_dir: str | Path | None = None,
) -> WeightFile:
    """Read weights as canonical arrays.

    Args:
        source: a weights file, a published name, or a run folder (its best.safetensors, else
            last.safetensors).
        architecture: the model the weights are for; None reads it from the file.
        dialect: names to expect; None recognises them.
        part: which model of a checkpoint: "weights", "ema", "student" or "teacher".
        reset_head: leave out the head when the class count differs, instead of refusing.
        weights_dir: where published files lie; None uses the cache.

    Raises:
        XciteError: unreadable or hostile file, or tensors that do not fit, all of them named.
    """
    path = _locate(source)
    stored, texts = read_safetensors(path)
    metadata = metadata_from_json(texts.get(METADATA_KEY, "{}"), str(path))
    architecture = architecture or metadata.described_architecture()
    if architecture is None:
        raise XciteError(f"{path} does not say its architecture; give it")
    canonical.check({name: tensor for name, tensor in stored.items()}, architecture)  # type: ignore[misc]
    tensors = {name: tensor.read() for name, tensor in stored.items()}
    return WeightFile(tensors, architecture, "xcite", metadata)


def _locate(source: str | Path) -> Path:
    """The file meant by a path or a run folder."""
    path = Path(source)
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        raise XciteError(f"{path} holds neither best.safetensors nor last.safetensors")
    if not path.is_file():
        raise XciteError(f"there is no weights file {path}")
    return path
