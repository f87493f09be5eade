"""Checkpoints: the engine's training state and the position in the run, in one safetensors file.

The state has canonical names and shapes, so a run begun on one engine goes on on the other. The
numbers are checked against the checksums in the file, and everything for being possible at all.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from xcite.errors import XciteError
from xcite.training.json_lines import is_count, is_number
from xcite.training.run_folder import RunFolder
from xcite.weights.containers import METADATA_KEY
from xcite.weights.metadata import Metadata
from xcite.weights.safetensors_files import read_safetensors, write_safetensors
from xcite.whole_files import flush_folder

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


@dataclass(frozen=True)
class Identity:
    """Whose checkpoint it is.

    Attributes:
        run: the run's identity in its history.jsonl; "" in files of an older Xcite.
        recipe: hash of the recipe that the run then had.
    """

    run: str = ""
    recipe: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds."""

    path: Path
    state: dict[str, np.ndarray]
    position: Position
    identity: Identity


def save(
    path: Path,
    state: dict[str, np.ndarray],
    position: Position,
    model: Metadata | None = None,
    identity: Identity | None = None,
) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        model: what travels with the weights, so that `xcite convert --extract` keeps it.

    Raises:
        XciteError: the folder cannot be written or the disk is full; an older file stays.
    """
    metadata = {"format": FORMAT, "position": json.dumps(asdict(position))}
    if identity is not None:
        metadata["run"] = json.dumps(asdict(identity))
    if model is not None:
        metadata[METADATA_KEY] = model.model_dump_json()
    write_safetensors(path, state, metadata)


def publish(folder: RunFolder) -> None:
    """Make the checkpoint written as ``folder.coming`` the newest, and the newest the one before.

    At every moment in between, at least two whole checkpoints are there under names that
    `candidates` knows.
    """
    try:
        if folder.checkpoint.exists():
            folder.checkpoint.replace(folder.previous)
        folder.coming.replace(folder.checkpoint)
        flush_folder(folder.path)
    except OSError as error:
        raise XciteError(f"cannot write {folder.checkpoint}: {error.strerror}") from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        XciteError: missing, damaged, not a checkpoint, or with values that cannot be.
    """
    tensors, position, identity = _opened(path)
    state = {}
    for name, tensor in tensors.items():
        try:
            state[name] = tensor.load()
        except XciteError as error:
            raise _damaged(path, error) from error
        if state[name].dtype.kind == "f" and not np.isfinite(state[name]).all():
            raise XciteError(f"the checkpoint {path} is damaged: {name} is not finite")
    return Checkpoint(path, state, position, identity)


def position_of(path: Path) -> Position:
    """A checkpoint's position alone; its numbers are not read.

    Raises:
        XciteError: as `load`.
    """
    return _opened(path)[1]


def _opened(path: Path) -> tuple[dict[str, Any], Position, Identity]:
    if not path.is_file():
        raise XciteError(f"there is no checkpoint {path}")
    try:
        tensors, metadata = read_safetensors(path)
    except (XciteError, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if metadata.get("format") != FORMAT:
        raise XciteError(f"{path} is not a training checkpoint of Xcite")
    try:
        position = _position(json.loads(metadata["position"]))
        identity = json.loads(metadata.get("run", "{}"))
        if not all(isinstance(value, str) for value in identity.values()):
            raise ValueError("its run is not named by text")
        return tensors, position, Identity(**identity)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> XciteError:
    told = str(error)
    return XciteError(told if "damaged" in told else f"the checkpoint {path} is damaged: {told}")


def _position(values: Any) -> Position:
    """Raises ValueError where something is missing or cannot be."""
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(Position)}:
        raise ValueError("its position is incomplete")
    right = {
        **{key: is_count(values[key]) for key in ("epoch", "step", "best_epoch")},
        "loss": is_number(values["loss"]),
        "seconds": is_number(values["seconds"], 0),
        **{
            key: values[key] is None or is_number(values[key], 0, 100)
            for key in ("best", "best_top5")
        },
        "fingerprint": isinstance(values["fingerprint"], str),
    }
    wrong = [key for key, sound in right.items() if not sound]
    if wrong:
        raise ValueError(f"its {wrong[0]} is {values[wrong[0]]!r}")
    return Position(**values)


def candidates(folder: RunFolder) -> list[Path]:
    """All checkpoint files of a run in the order to try them: the newest, then by position."""

    def place(path: Path) -> tuple[int, int]:
        try:
            position = position_of(path)
        except XciteError:
            return -1, -1
        return position.epoch, position.step

    others = [folder.coming, folder.previous, *reversed(folder.numbered_checkpoints())]
    others = sorted((path for path in others if path.is_file()), key=place, reverse=True)
    return [folder.checkpoint, *others] if folder.checkpoint.is_file() else others


def newest(folder: RunFolder) -> tuple[Checkpoint | None, dict[Path, str]]:
    """The newest checkpoint that is whole, and what is wrong with newer ones; None without any.

    Raises:
        XciteError: there are some, and none is whole.
    """
    problems: dict[Path, str] = {}
    paths = candidates(folder)
    for path in paths:
        try:
            return load(path), problems
        except XciteError as error:
            problems[path] = str(error)
    if paths:
        raise XciteError(
            f"no checkpoint of {folder.path} can be used ({'; '.join(problems.values())}); "
            f"start again with xcite train {folder.recipe} --out NEW_FOLDER"
        )
    return None, {}


def keep_numbered(folder: RunFolder, keep: int) -> None:
    """Keep only the last ``keep`` of the numbered checkpoints."""
    paths = folder.numbered_checkpoints()
    for path in paths[: len(paths) - keep]:
        path.unlink(missing_ok=True)
