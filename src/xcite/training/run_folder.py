"""The folder a run leaves behind.

recipe.yaml               the resolved recipe
environment.json          versions, machine and command of every session of the run
metrics.jsonl             one JSON object a line: "kind" is "step" or "epoch"
log.txt                   what was printed
curves.png                loss, accuracy and learning rate
skipped.txt               pictures that could not be decoded (with data.on_error: skip)
best.safetensors          the better of model and moving average, by top-1
last.safetensors          the model as it is; last_ema.safetensors its moving average
checkpoint.safetensors    everything needed to go on; checkpoint-0012.safetensors after epoch 12
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from xcite import recipe as recipes
from xcite.control_characters import visible
from xcite.errors import XciteError
from xcite.recipe import Recipe
from xcite.whole_files import write_text

_PACKAGES = ("xcite", "numpy", "pillow", "grain", "safetensors", "paddlepaddle", "torch")


class RunFolder:
    """Paths and small files of one run; only process 0 writes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.log = self.path / "log.txt"
        self.curves = self.path / "curves.png"
        self.skipped = self.path / "skipped.txt"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self.last_ema = self.path / "last_ema.safetensors"
        self.checkpoint = self.path / "checkpoint.safetensors"

    @classmethod
    def create(cls, path: str | os.PathLike[str], recipe: Recipe) -> "RunFolder":
        """Make the folder of a new run.

        Raises:
            XciteError: it exists and is not empty, or cannot be made.
        """
        folder = cls(path)
        folder.refuse_used()
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise XciteError(f"cannot make the run folder {path}: {error.strerror}") from error
        write_text(folder.recipe, recipes.dump(recipe))
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "RunFolder":
        """The folder of a run that was begun before.

        Raises:
            XciteError: it does not exist or is not a run folder.
        """
        folder = cls(path)
        if not folder.path.is_dir():
            raise XciteError(f"there is no run folder {path}; give the folder that training wrote")
        if not folder.recipe.is_file():
            raise XciteError(f"{path} is not a run folder: it has no recipe.yaml")
        return folder

    def refuse_used(self) -> None:
        """Raise XciteError where something is already there, or nothing can be made."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise XciteError(
                f"{self.path} already exists; give another --out, or go on with "
                f"`xcite train --resume {self.path}`"
            )
        nearest = next(p for p in self.path.absolute().parents if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise XciteError(f"cannot make the run folder {self.path}: {nearest} cannot be written")

    def write_log(self, text: str) -> None:
        """Append a line to log.txt, with the time."""
        self._append(self.log, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def record(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        self._append(self.metrics, json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line cut off by a crash is left out."""
        return read_metrics(self.metrics) if self.metrics.is_file() else []

    def forget_after(self, step: int) -> None:
        """Drop rows later than ``step``, those of work that a resumed run does again."""
        kept = [row for row in self.rows() if row.get("step", 0) <= step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))

    def write_environment(self, engine: str) -> None:
        """Add this session to environment.json."""
        sessions: list[dict[str, Any]] = []
        if self.environment.is_file():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                known = json.loads(self.environment.read_text(encoding="utf-8"))["sessions"]
                sessions = [session for session in known if isinstance(session, dict)]
        sessions.append(
            {
                "started": time.strftime("%Y-%m-%d %H:%M:%S%z"),
                "command": sys.argv[1:],
                "engine": engine,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "cores": len(os.sched_getaffinity(0)),
                "versions": dict(_versions()),
            }
        )
        write_text(self.environment, json.dumps({"sessions": sessions}, indent=2) + "\n")

    def write_skipped(self, names: Sequence[str]) -> None:
        """List the pictures that were left out, one a line whatever their names hold."""
        write_text(self.skipped, "".join(f"{visible(name)}\n" for name in sorted(set(names))))

    def numbered(self, epoch: int) -> Path:
        """The checkpoint written after ``epoch`` (counted from 1)."""
        return self.path / f"checkpoint-{epoch:04d}.safetensors"

    def numbered_checkpoints(self) -> list[Path]:
        """All of them, oldest first."""
        found = {
            int(match[1]): path
            for path in self.path.glob("checkpoint-*.safetensors")
            if (match := re.fullmatch(r"checkpoint-(\d+)\.safetensors", path.name))
        }
        return [found[epoch] for epoch in sorted(found)]

    def _append(self, path: Path, text: str) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise XciteError(f"cannot write {path}: {error.strerror or error}") from error


def next_run_folder(name: str, root: str | os.PathLike[str] = "runs") -> Path:
    """``root/<name>-<number>`` with the first number above all that are there."""
    stem = Path(name).stem if name.endswith((".yaml", ".yml")) else Path(name).name
    stem = stem or "run"
    taken = [
        int(match[1])
        for path in Path(root).glob("*")
        if (match := re.fullmatch(re.escape(stem) + r"-(\d+)", path.name))
    ]
    return Path(root) / f"{stem}-{max(taken, default=0) + 1}"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; lines that are not JSON objects are left out.

    Raises:
        XciteError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise XciteError(f"cannot read {path}: {error.strerror or error}") from error
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield package, importlib.metadata.version(package)
