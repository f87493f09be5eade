"""The training loop, the only one: any engine, with or without a teacher, on one or many processes.

    recipe -> plan -> for each epoch: steps, then evaluation, then files

Everything random is a pure function of (seed, epoch, picture), and everything else is in the
checkpoint, so a run that was interrupted goes on as if nothing had happened.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from xcite import recipe as recipes
from xcite.data.batch import split
from xcite.data.pipeline import EvaluationLoader, TrainLoader
from xcite.engines import create_engine
from xcite.engines.interface import Engine
from xcite.errors import XciteError
from xcite.evaluation.accuracy import Accuracy
from xcite.evaluation.evaluate import EngineClassifier, evaluate, validation_line
from xcite.randomness import drop_path_scales
from xcite.recipe import Recipe
from xcite.training import checkpoint, plan, tensorboard
from xcite.training.checkpoint import Position
from xcite.training.distillation import Teacher, build_teacher
from xcite.training.run_folder import RunFolder
from xcite.training.schedules import learning_rate
from xcite.weights import Metadata, save_weights

# Drawing takes about a second, so a run of many short epochs draws only now and then.
SECONDS_BETWEEN_DRAWINGS = 60
# Starting a loader process takes as long as decoding about so many pictures.
PICTURES_PER_WORKER = 500


# What turns metrics rows by run name into a picture file; figures lie above this layer.
Draw = Callable[[dict[str, list[dict[str, Any]]], Path], None]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        epochs: how many are complete.
        best: highest top-1 in per cent; None without validation.
        finished: False when it was interrupted and can be resumed.
    """

    folder: Path
    epochs: int
    best: float | None
    finished: bool


def train(
    recipe: Recipe,
    run_folder: str | Path,
    *,
    resume: bool = False,
    teacher: Teacher | None = None,
    checkpoint_file: Path | None = None,
    console: Console | None = None,
    draw: Draw | None = None,
) -> Outcome:
    """Train as the recipe says and leave a run folder behind.

    Args:
        run_folder: new or empty; with ``resume`` the folder of the run to go on with.
        teacher: who answers; by default built from ``recipe.distill``.
        checkpoint_file: resume from this one instead of the folder's last.
        console: where progress goes; standard output by default.
        draw: writes curves.png from the rows of metrics.jsonl (`xcite.figures.curves.draw_curves`).

    Raises:
        XciteError: anything the user can mend; nothing is written before all is checked.
    """
    console = console or Console()
    if resume:
        folder = RunFolder.open(run_folder)
        state, position = checkpoint.read(checkpoint_file or folder.checkpoint)
    else:
        folder, state, position = RunFolder(run_folder), None, Position()
        folder.refuse_used()
    if recipe.run.tensorboard:
        tensorboard.require()
    prepared = plan.make(recipe, initialise=not resume)
    fingerprint = prepared.train.fingerprint()
    if resume and position.fingerprint != fingerprint:
        raise XciteError(
            f"the training pictures of {recipe.data.train} are not those that {folder.path} began "
            "with; a resumed run needs the same files"
        )
    engine = create_engine(
        recipe.run.engine,
        prepared.architecture,
        seed=recipe.run.seed,
        precision=recipe.run.precision,
        operators=recipe.run.operators,
        attention=recipe.run.attention,
        activation_checkpointing=recipe.run.activation_checkpointing,
        compile=recipe.run.compile,
    )
    if prepared.weights is not None:
        engine.load_weights(prepared.weights)
    if teacher is None:
        teacher = build_teacher(recipe, engine, prepared.class_names, source=prepared.train)
    engine.start_training(
        recipe.optim, recipe.distill, recipe.preprocessing, frozen=prepared.frozen
    )
    if state is not None:
        engine.restore_training(state)
    position = replace(position, fingerprint=fingerprint)
    with StopRequest() as stop:
        return _Run(prepared, engine, folder, position, teacher, console, draw, stop).go(resume)


class StopRequest:
    """Ctrl-C or SIGTERM: noted, and obeyed at the next step boundary; a second one at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        # Only the main thread may set handlers; elsewhere the caller's own are in charge.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


class _Stopped(Exception):
    """Unwinds from inside an evaluation, whose epoch is then evaluated again after resuming."""


class _Run:
    """One session of a run: what the loop's parts share."""

    def __init__(
        self,
        prepared: plan.Plan,
        engine: Engine,
        folder: RunFolder,
        position: Position,
        teacher: Teacher | None,
        console: Console,
        draw: Draw | None,
        stop: StopRequest,
    ) -> None:
        self.plan = prepared
        self.recipe = prepared.recipe
        self.engine = engine
        self.folder = folder
        self.position = position
        self.teacher = teacher
        self.console = console
        self.draw = draw
        self.stop = stop
        self.writes = engine.rank == 0
        self.loader = TrainLoader(
            prepared.train, self.recipe, rank=engine.rank, world_size=engine.world_size
        )
        self.steps = self.loader.steps_per_epoch
        self.saved_at = self.drawn_at = time.monotonic()
        self.board: tensorboard.Board | None = None

    def go(self, resume: bool) -> Outcome:
        self._open_folder(resume)
        epochs = self.recipe.optim.epochs
        if self.position.epoch >= epochs:
            self._say(f"{self.folder.path} is complete: {epochs} epochs are done")
        while self.position.epoch < epochs:
            with self._progress() as progress:
                complete = self._steps(progress)
                try:
                    accuracies = self._evaluate(progress) if complete else {}
                except _Stopped:
                    complete = False
            if not complete:
                return self._interrupted()
            self._finish_epoch(accuracies)
        self._draw()
        return self._outcome(finished=True)

    # ---- one epoch -------------------------------------------------------------------------

    def _steps(self, progress: Progress) -> bool:
        """Train to the end of the epoch; False when asked to stop before."""
        recipe, engine, epoch = self.recipe, self.engine, self.position.epoch
        blocks, drop = self.plan.architecture.drop_paths()
        bar = progress.add_task(
            f"epoch {epoch + 1}/{recipe.optim.epochs}",
            total=self.steps,
            completed=self.position.step,
            note="",
        )
        if self.position.step >= self.steps:
            return True  # only the evaluation is missing
        window = _Window()
        shown = self.teacher.data_epoch(epoch) if self.teacher else epoch
        for batch in self.loader.epoch(shown, start_step=self.position.step):
            before = time.monotonic()
            number = epoch * self.steps + self.position.step
            rate = learning_rate(recipe, number, self.steps)
            parts = split(batch, recipe.optim.accumulate)
            result = engine.train_step(
                parts,
                learning_rate=rate,
                paths=[
                    drop_path_scales(recipe.run.seed, epoch, part.views, blocks, drop)
                    for part in parts
                ],
                teacher=[self.teacher.answers(part) if self.teacher else None for part in parts],
            )
            if not math.isfinite(result.loss + result.gradient_norm):
                raise XciteError(
                    f"the loss is {result.loss}, the gradient's norm {result.gradient_norm}, "
                    f"in epoch {epoch + 1}, step {self.position.step + 1} of {self.steps} "
                    f"(learning rate {rate:.3g}); the weights before it are kept; "
                    "lower optim.lr, set optim.clip or use float32"
                )
            self.position = self.position.after(result.loss, time.monotonic() - before)
            window.add(result.loss, recipe.optim.batch)
            progress.update(
                bar,
                completed=self.position.step,
                note=f"loss {result.loss:.4f}  lr {rate:.2e}  {window.speed():.0f} pictures/s",
            )
            if (number + 1) % recipe.run.log_every == 0:
                self._record(
                    {
                        "kind": "step",
                        "epoch": epoch + 1,
                        "step": number + 1,
                        "loss": window.loss(),
                        "lr": rate,
                        "gradient_norm": result.gradient_norm,
                        "pictures_per_second": round(window.speed(), 2),
                    }
                )
                window = _Window()
            if self._stop_requested():
                return False
            minutes = recipe.run.checkpoint_minutes
            if minutes and time.monotonic() - self.saved_at > 60 * minutes:
                self._save_checkpoint()
        return True

    def _evaluate(self, progress: Progress) -> dict[str, Accuracy]:
        """Accuracy of the model and, if there is one, of its moving average."""
        recipe, epoch, source = self.recipe, self.position.epoch + 1, self.plan.validation
        due = epoch % recipe.run.evaluate_every == 0 or epoch == recipe.optim.epochs
        if source is None or not due:
            return {}
        loader = EvaluationLoader(
            source,
            recipe.preprocessing,
            batch=max(1, recipe.optim.batch // recipe.optim.accumulate // self.engine.world_size),
            workers=min(recipe.data.workers, len(source) // PICTURES_PER_WORKER),
            on_error=recipe.data.on_error,
            max_pixels=recipe.data.max_pixels,
            rank=self.engine.rank,
            world_size=self.engine.world_size,
        )
        bar = progress.add_task("validate", total=len(source), note="")

        def after_batch(pictures: int) -> None:
            progress.advance(bar, pictures * self.engine.world_size)
            # Several processes reduce together at the end, so none of them may leave before.
            if self.engine.world_size == 1 and self.stop.signal is not None:
                raise _Stopped

        classifiers = {"model": EngineClassifier(self.engine)}
        if recipe.optim.ema is not None:
            classifiers["ema"] = EngineClassifier(self.engine, ema=True)
        return evaluate(
            classifiers,
            loader,
            recipe.preprocessing,
            self.plan.class_names,
            average=self.engine.average,
            processes=self.engine.world_size,
            after_batch=after_batch,
        )

    def _finish_epoch(self, accuracies: dict[str, Accuracy]) -> None:
        """Say, record and save what the epoch gave."""
        position, epoch = self.position, self.position.epoch + 1
        number = epoch * self.steps
        row = {
            "kind": "epoch",
            "epoch": epoch,
            "step": number,
            "loss": position.loss / self.steps,
            "lr": learning_rate(self.recipe, number - 1, self.steps),
            "seconds": round(position.seconds, 3),
        }
        for name, accuracy in accuracies.items():
            prefix = "ema_" if name == "ema" else ""
            row |= {
                f"{prefix}acc1": accuracy.top1,
                f"{prefix}acc5": accuracy.top5,
                f"{prefix}val_loss": accuracy.loss,
            }
            self._say(validation_line(epoch, accuracy, ema=name == "ema"))
        if self.loader.skipped:
            row["skipped"] = len(set(self.loader.skipped))
            if self.writes:
                self.folder.write_skipped(self.loader.skipped)
        self._say(
            f"Epoch [{epoch}] loss {row['loss']:.4f}, lr {row['lr']:.3g}, "
            f"{position.seconds:.1f} s of training"
        )
        self._record(row)
        if accuracies:
            leader = max(accuracies, key=lambda name: accuracies[name].top1)
            top1 = accuracies[leader].top1
            if position.best is None or top1 > position.best:
                position = replace(
                    position, best=top1, best_top5=accuracies[leader].top5, best_epoch=epoch
                )
                self._save_weights(self.folder.best, accuracies, epoch, ema=leader == "ema")
        self.position = position.next_epoch()
        last = epoch == self.recipe.optim.epochs
        if last or epoch % self.recipe.run.checkpoint_every == 0:
            self._save_weights(self.folder.last, accuracies, epoch, ema=False)
            if self.recipe.optim.ema is not None:
                self._save_weights(self.folder.last_ema, accuracies, epoch, ema=True)
            self._save_checkpoint()
            if self.writes:
                checkpoint.keep_numbered(self.folder, epoch, self.recipe.run.keep)
        if time.monotonic() - self.drawn_at > SECONDS_BETWEEN_DRAWINGS:
            self._draw()

    # ---- files and words -------------------------------------------------------------------

    def _open_folder(self, resume: bool) -> None:
        if not self.writes:
            return
        if resume:
            self.folder.forget_after(self.position.epoch * self.steps + self.position.step)
        else:
            RunFolder.create(self.folder.path, self.recipe)
        self.folder.write_environment(self.engine.name)
        if self.recipe.run.tensorboard:
            self.board = tensorboard.Board(self.folder.path)
        begin = "resumed" if resume else "begins"
        self._say(
            f"{self.folder.path} {begin} on {self.engine.name}: epoch {self.position.epoch + 1} of "
            f"{self.recipe.optim.epochs}, {self.steps} steps each"
        )
        for note in [*self.plan.notes, *(self.teacher.notes if self.teacher else [])]:
            self._say(f"note: {note}")

    def _save_checkpoint(self) -> None:
        state = self.engine.training_state()
        if self.writes:
            metadata = self._metadata({"epoch": self.position.epoch})
            checkpoint.save(self.folder.checkpoint, state, self.position, metadata)
        self.saved_at = time.monotonic()

    def _save_weights(
        self, path: Path, accuracies: dict[str, Accuracy], epoch: int, *, ema: bool
    ) -> None:
        if not self.writes:
            return
        metrics: dict[str, float | int | bool] = {"epoch": epoch, "ema": ema}
        accuracy = accuracies.get("ema" if ema else "model")
        if accuracy is not None:
            metrics |= {"top1": accuracy.top1, "top5": accuracy.top5, "loss": accuracy.loss}
        save_weights(path, self.engine.read_weights(ema=ema), self._metadata(metrics))

    def _metadata(self, metrics: dict[str, float | int | bool]) -> Metadata:
        """What travels with the weights."""
        recipe = self.recipe
        provenance: dict[str, Any] = {"engine": self.engine.name, "seed": recipe.run.seed}
        if recipe.init.weights:
            provenance["initial_weights"] = recipe.init.weights
        if self.teacher is not None:
            provenance["teacher"] = self.teacher.identity()
        return Metadata(
            variant=None if recipe.model.overrides() else recipe.model.name,
            architecture=asdict(self.plan.architecture),
            class_names=self.plan.class_names,
            preprocessing=recipe.preprocessing,
            provenance=provenance,
            recipe_hash=recipes.digest(recipe),
            metrics=metrics,
        )

    def _interrupted(self) -> Outcome:
        self._save_checkpoint()
        if self.loader.skipped and self.writes:
            self.folder.write_skipped(self.loader.skipped)
        self._draw()
        self._say(
            f"stopped after step {self.position.step} of {self.steps} in epoch "
            f"{self.position.epoch + 1}; go on with: xcite train --resume {self.folder.path}"
        )
        return self._outcome(finished=False)

    def _outcome(self, *, finished: bool) -> Outcome:
        if self.board is not None:
            self.board.close()
        if finished and self.position.best is not None:
            self._say(
                f"best: top-1 {self.position.best:.2f} %, top-5 {self.position.best_top5:.2f} % "
                f"after epoch {self.position.best_epoch}: {self.folder.best}"
            )
        return Outcome(self.folder.path, self.position.epoch, self.position.best, finished)

    def _draw(self) -> None:
        rows = self.folder.rows() if self.writes and self.draw else []
        if rows and self.draw:
            self.draw({self.folder.path.name: rows}, self.folder.curves)
        self.drawn_at = time.monotonic()

    def _record(self, row: dict[str, object]) -> None:
        if self.writes:
            self.folder.record(row)
            if self.board is not None:
                self.board.add(row)

    def _say(self, text: str) -> None:
        if self.writes:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
            self.folder.write_log(text)

    def _stop_requested(self) -> bool:
        asked = self.stop.signal is not None
        if self.engine.world_size > 1:
            # All processes stop after the same step, whichever of them got the signal.
            asked = bool(self.engine.average(np.array([float(asked)]))[0] > 0)
        return asked

    @contextmanager
    def _progress(self) -> Iterator[Progress]:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not (self.writes and self.console.is_terminal),
        ) as progress:
            yield progress


class _Window:
    """Mean loss and speed over the steps since the last log row."""

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
