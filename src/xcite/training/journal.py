"""What a run tells people: printed lines, progress, metrics, curves.

Only process 0 tells anything; in the others every call does nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
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
from xcite.recipe import Recipe
from xcite.training.run_folder import RunFolder
from xcite.training.tensorboard import Board

# Drawing takes about a second, so a run of many short epochs draws only now and then.
SECONDS_BETWEEN_DRAWINGS = 60

# What turns metrics rows by run name into a picture file; figures lie above this layer.
Draw = Callable[[dict[str, list[dict[str, Any]]], Path], None]


class Journal:
    """Console, log.txt, metrics.jsonl, skipped.txt, TensorBoard and curves.png of one run."""

    def __init__(
        self, folder: RunFolder, console: Console, draw: Draw | None, *, writes: bool
    ) -> None:
        self.writes = writes
        self._folder = folder
        self._console = console
        self._draw = draw
        self._drawn_at = time.monotonic()
        self._board: Board | None = None

    def open_board(self) -> None:
        """Record rows for TensorBoard, too."""
        if self.writes:
            self._board = Board(self._folder.path)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()

    def say(self, text: str) -> None:
        """Print a line and add it to log.txt."""
        if self.writes:
            text = visible(text)
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
            self._folder.write_log(text)

    def record(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.jsonl and TensorBoard."""
        if self.writes:
            self._folder.record(row)
            if self._board is not None:
                self._board.add(row)

    def skipped(self, names: Sequence[str]) -> None:
        """List the pictures that could not be decoded; nothing where there are none."""
        if names and self.writes:
            self._folder.write_skipped(names)

    def draw(self) -> None:
        """Draw the curves of all rows so far."""
        rows = self._folder.rows() if self.writes and self._draw else []
        if rows and self._draw:
            self._draw({self._folder.path.name: rows}, self._folder.curves)
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
    ) -> None:
        """Args:
        epoch: counted from 0.
        steps: of an epoch.
        done: steps of this epoch that an earlier session did.
        """
        self._journal = journal
        self._recipe = recipe
        self._progress = progress
        self._bar: TaskID = progress.add_task(
            f"epoch {epoch + 1}/{recipe.optim.epochs}", total=steps, completed=done, note=""
        )
        self._epoch = epoch
        self._before = epoch * steps  # optimiser steps of the run before this epoch
        self._window = _Window()

    def add(self, step: int, result: StepResult, rate: float) -> None:
        """A step is done.

        Args:
            step: its number in the epoch, counted from 1.
            rate: its learning rate.
        """
        window, number = self._window, self._before + step
        window.add(result.loss, self._recipe.optim.batch)
        self._progress.update(
            self._bar,
            completed=step,
            note=f"loss {result.loss:.4f}  lr {rate:.2e}  {window.speed():.0f} pictures/s",
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
