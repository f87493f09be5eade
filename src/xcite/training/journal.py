"""What a run tells people: printed lines, progress, metrics, curves.

Only process 0 tells anything; in the others every call does nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from xcite.control_characters import visible
from xcite.engines.interface import StepResult
from xcite.language import tr
from xcite.machine import most_memory
from xcite.recipe import Recipe
from xcite.recipe_sections import DistillRecipe
from xcite.training import lines
from xcite.training.run_folder import RunFolder
from xcite.training.tensorboard import Board

# Drawing takes about a second, so a run of many short epochs draws only now and then.
SECONDS_BETWEEN_DRAWINGS = 60
SECONDS_BETWEEN_STATUSES = 5.0

# What turns metrics rows by run name into a picture file; figures lie above this layer.
Draw = Callable[[dict[str, list[dict[str, Any]]], Path], None]


class Journal:
    """Console, log.txt, metrics.jsonl, skipped.txt, TensorBoard and curves.png of one run.

    Attributes:
        folder: where the files are.
    """

    def __init__(
        self, folder: RunFolder, console: Console, draw: Draw | None, *, writes: bool
    ) -> None:
        self.writes = writes
        self.folder = folder
        self._console = console
        self._draw = draw
        self._drawn_at = time.monotonic()
        self._board: Board | None = None
        self._unwritten: list[dict[str, Any]] = []
        self._told: dict[str, Any] = {}
        self._told_at = 0.0

    def open_board(self) -> None:
        """Record rows for TensorBoard, too."""
        if self.writes:
            self._board = Board(self.folder.path)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def say(self, text: str) -> None:
        """Print a line and add it to log.txt; a reader who has gone does not end the run."""
        if not self.writes:
            return
        text = visible(text)
        self.folder.write_log(text)
        try:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        except (OSError, SystemExit):  # rich leaves the program when a pipe is closed
            self._console.quiet = True
            self.folder.write_log(
                tr("nobody reads the output any more; the run goes on with log.txt")
            )

    def record(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.jsonl and TensorBoard."""
        if self.writes:
            self._unwritten.append(row)
            if self._board is not None:
                self._board.add(row)
            self.write_rows()

    def write_rows(self) -> None:
        """Add to metrics.jsonl what a failure has kept out of it, too."""
        while self._unwritten:
            self.folder.record(self._unwritten[0])
            del self._unwritten[0]

    def now_and_then(self, state: str, **values: Any) -> None:
        """Tell `xcite status` where the run stands, unless it was told a moment ago."""
        since = time.monotonic() - self._told_at
        if since > SECONDS_BETWEEN_STATUSES or self._told.get("state") != state:
            self.tell(state, **values)

    def tell(self, state: str, **values: Any) -> None:
        """Tell `xcite status` where the run stands; what is not given stays as it was told."""
        if self.writes:
            self._told_at = time.monotonic()
            self._told |= {
                "state": state,
                "time": time.time(),
                "memory_mib": most_memory(),
                **values,
            }
            self.folder.write_status(self._told)

    def skipped(self, left_out: Mapping[str, Mapping[str, str]]) -> None:
        """List the pictures that could not be decoded; nothing where there are none.

        Args:
            left_out: of "train" and "validation", name to reason.
        """
        if any(left_out.values()) and self.writes:
            self.folder.write_skipped(left_out)

    def tell_skipped(
        self, left_out: Mapping[str, Mapping[str, str]], pictures: Mapping[str, int]
    ) -> dict[str, int]:
        """Count the pictures that could not be decoded so far, aloud, and list them.

        Args:
            left_out: see `skipped`.
            pictures: how many there are of each.

        Returns:
            What goes into the epoch's row; nothing where none are left out.
        """
        counts = {part: len(skipped) for part, skipped in left_out.items() if skipped}
        if counts:
            of_all = {part: (count, pictures[part]) for part, count in counts.items()}
            self.say(lines.left_out(of_all, self.folder.skipped.name))
        self.skipped(left_out)
        columns = {"train": "skipped", "validation": "validation_skipped"}
        return {columns[part]: n for part, n in counts.items()}

    def draw(self) -> None:
        """Draw the curves of all rows so far."""
        rows = self.folder.rows() if self.writes and self._draw else []
        if rows and self._draw:
            self._draw({self.folder.path.name: rows}, self.folder.curves)
        self._drawn_at = time.monotonic()

    def draw_now_and_then(self) -> None:
        """Draw the curves unless it was done a short while ago."""
        if time.monotonic() - self._drawn_at > SECONDS_BETWEEN_DRAWINGS:
            self.draw()

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Progress bars of an epoch, which vanish when it is done."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not (self.writes and self._console.is_terminal),
        ) as progress:
            yield progress


class Pace:
    """How long the rest of a run takes, from the steps and evaluations of this session."""

    def __init__(self) -> None:
        self._steps = _Mean()
        self._evaluations = _Mean()

    def step(self, seconds: float) -> None:
        self._steps.add(seconds)

    def evaluation(self, seconds: float) -> None:
        self._evaluations.add(seconds)

    def left(self, steps: int, evaluations: int) -> float | None:
        """Seconds for so many steps and evaluations; None before the first step."""
        if not self._steps.count:
            return None
        return steps * self._steps.value + evaluations * self._evaluations.value


class _Mean:
    """The mean of all values so far, later of about the last hundred."""

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, value: float) -> None:
        self.count = min(self.count + 1, 100)
        self.value += (value - self.value) / self.count


def clock(seconds: float | None) -> str:
    """A span of time for people, such as "2 d 03:04:05"."""
    if seconds is None:
        return tr("unknown")
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (tr("{days} d ", days=days) if days else "") + f"{hour}:{minute:02}:{second:02}"


class StepLog:
    """The steps of an epoch as they are done: a progress bar, and a row every so many steps."""

    def __init__(
        self,
        journal: Journal,
        recipe: Recipe,
        progress: Progress,
        *,
        epoch: int,
        steps: int,
        done: int,
        before: int,
        left: Callable[[], float | None],
    ) -> None:
        """Args:
        epoch: counted from 0.
        steps: of an epoch.
        done: steps of this epoch that an earlier session did.
        before: optimiser steps of the run before this epoch.
        left: seconds that the whole run still takes, for the progress line and `xcite status`.
        """
        self._journal = journal
        self._recipe = recipe
        self._progress = progress
        self._bar: TaskID = progress.add_task(
            tr("epoch {epoch}/{epochs}", epoch=epoch + 1, epochs=recipe.optim.epochs),
            total=steps,
            completed=done,
            note="",
        )
        self._left = left
        self._steps = steps
        self._epoch = epoch
        self._before = before
        self._window = _Window()

    def add(self, step: int, result: StepResult, rate: float, distill: DistillRecipe) -> None:
        """A step is done.

        Args:
            step: its number in the epoch, counted from 1.
            rate: its learning rate.
            distill: its loss; what changes of it is recorded.
        """
        window, number = self._window, self._before + step
        window.add(result.loss, self._recipe.optim.batch)
        self._progress.update(
            self._bar,
            completed=step,
            note=tr(
                "loss {loss:.4f}  lr {lr:.2e}  {speed:.0f} pictures/s  run {left} left",
                loss=result.loss,
                lr=rate,
                speed=window.speed(),
                left=clock(self._left()),
            ),
        )
        self._journal.now_and_then(
            "training",
            epoch=self._epoch + 1,
            epochs=self._recipe.optim.epochs,
            step=step,
            steps=self._steps,
            loss=result.loss,
            pictures_per_second=window.speed(),
            seconds_left=self._left(),
        )
        if number % self._recipe.run.log_every == 0:
            self._journal.record(
                {
                    "kind": "step",
                    "epoch": self._epoch + 1,
                    "step": number,
                    "loss": window.loss(),
                    "lr": rate,
                    "gradient_norm": result.gradient_norm,
                    "pictures_per_second": round(window.speed(), 2),
                    **{name: getattr(distill, name) for name in distill.changing},
                }
            )
            self._window = _Window()


class _Window:
    """Mean loss and speed over the steps since the last row."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._pictures = 0
        self._started = time.monotonic()

    def add(self, loss: float, pictures: int) -> None:
        self._losses.append(loss)
        self._pictures += pictures

    def loss(self) -> float:
        return sum(self._losses) / len(self._losses)

    def speed(self) -> float:
        return self._pictures / max(time.monotonic() - self._started, 1e-9)
