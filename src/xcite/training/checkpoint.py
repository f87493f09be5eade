"""Checkpoints: the engine's training state and the position in the run, in one safetensors file.

The state has canonical names and shapes, so a run begun on one engine goes on on the other. The
numbers are checked against the checksums in the file, and everything for being possible at all.
"""

import contextlib
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
UNKNOWN = -1
_ADDED = ("pictures", "done")  # to the position, later than its other fields


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
        pictures: how many pictures of that epoch's order its steps have used; `UNKNOWN` in files
            of an older Xcite.
        done: optimiser steps of the whole run; `UNKNOWN` in files of an older Xcite.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_top5: float | None = None
    best_epoch: int = 0
    fingerprint: str = ""
    pictures: int = 0
    done: int = 0

    def after(self, loss: float, seconds: float, pictures: int) -> "Position":
        """The position one step of so many pictures further."""
        return replace(
            self,
            step=self.step + 1,
            loss=self.loss + loss,
            seconds=self.seconds + seconds,
            pictures=self.pictures + pictures,
            done=self.done + 1,
        )

    def next_epoch(self) -> "Position":
        """The position before the first step of the next epoch."""
        return replace(self, epoch=self.epoch + 1, step=0, loss=0.0, seconds=0.0, pictures=0)

    def refitted(self, steps: int, batch: int) -> "Position":
        """The same place in an epoch of ``steps`` steps of ``batch`` pictures.

        It is rounded down: no picture of the epoch is left out, fewer than ``batch`` are used
        again. The epoch's mean loss so far stays.
        """
        step = min(self.pictures // batch, steps)
        if (step, step * batch) == (self.step, self.pictures):
            return self
        loss = self.loss / self.step * step if self.step else 0.0
        return replace(self, step=step, pictures=step * batch, loss=loss)


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
    """What a checkpoint file holds.

    Attributes:
        class_names: of the model; None where the file does not say.
    """

    path: Path
    state: dict[str, np.ndarray]
    position: Position
    identity: Identity
    class_names: list[str] | None = None


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
        metadata[METADATA_KEY] = model.as_json()
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
    tensors, position, identity, class_names = _opened(path)
    state = {}
    for name, tensor in tensors.items():
        try:
            state[name] = tensor.load()
        except XciteError as error:
            raise _damaged(path, error) from error
        if state[name].dtype.kind == "f" and not np.isfinite(state[name]).all():
            raise XciteError(f"the checkpoint {path} is damaged: {name} is not finite")
    return Checkpoint(path, state, position, identity, class_names)


def position_of(path: Path) -> Position:
    """A checkpoint's position alone; its numbers are not read.

    Raises:
        XciteError: as `load`.
    """
    return _opened(path)[1]


def _opened(path: Path) -> tuple[dict[str, Any], Position, Identity, list[str] | None]:
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
        names = json.loads(metadata.get(METADATA_KEY, "{}")).get("class_names")
        if names is not None and not all(isinstance(name, str) for name in names):
            raise ValueError("its classes are not named by text")
        return tensors, position, Identity(**identity), names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> XciteError:
    told = str(error)
    return XciteError(told if "damaged" in told else f"the checkpoint {path} is damaged: {told}")


def _position(values: Any) -> Position:
    """Raises ValueError where something is missing or cannot be."""
    known = {field.name for field in fields(Position)}
    if isinstance(values, dict) and not set(values) & set(_ADDED):
        values = {**values, **dict.fromkeys(_ADDED, UNKNOWN)}
    if not isinstance(values, dict) or set(values) != known:
        raise ValueError("its position is incomplete")
    right = {
        **{key: is_count(values[key]) for key in ("epoch", "step", "best_epoch")},
        **{key: values[key] == UNKNOWN or is_count(values[key]) for key in _ADDED},
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

    # Without the first, a kill was between the renames of `publish`, and the second is newest.
    named = [path for path in (folder.checkpoint, folder.coming) if path.is_file()]
    others = [folder.previous, *reversed(folder.numbered_checkpoints())]
    others = [*named[1:], *(path for path in others if path.is_file())]
    return [*named[:1], *sorted(others, key=place, reverse=True)]


def before(position: Position, folder: RunFolder) -> Path | None:
    """The latest checkpoint of an earlier place than ``position``; None without one."""
    for path in candidates(folder):
        with contextlib.suppress(XciteError):
            found = position_of(path)
            if (found.epoch, found.step) < (position.epoch, position.step):
                return path
    return None


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


def keep_numbered(folder: RunFolder, keep: int, epoch: int) -> None:
    """Keep the last ``keep`` of the numbered checkpoints up to that after ``epoch`` epochs.

    Later ones are of work that a run has gone back behind.
    """
    paths = folder.numbered_checkpoints()
    own = [path for path in paths if int(path.stem.rpartition("-")[2]) <= epoch]
    for path in set(paths) - set(own[len(own) - min(keep, len(own)) :]):
        path.unlink(missing_ok=True)
