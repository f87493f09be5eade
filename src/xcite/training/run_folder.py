"""The folder a run leaves behind.

::

  recipe.yaml               the resolved recipe
  environment.json          versions, machine and command of every session of the run
  history.jsonl             who the run is; every session, change and error, one JSON object a line
  metrics.jsonl             one JSON object a line: "kind" is "step" or "epoch"
  log.txt                   what was printed; log.1.txt and log.2.txt are older
  status.json               where the run stands, for `xcite status`
  run.lock                  who trains in the folder now
  curves.png                loss, accuracy and learning rate
  split.json                the pictures that were held out for validation, if any
  pictures.gz               names and sizes of the training pictures
  views-0.csv               views that the steps of process 0 used (run.record_views)
  skipped.txt               pictures that could not be decoded (with data.on_error: skip), one a row
  best.safetensors          the better of model and moving average, by top-1
  last.safetensors          the model as it is; last_ema.safetensors its moving average
  checkpoint.safetensors    everything needed to go on; checkpoint-previous.safetensors is the
                            one before, checkpoint-0012.safetensors that after epoch 12;
                            each stands alone
"""

import contextlib
import glob
import itertools
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xcite import recipe as recipes
from xcite.choices import Choices
from xcite.control_characters import visible
from xcite.errors import XciteError
from xcite.installed import versions_of
from xcite.machine import usable_cores
from xcite.processes import environment
from xcite.recipe import Recipe
from xcite.training import json_lines
from xcite.training.ownership import FILE as LOCK_FILE
from xcite.training.ownership import PATIENCE, Ownership, is_leftover, remove_leftovers
from xcite.whole_files import write_text

LOG_LIMIT = 16 * 2**20  # bytes of log.txt before a new one is begun
OLDER_LOGS = 2

_PACKAGES = ("xcite", "numpy", "pillow", "grain", "safetensors", "paddlepaddle", "torch")


class RunFolder:
    """Paths and small files of one run; only process 0 writes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.environment = self.path / "environment.json"
        self.history = self.path / "history.jsonl"
        self.metrics = self.path / "metrics.jsonl"
        self.status = self.path / "status.json"
        self.log = self.path / "log.txt"
        self.curves = self.path / "curves.png"
        self.split = self.path / "split.json"
        self.pictures = self.path / "pictures.gz"
        self.skipped = self.path / "skipped.txt"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self.last_ema = self.path / "last_ema.safetensors"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.previous = self.path / "checkpoint-previous.safetensors"
        self.coming = self.path / "checkpoint-coming.safetensors"

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], recipe: Recipe, *, numbered: bool = False
    ) -> tuple["RunFolder", Ownership]:
        """Make the folder of a new run and own it.

        Args:
            numbered: append the first number that is free; of several processes that do so at
                once, each gets a folder.

        Raises:
            XciteError: it exists and is not empty, another process owns it, or it cannot be made.
        """
        name = Path(path)
        while True:
            folder = cls(next_run_folder(name) if numbered else name)
            try:
                folder.refuse_used()
            except XciteError:
                if numbered and folder.used():  # taken since the number was found free
                    continue
                raise
            try:
                folder.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise XciteError(
                    f"cannot make the run folder {folder.path}: {error.strerror}"
                ) from error
            try:
                owned = Ownership.take(folder.path, patience=0 if numbered else PATIENCE)
            except XciteError:
                if not numbered:
                    raise
                time.sleep(0.01)  # until the other one has written its recipe
                continue
            if folder.used():  # whoever owned it before has begun a run in it
                owned.release()
                continue
            try:
                remove_leftovers(folder.path)
                write_text(folder.recipe, recipes.dump(recipe))
            except BaseException:
                owned.release()
                raise
            return folder, owned

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

    def used(self) -> bool:
        """Whether there is anything but what a start that was killed at once leaves."""
        if not self.path.exists():
            return False
        return not self.path.is_dir() or not all(map(is_leftover, self.path.iterdir()))

    def refuse_used(self) -> None:
        """Raise XciteError where something is already there, or nothing can be made."""
        if self.used():
            raise XciteError(
                f"{self.path} already exists; give another --out, or go on with "
                f"`{resume_command(self.path)}`"
            )
        nearest = next(p for p in self.path.absolute().parents if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise XciteError(f"cannot make the run folder {self.path}: {nearest} cannot be written")

    def write_log(self, text: str) -> None:
        """Append a line to log.txt, with the time."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > LOG_LIMIT:
                names = [self.log, *(self.path / f"log.{n + 1}.txt" for n in range(OLDER_LOGS))]
                for newer, older in reversed([*itertools.pairwise(names)]):
                    if newer.is_file():
                        newer.replace(older)
        self._append(self.log, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")

    def record(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        self._append(self.metrics, json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line cut off by a crash is left out."""
        return read_metrics(self.metrics) if self.metrics.is_file() else []

    def forget_after(self, step: int, epochs: int) -> None:
        """Drop the rows of work that a resumed run does again.

        Args:
            step: optimiser steps that are done.
            epochs: how many are complete; the last step of an epoch may be done without its
                evaluation.
        """
        kept = [
            row
            for row in self.rows()
            if row["step"] <= step and (row["kind"] != "epoch" or row.get("epoch", 0) <= epochs)
        ]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))

    def write_environment(self, engine: str, choices: Choices | None = None) -> None:
        """Add this session to environment.json; ``choices`` are those it computes by."""
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
                "cores": usable_cores(),
                "versions": versions_of(*_PACKAGES),
                "choices": choices.model_dump() if choices else {},
            }
        )
        write_text(self.environment, json.dumps({"sessions": sessions}, indent=2) + "\n")

    def write_status(self, values: dict[str, Any]) -> None:
        """Replace status.json; where it cannot be written, the run does without."""
        aside = self.path / ".status.json.part"
        try:
            aside.write_text(json.dumps(values), encoding="utf-8")
            aside.replace(self.status)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)

    def write_skipped(self, left_out: Mapping[str, Mapping[str, str]]) -> None:
        """List the pictures that were left out, beside those of earlier sessions.

        One a line whatever their names hold: set, name and reason between tabs.
        """
        known: dict[str, str] = {}
        with contextlib.suppress(OSError):
            for row in self.skipped.read_text(encoding="utf-8", errors="replace").splitlines():
                picture, _, reason = row.rpartition("\t")
                known[picture] = reason
        for part, pictures in left_out.items():
            known |= {f"{part}\t{visible(n)}": visible(why) for n, why in pictures.items()}
        rows = [f"{picture}\t{reason}\n" for picture, reason in sorted(known.items())]
        write_text(self.skipped, "".join(rows))

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
        if not self.path.is_dir():
            raise XciteError(f"the run folder {self.path} is gone: it was deleted or moved")
        json_lines.append(path, text)


def resume_command(start: Path, remedy: str = "") -> str:
    """The command that goes on with a run folder or checkpoint, ready for a shell.

    Args:
        remedy: more options, such as an `XciteError.remedy`.
    """
    options = " ".join(filter(None, (remedy, environment.launch_options())))
    return f"xcite train --resume {shlex.quote(str(start))} {options}".rstrip()


def stem(what: str) -> str:
    """What the folders of a recipe's or some pictures' runs are called, before their number.

    Of pictures' names only letters, digits and ``._-`` are kept, so that a run needs no quotes.
    """
    path = Path(what).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return path.stem
    if glob.has_magic(what) and not path.exists():
        path = path.parent  # a pattern of shards
    path = Path(os.path.abspath(path))  # a link keeps its own name
    name = path.name if path.is_dir() else path.name.partition(".")[0] or path.name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"


def next_run_folder(path: str | os.PathLike[str]) -> Path:
    """``path`` with "-" and the first number above all that are in use."""
    path = Path(path)
    taken = [
        int(match[1])
        for other in path.parent.glob("*")
        if (match := re.fullmatch(re.escape(path.name) + r"-(\d+)", other.name))
        # A start that was killed at once leaves its lock and nothing else.
        and (not (other / LOCK_FILE).exists() or RunFolder(other).used())
    ]
    return path.with_name(f"{path.name}-{max(taken, default=0) + 1}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; lines that are none are left out.

    Raises:
        XciteError: the file cannot be read.
    """
    return [
        row
        for row in json_lines.read(path)
        if isinstance(row.get("kind"), str)
        and json_lines.is_count(row.get("step"))
        and all(json_lines.is_number(value) for key, value in row.items() if key != "kind")
    ]
