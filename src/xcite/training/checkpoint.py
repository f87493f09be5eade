"""Checkpoints: the engine's training state and the position in the run, in one safetensors file.

The state has canonical names and shapes, so a run begun on one engine goes on on the other.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from xcite.errors import XciteError
from xcite.training.run_folder import RunFolder
from xcite.weights.metadata import Metadata
from xcite.weights.opening import METADATA_KEY
from xcite.weights.safetensors_files import write_safetensors
from xcite.whole_files import whole_file

FORMAT = "xcite checkpoint 1"


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        epoch: the epoch that goes on, counted from 0.
        step: steps of that epoch already done; all of them when only its evaluation is missing.
        loss: sum of the losses of those steps.
        seconds: training time of those steps.
        best: highest top-1 so far, of model or moving average; None before the first evaluation.
        best_top5: top-5 of the same model.
        best_epoch: the epoch, counted from 1, that reached it; 0 before the first evaluation.
        fingerprint: of the training pictures' listing.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_top5: float | None = None
    best_epoch: int = 0
    fingerprint: str = ""

    def after(self, loss: float, seconds: float) -> "Position":
        """The position one step further."""
        return replace(
            self, step=self.step + 1, loss=self.loss + loss, seconds=self.seconds + seconds
        )

    def next_epoch(self) -> "Position":
        """The position before the first step of the next epoch."""
        return replace(self, epoch=self.epoch + 1, step=0, loss=0.0, seconds=0.0)


def save(
    path: Path,
    state: dict[str, np.ndarray],
    position: Position,
    model: Metadata | None = None,
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        model: what travels with the weights, so that `xcite convert --extract` keeps it.

    Raises:
        XciteError: the folder cannot be written or the disk is full; an older file stays.
    """
    metadata = {"format": FORMAT, "position": json.dumps(asdict(position))}
    if model is not None:
        metadata[METADATA_KEY] = model.model_dump_json()
    write_safetensors(path, state, metadata)


def read(path: Path) -> tuple[dict[str, np.ndarray], Position]:
    """A checkpoint's training state and position.

    Raises:
        XciteError: missing, damaged or not a checkpoint.
    """
    if not path.is_file():
        raise XciteError(f"there is no checkpoint {path}; the run has not finished its first epoch")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise XciteError(f"{path} is not a training checkpoint of Xcite")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values = json.loads(metadata["position"])
        known = {field.name for field in fields(Position)}
        if set(values) != known:
            raise ValueError("its position is incomplete")
        return state, Position(**values)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise XciteError(f"the checkpoint {path} is damaged: {error}") from error


def keep_numbered(folder: RunFolder, epoch: int, keep: int) -> None:
    """Keep the checkpoint just written under the number of its epoch, and only the last ``keep``.

    A hard link costs no space: the checkpoint itself is always replaced, never written over.
    """
    if keep:
        numbered = folder.numbered(epoch)
        try:
            numbered.unlink(missing_ok=True)
            os.link(folder.checkpoint, numbered)
        except OSError:
            with whole_file(numbered) as aside:
                shutil.copyfile(folder.checkpoint, aside)
    paths = folder.numbered_checkpoints()
    for path in paths[: len(paths) - keep]:
        path.unlink(missing_ok=True)
