"""Where a run stands, read from its folder while it trains and when it is dead."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xcite.errors import XciteError
from xcite.language import padded, tr, translated
from xcite.training import checkpoint
from xcite.training.history import History
from xcite.training.json_lines import is_count, is_number
from xcite.training.ownership import Owner, owner_of
from xcite.training.run_folder import RunFolder, resume_command


@dataclass(frozen=True)
class CheckpointHealth:
    """One checkpoint file.

    Attributes:
        problem: why it cannot be used; "" if it is whole.
        age: seconds since it was written.
    """

    path: Path
    problem: str
    epoch: int
    step: int
    age: float
    size: int

    def in_words(self) -> str:
        place = tr("epoch {epoch}, step {step}", epoch=self.epoch + 1, step=self.step)
        size = tr("{size:.1f} MiB, {age:.0f} min old", size=self.size / 2**20, age=self.age / 60)
        if self.problem:
            size = f"{size}: {translated(self.problem)}"
        return f"{self.path.name:32} " + tr(", ").join(
            [tr("DAMAGED") if self.problem else place, size]
        )


@dataclass(frozen=True)
class Status:
    """What `xcite status` knows.

    Attributes:
        state: "starting", "training", "evaluating", "stopped", "failed", "finished", "killed" (it
            ended without a word) or "unknown".
        owner: who trains there now.
        told: what the run has told last: epoch, step, loss, speed, memory, seconds left.
        error: of the last session; "" without any.
        altered: what was changed on the way so that the result is another.
    """

    folder: Path
    run: str
    state: str
    owner: Owner | None
    told: dict[str, Any]
    checkpoints: list[CheckpointHealth]
    error: str
    command: str
    altered: list[str]

    def lines(self) -> list[str]:
        """The status for people, a label and a value a line."""
        from xcite.training.journal import clock

        told = self.told
        state = _state(self.state)
        rows = [
            (tr("run"), f"{self.folder}" + (f" ({self.run[:8]})" if self.run else "")),
            (tr("state"), state + (f", {translated(self.owner.in_words())}" if self.owner else "")),
        ]
        if "epoch" in told:
            rows.append((tr("position"), _position(told)))
        if "pictures_per_second" in told:
            speed = tr(
                "{speed:.1f} pictures/s, loss {loss:.4f}",
                speed=told["pictures_per_second"],
                loss=told.get("loss", float("nan")),
            )
            rows.append((tr("speed"), speed))
        if "seconds_left" in told and self.owner:
            rows.append((tr("left"), clock(told["seconds_left"])))
        if "memory_mib" in told:
            most = tr("{memory} MiB at most, loader processes aside", memory=told["memory_mib"])
            rows.append((tr("memory"), most))
        if "time" in told:
            since = max(0, time.time() - told["time"])
            rows.append((tr("last heard"), tr("{seconds:.0f} s ago", seconds=since)))
        rows += [(tr("checkpoint"), health.in_words()) for health in self.checkpoints]
        if not self.checkpoints:
            rows.append((tr("checkpoint"), tr("none yet")))
        rows += [(tr("changed"), translated(text)) for text in self.altered]
        if self.error:
            rows.append((tr("last error"), translated(self.error)))
        if self.command:
            rows.append((tr("go on with"), self.command))
        return [padded(label, 13) + text for label, text in rows]


def _state(state: str) -> str:
    """A state in the language in use; what another version wrote stays as it is."""
    known = {
        "starting": tr("starting"),
        "training": tr("training"),
        "evaluating": tr("evaluating"),
        "stopped": tr("stopped"),
        "failed": tr("failed"),
        "finished": tr("finished"),
        "killed": tr("killed"),
        "unknown": tr("unknown"),
    }
    return known.get(state, state)


def _position(told: dict[str, Any]) -> str:
    total = told.get("epochs", 0) * told.get("steps", 0)
    done = (told["epoch"] - 1) * told.get("steps", 0) + told.get("step", 0)
    place = tr(
        "epoch {epoch} of {epochs}, step {step} of {steps}",
        epoch=told["epoch"],
        **{key: told.get(key, "?") for key in ("epochs", "step", "steps")},
    )
    share = tr(", {share:.1f} % of the run", share=100 * done / total) if total else ""
    return place + share


class StatusReader:
    """Reads a run's status again and again; a checkpoint is read only when it has changed."""

    def __init__(self, path: str | Path) -> None:
        self._folder = RunFolder.open(path)
        self._known: dict[tuple[str, int], CheckpointHealth] = {}

    def read(self) -> Status:
        """The status now.

        Raises:
            XciteError: the folder's files cannot be read.
        """
        folder = self._folder
        history, owner = History(folder.history), owner_of(folder.path)
        told = _told(folder.status)
        state = str(told.get("state", "unknown"))
        if owner is None and state in ("starting", "training", "evaluating"):
            state = "killed"
        error, command = history.last_error()
        if owner or state == "finished":
            command = ""
        elif not command or state != "failed":
            command = resume_command(folder.path)
        return Status(
            folder.path,
            history.run,
            state,
            owner,
            told,
            self._checkpoints(),
            error,
            command,
            history.altered(),
        )

    def _checkpoints(self) -> list[CheckpointHealth]:
        found = []
        for path in checkpoint.candidates(self._folder):
            try:
                stat = path.stat()
            except OSError:
                continue  # just renamed by the run
            key = (path.name, stat.st_mtime_ns)
            if key not in self._known:
                self._known[key] = _health(path, stat.st_mtime, stat.st_size)
            found.append(self._known[key])
        return found


def _health(path: Path, written: float, size: int) -> CheckpointHealth:
    age = time.time() - written
    try:
        position = checkpoint.load(path).position
    except XciteError as error:
        return CheckpointHealth(path, str(error), 0, 0, age, size)
    return CheckpointHealth(path, "", position.epoch, position.step, age, size)


def _told(path: Path) -> dict[str, Any]:
    """The values of status.json that make sense."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    counts = ("epoch", "epochs", "step", "steps", "memory_mib")
    numbers = ("time", "loss", "pictures_per_second", "seconds_left")
    return {
        key: value
        for key, value in values.items()
        if (key in counts and is_count(value))
        or (key in numbers and is_number(value))
        or (key == "state" and isinstance(value, str))
    }
